"""Every mutated scenario is refused by name, or runs without losing a request."""

from functools import cache
from typing import Any

import pytest
from mutated_scenario_bases import BASES, TRACE_TEXT
from mutated_scenario_cases import Case, cases_of, changed, with_trace
from mutation_outcome import (
    Flaw,
    check_blame,
    check_elsewhere,
    check_line,
    check_run,
    check_words,
    outcome_of,
)
from scenario_extremes import extremes
from scenario_variants import contradictions, native, same
from yaml_text import lines_of, write_yaml

import frontier
from frontier.errors import ConfigError
from frontier.results import Result

pytestmark = pytest.mark.timeout(60)

PARTS = 4
RELATED = {
    "model": ("engine", "hardware"),
    "hardware": ("engine",),
    "engine": ("hardware", "cluster"),
    "workload": ("cluster",),
    "cluster": ("workload",),
}
"""Sections that may be blamed for what is wrong in another, because they are judged together."""


@pytest.fixture(scope="module")
def trace_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("scenarios") / "requests.csv"
    path.write_text(TRACE_TEXT, "utf-8")
    return str(path)


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("base", BASES)
def test_mutated_scenarios(base: str, part: int, trace_file: str) -> None:
    judge_all(
        [(case, number % 5 == 0) for number, case in enumerate(cases_of(base))][part::PARTS], trace_file
    )


def judge_all(cases: list[tuple[Case, bool]], trace_file: str) -> None:
    """Judge (case, whether as YAML text), and name all that have a flaw."""
    flaws = []
    for case, as_text in cases:
        try:
            judge(case, trace_file, as_text=as_text)
        except Flaw as flaw:
            flaws.append(f"{case.name}: {flaw}")
    assert not flaws, f"{len(flaws)} of {len(cases)} cases:\n" + "\n".join(flaws)


def judge(case: Case, trace_file: str, *, as_text: bool) -> None:
    """Run a case and raise `Flaw` unless what comes of it is what must."""
    plain = with_trace(case.plain, trace_file)
    text = write_yaml(plain) if as_text else None
    outcome = outcome_of(lambda: simulate(plain if text is None else text))
    if isinstance(outcome, Result):
        if case.expect == "refused":
            raise Flaw(f"must be refused, gave {outcome!r}")
        check_run(outcome, requests_asked(plain))
        if case.expect == "same" and outcome.digest != digest_of(case.base, trace_file):
            raise Flaw("must run as the scenario it was made from")
        return
    check_words(outcome)
    if case.expect == "same":
        raise Flaw(f"must run as the scenario it was made from: {outcome!r}")
    for blame in case.blames:
        value = with_trace(blame.value, trace_file)
        check_blame(outcome, blame.path, value, nearby=blame.nearby, nearest=blame.nearest)
    if case.alone:
        assert isinstance(outcome, ConfigError)
        check_elsewhere(outcome, case.blames[0].path, RELATED)
    # What only the rows of the trace tell is found when the document is no longer at hand.
    if text is not None and isinstance(outcome_of(lambda: frontier.Scenario.from_yaml(text)), ConfigError):
        assert isinstance(outcome, ConfigError)
        check_line(outcome, case.blames[0].path if case.blames else (), lines_of(text))


def simulate(document: Any) -> Result:
    scenario = frontier.Scenario.from_yaml(document) if isinstance(document, str) else document
    return frontier.simulate(scenario)


@cache
def digest_of(base: str, trace_file: str) -> str:
    return frontier.simulate(with_trace(BASES[base], trace_file)).digest


def requests_asked(plain: Any) -> int | None:
    """Return how many requests a valid document asks for, None where a duration or the trace decides."""
    synthetic = plain["workload"].get("synthetic")
    if synthetic is None or "duration" in synthetic:
        return None
    return int(synthetic["num_requests"])


def test_contradictions(trace_file: str) -> None:
    judge_all([(case, number % 3 == 0) for number, case in enumerate(contradictions())], trace_file)


def test_the_same_in_other_words(trace_file: str) -> None:
    judge_all([(case, number % 3 == 0) for number, case in enumerate(same())], trace_file)


def test_values_of_python(trace_file: str) -> None:
    judge_all([(case, False) for case in native()], trace_file)


def test_extremes(trace_file: str) -> None:
    flaws = []
    for case, rejected in extremes():
        plain = with_trace(case.plain, trace_file)
        try:
            outcome = outcome_of(lambda plain=plain: simulate(plain))
            if isinstance(outcome, Result):
                check_run(outcome, requests_asked(plain))
                counted = outcome.summary(0, 0).rejected
                if rejected is not None and counted != rejected:
                    raise Flaw(f"{counted} requests were rejected, not {rejected}")
            elif rejected is not None:
                raise Flaw(f"must run: {outcome!r}")
            else:
                check_words(outcome)
        except Flaw as flaw:
            flaws.append(f"{case.name}: {flaw}")
    assert not flaws, "\n".join(flaws)


def test_documents_that_contain_themselves() -> None:
    for path in (("engine",), ("model",), ("hardware", "gpu"), ("workload", "synthetic", "prompt_tokens")):
        plain = changed(BASES["poisson"], path, {})
        owner = plain
        for part in path:
            owner = owner[part]
        owner["x"] = plain
        error = outcome_of(lambda plain=plain: simulate(plain))
        assert isinstance(error, ConfigError)
        check_words(error)
