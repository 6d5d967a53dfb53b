"""Operators of a forward pass and the weights they own; `to_plan` gives the plan's `OperatorSpec`.

Every weight tensor belongs to exactly one operator, so that parameter counts, weight bytes and the work of a
step come from the same list.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Rows = Literal["tokens", "seqs"]
Phase = Literal["both", "prefill", "decode"]

COMPONENTS = (
    "embedding",
    "attention",
    "dense_ffn",
    "routed_experts",
    "shared_experts",
    "router",
    "norm",
    "lm_head",
)
"""Names under which parameters are counted."""


@dataclass(frozen=True, slots=True)
class Storage:
    """How the elements of a weight are kept.

    `plain` elements take `itemsize` bytes. `fp8_block` elements take one byte, and every block (rows x
    columns) one 32-bit scale. `mxfp4` elements take half a byte, and every 32 along a row one byte of scale.
    """

    kind: Literal["plain", "fp8_block", "mxfp4"]
    itemsize: int = 2
    block: tuple[int, int] = (1, 1)

    def tensor_bytes(self, rows: int, columns: int) -> int:
        """Return the bytes of a tensor, scales included."""
        if self.kind == "plain":
            return rows * columns * self.itemsize
        if self.kind == "fp8_block":
            return rows * columns + 4 * self.scales(rows, columns)
        return math.ceil(rows * columns / 2) + self.scales(rows, columns)

    def scales(self, rows: int, columns: int) -> int:
        """Return the number of scales of a tensor."""
        if self.kind == "plain":
            return 0
        return math.ceil(rows / self.block[0]) * math.ceil(columns / self.block[1])


@dataclass(frozen=True, slots=True)
class WeightTensor:
    """One weight of one instance of an operator: output features x input features (vectors: features x 1).

    `copies` tensors of this shape exist (experts). `derived` tensors are made from others when the model
    loads: they take memory and are no parameters.
    """

    name: str
    rows: int
    columns: int
    storage: Storage
    copies: int = 1
    derived: bool = False

    @property
    def elements(self) -> int:
        """Parameters; 0 for derived tensors."""
        return 0 if self.derived else self.copies * self.rows * self.columns

    @property
    def bytes(self) -> int:
        """Bytes in GPU memory, scales included."""
        return self.copies * self.storage.tensor_bytes(self.rows, self.columns)

    @property
    def scales(self) -> int:
        """Number of quantisation scales."""
        return 0 if self.derived else self.copies * self.storage.scales(self.rows, self.columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """An operator that runs `count` times per step on one rank, each time with weights of its own.

    `active_share` is the share of the weights that one token meets (routed experts: top_k / experts).
    """

    name: str
    count: int
    component: str
    weights: tuple[WeightTensor, ...] = ()
    active_share: tuple[int, int] = (1, 1)

    @property
    def weight_elements(self) -> int:
        """Parameters that this operator owns on this rank, all `count` instances together."""
        return self.count * sum(tensor.elements for tensor in self.weights)

    @property
    def weight_bytes(self) -> int:
        """Bytes that these weights take in GPU memory, scales and derived copies included."""
        return self.count * sum(tensor.bytes for tensor in self.weights)

    @property
    def weight_scales(self) -> int:
        """Quantisation scales of these weights."""
        return self.count * sum(tensor.scales for tensor in self.weights)

    @property
    def active_elements(self) -> int:
        """Parameters that one token meets."""
        numerator, denominator = self.active_share
        return self.weight_elements * numerator // denominator

    def to_plan(self) -> dict[str, Any]:
        """Return the operator as the plan's `OperatorSpec` (rust/frontier-core/src/plan/step_time.rs)."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeOperator(Operator):
    """An operator with arithmetic to count.

    `model_share` is the share of its FLOPs that no other rank repeats (1 / ranks for work that every rank
    does whole), so that FLOPs summed over ranks are the model's.
    """

    model_share: float = 1.0

    @property
    def flops_scale(self) -> float:
        """What its FLOPs are proportional to, whatever the batch."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemm(ComputeOperator):
    """`[rows, k] x [k, n]`, `batch` independent products in one launch; `dtype` as the plan names it."""

    k: int
    n: int
    dtype: str
    weight_bytes_per_element: float
    activation_bytes: float
    rows: Rows = "tokens"
    batch: int = 1

    @property
    def flops_scale(self) -> float:
        """Multiplications per row."""
        return float(self.k * self.n * self.batch)

    def to_plan(self) -> dict[str, Any]:
        """Return the plan's `gemm`."""
        return {
            "op": "gemm",
            "name": self.name,
            "count": self.count,
            "model_share": self.model_share,
            "rows": self.rows,
            "k": self.k,
            "n": self.n,
            "batch": self.batch,
            "dtype": self.dtype,
            "weight_bytes": self.weight_bytes_per_element,
            "activation_bytes": self.activation_bytes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedGemm(ComputeOperator):
    """Products of each token with `top_k` of `experts`."""

    experts: int
    top_k: float
    k: int
    n: int
    dtype: str
    weight_bytes_per_element: float
    activation_bytes: float

    @property
    def flops_scale(self) -> float:
        """Multiplications per token."""
        return self.top_k * self.k * self.n

    def to_plan(self) -> dict[str, Any]:
        """Return the plan's `grouped_gemm`."""
        return {
            "op": "grouped_gemm",
            "name": self.name,
            "count": self.count,
            "model_share": self.model_share,
            "experts": self.experts,
            "top_k": self.top_k,
            "k": self.k,
            "n": self.n,
            "dtype": self.dtype,
            "weight_bytes": self.weight_bytes_per_element,
            "activation_bytes": self.activation_bytes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention(ComputeOperator):
    """Scaled dot-product attention over the paged KV cache.

    `kv_heads` is the number of heads of keys and values that are streamed apart; 1 where all query heads read
    one latent vector.
    """

    heads: int
    kv_heads: int
    qk_dim: int
    v_dim: int
    kv_bytes_per_token: float
    dtype: str
    activation_bytes: float
    phase: Phase = "both"
    window: int | None = None

    @property
    def flops_scale(self) -> float:
        """Multiplications per query-key pair."""
        return float(self.heads * (self.qk_dim + self.v_dim))

    def to_plan(self) -> dict[str, Any]:
        """Return the plan's `attention`."""
        return {
            "op": "attention",
            "name": self.name,
            "count": self.count,
            "model_share": self.model_share,
            "phase": self.phase,
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "qk_dim": self.qk_dim,
            "v_dim": self.v_dim,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "window": self.window,
            "dtype": self.dtype,
            "activation_bytes": self.activation_bytes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Elementwise(Operator):
    """Memory-bound work: `bytes_per_row` bytes read and written per row."""

    bytes_per_row: float
    rows: Rows = "tokens"

    def to_plan(self) -> dict[str, Any]:
        """Return the plan's `elementwise`."""
        return {
            "op": "elementwise",
            "name": self.name,
            "count": self.count,
            "rows": self.rows,
            "bytes_per_row": self.bytes_per_row,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective(Operator):
    """A collective among `ranks` ranks: a sum, or a gather (`bytes_per_row` then is the gathered total)."""

    op: Literal["all_reduce", "all_gather"]
    bytes_per_row: float
    ranks: int
    rows: Rows = "tokens"
    component: str = field(default="communication")

    def to_plan(self) -> dict[str, Any]:
        """Return the plan's `all_reduce` or `all_gather`."""
        return {
            "op": self.op,
            "name": self.name,
            "count": self.count,
            "rows": self.rows,
            "bytes_per_row": self.bytes_per_row,
            "ranks": self.ranks,
        }


def merge_operators(operators: Iterable[Operator]) -> list[Operator]:
    """Merge operators that are equal but for `count`, keeping the order of first appearance."""
    counts: dict[Operator, int] = {}
    for operator in operators:
        alone = replace(operator, count=1)
        counts[alone] = counts.get(alone, 0) + operator.count
    return [replace(operator, count=count) for operator, count in counts.items()]
