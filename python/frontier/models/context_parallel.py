"""Context parallelism: the KV cache of a token's heads spread over ranks, and prompts shared by ranks.

*Decode* context parallelism (vLLM's DCP) deals out the tokens of the KV cache among tensor parallel ranks
that would otherwise hold copies of the same KV heads (always so in latent attention). Each of them sees the
queries of all their heads, attends to its tokens, and the parts are put together by their log-sum-exp: an
all-gather of queries, an all-gather of log-sum-exps and a reduce-scatter of outputs per layer
(`vllm/v1/attention/ops/common.py`, `cp_lse_ag_out_rs`; conditions:
`ModelConfig.verify_with_parallel_config`).

*Prefill* context parallelism (PCP) gives every prompt to ranks that each compute a part of its tokens: of
twice as many chunks as ranks, one from the front and its mirror image from the back, so that all attend to
equally many keys (`vllm/v1/worker/cp_utils.py`). Keys and values of all tokens are gathered in every layer
and hidden states once at the end; decode tokens run on every rank, and the KV cache is dealt out as above.

Left out: fetching the cached part of a prompt from the other ranks when it is computed in chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from frontier.errors import Issue
from frontier.models.spec import GroupedQueryAttention, ModelSpec, MultiHeadLatentAttention

if TYPE_CHECKING:
    from frontier.models.layout import Layout
    from frontier.models.operators import Operator, Rows
    from frontier.models.rank import Rank

_LSE_BYTES = 4


def context_issues(spec: ModelSpec, layout: Layout) -> list[Issue]:
    """Return why a model's context cannot be spread as the layout says; empty if it can."""
    issues = []
    decode, prefill = layout.decode_context_parallel_size, layout.prefill_context_parallel_size
    for field, size, reasons in (
        ("decode_context_parallel_size", decode, _decode_reasons(spec, layout)),
        ("prefill_context_parallel_size", prefill, _prefill_reasons(spec)),
    ):
        found = list(dict.fromkeys(reasons)) if size > 1 else []
        if found:
            issues.append(Issue(f"engine.{field}", size, f"was {size}, but {'; '.join(found)}", ("1",)))
    return issues


def _decode_reasons(spec: ModelSpec, layout: Layout) -> Iterator[str]:
    tp, size = layout.tensor_parallel_size, layout.decode_context_parallel_size
    if tp % size:
        yield f"it must divide tensor_parallel_size ({tp})"
    for group in spec.layers:
        attention = group.attention
        yield from _attention_reasons(attention)
        if isinstance(attention, MultiHeadLatentAttention):
            continue
        heads = attention.num_kv_heads
        if tp <= heads:
            yield f"tensor_parallel_size ({tp}) is not over the {heads} KV heads, so none is held twice"
        elif size > tp // heads:
            yield f"each of the {heads} KV heads is held by {tp // heads} of {tp} ranks only"
        if attention.num_heads // heads % size:
            yield f"{attention.num_heads // heads} query heads per KV head are not divisible by it"


def _prefill_reasons(spec: ModelSpec) -> Iterator[str]:
    if spec.is_moe:
        yield f"{spec.name} has experts, whose spread over such ranks is not modelled"
    for group in spec.layers:
        yield from _attention_reasons(group.attention)


def _attention_reasons(attention: GroupedQueryAttention | MultiHeadLatentAttention) -> Iterator[str]:
    if isinstance(attention, MultiHeadLatentAttention):
        if attention.indexer is not None:
            yield "it is not modelled for sparse attention"
    elif attention.window is not None:
        yield "it is not modelled for sliding windows"


def exchange_queries(rank: Rank, heads: int, query_dim: int, count: int, *, latent: bool) -> list[Operator]:
    """Return what hands a rank's queries of `count` layers to those that hold other tokens of their keys.

    In latent attention only decode tokens are handed on: one row per request.
    """
    size = rank.layout.decode_context_parallel_size
    if size == 1:
        return []
    row = size * heads * query_dim * rank.itemsize
    group = rank.layout.decode_context_group
    return rank.collective(
        "all_gather", "dcp_queries", count, row, group=group, rows="seqs" if latent else "tokens"
    )


def merge_outputs(rank: Rank, heads: int, value_dim: int, count: int, *, latent: bool) -> list[Operator]:
    """Return what puts the parts of attention's output together, of `count` layers."""
    layout = rank.layout
    operators: list[Operator] = []
    decode, prefill = layout.decode_context_parallel_size, layout.prefill_context_parallel_size
    if decode > 1:
        group, all_heads = layout.decode_context_group, decode * heads
        rows: Rows = "seqs" if latent else "tokens"
        lse, out = all_heads * decode * _LSE_BYTES, all_heads * value_dim * rank.itemsize
        operators += rank.collective("all_gather", "dcp_lse", count, lse, group=group, rows=rows)
        operators += rank.collective("reduce_scatter", "dcp_output", count, out, group=group, rows=rows)
    if prefill > 1:
        # Only decode tokens have keys elsewhere: those of a prompt are gathered.
        part = heads * (value_dim * rank.itemsize + _LSE_BYTES)
        group = layout.prefill_context_group
        operators += rank.collective(
            "all_gather", "pcp_output", count, prefill * part, group=group, rows="seqs"
        )
    return operators


def gather_keys(rank: Rank, kv_bytes: int, count: int) -> list[Operator]:
    """Return what brings the keys and values of a prompt's other tokens, of `count` layers."""
    size = rank.layout.prefill_context_parallel_size
    return rank.collective(
        "all_gather", "pcp_kv", count, size * kv_bytes, group=rank.layout.prefill_context_group
    )


def gather_hidden_states(rank: Rank) -> list[Operator]:
    """Return what brings the hidden states of all tokens together before the LM head."""
    size = rank.layout.prefill_context_parallel_size
    group = rank.layout.prefill_context_group
    return rank.collective("all_gather", "pcp_hidden_states", 1, size * rank.hidden_bytes, group=group)
