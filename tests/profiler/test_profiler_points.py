"""Points, loads and the order of grids, against direct counts."""

import math
import statistics

import pytest

from frontier.profiler.families import CELLS, Request
from frontier.profiler.grid import FAMILIES, Grid
from frontier.profiler.loads import expert_loads, routing, two_modes
from frontier.profiler.order import coarse_to_fine, doubling_levels, halving_levels
from frontier.profiler.plan import Limits, build_plan
from frontier.profiler.points import Point, attention_pairs
from frontier.profiler.shapes import DEFAULT_MODELS, DEFAULT_RANKS, collect_shapes

ROOMY = Limits(memory_bytes=2**40, launch_s=1e9, flops_per_s=1e15, bytes_per_s=1e12, graphs=True)


@pytest.fixture(scope="module")
def shapes():
    return collect_shapes(("llama-3.1-8b", "qwen3-30b-a3b"), (1, 2), "bf16")


@pytest.mark.parametrize("window", [0, 1, 3, 7, 100])
@pytest.mark.parametrize("groups", [((1, 1, 9),), ((2, 5, 5), (3, 4, 11)), ((1, 7, 7),)])
def test_attention_pairs_equal_a_count_of_the_mask(groups, window):
    seen = sum(
        count * min(key_end, window or key_end)
        for count, query, context in groups
        for key_end in range(context - query + 1, context + 1)
    )
    assert attention_pairs(groups, window) == seen


def test_a_point_is_named_by_what_is_measured():
    columns = {"rows": 4, "bytes_per_row": 8.0}
    point = Point("elementwise", "rope", "bf16", columns, 0.0, 32.0, 64, detail={"heads": 2})
    same = Point("elementwise", "rope", "bf16", {**columns, "rows": 4.0}, 1.0, 1.0, 1, detail={"heads": 2})
    assert point.key == same.key
    assert point.key != Point("elementwise", "rope", "fp16", columns, 0.0, 32.0, 64, detail={"heads": 2}).key
    assert point.key != Point("elementwise", "rope", "bf16", columns, 0.0, 32.0, 64, detail={"heads": 4}).key
    with pytest.raises(AssertionError, match="has columns"):
        Point("elementwise", "rope", "bf16", {"rows": 4}, 0.0, 0.0, 0)


@pytest.mark.parametrize("imbalance", [-1.0, 0.0, 0.6, 1.0, 1.2])
@pytest.mark.parametrize(("rows", "experts", "top_k"), [(1, 8, 2), (7, 8, 8), (33, 128, 8), (500, 16, 1)])
def test_loads_and_routing_agree(rows, experts, top_k, imbalance):
    loads = expert_loads(rows, experts, top_k, imbalance, seed=3)
    assert len(loads) == experts
    assert sum(loads) == rows * top_k
    assert max(loads) <= rows
    chosen = routing(rows, loads, seed=3)
    assert [len(set(one)) for one in chosen] == [top_k] * rows
    assert [sum(expert in one for one in chosen) for expert in range(experts)] == list(loads)


def test_loads_depend_on_the_seed_and_grow_less_even():
    draws = [expert_loads(4096, 64, 8, imbalance, seed=0) for imbalance in (-1.0, 0.0, 1.2)]
    spreads = [statistics.pstdev(loads) for loads in draws]
    assert spreads[0] == 0
    # Independent draws: a binomial law of 4,096 tokens with an eighth each.
    assert spreads[1] == pytest.approx(math.sqrt(4096 * 1 / 8 * 7 / 8), rel=0.3)
    assert spreads[2] > 5 * spreads[1]
    assert draws[2] == expert_loads.__wrapped__(4096, 64, 8, 1.2, seed=0)
    assert draws[2] != expert_loads(4096, 64, 8, 1.2, seed=1)


@pytest.mark.parametrize(("top_k", "imbalance"), [(0, 0.0), (9, 0.0), (2, -0.5)])
def test_impossible_loads_are_refused(top_k, imbalance):
    with pytest.raises(ValueError, match="was"):
        expert_loads(4, 8, top_k, imbalance, seed=0)


def test_two_modes_keep_both():
    assert two_modes(64, 100, 9000, 0.1) == ((6, 1, 9000), (58, 1, 100))
    assert two_modes(4, 100, 9000, 0.0) == ((1, 1, 9000), (3, 1, 100))
    assert two_modes(2, 100, 9000, 1.0) == ((1, 1, 9000), (1, 1, 100))


def test_levels():
    assert halving_levels(5) == [0, 2, 1, 2, 0]
    assert halving_levels(2) == [0, 0]
    assert halving_levels(1) == [0]
    assert doubling_levels(9) == [0, 0, 1, 1, 2, 2, 2, 2, 3]


def test_order_is_by_level_and_drawn_within():
    cells = [((a, b), (a, b, n)) for a in range(3) for b in range(3) for n in range(4)]
    order = coarse_to_fine(cells, seed=0)
    assert [max(a, b) for a, b, _ in order] == sorted(max(a, b) for a, b, _ in order)
    assert order == coarse_to_fine(cells, seed=0)
    assert order != coarse_to_fine(cells, seed=1)
    assert sorted(order) == sorted(coarse_to_fine(cells, seed=1))


def test_shapes_are_those_of_the_programs(shapes):
    gemm = {(shape.k, shape.n) for shape in shapes.gemm}
    assert {(4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096), (4096, 128256), (4096, 14336)} <= gemm
    assert len(gemm) == len(shapes.gemm)
    assert {(s.heads, s.kv_heads, s.kv_bytes_per_token) for s in shapes.attention} == {
        (32, 8, 4096.0),
        (16, 4, 2048.0),
        (32, 4, 2048.0),
        (16, 2, 1024.0),
    }
    assert {(s.hidden, s.inter, s.experts, s.top_k) for s in shapes.moe} == {
        (2048, 768, 128, 8),
        (2048, 384, 128, 8),
    }
    for shape in shapes.rows:
        detail = dict(shape.detail)
        elements = {
            "rms_norm": 2 * detail.get("hidden", 0) * (1 + detail.get("residual", 0)),
            "rope": 2 * detail.get("heads", 0) * detail.get("rotary", 0),
            "activation": 3 * detail.get("width", 0),
            "kv_write": 4 * detail.get("width", 0) + 4,
            "embedding": 2 * detail.get("hidden", 0) + 4,
            "sampler": 21 * detail.get("vocab", 0),
            "moe_gating": detail.get("experts", 0) + 4 * detail.get("top_k", 0),
            "quant_fp8": 1.5 * detail.get("features", 0) + 2 * math.ceil(detail.get("features", 0) / 128),
        }
        assert shape.bytes_per_row == 2 * elements[shape.operator], shape


def test_latent_attention_is_left_out_with_a_note():
    found = collect_shapes(("deepseek-v2-lite",), (1,), "bf16")
    assert not found.attention
    assert any("deepseek-v2-lite" in note for note in found.left_out)
    assert found.moe
    assert found.gemm


def test_work_of_points(shapes):
    request = Request(shapes, Grid(), "bf16", 0)
    gemm = next(p for _, p in CELLS["gemm"](request) if p.columns["rows"] == 64)
    k, n = gemm.columns["k"], gemm.columns["n"]
    assert gemm.flops == 2 * 64 * k * n
    assert gemm.bytes == 2 * (k * n + 64 * (k + n))
    decode = next(p for _, p in CELLS["decode"](request) if p.groups == ((8, 1, 1024),))
    heads, per_token = decode.columns["heads"], decode.columns["kv_bytes_per_token"]
    assert decode.flops == 4 * 8 * 1024 * heads * 128
    assert decode.bytes == 8 * 1024 * per_token + 8 * heads * 256 * 2
    moe = next(p for _, p in CELLS["moe"](request) if p.columns["rows"] == 1)
    assert moe.flops == 6 * 8 * moe.columns["hidden"] * moe.columns["inter"]
    active = sum(load > 0 for load in moe.expert_loads)
    assert active == 8
    assert moe.bytes == (active * 3 * moe.columns["inter"] + 2) * moe.columns["hidden"] * 2


def test_default_plan_is_as_large_as_it_should_be():
    shapes = collect_shapes(DEFAULT_MODELS, DEFAULT_RANKS, "bf16")
    plan = build_plan(shapes, families=FAMILIES, dtypes=("bf16",), limits=ROOMY, seed=0)
    targets = {name: family.target for name, family in plan.families.items()}
    assert targets["gemm"] == 750
    assert targets["decode"] == targets["prefill"] == targets["moe"] == 1500
    assert targets["elementwise"] >= 600
    assert not plan.skipped
    for family in plan.families.values():
        assert len({point.key for point in family.points}) == len(family.points) >= family.target


def test_coarse_part_covers_shapes_and_ends(shapes):
    plan = build_plan(shapes, families=FAMILIES, dtypes=("bf16",), limits=ROOMY, seed=0)
    coarse = {name: family.points[: family.coarse] for name, family in plan.families.items()}
    grid = Grid()
    assert {(p.columns["k"], p.columns["n"]) for p in coarse["gemm"]} == {(s.k, s.n) for s in shapes.gemm}
    assert {p.columns["rows"] for p in coarse["gemm"]} >= {grid.gemm_rows[0], grid.gemm_rows[-1]}
    even = [p.groups[0] for p in coarse["decode"] if len(p.groups) == 1]
    assert max(count for count, _, _ in even) == max(grid.batch)
    assert max(context for _, _, context in even) == max(grid.context)
    assert sum(len(p.groups) == 2 for p in coarse["decode"]) > 50
    prefixes = {context - query for p in coarse["prefill"] for _, query, context in p.groups}
    assert {0, max(grid.prefix)} <= prefixes
    assert any(len(p.groups) > 1 for p in coarse["prefill"])
    assert {p.columns["imbalance"] for p in coarse["moe"]} == set(grid.imbalance)
    first = coarse["elementwise"][:30]
    assert len({p.operator for p in first}) >= 6


def test_uneven_prefills_are_prefills_within_their_budget(shapes):
    request = Request(shapes, Grid(), "bf16", 0)
    uneven = [p for _, p in CELLS["prefill"](request) if len(p.groups) > 1]
    assert uneven
    for point in uneven:
        assert all(1 < query <= context for _, query, context in point.groups)
        assert sum(count * query for count, query, _ in point.groups) <= max(Grid().query)


def test_plan_leaves_out_what_does_not_fit_or_takes_too_long(shapes):
    limits = Limits(memory_bytes=2**30, launch_s=0.01, flops_per_s=1e12, bytes_per_s=1e11, graphs=False)
    plan = build_plan(shapes, families=FAMILIES, dtypes=("bf16",), limits=limits, seed=0)
    assert all(p.resident_bytes <= 2**30 for family in plan.families.values() for p in family.points)
    reasons = {reason.split(":")[0] for _, reason in plan.skipped}
    assert reasons == {"does not fit in memory", "too slow", "a CPU has no graphs to replay"}
    kept = {p.key for family in plan.families.values() for p in family.points}
    assert not kept & {point.key for point, _ in plan.skipped}
    whole = build_plan(shapes, families=FAMILIES, dtypes=("bf16",), limits=ROOMY, seed=0)
    assert sum(len(f.points) for f in whole.families.values()) == len(kept) + len(plan.skipped)


def test_fp8_is_products_and_quantisation(shapes):
    plan = build_plan(shapes, families=FAMILIES, dtypes=("fp8",), limits=ROOMY, seed=0)
    operators = {
        p.operator for name, f in plan.families.items() for p in f.points if name not in ("copy", "launch")
    }
    assert operators == {"gemm", "quant_fp8"}
    gemm = plan.families["gemm"].points[0].columns
    assert gemm["weight_bytes"] == 1
    assert gemm["activation_bytes"] == (gemm["k"] + 2 * gemm["n"]) / (gemm["k"] + gemm["n"])
