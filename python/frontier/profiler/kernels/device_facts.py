"""Copies and launches: facts of a device rather than operators of a model."""

from __future__ import annotations

from typing import Any

from frontier.profiler.device import PointRefusedError
from frontier.profiler.kernels.bench import Bench, Launches, Run
from frontier.profiler.points import Point


def build_copy(bench: Bench, point: Point, copies: int) -> Launches:
    """Return copies within the device, to it or from it; the host's side is pinned."""
    size, way = point.integer("bytes"), str((point.detail or {})["direction"])
    host = bench.place == "cpu"
    if host and way != "within":
        raise PointRefusedError("a CPU has no device to copy to or from")

    def buffer(on_host: bool) -> Any:
        place = "cpu" if on_host else bench.place
        pinned = on_host and not host
        return bench.torch.zeros(size, dtype=bench.torch.uint8, device=place, pin_memory=pinned)

    def copy(source: Any, target: Any) -> Run:
        return lambda: target.copy_(source, non_blocking=True)

    runs = [copy(buffer(way == "to"), buffer(way == "from")) for _ in range(copies)]
    return Launches(f"torch_copy_{way}", runs)


def build_launch(bench: Bench, point: Point, copies: int) -> Launches:
    """Return a chain of launches of a kernel that does next to nothing."""
    x = bench.normal(16, 64, dtype=point.dtype)
    kernels = point.integer("kernels")

    def run() -> object:
        for _ in range(kernels):
            x.add_(0.0)
        return x

    return Launches("torch_add_replayed" if point.columns["graph"] else "torch_add_eager", [run] * copies)
