"""What a GPU and its links can do: the facts from which step times and memory are computed.

Constants of the first version, the same for every preset unless its file says otherwise:

- `compute_efficiency` 0.80: an H200 sustains about 790 of 989 TFLOP/s on large dense bf16 products.
- `memory_efficiency` 0.88: streaming kernels sustain 85 to 90 % of the HBM data-sheet bandwidth.
- `l2_bytes` 50 MiB, an H100's: only files leave it out, every preset has its own.
- `kernel_launch` 2 us: from one kernel's end to the next one's start inside a CUDA graph.
- `idle_power` 10 % of the peak power: assumed, no GPU was measured for it.
- `link_efficiency` 0.80 and an NVLink latency of 4 us per message: NCCL ring all-reduces of 8 to 32 MiB over
  four H200 fit 450 GB/s x 0.8 and a floor of 24 us for their six messages. 5 us for AMD, 10 us for PCIe:
  assumed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from frontier.errors import ConfigError, Issue, show_value
from frontier.power import GpuPower, power_of

DEFAULT_COMPUTE_EFFICIENCY = 0.80
DEFAULT_MEMORY_EFFICIENCY = 0.88
DEFAULT_LINK_EFFICIENCY = 0.80
DEFAULT_L2_BYTES = 50 * 2**20
DEFAULT_KERNEL_LAUNCH_NS = 2_000
DEFAULT_NVLINK_LATENCY_NS = 4_000
DEFAULT_PCIE_LATENCY_NS = 10_000
DEFAULT_NIC_LATENCY_NS = 5_000
DEFAULT_IDLE_SHARE = 0.10
"""Idle over peak power of a GPU: assumed."""

_NS_PER_S = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakFlops:
    """Dense peak rates in FLOP/s (never the sparse ones); None where the GPU has no such units."""

    fp32: float | None = None
    fp16: float | None = None
    bf16: float | None = None
    fp8: float | None = None
    int8: float | None = None
    fp4: float | None = None

    def to_plan(self) -> dict[str, float | None]:
        """Return the plan's `PeakFlops`."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """A link between the ranks of one replica: bandwidth per GPU and direction, latency of one message.

    `kind` is `nvlink` (or Infinity Fabric), `pcie` or `network`.
    """

    kind: str
    bandwidth_bytes_per_s: float
    latency_s: float
    efficiency: float

    def to_plan(self) -> dict[str, float | bool]:
        """Return the plan's `LinkSpec`; over PCIe, ranks share the way to each other."""
        return {
            "direct": self.kind != "pcie",
            "bandwidth_bytes_per_s": self.bandwidth_bytes_per_s,
            "latency_s": self.latency_s,
            "efficiency": self.efficiency,
        }


@dataclass(frozen=True, slots=True)
class Links:
    """Links that a replica's ranks cross, of one node and between nodes; None where they do not."""

    node: LinkSpec | None
    network: LinkSpec | None

    def to_plan(self) -> dict[str, Any]:
        """Return the plan's `LinksSpec`."""
        return {
            "node": None if self.node is None else self.node.to_plan(),
            "network": None if self.network is None else self.network.to_plan(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSpec:
    """A GPU in its usual server.

    Attributes:
        name: preset name or the name in the file.
        num_sms: streaming multiprocessors (NVIDIA) or compute units (AMD).
        peak_flops_per_s: dense peak rates.
        memory_bytes: memory as `cudaMemGetInfo` reports it (less than on the box), from which vLLM computes.
        memory_bandwidth_bytes_per_s: data-sheet bandwidth.
        l2_bytes: last-level cache: L2 (NVIDIA) or Infinity Cache (AMD).
        compute_efficiency: share of the peak that a large matrix product sustains.
        memory_efficiency: share of the bandwidth that a streaming kernel sustains.
        kernel_launch_ns: from one kernel's end to the next one's start.
        nvlink_bandwidth_bytes_per_s: NVLink or Infinity Fabric, per GPU and direction; None without
            all-to-all links.
        nvlink_latency_ns: of one message over it.
        pcie_bandwidth_bytes_per_s: PCI Express, per direction.
        pcie_latency_ns: of one message over it.
        nic_bandwidth_bytes_per_s: network, per GPU and direction, in the usual server; None if there is none.
        nic_latency_ns: of one message over it.
        link_efficiency: share of a link's bandwidth that a large collective sustains.
        gpus_per_node: GPUs that share NVLink or one host.
        compute_capability: as in `9.0`; None for other vendors. It decides vLLM's attention backend.
        device_name: name that CUDA reports, by which vLLM's default limits tell an A100 from other GPUs; None
            is no A100.
        price_per_hour_usd: list price of one GPU; None where no public list price was found.
        price_source: who lists it and when.
        idle_power_w: drawn without any process; None for `DEFAULT_IDLE_SHARE` of the peak.
        peak_power_w: thermal design power; None where it is not known.
        power_source: where the power comes from.
        source: where the figures come from.
    """

    name: str
    num_sms: int
    peak_flops_per_s: PeakFlops
    memory_bytes: int
    memory_bandwidth_bytes_per_s: float
    pcie_bandwidth_bytes_per_s: float
    l2_bytes: int = DEFAULT_L2_BYTES
    compute_efficiency: float = DEFAULT_COMPUTE_EFFICIENCY
    memory_efficiency: float = DEFAULT_MEMORY_EFFICIENCY
    kernel_launch_ns: int = DEFAULT_KERNEL_LAUNCH_NS
    nvlink_bandwidth_bytes_per_s: float | None = None
    nvlink_latency_ns: int = DEFAULT_NVLINK_LATENCY_NS
    pcie_latency_ns: int = DEFAULT_PCIE_LATENCY_NS
    nic_bandwidth_bytes_per_s: float | None = None
    nic_latency_ns: int = DEFAULT_NIC_LATENCY_NS
    link_efficiency: float = DEFAULT_LINK_EFFICIENCY
    gpus_per_node: int = 1
    compute_capability: str | None = None
    device_name: str | None = None
    price_per_hour_usd: float | None = None
    price_source: str | None = None
    idle_power_w: float | None = None
    peak_power_w: float | None = None
    power_source: str | None = None
    source: str | None = None

    @property
    def power(self) -> GpuPower | None:
        """What one GPU draws, its idle power assumed where none is given; None without a peak power."""
        peak, idle = self.peak_power_w, self.idle_power_w
        if idle is None and peak is not None:
            idle = DEFAULT_IDLE_SHARE * peak
        return power_of(idle, peak)

    def to_plan(self) -> dict[str, Any]:
        """Return the plan's `GpuSpec` (rust/frontier-core/src/plan/step_time.rs)."""
        return {
            "num_sms": self.num_sms,
            "peak_flops_per_s": self.peak_flops_per_s.to_plan(),
            "memory_bandwidth_bytes_per_s": self.memory_bandwidth_bytes_per_s,
            "compute_efficiency": self.compute_efficiency,
            "memory_efficiency": self.memory_efficiency,
            "kernel_launch_s": self.kernel_launch_ns / _NS_PER_S,
        }

    def link(self, tensor_parallel_size: int) -> LinkSpec | None:
        """Return the link that tensor-parallel collectives cross: NVLink, else PCIe; None for one rank.

        Raises:
            ConfigError: more ranks than one node has GPUs; tensor parallelism across nodes is not modelled.
        """
        if tensor_parallel_size == 1:
            return None
        if tensor_parallel_size > self.gpus_per_node:
            message = (
                f"was {tensor_parallel_size}, but a node has {self.gpus_per_node} {self.name}; "
                "tensor parallelism across nodes is not modelled"
            )
            allowed = (f"1 to {self.gpus_per_node}",)
            raise ConfigError(Issue("engine.tensor_parallel_size", tensor_parallel_size, message, allowed))
        return self._node_link()

    def links(self, gpus: int, nodes: int | None = None) -> Links:
        """Return the links that a replica of so many GPUs crosses.

        Args:
            gpus: GPUs of the replica.
            nodes: nodes that they lie on; left out, they fill one node after the other.

        Raises:
            ConfigError: more GPUs than the nodes have, or several nodes without a known network between them.
        """
        fewest = -(-gpus // self.gpus_per_node)
        nodes = fewest if nodes is None else nodes
        if nodes < fewest:
            message = (
                f"was {show_value(self.name)}, of which a node has {self.gpus_per_node}, but the replica "
                f"takes {gpus} GPUs on {nodes} nodes; its layout needs a smaller gpus_per_node"
            )
            raise ConfigError(Issue("hardware.gpu", self.name, message))
        node = self._node_link() if gpus > nodes else None
        if nodes == 1:
            return Links(node, None)
        if self.nic_bandwidth_bytes_per_s is None:
            message = (
                f"was {show_value(self.name)}, but the replica takes {gpus} GPUs on {nodes} nodes, and the "
                "network between nodes is not known"
            )
            raise ConfigError(Issue("hardware.gpu", self.name, message))
        latency_s = self.nic_latency_ns / _NS_PER_S
        network = LinkSpec("network", self.nic_bandwidth_bytes_per_s, latency_s, self.link_efficiency)
        return Links(node, network)

    def _node_link(self) -> LinkSpec:
        if self.nvlink_bandwidth_bytes_per_s is not None:
            kind, bandwidth, latency_ns = "nvlink", self.nvlink_bandwidth_bytes_per_s, self.nvlink_latency_ns
        else:
            kind, bandwidth, latency_ns = "pcie", self.pcie_bandwidth_bytes_per_s, self.pcie_latency_ns
        return LinkSpec(kind, bandwidth, latency_ns / _NS_PER_S, self.link_efficiency)

    def unsupported_dtypes(self, dtypes: Iterable[str]) -> list[str]:
        """Return those of `dtypes` (plan names, as in `fp8`) that this GPU has no units for."""
        peaks = self.peak_flops_per_s.to_plan()
        return [dtype for dtype in dtypes if peaks.get(dtype) is None]
