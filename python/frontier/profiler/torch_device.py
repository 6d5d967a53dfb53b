"""PyTorch's devices: CUDA by graph replay or events, and the processor by the host's clock."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

from frontier.errors import ConfigError, Issue
from frontier.profiler.device import DeviceFacts, DeviceLostError, PointRefusedError, Workload
from frontier.profiler.kernels import BUILDERS
from frontier.profiler.kernels.bench import Bench, Launches, Run, import_torch
from frontier.profiler.libraries import find_libraries
from frontier.profiler.nvml import Nvml
from frontier.profiler.points import Point

Measurement = Literal["cuda_graph", "event"]

_ROUND_S: Final = 1e-3
"""Least work of one round: long beside the start of a graph and the resolution of events."""

_MOST_LAUNCHES: Final = 1024
_CPU_ROUND_S: Final = 2e-4
_UNKNOWN_CACHE: Final = 32 * 2**20
_UNKNOWN_MEMORY: Final = 4 * 2**30


def open_device(kind: str, *, measurement: Measurement = "cuda_graph") -> TorchCuda | TorchCpu:
    """Return the device `cuda`, `cpu`, or with `auto` CUDA where there is one.

    Raises:
        ConfigError: no CUDA device, or no such kind.
        FrontierError: PyTorch is not installed.
    """
    if kind not in ("auto", "cuda", "cpu"):
        raise ConfigError(Issue("device", kind, f"was {kind!r}", ("auto", "cuda", "cpu")))
    torch = import_torch()
    has_cuda = torch.cuda.is_available()
    if kind == "cuda" and not has_cuda:
        raise ConfigError(Issue("device", kind, "PyTorch finds no CUDA device", ("cpu",)))
    return TorchCuda(torch, measurement) if has_cuda and kind != "cpu" else TorchCpu(torch)


class _TorchDevice:
    """What both have in common: making launches, and turning PyTorch's errors into refusals."""

    def __init__(self, torch: Any, place: str) -> None:
        self.torch = torch
        self.bench = Bench(torch, place)

    def now(self) -> float:
        return time.perf_counter()

    def open(self, point: Point, copies: int) -> Workload:
        try:
            return self._workload(point, BUILDERS[point.operator](self.bench, point, copies))
        except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
            # torch.OutOfMemoryError is a RuntimeError.
            raise self.failure(error) from error

    def _workload(self, point: Point, launches: Launches) -> Workload:
        raise NotImplementedError

    def failure(self, error: Exception) -> Exception:
        """Return what an error of PyTorch means for the profile."""
        text = str(error).strip().split("\n", maxsplit=1)[0][:300]
        return PointRefusedError(f"{type(error).__name__}: {text}")


class TorchCpu(_TorchDevice):
    """The processor. Times include the launch, so that its measurement is `event`."""

    def __init__(self, torch: Any) -> None:
        """Take the module, and measure what the processor can do."""
        super().__init__(torch, "cpu")
        memory = _pages("SC_PHYS_PAGES") or _UNKNOWN_MEMORY
        a = self.bench.normal(512, 512, dtype="bf16")
        source = torch.zeros(64 * 2**20, dtype=torch.uint8)
        target = torch.zeros_like(source)
        threads = torch.get_num_threads()
        self._facts = DeviceFacts(
            kind="cpu",
            name=platform.processor() or platform.machine(),
            backend="torch",
            version=torch.__version__,
            measurement="event",
            memory_bytes=memory // 2,
            cache_bytes=_processor_cache(),
            flops_per_s=2 * 512**3 / _best(lambda: a @ a),
            bytes_per_s=2 * len(source) / _best(lambda: target.copy_(source)),
            graphs=False,
            versions={"torch": torch.__version__, "threads": str(threads), "clock": "perf_counter"},
        )

    def facts(self) -> DeviceFacts:
        """Return what is known of the processor."""
        return self._facts

    def clock_mhz(self) -> float | None:
        """Return None: no portable way to read it."""
        return None

    def free_bytes(self) -> int:
        """Return half of the memory that is free."""
        return (_pages("SC_AVPHYS_PAGES") or self._facts.memory_bytes) // 2

    def _workload(self, point: Point, launches: Launches) -> Workload:
        if point.operator == "launch" and point.columns["graph"]:
            raise PointRefusedError("a CPU has no graphs to replay")
        return _CpuWorkload(self, launches)


class _CpuWorkload:
    def __init__(self, device: TorchCpu, launches: Launches) -> None:
        self.kernel = launches.kernel
        self._device = device
        self._runs = list(launches.runs)
        first = _timed(self._runs)
        self._passes = max(1, math.ceil(_CPU_ROUND_S / max(first, 1e-9)))

    def seconds(self) -> float:
        try:
            return _timed(self._runs * self._passes) / (len(self._runs) * self._passes)
        except RuntimeError as error:
            raise self._device.failure(error) from error

    def close(self) -> None:
        self._runs.clear()


class TorchCuda(_TorchDevice):
    """A CUDA device: kernels alone by graph replay, or eager launches between events."""

    def __init__(self, torch: Any, measurement: Measurement) -> None:
        """Take the module; find kernel libraries that work here, and measure what the device can do."""
        super().__init__(torch, "cuda")
        self.measurement = measurement
        properties = torch.cuda.get_device_properties(0)
        self._nvml = Nvml(_pci_address(properties))
        libraries = find_libraries(self.bench)
        a = self.bench.normal(8192, 8192, dtype="bf16")
        source = torch.zeros(2**29, device="cuda", dtype=torch.uint8)
        target = torch.zeros_like(source)
        self._facts = DeviceFacts(
            kind="cuda",
            name=properties.name,
            backend="torch",
            version=torch.__version__,
            measurement=measurement,
            memory_bytes=properties.total_memory,
            cache_bytes=properties.L2_cache_size,
            flops_per_s=2 * 8192**3 / self._best(lambda: a @ a),
            bytes_per_s=2 * len(source) / self._best(lambda: target.copy_(source)),
            graphs=True,
            versions={
                "torch": torch.__version__,
                "cuda": torch.version.cuda,
                "cudnn": str(torch.backends.cudnn.version()),
                "driver": self._nvml.driver(),
                **libraries,
            },
            state=self._nvml.state(),
        )

    def facts(self) -> DeviceFacts:
        """Return what is known of the device."""
        return self._facts

    def clock_mhz(self) -> float | None:
        """Return the clock of the multiprocessors."""
        return self._nvml.clock_mhz()

    def free_bytes(self) -> int:
        """Return what the driver and PyTorch's cache have free, less a reserve for results."""
        self.torch.cuda.empty_cache()
        free: int = self.torch.cuda.mem_get_info()[0]
        return free * 9 // 10

    def failure(self, error: Exception) -> Exception:
        """Return a refusal, or the loss of the device where nothing runs any more."""
        try:
            self.torch.cuda.synchronize()
        except RuntimeError as lost:
            return DeviceLostError(f"the CUDA device failed ({lost}); start again to go on")
        return super().failure(error)

    def _workload(self, point: Point, launches: Launches) -> Workload:
        graph = self.measurement == "cuda_graph"
        if point.operator == "launch":
            graph = bool(point.columns["graph"])
        return _CudaWorkload(self, launches, graph=graph)

    def between_events(self, run: Callable[[], object]) -> float:
        """Return the seconds between an event before `run` and one after it, on the device's clock."""
        before, after = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        run()
        after.record()
        after.synchronize()
        return float(before.elapsed_time(after)) / 1e3

    def _best(self, run: Run) -> float:
        return min(self.between_events(run) for _ in range(8))


class _CudaWorkload:
    def __init__(self, device: TorchCuda, launches: Launches, *, graph: bool) -> None:
        self.kernel = launches.kernel
        self._device = device
        self._runs = list(launches.runs)
        self._graph: Any = None
        torch = device.torch
        # Once on a side stream, as capture wants it: kernels are chosen and libraries initialised there.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._pass()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        one = max(device.between_events(self._pass), 1e-7)
        self._passes = max(1, min(math.ceil(_ROUND_S / one), _MOST_LAUNCHES // len(self._runs)))
        if graph:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._all()

    def _pass(self) -> None:
        for run in self._runs:
            run()

    def _all(self) -> None:
        for _ in range(self._passes):
            self._pass()

    def seconds(self) -> float:
        try:
            whole = self._device.between_events(self._all if self._graph is None else self._graph.replay)
        except RuntimeError as error:
            raise self._device.failure(error) from error
        return whole / (self._passes * len(self._runs))

    def close(self) -> None:
        self._runs.clear()
        if self._graph is not None:
            self._graph.reset()
            self._graph = None


def _pci_address(properties: Any) -> str:
    """Return where the driver finds a device; empty for a PyTorch that does not tell."""
    try:
        return f"{properties.pci_domain_id:08X}:{properties.pci_bus_id:02X}:{properties.pci_device_id:02X}.0"
    except AttributeError:
        return ""


def _timed(runs: list[Run]) -> float:
    begin = time.perf_counter()
    for run in runs:
        run()
    return time.perf_counter() - begin


def _best(run: Run) -> float:
    return min(_timed([run]) for _ in range(8))


def _pages(name: str) -> int | None:
    try:
        return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on this platform
        return None


def _processor_cache() -> int:
    """Return the bytes of the last-level cache; 32 MiB where Linux does not say."""
    largest = 0
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text("ascii").strip()
        if text.endswith("K") and text[:-1].isdigit():
            largest = max(largest, int(text[:-1]) * 1024)
    return largest or _UNKNOWN_CACHE
