"""Reads tables of step times from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from frontier.errors import ConfigError, Issue

_FIELD: Final = "engine.step_time.tables.path"
_NUMBERS: Final = ("kv_granularity", "prefill_batching_factor")
_COLUMNS: Final = ("first", "second", "time_s")


def read_tables(path: str) -> dict[str, Any]:
    """Return the plan's step time from a JSON file.

    Raises:
        ConfigError: the file is not JSON of that form; values are checked when the plan is read.
    """

    def refuse(message: str) -> ConfigError:
        return ConfigError(Issue(_FIELD, path, f"{path}: {message}"))

    try:
        found = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise refuse(f"cannot be read as JSON: {error}") from None
    fields = {"tokens_s", "decode", "prefill", *_NUMBERS}
    if not isinstance(found, dict) or set(found) != fields:
        names = ", ".join(sorted(found)) if isinstance(found, dict) else type(found).__name__
        raise refuse(f"has {names or 'nothing'}, must have exactly {', '.join(sorted(fields))}")
    for table in ("decode", "prefill"):
        if not isinstance(found[table], dict) or set(found[table]) != set(_COLUMNS):
            raise refuse(f"{table} must have exactly the columns {', '.join(_COLUMNS)}")
    for name, value in (
        ("tokens_s", found["tokens_s"]),
        *(
            (f"{table}.{column}", found[table][column])
            for table in ("decode", "prefill")
            for column in _COLUMNS
        ),
    ):
        if not isinstance(value, list) or not all(_is_number(item) for item in value):
            raise refuse(f"{name} must be a list of numbers")
    for name in _NUMBERS:
        if not _is_number(found[name]):
            raise refuse(f"{name} was {found[name]!r}, must be a number")
    return {"kind": "tables", "num_stages": 1, "send_recv_s": [], **found}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
