"""Operators of a forward pass with attention and FFN on ranks of their own (attention-FFN disaggregation).

Attention ranks hold the embedding, all of attention with its norms and its sum over tensor parallel ranks,
the norm before the FFN, the router (who sends a token must know where to: MegaScale-Infer, arXiv:2504.02263,
section 4), final norm and LM head. FFN ranks hold dense layers, routed and shared experts:

- whole experts are spread over FFN ranks, and each is cut over the GPUs of its rank;
- the shared experts of a token run on the first of the ranks that its routed experts are on, so that nothing
  more is sent; every rank has them, cut over its GPUs;
- a dense layer is on every FFN rank, cut over its GPUs, and serves attention ranks of its own.

Every GPU of an attention rank sends its share of the tokens, and every GPU of an FFN rank receives one: FFN
ranks gather the shares before, and scatter the sums after; attention ranks add up what comes back from
several FFN ranks, and gather it before the next layer (before the first as well: it stands for that after the
last).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

from frontier.models.attention_program import attention_operators
from frontier.models.feed_forward_program import (
    gated_operators,
    routed_experts,
    router_operators,
    shared_expert_operators,
)
from frontier.models.layout import Layout
from frontier.models.operators import FusedMoe, Operator, merge_operators
from frontier.models.program import (
    embedding_operators,
    final_norm,
    fused_norm,
    head_operators,
    plain_norm,
    with_model_shares,
)
from frontier.models.rank import Rank
from frontier.models.spec import LayerGroup, MixtureOfExperts, ModelSpec

FP8_GROUP = 128
"""Activations that share a 32-bit scale where they travel in fp8."""


@dataclass(frozen=True, slots=True)
class AfdClass:
    """Equal layers: which, how many, and to how many FFN ranks a token of theirs goes on average."""

    group: LayerGroup
    layers: int
    destinations: float

    @property
    def is_moe(self) -> bool:
        """Whether all attention ranks share the FFN."""
        return isinstance(self.group.feed_forward, MixtureOfExperts)


def afd_classes(spec: ModelSpec, ffn_ranks: int, redundant_experts: int = 0) -> list[AfdClass]:
    """Return the classes of layers of a model: its groups, in their order."""
    return [
        AfdClass(
            group,
            spec.layer_pattern.count(index),
            _destinations(group.feed_forward, ffn_ranks, redundant_experts),
        )
        for index, group in enumerate(spec.layers)
    ]


def layer_runs(spec: ModelSpec) -> list[tuple[int, int]]:
    """Return the layers in their order, as runs of (class, count)."""
    return [(index, len(list(run))) for index, run in groupby(spec.layer_pattern)]


def expected_destinations(num_experts: int, top_k: int, ranks: int) -> float:
    """Return on how many of `ranks` equal parts of the experts a token's `top_k` different ones are.

    That is the mean; all choices of experts are equally likely (hypergeometric law).
    """
    elsewhere = num_experts - num_experts // ranks
    return ranks * (1 - math.comb(elsewhere, top_k) / math.comb(num_experts, top_k))


def _destinations(ffn: object, ranks: int, redundant_experts: int) -> float:
    if not isinstance(ffn, MixtureOfExperts):
        return 1.0
    # Copies are taken to be experts like any other: a token visits one of them.
    return expected_destinations(ffn.num_experts + redundant_experts, ffn.top_k, ranks)


def attention_parts(rank: Rank, classes: Sequence[AfdClass], *, a2f_fp8: bool) -> list[list[Operator]]:
    """Return the parts of one attention rank: head, one per class with all its layers, tail.

    Args:
        rank: one GPU of an attention rank.
        classes: the model's layers.
        a2f_fp8: activations are quantised before they are sent.
    """
    single = Rank(rank.spec, rank.layout.single(), rank.dtype, rank.kv_dtype, rank.fp8_attention)
    share = partial(with_model_shares, rank, single)
    builds = [partial(_attention_layer, of=each, a2f_fp8=a2f_fp8) for each in classes]
    parts = [share(embedding_operators), *map(share, builds)]
    parts.append([*share(partial(final_norm, sharded=False)), *share(head_operators)])
    return [merge_operators(part) for part in parts]


def _attention_layer(rank: Rank, of: AfdClass, *, a2f_fp8: bool) -> list[Operator]:
    count, group, hidden = of.layers, of.group, rank.spec.hidden_size
    operators: list[Operator] = []
    if of.destinations > 1:
        summed = (of.destinations + 1) * hidden
        operators.append(rank.elementwise("f2a_sum", count, "norm", summed, rows="sharded_tokens"))
    operators += rank.collective("all_gather", "ffn_output", count, rank.hidden_bytes)
    operators.append(fused_norm(rank, count, "tokens"))
    operators += attention_operators(rank, group.attention, count)
    operators += rank.all_reduce("attention", count, rank.hidden_bytes)
    if group.norms == 4:
        # After attention, and after the FFN once its output is back.
        operators.append(plain_norm(rank, count, "tokens"))
        operators.append(plain_norm(rank, count, "tokens"))
    operators.append(fused_norm(rank, count, "tokens"))
    if isinstance(group.feed_forward, MixtureOfExperts):
        operators += router_operators(rank, group.feed_forward, count, "tokens")
    if a2f_fp8:
        written = hidden + 4.0 * -(-hidden // FP8_GROUP)
        operators.append(
            rank.elementwise(
                "quant_fp8", count, "quantisation", hidden, extra_bytes=written, rows="sharded_tokens"
            )
        )
    return operators


def ffn_parts(
    rank: Rank,
    classes: Sequence[AfdClass],
    *,
    ffn_ranks: int,
    redundant_experts: int = 0,
    a2f_bytes_per_element: float = 2.0,
) -> list[list[Operator]]:
    """Return the parts of the FFN ranks: one per class with all its layers.

    Args:
        rank: one GPU of an FFN rank; its layout has the rank's tensor parallel GPUs alone.
        classes: the model's layers.
        ffn_ranks: FFN ranks that experts are spread over.
        redundant_experts: copies of experts (expert parallel load balancing).
        a2f_bytes_per_element: activations are gathered as they came.
    """
    parts = []
    gathered = rank.spec.hidden_size * a2f_bytes_per_element
    for each in classes:
        ffn = each.group.feed_forward
        if isinstance(ffn, MixtureOfExperts):
            reached = each.destinations / ffn_ranks
            spread = _spread(routed_experts(rank, ffn, each.layers), ffn_ranks, redundant_experts)
            part = [
                *rank.collective(
                    "all_gather", "ffn_input", each.layers, gathered * reached, rows="all_tokens"
                ),
                spread,
                *shared_expert_operators(rank, ffn, each.layers, "tokens"),
                *rank.collective(
                    "reduce_scatter",
                    "feed_forward",
                    each.layers,
                    rank.hidden_bytes * reached,
                    rows="all_tokens",
                ),
            ]
        else:
            width = rank.shard(ffn.intermediate_size)
            part = [
                *rank.collective("all_gather", "ffn_input", each.layers, gathered),
                *gated_operators("", rank, "dense_ffn", width, each.layers, bias=ffn.bias, rows="tokens"),
                *rank.collective("reduce_scatter", "feed_forward", each.layers, rank.hidden_bytes),
            ]
        parts.append(merge_operators(part))
    return parts


def _spread(experts: FusedMoe, ranks: int, redundant_experts: int) -> FusedMoe:
    """Return one rank's part of experts that are spread whole over so many ranks, which see all tokens."""
    placed = experts.num_experts + redundant_experts
    return replace(
        experts,
        weights=tuple(replace(tensor, copies=placed // ranks) for tensor in experts.weights),
        active_share=(experts.top_k, placed),
        redundant_experts=redundant_experts,
        expert_ranks=ranks,
        rows="all_tokens",
    )


def side_layout(tensor_parallel_size: int) -> Layout:
    """Return the layout of the GPUs of one attention or FFN rank."""
    return Layout.on_one_node(tensor_parallel_size)
