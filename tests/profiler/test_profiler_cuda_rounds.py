"""How CUDA rounds are put together and averaged, on a stand-in for `torch.cuda` with an exact clock.

No GPU is needed, and none of PyTorch's behaviour is checked here: only who is launched how often, and what
the time between two events is divided by.
"""

import contextlib
from types import SimpleNamespace

import pytest

from frontier.profiler.device import DeviceLostError, PointRefusedError
from frontier.profiler.kernels.bench import Launches
from frontier.profiler.torch_device import TorchCuda, _CudaWorkload, _pci_address


class Cuda:
    """Launches advance a clock in milliseconds; while a graph is captured they are recorded instead."""

    def __init__(self):
        self.clock_ms, self.capturing, self.lost = 0.0, None, False
        self.launched = []

    def launch(self, name, ms):
        if self.capturing is not None:
            self.capturing.nodes.append((name, ms))
            return
        self.launched.append(name)
        self.clock_ms += ms

    def synchronize(self):
        if self.lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def current_stream(self):
        return self.Stream()

    def Stream(self):  # noqa: N802 - PyTorch's name
        return SimpleNamespace(wait_stream=lambda _: None)

    def stream(self, _):
        return contextlib.nullcontext()

    def Event(self, enable_timing):  # noqa: N802
        assert enable_timing
        event = SimpleNamespace(synchronize=lambda: None, at=None)
        event.record = lambda: setattr(event, "at", self.clock_ms)
        event.elapsed_time = lambda end: end.at - event.at
        return event

    def CUDAGraph(self):  # noqa: N802
        graph = SimpleNamespace(nodes=[])
        graph.reset = graph.nodes.clear
        graph.replay = lambda: [self.launch(*node) for node in graph.nodes]
        return graph

    @contextlib.contextmanager
    def graph(self, graph):
        self.capturing = graph
        yield
        self.capturing = None


@pytest.fixture
def cuda():
    return Cuda()


@pytest.fixture
def device(cuda):
    made = TorchCuda.__new__(TorchCuda)
    made.torch = SimpleNamespace(cuda=cuda)
    made.measurement = "cuda_graph"
    return made


def launches(cuda, *milliseconds):
    return Launches("k", [lambda n=n, ms=ms: cuda.launch(n, ms) for n, ms in enumerate(milliseconds)])


def test_a_graph_rotates_over_copies_until_a_round_is_long(cuda, device):
    workload = _CudaWorkload(device, launches(cuda, 0.01, 0.03), graph=True)
    assert cuda.launched == [0, 1] * 2  # to choose kernels, and to learn the length
    cuda.launched.clear()
    assert workload.seconds() == pytest.approx(0.02e-3)
    assert cuda.launched == [0, 1] * 25  # one millisecond
    workload.close()
    cuda.launched.clear()


def test_short_launches_do_not_make_endless_graphs(cuda, device):
    workload = _CudaWorkload(device, launches(cuda, *[1e-5] * 3), graph=True)
    cuda.launched.clear()
    workload.seconds()
    assert len(cuda.launched) == 1024 // 3 * 3


def test_long_launches_run_once_per_copy(cuda, device):
    workload = _CudaWorkload(device, launches(cuda, 5.0, 7.0), graph=True)
    cuda.launched.clear()
    assert workload.seconds() == pytest.approx(6e-3)
    assert cuda.launched == [0, 1]


def test_eager_rounds_launch_anew(cuda, device):
    workload = _CudaWorkload(device, launches(cuda, 0.5), graph=False)
    assert workload.seconds() == workload.seconds() == pytest.approx(0.5e-3)


def test_a_lost_device_is_told_from_a_refusal(cuda, device):
    workload = _CudaWorkload(device, launches(cuda, 0.5), graph=False)

    def fail():
        raise RuntimeError("CUDA out of memory.\nTried to allocate")

    workload._runs[:] = [fail]
    with pytest.raises(PointRefusedError, match=r"RuntimeError: CUDA out of memory\.$"):
        workload.seconds()
    cuda.lost = True
    with pytest.raises(DeviceLostError, match="illegal memory access"):
        workload.seconds()


def test_pci_address_is_that_of_the_driver():
    properties = SimpleNamespace(pci_domain_id=0, pci_bus_id=0x3B, pci_device_id=0)
    assert _pci_address(properties) == "00000000:3B:00.0"
    assert _pci_address(SimpleNamespace()) == ""
