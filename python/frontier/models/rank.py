"""What all parts of an operator program share: one rank's types and sizes, and its linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from frontier.models.layout import Group, Layout
from frontier.models.operators import Collective, CollectiveKind, Elementwise, Gemm, Operator, Rows
from frontier.models.sharding import SequenceStyle, sequence_style
from frontier.models.spec import ModelSpec
from frontier.models.weights import Storage, WeightTensor

PLAN_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
"""Names of arithmetic types in the plan."""

ELEMENTWISE_FAMILIES = {
    "embedding": "embedding",
    "fused_add_rms_norm": "rms_norm",
    "rms_norm": "rms_norm",
    "qk_norm": "rms_norm",
    "query_norm": "rms_norm",
    "latent_norm": "rms_norm",
    "rotary_embedding": "rope",
    "kv_cache_write": "kv_write",
    "quant_fp8": "quant_fp8",
    "activation": "activation",
    "shared_experts.activation": "activation",
    "router.topk": "moe_gating",
    "sampler": "sampler",
}
"""Families of memory-bound operators by name; others have none."""


@dataclass(frozen=True, slots=True)
class Rank:
    """One rank of a model; but for the layers of its pipeline stage, all ranks are equal.

    Attributes:
        spec: the model.
        layout: how it is spread.
        dtype: type of plain weights and activations, as in `bfloat16`.
        kv_dtype: resolved type of the KV cache.
    """

    spec: ModelSpec
    layout: Layout
    dtype: str
    kv_dtype: str

    @property
    def tensor_parallel_size(self) -> int:
        """Ranks that share every layer."""
        return self.layout.tensor_parallel_size

    @property
    def sequence_style(self) -> SequenceStyle | None:
        """How tokens are divided among tensor parallel ranks around the experts."""
        return sequence_style(self.spec, self.layout)

    @property
    def hidden_bytes(self) -> int:
        """Bytes of one row of hidden states."""
        return self.spec.hidden_size * self.itemsize

    @property
    def itemsize(self) -> int:
        """Bytes of a plain element."""
        return 4 if self.dtype == "float32" else 2

    @property
    def plain(self) -> Storage:
        """How weights that are never quantised are kept."""
        return Storage("plain", self.itemsize)

    @property
    def plan_dtype(self) -> str:
        """Arithmetic on plain weights."""
        return PLAN_DTYPES[self.dtype]

    @property
    def is_fp8(self) -> bool:
        """Whether linear layers are in fp8."""
        return self.spec.quantization is not None and self.spec.quantization.method == "fp8_block"

    @property
    def linear_storage(self) -> Storage:
        """How the weights of linear layers (but router, LM head and the like) are kept."""
        if self.spec.quantization is None or not self.is_fp8:
            return self.plain
        return Storage("fp8_block", 1, self.spec.quantization.block)

    @property
    def expert_storage(self) -> Storage:
        """How the weights of routed experts are kept."""
        if self.spec.quantization is not None and self.spec.quantization.method == "mxfp4":
            return Storage("mxfp4", 1, self.spec.quantization.block)
        return self.linear_storage

    def shard(self, size: int) -> int:
        """Return a rank's part of a size that is divisible."""
        return size // self.tensor_parallel_size

    def vector(self, name: str, size: int, *, storage: Storage | None = None) -> WeightTensor:
        """Return a bias, norm weight or the like."""
        return WeightTensor(name, size, 1, storage or self.plain)

    def elementwise(
        self,
        name: str,
        count: int,
        component: str,
        elements: float,
        *,
        weights: Sequence[WeightTensor] = (),
        extra_bytes: float = 0.0,
        rows: Rows = "tokens",
    ) -> Elementwise:
        """Return memory-bound work that touches `elements` plain elements and `extra_bytes` per row."""
        return Elementwise(
            name=name,
            count=count,
            component=component,
            weights=tuple(weights),
            bytes_per_row=float(elements * self.itemsize + extra_bytes),
            rows=rows,
            family=ELEMENTWISE_FAMILIES.get(name, ""),
        )

    def linear(
        self,
        name: str,
        count: int,
        component: str,
        k: int,
        outputs: Sequence[tuple[str, int]],
        *,
        bias: bool = False,
        quantised: bool = True,
        weights: Sequence[WeightTensor] = (),
        rows: Rows = "tokens",
    ) -> list[Operator]:
        """Return a linear layer with the fused `outputs` (tensor name, features), and what precedes it.

        In fp8 the input is quantised per token and 128 features first (one byte and a 32-bit scale each).
        Extra `weights` are owned as well.
        """
        storage = self.linear_storage if quantised else self.plain
        tensors = [WeightTensor(f"{tensor}.weight", n, k, storage) for tensor, n in outputs]
        n = sum(features for _, features in outputs)
        in_fp8 = storage.kind == "fp8_block"
        activation = (k + n * self.itemsize) / (k + n) if in_fp8 else float(self.itemsize)
        biases = [self.vector(f"{tensor}.bias", features) for tensor, features in outputs] if bias else []
        gemm = Gemm(
            name=name,
            count=count,
            component=component,
            weights=(*tensors, *biases, *weights),
            k=k,
            n=n,
            dtype="fp8" if in_fp8 else self.plan_dtype,
            weight_bytes_per_element=sum(tensor.bytes for tensor in tensors) / (k * n),
            activation_bytes=activation,
            rows=rows,
        )
        return [self.quantise(count, k, rows=rows), gemm] if in_fp8 else [gemm]

    def quantise(self, count: int, features: int, *, rows: Rows = "tokens") -> Elementwise:
        """Return the quantisation of rows of `features` activations to fp8."""
        scales = 4.0 * -(-features // self.linear_storage.block[1])
        return self.elementwise(
            "quant_fp8", count, "quantisation", features, extra_bytes=features + scales, rows=rows
        )

    def all_reduce(self, name: str, count: int, bytes_per_row: float) -> list[Operator]:
        """Return a sum over the tensor parallel ranks; nothing where there is one."""
        return self.collective("all_reduce", name, count, bytes_per_row)

    def collective(
        self,
        kind: CollectiveKind,
        name: str,
        count: int,
        bytes_per_row: float,
        *,
        group: Group | None = None,
        rows: Rows = "tokens",
    ) -> list[Operator]:
        """Return a collective over `group`, or the tensor parallel ranks; nothing where it has one rank."""
        group = group or self.layout.tensor_group
        if group.ranks == 1:
            return []
        return [
            Collective(
                kind=kind,
                name=f"{kind}.{name}",
                count=count,
                bytes_per_row=float(bytes_per_row),
                ranks=group.ranks,
                nodes=group.nodes,
                rows=rows,
                family=kind,
            )
        ]
