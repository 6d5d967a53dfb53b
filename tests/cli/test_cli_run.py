"""`frontier run`: output, options, exit codes."""

import json
import os
import signal
import subprocess
import sys

import pytest

import frontier
from frontier.errors import DeadlockError, EngineFailureError, InvariantError, LivelockError


def joined(text):
    return " ".join(text.split())


def test_prints_figures_verdict_attribution_and_label(cli, small):
    result = cli("run", small)
    assert result.exit_code == 0
    assert result.stderr == ""
    text = joined(result.stdout)
    for expected in (
        "60 requests completed",
        "step time: roofline",
        "TTFT",
        "mean TTFT goes to cpu",
        "mean E2EL goes to",
        "saturation: stable",
        "SLO attainment",
    ):
        assert expected in text
    assert "\x1b" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_json_is_one_document_with_the_figures_of_the_api(cli, small):
    result = cli("run", small, "--json")
    assert result.exit_code == 0
    assert result.stderr == ""
    document = json.loads(result.stdout)
    expected = frontier.simulate(frontier.load(small))
    assert document["digest"] == expected.digest
    assert document["step_time"] == document["summary"]["step_time"] == "roofline"
    assert document["summary"] == json.loads(json.dumps(expected.summary().to_dict()))
    assert document["attribution"]["e2el"]["mean_s"] == expected.attribution("e2el").mean_s
    assert frontier.Scenario.from_dict(document["scenario"]) == frontier.load(small)
    assert document["saved"] is None


def test_set_changes_the_scenario(cli, small):
    arguments = ("--set", "cluster.replicas=2", "--set", "workload.synthetic.num_requests=51", "--json")
    document = json.loads(cli("run", small, *arguments).stdout)
    assert document["totals"]["replicas"] == 2
    assert document["summary"]["completed"] == 51


def test_linear_step_time_is_labelled(cli, small):
    result = cli("run", small, "--set", "engine.step_time.linear.per_step=5ms")
    assert "step time: linear" in joined(result.stdout)
    assert "roofline" not in result.stdout


def test_warmup_and_cooldown_bound_the_window(cli, small):
    document = json.loads(cli("run", small, "--warmup", "1s", "--cooldown", "10%", "--json").stdout)
    summary = document["summary"]
    end_s = document["totals"]["end_ns"] / 1e9
    assert summary["window_start_s"] == 1.0
    assert summary["window_end_s"] == pytest.approx(0.9 * end_s)
    assert document["scenario"]["objectives"]["window"] == {"warmup": "1s", "cooldown": "10%"}


def test_warmup_without_a_unit_is_an_invalid_scenario(cli, small):
    result = cli("run", small, "--warmup", "10")
    assert result.exit_code == 3
    assert "objectives.window.warmup: was '10', needs a unit" in result.stderr


def test_save_then_overwrite(cli, small, tmp_path):
    target = tmp_path / "result"
    result = cli("run", small, "--save", target)
    assert result.exit_code == 0
    assert result.stdout.endswith(f"saved to {target}\n")
    assert frontier.Result.load(target).summary().completed == 60

    refused = cli("run", small, "--save", target)
    assert refused.exit_code == 2
    assert "--overwrite" in refused.stderr
    changed = ("--set", "workload.synthetic.num_requests=51")
    document = json.loads(cli("run", small, *changed, "--save", target, "--overwrite", "--json").stdout)
    assert document["saved"] == str(target)
    assert frontier.Result.load(target).summary().completed == 51


def test_save_is_refused_before_the_run(cli, small, tmp_path, monkeypatch):
    monkeypatch.setattr("frontier.simulate", lambda *_args, **_kwargs: pytest.fail("it ran"))
    result = cli("run", small, "--save", tmp_path / "absent" / "result")
    assert result.exit_code == 2
    assert "absent does not exist" in result.stderr
    assert cli("run", small, "--overwrite").exit_code == 2


def test_figures_are_shown_even_if_they_cannot_be_saved(cli, small, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("not a result")
    result = cli("run", small, "--save", tmp_path / "mine", "--overwrite", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["summary"]["completed"] == 60
    assert json.loads(result.stderr)["error"]["exit_code"] == 1
    assert (tmp_path / "mine" / "notes.txt").read_text() == "not a result"


def test_quiet_prints_nothing(cli, small):
    result = cli("run", small, "--quiet")
    assert (result.exit_code, result.output) == (0, "")


def test_relative_paths_start_at_the_scenario(cli, small):
    (small.parent / "trace.csv").write_text(
        "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,10,3\n0.5,20,4\n"
    )
    text = small.read_text("utf-8")
    small.write_text(text[: text.index("workload:")] + "workload: {trace: trace.csv}\n")
    document = json.loads(cli("run", small, "--json").stdout)
    assert document["summary"]["total_output_tokens"] == 7


def test_bad_rows_stop_the_run_or_are_counted(cli, small):
    trace = small.parent / "trace.csv"
    trace.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,10,3\n0.5,many,4\n1.0,20,5\n")
    arguments = ("run", small, "--set", f"workload.trace.path={trace}", "--json")
    result = cli(*arguments)
    assert result.exit_code == 3
    assert result.stdout == ""
    [issue] = json.loads(result.stderr)["error"]["issues"]
    assert (issue["line"], issue["path"], issue["value"]) == (3, "num_prefill_tokens", "many")

    skipped = json.loads(cli(*arguments, "--on-bad-row", "skip").stdout)
    assert skipped["summary"]["completed"] == 2
    assert any("skipped 1" in warning for warning in skipped["summary"]["warnings"])
    assert cli("run", small, "--on-bad-row", "skip").exit_code == 2  # no trace to skip rows of


def test_all_problems_are_listed_one_per_line(cli, small):
    small.write_text(small.read_text("utf-8").replace("qwen3-0.6b", "qwen3-06b").replace("20/s", "fast"))
    result = cli("run", small, "--set", "engine.block_size=0")
    assert result.exit_code == 3
    assert result.stdout == ""
    head, *issues = result.stderr.splitlines()
    assert head == f"error: {small}: 3 problems"
    by_path = {issue.removeprefix("  - ").partition(":")[0]: issue for issue in issues}
    assert len(issues) == len(by_path) == 3
    assert any("line 2: model:" in issue and "did you mean 'qwen3-0.6b'?" in issue for issue in issues)
    assert any("engine.block_size" in issue for issue in issues)
    assert any("arrivals.constant.rate" in issue and "'fast'" in issue for issue in issues)


def test_json_errors_carry_the_issues(cli, small):
    result = cli("run", small, "--set", "engine.max_num_seq=4", "--json")
    assert result.exit_code == 3
    assert result.stdout == ""
    error = json.loads(result.stderr)["error"]
    assert (error["type"], error["exit_code"]) == ("ConfigError", 3)
    [issue] = error["issues"]
    assert (issue["path"], issue["value"], issue["nearest"]) == ("engine.max_num_seq", 4, "max_num_seqs")
    assert "max_num_seqs" in issue["allowed"]


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("model: [", ()),
        ("model: 5\nmodel: 6", ()),
        (None, ("--set", "engine")),
        (None, ("--set", "engine.nothing=1")),
        (None, ("--set", "seed=[")),
        (None, ("--set", "seed=-1")),
        (None, ("--warmup", "10")),
        (None, ("--set", "model=llama-3.1-405b")),
    ],
)
@pytest.mark.parametrize("command", ["run", "check"])
def test_errors_name_the_file(cli, small, command, text, options):
    if text is not None:
        small.write_text(text)
    if command == "check" and "--warmup" in options:
        options = ("--set", "objectives.window.warmup='10'")
    plain = cli(command, small, *options)
    assert plain.stderr.startswith(f"error: {small}: ")
    error = json.loads(cli(command, small, *options, "--json").stderr)["error"]
    assert error["source"] == str(small)


def test_values_that_json_lacks_are_told_as_text(cli, small):
    result = cli("run", small, "--set", "engine.watermark=.nan", "--json")
    assert result.exit_code == 3
    assert json.loads(result.stderr)["error"]["issues"][0]["value"] == "nan"


def test_what_does_not_fit_has_its_own_code(cli, small):
    arguments = ("run", small, "--set", "model=llama-3.1-405b")
    result = cli(*arguments)
    assert result.exit_code == 4
    assert "hardware.gpu" in result.stderr
    error = json.loads(cli(*arguments, "--json").stderr)["error"]
    assert (error["type"], error["exit_code"]) == ("DoesNotFitError", 4)

    also_wrong = cli(*arguments, "--set", "cluster.replicas=0")
    assert also_wrong.exit_code == 3


@pytest.mark.parametrize("error", [DeadlockError, EngineFailureError, LivelockError, InvariantError])
def test_a_run_that_cannot_end_has_code_1(cli, small, monkeypatch, error):
    def fail(*_args, **_kwargs):
        raise error("request 3 waits for ever")

    monkeypatch.setattr("frontier.simulate", fail)
    result = cli("run", small)
    assert (result.exit_code, result.stderr) == (1, "error: request 3 waits for ever\n")
    document = json.loads(cli("run", small, "--json").stderr)
    assert document["error"]["type"] == error.__name__


def test_keyboard_interrupt_has_code_130(cli, small, monkeypatch):
    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("frontier.simulate", interrupt)
    result = cli("run", small)
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
def test_ctrl_c_ends_a_long_run(small):
    many = "workload.synthetic.num_requests=20000000"
    # The signal is to meet the simulation and not the imports, so it waits for the first report of progress.
    program = (
        "import sys, frontier\n"
        "from frontier.cli import main\n"
        "real = frontier.simulate\n"
        "def told(scenario, progress=None):\n"
        "    return real(scenario, progress=lambda _: print('running', flush=True))\n"
        "frontier.simulate = told\n"
        "main()\n"
    )
    command = [sys.executable, "-c", program, "run", str(small), "--set", many, "--set", "output.steps=false"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, errors) == (130, "interrupted\n")


def test_a_run_of_several_models_has_figures_of_each(cli):
    arguments = ("run", "two-models", "--set", "workload.synthetic.num_requests=100")
    figures = json.loads(cli(*arguments, "--json").stdout)["summary"]["by_model"]
    assert set(figures) == {"llama-3.1-8b", "llama-3.1-70b"}
    assert figures["llama-3.1-70b"]["median_tpot_s"] > figures["llama-3.1-8b"]["median_tpot_s"]
    text = cli(*arguments).stdout
    assert "TTFT, llama-3.1-70b" in text
    assert "Requests, llama-3.1-8b" in text
