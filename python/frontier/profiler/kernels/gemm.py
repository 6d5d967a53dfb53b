"""Matrix products: weights rotate, the input stays, as it would come from the operator before."""

from __future__ import annotations

from functools import partial

from frontier.profiler.device import PointRefusedError
from frontier.profiler.kernels.bench import Bench, Launches
from frontier.profiler.points import Point

_FP8_MULTIPLE = 16


def build_gemm(bench: Bench, point: Point, copies: int) -> Launches:
    """Return products of `torch.nn.functional.linear`, `torch.bmm`, or `torch._scaled_mm` for fp8."""
    if point.dtype == "fp8":
        return _scaled(bench, point, copies)
    rows, k, n, batch = (point.integer(name) for name in ("rows", "k", "n", "batch"))
    torch = bench.torch
    if batch > 1:
        x = bench.normal(batch, rows, k, dtype=point.dtype)
        weights = [bench.normal(batch, k, n, dtype=point.dtype) for _ in range(copies)]
        return Launches("torch_bmm", [partial(torch.bmm, x, w) for w in weights])
    x = bench.normal(rows, k, dtype=point.dtype)
    weights = [bench.normal(n, k, dtype=point.dtype) for _ in range(copies)]
    linear = torch.nn.functional.linear
    return Launches("torch_linear", [partial(linear, x, w) for w in weights])


def _scaled(bench: Bench, point: Point, copies: int) -> Launches:
    rows, k, n = (point.integer(name) for name in ("rows", "k", "n"))
    if k % _FP8_MULTIPLE or n % _FP8_MULTIPLE:
        raise PointRefusedError(f"torch._scaled_mm takes k and n in multiples of {_FP8_MULTIPLE}")
    torch = bench.torch
    x = bench.normal(rows, k, dtype="fp8")
    scale = torch.ones((), device=bench.place, dtype=torch.float32)
    weights = [bench.normal(n, k, dtype="fp8").t() for _ in range(copies)]
    # PyTorch has no public name for it yet.
    multiply = partial(torch._scaled_mm, scale_a=scale, scale_b=scale, out_dtype=bench.dtype("bf16"))
    return Launches("torch_scaled_mm_tensorwise", [partial(multiply, x, w) for w in weights])
