"""Explain how two logs in the golden format differ."""

import json
from collections.abc import Sequence
from itertools import zip_longest


def first_difference(ours: Sequence[str], theirs: Sequence[str]) -> str | None:
    """Return the first difference between the lines of two logs, summaries included, or None.

    A golden log's last line carries more than `summary`; only `summary` is compared there.
    """
    for number, (mine, other) in enumerate(zip_longest(ours, theirs)):
        if mine == other:
            continue
        if mine is None or other is None:
            longer, line = ("theirs", other) if mine is None else ("ours", mine)
            return f"record {number} is only in {longer}: {line[:300]}"
        left, right = json.loads(mine), json.loads(other)
        if "summary" in left and "summary" in right:
            if left["summary"] != right["summary"]:
                return f"summary, {_describe(left['summary'], right['summary'])}"
            continue
        return f"record {number}, step {right.get('step')}, {_describe(left, right)}"
    return None


def _describe(left: object, right: object, path: str = "") -> str:
    if isinstance(left, dict) and isinstance(right, dict):
        for key in [*right, *left]:
            if key not in left or key not in right:
                side, value = ("ours", left[key]) if key in left else ("theirs", right[key])
                return f"key {path}{key} is only in {side}: {str(value)[:300]}"
            if left[key] != right[key]:
                return _describe(left[key], right[key], f"{path}{key}.")
        return f"order of keys {path}: ours {list(left)}, theirs {list(right)}"
    return f"key {path.rstrip('.')}: ours {str(left)[:300]}, theirs {str(right)[:300]}"
