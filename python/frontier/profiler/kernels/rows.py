"""Memory-bound operators of PyTorch's own operations: where engines fuse, PyTorch launches several.

The names of the kernels say that they are PyTorch's, so that nobody takes them for an engine's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from frontier.profiler.device import PointRefusedError
from frontier.profiler.kernels.bench import Bench, Launches, Run
from frontier.profiler.points import Point

_GROUP: Final = 128
_FP8_MOST: Final = 448.0


def rms_norm(bench: Bench, point: Point) -> Run:
    """RMS norm; with the residual sum before it, both results written."""
    rows, hidden = point.integer("rows"), point.more("hidden")
    x, weight = bench.normal(rows, hidden, dtype=point.dtype), bench.normal(hidden, dtype=point.dtype)
    norm = bench.torch.nn.functional.rms_norm
    if not point.more("residual"):
        return lambda: norm(x, (hidden,), weight, 1e-6)
    residual = bench.normal(rows, hidden, dtype=point.dtype)
    total = bench.torch.empty_like(x)

    def run() -> object:
        bench.torch.add(x, residual, out=total)
        return norm(total, (hidden,), weight, 1e-6)

    return run


def rope(bench: Bench, point: Point) -> Run:
    """Rotary embedding of queries and keys, halves turned against each other."""
    rows, heads, width = point.integer("rows"), point.more("heads"), point.more("rotary")
    x = bench.normal(rows, heads, width, dtype=point.dtype)
    cos, sin = (bench.normal(rows, 1, width // 2, dtype=point.dtype) for _ in range(2))
    out = bench.torch.empty_like(x)
    half = width // 2

    def run() -> object:
        a, b = x[..., :half], x[..., half:]
        bench.torch.sub(a * cos, b * sin, out=out[..., :half])
        bench.torch.add(b * cos, a * sin, out=out[..., half:])
        return out

    return run


def activation(bench: Bench, point: Point) -> Run:
    """SiLU of the gate times up."""
    width = point.more("width")
    x = bench.normal(point.integer("rows"), 2 * width, dtype=point.dtype)
    silu = bench.torch.nn.functional.silu
    return lambda: silu(x[:, :width]) * x[:, width:]


def kv_write(bench: Bench, point: Point) -> Run:
    """Keys and values to slots of the cache in random order."""
    rows, width = point.integer("rows"), point.more("width")
    slots = max(4096, 2 * rows)
    cache = bench.torch.zeros(slots, 2 * width, device=bench.place, dtype=bench.dtype(point.dtype))
    new = bench.normal(rows, 2 * width, dtype=point.dtype)
    slot = bench.torch.randperm(slots, device=bench.place)[:rows]
    return lambda: cache.index_copy_(0, slot, new)


def embedding(bench: Bench, point: Point) -> Run:
    """Rows of the embedding table."""
    vocab = point.more("vocab")
    table = bench.normal(vocab, point.more("hidden"), dtype=point.dtype)
    ids = bench.torch.randint(0, vocab, (point.integer("rows"),), device=bench.place)
    look_up = bench.torch.nn.functional.embedding
    return lambda: look_up(ids, table)


def quant_fp8(bench: Bench, point: Point) -> Run:
    """Quantisation to fp8 with one scale per token and 128 features."""
    rows, features = point.integer("rows"), point.more("features")
    if features % _GROUP:
        raise PointRefusedError(f"{features} features are no multiple of the group of {_GROUP}")
    x = bench.normal(rows, features // _GROUP, _GROUP, dtype="bf16")
    fp8 = bench.dtype("fp8")

    def run() -> object:
        scale = x.abs().amax(dim=-1, keepdim=True).float().clamp_(min=1e-10).div_(_FP8_MOST)
        return (x / scale).to(fp8), scale

    return run


def moe_gating(bench: Bench, point: Point) -> Run:
    """Softmax over experts and the choice of the best."""
    logits = bench.normal(point.integer("rows"), point.more("experts"), dtype=point.dtype)
    top_k = point.more("top_k")
    return lambda: bench.torch.topk(bench.torch.softmax(logits, -1, dtype=bench.torch.float32), top_k)


def sampler(bench: Bench, point: Point) -> Run:
    """Temperature, softmax, and a draw by exponential noise, in 32 bits."""
    torch = bench.torch
    logits = bench.normal(point.integer("rows"), point.more("vocab"), dtype=point.dtype)

    def run() -> object:
        shares = torch.softmax(logits.float().div_(0.8), dim=-1)
        return shares.div_(torch.empty_like(shares).exponential_()).argmax(dim=-1)

    return run


OPERATIONS: Final[dict[str, Callable[[Bench, Point], Run]]] = {
    "rms_norm": rms_norm,
    "rope": rope,
    "activation": activation,
    "kv_write": kv_write,
    "embedding": embedding,
    "quant_fp8": quant_fp8,
    "moe_gating": moe_gating,
    "sampler": sampler,
}


def build_rows(bench: Bench, point: Point, copies: int) -> Launches:
    """Return a memory-bound operator; all its operands rotate."""
    build = OPERATIONS[point.operator]
    fused = "add_" if point.operator == "rms_norm" and point.more("residual") else ""
    return Launches(f"torch_{fused}{point.operator}", [build(bench, point) for _ in range(copies)])
