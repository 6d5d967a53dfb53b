"""One measurement: warm-up until stable, repeats until sure, median and spread, clocks that do not jump."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from frontier.profiler.device import Device, PointRefusedError, Workload
from frontier.profiler.points import Point

MAD_TO_SIGMA = 1.4826
"""Standard deviation of a normal law over its median absolute deviation."""

_MEDIAN_ERROR = 1.2533
"""Standard error of a median over that of a mean, for a normal law: sqrt(pi / 2)."""


@dataclass(frozen=True)
class Policy:
    """How carefully a point is measured.

    Attributes:
        warmup_rounds: least rounds before any is counted.
        warmup_most: rounds after which warm-up ends in any case.
        warmup_tolerance: warm-up ends when the medians of the last three rounds and of the three before them
            differ by this share at most.
        repeats: least rounds counted.
        repeats_most: most rounds counted.
        precision: rounds are added until the standard error of the median is at most this share of it.
        point_s: no round is started after this many seconds, once there are three.
        outlier_spreads: a round more than so many spreads above the median was disturbed from outside, and is
            left out (the spread being at least `precision` of the median).
        outlier_share: with more disturbed rounds than this share, the measurement is repeated.
        noise: a spread above this share of the median makes it repeat, too.
        clock_tolerance: so does a processor clock that changes by more than this share meanwhile (a jump
            between power states; what a power limit takes from long products is less).
        attempts: after so many, the point is refused.
        cache_factor: operands are rotated over this many times the last-level cache.
        copies_most: copies of the operands at most; a launch too small for that to exceed the cache finds it
            partly warm.
    """

    warmup_rounds: int = 6
    warmup_most: int = 60
    warmup_tolerance: float = 0.05
    repeats: int = 11
    repeats_most: int = 61
    precision: float = 0.005
    point_s: float = 1.0
    outlier_spreads: float = 6.0
    outlier_share: float = 0.2
    noise: float = 0.25
    clock_tolerance: float = 0.15
    attempts: int = 3
    cache_factor: float = 2.0
    copies_most: int = 64


@dataclass(frozen=True)
class Measurement:
    """What was measured of one launch.

    Attributes:
        seconds: median of the rounds that count.
        spread: their median absolute deviation, scaled to a standard deviation (seconds).
        rounds: how many they are.
        outliers: rounds left out.
        warmup: rounds before.
        copies: copies of the operands that were rotated.
        kernel: kernel measured.
        clock_mhz: processor clock at the end, where it can be read.
    """

    seconds: float
    spread: float
    rounds: int
    outliers: int
    warmup: int
    copies: int
    kernel: str
    clock_mhz: float | None


class Disturbed(Exception):  # noqa: N818 - a reason to try again, not an error
    """An attempt that must not count."""


def copies_for(resident_bytes: int, cache_bytes: int, free_bytes: int, policy: Policy) -> int:
    """Return the copies to rotate, so that a launch finds nothing of its operands in the cache.

    Enough that all of them together exceed the cache `cache_factor` times (and so that between two uses of
    one copy the others push it out), within `copies_most` and half the free memory, at least one.
    """
    size = max(1, resident_bytes)
    wanted = math.ceil(policy.cache_factor * cache_bytes / size)
    return max(1, min(wanted, policy.copies_most, free_bytes // 2 // size))


def measure(device: Device, point: Point, policy: Policy) -> Measurement:
    """Measure one point.

    Raises:
        PointRefusedError: it does not fit, has no kernel here, or was disturbed on every attempt.
        DeviceLostError: the device failed.
    """
    free = device.free_bytes()
    if point.resident_bytes > free:
        raise PointRefusedError(f"does not fit in memory: takes {point.resident_bytes} of {free} bytes")
    copies = copies_for(point.resident_bytes, device.facts().cache_bytes, free, policy)
    workload = device.open(point, copies)
    try:
        reason = ""
        for _ in range(policy.attempts):
            try:
                return _attempt(device, workload, copies, policy)
            except Disturbed as error:
                reason = str(error)
    finally:
        workload.close()
    raise PointRefusedError(f"disturbed on all {policy.attempts} attempts: {reason}")


def _attempt(device: Device, workload: Workload, copies: int, policy: Policy) -> Measurement:
    begin = device.now()
    warmup = _warm_up(device, workload, policy, begin)
    clock = device.clock_mhz()
    begin = device.now()
    samples: list[float] = []
    while not _enough(samples, policy, device.now() - begin):
        samples.append(_round(device, workload))
    _check_clock(clock, device.clock_mhz(), policy)
    kept = without_outliers(samples, policy)
    seconds, spread = median_and_spread(kept)
    if len(samples) - len(kept) > policy.outlier_share * len(samples):
        raise Disturbed(f"{len(samples) - len(kept)} of {len(samples)} rounds were far above the median")
    if spread > policy.noise * seconds:
        raise Disturbed(f"the rounds spread by {spread / seconds:.0%} of their median")
    outliers = len(samples) - len(kept)
    now_mhz = device.clock_mhz()
    return Measurement(seconds, spread, len(kept), outliers, warmup, copies, workload.kernel, now_mhz)


def _warm_up(device: Device, workload: Workload, policy: Policy, begin: float) -> int:
    rounds: list[float] = []
    while len(rounds) < policy.warmup_most:
        rounds.append(_round(device, workload))
        if len(rounds) >= policy.warmup_rounds and is_stable(rounds, policy.warmup_tolerance):
            break
        if len(rounds) >= 2 and device.now() - begin > policy.point_s:
            break  # a launch this long keeps the device warm by itself
    return len(rounds)


def is_stable(rounds: Sequence[float], tolerance: float) -> bool:
    """Return whether the last three rounds and the three before them have nearly the same median."""
    if len(rounds) < 6:
        return False
    before, last = statistics.median(rounds[-6:-3]), statistics.median(rounds[-3:])
    return abs(last - before) <= tolerance * before


def _enough(samples: Sequence[float], policy: Policy, elapsed_s: float) -> bool:
    if len(samples) >= policy.repeats_most:
        return True
    if len(samples) >= 3 and elapsed_s > policy.point_s:
        return True
    if len(samples) < policy.repeats:
        return False
    seconds, spread = median_and_spread(without_outliers(samples, policy))
    return _MEDIAN_ERROR * spread / math.sqrt(len(samples)) <= policy.precision * seconds


def median_and_spread(samples: Sequence[float]) -> tuple[float, float]:
    """Return the median, and the median absolute deviation scaled to a standard deviation."""
    middle = statistics.median(samples)
    return middle, MAD_TO_SIGMA * statistics.median(abs(sample - middle) for sample in samples)


def without_outliers(samples: Sequence[float], policy: Policy) -> list[float]:
    """Return the samples but for those far above the median: nothing outside makes a kernel faster."""
    middle, spread = median_and_spread(samples)
    most = middle + policy.outlier_spreads * max(spread, policy.precision * middle)
    return [sample for sample in samples if sample <= most]


def _round(device: Device, workload: Workload) -> float:
    before = device.now()
    seconds = workload.seconds()
    elapsed = device.now() - before
    if not (math.isfinite(seconds) and seconds > 0):
        raise Disturbed(f"the device's clock said {seconds} s for one launch")
    if elapsed < 0:
        raise Disturbed(f"the host's clock went back by {-elapsed} s")
    if seconds > 1.1 * elapsed + 50e-6:
        raise Disturbed(f"the device's clock said {seconds} s for one launch while {elapsed:g}s went by")
    return seconds


def _check_clock(before: float | None, after: float | None, policy: Policy) -> None:
    if before is None or after is None:
        return
    if before <= 0 or abs(after - before) > policy.clock_tolerance * before:
        raise Disturbed(f"the processor clock went from {before:g} to {after:g} MHz")
