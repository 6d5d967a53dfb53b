"""What to measure next: families side by side, each coarse to fine, then where the predictor is least sure.

The next point depends on the plan and on the outcomes so far alone, so that an interrupted profile goes on as
if it had not been.
"""

from __future__ import annotations

from collections.abc import Iterable

from frontier.profiler.adaptive import choose
from frontier.profiler.journal import Outcome
from frontier.profiler.plan import FamilyPlan, Plan
from frontier.profiler.points import Point

CHOSEN_TOGETHER = 16
"""Points that one look at the measurements so far decides on."""


class FamilyQueue:
    """The points of one family in the order in which they are measured."""

    def __init__(self, plan: FamilyPlan, outcomes: Iterable[Outcome], seed: int) -> None:
        """Take the plan, and the outcomes of earlier runs in their order."""
        self._plan = plan
        self._seed = seed
        self._points = {point.key: point for point in plan.points}
        self._done: dict[str, Outcome] = {}
        self._chosen: tuple[int, list[Point]] | None = None
        for outcome in outcomes:
            self.note(outcome)

    @property
    def done(self) -> int:
        """Points with an outcome."""
        return len(self._done)

    @property
    def wanted(self) -> int:
        """Points that shall have one."""
        return self._plan.target

    def note(self, outcome: Outcome) -> None:
        """Take an outcome."""
        if outcome.key in self._points:
            self._done[outcome.key] = outcome

    def next(self) -> Point | None:
        """Return the next point, None at the end."""
        if self.done >= self.wanted:
            return None
        if self.done >= self._plan.coarse:
            for point in self._uncertain():
                if point.key not in self._done:
                    return point
        return next((point for point in self._plan.points if point.key not in self._done), None)

    def _uncertain(self) -> list[Point]:
        """Return what was chosen from the outcomes at the last look, which was at a fixed number of them."""
        looks = (self.done - self._plan.coarse) // CHOSEN_TOGETHER
        base = self._plan.coarse + looks * CHOSEN_TOGETHER
        if self._chosen is None or self._chosen[0] != base:
            known = list(self._done.values())[:base]
            keys = {outcome.key for outcome in known}
            measured = [(self._points[o.key], o.seconds) for o in known if o.seconds is not None]
            left = [point for point in self._plan.points if point.key not in keys]
            points = [point for point, _ in measured]
            seconds = [time for _, time in measured]
            picked = choose(points, seconds, left, CHOSEN_TOGETHER, self._seed) if measured else []
            self._chosen = (base, picked)
        return self._chosen[1]


class Queue:
    """All families, of which the one that is furthest behind comes next."""

    def __init__(self, plan: Plan, outcomes: Iterable[Outcome], seed: int) -> None:
        """Take the plan, and the outcomes of earlier runs in their order."""
        listed = list(outcomes)
        self.families = {
            name: FamilyQueue(family, (o for o in listed if o.family == name), seed)
            for name, family in plan.families.items()
        }

    @property
    def done(self) -> int:
        """Points with an outcome, of all families."""
        return sum(family.done for family in self.families.values())

    def note(self, outcome: Outcome) -> None:
        """Take an outcome."""
        self.families[outcome.family].note(outcome)

    def next(self) -> Point | None:
        """Return the next point of the family with the smallest part done, None at the end."""
        open_ = [family for family in self.families.values() if family.done < family.wanted]
        if not open_:
            return None
        return min(open_, key=lambda family: family.done / family.wanted).next()
