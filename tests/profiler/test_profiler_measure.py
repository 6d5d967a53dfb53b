"""Noise control, on a device that says what it is told to."""

import itertools
import math
from dataclasses import replace

import pytest
from fake_device import FakeDevice, exact_seconds

from frontier.profiler.device import PointRefusedError
from frontier.profiler.measure import (
    MAD_TO_SIGMA,
    Policy,
    copies_for,
    is_stable,
    measure,
    median_and_spread,
    without_outliers,
)
from frontier.profiler.points import Point

POINT = Point("elementwise", "activation", "bf16", {"rows": 64, "bytes_per_row": 6e5}, 0.0, 3.84e7, 2**25)
POLICY = Policy(repeats=5, repeats_most=9)


def scripted(*rounds, then=1e-3):
    return FakeDevice(script=itertools.chain(rounds, itertools.repeat(then)))


def test_a_steady_kernel_takes_the_fewest_rounds():
    device = FakeDevice(noise=0.0)
    measurement = measure(device, POINT, POLICY)
    assert measurement.seconds == exact_seconds(POINT)
    assert measurement.spread == 0
    assert (measurement.warmup, measurement.rounds, measurement.outliers) == (6, 5, 0)
    assert measurement.kernel == "fake_activation"
    assert device.closed == 1


def test_warm_up_lasts_until_times_are_stable():
    falling = [8e-3, 6e-3, 4e-3, 3e-3, 2e-3, 1.5e-3, 1.2e-3]
    measurement = measure(scripted(*falling), POINT, POLICY)
    assert (
        measurement.warmup == len(falling) + 5
    )  # six rounds whose halves have one median, one outlier in the first
    assert measurement.seconds == 1e-3
    assert measurement.spread == 0


def test_warm_up_ends_somewhere():
    device = FakeDevice(script=(1e-3 * 0.9**number for number in itertools.count()))
    policy = replace(POLICY, warmup_most=10, noise=10.0, point_s=1e9)
    assert measure(device, POINT, policy).warmup == 10


@pytest.mark.parametrize(
    ("rounds", "stable"),
    [([1.0] * 5, False), ([1.0] * 6, True), ([1.0] * 3 + [1.06] * 3, False), ([9, 1, 1, 1, 1, 1], True)],
)
def test_stability_compares_two_medians(rounds, stable):
    assert is_stable(rounds, 0.05) is stable


def test_median_and_spread_by_hand():
    assert median_and_spread([5.0, 1.0, 2.0, 4.0, 3.0]) == (3.0, MAD_TO_SIGMA * 1.0)
    assert median_and_spread([2.0, 4.0]) == (3.0, MAD_TO_SIGMA)


def test_rounds_are_added_until_the_median_is_sure():
    steady = [1e-3] * 6
    uneven = [1.00e-3, 1.02e-3, 0.98e-3, 1.01e-3, 0.99e-3] * 20
    policy = replace(POLICY, repeats_most=100)
    measurement = measure(FakeDevice(script=iter(steady + uneven)), POINT, policy)
    assert 5 < measurement.rounds < 100
    assert 1.2533 * measurement.spread / math.sqrt(measurement.rounds) <= 0.005 * measurement.seconds
    capped = measure(FakeDevice(script=iter(steady + uneven)), POINT, replace(policy, repeats_most=7))
    assert capped.rounds == 7


def test_a_long_launch_ends_early_but_has_three_rounds():
    measurement = measure(scripted(then=2.0), POINT, POLICY)
    assert (measurement.warmup, measurement.rounds) == (2, 3)


def test_disturbed_rounds_are_left_out_and_counted():
    policy = replace(POLICY, repeats=11, repeats_most=11)
    rounds = [1e-3] * 6 + [1e-3] * 4 + [5e-3] + [1e-3] * 6
    measurement = measure(FakeDevice(script=iter(rounds)), POINT, policy)
    assert (measurement.rounds, measurement.outliers, measurement.seconds) == (10, 1, 1e-3)
    assert without_outliers([1.0, 1.0, 1.0, 0.1], policy) == [1.0, 1.0, 1.0, 0.1]  # a fast round is a fact


def test_too_many_disturbed_rounds_are_measured_again():
    policy = replace(POLICY, repeats=10, repeats_most=10)
    bad = [1e-3] * 6 + [1e-3] * 7 + [5e-3] * 3
    measurement = measure(scripted(*bad), POINT, policy)
    assert measurement.outliers == 0
    with pytest.raises(PointRefusedError, match="disturbed on all 3 attempts: 3 of 10 rounds"):
        measure(scripted(*bad * 3), POINT, policy)


def test_noise_is_refused():
    policy = replace(POLICY, repeats_most=8, outlier_spreads=1e9)
    noisy = itertools.cycle([1e-3, 2e-3, 3e-3, 4e-3])
    device = FakeDevice(script=noisy)
    with pytest.raises(PointRefusedError, match="spread by"):
        measure(device, POINT, policy)
    assert device.closed == 1


@pytest.mark.parametrize("told", [0.0, -1e-3, math.nan, math.inf])
def test_times_that_cannot_be_are_never_kept(told):
    first = measure(scripted(*[1e-3] * 8, told), POINT, POLICY)
    assert first.seconds == 1e-3
    with pytest.raises(PointRefusedError, match="device's clock said"):
        measure(scripted(then=told), POINT, POLICY)


def test_a_device_that_says_more_than_went_by_is_refused():
    device = FakeDevice(noise=0.0)
    device.now = lambda: 0.0
    with pytest.raises(PointRefusedError, match="while 0s went by"):
        measure(device, replace(POINT, bytes=1e12), POLICY)


def test_a_host_clock_that_goes_back_is_refused():
    device = FakeDevice(noise=0.0)
    falling = itertools.count(0, -1)
    device.now = lambda: float(next(falling))
    with pytest.raises(PointRefusedError, match="went back by"):
        measure(device, POINT, POLICY)


def test_a_processor_clock_that_jumps_is_measured_again():
    clocks = itertools.chain([345.0, 1980.0], itertools.repeat(1980.0))
    measurement = measure(FakeDevice(clocks=clocks), POINT, POLICY)
    assert measurement.clock_mhz == 1980.0
    with pytest.raises(PointRefusedError, match="processor clock went from 345 to 1980 MHz"):
        measure(FakeDevice(clocks=itertools.cycle([345.0, 1980.0])), POINT, POLICY)
    throttled = measure(
        FakeDevice(clocks=itertools.chain([1980.0, 1800.0], itertools.repeat(1800.0))), POINT, POLICY
    )
    assert throttled.clock_mhz == 1800.0


@pytest.mark.parametrize(
    ("resident", "cache", "free", "copies"),
    [
        (2**30, 2**24, 2**40, 1),  # larger than the cache by itself
        (2**24, 2**24, 2**40, 2),
        (2**20, 2**24, 2**40, 32),
        (3 * 2**20, 2**24, 2**40, 11),
        (1, 2**24, 2**40, 64),  # as many as there may be
        (2**20, 2**24, 2**24, 8),  # half of the free memory
        (2**20, 2**24, 2**20, 1),
        (2**20, 0, 2**40, 1),
    ],
)
def test_copies_exceed_the_cache(resident, cache, free, copies):
    assert copies_for(resident, cache, free, Policy()) == copies


def test_operands_that_do_not_fit_are_not_allocated():
    device = FakeDevice()
    with pytest.raises(PointRefusedError, match="does not fit in memory"):
        measure(device, replace(POINT, resident_bytes=2**34), POLICY)
    assert not device.opened
