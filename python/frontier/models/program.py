"""The operators of one forward pass of a model on one tensor-parallel rank, and with them its weights.

Follows what vLLM 0.32 launches inside a CUDA graph: norms fused with the residual sum, projections with equal
input fused into one product, column-parallel then row-parallel layers with a sum over ranks after each pair,
embedding and LM head cut along the vocabulary. Rows of all operators are the scheduled tokens, those of LM
head and sampler one per request.
"""

from __future__ import annotations

from dataclasses import replace

from frontier.errors import ConfigError, Issue, nearest_name, show_value
from frontier.models.attention_program import attention_operators
from frontier.models.feed_forward_program import feed_forward_operators
from frontier.models.kv import resolve_kv_cache_dtype
from frontier.models.operators import (
    Collective,
    ComputeOperator,
    Gemm,
    Operator,
    WeightTensor,
    merge_operators,
)
from frontier.models.rank import Rank
from frontier.models.sharding import sharding_issues, vocab_per_rank
from frontier.models.spec import LayerGroup, ModelSpec

WEIGHT_DTYPES = ("auto", "bfloat16", "float16", "float32")
"""Accepted values of `weight_dtype`."""

_TOKEN_ID_BYTES = 8
_SAMPLER_BYTES_PER_LOGIT = 42
"""HBM traffic of vLLM's sampler per logit: to 32 bits (2 + 4), temperature (4 + 4), softmax (4 + 4), noise
(4), division by it (8 + 4), argmax (4)."""


def operator_program(
    spec: ModelSpec,
    *,
    tensor_parallel_size: int,
    weight_dtype: str = "bfloat16",
    kv_cache_dtype: str = "auto",
) -> list[Operator]:
    """List the operators of one forward pass on one rank, in order, equal ones merged.

    Args:
        spec: the model.
        tensor_parallel_size: ranks. More ranks than KV heads replicate them, as in vLLM.
        weight_dtype: type of weights that the checkpoint does not quantise, and of activations; `auto` is the
            model's own (32-bit models are served in bfloat16).
        kv_cache_dtype: as vLLM's flag.

    Raises:
        ConfigError: sizes that cannot be cut over so many ranks, or unknown types.
    """
    issues = sharding_issues(spec, tensor_parallel_size)
    if issues:
        raise ConfigError(issues)
    dtype = _weight_dtype(spec, weight_dtype)
    kv_dtype = resolve_kv_cache_dtype(spec, kv_cache_dtype)
    operators = _forward_pass(Rank(spec, tensor_parallel_size, dtype, kv_dtype))
    if tensor_parallel_size > 1:
        whole = _forward_pass(Rank(spec, 1, dtype, kv_dtype))
        operators = _with_model_shares(operators, whole, tensor_parallel_size)
    return merge_operators(operators)


def _forward_pass(rank: Rank) -> list[Operator]:
    operators = _embedding(rank)
    for group in rank.spec.layers:
        operators += _layer(rank, group)
    operators.append(_fused_norm(rank, 1))
    operators += _head(rank)
    return operators


def _with_model_shares(operators: list[Operator], whole: list[Operator], ranks: int) -> list[Operator]:
    """Return one rank's operators with the share of their FLOPs that no other rank repeats.

    `whole` is the same forward pass on a single rank, which computes nothing twice.
    """
    model = iter([operator for operator in whole if not isinstance(operator, Collective)])
    return [
        operator if isinstance(operator, Collective) else _with_model_share(operator, next(model), ranks)
        for operator in operators
    ]


def _with_model_share(operator: Operator, single: Operator, ranks: int) -> Operator:
    assert single.name == operator.name, "every rank runs the operators of a single one"
    if isinstance(operator, ComputeOperator) and isinstance(single, ComputeOperator):
        return replace(operator, model_share=min(1.0, single.flops_scale / (ranks * operator.flops_scale)))
    return operator


def required_dtypes(program: list[Operator]) -> list[str]:
    """Return the arithmetic types a program needs, as the plan names them, in order of first use."""
    plans = (operator.to_plan() for operator in program)
    return list(dict.fromkeys(plan["dtype"] for plan in plans if "dtype" in plan))


def _weight_dtype(spec: ModelSpec, weight_dtype: str) -> str:
    if weight_dtype == "auto":
        return "float16" if spec.dtype == "float16" else "bfloat16"
    if weight_dtype not in WEIGHT_DTYPES:
        near = nearest_name(weight_dtype, WEIGHT_DTYPES)
        message = f"was {show_value(weight_dtype)}"
        raise ConfigError(Issue("engine.dtype", weight_dtype, message, WEIGHT_DTYPES, near))
    return weight_dtype


def _embedding(rank: Rank) -> list[Operator]:
    spec, hidden = rank.spec, rank.spec.hidden_size
    rows = vocab_per_rank(spec.vocab_size, rank.tensor_parallel_size)
    table = WeightTensor("embed_tokens.weight", rows, hidden, rank.plain)
    look_up = rank.elementwise(
        "embedding", 1, "embedding", 2 * hidden, weights=(table,), extra_bytes=_TOKEN_ID_BYTES
    )
    return [look_up, *rank.all_reduce("embedding", 1, hidden * rank.itemsize)]


def _layer(rank: Rank, group: LayerGroup) -> list[Operator]:
    operators: list[Operator] = [_fused_norm(rank, group.count)]
    operators += attention_operators(rank, group.attention, group.count)
    if group.norms == 4:
        operators.append(_norm(rank, group.count))
    operators.append(_fused_norm(rank, group.count))
    operators += feed_forward_operators(rank, group.feed_forward, group.count)
    if group.norms == 4:
        operators.append(_norm(rank, group.count))
    return operators


def _fused_norm(rank: Rank, count: int) -> Operator:
    """Return an RMS norm that also adds to the residual: reads and writes both."""
    weight = rank.vector("norm.weight", rank.spec.hidden_size)
    return rank.elementwise("fused_add_rms_norm", count, "norm", 4 * rank.spec.hidden_size, weights=(weight,))


def _norm(rank: Rank, count: int) -> Operator:
    weight = rank.vector("norm.weight", rank.spec.hidden_size)
    return rank.elementwise("rms_norm", count, "norm", 2 * rank.spec.hidden_size, weights=(weight,))


def _head(rank: Rank) -> list[Operator]:
    """Return the LM head over one row per request, the gather of its logits, and the sampler."""
    spec, ranks = rank.spec, rank.tensor_parallel_size
    rows = vocab_per_rank(spec.vocab_size, ranks)
    weight = WeightTensor("lm_head.weight", rows, spec.hidden_size, rank.plain)
    head = Gemm(
        name="lm_head",
        count=1,
        component="lm_head",
        weights=() if spec.tie_word_embeddings else (weight,),
        rows="seqs",
        k=spec.hidden_size,
        n=rows,
        dtype=rank.plan_dtype,
        weight_bytes_per_element=float(rank.itemsize),
        activation_bytes=float(rank.itemsize),
    )
    operators: list[Operator] = [head]
    if ranks > 1:
        gathered = float(spec.vocab_size * rank.itemsize)
        operators.append(
            Collective(
                op="all_gather",
                name="all_gather.logits",
                count=1,
                rows="seqs",
                bytes_per_row=gathered,
                ranks=ranks,
            )
        )
    sampled = float(spec.vocab_size * _SAMPLER_BYTES_PER_LOGIT)
    operators.append(rank.elementwise("sampler", 1, "lm_head", 0, extra_bytes=sampled, rows="seqs"))
    return operators
