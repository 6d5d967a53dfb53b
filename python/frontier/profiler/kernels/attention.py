"""Attention over ragged batches: over a paged cache where a library has a kernel for it, else PyTorch's.

PyTorch's `scaled_dot_product_attention` takes batches of equal requests over a contiguous cache. Several
groups of equal requests are several launches of it, which the name of the kernel says.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any, Final

from frontier.profiler.device import PointRefusedError
from frontier.profiler.kernels.bench import Bench, Launches, Run
from frontier.profiler.points import Point

VLLM: Final = "vllm_flash_attn"
FLASH: Final = "flash_attn"

_BLOCK: Final = {VLLM: 16, FLASH: 256}
"""Tokens per block of the paged cache: vLLM's default, and the least that flash-attn takes."""


def build_attention(bench: Bench, point: Point, copies: int) -> Launches:
    """Return attention by the first library that works here, else by PyTorch."""
    item = bench.dtype(point.dtype).itemsize
    width = point.integer("kv_heads") * (point.integer("qk_dim") + point.integer("v_dim"))
    if point.columns["kv_bytes_per_token"] != width * item:
        raise PointRefusedError("a KV cache of another type than the arithmetic has no operation here")
    for name in (VLLM, FLASH):
        if name in bench.libraries:
            return Launches(name, [_paged(bench, point, name) for _ in range(copies)])
    if point.columns["window"]:
        raise PointRefusedError("PyTorch has no kernel for a sliding window; install vllm or flash-attn")
    several = len(point.groups) > 1
    name = "torch_sdpa_per_group" if several else "torch_sdpa"
    return Launches(name, [_dense(bench, point) for _ in range(copies)])


def _dense(bench: Bench, point: Point) -> Run:
    """Return PyTorch's attention over one copy of operands, group by group."""
    launches = [_dense_group(bench, point, group) for group in point.groups]

    def run() -> object:
        return [launch() for launch in launches]

    return run if len(launches) > 1 else launches[0]


def _dense_group(bench: Bench, point: Point, group: tuple[int, int, int]) -> Run:
    count, query, context = group
    heads, kv_heads, dim = (point.integer(name) for name in ("heads", "kv_heads", "qk_dim"))
    q = bench.normal(count, heads, query, dim, dtype=point.dtype)
    k = bench.normal(count, kv_heads, context, dim, dtype=point.dtype)
    v = bench.normal(count, kv_heads, context, point.integer("v_dim"), dtype=point.dtype)
    attend = bench.torch.nn.functional.scaled_dot_product_attention
    if query == 1:  # a lone query sees everything
        return lambda: attend(q, k, v, enable_gqa=True)
    if query == context:
        return lambda: attend(q, k, v, is_causal=True, enable_gqa=True)
    if bench.place == "cpu":
        whole = bench.torch.ones(query, context, dtype=bench.torch.bool)
        mask = whole.tril(diagonal=context - query)
    else:  # the form for which PyTorch has kernels that skip what is masked
        mask = importlib.import_module("torch.nn.attention.bias").causal_lower_right(query, context)
    return lambda: attend(q, k, v, attn_mask=mask, enable_gqa=True)


def _paged(bench: Bench, point: Point, name: str) -> Run:
    """Return a library's attention over one paged cache whose blocks lie in random order."""
    torch, block = bench.torch, _BLOCK[name]
    heads, kv_heads, dim = (point.integer(column) for column in ("heads", "kv_heads", "qk_dim"))
    queries = [query for count, query, _ in point.groups for _ in range(count)]
    contexts = [context for count, _, context in point.groups for _ in range(count)]
    blocks = [math.ceil(context / block) for context in contexts]
    cache = [bench.normal(sum(blocks), block, kv_heads, dim, dtype=point.dtype) for _ in range(2)]
    order = torch.randperm(sum(blocks), device=bench.place, dtype=torch.int32)
    table = torch.zeros(len(blocks), max(blocks), device=bench.place, dtype=torch.int32)
    first = 0
    for row, many in enumerate(blocks):
        table[row, :many] = order[first : first + many]
        first += many
    q = bench.normal(sum(queries), heads, dim, dtype=point.dtype)
    window = point.integer("window")
    shared: dict[str, Any] = {
        "cu_seqlens_q": bench.integers(_running(queries)),
        "max_seqlen_q": max(queries),
        "max_seqlen_k": max(contexts),
        "causal": True,
        "block_table": table,
        "window_size": (window - 1, 0) if window else (-1, -1),
    }
    if name == VLLM:
        shared["seqused_k"] = bench.integers(contexts)
    else:
        shared["cu_seqlens_k"] = bench.integers(_running(contexts))
    function: Callable[..., Any] = bench.libraries[name]
    return lambda: function(q, cache[0], cache[1], **shared)


def _running(lengths: list[int]) -> list[int]:
    sums = [0]
    for length in lengths:
        sums.append(sums[-1] + length)
    return sums
