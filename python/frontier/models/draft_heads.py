"""Operators of one pass of each kind of draft head: EAGLE, EAGLE-3, multi-token prediction, Medusa.

Projections that join two hidden vectors are whole on every rank and in 16 bits. Embedding and LM head are the
target's where a head has none of its own (`vllm/v1/spec_decode/eagle.py`), so they have no weights here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from frontier.models.operators import Gemm, Operator
from frontier.models.program import (
    embedding_operators,
    final_norm,
    fused_norm,
    layer_operators,
    plain_norm,
)
from frontier.models.rank import Rank
from frontier.models.sharding import vocab_per_rank
from frontier.models.spec import LayerGroup, MixtureOfExperts, ModelSpec
from frontier.models.weights import Storage, WeightTensor

_COMPONENT = "draft"
_ARGMAX_BYTES_PER_LOGIT = 2
_INDEX_BYTES = 8
AUXILIARY_LAYERS = 3
"""Layers of the target whose hidden states EAGLE-3 sees (arXiv:2503.01840)."""


def greedy_head(
    rank: Rank, vocab_size: int, *, weights: Sequence[WeightTensor], count: int = 1
) -> list[Operator]:
    """Return `count` LM heads over one row per request, the gather of logits, and the argmax over them."""
    width = vocab_per_rank(vocab_size, rank.tensor_parallel_size)
    head = Gemm(
        name="lm_head",
        count=count,
        component="lm_head",
        weights=tuple(weights),
        rows="seqs",
        k=rank.spec.hidden_size,
        n=width,
        dtype=rank.plan_dtype,
        weight_bytes_per_element=float(rank.itemsize),
        activation_bytes=float(rank.itemsize),
    )
    logits = float(vocab_size * rank.itemsize)
    read = float(vocab_size * _ARGMAX_BYTES_PER_LOGIT + _INDEX_BYTES)
    return [
        head,
        *rank.collective("all_gather", "logits", count, logits, rows="seqs"),
        rank.elementwise("argmax", count, "lm_head", 0, extra_bytes=read, rows="seqs"),
    ]


def eagle_operators(rank: Rank, *, target_hidden: int, owns_embedding: bool) -> list[Operator]:
    """Return a pass of EAGLE (arXiv:2401.15077): token and hidden state are joined before its layers.

    The first layer has no input norm, and nothing is normed before the target's LM head.
    """
    hidden = rank.spec.hidden_size
    joined = hidden + target_hidden
    layers = _layers(rank)
    return [
        *_embedding(rank, owned=owns_embedding),
        rank.elementwise("concat", 1, _COMPONENT, 2 * joined),
        *rank.linear("fc", 1, _COMPONENT, joined, [("fc", hidden)], quantised=False),
        *layers[1:],
        rank.elementwise("residual_add", 1, _COMPONENT, 3 * hidden),
        *greedy_head(rank, rank.spec.vocab_size, weights=()),
    ]


def eagle3_operators(
    rank: Rank, *, target_hidden: int, owns_embedding: bool, combines: bool
) -> list[Operator]:
    """Return a pass of EAGLE-3: the layer's query, key and value projections see token and hidden state.

    `combines`: the hidden states of three layers of the target are projected to one first, as in the first
    pass alone. The head has an LM head of its own over the draft vocabulary, and a table from it to the
    target's.
    """
    spec, hidden = rank.spec, rank.spec.hidden_size
    vocab = spec.draft_vocab_size or spec.vocab_size
    width = vocab_per_rank(vocab, rank.tensor_parallel_size)
    table = WeightTensor("d2t", vocab, 1, Storage("plain", 8), derived=True)
    tables = (table,) if vocab != spec.vocab_size else ()
    head = WeightTensor("lm_head.weight", width, hidden, rank.plain)
    operators: list[Operator] = []
    if combines:
        seen = AUXILIARY_LAYERS * target_hidden
        operators.append(rank.elementwise("concat_layers", 1, _COMPONENT, 2 * seen))
        operators += rank.linear("fc", 1, _COMPONENT, seen, [("fc", hidden)], quantised=False)
    return [
        *operators,
        *_embedding(rank, owned=owns_embedding),
        plain_norm(rank, 1, "tokens"),
        plain_norm(rank, 1, "tokens"),
        rank.elementwise("concat", 1, _COMPONENT, 4 * hidden),
        *(_seeing_two(rank, operator) for operator in _layers(rank)[1:]),
        fused_norm(rank, 1, "tokens"),
        *greedy_head(rank, vocab, weights=(head, *tables)),
    ]


def mtp_operators(rank: Rank, *, owns_embedding: bool) -> list[Operator]:
    """Return a pass of a multi-token prediction layer (DeepSeek-V3, arXiv:2412.19437, section 2.2).

    Token and hidden state are normed, joined and projected; then comes a whole layer of the target's kind,
    experts included, a norm, and the target's LM head.
    """
    hidden = rank.spec.hidden_size
    has_experts = isinstance(rank.spec.layers[0].feed_forward, MixtureOfExperts)
    shares = rank.sequence_style == "moe_layers" and has_experts
    return [
        *_embedding(rank, owned=owns_embedding),
        plain_norm(rank, 1, "tokens"),
        plain_norm(rank, 1, "tokens"),
        rank.elementwise("concat", 1, _COMPONENT, 4 * hidden),
        *rank.linear("eh_proj", 1, _COMPONENT, 2 * hidden, [("eh_proj", hidden)], quantised=False),
        *_layers(rank),
        *final_norm(rank, sharded=shares),
        *greedy_head(rank, rank.spec.vocab_size, weights=()),
    ]


def medusa_operators(rank: Rank, *, heads: int) -> list[Operator]:
    """Return the heads of Medusa (arXiv:2401.10774): a residual block and an LM head each, in one pass.

    They see one hidden state per request, that of its last token.
    """
    spec, hidden = rank.spec, rank.spec.hidden_size
    width = vocab_per_rank(spec.vocab_size, rank.tensor_parallel_size)
    head = WeightTensor("lm_head.weight", width, hidden, rank.plain)
    block = rank.linear(
        "residual_block", heads, _COMPONENT, hidden, [("linear", hidden)], quantised=False, rows="seqs"
    )
    return [
        *block,
        rank.elementwise("residual_silu", heads, _COMPONENT, 3 * hidden, rows="seqs"),
        *greedy_head(rank, spec.vocab_size, weights=(head,), count=heads),
    ]


def mtp_group(spec: ModelSpec) -> LayerGroup:
    """Return the kind of a model's prediction layer: its last layer's, with an indexer of its own."""
    for index in reversed(spec.layer_pattern):
        group = spec.layers[index]
        if not getattr(getattr(group.attention, "indexer", None), "shared", False):
            return group
    return spec.layers[spec.layer_pattern[-1]]


def _layers(rank: Rank) -> list[Operator]:
    return [
        op for group in rank.spec.layers for op in layer_operators(rank, group, group.count, sharded=False)
    ]


def _embedding(rank: Rank, *, owned: bool) -> list[Operator]:
    look_up, *rest = embedding_operators(rank)
    return [look_up if owned else replace(look_up, weights=()), *rest]


def _seeing_two(rank: Rank, operator: Operator) -> Operator:
    """Return the projection of queries, keys and values with an input of two hidden vectors."""
    hidden = rank.spec.hidden_size
    if not isinstance(operator, Gemm) or operator.name != "qkv_proj" or operator.k != hidden:
        return operator
    wide = tuple(
        replace(tensor, columns=2 * hidden) if tensor.columns == hidden else tensor
        for tensor in operator.weights
    )
    matrices = [tensor for tensor in wide if tensor.columns == 2 * hidden]
    width = sum(tensor.bytes for tensor in matrices) / (2 * hidden * operator.n)
    return replace(operator, k=2 * hidden, weights=wide, weight_bytes_per_element=width)
