"""The two entry points: `simulate` and `simulate_many`."""

import concurrent.futures
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import frontier
from frontier.errors import ConfigError, LivelockError

SMALL = {
    "model": "llama-3.1-8b",
    "hardware": "h100",
    "cluster": {"replicas": 2, "router": "least_outstanding"},
    "workload": {
        "synthetic": {
            "arrivals": {"poisson": {"rate": "30/s"}},
            "num_requests": 60,
            "prompt_tokens": {"uniform": {"min": 20, "max": 900}},
            "output_tokens": {"uniform": {"min": 1, "max": 60}},
        }
    },
}

# Hours of simulated work, so that whoever is interrupted is still at it.
ENDLESS = """
import sys
import frontier

scenario = {
    "model": "llama-3.1-8b", "hardware": "h100",
    "workload": {"synthetic": {
        "arrivals": {"closed_loop": {"concurrency": 256}}, "num_requests": 2_000_000,
        "prompt_tokens": 100, "output_tokens": 1000,
    }},
}

def started(*_):
    print("started", flush=True)

if sys.argv[1] == "simulate":
    frontier.simulate(scenario, progress=started)
else:
    started()
    frontier.simulate_many([scenario] * 3, threads=2)
"""


def test_a_scenario_may_be_an_object_its_values_or_a_file(tmp_path):
    scenario = frontier.Scenario.from_dict(SMALL)
    file = tmp_path / "small.yaml"
    file.write_text(scenario.to_yaml())
    digests = {frontier.simulate(form).digest for form in (scenario, SMALL, file, str(file))}
    assert len(digests) == 1


def test_progress_ends_at_the_end():
    seen = []
    result = frontier.simulate(SMALL, progress=seen.append)
    assert seen[-1].ended == seen[-1].total == 60
    assert seen[-1].now_s == pytest.approx(result.totals["end_ns"] / 1e9, abs=1.1)  # a last sample may follow


def test_an_exception_of_the_progress_callback_gets_out():
    def broken(_):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        frontier.simulate(SMALL, progress=broken)


def test_sixteen_scenarios_do_not_depend_on_threads_or_order():
    base = frontier.Scenario.from_dict(SMALL)
    scenarios = [base.with_({"seed": seed, "cluster.replicas": 1 + seed % 3}) for seed in range(16)]
    alone = [frontier.simulate(scenario).digest for scenario in scenarios]
    assert len(set(alone)) == 16
    for threads in (1, 2, 5):
        assert [r.digest for r in frontier.simulate_many(scenarios, threads=threads)] == alone
    backwards = frontier.simulate_many(scenarios[::-1], threads=2)
    assert [r.digest for r in backwards[::-1]] == alone


def test_simulate_may_be_called_from_many_threads():
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(lambda _: frontier.simulate(SMALL).digest, range(16)))
    assert set(digests) == {frontier.simulate(SMALL).digest}


def test_many_scenarios_share_one_copy_of_a_trace(tmp_path):
    file = tmp_path / "trace.csv"
    file.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,10,2\n0.5,20,3\n")
    base = frontier.Scenario.from_dict({**SMALL, "workload": {"trace": str(file)}})
    results = frontier.simulate_many([base.with_({"cluster.replicas": n}) for n in (1, 2)], threads=2)
    assert [len(r.columns.requests["status"]) for r in results] == [2, 2]


def test_no_scenarios_give_no_results():
    assert frontier.simulate_many([]) == []


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"threads": -1}, {"on_error": "ignore"}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        frontier.simulate_many([SMALL], **wrong)


def livelock(tmp_path):
    """Return a scenario in which the real engine would preempt for ever."""
    file = tmp_path / "livelock.csv"
    file.write_text("at,prompt,output,urgency\n0,173,36,1\n0.002,131,33,2\n0.002,204,27,2\n")
    names = {"arrival": "at", "prompt_tokens": "prompt", "output_tokens": "output", "priority": "urgency"}
    return {
        "model": "llama-3.1-8b",
        "hardware": "h100",
        "engine": {
            "num_gpu_blocks_override": 16,
            "max_model_len": 240,
            "max_num_batched_tokens": 64,
            "max_num_seqs": 8,
            "long_prefill_token_threshold": 20,
            "scheduler_reserve_full_isl": False,
            "enable_prefix_caching": False,
            "scheduling_policy": "priority",
            "async_scheduling": False,
            "step_time": {"linear": {"per_step": "1ms", "per_prefill_token": "10us"}},
        },
        "workload": {"trace": {"path": str(file), "format": "plain", "columns": names, "time_unit": "s"}},
    }


def test_errors_are_raised_or_returned_in_their_place(tmp_path):
    broken = {**SMALL, "model": "no-such-model"}
    with pytest.raises(ConfigError, match="no-such-model"):
        frontier.simulate_many([SMALL, broken], threads=2)
    outcomes = frontier.simulate_many(
        [SMALL, broken, livelock(tmp_path), SMALL], threads=2, on_error="return"
    )
    assert isinstance(outcomes[1], ConfigError)
    assert isinstance(outcomes[2], LivelockError)
    assert "endless preemption" in str(outcomes[2])
    assert outcomes[0].digest == outcomes[3].digest


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for a child alone")
@pytest.mark.parametrize("entry", ["simulate", "simulate_many"])
def test_ctrl_c_ends_a_run(entry):
    child = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, entry], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "started\n"
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode != 0
    assert errors.rstrip().endswith("KeyboardInterrupt")


def test_the_readme_runs():
    readme = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
    program = "\n".join(re.findall(r"```python\n(.*?)```", readme, re.S))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "stable" in done.stdout
    assert "prefill" in done.stdout
    assert "measured" in done.stdout


def test_build_info_names_the_version():
    info = frontier.build_info()
    assert info["version"] == frontier.__version__
    assert info["plan_schema_version"] == 2


@pytest.mark.parametrize(
    ("prompt", "engine", "reason"),
    [
        (2000, {"max_model_len": 1024}, "exceeds_max_model_len"),
        (2000, {"max_model_len": 4096, "num_gpu_blocks_override": 270}, None),
        (
            900,
            {"max_model_len": 1024, "enable_chunked_prefill": False, "max_num_scheduled_tokens": 512},
            "exceeds_token_budget",
        ),
    ],
)
def test_requests_that_can_never_fit_are_counted_by_reason(prompt, engine, reason):
    synthetic = {**SMALL["workload"]["synthetic"], "prompt_tokens": prompt}
    result = frontier.simulate({**SMALL, "engine": engine, "workload": {"synthetic": synthetic}})
    expected = {} if reason is None else {reason: 60}
    assert {k: v for k, v in result.summary().rejected_by_reason.items() if v} == expected
    assert result.summary().completed == (60 if reason is None else 0)
