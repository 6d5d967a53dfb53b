"""Energy from idle and peak power: closed form on a queue simulated by hand."""

import pytest
from fifo import ACTIVE_S_PER_STEP, Ask, S, facts, fifo, run

import frontier
from frontier.errors import ConfigError
from frontier.power import GpuPower, power_of
from frontier.results import Result

POWER = {"idle_power_w": 100.0, "peak_power_w": 700.0}


def test_energy_is_idle_power_and_what_activity_adds() -> None:
    summary = run([Ask(0, 5), Ask(0, 5)], facts(**POWER)).summary()
    gpu_seconds, active_s = 4 * summary.duration, 10 * ACTIVE_S_PER_STEP
    energy_j = 100.0 * gpu_seconds + 600.0 * active_s
    assert summary.energy_j == pytest.approx(energy_j, rel=1e-12)
    assert summary.energy_per_output_token_j == pytest.approx(energy_j / 10, rel=1e-12)
    assert summary.energy_per_token_j == pytest.approx(energy_j / 210, rel=1e-12)
    assert summary.mean_power_per_gpu_w == pytest.approx(100.0 + 600.0 * active_s / gpu_seconds, rel=1e-12)
    assert "Energy (unmeasured" in str(summary)


def test_a_window_counts_its_own_activity() -> None:
    result = run([Ask(0, 1), Ask(S, 1), Ask(2 * S, 1)], facts(**POWER), interval_ns=S // 10)
    late = result.summary(start=0.5)
    assert late.energy_j == pytest.approx(400.0 * late.duration + 600.0 * 2 * ACTIVE_S_PER_STEP, rel=1e-9)


@pytest.mark.parametrize("missing", ["idle_power_w", "peak_power_w"])
def test_without_both_powers_there_is_no_energy(missing: str) -> None:
    summary = run([Ask(0, 5)], facts(**{**POWER, missing: None})).summary()
    names = ("energy_j", "energy_per_output_token_j", "energy_per_token_j", "mean_power_per_gpu_w")
    assert [summary[name] for name in names] == [None] * 4
    assert "Energy" not in str(summary)


def test_linear_step_times_know_no_activity() -> None:
    raw = fifo([Ask(0, 5)], step_time="linear")
    assert Result(raw, facts(step_time="linear", **POWER)).summary().energy_j is None


def test_energy_without_tokens_is_not_per_token() -> None:
    summary = run([Ask(0, 5, reject=1), Ask(S, 5, reject=1)], facts(**POWER)).summary()
    assert summary.energy_j == pytest.approx(400.0 * summary.duration)
    assert summary.energy_per_output_token_j is None
    assert summary.energy_per_token_j is None


def test_power_is_a_line_between_idle_and_peak() -> None:
    power = GpuPower(100.0, 700.0)
    assert [power.mean_w(share) for share in (0.0, 0.5, 1.0)] == [100.0, 400.0, 700.0]
    assert power.energy_j(10.0, 5.0) == power.mean_w(0.5) * 10.0
    assert power_of(None, 700.0) is power_of(100.0, None) is None


@pytest.mark.parametrize(
    ("idle", "peak"), [(-1.0, 5.0), (6.0, 5.0), (float("nan"), 5.0), (1.0, float("inf"))]
)
def test_powers_that_no_gpu_has_are_refused(idle: float, peak: float) -> None:
    with pytest.raises(ConfigError, match="idle_power_w: was"):
        GpuPower(idle, peak)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"idle_power_w": -1.0}, "idle_power_w: was -1.0, must be a power of 0 W or more, or null"),
        ({"peak_power_w": float("inf")}, "peak_power_w: was inf"),
        ({"idle_power_w": 701.0}, r"idle_power_w: was 701, must be at most peak_power_w \(700\)"),
        (
            {"predictors": [{"id": "x"}]},
            r"predictors\.0: was .*must be a mapping with the texts id and sha256",
        ),
    ],
)
def test_bad_facts_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        facts(**{**POWER, **changes})


def test_a_peak_alone_is_enough_idle_power_is_assumed() -> None:
    plain = {
        "model": "qwen3-0.6b",
        "hardware": "rtx-4090",
        "engine": {"max_model_len": 2048, "step_time": "roofline"},
        "workload": {
            "synthetic": {
                "arrivals": {"constant": {"rate": "20/s"}},
                "num_requests": 5,
                "prompt_tokens": 100,
                "output_tokens": 5,
            }
        },
    }
    result = frontier.simulate(plain)
    peak = frontier.load_gpu("rtx-4090").peak_power_w
    assert (result.facts.idle_power_w, result.facts.peak_power_w) == (pytest.approx(peak * 0.1), peak)
    assert result.summary().energy_j > 0
