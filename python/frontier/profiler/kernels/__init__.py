"""Operators as PyTorch and the kernel libraries beside it run them; every launch names its kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from frontier.profiler.kernels.attention import build_attention
from frontier.profiler.kernels.bench import Bench, Launches
from frontier.profiler.kernels.device_facts import build_copy, build_launch
from frontier.profiler.kernels.gemm import build_gemm
from frontier.profiler.kernels.moe import build_moe
from frontier.profiler.kernels.rows import OPERATIONS, build_rows
from frontier.profiler.points import Point

BUILDERS: Final[dict[str, Callable[[Bench, Point, int], Launches]]] = {
    "gemm": build_gemm,
    "prefill_attention": build_attention,
    "decode_attention": build_attention,
    "mixed_attention": build_attention,
    "fused_moe": build_moe,
    **dict.fromkeys(OPERATIONS, build_rows),
    "copy": build_copy,
    "launch": build_launch,
}
"""What makes a point's launches from (bench, point, copies), by operator."""
