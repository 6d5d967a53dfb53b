"""Each side of a model whose attention and FFN lie on ranks of their own: operators and weights."""

from __future__ import annotations

from dataclasses import replace

from frontier.models.afd_program import afd_classes, attention_parts, ffn_parts, side_layout
from frontier.models.kv import resolve_kv_cache_dtype
from frontier.models.operators import Operator
from frontier.models.program import resolve_weight_dtype
from frontier.models.rank import Rank
from frontier.models.spec import DenseFeedForward, ModelSpec

Parts = tuple[tuple[Operator, ...], ...]


def attention_side(
    spec: ModelSpec, tensor_parallel_size: int, *, kv_cache_dtype: str, fp8_attention: bool
) -> Parts:
    """Return the operators of an attention rank by parts (head, classes of layers, tail).

    What depends on the other side is left out: sums over FFN ranks, and the quantisation of what is sent.
    Neither has weights.
    """
    rank = _rank(spec, tensor_parallel_size, kv_cache_dtype, fp8_attention=fp8_attention)
    return _tuples(attention_parts(rank, afd_classes(spec, 1), a2f_fp8=False))


def ffn_side(spec: ModelSpec, tensor_parallel_size: int, ranks: int, redundant_experts: int) -> Parts:
    """Return the operators of one GPU of an FFN rank by classes of layers."""
    rank = _rank(spec, tensor_parallel_size, "auto", fp8_attention=False)
    classes = afd_classes(spec, ranks, redundant_experts)
    return _tuples(ffn_parts(rank, classes, ffn_ranks=ranks, redundant_experts=redundant_experts))


def weight_bytes(parts: Parts) -> int:
    """Return the bytes of the weights of one GPU."""
    return sum(operator.weight_bytes for part in parts for operator in part)


def without_ffn(spec: ModelSpec) -> ModelSpec:
    """Return a model of the same attention whose FFN is not there: what attention ranks hold and compute.

    It has the same caches; for the memory plan of attention ranks, whose weights are known.
    """
    layers = tuple(replace(group, feed_forward=DenseFeedForward(0)) for group in spec.layers)
    return replace(spec, layers=layers)


def _rank(spec: ModelSpec, tensor_parallel_size: int, kv_cache_dtype: str, *, fp8_attention: bool) -> Rank:
    dtype = resolve_weight_dtype(spec, "auto")
    kv_dtype = resolve_kv_cache_dtype(spec, kv_cache_dtype)
    return Rank(spec, side_layout(tensor_parallel_size), dtype, kv_dtype, fp8_attention)


def _tuples(parts: list[list[Operator]]) -> Parts:
    return tuple(tuple(part) for part in parts)
