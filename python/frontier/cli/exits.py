"""Exit codes, and errors as people and as machines read them."""

from __future__ import annotations

import json
from typing import Any, Final

from frontier.errors import (
    ConfigError,
    DoesNotFitError,
    FrontierError,
    PackError,
    WorkloadError,
    show_value,
)

FAILED: Final = 1
INVALID: Final = 3
DOES_NOT_FIT: Final = 4
INTERRUPTED: Final = 130

EXIT_CODES: Final = {
    0: "done",
    FAILED: "the simulation failed (hang, engine failure, invariant), or writing did",
    2: "usage: an unknown command, option or option value",
    INVALID: "the scenario, trace, model, GPU or pack is not valid",
    DOES_NOT_FIT: "the configuration does not fit in the GPU's memory",
    INTERRUPTED: "interrupted (Ctrl-C)",
}
"""Every exit code with its meaning, as `frontier --help` lists them."""


def exit_code_of(error: FrontierError) -> int:
    """Return the exit code that stands for an error."""
    if isinstance(error, DoesNotFitError):
        return DOES_NOT_FIT
    return INVALID if isinstance(error, ConfigError | PackError | WorkloadError) else FAILED


def error_text(error: FrontierError) -> str:
    """Return an error for people: one line per problem."""
    return f"error: {error}"


def error_json(error: FrontierError) -> str:
    """Return an error as a JSON document of one line."""
    content: dict[str, Any] = {
        "type": type(error).__name__,
        "message": str(error),
        "exit_code": exit_code_of(error),
        "source": None,
        "issues": [],
    }
    if isinstance(error, ConfigError):
        content["source"] = error.source
        content["issues"] = issues_json(error)
    elif isinstance(error, PackError):
        content["source"] = error.file
    elif isinstance(error, WorkloadError):
        content["source"] = error.file
        content["issues"] = [
            {
                "path": error.column or "",
                "value": plain(error.value),
                "message": error.message,
                "allowed": [],
                "nearest": None,
                "line": error.line,
            }
        ]
    return json.dumps({"error": content}, allow_nan=False)


def issues_json(error: ConfigError) -> list[dict[str, Any]]:
    """Return the issues of an error as plain values."""
    return [
        {
            "path": issue.path,
            "value": plain(issue.value),
            "message": issue.message,
            "allowed": list(issue.allowed),
            "nearest": issue.nearest,
            "line": issue.line,
        }
        for issue in error.issues
    ]


def plain(value: object) -> object:
    """Return a value that JSON can hold: itself, or its text where it is NaN or no JSON value."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return show_value(value)
    return value
