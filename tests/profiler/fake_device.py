"""A device whose times are a formula and whose clocks are exact, with faults on demand."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

from frontier.profiler.device import DeviceFacts, PointRefusedError
from frontier.profiler.grid import Grid
from frontier.profiler.measure import Policy
from frontier.profiler.points import Point
from frontier.profiler.settings import Settings

FLOPS_PER_S = 4e14
BYTES_PER_S = 3e12
LAUNCH_S = 4e-6
MEMORY = 2**33
CACHE = 2**24

SMALL = Settings(
    gpu="fake",
    models=("qwen3-0.6b", "qwen3-30b-a3b"),
    ranks=(1,),
    policy=Policy(repeats=5, repeats_most=9),
    grid=Grid(targets=dict.fromkeys(Grid().targets, 40)),
)
"""Settings of a profile of some 300 points."""


def exact_seconds(point: Point) -> float:
    """Return the time of a launch; the efficiency depends on rows, so that there is something to learn."""
    rows = point.columns.get("rows", 64)
    efficiency = 0.5 + 0.4 * min(1.0, float(rows) / 512)
    return max(point.flops / FLOPS_PER_S, point.bytes / BYTES_PER_S) / efficiency + LAUNCH_S


class FakeWorkload:
    """A launch of a point; its rounds differ by noise that depends on the point and the round alone."""

    def __init__(self, device: FakeDevice, point: Point) -> None:
        self.kernel = f"fake_{point.operator}"
        self._device, self._point, self._round = device, point, 0

    def seconds(self) -> float:
        device = self._device
        device.rounds += 1
        if device.fault is not None:
            device.fault(device.rounds)
        self._round += 1
        if device.script is not None:
            told = next(device.script)
        else:
            drawn = hashlib.sha256(f"{self._point.key}/{self._round}".encode()).digest()[0] / 255
            told = exact_seconds(self._point) * (1 + device.noise * (drawn - 0.5))
        device.time += 0.0 if math.isnan(told) else max(told, 0.0)
        return told

    def close(self) -> None:
        self._device.closed += 1


class FakeDevice:
    """A device for tests.

    `script` gives the rounds' times, else they are `exact_seconds` with `noise`; `fault` is called with the
    number of every round and may raise; `clocks` are what the processor clock reads; each opening of a point
    takes `overhead_s`.
    """

    def __init__(
        self,
        *,
        noise: float = 0.01,
        script: Iterator[float] | None = None,
        fault: Callable[[int], None] | None = None,
        clocks: Iterator[float | None] | None = None,
        overhead_s: float = 0.0,
        **facts: object,
    ) -> None:
        self.noise, self.script, self.fault, self.clocks = noise, script, fault, clocks
        self.overhead_s = overhead_s
        self.time, self.rounds, self.closed = 100.0, 0, 0
        self.opened: list[tuple[Point, int]] = []
        base = DeviceFacts(
            kind="cuda",
            name="Fake GPU",
            backend="torch",
            version="2.0",
            measurement="cuda_graph",
            memory_bytes=MEMORY,
            cache_bytes=CACHE,
            flops_per_s=FLOPS_PER_S,
            bytes_per_s=BYTES_PER_S,
            graphs=True,
            versions={"torch": "2.0", "driver": "1"},
            state={"power_limit_mw": "700000"},
        )
        self._facts = replace(base, **facts)  # type: ignore[arg-type]

    def facts(self) -> DeviceFacts:
        return self._facts

    def now(self) -> float:
        return self.time

    def clock_mhz(self) -> float | None:
        return None if self.clocks is None else next(self.clocks)

    def free_bytes(self) -> int:
        return self._facts.memory_bytes

    def open(self, point: Point, copies: int) -> FakeWorkload:
        self.time += self.overhead_s
        self.opened.append((point, copies))
        if point.operator == "rope":
            raise PointRefusedError("this device does not turn")
        return FakeWorkload(self, point)
