"""Prefill and decode apart, beside measured runs: the errors of today, loosely (`docs/validation-pdd.md`)."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import frontier

BENCHES = Path(__file__).parents[2] / "benches"
if not BENCHES.is_dir():
    pytest.skip("benches/ is not beside the tests: they run from an installed wheel", allow_module_level=True)
sys.path.insert(0, str(BENCHES))

from pdd_measured import llama_figures, means, simulate, spearman  # noqa: E402
from pdd_points import (  # noqa: E402
    C1,
    C3,
    UPSTREAM_FIT,
    Left,
    Point,
    dstack_points,
    silicon_points,
    two_kinds,
)

DATA = Path(__file__).parent / "measured"


def errors(
    theirs: dict[str, np.ndarray], ours: dict[str, np.ndarray]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return errors of the means, and correlations over requests."""
    mean = {key: float(ours[key].mean() / theirs[key].mean() - 1) for key in theirs}
    return mean, {key: float(np.corrcoef(ours[key], theirs[key])[0, 1]) for key in theirs}


def test_llama_1p1d_request_by_request() -> None:
    alone, _ = errors(*llama_figures(DATA / "h200_e2e" / C1, None)[:2])
    apart, follow = errors(*llama_figures(DATA / "h200_e2e" / C3, {"mode": "buffer"})[:2])
    assert abs(apart["tpot_ms"]) < 0.12
    assert abs(apart["e2e_ms"]) < 0.11
    assert -0.20 < apart["ttft_ms"] < 0.0
    assert abs(apart["gap_ms"]) < 0.15
    assert follow["tpot_ms"] > 0.97
    assert follow["e2e_ms"] > 0.97
    # What is wrong with decoding is wrong on one GPU too: prefill and decode apart add nothing to it.
    assert abs(apart["tpot_ms"] - alone["tpot_ms"]) < 0.02


def test_transfer_constants_of_others_explain_the_gap() -> None:
    """One decode step, half of another to wait for, and a transfer lie between the prompt and the token."""
    theirs, ours, _ = llama_figures(DATA / "h200_e2e" / C3, UPSTREAM_FIT)
    assert ours["gap_ms"].mean() == pytest.approx(theirs["gap_ms"].mean(), rel=0.05)
    transfer_ms = 0.664 + 2048 * 32 * 2 * 4096 * 2 / 263.5e9 * 1e3
    steps = (ours["gap_ms"] - transfer_ms) / ours["tpot_ms"]
    assert 0.9 < steps.min() < steps.max() < 2.2
    assert steps.mean() == pytest.approx(1.5, abs=0.1)


def figures(points: list[Point], metric: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(point.measured[metric], means(point, simulate(point.scenario))[metric]) for point in points]
    theirs, ours = np.array(pairs).T
    return theirs, ours


def test_deepseek_on_h200() -> None:
    points = [
        point
        for point in silicon_points(DATA)
        if isinstance(point, Point) and point.group == "silicon h200 trtllm"
    ]
    assert len(points) == 9
    theirs, ours = figures(points, "tpot_ms")
    assert np.median(np.abs(ours / theirs - 1)) < 0.08
    assert (spearman(theirs.tolist(), ours.tolist()) or 0) > 0.9


def test_ratios_of_workers_with_long_prompts() -> None:
    """gpt-oss with prompts of 32,784 tokens: the best of four ratios is the measured one under every load."""
    points = [point for point in dstack_points(DATA) if point.group == "dstack, ISL 32784"]
    loads: dict[str, list[Point]] = {}
    for point in points:
        assert isinstance(point, Point)
        loads.setdefault(point.workload, []).append(point)
    assert {len(same) for same in loads.values()} == {4}
    tpot = []
    for same in loads.values():
        theirs, ours = figures(same, "tpot_ms")
        tpot += (np.abs(ours / theirs - 1)).tolist()
        gpus = np.array([point.gpus for point in same])
        measured, simulated = figures(same, "output_tok_s")
        assert np.argmax(measured / gpus) == np.argmax(simulated / gpus)
    assert np.median(tpot) < 0.15


def test_every_row_is_simulated_or_left_out_with_a_reason() -> None:
    runs = list(dstack_points(DATA))
    # 44 of the 56 runs are simulated twice, as their prompts may have been in the cache.
    assert [isinstance(run, Left) for run in runs].count(True) == 1
    assert len(runs) == 1 + 12 + 2 * 44
    rows = list(silicon_points(DATA))
    assert len(rows) == 133
    left = [row for row in rows if isinstance(row, Left)]
    assert len(left) == 85
    assert all(row.reason for row in left)


@pytest.mark.parametrize(("mean", "limit"), [(62.18, 128), (697.0, 2048), (11955.0, 32784)])
def test_output_lengths_have_the_published_mean(mean: float, limit: int) -> None:
    workload: dict[str, Any] = {
        "synthetic": {
            "arrivals": {"closed_loop": {"concurrency": 8}},
            "num_requests": 4000,
            "prompt_tokens": 16,
            "output_tokens": two_kinds(mean, limit),
        }
    }
    engine = {"step_time": {"linear": {"per_step": "1ms"}}}
    scenario = {"model": "llama-3.1-8b", "hardware": "h100", "engine": engine, "workload": workload}
    drawn = frontier.simulate(frontier.Scenario.from_dict(scenario)).columns.requests["output_tokens"]
    assert drawn.mean() == pytest.approx(mean, rel=0.05)
    assert drawn.max() <= limit
