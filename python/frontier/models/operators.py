"""Operators of a forward pass and the weights they own; `to_plan` gives the plan's `OperatorSpec`.

Every weight tensor belongs to exactly one operator, so that parameter counts, weight bytes and the work of a
step come from the same list.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from frontier.models.weights import WeightTensor

Rows = Literal["tokens", "seqs", "all_tokens", "sharded_tokens"]
"""What the rows of an operator are: scheduled tokens of the rank's own batch; one row per scheduled request
of it; scheduled tokens of all data parallel ranks together; the rank's share of its own batch's tokens where
these are divided among the tensor parallel ranks, rounded up."""

Phase = Literal["both", "prefill", "decode"]
CollectiveKind = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv"]
ExchangePhase = Literal["dispatch", "combine"]

PredictorRefs = Mapping[str, Mapping[str, Any] | None]
"""The plan's `PredictorRef` (index, unmeasured, calibration) by slot, as in `Operator.predictor_families`."""

NO_PREDICTORS: PredictorRefs = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """An operator that runs `count` times per step on one rank, each time with weights of its own.

    `active_share` is the share of the weights that one token meets (routed experts: top_k / experts).
    `family` names the predictors that can tell its time as a pack's `operator` does; empty where none can.
    """

    name: str
    count: int
    component: str
    weights: tuple[WeightTensor, ...] = ()
    active_share: tuple[int, int] = (1, 1)
    family: str = ""

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

    @property
    def predictor_families(self) -> dict[str, str]:
        """Family of the predictor that suits each slot of the plan's operator."""
        return {"predictor": self.family} if self.family else {}

    def to_plan(self, predictors: PredictorRefs = NO_PREDICTORS) -> dict[str, Any]:
        """Return the operator as the plan's `OperatorSpec` (frontier-core/src/plan/step_time/operators.rs).

        Args:
            predictors: the predictor of each slot; slots left out are priced by their bound.
        """
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
        """What its FLOPs on this rank are proportional to, whatever the batch."""
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
    family: str = "gemm"

    @property
    def flops_scale(self) -> float:
        """Multiplications per row."""
        return float(self.k * self.n * self.batch)

    def to_plan(self, predictors: PredictorRefs = NO_PREDICTORS) -> dict[str, Any]:
        """Return the plan's `gemm`."""
        return {
            "op": "gemm",
            "name": self.name,
            "count": self.count,
            "predictor": predictors.get("predictor"),
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
class FusedMoe(ComputeOperator):
    """The routed experts of a layer: both products, the activation between them and the weighted sum.

    Each row visits `top_k` of `num_experts` experts. This rank holds one in `expert_ranks` of them and of
    their `redundant_experts` copies, `intermediate` wide. The quantisation of activations is part of it.
    `imbalance` says how rows spread over experts: -1 evenly, 0 at random with equal chances, above 0 by a
    power law of that exponent.
    """

    num_experts: int
    top_k: int
    expert_ranks: int
    hidden: int
    intermediate: int
    dtype: str
    weight_bytes_per_element: float
    activation_bytes: float
    rows: Rows = "tokens"
    gated: bool = True
    redundant_experts: int = 0
    imbalance: float = 0.0
    family: str = "fused_moe"

    @property
    def flops_scale(self) -> float:
        """Multiplications per row on this rank, on average."""
        products = 3 if self.gated else 2
        return products * self.top_k * self.hidden * self.intermediate / self.expert_ranks

    def to_plan(self, predictors: PredictorRefs = NO_PREDICTORS) -> dict[str, Any]:
        """Return the plan's `fused_moe`."""
        return {
            "op": "fused_moe",
            "name": self.name,
            "count": self.count,
            "predictor": predictors.get("predictor"),
            "model_share": self.model_share,
            "rows": self.rows,
            "num_experts": self.num_experts,
            "top_k": self.top_k,
            "redundant_experts": self.redundant_experts,
            "expert_ranks": self.expert_ranks,
            "hidden": self.hidden,
            "intermediate": self.intermediate,
            "gated": self.gated,
            "dtype": self.dtype,
            "weight_bytes": self.weight_bytes_per_element,
            "activation_bytes": self.activation_bytes,
            "imbalance": self.imbalance,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention(ComputeOperator):
    """Scaled dot-product attention over the paged KV cache.

    `kv_heads` is the number of heads of keys and values that are streamed apart; 1 where all query heads read
    one latent vector. `mixed_decode_factor` says what decodes cost in a kernel that they share with prefills,
    relative to decodes alone; None for the bound of the whole batch. Where it is not `causal` every token
    sees all of its request, or of its block of `block_tokens`: without a cache, and in no predictor's data.
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
    mixed_decode_factor: float | None = None
    causal: bool = True
    block_tokens: int | None = None
    family: str = "attention"

    @property
    def flops_scale(self) -> float:
        """Multiplications per query-key pair."""
        return float(self.heads * (self.qk_dim + self.v_dim))

    @property
    def predictor_families(self) -> dict[str, str]:
        """Families of the slots `prefill`, `decode`, `skew` and `mixed`, those of the operator's phase."""
        if self.family != "attention":
            return {}
        if self.phase == "prefill":
            return {"prefill": "prefill_attention"}
        decodes = {"decode": "decode_attention", "skew": "decode_skew"}
        if self.phase == "decode":
            return decodes
        return {"prefill": "prefill_attention", **decodes, "mixed": "mixed_attention"}

    def to_plan(self, predictors: PredictorRefs = NO_PREDICTORS) -> dict[str, Any]:
        """Return the plan's `attention`."""
        plan = {
            "op": "attention",
            "name": self.name,
            "count": self.count,
            "predictors": {slot: predictors.get(slot) for slot in ("prefill", "decode", "skew", "mixed")},
            "mixed_decode_factor": self.mixed_decode_factor,
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
        if not self.causal:
            blocks = self.block_tokens
            plan["span"] = {"kind": "request"} if blocks is None else {"kind": "blocks", "tokens": blocks}
        return plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Elementwise(Operator):
    """Memory-bound work: `bytes_per_row` bytes read and written per row."""

    bytes_per_row: float
    rows: Rows = "tokens"

    def to_plan(self, predictors: PredictorRefs = NO_PREDICTORS) -> dict[str, Any]:
        """Return the plan's `elementwise`."""
        return {
            "op": "elementwise",
            "name": self.name,
            "count": self.count,
            "predictor": predictors.get("predictor"),
            "rows": self.rows,
            "bytes_per_row": self.bytes_per_row,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Communication(Operator):
    """What ranks send each other; `nodes` nodes hold `ranks` ranks evenly."""

    ranks: int
    nodes: int
    component: str = "communication"
    rows: Rows = "tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective(Communication):
    """A collective; `bytes_per_row` counts a gather's result, and what goes into a scatter."""

    kind: CollectiveKind
    bytes_per_row: float

    def to_plan(self, predictors: PredictorRefs = NO_PREDICTORS) -> dict[str, Any]:
        """Return the plan's `collective`."""
        return {
            "op": "collective",
            "name": self.name,
            "count": self.count,
            "predictor": predictors.get("predictor"),
            "kind": self.kind,
            "rows": self.rows,
            "bytes_per_row": self.bytes_per_row,
            "ranks": self.ranks,
            "nodes": self.nodes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeExchange(Communication):
    """Tokens travel to the ranks of their experts, or back (DeepEP): once to every rank that holds one.

    `all2all_backend` is the layout's: kernels for few tokens and for many are others.
    """

    phase: ExchangePhase
    all2all_backend: str
    hidden: int
    top_k: int
    num_experts: int
    bytes_per_element: float

    def to_plan(self, predictors: PredictorRefs = NO_PREDICTORS) -> dict[str, Any]:
        """Return the plan's `moe_exchange`."""
        return {
            "op": "moe_exchange",
            "name": self.name,
            "count": self.count,
            "predictor": predictors.get("predictor"),
            "phase": self.phase,
            "rows": self.rows,
            "hidden": self.hidden,
            "top_k": self.top_k,
            "num_experts": self.num_experts,
            "ranks": self.ranks,
            "nodes": self.nodes,
            "bytes_per_element": self.bytes_per_element,
        }


def merge_operators(operators: Iterable[Operator]) -> list[Operator]:
    """Merge operators that are equal but for `count`, keeping the order of first appearance."""
    counts: dict[Operator, int] = {}
    for operator in operators:
        alone = replace(operator, count=1)
        counts[alone] = counts.get(alone, 0) + operator.count
    return [replace(operator, count=count) for operator, count in counts.items()]
