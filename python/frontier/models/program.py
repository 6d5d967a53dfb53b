"""The operators of one forward pass of a model on one rank, and with them its weights.

Follows what vLLM 0.32 launches inside a CUDA graph: norms fused with the residual sum, projections with equal
input fused into one product, column-parallel then row-parallel layers with a sum over ranks after each pair,
embedding and LM head cut along the vocabulary. Rows of LM head and sampler are one per request, those of
routed experts the tokens of all data parallel ranks, those of all else the scheduled tokens or, around the
experts, the rank's share of them (`frontier.models.sharding.sequence_style`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from frontier.errors import ConfigError, Issue, nearest_name, show_value
from frontier.models.attention_program import attention_operators
from frontier.models.context_parallel import gather_hidden_states
from frontier.models.feed_forward_program import feed_forward_operators
from frontier.models.kv import resolve_kv_cache_dtype
from frontier.models.layout import Layout
from frontier.models.operators import (
    Attention,
    Communication,
    ComputeOperator,
    Elementwise,
    FusedMoe,
    Gemm,
    Operator,
    Rows,
    merge_operators,
)
from frontier.models.rank import Rank
from frontier.models.sharding import layout_issues, pipeline_layers, vocab_per_rank
from frontier.models.spec import LayerGroup, MixtureOfExperts, ModelSpec
from frontier.models.weights import WeightTensor

WEIGHT_DTYPES = ("auto", "bfloat16", "float16", "float32")
"""Accepted values of `weight_dtype`."""

_TOKEN_ID_BYTES = 8
_SAMPLER_BYTES_PER_LOGIT = 42
"""HBM traffic of vLLM's sampler per logit: to 32 bits (2 + 4), temperature (4 + 4), softmax (4 + 4), noise
(4), division by it (8 + 4), argmax (4)."""

_GREEDY_BYTES_PER_LOGIT = 4
"""Of an argmax over 32-bit logits. That their copy in 32 bits stays in the cache is assumed; where a pack has
the sampler, it is measured (`frontier.training.sources.llmservingsim`)."""


def sampled_greedily(spec: ModelSpec, stages: Sequence[Sequence[Operator]]) -> list[list[Operator]]:
    """Return stages of a program whose sampler takes the most likely token of every request."""
    read = float(spec.vocab_size * _GREEDY_BYTES_PER_LOGIT)

    def greedy(each: Operator) -> Operator:
        if isinstance(each, Elementwise) and each.name == "sampler":
            return replace(each, bytes_per_row=read)
        return each

    return [[greedy(each) for each in stage] for stage in stages]


def operator_program(
    spec: ModelSpec,
    *,
    layout: Layout | None = None,
    tensor_parallel_size: int | None = None,
    weight_dtype: str = "bfloat16",
    kv_cache_dtype: str = "auto",
    fp8_attention: bool = False,
) -> list[Operator]:
    """List the operators of one forward pass on one rank of a layout without pipeline stages.

    Args:
        spec: the model.
        layout: how it is spread over GPUs; or else
        tensor_parallel_size: ranks of tensor parallelism alone, on one node. More ranks than KV heads
            replicate them, as in vLLM.
        weight_dtype: type of weights that the checkpoint does not quantise, and of activations; `auto` is the
            model's own (32-bit models are served in bfloat16).
        kv_cache_dtype: as vLLM's flag.
        fp8_attention: over an fp8 cache, queries are quantised too and attention computes in fp8.

    Returns:
        The operators in order, equal ones merged.

    Raises:
        ConfigError: the model cannot be spread so, or unknown types.
        ValueError: both or neither of `layout` and `tensor_parallel_size`, or a layout with pipeline stages.
    """
    if (layout is None) == (tensor_parallel_size is None):
        raise ValueError("give either layout or tensor_parallel_size")
    if layout is None:
        assert tensor_parallel_size is not None
        layout = Layout.on_one_node(tensor_parallel_size)
    if layout.pipeline_parallel_size > 1:
        raise ValueError("the layout has pipeline stages; pipeline_stages lists the operators of each")
    (stage,) = pipeline_stages(
        spec,
        layout,
        weight_dtype=weight_dtype,
        kv_cache_dtype=kv_cache_dtype,
        fp8_attention=fp8_attention,
    )
    return stage


def pipeline_stages(
    spec: ModelSpec,
    layout: Layout,
    *,
    weight_dtype: str = "bfloat16",
    kv_cache_dtype: str = "auto",
    fp8_attention: bool = False,
) -> list[list[Operator]]:
    """List the operators of one forward pass on one rank of each pipeline stage.

    The first stage has the embedding, the last one the final norm, the LM head and the sampler. Between
    stages go hidden states and residual: every tensor parallel rank sends its share to the rank of its place
    (an operator of the sending stage), and the receiving stage gathers them (vLLM: `isend_tensor_dict`).

    Args:
        spec: the model.
        layout: how it is spread over GPUs.
        weight_dtype: as for `operator_program`.
        kv_cache_dtype: as vLLM's flag.
        fp8_attention: as for `operator_program`.

    Raises:
        ConfigError: the model cannot be spread so, or unknown types.
    """
    issues = layout_issues(spec, layout)
    if issues:
        raise ConfigError(issues)
    dtype = resolve_weight_dtype(spec, weight_dtype)
    kv_dtype = resolve_kv_cache_dtype(spec, kv_cache_dtype)
    rank = Rank(spec, layout, dtype, kv_dtype, fp8_attention)
    single = Rank(spec, layout.single(), dtype, kv_dtype, fp8_attention)
    stages, first = [], 0
    partition = layout.pipeline_layer_partition
    split = pipeline_layers(spec.num_layers, layout.pipeline_parallel_size, partition)
    for stage, layers in enumerate(split):
        operators = _stage(rank, single, stage, range(first, first + layers))
        stages.append(merge_operators(operators))
        first += layers
    return stages


def _stage(rank: Rank, single: Rank, stage: int, layers: range) -> list[Operator]:
    layout = rank.layout
    operators: list[Operator] = []
    if stage == 0:
        operators += with_model_shares(rank, single, embedding_operators)
    else:
        operators += rank.collective("all_gather", "hidden_states", 2, rank.hidden_bytes)
    for (group, sharded), count in _layer_counts(rank, layers).items():
        layer = partial(layer_operators, group=group, count=count, sharded=sharded)
        operators += with_model_shares(rank, single, layer)
    if stage == layout.pipeline_parallel_size - 1:
        ends_sharded = rank.sequence_style == "moe_layers" and _has_experts(rank.spec, layers[-1])
        operators += with_model_shares(rank, single, partial(final_norm, sharded=ends_sharded))
        operators += gather_hidden_states(rank)
        return operators + with_model_shares(rank, single, head_operators)
    share = rank.hidden_bytes / layout.tensor_parallel_size
    link = layout.stage_link(stage)
    return operators + rank.collective("send_recv", "hidden_states", 2, share, group=link)


def _layer_counts(rank: Rank, layers: range) -> dict[tuple[LayerGroup, bool], int]:
    """Count equal layers of a stage, by group and by whether the layer before hands on shares of tokens."""
    spec, style = rank.spec, rank.sequence_style
    counts: dict[tuple[LayerGroup, bool], int] = {}
    for layer in layers:
        follows_experts = layer > layers[0] and _has_experts(spec, layer - 1)
        sharded = style == "all_layers" or (style == "moe_layers" and follows_experts)
        kind = spec.layers[spec.layer_pattern[layer]], sharded
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def _has_experts(spec: ModelSpec, layer: int) -> bool:
    return isinstance(spec.layers[spec.layer_pattern[layer]].feed_forward, MixtureOfExperts)


def with_model_shares(rank: Rank, single: Rank, build: Callable[[Rank], list[Operator]]) -> list[Operator]:
    """Build one rank's operators with the share of their FLOPs that no other rank repeats.

    The same part of the forward pass on a single GPU computes nothing twice.
    """
    whole = iter(op for op in build(single) if not isinstance(op, Communication))
    return [
        operator
        if isinstance(operator, Communication)
        else _with_model_share(operator, next(whole), rank.layout)
        for operator in build(rank)
    ]


def _with_model_share(operator: Operator, single: Operator, layout: Layout) -> Operator:
    assert single.name == operator.name, "every rank runs the operators of a single one"
    if not (isinstance(operator, ComputeOperator) and isinstance(single, ComputeOperator)):
        return operator
    done = _ranks_per_row(operator, layout) * operator.flops_scale
    return replace(operator, model_share=min(1.0, single.flops_scale / done))


def _ranks_per_row(operator: ComputeOperator, layout: Layout) -> int:
    """Return on how many ranks of its stage an operator meets each token of the model."""
    rows: Rows = operator.rows if isinstance(operator, Gemm | FusedMoe) else "tokens"
    assert isinstance(operator, Gemm | FusedMoe | Attention)
    if rows == "sharded_tokens":
        return 1
    return layout.expert_ranks if rows == "all_tokens" else layout.tensor_parallel_size


def required_dtypes(program: Sequence[Operator]) -> list[str]:
    """Return the arithmetic types a program needs, as the plan names them, in order of first use."""
    plans = (operator.to_plan() for operator in program)
    return list(dict.fromkeys(plan["dtype"] for plan in plans if "dtype" in plan))


def resolve_weight_dtype(spec: ModelSpec, weight_dtype: str) -> str:
    if weight_dtype == "auto":
        return "float16" if spec.dtype == "float16" else "bfloat16"
    if weight_dtype not in WEIGHT_DTYPES:
        near = nearest_name(weight_dtype, WEIGHT_DTYPES)
        message = f"was {show_value(weight_dtype)}"
        raise ConfigError(Issue("engine.dtype", weight_dtype, message, WEIGHT_DTYPES, near))
    return weight_dtype


def embedding_operators(rank: Rank) -> list[Operator]:
    spec, hidden = rank.spec, rank.spec.hidden_size
    rows = vocab_per_rank(spec.vocab_size, rank.tensor_parallel_size)
    table = WeightTensor("embed_tokens.weight", rows, hidden, rank.plain)
    look_up = rank.elementwise(
        "embedding", 1, "embedding", 2 * hidden, weights=(table,), extra_bytes=_TOKEN_ID_BYTES
    )
    return [look_up, *rank.all_reduce("embedding", 1, rank.hidden_bytes)]


def layer_operators(rank: Rank, group: LayerGroup, count: int, *, sharded: bool) -> list[Operator]:
    """Return the operators of `count` equal layers; `sharded` ones are handed shares of the tokens.

    Attention needs all tokens of the rank, so shares are gathered for it; afterwards they are whole or shared
    out again by the model's style.
    """
    style, hidden = rank.sequence_style, rank.hidden_bytes
    has_experts = isinstance(group.feed_forward, MixtureOfExperts)
    sharded = sharded and style is not None
    shares_out = style == "all_layers" or (style == "moe_layers" and has_experts)
    operators: list[Operator] = []
    if sharded and not shares_out:
        operators += rank.collective("all_gather", "residual", count, 2 * hidden)
        sharded = False
    operators.append(fused_norm(rank, count, _share(sharded)))
    if sharded:
        operators += rank.collective("all_gather", "attention_input", count, hidden)
    operators += attention_operators(rank, group.attention, count)
    operators += rank.collective("reduce_scatter" if shares_out else "all_reduce", "attention", count, hidden)
    if group.norms == 4:
        operators.append(plain_norm(rank, count, _share(shares_out)))
    operators.append(fused_norm(rank, count, _share(shares_out)))
    operators += feed_forward_operators(rank, group.feed_forward, count, sharded=shares_out)
    if group.norms == 4:
        operators.append(plain_norm(rank, count, _share(shares_out)))
    return operators


def _share(sharded: bool) -> Rows:
    return "sharded_tokens" if sharded else "tokens"


def fused_norm(rank: Rank, count: int, rows: Rows) -> Operator:
    """Return an RMS norm that also adds to the residual: reads and writes both."""
    hidden = rank.spec.hidden_size
    weight = rank.vector("norm.weight", hidden)
    return rank.elementwise("fused_add_rms_norm", count, "norm", 4 * hidden, weights=(weight,), rows=rows)


def plain_norm(rank: Rank, count: int, rows: Rows) -> Operator:
    hidden = rank.spec.hidden_size
    weight = rank.vector("norm.weight", hidden)
    return rank.elementwise("rms_norm", count, "norm", 2 * hidden, weights=(weight,), rows=rows)


def final_norm(rank: Rank, *, sharded: bool) -> list[Operator]:
    """Return the norm before the LM head, and the gather of shares of tokens where there are any.

    vLLM gathers hidden states and residual before the norm, but in models that share out all layers only what
    the norm leaves.
    """
    if rank.sequence_style == "all_layers":
        norm = fused_norm(rank, 1, "sharded_tokens")
        return [norm, *rank.collective("all_gather", "final", 1, rank.hidden_bytes)]
    gathered = rank.collective("all_gather", "residual", 1, 2 * rank.hidden_bytes) if sharded else []
    return [*gathered, fused_norm(rank, 1, "tokens")]


def head_operators(rank: Rank) -> list[Operator]:
    """Return the LM head over one row per request, the gather of its logits, and the sampler.

    The last of several stages keeps a copy of a tied embedding.
    """
    spec = rank.spec
    rows = vocab_per_rank(spec.vocab_size, rank.tensor_parallel_size)
    tied = spec.tie_word_embeddings
    weight = WeightTensor("lm_head.weight", rows, spec.hidden_size, rank.plain, derived=tied)
    shared = tied and rank.layout.pipeline_parallel_size == 1
    head = Gemm(
        name="lm_head",
        count=1,
        component="lm_head",
        weights=() if shared else (weight,),
        rows="seqs",
        k=spec.hidden_size,
        n=rows,
        dtype=rank.plan_dtype,
        weight_bytes_per_element=float(rank.itemsize),
        activation_bytes=float(rank.itemsize),
    )
    logits = float(spec.vocab_size * rank.itemsize)
    sampled = float(spec.vocab_size * _SAMPLER_BYTES_PER_LOGIT)
    return [
        head,
        *rank.collective("all_gather", "logits", 1, logits, rows="seqs"),
        rank.elementwise("sampler", 1, "lm_head", 0, extra_bytes=sampled, rows="seqs"),
    ]
