"""What a suite is made of: measured runs as scenarios or steps, and those left out with a reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from frontier.results import Result


@dataclass(frozen=True)
class Case:
    """A measured deployment under one load.

    Attributes:
        group: cases that statistics are over together.
        name: of the case, one of its kind in the suite.
        scenario: what `frontier.Scenario.from_dict` takes.
        measured: values by metric; the name of a metric ends with its unit (`ttft_mean_ms`).
        read: reads the same metrics from a run of the scenario.
        choice: cases with the same are alternatives between which somebody might choose, so that their order
            matters; empty for none.
        others: what other simulators say of the case, by their names, with the metrics that they answer.
        facts: further columns of the table of points.
    """

    group: str
    name: str
    scenario: Mapping[str, Any]
    measured: Mapping[str, float]
    read: Callable[[Result], Mapping[str, float]]
    choice: str = ""
    others: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    facts: Mapping[str, str | float] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What came of a case: of a run, or of a step that was priced.

    Attributes:
        values: by metric.
        shares: of GPU time by provenance (`frontier.results.trust.PROVENANCES`).
        facts: further columns of the table of points, known only then.
    """

    values: Mapping[str, float]
    shares: Mapping[str, float]
    facts: Mapping[str, str | float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        values: Mapping[str, float],
        operators: Iterable[Mapping[str, Any]],
        facts: Mapping[str, str | float] | None = None,
    ) -> Outcome:
        """Take the values, and the operators of `step_breakdown` that they rest on."""
        seconds: dict[str, float] = {}
        for row in operators:
            seconds[row["provenance"]] = seconds.get(row["provenance"], 0.0) + row["seconds"]
        total = sum(seconds.values())
        shares = {name: each / total for name, each in seconds.items()} if total > 0 else {}
        return cls(values, shares, {} if facts is None else facts)


@dataclass(frozen=True)
class StepCase:
    """A measured deployment of which only steps are known, not requests: a step is priced, nothing is run.

    Attributes:
        group, name, measured, choice, others, facts: as of `Case`.
        price: prices the step.
    """

    group: str
    name: str
    measured: Mapping[str, float]
    price: Callable[[], Outcome]
    choice: str = ""
    others: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    facts: Mapping[str, str | float] = field(default_factory=dict)


@dataclass(frozen=True)
class LeftOut:
    """A measured run that is not simulated, and why.

    Attributes:
        group: the group that it would belong to.
        name: of the run.
        reason: why not.
    """

    group: str
    name: str
    reason: str


@dataclass(frozen=True)
class Suite:
    """One published set of measurements.

    Attributes:
        name: as `frontier validate --suite` takes it.
        title: what was measured, in a line.
        source: who measured and published it, and its licence.
        files: what of the data folder it reads, relative to it; none where the suite carries its figures.
        cases: yields its cases, given the data folder and one for files that scenarios name while they run.
        assumptions: what was not published and is assumed, and what is fitted, if anything.
    """

    name: str
    title: str
    source: str
    files: tuple[str, ...]
    cases: Callable[[Path, Path], Iterable[Case | StepCase | LeftOut]]
    assumptions: tuple[str, ...] = ()

    def missing(self, data: Path | None) -> list[str]:
        """Return the files that are not in a data folder; all of them without one."""
        return [name for name in self.files if data is None or not (data / name).exists()]
