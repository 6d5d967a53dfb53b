"""What a mutated input may lead to: a clear error, or a run in which every request is accounted for."""

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from frontier.errors import ConfigError, FrontierError, InvariantError, WorkloadError
from frontier.results import Result
from frontier.results.columns import FINISHED, REJECTED

Path = tuple[str, ...]
Outcome = Result | FrontierError
_Value = TypeVar("_Value")

NAN, INF = float("nan"), float("inf")

# Words of the libraries beneath, and of Python itself, that mean nothing to whoever wrote the input.
_FOREIGN = re.compile(
    r"pydantic|validation error|Input should|should be (a valid|strings)|Traceback|object has no attribute"
    r"|NoneType|positional argument|RecursionError|panicked|ComputeError|unhashable"
)


class Flaw(Exception):  # noqa: N818 - not an error of the code under test but a finding about it
    """An outcome that must not be."""


def outcome_of(run: Callable[[], _Value]) -> _Value | FrontierError:
    """Return what `run` returns, or the error that frontier raised on purpose; anything else is a flaw."""
    try:
        return run()
    except InvariantError as error:
        raise Flaw(f"a conservation law is broken: {error}") from error
    except FrontierError as error:
        return error
    except Exception as error:
        raise Flaw(f"{type(error).__name__} escaped: {str(error)[:300]}") from error
    except BaseException as error:
        # A panic of Rust code, ours or that of polars, is no `Exception`; the end of the test is none either.
        if type(error).__name__ != "PanicException":
            raise
        raise Flaw(f"panic: {str(error)[:300]}") from error


def check_run(result: Result, requests: int | None = None) -> None:
    """Check that a run lost no request and that its figures can be read."""
    columns = result.columns.requests
    status, reason = columns["status"], columns["reject_reason"]
    finished, rejected = int((status == FINISHED).sum()), int((status == REJECTED).sum())
    if finished + rejected != len(status):
        raise Flaw(f"{finished} finished + {rejected} rejected of {len(status)} requests")
    if requests is not None and len(status) != requests:
        raise Flaw(f"{len(status)} requests were issued, {requests} were asked for")
    if not np.array_equal(status == REJECTED, reason > 0):
        raise Flaw("a request was rejected without a reason, or the reverse")
    result.check()
    summary = result.summary(0, 0)
    counted = {"arrived": len(status), "completed": finished, "rejected": rejected, "unfinished": 0}
    for name, expected in counted.items():
        if summary[name] != expected:
            raise Flaw(f"summary.{name} is {summary[name]}, counted {expected}")
    if sum((summary["rejected_by_reason"] or {}).values()) != rejected:
        raise Flaw(f"{rejected} rejections, but by reason {summary['rejected_by_reason']}")
    try:
        result.summary()
    except ConfigError as error:
        if "window is empty" not in str(error):
            raise Flaw(f"no summary: {error}") from error


def check_words(error: FrontierError) -> None:
    """Check that an error speaks about the input and in no library's words."""
    text = str(error)
    if not text.strip():
        raise Flaw(f"{type(error).__name__} without a message")
    if (found := _FOREIGN.search(text)) is not None:
        raise Flaw(f"the message says {found.group()!r}: {text[:300]}")
    if isinstance(error, ConfigError):
        if not error.issues:
            raise Flaw("ConfigError without issues")
        for issue in error.issues:
            if not issue.message.strip() or str(issue) not in text:
                raise Flaw(f"issue {issue!r} is not in the message")
    elif isinstance(error, WorkloadError) and error.file is not None and error.file not in text:
        raise Flaw(f"the message does not name the file {error.file}: {text[:300]}")


def check_blame(
    error: Outcome, path: Path, value: object, *, nearby: bool = False, nearest: str | None = None
) -> None:
    """Check that a `ConfigError` blames the value at `path`, or with `nearby` a section around it.

    Every issue must have a path, and the blame must show what was received, as it was written, and suggest
    `nearest`.
    """
    if not isinstance(error, ConfigError):
        raise Flaw(f"must be a ConfigError at {'.'.join(path)}, was {error!r}")
    if nameless := [issue for issue in error.issues if not issue.path]:
        raise Flaw(f"an issue without a path: {nameless[0]}")
    place = ".".join(path)
    at = [issue for issue in error.issues if _lies_in(issue.path, place)]
    around = [issue for issue in error.issues if nearby and _lies_in(place, issue.path)]
    if not at and not around:
        raise Flaw(f"{place} is not blamed: {error}")
    exact = [issue for issue in at if issue.path == place]
    if value is not ... and exact and not any(_shows(issue, value) for issue in exact):
        raise Flaw(f"the value {value!r:.80} is not shown: {error}")
    # A misspelt name may be the right name of a field elsewhere, which is then suggested.
    names = (nearest, path[-1])
    if nearest is not None and not any((issue.nearest or "").split(".")[-1] in names for issue in at):
        raise Flaw(f"'{nearest}' is not suggested: {error}")


def check_elsewhere(error: ConfigError, path: Path, related: Mapping[str, tuple[str, ...]]) -> None:
    """Check that nothing is blamed that has nothing to do with the section of `path`."""
    allowed = {path[0], *related.get(path[0], ())}
    for issue in error.issues:
        if issue.path and issue.path.split(".")[0] not in allowed:
            raise Flaw(f"{issue.path} is blamed for {'.'.join(path)}: {error}")


def check_line(error: ConfigError, path: Path, lines: Mapping[Path, int]) -> None:
    """Check that issues name the lines of their paths, or of what the file has around them."""
    for issue in error.issues:
        parts = tuple(issue.path.split("."))
        while parts and parts not in lines:
            parts = parts[:-1]
        if issue.line != lines.get(parts):
            raise Flaw(f"{issue.path} is on line {lines.get(parts)}, not {issue.line}: {error}")
    if path[:1] in lines and "line " not in str(error):
        raise Flaw(f"no line is shown: {error}")


def _shows(issue: Any, value: object) -> bool:
    shown = repr(value)[:60]
    return (
        issue.value is value or issue.value == value or shown in issue.message or " entries" in issue.message
    )


def _lies_in(path: str, around: str) -> bool:
    return path == around or path.startswith(f"{around}.")
