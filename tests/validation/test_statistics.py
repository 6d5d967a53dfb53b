"""What errors of cases come to, against values worked out by hand."""

import numpy as np
import pytest

from frontier.validation.statistics import errors_of, spearman


def test_errors_are_relative_to_what_was_measured() -> None:
    found = errors_of([100, 200, 50, 80], [110, 180, 50, 120], ["", "", "", ""])
    assert (found.cases, found.pairs, found.ordered) == (4, 0, None)
    assert found.mean == pytest.approx((0.1 + 0.1 + 0 + 0.5) / 4)
    assert found.median == pytest.approx(0.1)
    assert found.largest == pytest.approx(0.5)
    assert found.bias == pytest.approx((0.1 - 0.1 + 0 + 0.5) / 4)
    assert found.p90 == pytest.approx(np.percentile([0.1, 0.1, 0, 0.5], 90))


def test_pairs_are_alternatives_that_differ_and_draws_do_not_count() -> None:
    measured = [100, 104, 120, 300]
    # Of one choice: 100 and 104 are a draw, 120 differs from both; the fourth is no alternative to them.
    found = errors_of(measured, [100, 130, 120, 1], ["a", "a", "a", "b"])
    assert found.pairs == 2
    assert found.ordered == 0.5
    # Equal simulated values order nothing.
    assert errors_of(measured, [7, 7, 7, 7], ["a"] * 4).ordered == 0.0


def test_ranks_do_not_ask_what_is_better() -> None:
    one, other = np.array([1.0, 2.0, 3.0, 4.0]), np.array([10.0, 30.0, 20.0, 40.0])
    assert spearman(one, other) == pytest.approx(0.8)
    assert spearman(one, -other) == pytest.approx(-0.8)
    assert spearman(np.array([1.0, 1.0, 2.0]), np.array([5.0, 5.0, 9.0])) == pytest.approx(1.0)
    assert spearman(one[:2], other[:2]) is None
    assert spearman(one, np.ones(4)) is None
