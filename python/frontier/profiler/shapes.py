"""The operators of chosen models, without their batch: what the plan crosses with sizes.

Read off the models' own operator programs (`frontier.models.operator_program`), so that a profile describes
an operator with the very figures by which the simulator will ask for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from frontier.errors import ConfigError
from frontier.models import ModelSpec, load_model, operator_program, sharding_issues
from frontier.models.operators import Attention, Elementwise, FusedMoe, Gemm, Operator
from frontier.models.spec import GroupedQueryAttention, MixtureOfExperts

DEFAULT_MODELS: Final = (
    "llama-3.1-8b",
    "qwen3-30b-a3b",
    "llama-3.1-70b",
    "mixtral-8x7b",
    "qwen3-8b",
    "qwen3-235b-a22b",
    "qwen3-32b",
)
"""Dense and sparse models from 8 to 235 billion parameters; the first ones are measured first."""

DEFAULT_RANKS: Final = (1, 2, 4, 8)

S = TypeVar("S")

_TORCH_DTYPES: Final = {"bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class GemmShape:
    """`[rows, k] x [k, n]`, `batch` independent ones."""

    k: int
    n: int
    batch: int


@dataclass(frozen=True)
class AttentionShape:
    """Heads of one rank, and what a token leaves in the KV cache."""

    heads: int
    kv_heads: int
    qk_dim: int
    v_dim: int
    kv_bytes_per_token: float
    window: int


@dataclass(frozen=True)
class MoeShape:
    """Routed experts of one rank; `inter` is the width that the rank holds."""

    hidden: int
    inter: int
    experts: int
    top_k: int


@dataclass(frozen=True)
class RowShape:
    """Memory-bound work of one kind, with the widths that a kernel for it needs."""

    operator: str
    bytes_per_row: float
    detail: tuple[tuple[str, int], ...]


@dataclass
class Shapes:
    """Distinct shapes in order of first appearance, and what the profiler has no operation for."""

    gemm: list[GemmShape] = field(default_factory=list)
    attention: list[AttentionShape] = field(default_factory=list)
    moe: list[MoeShape] = field(default_factory=list)
    rows: list[RowShape] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def collect_shapes(models: Sequence[str], ranks: Sequence[int], dtype: str) -> Shapes:
    """Return the shapes of `models` cut over `ranks`; `dtype` is that of plain weights (bf16 or fp16).

    Weights are taken as unquantised: in which type an operator is measured is the plan's business. Cuts that
    a model does not allow are left out, as are attention kinds other than multi-head and grouped-query.

    Raises:
        ConfigError: an unknown model.
    """
    found = Shapes()
    for name in models:
        spec = replace(load_model(name), quantization=None)
        possible = [size for size in ranks if not sharding_issues(spec, size)]
        if not possible:
            raise ConfigError(f"model {name} cannot be cut over any of {', '.join(map(str, ranks))} ranks")
        for size in possible:
            program = operator_program(spec, tensor_parallel_size=size, weight_dtype=_TORCH_DTYPES[dtype])
            _add_program(found, spec, size, program)
    return found


def _add_program(found: Shapes, spec: ModelSpec, ranks: int, program: Iterable[Operator]) -> None:
    itemsize = 2
    for operator in program:
        if isinstance(operator, Gemm):
            _add(found.gemm, GemmShape(operator.k, operator.n, operator.batch))
        elif isinstance(operator, Attention):
            _add_attention(found, spec, operator)
        elif isinstance(operator, FusedMoe):
            shape = MoeShape(operator.hidden, operator.intermediate, operator.num_experts, operator.top_k)
            _add(found.moe, shape)
        elif isinstance(operator, Elementwise):
            row = _row_shape(spec, ranks, operator)
            if row is not None:
                _add(found.rows, row)
    for width in dict.fromkeys(shape.k for shape in found.gemm if shape.batch == 1):
        scales = 4.0 * -(-width // 128)
        bytes_per_row = float(width * itemsize + width + scales)
        _add(found.rows, RowShape("quant_fp8", bytes_per_row, (("features", width),)))


def _add_attention(found: Shapes, spec: ModelSpec, operator: Attention) -> None:
    if operator.qk_dim != operator.v_dim or operator.phase != "both":
        text = f"{spec.name}: {operator.name} (latent or sparse attention has no operation here)"
        _add(found.left_out, text)
        return
    shape = AttentionShape(
        operator.heads,
        operator.kv_heads,
        operator.qk_dim,
        operator.v_dim,
        operator.kv_bytes_per_token,
        operator.window or 0,
    )
    _add(found.attention, shape)


def _row_shape(spec: ModelSpec, ranks: int, operator: Elementwise) -> RowShape | None:
    """Return memory-bound work that the profiler has an operation for, None for the rest."""
    attention = next(
        (g.attention for g in spec.layers if isinstance(g.attention, GroupedQueryAttention)), None
    )
    moe = next((g.feed_forward for g in spec.layers if isinstance(g.feed_forward, MixtureOfExperts)), None)
    detail: dict[str, int]
    if operator.name in ("rms_norm", "fused_add_rms_norm"):
        kind, fused = "rms_norm", operator.name == "fused_add_rms_norm"
        detail = {"hidden": spec.hidden_size, "residual": int(fused)}
    elif operator.name == "rotary_embedding" and attention is not None:
        kind = "rope"
        detail = {
            "heads": attention.num_heads // ranks + max(1, attention.num_kv_heads // ranks),
            "rotary": attention.rotary_dim,
        }
    elif operator.name == "activation":
        kind, detail = "activation", {"width": int(operator.bytes_per_row) // (3 * 2)}
    elif operator.name == "kv_cache_write" and attention is not None:
        kind = "kv_write"
        detail = {"width": max(1, attention.num_kv_heads // ranks) * attention.head_dim}
    elif operator.name == "embedding":
        kind = "embedding"
        detail = {"hidden": spec.hidden_size, "vocab": -(-spec.vocab_size // ranks)}
    elif operator.name == "router.topk" and moe is not None:
        kind, detail = "moe_gating", {"experts": moe.num_experts, "top_k": moe.top_k}
    elif operator.name == "sampler":
        kind, detail = "sampler", {"vocab": spec.vocab_size}
    else:
        return None
    return RowShape(kind, operator.bytes_per_row, tuple(detail.items()))


def _add(shapes: list[S], shape: S) -> None:
    if shape not in shapes:
        shapes.append(shape)
