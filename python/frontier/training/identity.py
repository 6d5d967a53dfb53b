"""The identity of a predictor: everything that makes two measured times incomparable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from frontier.errors import ConfigError, Issue, nearest_name

Fact = str | int | float

ATTENTION = ("prefill_attention", "decode_attention", "decode_skew", "mixed_attention")
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv")
EXCHANGES = ("moe_dispatch", "moe_combine")
ELEMENTWISE = (
    "rms_norm",
    "rope",
    "activation",
    "kv_write",
    "embedding",
    "quant_fp8",
    "moe_gating",
    "moe_permute",
    "sampler",
)
OPERATORS = ("gemm", *ATTENTION, "fused_moe", *ELEMENTWISE, *COLLECTIVES, *EXCHANGES)
MEASUREMENTS = ("cuda_graph", "kernel", "event")
DTYPES = ("bf16", "fp16", "fp8", "fp8_block", "int8", "int4", "mxfp4", "nvfp4", "fp32")


@dataclass(frozen=True, order=True)
class Identity:
    """What one predictor is about; rows of different identities are never pooled.

    Attributes:
        gpu: name of a GPU preset (`frontier.hardware.gpu_names()`).
        backend: engine or library that launched the kernel ("vllm", "sglang", "trtllm", "nccl", ...).
        version: its version, as its publisher writes it.
        kernel: the kernel or implementation, as its publisher names it.
        measurement: "cuda_graph" (replayed graph, kernels only), "kernel" (kernel times of a profiler) or
            "event" (CUDA events around an eager launch: the launch is included).
        operator: one of `OPERATORS`.
        dtype: plan name of the arithmetic or, for weight-only schemes, of the weights.
        detail: further facts that set rows apart, as sorted (name, value) pairs; a mapping is accepted.
    """

    gpu: str
    backend: str
    version: str
    kernel: str
    measurement: str
    operator: str
    dtype: str
    detail: tuple[tuple[str, Fact], ...] = ()

    def __post_init__(self) -> None:
        """Check the closed vocabularies.

        Raises:
            ConfigError: naming the field, the value and what is allowed.
        """
        pairs: Iterable[tuple[str, Fact]] = (
            self.detail.items() if isinstance(self.detail, Mapping) else self.detail
        )
        object.__setattr__(self, "detail", tuple(sorted(pairs)))
        issues = [
            Issue(f"identity.{name}", value, f"{value!r} is not known", allowed, nearest_name(value, allowed))
            for name, value, allowed in (
                ("measurement", self.measurement, MEASUREMENTS),
                ("operator", self.operator, OPERATORS),
                ("dtype", self.dtype, DTYPES),
            )
            if value not in allowed
        ]
        issues += [
            Issue(f"identity.{name}", getattr(self, name), "must be a text that is not empty")
            for name in ("gpu", "backend", "version", "kernel")
            if not isinstance(getattr(self, name), str) or not getattr(self, name)
        ]
        if issues:
            raise ConfigError(issues)

    @property
    def facts(self) -> dict[str, Fact]:
        """Return `detail` as a dictionary."""
        return dict(self.detail)

    def __str__(self) -> str:
        """Return the identity as one line."""
        head = f"{self.gpu}/{self.backend}-{self.version}/{self.kernel}/{self.measurement}"
        tail = "".join(f" {name}={value}" for name, value in self.detail)
        return f"{head}/{self.operator}/{self.dtype}{tail}"
