"""Kernel libraries beside PyTorch: used where they are installed and one launch of them succeeds.

A library that is installed and fails is not used, and the profile says so beside its version.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from typing import Any, Final

from frontier.profiler.kernels import attention, moe
from frontier.profiler.kernels.bench import Bench, Launches
from frontier.profiler.points import ATTENTION, FUSED_MOE, Point

_KNOWN: Final = (
    (attention.VLLM, "vllm", "vllm.vllm_flash_attn", "flash_attn_varlen_func"),
    (attention.FLASH, "flash-attn", "flash_attn", "flash_attn_varlen_func"),
    (moe.VLLM, "vllm", "vllm.model_executor.layers.fused_moe", "fused_experts"),
)
"""Name of the kernel, distribution, module, function."""


def find_libraries(bench: Bench) -> dict[str, str | None]:
    """Add to the bench the functions that work; return each library's version, with the failure if any."""
    found: dict[str, str | None] = {}
    for kernel, distribution, module, name in _KNOWN:
        try:
            version = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
        try:
            function = getattr(importlib.import_module(module), name)
            _try(bench, kernel, function)
        except Exception as error:
            found[kernel] = f"{version}, not used: {type(error).__name__}: {str(error)[:200]}"
        else:
            bench.libraries[kernel] = function
            found[kernel] = version
    found["torch_grouped_mm"] = _try_grouped(bench)
    return found


def _try_grouped(bench: Bench) -> str:
    """Let the bench use PyTorch's grouped product where it runs; return what came of it."""
    alone = Bench(bench.torch, bench.place, grouped_mm=True)
    try:
        _launch(alone, moe.build_moe(alone, _small_moe(), 1))
    except Exception as error:
        return f"not used: {type(error).__name__}: {str(error)[:200]}"
    bench.grouped_mm = True
    return "used"


def _try(bench: Bench, kernel: str, function: Callable[..., Any]) -> None:
    """Launch a kernel once on a small problem; raise what it raises."""
    alone = Bench(bench.torch, bench.place, {kernel: function})
    if kernel == moe.VLLM:
        launches = moe.build_moe(alone, _small_moe(), 1)
    else:
        launches = attention.build_attention(alone, _small_attention(), 1)
    _launch(alone, launches)


def _launch(bench: Bench, launches: Launches) -> None:
    launches.runs[0]()
    if bench.place == "cuda":
        bench.torch.cuda.synchronize()


def _small_attention() -> Point:
    columns = dict(zip(ATTENTION, (8.0, 2.0, 128.0, 128.0, 1024.0, 2.0, 0.0), strict=True))
    groups = ((1, 20, 50), (2, 1, 300))
    return Point("mixed", "mixed_attention", "bf16", columns, 0.0, 0.0, 0, groups)


def _small_moe() -> Point:
    columns = dict(zip(FUSED_MOE, (6, 256, 128, 8, 2, 1, 1, 2.0, 2.0, 1, 0.0), strict=True))
    loads = (2, 2, 0, 3, 1, 1, 1, 2)
    return Point("moe", "fused_moe", "bf16", columns, 0.0, 0.0, 0, expert_loads=loads, detail={"seed": 0})
