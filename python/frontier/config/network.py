"""The network between engines: what a scenario says of it, what its GPUs imply, and who lies where.

GPUs of one kind form a group of equal nodes; the plan's network (`rust/frontier-core/src/plan/network.rs`)
numbers them through groups, nodes and GPUs of a node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BeforeValidator

from frontier import units
from frontier.config.base import Section
from frontier.config.fields import Duration, Flag, Positive, PositiveShare
from frontier.config.kv_tiers import Bandwidth, Size
from frontier.errors import Issue, show_value

if TYPE_CHECKING:
    from frontier.config.resolve import Resolved
    from frontier.config.views import ClusterView
    from frontier.hardware import GpuSpec

NODES_PER_POD: Final = 32
"""Nodes below the same leaves: a scalable unit of a DGX SuperPOD (H100) has 32 (NVIDIA's reference
architecture; its last has 31)."""
MAX_OVERSUBSCRIPTION: Final = 1e3


def parse_oversubscription(value: object) -> float:
    """Read how many times the NICs of a leaf exceed its uplinks."""
    times = units.parse_number(value)
    if not 1 <= times <= MAX_OVERSUBSCRIPTION:
        raise ValueError(f"was {show_value(value)}, must be from 1 to {MAX_OVERSUBSCRIPTION:g}")
    return times


class Network(Section):
    """Links between the GPUs of all clusters, which transfers share. What is left out follows the GPUs."""

    share_nodes: Flag = False
    """A cluster begins on the node on which the one before it ends, if their GPUs are of one kind, so that
    small engines of both roles share NVLink; otherwise each begins on a node of its own."""
    nvlink_bandwidth: Bandwidth | None = None
    """NVLink per GPU and direction; left out, the GPU's."""
    nvlink_nodes: Positive = 1
    """Nodes that one NVLink domain spans (a GB200 NVL72 has 18 of 4 GPUs)."""
    pcie_bandwidth: Bandwidth | None = None
    """PCI Express of a switch, between GPUs and NICs; left out, the GPU's."""
    gpus_per_pcie_switch: Positive = 1
    """GPUs that share a PCI Express switch."""
    nics_per_node: Positive | None = None
    """NICs of a node; left out, one per GPU. A NIC's number is its rail."""
    nic_bandwidth: Bandwidth | None = None
    """Of one NIC, per direction; left out, the network bandwidth of the GPU's usual server."""
    oversubscription: Annotated[float, BeforeValidator(parse_oversubscription)] | None = None
    """Bandwidth of a leaf switch's NICs over that of its uplinks; left out, the fabric never is a
    bottleneck."""
    nodes_per_pod: Positive | None = None
    """Nodes below the same leaves, with an oversubscription; left out, 32."""
    rail_optimised: Flag | None = None
    """Every rail of a pod has a leaf of its own, with an oversubscription; left out, true."""
    intra_latency: Duration | None = None
    """Of a transfer within an NVLink domain or node; left out, that of the GPU's NVLink, or PCIe."""
    inter_latency: Duration | None = None
    """Of any other transfer; left out, that of the GPU's network."""
    link_efficiency: PositiveShare | None = None
    """Share of a link's bandwidth that a long transfer attains; left out, the GPU's."""
    half_size: Size | None = None
    """Size of the message that attains half of that; left out, all sizes attain it, after their latency."""


@dataclass(frozen=True, slots=True)
class NetworkFacts:
    """The network of a scenario.

    Attributes:
        plan: the plan's `NetworkSpec`.
        placements: the plan's `placement` of each cluster.
        issues: why there is no such network.
    """

    plan: dict[str, Any]
    placements: list[dict[str, Any]]
    issues: list[Issue]


@dataclass(slots=True)
class _Group:
    gpu: GpuSpec
    gpus_per_node: int
    used: int = 0

    @property
    def nodes(self) -> int:
        return -(-self.used // self.gpus_per_node)


def network_facts(network: Network, clusters: Sequence[tuple[ClusterView, Resolved]]) -> NetworkFacts:
    """Lay the clusters out over nodes, in their order, and describe the links between them."""
    issues = _issues(network)
    groups: list[_Group] = []
    placed: list[tuple[_Group, int]] = []
    for view, facts in clusters:
        node = facts.layout.gpus_per_node
        gpus = facts.gpus_per_replica // view.engine.data_parallel_size
        if (node % gpus if gpus <= node else gpus % node) != 0:
            message = (
                f"was {view.engine.tensor_parallel_size}: an engine of {gpus} GPUs neither divides the {node}"
                " GPUs of a node nor fills nodes; with kv_transfer.bandwidth no node is looked at"
            )
            issues.append(view.placed(Issue("engine.tensor_parallel_size", gpus, message)))
        if facts.layout.placement != "tp_pp_dp":
            message = f"was {facts.layout.placement}, by which no network is laid out"
            issues.append(
                view.placed(Issue("hardware.placement", facts.layout.placement, message, ("tp_pp_dp",)))
            )
        group = next((g for g in groups if (g.gpu, g.gpus_per_node) == (facts.gpu, node)), None)
        if group is None:
            group = _Group(facts.gpu, node)
            groups.append(group)
        step = min(gpus, node) if network.share_nodes else node
        start = -(-group.used // step) * step
        group.used = start + facts.gpus_total
        placed.append((group, start))
    first: dict[int, int] = {}
    total = 0
    for group in groups:
        first[id(group)] = total
        total += group.nodes * group.gpus_per_node
    several = sum(group.nodes for group in groups) > 1
    plan = {
        "groups": [_group_plan(network, group, several, issues) for group in groups],
        "trunks": [],
        "intra_latency_ns": _latency(
            network.intra_latency,
            [
                g.gpu.pcie_latency_ns
                if g.gpu.nvlink_bandwidth_bytes_per_s is None
                else g.gpu.nvlink_latency_ns
                for g in groups
            ],
        ),
        "inter_latency_ns": _latency(network.inter_latency, [group.gpu.nic_latency_ns for group in groups]),
        "efficiency": {"kind": "saturating", "half_bytes": network.half_size or 0},
    }
    placements = [
        {
            "first_gpu": first[id(group)] + start,
            "gpus_per_engine": facts.gpus_per_replica // view.engine.data_parallel_size,
            "tensor_parallel_size": view.engine.tensor_parallel_size,
            "pipeline_parallel_size": view.engine.pipeline_parallel_size,
            "kv_heads": kv_heads(facts),
        }
        for (group, start), (view, facts) in zip(placed, clusters, strict=True)
    ]
    return NetworkFacts(plan, placements, issues)


def kv_heads(facts: Resolved) -> int:
    """Return the KV heads over which tensor parallel ranks divide a token's cache: 1 for a latent vector."""
    return max(getattr(group.attention, "num_kv_heads", 1) for group in facts.model.layers)


def _latency(given: int | None, defaults: Sequence[int]) -> int:
    return max(defaults) if given is None else given


def _issues(network: Network) -> list[Issue]:
    """Return the problems of the section on its own."""
    if network.oversubscription is not None:
        return []
    return [
        Issue(
            f"network.{name}",
            getattr(network, name),
            f"was {show_value(getattr(network, name))}, has no effect without network.oversubscription;"
            " remove it",
        )
        for name in ("nodes_per_pod", "rail_optimised")
        if getattr(network, name) is not None
    ]


def _group_plan(network: Network, group: _Group, several: bool, issues: list[Issue]) -> dict[str, Any]:
    gpu, node = group.gpu, group.gpus_per_node
    share = gpu.link_efficiency if network.link_efficiency is None else network.link_efficiency
    nvlink = network.nvlink_bandwidth or gpu.nvlink_bandwidth_bytes_per_s
    pcie = network.pcie_bandwidth or gpu.pcie_bandwidth_bytes_per_s
    nic = network.nic_bandwidth or gpu.nic_bandwidth_bytes_per_s
    per_node = network.nics_per_node or node
    if per_node > node:
        message = f"was {per_node}, must be at most the {node} GPUs of a node; give a larger nic_bandwidth"
        issues.append(Issue("network.nics_per_node", per_node, message))
    if node % network.gpus_per_pcie_switch:
        count = network.gpus_per_pcie_switch
        message = f"was {count}, must divide the {node} GPUs of a node of {gpu.name}"
        issues.append(Issue("network.gpus_per_pcie_switch", count, message))
    if nic is None and several:
        message = (
            f"was not given, and {gpu.name} has no network; give it, or disaggregation.kv_transfer.bandwidth"
        )
        issues.append(Issue("network.nic_bandwidth", None, message))
    leaf = None
    if network.oversubscription is not None and nic is not None:
        leaf = {
            "nodes_per_pod": network.nodes_per_pod or NODES_PER_POD,
            "rail_optimised": network.rail_optimised is not False,
            "oversubscription": network.oversubscription,
        }
    return {
        "nodes": group.nodes,
        "gpus_per_node": node,
        "nvlink": None
        if nvlink is None
        else {"bytes_per_s": nvlink * share, "nodes_per_domain": network.nvlink_nodes},
        "pcie": {"bytes_per_s": pcie * share, "gpus_per_switch": network.gpus_per_pcie_switch},
        "nic": None if nic is None else {"per_node": per_node, "bytes_per_s": nic * share},
        "leaf": leaf,
    }
