"""Dotted paths into a scenario, such as `cluster.replicas` or `arrivals.piecewise.segments.0.rate`."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from frontier.config.base import BASE_KEY, Choice, Section, section_of
from frontier.config.document import parse_value
from frontier.config.issues import dotted, unknown_field
from frontier.errors import ConfigError, Issue, show_value


def split_assignments(assignments: Iterable[str]) -> tuple[list[tuple[str, Any]], list[Issue]]:
    """Read `path=value` texts, each value as YAML; return those that are, and the issues of the others."""
    changes: list[tuple[str, Any]] = []
    issues: list[Issue] = []
    for text in assignments:
        path, equals, value = text.partition("=")
        if not equals or not path.strip():
            message = f"was {show_value(text)}, a value is set as path=value, such as cluster.replicas=4"
            issues.append(Issue("", text, message))
            continue
        try:
            changes.append((path.strip(), parse_value(value)))
        except ConfigError as error:
            issues += [Issue(path.strip(), value, issue.message) for issue in error.issues]
    return changes, issues


def changed(
    plain: Mapping[str, Any], changes: Iterable[tuple[str, Any]], root: type[BaseModel]
) -> tuple[dict[str, Any], list[Issue]]:
    """Return a deep copy of a scenario's plain mapping with the values at the given paths replaced.

    Short forms on the way are written out (`hardware: h100` has a `gpu`). Setting a field of one alternative
    of a choice removes the alternatives that the changes do not name.

    Paths that lead to no field come back as issues. A value whose name is no field is put where it belongs
    all the same, so that validation knows of it.
    """
    result: dict[str, Any] = copy.deepcopy(dict(plain))
    issues: list[Issue] = []
    named: set[tuple[str, ...]] = set()
    listed = list(changes)
    for path, _ in listed:
        parts = tuple(path.split("."))
        named |= {parts[: end + 1] for end in range(len(parts))}
    for path, value in listed:
        issue = _set(result, tuple(path.split(".")), copy.deepcopy(value), root, named)
        if issue is not None:
            issues.append(issue)
    return result, issues


def _set(
    plain: dict[str, Any],
    parts: tuple[str, ...],
    value: Any,
    root: type[BaseModel],
    named: set[tuple[str, ...]],
) -> Issue | None:
    """Set one value in place; return the issue where the path leads to no field."""
    owner: type[BaseModel] | None = root
    container: Any = plain
    for depth, part in enumerate(parts):
        here = parts[: depth + 1]
        last = depth == len(parts) - 1
        if isinstance(container, list):
            part = _numbered(container, part)  # noqa: PLW2901
            if not part.isdecimal() or int(part) >= len(container):
                return Issue(
                    dotted(here), value, f"is no entry of a list of {len(container)}, counted from 0"
                )
            key: Any = int(part)
        else:
            key = part
            if owner is not None:
                if part not in owner.model_fields:
                    container[part] = value
                    return unknown_field(owner, here, value, root)
                if issubclass(owner, Choice):
                    _drop_others(container, owner, here, named)
        if part == "clusters" and not last and not container.get(part):
            message = "leads into clusters, of which this scenario has none"
            return Issue(dotted(parts), value, message, nearest="cluster")
        if last:
            container[key] = value
            return None
        if owner is not None and not isinstance(container, list):
            partial = owner.partial_of(part) if issubclass(owner, Section) else None
            owner = section_of(owner, part) or partial
            if owner is None and part not in _FREE_FORM:
                return Issue(
                    dotted(parts), value, f"leads below '{dotted(here)}', which has no fields of its own"
                )
        container[key] = _open(container.get(key) if isinstance(key, str) else container[key], owner, part)
        container = container[key]
        if not isinstance(container, dict | list):
            return Issue(
                dotted(parts), value, f"leads below '{dotted(here)}', which is {show_value(container)}"
            )
    return None


def _numbered(listed: list[Any], part: str) -> str:
    """Return the number of the entry of this name, or of this role if no other has it; else the text."""
    for key in ("name", "role"):
        found = [at for at, each in enumerate(listed) if isinstance(each, Mapping) and each.get(key) == part]
        if len(found) == 1:
            return str(found[0])
    return part


_FREE_FORM = ("model", "gpu", "columns", "calibration")
"""Fields that may hold a mapping with keys of its own."""


def _drop_others(
    container: dict[str, Any], owner: type[Choice], here: tuple[str, ...], named: set[tuple[str, ...]]
) -> None:
    for other in owner.alternatives():
        if other != here[-1] and (*here[:-1], other) not in named:
            container.pop(other, None)


def _open(current: Any, owner: type[BaseModel] | None, part: str) -> Any:
    """Return the container to descend into: what is there, written out, or a new mapping."""
    if isinstance(current, list):
        return current
    if owner is not None and issubclass(owner, Section):
        current = owner.expand(current)
    if current is None:
        return {}
    if part == "model" and isinstance(current, str):
        return {BASE_KEY: current}
    return dict(current) if isinstance(current, Mapping) else current
