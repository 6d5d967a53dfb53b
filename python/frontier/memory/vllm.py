"""The memory plan of vLLM 0.11 to 0.32.

available = utilisation x total - loaded model - peak of the profile run - late allocations - CUDA graphs
(from 0.20), all of one rank; the cache is cut into blocks whose size is the sum over layers
(vllm/v1/worker/gpu_worker.py, vllm/v1/core/kv_cache_utils.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from frontier.errors import ConfigError, Issue, show_value
from frontier.hardware.spec import GpuSpec
from frontier.memory.activation import Batch, profile_peak
from frontier.memory.draft import DraftLayers
from frontier.memory.findings import Findings, with_findings
from frontier.memory.graphs import GraphCapture, capture_bytes, capture_sizes, graph_bytes
from frontier.memory.plan import MemoryPlan
from frontier.memory.versions import VllmRules, rules_of
from frontier.memory.weights import (
    Stage,
    cut_stages,
    expert_padding_bytes,
    rotary_bytes,
    stage_weight_bytes,
)
from frontier.models.kv import KvLayer, block_bytes, kv_groups, kv_layers, merge_layers
from frontier.models.layout import Layout
from frontier.models.sharding import partition_issues, valid_tensor_parallel_sizes
from frontier.models.spec import ModelSpec
from frontier.vllm_versions import VLLM_VERSIONS

_MIB = 2**20
LATE_BYTES = 512 * _MIB
"""Growth outside the framework's pool between the first snapshot and the end of the profile run (kernels
and their workspaces). Fitted on the one start-up log at hand: Llama-3.1-8B on an RTX 4090, vLLM 0.19,
2,588 blocks."""
COMMUNICATION_BYTES = 256 * _MIB
"""The same for communication with more than one tensor-parallel rank: assumed. NCCL's own buffers and the
CUDA context exist before the snapshot and lie in the share left out."""


def plan_kv_cache(
    spec: ModelSpec,
    gpu: GpuSpec,
    *,
    tensor_parallel_size: int | None = None,
    layout: Layout | None = None,
    block_size: int,
    gpu_memory_utilization: float | None,
    max_num_batched_tokens: int,
    max_num_seqs: int,
    max_model_len: int | None,
    kv_cache_dtype: str = "auto",
    num_gpu_blocks_override: int | None = None,
    weight_dtype: str = "bfloat16",
    version: str = VLLM_VERSIONS[-1],
    rank_weight_bytes: Sequence[int] | None = None,
    draft: DraftLayers | None = None,
    cuda_graphs: bool = True,
    graphs: GraphCapture | None = None,
    custom_all_reduce: bool = True,
    kv_cache_memory_bytes: int | None = None,
    hybrid_kv_cache: bool = False,
) -> MemoryPlan:
    """Plan the memory of one rank. Parameters are vLLM's; a plan that does not fit says so in its `issues`.

    Each rank of a data-parallel group is an engine of its own and has its own plan.

    Args:
        spec: the model.
        gpu: the GPU of every rank.
        tensor_parallel_size: ranks of tensor parallelism alone, on one node; or else
        layout: how the replica is spread over GPUs. The plan is that of the pipeline stage with the fewest
            blocks.
        block_size: tokens per block.
        gpu_memory_utilization: share of the memory that vLLM may use; None is the version's default.
        max_num_batched_tokens: token budget of a step, which is profiled.
        max_num_seqs: most running requests.
        max_model_len: tokens of the longest request; None is the model's own.
        kv_cache_dtype: as vLLM's flag.
        num_gpu_blocks_override: blocks to have instead of those computed.
        weight_dtype: type of weights that the checkpoint does not quantise.
        version: of vLLM, `0.11` to `0.32`; patch numbers are accepted and change nothing.
        rank_weight_bytes: weights of the fullest rank of each stage, where they are known better.
        draft: layers that speculative decoding adds, on the last stage.
        cuda_graphs: False with `enforce_eager`.
        graphs: the graphs that are captured; None is the version's default.
        custom_all_reduce: False where vLLM's own all-reduce kernels are off, so that their buffers are not
            there.
        kv_cache_memory_bytes: size of the cache, replacing the computation.
        hybrid_kv_cache: vLLM's hybrid KV cache manager is on: layers with sliding windows keep no more than
            the window.

    Raises:
        ConfigError: a parameter out of range, sizes that cannot be cut over so many ranks, more ranks than a
            node has GPUs.
        ValueError: both or neither of `tensor_parallel_size` and `layout`.
    """
    if (layout is None) == (tensor_parallel_size is None):
        raise ValueError("give either tensor_parallel_size or layout")
    rules = rules_of(version)
    utilization = (
        rules.default_gpu_memory_utilization if gpu_memory_utilization is None else gpu_memory_utilization
    )
    _check_arguments(
        {
            "block_size": block_size,
            "max_num_batched_tokens": max_num_batched_tokens,
            "max_num_seqs": max_num_seqs,
            "max_model_len": 1 if max_model_len is None else max_model_len,
            "num_gpu_blocks_override": 1 if num_gpu_blocks_override is None else num_gpu_blocks_override,
            "kv_cache_memory_bytes": 1 if kv_cache_memory_bytes is None else kv_cache_memory_bytes,
        },
        utilization,
    )
    if layout is None:
        assert tensor_parallel_size is not None
        gpu.link(tensor_parallel_size)
        layout = Layout.on_one_node(tensor_parallel_size)
    else:
        gpu.links(layout.gpus, layout.nodes)
    issues = partition_issues(spec, layout)
    if issues:
        raise ConfigError(issues)
    _check_stages(spec, layout.pipeline_parallel_size, rank_weight_bytes)
    request = _Request(
        spec=spec,
        gpu=gpu,
        rules=rules,
        stages=tuple(cut_stages(spec, layout.pipeline_parallel_size, layout.pipeline_layer_partition)),
        block_size=block_size,
        utilization=utilization,
        max_num_batched_tokens=max_num_batched_tokens,
        max_num_seqs=max_num_seqs,
        given_length=max_model_len,
        kv_cache_dtype=kv_cache_dtype,
        override=num_gpu_blocks_override,
        weight_dtype=weight_dtype,
        rank_weight_bytes=None if rank_weight_bytes is None else tuple(rank_weight_bytes),
        draft=draft,
        cuda_graphs=cuda_graphs,
        graphs=graphs,
        custom_all_reduce=custom_all_reduce,
        cache_bytes=kv_cache_memory_bytes,
        hybrid=hybrid_kv_cache,
    )
    return request.plan(layout)


@dataclass(frozen=True, slots=True)
class _Request:
    """The arguments of a plan but the number of ranks, so that other numbers can be tried."""

    spec: ModelSpec
    gpu: GpuSpec
    rules: VllmRules
    stages: tuple[Stage, ...]
    block_size: int
    utilization: float
    max_num_batched_tokens: int
    max_num_seqs: int
    given_length: int | None
    kv_cache_dtype: str
    override: int | None
    weight_dtype: str
    rank_weight_bytes: tuple[int, ...] | None
    draft: DraftLayers | None
    cuda_graphs: bool
    graphs: GraphCapture | None
    custom_all_reduce: bool
    cache_bytes: int | None
    hybrid: bool

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest request."""
        return self.spec.max_model_len if self.given_length is None else self.given_length

    def plan(self, layout: Layout, *, advise: bool = True) -> MemoryPlan:
        """Compute the plan of a layout; `advise` looks for numbers of ranks that would fit."""
        weights = self.rank_weight_bytes
        padding: tuple[int, ...] = (0,) * len(self.stages)
        if weights is None:
            weights = stage_weight_bytes(self.spec, layout, self.weight_dtype)
            padding = expert_padding_bytes(self.spec, layout, self.weight_dtype)
        plans = [
            self._stage_plan(stage, layout, weights[stage.index], padding[stage.index])
            for stage in self.stages
        ]
        plan, layers = min(plans, key=lambda pair: pair[0].num_gpu_blocks)
        computed = plan.num_gpu_blocks
        if self.override is not None:
            plan = replace(plan, num_gpu_blocks=self.override, num_gpu_blocks_override=self.override)
        alone = layout.gpus == layout.tensor_parallel_size and self.rank_weight_bytes is None
        windows, tokens = plan.kv_group_windows, plan.tokens_per_block
        findings = Findings(
            layers=layers,
            request_blocks=lambda length: self._request_blocks(length, windows, tokens),
            computed_blocks=computed,
            hybrid_ratio=self.rules.hybrid_ratio,
            given_length=self.given_length,
            smallest_fitting=self._smallest_fitting if advise and alone else None,
        )
        return with_findings(plan, findings)

    def _stage_plan(
        self, stage: Stage, layout: Layout, weights: int, padding: int
    ) -> tuple[MemoryPlan, list[KvLayer]]:
        tp = layout.tensor_parallel_size
        draft = self.draft if stage.is_last else None
        layers = kv_layers(stage.spec, tensor_parallel_size=tp, kv_cache_dtype=self.kv_cache_dtype)
        if draft is not None:
            layers = merge_layers(layers, draft.layers)
        windows: tuple[int | None, ...] = ()
        per_block = block_bytes(layers, self.block_size)
        if self.hybrid:
            groups = kv_groups(layers, hybrid_ratio=self.rules.hybrid_ratio)
            if groups is None:
                raise _unequal_pages(self.spec)
            windows, per_block = groups.windows, groups.bytes_per_token * self.block_size
        graphs = self._graph_bytes(stage, tp)
        plan = MemoryPlan(
            model=self.spec.name,
            gpu=self.gpu.name,
            version=self.rules.version,
            tensor_parallel_size=tp,
            total_bytes=self.gpu.memory_bytes,
            requested_bytes=math.ceil(self.gpu.memory_bytes * self.utilization),
            weights_bytes=weights + (0 if draft is None else draft.weight_bytes),
            rotary_bytes=rotary_bytes(stage.spec),
            padding_bytes=padding,
            activation_bytes=self._activation_bytes(stage, layout),
            late_bytes=LATE_BYTES,
            communication_bytes=COMMUNICATION_BYTES if tp > 1 and self.custom_all_reduce else 0,
            graph_bytes=graphs if self.rules.graphs_subtracted else 0,
            available_bytes=0,
            block_size=self.block_size,
            bytes_per_block=per_block,
            num_gpu_blocks=0,
            max_model_len=self.max_model_len,
            kv_cache_memory_bytes=self.cache_bytes,
            pipeline_stage=stage.index,
            pipeline_parallel_size=stage.count,
            data_parallel_size=layout.data_parallel_size,
            context_shards=layout.context_shards,
            graphs_outside_bytes=0 if self.rules.graphs_subtracted else graphs,
            kv_group_windows=windows,
            longest_request_blocks=self._request_blocks(
                self.max_model_len, windows, self.block_size * layout.context_shards
            ),
        )
        left = plan.requested_bytes - plan.needed_bytes
        available = left if self.cache_bytes is None else self.cache_bytes
        return replace(plan, available_bytes=available, num_gpu_blocks=max(available, 0) // per_block), layers

    def _request_blocks(self, length: int, windows: Sequence[int | None], tokens_per_block: int) -> int:
        """Return the blocks that a request holds at most in all groups: its window, the batch under way."""
        whole, blocks = math.ceil(length / tokens_per_block), 0
        for window in windows or (None,):
            if window is None:
                blocks += whole
            else:
                kept = min(window - 1 + self.max_num_batched_tokens, length)
                blocks += min(math.ceil(kept / tokens_per_block) + 1, whole)
        return blocks

    def _activation_bytes(self, stage: Stage, layout: Layout) -> int:
        batch = Batch(self.max_num_batched_tokens, self.max_num_seqs, self.max_model_len, self.block_size)
        peak = profile_peak(
            stage.spec,
            self.gpu,
            batch,
            layout=layout,
            sends_hidden_states=stage.count > 1,
            has_head=stage.is_last,
        )
        return peak.total

    def _graph_bytes(self, stage: Stage, tp: int) -> int:
        if not self.cuda_graphs:
            return 0
        if self.graphs is not None:
            return capture_bytes(stage.spec, self.graphs, tensor_parallel_size=tp)
        drafted = 0 if self.draft is None else self.draft.num_speculative_tokens
        sizes = capture_sizes(
            self.max_num_seqs,
            self.max_num_batched_tokens,
            rules=self.rules,
            model_type=self.spec.model_type,
            compute_capability=self.gpu.compute_capability,
            num_speculative_tokens=drafted,
            dense=not self.spec.is_moe,
        )
        return graph_bytes(
            stage.spec,
            sizes,
            tensor_parallel_size=tp,
            max_num_seqs=self.max_num_seqs,
            num_speculative_tokens=drafted,
        )

    def _smallest_fitting(self) -> int | None:
        """Return the smallest number of ranks on one node that fits."""
        for tp in valid_tensor_parallel_sizes(self.spec):
            if tp <= self.gpu.gpus_per_node and self.plan(Layout.on_one_node(tp), advise=False).fits:
                return tp
        return None


def _unequal_pages(spec: ModelSpec) -> ConfigError:
    message = (
        f"was not given: the caches of {spec.name}'s layers differ in ways that vLLM's hybrid KV cache"
        " manager packs by rules that are not modelled"
    )
    return ConfigError(Issue("engine.disable_hybrid_kv_cache_manager", None, message, ("true",)))


def _check_stages(spec: ModelSpec, stages: int, weights: Sequence[int] | None) -> None:
    if stages > spec.num_layers:
        message = f"was {stages}, but {spec.name} has {spec.num_layers} layers; a stage needs one at least"
        raise ConfigError(Issue("engine.pipeline_parallel_size", stages, message))
    if weights is not None and len(weights) != stages:
        message = f"has {len(weights)} sizes; one per pipeline stage is needed, {stages}"
        raise ConfigError(Issue("rank_weight_bytes", tuple(weights), message))


def _check_arguments(counts: dict[str, object], utilization: object) -> None:
    issues = [
        Issue(f"engine.{name}", value, f"was {show_value(value)}; a whole number >= 1 is needed")
        for name, value in counts.items()
        if isinstance(value, bool) or not isinstance(value, int) or value < 1
    ]
    number = isinstance(utilization, int | float) and not isinstance(utilization, bool)
    if not number or not 0 < utilization <= 1:  # type: ignore[operator]
        message = f"was {show_value(utilization)}; a share greater than 0, at most 1, is needed"
        issues.append(Issue("engine.gpu_memory_utilization", utilization, message))
    if issues:
        raise ConfigError(issues)
