"""Operators of one feed-forward layer on one rank, dense or with experts, as vLLM 0.32 launches them.

Router and shared experts see the rank's own tokens. Where data parallel ranks meet in the experts, the tokens
of all of them are gathered after routing and the sums scattered back (`AgRsAll2AllManager` in
`device_communicators/all2all.py`; `fused_moe/prepare_finalize/naive_dp_ep.py`), or exchanged by DeepEP. Of
the gathered rows, every rank computes its experts, or its part of each.

Left out: kernels that route inside (they gather router logits instead of the chosen experts). Shared experts
are listed after the rest; whether they overlap is a matter of `engine.moe`.
"""

from __future__ import annotations

from typing import Literal

from frontier.models.operators import ExchangePhase, FusedMoe, MoeExchange, Operator, Rows
from frontier.models.rank import Rank
from frontier.models.sharding import expert_width_per_rank
from frontier.models.spec import FeedForward, MixtureOfExperts
from frontier.models.weights import Storage, WeightTensor

_FP32 = Storage("plain", 4)
_ROUTED = "routed_experts"
_CHOICE_BYTES = 8.0
"""A 32-bit expert number and a 32-bit weight."""


def feed_forward_operators(rank: Rank, ffn: FeedForward, count: int, *, sharded: bool) -> list[Operator]:
    """Return the operators of `count` equal feed-forward layers, the sum over ranks included.

    `sharded`: the tensor parallel ranks come and go with their shares of the tokens.
    """
    if isinstance(ffn, MixtureOfExperts):
        return _experts_layer(rank, ffn, count, sharded=sharded)
    if sharded:
        return gated_operators(
            "", rank, "dense_ffn", ffn.intermediate_size, count, bias=ffn.bias, rows="sharded_tokens"
        )
    width = rank.shard(ffn.intermediate_size)
    operators = gated_operators("", rank, "dense_ffn", width, count, bias=ffn.bias, rows="tokens")
    return operators + rank.all_reduce("feed_forward", count, rank.hidden_bytes)


def _experts_layer(rank: Rank, moe: MixtureOfExperts, count: int, *, sharded: bool) -> list[Operator]:
    """Return router, experts and what moves their rows.

    With a `rank.sequence_style`, each tensor parallel rank routes its share of the tokens (cut off here,
    which is free, unless `sharded` already), and the shares are gathered at the end (unless `sharded`).
    Otherwise all of them route all tokens, and sum over experts at the end.
    """
    spread = rank.sequence_style is not None
    own: Rows = "sharded_tokens" if spread else "tokens"
    operators = [
        *router_operators(rank, moe, count, own),
        *_dispatch(rank, moe, count, own),
        routed_experts(rank, moe, count),
        *_combine(rank, moe, count, own),
        *shared_expert_operators(rank, moe, count, own),
    ]
    if not spread:
        return operators + rank.all_reduce("feed_forward", count, rank.hidden_bytes)
    if not sharded:
        operators += rank.collective("all_gather", "feed_forward", count, rank.hidden_bytes)
    return operators


def gated_operators(
    prefix: str, rank: Rank, component: str, width: int, count: int, *, bias: bool, rows: Rows
) -> list[Operator]:
    """Return gate and up projection in one product, activation, down projection."""
    hidden = rank.spec.hidden_size
    outputs = [(f"{prefix}gate_proj", width), (f"{prefix}up_proj", width)]
    down = [(f"{prefix}down_proj", hidden)]
    return [
        *rank.linear(f"{prefix}gate_up_proj", count, component, hidden, outputs, bias=bias, rows=rows),
        rank.elementwise(f"{prefix}activation", count, component, 3 * width, rows=rows),
        *rank.linear(f"{prefix}down_proj", count, component, width, down, bias=bias, rows=rows),
    ]


def router_operators(rank: Rank, moe: MixtureOfExperts, count: int, rows: Rows) -> list[Operator]:
    """Return the router, which every rank holds whole in 16 bits, and the choice of experts."""
    extra = [rank.vector("gate.bias", moe.num_experts)] if moe.router_bias else []
    if moe.correction_bias:
        extra.append(rank.vector("gate.e_score_correction_bias", moe.num_experts, storage=_FP32))
    gate = rank.linear(
        "router.gate",
        count,
        "router",
        rank.spec.hidden_size,
        [("gate", moe.num_experts)],
        quantised=False,
        weights=extra,
        rows=rows,
    )
    chosen = _CHOICE_BYTES * moe.top_k
    choice = rank.elementwise("router.topk", count, "router", moe.num_experts, extra_bytes=chosen, rows=rows)
    return [*gate, choice]


def _dispatch(rank: Rank, moe: MixtureOfExperts, count: int, rows: Rows) -> list[Operator]:
    """Return what brings the rows of all data parallel ranks to the experts; fp8 goes out quantised."""
    if rank.layout.data_parallel_size == 1:
        return []
    if rank.layout.is_deepep:
        return [_exchange(rank, moe, count, phase="dispatch", rows=rows)]
    hidden, quantization = rank.spec.hidden_size, rank.expert_quantization
    sent = float(rank.hidden_bytes)
    if quantization is not None and rank.experts_take_fp8:
        sent = hidden + 4.0 * -(-hidden // quantization.block[1])
    return _all_tokens(rank, "all_gather", "dispatch", count, sent + _CHOICE_BYTES * moe.top_k)


def _combine(rank: Rank, moe: MixtureOfExperts, count: int, rows: Rows) -> list[Operator]:
    """Return what brings the experts' sums back to the ranks of the tokens."""
    if rank.layout.data_parallel_size == 1:
        return []
    if rank.layout.is_deepep:
        return [_exchange(rank, moe, count, phase="combine", rows=rows)]
    return _all_tokens(rank, "reduce_scatter", "combine", count, rank.hidden_bytes)


def _all_tokens(
    rank: Rank, kind: Literal["all_gather", "reduce_scatter"], name: str, count: int, bytes_per_row: float
) -> list[Operator]:
    """Return a collective of the tokens of all data parallel ranks.

    Shares of tokens are collected from all ranks of the experts, whole batches from those of equal place.
    """
    spread = rank.sequence_style is not None
    group = rank.layout.expert_group if spread else rank.layout.data_group
    return rank.collective(kind, name, count, bytes_per_row, group=group, rows="all_tokens")


def _exchange(
    rank: Rank, moe: MixtureOfExperts, count: int, *, phase: ExchangePhase, rows: Rows
) -> MoeExchange:
    """Return one direction of DeepEP's exchange: out in fp8 where the experts take it, back in 16 bits."""
    group = rank.layout.expert_group
    in_fp8 = phase == "dispatch" and rank.experts_take_fp8
    return MoeExchange(
        name=f"moe_{phase}",
        count=count,
        phase=phase,
        all2all_backend=rank.layout.all2all_backend,
        hidden=rank.spec.hidden_size,
        top_k=moe.top_k,
        num_experts=moe.num_experts,
        ranks=group.ranks,
        nodes=group.nodes,
        bytes_per_element=1.0 if in_fp8 else float(rank.itemsize),
        rows=rows,
        family=f"moe_{phase}",
    )


def routed_experts(rank: Rank, moe: MixtureOfExperts, count: int) -> FusedMoe:
    """Return the fused operator of the routed experts.

    Its input and output are in 16 bits: it quantises to 8 or 4 bits itself.
    """
    hidden, quantization, layout = rank.spec.hidden_size, rank.expert_quantization, rank.layout
    storage = rank.storage_of(quantization)
    arithmetic = None if quantization is None else quantization.arithmetic
    width = expert_width_per_rank(rank.spec, moe, layout.expert_tensor_parallel_size)
    held = (moe.num_experts + layout.num_redundant_experts) // layout.expert_parallel_size
    shapes = {"gate_proj": (width, hidden), "up_proj": (width, hidden), "down_proj": (hidden, width)}
    matrices = [
        WeightTensor(f"experts.{name}.weight", rows, columns, storage, copies=held)
        for name, (rows, columns) in shapes.items()
    ]
    biases = [
        WeightTensor(f"experts.{name}.bias", rows, 1, rank.plain, copies=held)
        for name, (rows, _) in shapes.items()
        if moe.expert_bias
    ]
    return FusedMoe(
        name="experts",
        count=count,
        component=_ROUTED,
        weights=(*matrices, *biases),
        active_share=(moe.top_k, moe.num_experts + layout.num_redundant_experts),
        num_experts=moe.num_experts,
        top_k=moe.top_k,
        redundant_experts=layout.num_redundant_experts,
        expert_ranks=layout.expert_parallel_size,
        hidden=hidden,
        intermediate=width,
        dtype=arithmetic or rank.plan_dtype,
        weight_bytes_per_element=sum(m.bytes for m in matrices) / sum(m.elements for m in matrices),
        activation_bytes=float(rank.itemsize),
        rows="all_tokens" if layout.data_parallel_size > 1 else "tokens",
    )


def shared_expert_operators(rank: Rank, moe: MixtureOfExperts, count: int, rows: Rows) -> list[Operator]:
    """Return the shared experts and the sum of their output with the routed ones'.

    On shares of the tokens they are whole on every rank (vLLM: `disable_tp`), otherwise cut over tensor
    parallel ranks.
    """
    if not moe.shared_intermediate_size:
        return []
    hidden, component = rank.spec.hidden_size, "shared_experts"
    whole = rows == "sharded_tokens"
    width = moe.shared_intermediate_size if whole else rank.shard(moe.shared_intermediate_size)
    operators = gated_operators("shared_experts.", rank, component, width, count, bias=False, rows=rows)
    if moe.shared_gate:
        outputs = [("shared_expert_gate", 1)]
        operators += rank.linear(
            "shared_expert_gate", count, component, hidden, outputs, quantised=False, rows=rows
        )
        scale = rank.elementwise("shared_experts.scale", count, component, 2 * hidden + 1, rows=rows)
        operators.append(scale)
    operators.append(rank.elementwise("shared_experts.add", count, component, 3 * hidden, rows=rows))
    return operators
