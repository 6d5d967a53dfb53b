"""The command line on mutated files: a documented exit code, JSON where asked, never a traceback."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from mutated_scenario_bases import BASES, TRACE_TEXT
from mutated_scenario_cases import cases_of as scenario_cases
from mutated_scenario_cases import with_trace
from mutated_trace_cases import cases_of as trace_cases
from mutated_trace_files import tables
from mutation_outcome import Flaw, outcome_of
from yaml_text import write_yaml

import frontier
from frontier.cli import main
from frontier.errors import ConfigError, FrontierError, WorkloadError

pytestmark = pytest.mark.timeout(120)

PARTS = 5
PER_PART = 24


@pytest.mark.parametrize("part", range(PARTS))
def test_mutated_files_on_the_command_line(part: int, tmp_path: Path) -> None:
    trace = tmp_path / "requests.csv"
    trace.write_text(TRACE_TEXT, "utf-8")
    flaws = []
    for number, (name, plain, data) in enumerate(inputs(part)):
        file = tmp_path / f"{number}.yaml"
        if data is not None:
            path = tmp_path / f"{number}{data[0]}"
            path.write_bytes(data[1])
            plain["workload"]["trace"]["path"] = str(path)
        file.write_text(write_yaml(with_trace(plain, str(trace))), "utf-8")
        try:
            flaws += [f"{name}: {flaw}" for flaw in check_command(file)]
        except Flaw as flaw:
            flaws.append(f"{name}: {flaw}")
    assert not flaws, f"{len(flaws)} flaws:\n" + "\n".join(flaws)


def inputs(part: int) -> list[tuple[str, dict[str, Any], tuple[str, bytes] | None]]:
    """Return (name, scenario, suffix and bytes of its trace) of the commands to run."""
    rng = random.Random(f"commands {part}")
    chosen: list[tuple[str, dict[str, Any], tuple[str, bytes] | None]] = []
    cases = [case for base in BASES for case in scenario_cases(base) if not case.native]
    usual = [case for case in cases if case.expect == "refused"]
    open_ended = [case for case in cases if case.expect == "ends"]
    for case in rng.sample(usual, PER_PART // 3) + rng.sample(open_ended, PER_PART // 6):
        chosen.append((case.name, case.plain, None))
    traces = [case for table in tables() for case in trace_cases(table)]
    for trace in rng.sample(traces, PER_PART // 2):
        plain = {**BASES["trace"], "workload": {"trace": {"path": "", **trace.options}}}
        chosen.append((trace.name, plain, (trace.suffix, trace.data)))
    return chosen


def check_command(file: Path) -> list[str]:
    """Run and check a scenario file; return what is wrong with how the commands end."""
    outcome = outcome_of(lambda: frontier.simulate(file))
    flaws = []
    for command in (
        ["run", str(file), "--json"],
        ["run", str(file), "--quiet"],
        ["check", str(file), "--json"],
    ):
        result = CliRunner().invoke(main, command)
        flaws += [f"{command[0]} {command[2]}: {flaw}" for flaw in flaws_of(result, outcome, command)]
    return flaws


def flaws_of(result: Result, outcome: Any, command: list[str]) -> list[str]:
    """Return what is wrong with how one command ended."""
    found = []
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return [f"{type(result.exception).__name__} escaped: {str(result.exception)[:200]}"]
    if "Traceback" in result.output:
        found.append("a traceback")
    expected = expected_codes(outcome)
    if result.exit_code not in expected:
        found.append(f"exit code {result.exit_code}, must be in {expected}: {result.output[:200]}")
    if command[2] == "--quiet":
        if result.stdout:
            found.append(f"printed {result.stdout[:80]!r}")
        if result.exit_code and not result.stderr.startswith("error: "):
            found.append(f"the error reads {result.stderr[:80]!r}")
        return found
    if result.exit_code == 0:
        document = json.loads(result.stdout, parse_constant=_no_constant)
        if command[0] == "run" and document["digest"] != outcome.digest:
            found.append("another digest than the API's")
    else:
        error = json.loads(result.stderr, parse_constant=_no_constant)["error"]
        if error["exit_code"] != result.exit_code or not error["message"]:
            found.append(f"the error is {error}")
        if isinstance(outcome, ConfigError) and [issue["path"] for issue in error["issues"]] != [
            i.path for i in outcome.issues
        ]:
            found.append(f"other issues than the API's: {error['issues']}")
        if isinstance(outcome, WorkloadError) and error["issues"][0]["line"] != outcome.line:
            found.append(f"another line than the API's: {error['issues']}")
    return found


def expected_codes(outcome: Any) -> tuple[int, ...]:
    if not isinstance(outcome, FrontierError):
        return (0,)
    # 4 where want of memory is the only reason.
    return (
        (3, 4) if isinstance(outcome, ConfigError) else (3,) if isinstance(outcome, WorkloadError) else (0, 1)
    )


def _no_constant(name: str) -> None:
    raise AssertionError(f"the document holds {name}, which is no JSON")


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"], ["run", "nowhere.yaml"], ["run", "/"], ["run", ""], ["run", "\x00"], ["run", "x" * 5000],
        ["rum"], ["run", "chat-poissn"], ["run", "chat-poisson", "--set"],
        ["run", "chat-poisson", "--set", "x"], ["run", "chat-poisson", "--set", "=5"],
        ["run", "chat-poisson", "--set", "engine.max_num_seq=5"],
        ["run", "chat-poisson", "--set", "engine.max_num_seqs=[1"],
        ["run", "chat-poisson", "--set", "engine..x=1"],
        ["run", "chat-poisson", "--set", "workload.synthetic.num_requests=-5"],
        ["run", "chat-poisson", "--warmup", "5"], ["run", "chat-poisson", "--warmup", "101%"],
        ["run", "chat-poisson", "--on-bad-row", "ignore"], ["run", "chat-poisson", "--on-bad-row", "skip"],
        ["run", "chat-poisson", "--save", "/no/such/folder/x"], ["run", "chat-poisson", "--overwrite"],
        ["run", "chat-poisson", "--set", "a.b.c.d.e=" + "[" * 3000], ["check", "nowhere.yaml"],
        ["check", "chat-poisson", "--set", "engine=5"], ["models", "lama"], ["models", "/"], ["gpus", "h1"],
        ["gpus", "/"], ["gpus", "\x00"], ["examples", "x"], ["examples", "../../etc"],
        ["schema", "--out", "/"],
    ],
    ids=lambda arguments: " ".join(arguments)[:40].replace("\x00", "NUL"),
)  # fmt: skip
def test_wrong_arguments(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code in (1, 2, 3)
    assert result.stderr
    assert "Traceback" not in result.output
