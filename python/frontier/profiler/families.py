"""The points of every family: shapes crossed with sizes, each with its level on every axis."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final, TypeVar

from frontier.profiler.grid import Grid
from frontier.profiler.loads import expert_loads, two_modes
from frontier.profiler.order import doubling_levels, halving_levels
from frontier.profiler.points import ITEMSIZE, Point, attention_pairs
from frontier.profiler.shapes import AttentionShape, RowShape, Shapes

T = TypeVar("T")
Cell = tuple[Sequence[int], Point]
Groups = tuple[tuple[int, int, int], ...]

SEQUENCE_OPERATORS: Final = ("sampler",)
_WIDE_OUTPUT: Final = 50_000
_BLOCK: Final = 16


@dataclass(frozen=True)
class Request:
    """What the cells of a family are made from: shapes, sizes, one type of arithmetic, the seed of draws."""

    shapes: Shapes
    grid: Grid
    dtype: str
    seed: int


def _axis(values: Sequence[T], levels: Callable[[int], list[int]] = halving_levels) -> list[tuple[int, T]]:
    return list(zip(levels(len(values)), values, strict=True))


def _crossed(*axes: list[tuple[int, Any]]) -> Iterator[tuple[tuple[int, ...], tuple[Any, ...]]]:
    for cell in product(*axes):
        yield tuple(level for level, _ in cell), tuple(value for _, value in cell)


def gemm_cells(request: Request) -> Iterator[Cell]:
    """Matrix products; in fp8 only plain ones, with inputs of one byte and outputs of two."""
    fp8 = request.dtype == "fp8"
    shapes = [shape for shape in request.shapes.gemm if not (fp8 and shape.batch > 1)]
    for levels, (shape, rows) in _crossed(_axis(shapes, doubling_levels), _axis(request.grid.gemm_rows)):
        if shape.n > _WIDE_OUTPUT and rows > request.grid.head_rows:
            continue
        k, n, batch = shape.k, shape.n, shape.batch
        weight = float(ITEMSIZE[request.dtype])
        activation = (k + 2 * n) / (k + n) if fp8 else weight
        moved = batch * (k * n * weight + rows * (k + n) * activation)
        columns = {
            "rows": rows,
            "k": k,
            "n": n,
            "batch": batch,
            "weight_bytes": weight,
            "activation_bytes": activation,
        }
        flops = 2.0 * rows * k * n * batch
        yield levels, Point("gemm", "gemm", request.dtype, columns, flops, moved, int(moved))


def _attention_point(
    family: str, operator: str, request: Request, shape: AttentionShape, groups: Groups
) -> Point:
    queries = sum(count * query for count, query, _ in groups)
    tokens = sum(count * context for count, _, context in groups)
    # The cache is kept in whole blocks, and its table has an entry for each.
    kept = sum(count * -(-context // _BLOCK) * _BLOCK for count, _, context in groups)
    item = ITEMSIZE[request.dtype]
    activations = queries * shape.heads * (shape.qk_dim + shape.v_dim) * item
    columns = {
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "qk_dim": shape.qk_dim,
        "v_dim": shape.v_dim,
        "kv_bytes_per_token": shape.kv_bytes_per_token,
        "activation_bytes": float(item),
        "window": shape.window,
    }
    return Point(
        family,
        operator,
        request.dtype,
        columns,
        2.0 * attention_pairs(groups, shape.window) * shape.heads * (shape.qk_dim + shape.v_dim),
        tokens * shape.kv_bytes_per_token + activations,
        int(kept * shape.kv_bytes_per_token + activations),
        groups,
    )


def decode_cells(request: Request) -> Iterator[Cell]:
    """Decode batches: even ones to the largest, and batches of two modes of context."""
    grid, shapes = request.grid, _axis(request.shapes.attention, doubling_levels)
    batches: Iterator[tuple[tuple[int, ...], AttentionShape, Groups]] = (
        (levels, shape, ((batch, 1, context),))
        for levels, (shape, batch, context) in _crossed(shapes, _axis(grid.batch), _axis(grid.context))
    )
    skewed: Iterator[tuple[tuple[int, ...], AttentionShape, Groups]] = (
        (levels, shape, two_modes(batch, short, long, share))
        for levels, (shape, batch, short, long, share) in _crossed(
            shapes, _axis(grid.skew_batch), _axis(grid.short), _axis(grid.long), _axis(grid.long_share)
        )
    )
    for source in (batches, skewed):
        for levels, shape, groups in source:
            if sum(count * context for count, _, context in groups) <= grid.context_tokens:
                yield levels, _attention_point("decode", "decode_attention", request, shape, groups)


def prefill_cells(request: Request) -> Iterator[Cell]:
    """Prefill batches: even ones with and without a cached prefix, and drawn ones of unequal requests."""
    grid, shapes = request.grid, _axis(request.shapes.attention, doubling_levels)
    axes = (shapes, _axis(grid.prefill_requests), _axis(grid.query), _axis(grid.prefix))
    for levels, (shape, count, query, prefix) in _crossed(*axes):
        groups: Groups = ((count, query, query + prefix),)
        if count * query <= grid.prefill_tokens and count * (query + prefix) <= grid.context_tokens:
            yield levels, _attention_point("prefill", "prefill_attention", request, shape, groups)
    draws = _axis(range(grid.uneven_draws), doubling_levels)
    for levels, (shape, draw) in _crossed(shapes, draws):
        groups = _uneven(grid, random.Random(f"prefill/{request.seed}/{draw}"))
        yield levels, _attention_point("prefill", "prefill_attention", request, shape, groups)


def _uneven(grid: Grid, rng: random.Random) -> Groups:
    """Draw requests of log-uniform lengths, one in two with a cached prefix, for a budget of new tokens."""
    least, most = max(2, grid.query[0]), grid.query[-1]
    left = rng.choice([size for size in grid.query if size >= 4 * least] or [most])
    longest_prefix = grid.prefix[-1]
    groups: dict[tuple[int, int], int] = {}
    while left > 1:
        query = min(left, round(least * (left / least) ** rng.random())) if left > least else left
        prefix = round(longest_prefix ** rng.random()) if longest_prefix and rng.random() < 0.5 else 0
        groups[query, query + prefix] = groups.get((query, query + prefix), 0) + 1
        left -= query
    return tuple((count, query, context) for (query, context), count in groups.items())


def mixed_cells(request: Request) -> Iterator[Cell]:
    """Batches of one prefill chunk and decoding requests, attended to in one launch where kernels can."""
    grid = request.grid
    axes = (
        _axis(request.shapes.attention, doubling_levels),
        _axis(grid.mixed_query),
        _axis(grid.mixed_prefix),
        _axis(grid.mixed_batch),
        _axis(grid.mixed_context),
    )
    for levels, (shape, query, prefix, batch, context) in _crossed(*axes):
        groups = ((1, query, query + prefix), (batch, 1, context))
        yield levels, _attention_point("mixed", "mixed_attention", request, shape, groups)


def moe_cells(request: Request) -> Iterator[Cell]:
    """Fused mixture-of-experts layers over balanced, uniform and power-law loads, which are recorded."""
    grid, item = request.grid, float(ITEMSIZE[request.dtype])
    shapes, rows_axis = _axis(request.shapes.moe, doubling_levels), _axis(grid.moe_rows)
    axes = (shapes, rows_axis, _axis(grid.imbalance, doubling_levels), _axis(range(grid.draws)))
    for levels, (shape, rows, imbalance, draw) in _crossed(*axes):
        if imbalance <= 0 and draw > 0:
            continue
        loads = expert_loads(rows, shape.experts, shape.top_k, imbalance, request.seed + draw)
        weights = 3 * shape.hidden * shape.inter * item
        chosen = rows * shape.top_k
        between = chosen * (shape.hidden + 3 * shape.inter + 2 * shape.hidden) * item
        ends = 2 * rows * shape.hidden * item
        columns = {
            "rows": rows,
            "hidden": shape.hidden,
            "inter": shape.inter,
            "experts": shape.experts,
            "top_k": shape.top_k,
            "moe_tp": 1,  # `inter` is what the rank holds
            "moe_ep": 1,
            "weight_bytes": item,
            "activation_bytes": item,
            "gated": 1,
            "imbalance": imbalance,
        }
        yield (
            levels,
            Point(
                "moe",
                "fused_moe",
                request.dtype,
                columns,
                6.0 * chosen * shape.hidden * shape.inter,
                sum(load > 0 for load in loads) * weights + ends,
                int(shape.experts * weights + between + ends),
                expert_loads=loads,
                detail={"seed": request.seed + draw},
            ),
        )


def row_cells(request: Request) -> Iterator[Cell]:
    """Memory-bound operators, each kind with levels of its own so that none waits for another."""
    for operator in dict.fromkeys(shape.operator for shape in request.shapes.rows):
        if (operator == "quant_fp8") != (request.dtype == "fp8"):
            continue
        shapes = [shape for shape in request.shapes.rows if shape.operator == operator]
        grid = request.grid
        sizes = grid.sequence_rows if operator in SEQUENCE_OPERATORS else grid.token_rows
        for levels, (shape, rows) in _crossed(_axis(shapes, doubling_levels), _axis(sizes)):
            yield levels, _row_point(request, shape, rows)


def _row_point(request: Request, shape: RowShape, rows: int) -> Point:
    detail = dict(shape.detail)
    moved = rows * shape.bytes_per_row
    # The tables that are looked up or written to are far larger than what one launch touches.
    table = detail["vocab"] * detail["hidden"] * 2 if shape.operator == "embedding" else 0
    columns = {"rows": rows, "bytes_per_row": shape.bytes_per_row}
    resident = int(2 * moved) + table
    return Point("elementwise", shape.operator, request.dtype, columns, 0.0, moved, resident, detail=detail)


def copy_cells(request: Request) -> Iterator[Cell]:
    """Copies within the device, to it and from it."""
    for levels, (size, way) in _crossed(
        _axis(request.grid.copy_bytes), _axis(("within", "to", "from"), lambda n: [0] * n)
    ):
        columns = {"bytes": size}
        detail = {"direction": way}
        yield levels, Point("copy", "copy", request.dtype, columns, 0.0, 2.0 * size, 2 * size, detail=detail)


def launch_cells(request: Request) -> Iterator[Cell]:
    """Chains of the smallest kernel, launched one by one and replayed as a graph."""
    for levels, (kernels, graph) in _crossed(_axis(request.grid.launches), _axis((0, 1))):
        columns = {"kernels": kernels, "graph": graph}
        yield levels, Point("launch", "launch", request.dtype, columns, 0.0, 0.0, 4096)


CELLS: Final[dict[str, Callable[[Request], Iterator[Cell]]]] = {
    "launch": launch_cells,
    "copy": copy_cells,
    "gemm": gemm_cells,
    "decode": decode_cells,
    "prefill": prefill_cells,
    "moe": moe_cells,
    "elementwise": row_cells,
    "mixed": mixed_cells,
}
