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
from frontier.validation.case import Case, LeftOut, Suite
from frontier.validation.report import Report

if TYPE_CHECKING:
    from frontier.results import Result

Change = Callable[[Case], Mapping[str, Any]]


def evaluate(
    suite: Suite,
    data: str | os.PathLike[str],
    *,
    change: Change | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Report:
    """Simulate the cases of a suite and compare them with what was measured.

    Args:
        suite: the suite.
        data: folder with its files.
        change: returns another scenario for a case, for studies of what a setting does to the errors.
        threads: as of `simulate_many`.
        progress: called with (cases done, cases in all).

    Raises:
        FrontierError: files of the suite are missing.
    """
    folder = Path(data)
    if missing := suite.missing(folder):
        raise FrontierError(f"suite {suite.name} needs {', '.join(missing)}, which {folder} does not have")
    cases: dict[str, Case] = {}
    left: list[LeftOut] = []
    scenarios: list[Scenario] = []

    def read(result: Result) -> tuple[dict[str, float], dict[str, float]] | FrontierError:
        # A run is known by its name: what is read of it is all that is kept, and runs end in any order.
        case = cases[result.scenario["name"]]
        try:
            return dict(case.read(result)), dict(result.trust.shares)
        except FrontierError as error:
            return error

    with tempfile.TemporaryDirectory(prefix="frontier-validation-") as scratch:
        for case in suite.cases(folder, Path(scratch)):
            if isinstance(case, LeftOut):
                left.append(case)
                continue
            name = f"{case.group}: {case.name}"
            if name in cases:
                raise FrontierError(f"suite {suite.name} has two cases '{name}'")
            try:
                plain = case.scenario if change is None else change(case)
                scenarios.append(Scenario.from_dict({**plain, "name": name}))
            except FrontierError as error:
                left.append(LeftOut(case.group, case.name, f"refused: {error}"))
                continue
            cases[name] = case
        outcomes = simulate_many(
            scenarios, threads=threads, progress=progress, on_error="return", reduce=read
        )
    rows: list[dict[str, Any]] = []
    for case, outcome in zip(cases.values(), outcomes, strict=True):
        if isinstance(outcome, FrontierError):
            left.append(LeftOut(case.group, case.name, f"failed: {outcome}"))
            continue
        values, shares = cast("tuple[dict[str, float], dict[str, float]]", outcome)
        rows += (_row(suite, case, metric, values[metric], shares) for metric in case.measured)
    return Report(suite, rows, tuple(left))


def _row(
    suite: Suite, case: Case, metric: str, simulated: float, shares: Mapping[str, float]
) -> dict[str, Any]:
    measured = case.measured[metric]
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
        **{f"share_{name}": shares.get(name, 0.0) for name in PROVENANCES},
        **case.facts,
    }
