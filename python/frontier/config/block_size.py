"""Tokens per KV block: what vLLM's attention backend prefers, and what it can page by.

Mirrors vLLM 0.32: the order of the backends on each GPU (`vllm/platforms/cuda.py`) and the block sizes of
their kernels (`get_supported_kernel_block_sizes` of each backend in `vllm/v1/attention/backends`). Multiples
of a size that the kernels page by are accepted, as vLLM accepts them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from frontier.errors import Issue

if TYPE_CHECKING:
    from frontier.hardware import GpuSpec
    from frontier.models import ModelSpec


@dataclass(frozen=True, slots=True)
class Paging:
    """What an attention backend pages by.

    Attributes:
        backend: vLLM's name of it.
        default: tokens per block where none are asked for.
        multiples: whether multiples of the default are taken as well.
    """

    backend: str
    default: int
    multiples: bool = True

    def allows(self, block_size: int) -> bool:
        """Return whether the backend takes blocks of this size."""
        return block_size % self.default == 0 if self.multiples else block_size == self.default


_HOPPER: Final = "9."
_BLACKWELL: Final = "10."
_ANY: Final = ""

_TABLE: Final[tuple[tuple[str, str, str, Paging], ...]] = (
    # kind of attention, type of the KV cache, compute capability (all as prefixes): the first that fits
    ("mla_sparse", _ANY, _ANY, Paging("FLASHMLA_SPARSE", 64, multiples=False)),
    ("mla", _ANY, _BLACKWELL, Paging("FLASHINFER_MLA", 32)),
    ("mla", "fp8", _HOPPER, Paging("FLASHMLA", 64)),
    ("mla", _ANY, _HOPPER, Paging("FLASH_ATTN_MLA", 16)),
    ("mla", _ANY, _ANY, Paging("TRITON_MLA", 16)),
    (_ANY, _ANY, _BLACKWELL, Paging("FLASHINFER", 16)),
    (_ANY, _ANY, _HOPPER, Paging("FLASH_ATTN", 16)),
    (_ANY, "fp8", _ANY, Paging("TRITON_ATTN", 16)),
    (_ANY, _ANY, "8.", Paging("FLASH_ATTN", 16)),
    (_ANY, _ANY, "12.", Paging("FLASH_ATTN", 16)),
    (_ANY, _ANY, _ANY, Paging("TRITON_ATTN", 16)),
)


def paging_of(spec: ModelSpec, gpu: GpuSpec, kv_cache_dtype: str) -> Paging:
    """Return what the attention backend of a model on a GPU pages by.

    Raises:
        ConfigError: a `kv_cache_dtype` that the model cannot have.
    """
    from frontier.models.kv import resolve_kv_cache_dtype  # noqa: PLC0415 - keeps `import frontier` light

    dtype = resolve_kv_cache_dtype(spec, kv_cache_dtype)
    capability = gpu.compute_capability or "none"
    kinds = {group.attention.kind for group in spec.layers}
    kind = next((kind for kind in ("mla_sparse", "mla") if kind in kinds), "full")
    return next(
        paging
        for of_kind, of_dtype, of_capability, paging in _TABLE
        if kind.startswith(of_kind) and dtype.startswith(of_dtype) and capability.startswith(of_capability)
    )


def block_size_issues(block_size: int, paging: Paging, *, model: str, gpu: str) -> list[Issue]:
    """Return the issue of a block size that the backend does not page by."""
    if paging.allows(block_size):
        return []
    rule = f"a multiple of {paging.default}" if paging.multiples else f"{paging.default}"
    message = f"was {block_size}, must be {rule}: {paging.backend}, with which vLLM runs {model} on {gpu}, "
    allowed = f"multiples of {paging.default}" if paging.multiples else f"{paging.default}"
    return [Issue("engine.block_size", block_size, f"{message}pages by {paging.default} tokens", (allowed,))]
