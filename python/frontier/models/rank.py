"""What all parts of an operator program share: one rank's types and sizes, and its linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from frontier.models.layout import Group, Layout
from frontier.models.operators import Collective, CollectiveKind, Elementwise, Gemm, Operator, Rows
from frontier.models.sharding import SequenceStyle, sequence_style
from frontier.models.spec import ModelSpec, Quantization
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
    "query_quant": "quant_fp8",
    "activation": "activation",
    "shared_experts.activation": "activation",
    "router.topk": "moe_gating",
    "sampler": "sampler",
}
"""Families of memory-bound operators by name; others have none."""


_FUSED_WITH_PRODUCER = frozenset(
    {"qkv_proj", "gate_up_proj", "down_proj", "shared_experts.gate_up_proj", "shared_experts.down_proj", "wq"}
)
"""Products whose input comes from a norm or an activation, which quantise per token or with a static scale in
the same kernel: torch.compile does so by itself, and `fuse_norm_quant` and `fuse_act_quant` are on by default
(`vllm/config/compilation.py`, `vllm/compilation/passes/fusion`). What the producer saves by writing 8 bits is
not taken off. Quantisation per group stays a kernel of its own: the profile of vLLM 0.26 with an fp8_block
checkpoint has one launch before each product."""


@dataclass(frozen=True, slots=True)
class Rank:
    """One rank of a model; but for the layers of its pipeline stage, all ranks are equal.

    Attributes:
        spec: the model.
        layout: how it is spread.
        dtype: type of plain weights and activations, as in `bfloat16`.
        kv_dtype: resolved type of the KV cache.
        fp8_attention: queries are quantised and attention over an fp8 cache computes in fp8.
    """

    spec: ModelSpec
    layout: Layout
    dtype: str
    kv_dtype: str
    fp8_attention: bool = False

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
    def attention_dtype(self) -> str:
        """Arithmetic of attention over the cache."""
        return "fp8" if self.fp8_attention and self.kv_dtype == "fp8" else self.plan_dtype

    def quantization_of(self, component: str, *modules: str) -> Quantization | None:
        """Return how the weights of these modules of a component are quantised; None where they are plain.

        `modules` are weight names, of which the last part counts (`shared_experts.gate_proj`).
        """
        found = self.spec.quantization
        names = [module.removesuffix(".k").removesuffix(".v").rsplit(".", 1)[-1] for module in modules]
        if found is None or not all(found.covers(component, name) for name in names):
            return None
        return found

    def storage_of(self, quantization: Quantization | None) -> Storage:
        """Return how weights of this quantisation are kept."""
        if quantization is None:
            return self.plain
        return Storage(quantization.method, 1, quantization.block)

    @property
    def expert_quantization(self) -> Quantization | None:
        """How routed experts are quantised."""
        return self.quantization_of("routed_experts", "experts")

    @property
    def experts_take_fp8(self) -> bool:
        """Whether experts take their tokens in fp8 with a scale per group, so that they travel so."""
        found = self.expert_quantization
        return found is not None and found.method == "fp8_block" and not found.weight_only

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

        Where it multiplies in 8 or 4 bits its input is quantised first, in a kernel of its own unless the
        kernel before does it. With weights alone quantised, the product is one in 16 bits that reads fewer
        bytes. Extra `weights` are owned as well.
        """
        quantization = self.quantization_of(component, *(t for t, _ in outputs)) if quantised else None
        storage = self.storage_of(quantization)
        arithmetic = None if quantization is None else quantization.arithmetic
        tensors = [WeightTensor(f"{tensor}.weight", n, k, storage) for tensor, n in outputs]
        n = sum(features for _, features in outputs)
        activation = float(self.itemsize)
        if arithmetic is not None:
            activation = (k * (0.5 if arithmetic == "fp4" else 1.0) + n * self.itemsize) / (k + n)
        biases = [self.vector(f"{tensor}.bias", features) for tensor, features in outputs] if bias else []
        gemm = Gemm(
            name=name,
            count=count,
            component=component,
            weights=(*tensors, *biases, *weights),
            k=k,
            n=n,
            dtype=arithmetic or self.plan_dtype,
            weight_bytes_per_element=sum(tensor.bytes for tensor in tensors) / (k * n),
            activation_bytes=activation,
            rows=rows,
        )
        if quantization is None or arithmetic is None:
            return [gemm]
        per_token = quantization.method in ("fp8_tensor", "fp8_channel")
        if per_token and name in _FUSED_WITH_PRODUCER:
            return [gemm]
        return [self.quantise(quantization, count, k, rows=rows), gemm]

    def quantise(
        self, quantization: Quantization, count: int, features: int, *, rows: Rows = "tokens"
    ) -> Elementwise:
        """Return the quantisation of rows of `features` activations.

        One byte (half a byte in fp4) per feature is written, and the scales: 32 bits per group of `block`
        features in fp8_block and per token in other 8-bit schemes, 8 bits per group in mxfp8 and nvfp4, none
        where they are static.
        """
        arithmetic = quantization.arithmetic or "fp8"
        group = quantization.block[1] if quantization.method in ("fp8_block", "mxfp8", "nvfp4") else features
        scale = 1.0 if quantization.method in ("mxfp8", "nvfp4") else 4.0
        grouped = quantization.method in ("fp8_block", "mxfp8", "nvfp4")
        scales = 0.0 if quantization.static and not grouped else scale * -(-features // group)
        written = features * (0.5 if arithmetic == "fp4" else 1.0)
        name = "quant_mxfp8" if quantization.method == "mxfp8" else f"quant_{arithmetic}"
        return self.elementwise(
            name, count, "quantisation", features, extra_bytes=written + scales, rows=rows
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
