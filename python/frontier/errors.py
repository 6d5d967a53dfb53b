"""The errors frontier raises on purpose.

Every one derives from `FrontierError`, so a caller may catch them all with one clause, and also from
the built-in error it refines (`ValueError`, `RuntimeError`). This module imports nothing outside the
standard library and, when it runs, nothing from frontier.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from frontier.memory import MemoryPlan
    from frontier.memory.sglang import SglangPlan

_MAX_VALUE_CHARS = 80
_MAX_ALLOWED_SHOWN = 24


class FrontierError(Exception):
    """Base of every error that frontier raises on purpose."""


@dataclass(frozen=True)
class Issue:
    """One problem with an input.

    Attributes:
        path: where it is, as dotted keys ("engine.max_num_seqs"); empty for the input as a whole.
        value: what was received, as it was written.
        message: what is wrong and how to mend it, one sentence without the path.
        allowed: the names or forms that would have been accepted, empty where that is no list.
        nearest: the accepted name closest to the one received, None where none is close.
        line: 1-based line of the file the input came from, None where unknown.
    """

    path: str
    value: object
    message: str
    allowed: tuple[str, ...] = ()
    nearest: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        """Return the issue as one line; the names allowed are listed where none of them is close."""
        text = f"{self.path}: {self.message}" if self.path else self.message
        if self.line is not None:
            text = f"line {self.line}: {text}"
        if self.nearest is not None:
            text += f"; did you mean '{self.nearest}'?"
        elif self.allowed:
            shown = self.allowed[:_MAX_ALLOWED_SHOWN]
            rest = f", ... {len(self.allowed)} in all" if len(self.allowed) > len(shown) else ""
            text += f" (allowed: {', '.join(shown)}{rest})"
        return text


class ConfigError(FrontierError, ValueError):
    """An input description (scenario, model, hardware, option) that cannot be used.

    All problems found are reported together, in `issues`.
    """

    issues: tuple[Issue, ...]

    def __init__(self, issues: Iterable[Issue] | Issue | str, *, source: str | None = None) -> None:
        """Take one issue or many; a bare string becomes one issue without a path.

        `source` names the file or object the input came from.
        """
        if isinstance(issues, str):
            issues = [Issue(path="", value=None, message=issues)]
        elif isinstance(issues, Issue):
            issues = [issues]
        self.issues = tuple(issues)
        self.source = source
        super().__init__(_render(self.issues, source))

    def placed(self, issues: Iterable[Issue], source: str | None) -> ConfigError:
        """Return the same error with its issues and its source as given, to say more of their place."""
        return ConfigError(issues, source=source)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_config_error, (self.issues, self.source))


class DoesNotFitError(ConfigError):
    """A configuration that is valid, but does not fit in the GPU's memory: the engine would not start.

    `memory` tells where the memory goes (`memory.explain()`), and how much is lacking.
    """

    memory: MemoryPlan | SglangPlan

    def __init__(
        self, issues: Iterable[Issue], *, memory: MemoryPlan | SglangPlan, source: str | None = None
    ) -> None:
        """Take the issues and the plan of one rank's memory that they are about."""
        super().__init__(issues, source=source)
        self.memory = memory

    def placed(self, issues: Iterable[Issue], source: str | None) -> DoesNotFitError:
        """Return the same error with its issues and its source as given, to say more of their place."""
        return DoesNotFitError(issues, memory=self.memory, source=source)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_does_not_fit_error, (self.issues, self.memory, self.source))


class WorkloadError(FrontierError, ValueError):
    """A trace or workload that cannot be read or simulated.

    `file`, `line` (1-based), `column` (its name) and `value` are None where they do not apply.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        line: int | None = None,
        column: str | None = None,
        value: object = None,
    ) -> None:
        self.message = message
        self.file = file
        self.line = line
        self.column = column
        self.value = value
        place = file or ""
        if line is not None:
            place += f":{line}" if place else f"line {line}"
        if column is not None:
            place += f", column '{column}'" if place else f"column '{column}'"
        super().__init__(f"{place}: {message}" if place else message)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_workload_error, (self.message, self.file, self.line, self.column, self.value))


class PackError(FrontierError, ValueError):
    """A pack of predictors that cannot be read: damaged, cut short, or of another version.

    `file` is None where the pack did not come from one.
    """

    def __init__(self, message: str, *, file: str | None = None) -> None:
        self.message = message
        self.file = file
        super().__init__(f"{file}: {message}" if file else message)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_pack_error, (self.message, self.file))


class SimulationError(FrontierError, RuntimeError):
    """A simulation that could not run to its end."""


class DeadlockError(SimulationError):
    """Requests remain, but no event is left that could move them."""


class LivelockError(SimulationError):
    """Steps go on without any request making progress."""


class EngineFailureError(SimulationError):
    """The real engine fails with these requests and settings: it hangs, loses requests, or stops.

    The message names the failure, the requests involved and what would mend it.
    """


class InvariantError(SimulationError):
    """A conservation check of the simulator failed: a defect of frontier, to be reported."""


def nearest_name(name: object, names: Iterable[str]) -> str | None:
    """Return the one of `names` closest to `name`, ignoring case; None where none is close."""
    by_folded = {candidate.casefold(): candidate for candidate in names}
    close = difflib.get_close_matches(str(name)[:200].casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[close[0]] if close else None


def show_value(value: object) -> str:
    """Return `value` as it is quoted in messages, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= _MAX_VALUE_CHARS else text[: _MAX_VALUE_CHARS - 3] + "..."


def _render(issues: Sequence[Issue], source: str | None) -> str:
    where = f"{source}: " if source else ""
    if len(issues) == 1:
        return f"{where}{issues[0]}"
    lines = [f"{where}{len(issues)} problems"]
    lines += [f"  - {issue}" for issue in issues]
    return "\n".join(lines)


def _rebuild_config_error(issues: tuple[Issue, ...], source: str | None) -> ConfigError:
    return ConfigError(issues, source=source)


def _rebuild_does_not_fit_error(
    issues: tuple[Issue, ...], memory: MemoryPlan | SglangPlan, source: str | None
) -> DoesNotFitError:
    return DoesNotFitError(issues, memory=memory, source=source)


def _rebuild_workload_error(
    message: str, file: str | None, line: int | None, column: str | None, value: object
) -> WorkloadError:
    return WorkloadError(message, file=file, line=line, column=column, value=value)


def _rebuild_pack_error(message: str, file: str | None) -> PackError:
    return PackError(message, file=file)
