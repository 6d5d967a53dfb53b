"""Suites of made-up measurements: what is compared, left out and written."""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from frontier import validation
from frontier.cli import main
from frontier.errors import ConfigError, FrontierError
from frontier.results import Result
from frontier.validation import Case, LeftOut, Outcome, StepCase, Suite

LINEAR = {"linear": {"per_step": "1ms", "per_prefill_token": "10us"}}


def scenario(output_tokens: int, **engine: Any) -> dict[str, Any]:
    return {
        "model": "llama-3.1-8b",
        "hardware": "h100",
        "engine": {"step_time": LINEAR, "async_scheduling": False, **engine},
        "workload": {
            "synthetic": {
                "arrivals": "burst",
                "num_requests": 1,
                "prompt_tokens": 100,
                "output_tokens": output_tokens,
            }
        },
    }


def read(result: Result) -> Mapping[str, float]:
    return {"e2e_mean_ms": result.summary().mean_e2el_s * 1e3}


def cases(_data: Path, _scratch: Path) -> Iterator[Case | LeftOut]:
    # A prefill of 2 ms, then a millisecond for each further token.
    yield Case(
        "short",
        "five",
        scenario(5),
        {"e2e_mean_ms": 6.0},
        read,
        choice="one",
        others={"X": {"e2e_mean_ms": 9}},
    )
    yield Case("long", "ten", scenario(10), {"e2e_mean_ms": 10.0}, read, choice="one", facts={"tokens": 10.0})
    yield Case("long", "never", scenario(10, max_num_seqs=0), {"e2e_mean_ms": 1.0}, read)
    yield LeftOut("long", "eleven", "nobody measured it well")


SUITE = Suite("made-up", "two requests", "nobody", ("table.csv",), cases)


def test_measured_and_simulated_stand_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "table.csv").touch()
    report = validation.evaluate(SUITE, tmp_path)
    first, second = report.points.rows(named=True)
    assert (first["group"], first["case"], first["metric"]) == ("short", "five", "e2e_mean_ms")
    assert first["simulated"] == pytest.approx(6.0)
    assert first["error"] == pytest.approx(0.0)
    assert first["X_error"] == pytest.approx(0.5)
    assert second["error"] == pytest.approx(0.1)
    assert (second["X_error"], second["tokens"]) == (None, 10.0)
    assert [one.name for one in report.left_out] == ["never", "eleven"]
    assert report.left_out[0].reason.startswith("refused: engine.max_num_seqs")
    groups = {row["group"]: row for row in report.groups.rows(named=True)}
    assert groups["all"]["mean"] == pytest.approx(0.05)
    assert (groups["all"]["pairs"], groups["all"]["ordered"]) == (1, 1.0)


def test_a_change_is_made_to_every_case(tmp_path: Path) -> None:
    (tmp_path / "table.csv").touch()
    slower = {"linear": {"per_step": "2ms", "per_prefill_token": "10us"}}
    report = validation.evaluate(
        SUITE,
        tmp_path,
        change=lambda case: {**case.scenario, "engine": {**case.scenario["engine"], "step_time": slower}},
    )
    assert report.points["simulated"].to_list() == pytest.approx([11.0, 21.0])


def steps(_data: Path, _scratch: Path) -> Iterator[StepCase | Case]:
    def price() -> Outcome:
        rows = [{"seconds": 3.0, "provenance": "measured"}, {"seconds": 1.0, "provenance": "extrapolated"}]
        return Outcome.of({"output_tok_s_gpu": 90.0}, rows, {"bound_by": "link"})

    def fails() -> Outcome:
        raise FrontierError("too large")

    yield StepCase("steps", "one", {"output_tok_s_gpu": 100.0}, price, facts={"gpus": 8})
    yield Case("runs", "five", scenario(5), {"e2e_mean_ms": 6.0}, read)
    yield StepCase("steps", "two", {"output_tok_s_gpu": 100.0}, fails)


STEPS = Suite("steps", "a step", "nobody", (), steps)


def test_steps_are_priced_beside_runs_and_need_no_folder() -> None:
    report = validation.evaluate(STEPS)
    step, run = report.points.rows(named=True)
    assert (step["case"], step["metric"]) == ("one", "output_tok_s_gpu")
    assert (step["bound_by"], step["gpus"]) == ("link", 8)
    assert step["error"] == pytest.approx(-0.1)
    assert [step[f"share_{name}"] for name in ("measured", "interpolated", "extrapolated")] == [0.75, 0, 0.25]
    assert (run["case"], run["bound_by"]) == ("five", None)
    assert run["simulated"] == pytest.approx(6.0)
    assert [(one.name, one.reason) for one in report.left_out] == [("two", "failed: too large")]


def test_steps_cannot_be_changed() -> None:
    with pytest.raises(FrontierError, match="'steps: one' of suite steps is a step"):
        validation.evaluate(STEPS, change=lambda case: case.scenario)


def test_reports_are_written_in_four_forms(tmp_path: Path) -> None:
    (tmp_path / "table.csv").touch()
    report = validation.evaluate(SUITE, tmp_path)
    paths = {path.name: path for path in report.write(tmp_path / "out")}
    with paths["points.csv"].open(newline="") as lines:
        assert [row["case"] for row in csv.DictReader(lines)] == ["five", "ten"]
    document = json.loads(paths["report.json"].read_text())
    assert [row["group"] for row in document["groups"]] == ["short", "long", "all"]
    text = paths["report.md"].read_text()
    assert "| long | ten | e2e_mean_ms | 10 | 11 | +10.0% |" in text
    assert "- 1: nobody measured it well" in text


def test_what_is_missing_or_unknown_is_said(tmp_path: Path) -> None:
    with pytest.raises(FrontierError, match=r"needs table\.csv; .* does not have"):
        validation.evaluate(SUITE, tmp_path)
    with pytest.raises(FrontierError, match=r"needs table\.csv; no folder"):
        validation.evaluate(SUITE)
    (tmp_path / "table.csv").touch()
    twice = replace(SUITE, cases=lambda *_: [*cases(*_)][:1] * 2)
    with pytest.raises(FrontierError, match="two cases 'short: five'"):
        validation.evaluate(twice, tmp_path)
    with pytest.raises(ConfigError, match="vllm-replay"):
        validation.suite("vllm-repla")


def test_the_command_lists_suites_and_skips_what_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["validate"])
    assert ended.value.code == 0
    assert "vllm-replay" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["validate", "--suite", "vllm-replay", "--data", str(tmp_path)])
    assert "skipped vllm-replay" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["validate", "--suite", "vllm-replay"])
    assert "in the folder of --data" in " ".join(capsys.readouterr().out.split())


def test_the_command_runs_a_suite_that_carries_its_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(validation.SUITES, "steps", STEPS)
    with pytest.raises(SystemExit) as ended:
        main(["validate", "--suite", "steps", "--json"])
    assert ended.value.code == 0
    (document,) = json.loads(capsys.readouterr().out)["suites"]
    assert [row["case"] for row in document["points"]] == ["one", "five"]


def test_every_suite_says_what_it_is(tmp_path: Path) -> None:
    for name, suite in validation.SUITES.items():
        assert name == suite.name
        assert suite.files or list(suite.cases(tmp_path, tmp_path))
        assert suite.title
        assert suite.source
