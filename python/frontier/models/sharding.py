"""How tensor parallelism cuts a model, and which sizes it cannot be cut into (vLLM's own conditions)."""

from __future__ import annotations

import math
from collections.abc import Iterator

from frontier.errors import Issue
from frontier.models.spec import (
    DenseFeedForward,
    GroupedQueryAttention,
    LayerGroup,
    MixtureOfExperts,
    ModelSpec,
    MultiHeadLatentAttention,
)

MAX_TENSOR_PARALLEL_SIZE = 64
VOCAB_PADDING = 64
"""vLLM pads the embedding to a multiple of 64 rows before it cuts it (vocab_parallel_embedding.py)."""

_PATH = "engine.tensor_parallel_size"


def kv_heads_per_rank(num_kv_heads: int, tensor_parallel_size: int) -> int:
    """Return the KV heads one rank holds: more ranks than heads replicate them, as vLLM does."""
    return max(1, num_kv_heads // tensor_parallel_size)


def vocab_per_rank(vocab_size: int, tensor_parallel_size: int) -> int:
    """Return the embedding rows one rank holds; a single rank's padding is left out."""
    if tensor_parallel_size == 1:
        return vocab_size
    return math.ceil(vocab_size / VOCAB_PADDING) * VOCAB_PADDING // tensor_parallel_size


def expert_width_per_rank(spec: ModelSpec, moe: MixtureOfExperts, tensor_parallel_size: int) -> int:
    """Return the width of a routed expert on one rank.

    mxfp4 experts are cut in whole groups of 32 and rounded up (vLLM, gpt_oss.py:
    `per_rank_intermediate_size`).
    """
    if spec.quantization is not None and spec.quantization.method == "mxfp4":
        return math.ceil(math.ceil(moe.intermediate_size / 32) / tensor_parallel_size) * 32
    return moe.intermediate_size // tensor_parallel_size


def sharding_issues(spec: ModelSpec, tensor_parallel_size: int) -> list[Issue]:
    """Return why the model cannot be cut over this many ranks; empty if it can."""
    tp = tensor_parallel_size
    if not 1 <= tp <= MAX_TENSOR_PARALLEL_SIZE:
        message = f"was {tp}; from 1 to {MAX_TENSOR_PARALLEL_SIZE} ranks are accepted"
        return [Issue(_PATH, tp, message)]
    reasons = list(dict.fromkeys(_reasons(spec, tp)))
    if not reasons:
        return []
    allowed = tuple(str(n) for n in valid_tensor_parallel_sizes(spec))
    return [Issue(_PATH, tp, f"was {tp}, but {'; '.join(reasons)}", allowed)]


def valid_tensor_parallel_sizes(spec: ModelSpec) -> list[int]:
    """Return every number of ranks that the model can be cut over."""
    return [n for n in range(1, MAX_TENSOR_PARALLEL_SIZE + 1) if not any(_reasons(spec, n))]


def _reasons(spec: ModelSpec, tp: int) -> Iterator[str]:
    if tp == 1:
        return
    if math.ceil(spec.vocab_size / VOCAB_PADDING) * VOCAB_PADDING % tp:
        yield f"the padded vocabulary of {spec.vocab_size} tokens is not divisible by {tp}"
    for group in spec.layers:
        yield from _attention_reasons(group, tp)
        yield from _feed_forward_reasons(spec, group, tp)
        if spec.quantization is not None and spec.quantization.method == "fp8_block":
            yield from _block_reasons(spec, group, tp, spec.quantization.block)


def _attention_reasons(group: LayerGroup, tp: int) -> Iterator[str]:
    attention = group.attention
    if attention.num_heads % tp:
        yield f"{attention.num_heads} attention heads are not divisible by {tp}"
    if isinstance(attention, GroupedQueryAttention):
        kv_heads = attention.num_kv_heads
        if kv_heads % tp and tp % kv_heads:
            yield f"{kv_heads} KV heads can neither be divided among nor replicated evenly over {tp} ranks"


def _feed_forward_reasons(spec: ModelSpec, group: LayerGroup, tp: int) -> Iterator[str]:
    ffn = group.feed_forward
    if isinstance(ffn, DenseFeedForward):
        if ffn.intermediate_size % tp:
            yield f"the intermediate size {ffn.intermediate_size} is not divisible by {tp}"
        return
    mxfp4 = spec.quantization is not None and spec.quantization.method == "mxfp4"
    if ffn.intermediate_size % tp and not mxfp4:
        yield f"the experts' intermediate size {ffn.intermediate_size} is not divisible by {tp}"
    if ffn.shared_intermediate_size % tp:
        yield f"the shared experts' intermediate size {ffn.shared_intermediate_size} is not divisible by {tp}"


def _block_reasons(spec: ModelSpec, group: LayerGroup, tp: int, block: tuple[int, int]) -> Iterator[str]:
    """Yield vLLM's condition on fp8 in blocks: a rank's part of a matrix is a whole number of blocks."""
    parts = dict(_partitions(spec, group, tp))
    for name, size in parts.items():
        if size and size % block[0]:
            yield f"{size} {name} per rank are no whole number of fp8 blocks of {block[0]}"
        elif size and size % block[1]:
            yield f"{size} {name} per rank are no whole number of fp8 blocks of {block[1]}"


def _partitions(spec: ModelSpec, group: LayerGroup, tp: int) -> Iterator[tuple[str, int]]:
    attention, ffn = group.attention, group.feed_forward
    if isinstance(attention, MultiHeadLatentAttention):
        heads = attention.num_heads // tp
        yield "query features", heads * (attention.nope_dim + attention.rope_dim)
        yield "expanded key-value features", heads * (attention.nope_dim + attention.value_dim)
        yield "attention output features", heads * attention.value_dim
    else:
        yield "query features", attention.num_heads // tp * attention.head_dim
        yield "key features", kv_heads_per_rank(attention.num_kv_heads, tp) * attention.head_dim
    if isinstance(ffn, MixtureOfExperts):
        yield "expert features", expert_width_per_rank(spec, ffn, tp)
        yield "shared expert features", ffn.shared_intermediate_size // tp
    else:
        yield "intermediate features", ffn.intermediate_size // tp
