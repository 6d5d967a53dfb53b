"""The choice of the next points, against the rule worked out by hand."""

import numpy as np
import pytest
from fake_device import exact_seconds

from frontier.profiler.adaptive import (
    FLOOR,
    choose,
    choose_places,
    coordinates,
    fitted_bound,
    leave_one_out,
    log_ratios,
)
from frontier.profiler.families import CELLS, Request
from frontier.profiler.grid import Grid
from frontier.profiler.shapes import collect_shapes


def column(*values):
    return np.array(values, dtype=np.float64)[:, None]


def test_leave_one_out_by_hand():
    # Neighbours of 0: at 1 (weight 1) and 3 (weight 1/9); of 1: 0 (1) and 3 (1/4); of 3: 0 (1/9) and 1 (1/4).
    y = np.array([0.0, 1.0, 5.0])
    expected = [
        abs(0 - (1 * 1 + 5 / 9) / (1 + 1 / 9)),
        abs(1 - (0 * 1 + 5 / 4) / (1 + 1 / 4)),
        abs(5 - (0 / 9 + 1 / 4) / (1 / 9 + 1 / 4)),
    ]
    assert leave_one_out(column(0, 1, 3), y) == pytest.approx(expected, rel=1e-9)
    assert leave_one_out(column(2), np.array([7.0])) == [0.0]


def test_only_four_nearest_count():
    y = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 1e9])
    residuals = leave_one_out(column(0, 1, 2, 3, 4, 1000), y)
    assert residuals[2] == pytest.approx(0.0, abs=1e-9)
    assert residuals[0] == pytest.approx((1 + 2 / 4 + 3 / 9 + 4 / 16) / (1 + 1 / 4 + 1 / 9 + 1 / 16))


def test_without_residuals_the_widest_gap_is_halved():
    chosen = choose_places(column(0, 10), np.zeros(2), column(1, 2, 5, 8, 9), 3)
    # 5 is farthest; then 2 and 8 are 2 and 2 from data; the first of equals comes first.
    assert chosen == [2, 1, 3]


def test_a_rough_region_outweighs_a_wider_gap():
    known, residuals = column(0, 8, 100, 104), np.array([0.0, 0.0, 1.0, 1.0])
    candidates = column(4, 102)
    distance = {0: 4.0, 1: 2.0}
    near = [[4, 4, 96, 100], [102, 94, 2, 2]]
    worth = []
    for index, row in enumerate(near):
        weights = 1 / np.array(row, dtype=float) ** 2
        worth.append(distance[index] * (FLOOR + (weights * residuals).sum() / weights.sum()))
    assert worth[1] > worth[0]
    assert choose_places(known, residuals, candidates, 2) == [1, 0]
    assert choose_places(known, np.zeros(4), candidates, 2) == [0, 1]


def test_never_chooses_twice_nor_more_than_there_are():
    chosen = choose_places(column(0), np.zeros(1), column(0, 0, 1), 10)
    assert sorted(chosen) == [0, 1, 2]
    assert chosen[0] == 2


def test_bound_is_the_best_rates_seen():
    flops, moved = np.array([8.0, 2.0, 0.0]), np.array([1.0, 6.0, 3.0])
    assert fitted_bound(flops, moved, np.array([2.0, 2.0, 1.0])) == (4.0, 3.0, 1.0)
    assert fitted_bound(np.zeros(1), np.ones(1), np.ones(1)) == (np.inf, 1.0, 1.0)


@pytest.fixture(scope="module")
def gemms():
    request = Request(collect_shapes(("qwen3-0.6b",), (1,), "bf16"), Grid(), "bf16", 0)
    return [point for _, point in CELLS["gemm"](request)]


def test_chooses_where_the_kernel_behaves_unevenly(gemms):
    """A kernel that is slow by turns in one range of rows is measured there, and hardly elsewhere."""
    shape = [
        p
        for p in gemms
        if p.columns["n"] == gemms[0].columns["n"] and p.columns["k"] == gemms[0].columns["k"]
    ]
    measured, candidates = shape[::2], shape[1::2]
    rough = [p for p in measured if 64 <= p.columns["rows"] <= 512]
    seconds = [
        exact_seconds(p) * (1 + (p in rough) * (rough.index(p) % 2 if p in rough else 0)) for p in measured
    ]
    chosen = choose(measured, seconds, candidates, 4, seed=0)
    assert sum(40 <= p.columns["rows"] <= 600 for p in chosen) >= 3


def test_choice_is_deterministic_and_among_candidates(gemms):
    measured, candidates = gemms[::5], [p for i, p in enumerate(gemms) if i % 5]
    seconds = [exact_seconds(p) for p in measured]
    first = choose(measured, seconds, candidates, 16, seed=0)
    assert [p.key for p in first] == [p.key for p in choose(measured, seconds, candidates, 16, seed=0)]
    assert len({p.key for p in first}) == 16
    assert {p.key for p in first} <= {p.key for p in candidates}
    assert choose(measured, seconds, [], 16, seed=0) == []


def test_places_are_logarithms_and_kinds_lie_apart(gemms):
    one, two = (next(p for p in gemms if p.columns["rows"] == rows) for rows in (1, 3072))
    places = coordinates([one, two])
    assert np.abs(places[0] - places[1]).sum() == pytest.approx(np.log2(3073) - 1)
    assert log_ratios([one], [1.0])[0] == pytest.approx(-np.log(2))  # bound of itself and as much launch
