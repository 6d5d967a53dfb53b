"""How a layout cuts a model, and which sizes it cannot be cut into (vLLM's own conditions)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal

from frontier.errors import Issue, show_value
from frontier.models.context_parallel import context_issues
from frontier.models.layout import MAX_TENSOR_PARALLEL_SIZE, Layout
from frontier.models.spec import (
    DenseFeedForward,
    GroupedQueryAttention,
    LayerGroup,
    MixtureOfExperts,
    ModelSpec,
    MultiHeadLatentAttention,
)

VOCAB_PADDING = 64
"""vLLM pads the embedding to a multiple of 64 rows before it cuts it (vocab_parallel_embedding.py)."""

SequenceStyle = Literal["experts", "moe_layers", "all_layers"]
"""What runs on a tensor parallel rank's share of the tokens: router and shared experts between a split and a
gather; from the sum after attention on, layers with experts, handing shares to each other; or all that is no
attention, in every layer."""

_SEQUENCE_STYLES: dict[str, SequenceStyle] = {
    "qwen3_moe": "experts",
    "gpt_oss": "experts",
    "deepseek_v2": "moe_layers",
    "deepseek_v3": "moe_layers",
    "kimi_k2": "moe_layers",
    "deepseek_v32": "all_layers",
    "glm_moe_dsa": "all_layers",
}
"""By `model_type`: vllm/model_executor/models/{qwen3_moe,gpt_oss,deepseek_v2}.py, vllm/models/deepseek_v32.
Other models with experts (glm4_moe, minimax_m2, mixtral, qwen2_moe, step3_text) do not read the setting."""


def kv_heads_per_rank(num_kv_heads: int, tensor_parallel_size: int) -> int:
    """Return the KV heads one rank holds: more ranks than heads replicate them, as vLLM does."""
    return max(1, num_kv_heads // tensor_parallel_size)


def vocab_per_rank(vocab_size: int, tensor_parallel_size: int) -> int:
    """Return the embedding rows one rank holds; a single rank's padding is left out."""
    if tensor_parallel_size == 1:
        return vocab_size
    return math.ceil(vocab_size / VOCAB_PADDING) * VOCAB_PADDING // tensor_parallel_size


def expert_width_per_rank(spec: ModelSpec, moe: MixtureOfExperts, expert_tensor_parallel_size: int) -> int:
    """Return the width of a routed expert on one of the ranks that it is cut over.

    mxfp4 experts are cut in whole groups of 32 and rounded up (vLLM, gpt_oss.py:
    `per_rank_intermediate_size`).
    """
    if spec.quantization is not None and spec.quantization.method == "mxfp4":
        return math.ceil(math.ceil(moe.intermediate_size / 32) / expert_tensor_parallel_size) * 32
    return moe.intermediate_size // expert_tensor_parallel_size


def pipeline_layers(num_layers: int, stages: int, partition: tuple[int, ...] | None = None) -> list[int]:
    """Return the layers of each pipeline stage: those of `partition` (VLLM_PP_LAYER_PARTITION), if given.

    Otherwise an even split; of a remainder, one layer each goes to the last stages but the very last, which
    has the LM head (vLLM 0.32, `vllm/distributed/utils.py`, `get_pp_indices`).
    """
    if partition is not None:
        return list(partition)
    layers = [num_layers // stages] * stages
    for stage in range(2, num_layers % stages + 2):
        layers[-stage] += 1
    return layers


def sharding_issues(spec: ModelSpec, tensor_parallel_size: int) -> list[Issue]:
    """Return why the model cannot be cut over this many tensor-parallel ranks; empty if it can."""
    tp = tensor_parallel_size
    if not 1 <= tp <= MAX_TENSOR_PARALLEL_SIZE:
        message = f"was {tp}; from 1 to {MAX_TENSOR_PARALLEL_SIZE} ranks are accepted"
        return [Issue("engine.tensor_parallel_size", tp, message)]
    return layout_issues(spec, Layout.on_one_node(tp))


def layout_issues(spec: ModelSpec, layout: Layout) -> list[Issue]:
    """Return why the model cannot be spread over GPUs this way; empty if it can."""
    issues = []
    tp = layout.tensor_parallel_size
    reasons = list(dict.fromkeys(_tensor_reasons(spec, layout)))
    if layout.data_parallel_size == 1 and not layout.enable_expert_parallel:
        reasons = list(dict.fromkeys([*reasons, *_expert_reasons(spec, layout)]))
    if reasons:
        allowed = tuple(str(n) for n in valid_tensor_parallel_sizes(spec))
        issues.append(
            Issue("engine.tensor_parallel_size", tp, f"was {tp}, but {'; '.join(reasons)}", allowed)
        )
    pp = layout.pipeline_parallel_size
    if pp > spec.num_layers:
        message = f"was {pp}, but {spec.name} has {spec.num_layers} layers"
        issues.append(Issue("engine.pipeline_parallel_size", pp, message, (f"1 to {spec.num_layers}",)))
    issues += [*partition_issues(spec, layout), *context_issues(spec, layout)]
    return issues + (_spread_issues(spec, layout) if spec.is_moe else _dense_issues(spec, layout))


def disaggregated_issues(
    spec: ModelSpec,
    *,
    attention_tensor_parallel_size: int,
    ffn_tensor_parallel_size: int,
    ffn_ranks: int,
    redundant_experts: int = 0,
) -> list[Issue]:
    """Return why attention and FFN cannot each be cut over ranks of their own; empty if they can."""
    issues, attention, ffn = [], attention_tensor_parallel_size, ffn_tensor_parallel_size
    of_attention, of_ffn = set(), set()
    layout = Layout.on_one_node(ffn)
    for group in spec.layers:
        of_attention |= set(_attention_reasons(group, attention))
        of_ffn |= set(_feed_forward_reasons(group, ffn, None))
        moe = group.feed_forward
        if isinstance(moe, MixtureOfExperts) and (moe.num_experts + redundant_experts) % ffn_ranks:
            placed = moe.num_experts + redundant_experts
            message = f"was {ffn_ranks}, but {placed} experts cannot be spread evenly over as many ranks"
            issues.append(Issue("ffn_ranks", ffn_ranks, message))
    of_ffn |= set(_expert_reasons(spec, layout))
    if math.ceil(spec.vocab_size / VOCAB_PADDING) * VOCAB_PADDING % attention:
        of_attention.add(f"the padded vocabulary of {spec.vocab_size} tokens is not divisible by {attention}")
    for path, value, reasons in (
        ("attention_tensor_parallel_size", attention, of_attention),
        ("ffn_tensor_parallel_size", ffn, of_ffn),
    ):
        if reasons:
            issues.append(Issue(path, value, f"was {value}, but {'; '.join(sorted(reasons))}"))
    return issues


def partition_issues(spec: ModelSpec, layout: Layout) -> list[Issue]:
    """Return why the model's layers cannot be dealt out as given; empty if they can."""
    partition, stages = layout.pipeline_layer_partition, layout.pipeline_parallel_size
    if partition is None:
        return []
    path, shown = "engine.pipeline_layer_partition", show_value(list(partition))
    if len(partition) != stages:
        message = f"was {shown}, has {len(partition)} numbers for {stages} pipeline stages"
    elif any(layers < 1 for layers in partition):
        message = f"was {shown}, every stage needs a layer"
    elif sum(partition) != spec.num_layers:
        message = f"was {shown}, together {sum(partition)}, but {spec.name} has {spec.num_layers} layers"
    else:
        return []
    return [Issue(path, list(partition), message)]


def valid_tensor_parallel_sizes(spec: ModelSpec) -> list[int]:
    """Return every number of ranks that the model can be cut over by tensor parallelism alone."""
    layouts = map(Layout.on_one_node, range(1, MAX_TENSOR_PARALLEL_SIZE + 1))
    return [
        layout.tensor_parallel_size
        for layout in layouts
        if not any(_tensor_reasons(spec, layout)) and not any(_expert_reasons(spec, layout))
    ]


def _dense_issues(spec: ModelSpec, layout: Layout) -> list[Issue]:
    """Return what only models with experts can do."""
    issues = []
    if layout.data_parallel_size > 1:
        message = (
            f"was {layout.data_parallel_size}, but {spec.name} has no experts: its data parallel ranks are "
            "independent replicas, which cluster.replicas gives"
        )
        issues.append(Issue("engine.data_parallel_size", layout.data_parallel_size, message, ("1",)))
    if layout.enable_expert_parallel:
        message = f"was True, but {spec.name} has no experts"
        issues.append(Issue("engine.enable_expert_parallel", True, message, ("False",)))
    return issues


def _spread_issues(spec: ModelSpec, layout: Layout) -> list[Issue]:
    """Return why the experts cannot be spread over data parallel ranks or as whole experts."""
    issues = []
    if layout.enable_expert_parallel:
        reasons = list(dict.fromkeys(_whole_expert_reasons(spec, layout)))
        reasons += list(dict.fromkeys(_expert_reasons(spec, layout)))
        if reasons:
            message = f"was True, but {'; '.join(reasons)}"
            issues.append(Issue("engine.enable_expert_parallel", True, message))
    elif layout.data_parallel_size > 1:
        reasons = list(dict.fromkeys(_expert_reasons(spec, layout)))
        if reasons:
            value = layout.data_parallel_size
            message = f"was {value}, but {'; '.join(reasons)}"
            issues.append(Issue("engine.data_parallel_size", value, message))
    if layout.is_deepep and layout.tensor_parallel_size > 1 and sequence_style(spec, layout) is None:
        backend = layout.all2all_backend
        message = (
            f"was {show_value(backend)}, but vLLM does not shard the tokens of {spec.model_type} models over "
            "tensor parallel ranks, which would each send all of them; use tensor_parallel_size 1"
        )
        issues.append(Issue("engine.moe.all2all_backend", backend, message))
    return issues


def sequence_style(spec: ModelSpec, layout: Layout) -> SequenceStyle | None:
    """Return how vLLM 0.32 spreads tokens over tensor parallel ranks around the experts; None: not at all.

    It does with tensor, data and expert parallelism at once (`vllm/config/parallel.py`,
    `use_sequence_parallel_moe`), in the models that implement it, and keeps them so between layers without
    pipeline stages only.
    """
    if not (
        layout.enable_expert_parallel and layout.tensor_parallel_size > 1 and layout.data_parallel_size > 1
    ):
        return None
    style = _SEQUENCE_STYLES.get(spec.model_type)
    return "experts" if style is not None and layout.pipeline_parallel_size > 1 else style


def _tensor_reasons(spec: ModelSpec, layout: Layout) -> Iterator[str]:
    """Yield why tensor parallelism cannot cut what is not a routed expert."""
    tp = layout.tensor_parallel_size
    if tp == 1:
        return
    style = sequence_style(spec, layout)
    if math.ceil(spec.vocab_size / VOCAB_PADDING) * VOCAB_PADDING % tp:
        yield f"the padded vocabulary of {spec.vocab_size} tokens is not divisible by {tp}"
    for group in spec.layers:
        yield from _attention_reasons(group, tp)
        yield from _feed_forward_reasons(group, tp, style)
        if _has_blocks(spec):
            yield from _block_reasons(spec, dict(_partitions(group, tp, style)))


def _expert_reasons(spec: ModelSpec, layout: Layout) -> Iterator[str]:
    """Yield why routed experts cannot be cut as the layout says."""
    ranks = layout.expert_tensor_parallel_size
    if ranks == 1:
        return
    mxfp4 = spec.quantization is not None and spec.quantization.method == "mxfp4"
    for group in spec.layers:
        ffn = group.feed_forward
        if not isinstance(ffn, MixtureOfExperts):
            continue
        if ffn.intermediate_size % ranks and not mxfp4:
            yield f"the experts' intermediate size {ffn.intermediate_size} is not divisible by {ranks}"
        if _has_blocks(spec):
            yield from _block_reasons(spec, {"expert features": expert_width_per_rank(spec, ffn, ranks)})


def _whole_expert_reasons(spec: ModelSpec, layout: Layout) -> Iterator[str]:
    ranks, copies = layout.expert_parallel_size, layout.num_redundant_experts
    for group in spec.layers:
        ffn = group.feed_forward
        if isinstance(ffn, MixtureOfExperts) and (ffn.num_experts + copies) % ranks:
            what = f" and {copies} redundant ones" if copies else ""
            yield f"{ffn.num_experts} experts{what} cannot be spread evenly over {ranks} ranks"


_GROUPED_ALONG_INPUT = ("int4_group", "int4_group_zero", "int8_group", "nvfp4", "mxfp8")


def _has_blocks(spec: ModelSpec) -> bool:
    """Return whether ranks must hold whole blocks of weights that share a scale."""
    found = spec.quantization
    return found is not None and found.method in ("fp8_block", *_GROUPED_ALONG_INPUT)


def _attention_reasons(group: LayerGroup, tp: int) -> Iterator[str]:
    attention = group.attention
    if attention.num_heads % tp:
        yield f"{attention.num_heads} attention heads are not divisible by {tp}"
    if isinstance(attention, GroupedQueryAttention):
        kv_heads = attention.num_kv_heads
        if kv_heads % tp and tp % kv_heads:
            yield f"{kv_heads} KV heads can neither be divided among nor replicated evenly over {tp} ranks"


def _feed_forward_reasons(group: LayerGroup, tp: int, style: SequenceStyle | None) -> Iterator[str]:
    ffn = group.feed_forward
    if isinstance(ffn, DenseFeedForward):
        if style != "all_layers" and ffn.intermediate_size % tp:
            yield f"the intermediate size {ffn.intermediate_size} is not divisible by {tp}"
    elif style is None and ffn.shared_intermediate_size % tp:
        yield f"the shared experts' intermediate size {ffn.shared_intermediate_size} is not divisible by {tp}"


def _block_reasons(spec: ModelSpec, parts: Mapping[str, int]) -> Iterator[str]:
    """Yield vLLM's condition on weights in blocks: a rank's part of a matrix is a whole number of blocks.

    Groups lie along the input, which ranks cut in the products after attention and activation alone
    (`create_weights`: `input_size_per_partition`).
    """
    quantization = spec.quantization
    assert quantization is not None
    if quantization.method in _GROUPED_ALONG_INPUT:
        group = quantization.block[1]
        for name, size in parts.items():
            if name in _INPUTS and group and size % group:
                yield f"{size} {name} per rank are no whole number of groups of {group}"
        return
    block = quantization.block
    for name, size in parts.items():
        if size and size % block[0]:
            yield f"{size} {name} per rank are no whole number of fp8 blocks of {block[0]}"
        elif size and size % block[1]:
            yield f"{size} {name} per rank are no whole number of fp8 blocks of {block[1]}"


_INPUTS = (
    "attention output features",
    "query features",
    "intermediate features",
    "shared expert features",
    "expert features",
)
"""Partitions that are the input of a product (of grouped-query attention, those of queries)."""


def _partitions(group: LayerGroup, tp: int, style: SequenceStyle | None) -> Iterator[tuple[str, int]]:
    attention, ffn = group.attention, group.feed_forward
    if isinstance(attention, MultiHeadLatentAttention):
        heads = attention.num_heads // tp
        yield "query features", heads * (attention.nope_dim + attention.rope_dim)
        yield "expanded key-value features", heads * (attention.nope_dim + attention.value_dim)
        yield "attention output features", heads * attention.value_dim
    else:
        yield "query features", attention.num_heads // tp * attention.head_dim
        yield "key features", kv_heads_per_rank(attention.num_kv_heads, tp) * attention.head_dim
    if isinstance(ffn, DenseFeedForward):
        if style != "all_layers":
            yield "intermediate features", ffn.intermediate_size // tp
    elif style is None:
        yield "shared expert features", ffn.shared_intermediate_size // tp
