"""Which points are measured, in which order, and which are left out and why; the same for the same inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from frontier.profiler.families import CELLS, Request
from frontier.profiler.grid import Grid
from frontier.profiler.order import coarse_to_fine
from frontier.profiler.points import Point
from frontier.profiler.shapes import Shapes

_ONCE = ("launch", "copy")
_FP8 = ("gemm", "elementwise")
_CPU_GRAPHS = "a CPU has no graphs to replay"


@dataclass(frozen=True)
class Limits:
    """What a device can hold and do.

    Attributes:
        memory_bytes: memory that one point may take.
        launch_s: longest launch that is measured.
        flops_per_s: rate of arithmetic, from which the length of a launch is estimated.
        bytes_per_s: rate of memory traffic, likewise.
        graphs: whether launches can be replayed as a graph.
    """

    memory_bytes: int
    launch_s: float
    flops_per_s: float
    bytes_per_s: float
    graphs: bool

    def refuses(self, point: Point) -> str | None:
        """Return why a point is not measured, None where it is."""
        if point.resident_bytes > self.memory_bytes:
            return f"does not fit in memory: takes {_gib(point.resident_bytes)} of {_gib(self.memory_bytes)}"
        expected = max(point.flops / self.flops_per_s, point.bytes / self.bytes_per_s)
        if expected > self.launch_s:
            return f"too slow: one launch is expected to take more than {self.launch_s:g} s"
        if point.operator == "launch" and point.columns["graph"] and not self.graphs:
            return _CPU_GRAPHS
        return None


@dataclass(frozen=True)
class FamilyPlan:
    """The points of a family in coarse-to-fine order, and how many of them are wanted.

    The first `coarse` points come in this order; from then on the predictor's uncertainty chooses among the
    rest until `target` points are done.
    """

    points: tuple[Point, ...]
    coarse: int
    target: int


@dataclass(frozen=True)
class Plan:
    """The plans of all families, and what they leave out with the reason."""

    families: dict[str, FamilyPlan]
    skipped: tuple[tuple[Point, str], ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def target(self) -> int:
        """Points wanted in all."""
        return sum(family.target for family in self.families.values())


def build_plan(
    shapes: Shapes,
    *,
    families: Sequence[str],
    dtypes: Sequence[str],
    limits: Limits,
    seed: int,
    grid: Grid | None = None,
) -> Plan:
    """Return the plan for `shapes`: for every family and type of arithmetic, its grid from coarse to fine.

    `fp8` has matrix products and the quantisation of their inputs. Points beyond the limits are left out and
    listed; a point that two models share is measured once.
    """
    grid = grid or Grid()
    plans: dict[str, FamilyPlan] = {}
    skipped: list[tuple[Point, str]] = []
    plain = [dtype for dtype in dtypes if dtype != "fp8"]
    for family in families:
        if family in _ONCE:
            wanted = plain[:1] or ["bf16"]
        else:
            wanted = [dtype for dtype in dtypes if dtype != "fp8" or family in _FP8]
        cells = [cell for dtype in wanted for cell in CELLS[family](Request(shapes, grid, dtype, seed))]
        measured: dict[str, Point] = {}
        refused: dict[str, tuple[Point, str]] = {}
        for point in coarse_to_fine(cells, seed):
            why = limits.refuses(point)
            if why is None:
                measured.setdefault(point.key, point)
            else:
                refused.setdefault(point.key, (point, why))
        skipped += refused.values()
        target = min(len(measured), grid.targets[family] * max(1, len(wanted)))
        coarse = target if family in _ONCE else min(target, round(grid.coarse_share * target))
        plans[family] = FamilyPlan(tuple(measured.values()), coarse, target)
    return Plan(plans, tuple(skipped), tuple(shapes.left_out))


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
