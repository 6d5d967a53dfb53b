"""What all parts of an operator program share: one rank's types and sizes, and its linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from frontier.models.operators import (
    Collective,
    Elementwise,
    Gemm,
    Operator,
    Rows,
    Storage,
    WeightTensor,
)
from frontier.models.spec import ModelSpec

PLAN_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
"""Names of arithmetic types in the plan."""


@dataclass(frozen=True, slots=True)
class Rank:
    """One tensor-parallel rank of a model.

    Attributes:
        spec: the model.
        tensor_parallel_size: ranks.
        dtype: type of plain weights and activations, as in `bfloat16`.
        kv_dtype: resolved type of the KV cache.
    """

    spec: ModelSpec
    tensor_parallel_size: int
    dtype: str
    kv_dtype: str

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
        )
        return [self.quantise(count, k), gemm] if in_fp8 else [gemm]

    def quantise(self, count: int, features: int, *, per_token: int = 1) -> Elementwise:
        """Return the quantisation of `per_token` rows of `features` activations to fp8."""
        block = self.linear_storage.block[1]
        scales = 4.0 * -(-features // block)
        return self.elementwise(
            "quant_fp8",
            count,
            "quantisation",
            per_token * features,
            extra_bytes=per_token * (features + scales),
        )

    def all_reduce(self, name: str, count: int, bytes_per_row: float) -> list[Operator]:
        """Return a sum over all ranks; nothing where there is one."""
        if self.tensor_parallel_size == 1:
            return []
        return [
            Collective(
                op="all_reduce",
                name=f"all_reduce.{name}",
                count=count,
                bytes_per_row=bytes_per_row,
                ranks=self.tensor_parallel_size,
            )
        ]
