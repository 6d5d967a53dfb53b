"""A fused mixture-of-experts layer after its router: gate and up, activation, down, weighted sum."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from frontier.profiler.kernels.bench import Bench, Launches, Run
from frontier.profiler.loads import routing
from frontier.profiler.points import Point

VLLM: Final = "vllm_fused_experts"


def build_moe(bench: Bench, point: Point, copies: int) -> Launches:
    """Return the layer by vLLM's fused kernel, PyTorch's grouped product, or a loop over experts.

    The tokens' experts are such that every expert gets exactly the rows that the point says. Weights rotate.
    """
    rows, hidden, inter, experts, top_k = (
        point.integer(name) for name in ("rows", "hidden", "inter", "experts", "top_k")
    )
    chosen = bench.integers(routing(rows, point.expert_loads, point.more("seed")), "int64")
    x = bench.normal(rows, hidden, dtype=point.dtype)
    shares = bench.torch.full((rows, top_k), 1.0 / top_k, device=bench.place, dtype=bench.torch.float32)
    weights = [
        (
            bench.normal(experts, 2 * inter, hidden, dtype=point.dtype, scale=hidden**-0.5),
            bench.normal(experts, hidden, inter, dtype=point.dtype, scale=inter**-0.5),
        )
        for _ in range(copies)
    ]
    if VLLM in bench.libraries:
        fused, ids = bench.libraries[VLLM], chosen.to(bench.torch.int32)
        return Launches(VLLM, [partial(fused, x, *w, shares, ids) for w in weights])
    order = chosen.flatten().argsort(stable=True)
    token = order // top_k
    scale = shares.flatten()[order].to(x.dtype)[:, None]
    if bench.grouped_mm and hidden % 8 == 0 and inter % 8 == 0 and point.dtype == "bf16":
        ends = bench.integers(point.expert_loads).cumsum(0).to(bench.torch.int32)
        return Launches("torch_grouped_mm", [_grouped(bench, x, w, token, scale, ends) for w in weights])
    loop = [_loop(bench, point, x, w, token, scale) for w in weights]
    return Launches("torch_expert_loop", loop)


def _activate(bench: Bench, both: Any) -> Any:
    gate, up = both.chunk(2, dim=-1)
    return bench.torch.nn.functional.silu(gate) * up


def _grouped(bench: Bench, x: Any, w: tuple[Any, Any], token: Any, scale: Any, ends: Any) -> Run:  # noqa: PLR0917
    torch = bench.torch
    multiply = torch._grouped_mm
    first, second = w[0].transpose(-2, -1), w[1].transpose(-2, -1)

    def run() -> object:
        between = _activate(bench, multiply(x[token], first, offs=ends))
        return torch.zeros_like(x).index_add_(0, token, multiply(between, second, offs=ends) * scale)

    return run


def _loop(bench: Bench, point: Point, x: Any, w: tuple[Any, Any], token: Any, scale: Any) -> Run:  # noqa: PLR0917
    linear = bench.torch.nn.functional.linear
    spans = []
    first = 0
    for expert, load in enumerate(point.expert_loads):
        if load:
            spans.append((expert, first, first + load))
        first += load

    def run() -> object:
        out = bench.torch.zeros_like(x)
        for expert, low, high in spans:
            rows = token[low:high]
            between = _activate(bench, linear(x[rows], w[0][expert]))
            out.index_add_(0, rows, linear(between, w[1][expert]) * scale[low:high])
        return out

    return run
