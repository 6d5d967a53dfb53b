"""Plain values from what callers have at hand: numbers of numpy and its like, paths."""

from __future__ import annotations

from typing import Any


def plain_values(value: Any) -> Any:
    """Return a value with every array of no dimensions in its mappings and lists made a Python number.

    That is `numpy.int64(4)`, `numpy.float32(0.5)`, `numpy.bool_(True)`, `numpy.array(3)`, and what other
    libraries have of the kind: whatever has the shape `()` and a method `item`. Mappings and lists are new.
    """
    return _plain(value, {})


def _plain(value: Any, seen: dict[int, Any]) -> Any:
    # What was seen is not entered again: a value may contain itself, or others many times.
    if isinstance(value, dict):
        if id(value) not in seen:
            copied: dict[Any, Any] = {}
            seen[id(value)] = copied
            copied.update((key, _plain(item, seen)) for key, item in value.items())
        return seen[id(value)]
    if isinstance(value, list):
        if id(value) not in seen:
            listed: list[Any] = []
            seen[id(value)] = listed
            listed += [_plain(item, seen) for item in value]
        return seen[id(value)]
    if type(value) is tuple:
        return tuple(_plain(item, seen) for item in value)
    return value.item() if _is_scalar(value) else value


def _is_scalar(value: object) -> bool:
    shape = getattr(value, "shape", None)
    return isinstance(shape, tuple) and not shape and callable(getattr(value, "item", None))
