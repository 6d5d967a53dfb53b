"""From a model, two kinds of GPUs and the links between them to the plan's `AfdSpec`.

The schema: `rust/frontier-core/src/plan/step_time/afd.rs`; what runs where: `frontier.models.afd_program`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from frontier.errors import ConfigError, Issue, show_value
from frontier.hardware.spec import GpuSpec
from frontier.models.afd_program import (
    FP8_GROUP,
    AfdClass,
    afd_classes,
    attention_parts,
    ffn_parts,
    layer_runs,
    side_layout,
)
from frontier.models.kv import resolve_kv_cache_dtype
from frontier.models.launches import stage_launches
from frontier.models.operators import Operator
from frontier.models.program import resolve_weight_dtype
from frontier.models.rank import Rank
from frontier.models.sharding import disaggregated_issues
from frontier.models.spec import ModelSpec

ActivationDtype = Literal["fp8", "bf16"]
"""How activations travel: fp8 with a 32-bit scale per 128, or 16 bits."""

Attach = Callable[[Sequence[Sequence[Operator]], GpuSpec], list[list[dict[str, Any]]]]
"""Gives the plan's operators of one side, with references to learned predictors."""

FULL_UTILIZATION = ((0.0, 1.0),)


@dataclass(frozen=True, slots=True, kw_only=True)
class AfdTransfer:
    """Activations in one direction.

    Attributes:
        dtype: how they travel.
        latency_s: of one transfer.
        attention_bandwidth_bytes_per_s: of each GPU of an attention rank in this direction.
        ffn_bandwidth_bytes_per_s: of each GPU of the FFN ranks in this direction.
        attention_utilization: shares of the bandwidth that are reached, by bytes of a GPU's part of a
            transfer, ascending; linear between, constant beyond.
        ffn_utilization: the same of the other end.
    """

    dtype: ActivationDtype
    latency_s: float
    attention_bandwidth_bytes_per_s: float
    ffn_bandwidth_bytes_per_s: float
    attention_utilization: tuple[tuple[float, float], ...] = FULL_UTILIZATION
    ffn_utilization: tuple[tuple[float, float], ...] = FULL_UTILIZATION

    @classmethod
    def over_network(cls, dtype: ActivationDtype, attention: GpuSpec, ffn: GpuSpec) -> AfdTransfer:
        """Return a transfer over the network of both GPUs' usual servers.

        Raises:
            ConfigError: a GPU without a known network.
        """
        ends = []
        for name, gpu in (("attention_gpu", attention), ("ffn_gpu", ffn)):
            if gpu.nic_bandwidth_bytes_per_s is None:
                message = f"was {show_value(gpu.name)}, and the network between its nodes is not known"
                raise ConfigError(Issue(name, gpu.name, message))
            ends.append((gpu.nic_bandwidth_bytes_per_s, ((0.0, gpu.link_efficiency),)))
        return cls(
            dtype=dtype,
            latency_s=max(attention.nic_latency_ns, ffn.nic_latency_ns) / 1e9,
            attention_bandwidth_bytes_per_s=ends[0][0],
            ffn_bandwidth_bytes_per_s=ends[1][0],
            attention_utilization=ends[0][1],
            ffn_utilization=ends[1][1],
        )

    @property
    def bytes_per_element(self) -> float:
        """Bytes that an element takes on the way, scales included."""
        return 1.0 + 4.0 / FP8_GROUP if self.dtype == "fp8" else 2.0

    def to_plan(self) -> dict[str, Any]:
        """Return the plan's `TransferSpec`."""
        return {
            "bytes_per_element": self.bytes_per_element,
            "latency_s": self.latency_s,
            "attention": {
                "bandwidth_bytes_per_s": self.attention_bandwidth_bytes_per_s,
                "utilization": [list(point) for point in self.attention_utilization],
            },
            "ffn": {
                "bandwidth_bytes_per_s": self.ffn_bandwidth_bytes_per_s,
                "utilization": [list(point) for point in self.ffn_utilization],
            },
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AfdHost:
    """What a host takes, in seconds, and the CUDA graphs of one side.

    Attributes:
        per_step_s: scheduling and output processing, once per step; of attention ranks alone.
        per_seq_s: the same per request.
        overlapped: the host prepares a step while the GPUs run the one before.
        per_kernel_launch_s: launching a kernel outside a graph.
        per_graph_launch_s: replaying a graph, of which every layer has one.
        per_graph_kernel_s: per kernel in a replayed graph.
        capture_sizes: tokens of a micro-batch for which there is a graph, ascending; none for eager mode.
        graphs: the plan's `GraphsSpec` in place of these.
    """

    per_step_s: float = 0.0
    per_seq_s: float = 0.0
    overlapped: bool = True
    per_kernel_launch_s: float = 0.0
    per_graph_launch_s: float = 0.0
    per_graph_kernel_s: float = 0.0
    capture_sizes: tuple[int, ...] = ()
    graphs: Mapping[str, Any] | None = None

    def cpu(self) -> dict[str, Any]:
        """Return the plan's `CpuSpec`."""
        return {"per_step_s": self.per_step_s, "per_seq_s": self.per_seq_s, "overlapped": self.overlapped}

    def launches(self, parts: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
        """Return the plan's `LaunchesSpec` for the parts of a side."""
        return {
            "per_kernel_s": self.per_kernel_launch_s,
            "per_graph_s": self.per_graph_launch_s,
            "per_graph_kernel_s": self.per_graph_kernel_s,
            "graphs": {
                "decode_query_tokens": 1,
                "full_decode": list(self.capture_sizes),
                "full": [],
                "piecewise": [],
            }
            if self.graphs is None
            else dict(self.graphs),
            "stages": [stage_launches(part) for part in parts],
            "draft": None,
        }


NO_HOST = AfdHost()


@dataclass(frozen=True, slots=True, kw_only=True)
class AfdLayout:
    """Ranks of both sides.

    Attributes:
        attention_ranks: data parallel attention ranks, each with batches and a KV cache of its own.
        attention_tensor_parallel_size: GPUs of each.
        ffn_ranks: FFN ranks, over which whole experts are spread.
        ffn_tensor_parallel_size: GPUs of each, over which every expert and dense layer is cut.
        micro_batches: parts of every attention rank's batch.
        redundant_experts: copies of experts.
    """

    attention_ranks: int
    ffn_ranks: int
    micro_batches: int
    attention_tensor_parallel_size: int = 1
    ffn_tensor_parallel_size: int = 1
    redundant_experts: int = 0

    @property
    def attention_gpus(self) -> int:
        """GPUs of all attention ranks."""
        return self.attention_ranks * self.attention_tensor_parallel_size

    @property
    def ffn_gpus(self) -> int:
        """GPUs of all FFN ranks."""
        return self.ffn_ranks * self.ffn_tensor_parallel_size

    @property
    def gpus(self) -> int:
        """All of them."""
        return self.attention_gpus + self.ffn_gpus


def _bounds(stages: Sequence[Sequence[Operator]], gpu: GpuSpec) -> list[list[dict[str, Any]]]:
    del gpu
    return [[operator.to_plan() for operator in stage] for stage in stages]


def afd_step_time(
    spec: ModelSpec,
    layout: AfdLayout,
    *,
    attention_gpu: GpuSpec,
    ffn_gpu: GpuSpec,
    a2f: AfdTransfer,
    f2a: AfdTransfer,
    weight_dtype: str = "auto",
    kv_cache_dtype: str = "auto",
    fp8_attention: bool = False,
    attention_host: AfdHost = NO_HOST,
    ffn_host: AfdHost = NO_HOST,
    routing: Mapping[str, Any] | None = None,
    attach: Attach = _bounds,
) -> dict[str, Any]:
    """Return the plan's step time of a unit: `attention_ranks` batches per step, in lock step.

    Args:
        spec: the model.
        layout: ranks of both sides and micro-batches.
        attention_gpu: the GPU of attention ranks.
        ffn_gpu: the GPU of FFN ranks.
        a2f: activations on their way to the FFN.
        f2a: and back.
        weight_dtype: type of weights that are not quantised, as for `operator_program`.
        kv_cache_dtype: as vLLM's flag.
        fp8_attention: over an fp8 cache attention computes in fp8.
        attention_host: hosts and graphs of attention ranks.
        ffn_host: hosts and graphs of FFN ranks; these have no time per step.
        routing: the plan's `MoeSpec` without `stages` (`frontier.moe_lowering`), for draws of the experts'
            loads; None for typical ones.
        attach: gives operators their learned predictors.

    Raises:
        ConfigError: the model cannot be spread so, a rank is larger than a node, unknown types, or a time of
            FFN hosts that is not modelled.
    """
    _check(spec, layout, attention_gpu, ffn_gpu, ffn_host)
    dtype = resolve_weight_dtype(spec, weight_dtype)
    kv_dtype = resolve_kv_cache_dtype(spec, kv_cache_dtype)
    classes = afd_classes(spec, layout.ffn_ranks, layout.redundant_experts)
    rank = Rank(spec, side_layout(layout.attention_tensor_parallel_size), dtype, kv_dtype, fp8_attention)
    of_attention = attach(attention_parts(rank, classes, a2f_fp8=a2f.dtype == "fp8"), attention_gpu)
    rank = Rank(spec, side_layout(layout.ffn_tensor_parallel_size), dtype, kv_dtype, fp8_attention)
    parts = ffn_parts(
        rank,
        classes,
        ffn_ranks=layout.ffn_ranks,
        redundant_experts=layout.redundant_experts,
        a2f_bytes_per_element=a2f.bytes_per_element,
    )
    of_ffn = attach(parts, ffn_gpu)
    attention_sizes = layout.attention_tensor_parallel_size, layout.attention_ranks
    ffn_sizes = layout.ffn_tensor_parallel_size, layout.ffn_ranks
    return {
        "kind": "afd",
        "attention": _side(of_attention, attention_gpu, attention_sizes, attention_host, None),
        "ffn": _side(of_ffn, ffn_gpu, ffn_sizes, ffn_host, _routing(routing, of_ffn, classes)),
        "classes": [
            {"kind": "moe" if each.is_moe else "dense", "destinations": each.destinations} for each in classes
        ],
        "layers": [{"class": index, "count": count} for index, count in layer_runs(spec)],
        "micro_batches": layout.micro_batches,
        "hidden": spec.hidden_size,
        "a2f": a2f.to_plan(),
        "f2a": f2a.to_plan(),
    }


def _check(
    spec: ModelSpec, layout: AfdLayout, attention_gpu: GpuSpec, ffn_gpu: GpuSpec, ffn_host: AfdHost
) -> None:
    issues = []
    for name in AfdLayout.__dataclass_fields__:
        value, least = getattr(layout, name), 0 if name == "redundant_experts" else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            issues.append(Issue(name, value, f"was {show_value(value)}, must be a whole number from {least}"))
    if issues:
        raise ConfigError(issues)
    for name, size, gpu in (
        ("attention_tensor_parallel_size", layout.attention_tensor_parallel_size, attention_gpu),
        ("ffn_tensor_parallel_size", layout.ffn_tensor_parallel_size, ffn_gpu),
    ):
        if size > gpu.gpus_per_node:
            message = f"was {size}, but a node has {gpu.gpus_per_node} {gpu.name}; a rank lies on one node"
            issues.append(Issue(name, size, message, (f"1 to {gpu.gpus_per_node}",)))
    if layout.redundant_experts and not spec.is_moe:
        message = f"was {layout.redundant_experts}, but {spec.name} has no experts"
        issues.append(Issue("redundant_experts", layout.redundant_experts, message, ("0",)))
    if ffn_host.per_step_s or ffn_host.per_seq_s:
        message = "has a time per step or request; attention ranks prepare steps, once each"
        issues.append(Issue("ffn_host", ffn_host.per_step_s, message))
    issues += disaggregated_issues(
        spec,
        attention_tensor_parallel_size=layout.attention_tensor_parallel_size,
        ffn_tensor_parallel_size=layout.ffn_tensor_parallel_size,
        ffn_ranks=layout.ffn_ranks,
        redundant_experts=layout.redundant_experts,
    )
    if issues:
        raise ConfigError(issues)


def _side(
    parts: list[list[dict[str, Any]]],
    gpu: GpuSpec,
    sizes: tuple[int, int],
    host: AfdHost,
    moe: dict[str, Any] | None,
) -> dict[str, Any]:
    """Return the plan's `OperatorsSpec` of one side, whose stages are parts."""
    tensor_parallel_size, ranks = sizes
    return {
        "gpu": gpu.to_plan(),
        "links": gpu.links(tensor_parallel_size, 1).to_plan(),
        "cpu": host.cpu(),
        "launches": host.launches(parts),
        "layout": {
            "tensor_parallel_size": tensor_parallel_size,
            "pipeline_parallel_size": len(parts),
            "data_parallel_size": ranks,
        },
        "stages": parts,
        "draft": None,
        "residuals": None,
        "moe": moe,
    }


def _routing(
    routing: Mapping[str, Any] | None,
    parts: Sequence[Sequence[Mapping[str, Any]]],
    classes: Sequence[AfdClass],
) -> dict[str, Any] | None:
    """Return the routing with the place of the experts in every part."""
    if routing is None:
        return None
    stages: list[dict[str, Any] | None] = []
    first = 0
    for part, each in zip(parts, classes, strict=True):
        found = [at for at, operator in enumerate(part) if operator["op"] == "fused_moe"]
        if not found:
            stages.append(None)
            continue
        shared = ("shared_experts.", "shared_expert_gate")
        stages.append(
            {
                "experts": found[0],
                "exchanges": [],
                "shared": [at for at, operator in enumerate(part) if operator["name"].startswith(shared)],
                "first_layer": first,
                "layers": each.layers,
                "nodes": 1,
            }
        )
        first += each.layers
    return {**routing, "stages": stages}
