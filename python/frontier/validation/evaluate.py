"""Simulating the cases of a suite."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from frontier.config import Scenario
from frontier.errors import FrontierError
from frontier.results.trust import PROVENANCES
from frontier.simulation import simulate_many
from frontier.validation.case import Case, LeftOut, Outcome, StepCase, Suite
from frontier.validation.report import Report

if TYPE_CHECKING:
    from frontier.results import Result

Change = Callable[[Case], Mapping[str, Any]]


def evaluate(
    suite: Suite,
    data: str | os.PathLike[str] | None = None,
    *,
    change: Change | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Report:
    """Simulate the cases of a suite and compare them with what was measured.

    Args:
        suite: the suite.
        data: folder with its files; may be left out where it has none.
        change: returns another scenario for a case, for studies of what a setting does to the errors.
        threads: as of `simulate_many`.
        progress: called with (scenarios done, scenarios in all); steps are priced before.

    Raises:
        FrontierError: files of the suite are missing, or a step, which has no scenario, should be changed.
    """
    folder = None if data is None else Path(data)
    if missing := suite.missing(folder):
        where = "no folder was named" if folder is None else f"{folder} does not have them"
        raise FrontierError(f"suite {suite.name} needs {', '.join(missing)}; {where}")
    cases: dict[str, Case | StepCase] = {}
    found: dict[str, Outcome | FrontierError] = {}
    left: list[LeftOut] = []
    scenarios: dict[str, Scenario] = {}

    def read(result: Result) -> Outcome | FrontierError:
        # A run is known by its name: what is read of it is all that is kept, and runs end in any order.
        case = cast("Case", cases[result.scenario["name"]])
        try:
            return Outcome(dict(case.read(result)), dict(result.trust.shares))
        except FrontierError as error:
            return error

    with tempfile.TemporaryDirectory(prefix="frontier-validation-") as scratch:
        for case in suite.cases(folder or Path(scratch), Path(scratch)):
            if isinstance(case, LeftOut):
                left.append(case)
                continue
            name = f"{case.group}: {case.name}"
            if name in cases:
                raise FrontierError(f"suite {suite.name} has two cases '{name}'")
            if isinstance(case, StepCase):
                if change is not None:
                    raise FrontierError(
                        f"'{name}' of suite {suite.name} is a step: it has no scenario to change"
                    )
                found[name] = _priced(case)
            else:
                try:
                    plain = case.scenario if change is None else change(case)
                    scenarios[name] = Scenario.from_dict({**plain, "name": name})
                except FrontierError as error:
                    left.append(LeftOut(case.group, case.name, f"refused: {error}"))
                    continue
            cases[name] = case
        outcomes = simulate_many(
            list(scenarios.values()), threads=threads, progress=progress, on_error="return", reduce=read
        )
    found |= zip(scenarios, cast("list[Outcome | FrontierError]", outcomes), strict=True)
    rows: list[dict[str, Any]] = []
    for name, case in cases.items():
        outcome = found[name]
        if isinstance(outcome, FrontierError):
            left.append(LeftOut(case.group, case.name, f"failed: {outcome}"))
            continue
        rows += (_row(suite, case, metric, outcome) for metric in case.measured)
    return Report(suite, rows, tuple(left))


def _priced(case: StepCase) -> Outcome | FrontierError:
    try:
        return case.price()
    except FrontierError as error:
        return error


def _row(suite: Suite, case: Case | StepCase, metric: str, outcome: Outcome) -> dict[str, Any]:
    measured, simulated = case.measured[metric], outcome.values[metric]
    others = {
        f"{name}_error": values[metric] / measured - 1
        for name, values in case.others.items()
        if metric in values
    }
    return {
        "suite": suite.name,
        "group": case.group,
        "case": case.name,
        "choice": case.choice,
        "metric": metric,
        "measured": float(measured),
        "simulated": float(simulated),
        "error": simulated / measured - 1,
        **others,
        **{f"share_{name}": outcome.shares.get(name, 0.0) for name in PROVENANCES},
        **case.facts,
        **outcome.facts,
    }
