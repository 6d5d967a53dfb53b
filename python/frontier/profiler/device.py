"""What the profiler asks of a device. PyTorch's are in `torch_device`; tests have one with an exact clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from frontier.errors import FrontierError
from frontier.profiler.points import Point


class PointRefusedError(FrontierError):
    """A point that this device has no kernel for, or that failed on it; the profile goes on without it."""


class DeviceLostError(FrontierError):
    """The device cannot be used any more in this process; what was measured is kept."""


@dataclass(frozen=True)
class DeviceFacts:
    """What a profile says of where it was measured.

    Attributes:
        kind: `cuda` or `cpu`.
        name: device name, as its driver reports it.
        backend: library whose operations are measured.
        version: its version.
        measurement: `cuda_graph` or `event`, as predictors name it.
        memory_bytes: memory in all.
        cache_bytes: last-level cache that operands must exceed to come from memory.
        flops_per_s: rate of a large matrix product, measured once, for estimates.
        bytes_per_s: rate of a large copy, reads and writes together, likewise.
        graphs: whether launches can be replayed as a graph.
        versions: driver, torch, CUDA, cuDNN, kernel libraries.
        state: clocks and power limit where they can be read.
    """

    kind: str
    name: str
    backend: str
    version: str
    measurement: str
    memory_bytes: int
    cache_bytes: int
    flops_per_s: float
    bytes_per_s: float
    graphs: bool
    versions: Mapping[str, str | None] = field(default_factory=dict)
    state: Mapping[str, str] = field(default_factory=dict)


class Workload(Protocol):
    """A point made ready to run, with its operands in as many copies as were asked for."""

    @property
    def kernel(self) -> str:
        """Name of the kernel that is measured, which predictors keep apart."""

    def seconds(self) -> float:
        """Run one round over all copies; return the seconds of one launch, on the device's own clock.

        Raises:
            DeviceLostError: the device failed.
        """

    def close(self) -> None:
        """Release the memory."""


class Device(Protocol):
    """A device that runs points and tells the time."""

    def facts(self) -> DeviceFacts:
        """Return what is known of the device; the same on every call."""

    def now(self) -> float:
        """Return the host's monotonic clock in seconds."""

    def clock_mhz(self) -> float | None:
        """Return the current clock of its processors, None where it cannot be read."""

    def free_bytes(self) -> int:
        """Return the memory that a point can have now."""

    def open(self, point: Point, copies: int) -> Workload:
        """Allocate a point's operands in `copies` copies and prepare its launches.

        Raises:
            PointRefusedError: no kernel for it here, not enough memory after all, or it failed.
            DeviceLostError: the device failed.
        """
