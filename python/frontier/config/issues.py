"""From pydantic's errors to issues: what was received, what is allowed, what was probably meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from frontier.config.base import UNMODELLED, Section, section_of
from frontier.errors import Issue, nearest_name, show_value

Location = tuple[int | str, ...]

_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def issues_of(
    error: ValidationError, owner: type[BaseModel], raw: object, prefix: Location = ()
) -> list[Issue]:
    """Return one issue per problem of `error`, which validating `raw` as `owner` raised.

    `prefix` is where `raw` lies in the scenario.
    """
    return [_issue(details, owner, raw, prefix) for details in error.errors(include_url=False)]


def dotted(location: Location) -> str:
    """Return a location as dotted path."""
    return ".".join(str(part) for part in location)


def unknown_field(owner: type[BaseModel], location: Location, value: object, root: type[BaseModel]) -> Issue:
    """Return the issue for a field that `owner` does not have."""
    name = str(location[-1])
    path = dotted(location)
    if name in UNMODELLED and "engine" in location[:-1]:
        return Issue(path, value, f"is not modelled yet: {UNMODELLED[name]}; remove it")
    names = tuple(owner.model_fields)
    spelt = name.replace("-", "_")
    nearest = spelt if spelt in names else _elsewhere(root, spelt) or nearest_name(spelt, names)
    if not names:
        return Issue(path, value, "is not a known field; this section has none", nearest=nearest)
    return Issue(path, value, "is not a known field", names, nearest)


def leaf_paths(owner: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted path of every leaf field below `owner`, in the order of the schema."""
    for name in owner.model_fields:
        part = section_of(owner, name)
        if part is None:
            yield f"{prefix}{name}"
        elif part.model_fields:
            yield from leaf_paths(part, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


@cache
def _leaves(root: type[BaseModel]) -> tuple[str, ...]:
    return tuple(leaf_paths(root))


def _elsewhere(root: type[BaseModel], name: str) -> str | None:
    """Return the one path of the schema that ends in `name`, if there is exactly one as high up."""
    # Fields of a cluster with a role have the names of those of the only one, and entries of lists no path.
    listed = ("clusters.", "admission.", "dynamics.")
    leaves = (path for path in _leaves(root) if not path.startswith(listed))
    found = [path for path in leaves if path.rsplit(".", 1)[-1] == name]
    highest = min((path.count(".") for path in found), default=0)
    found = [path for path in found if path.count(".") == highest]
    return found[0] if len(found) == 1 else None


def _issue(details: ErrorDetails, owner: type[BaseModel], raw: object, prefix: Location) -> Issue:
    from frontier.config.scenario import Scenario  # noqa: PLC0415 - the root imports this module

    context = details.get("ctx", {})
    below = (*details["loc"], *context.get("below", ()))
    location = (*prefix, *below)
    path = dotted(location)
    value = _dig(raw, owner, below)
    shown = show_value(value)
    kind = details["type"]
    if kind == "extra_forbidden":
        return unknown_field(_owner_at(owner, details["loc"][:-1]), location, value, Scenario)
    if kind == "missing":
        return Issue(path, None, "is required and was not given")
    if kind == "literal_error":
        allowed = _choices(context)
        return Issue(path, value, f"was {shown}", allowed, nearest_name(value, allowed))
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        bound = context[key]
        return Issue(
            path, value, f"was {shown}, must be {words} {bound if isinstance(bound, int) else f'{bound:g}'}"
        )
    if kind == "value_error":
        return Issue(path, value, str(context["error"]))
    if kind == "section":
        return Issue(path, value, str(context["message"]))
    if kind == "invalid_key":
        *around, _ = location
        message = f"has the key {show_value(details['input'])}, keys must be text"
        return Issue(dotted(tuple(around)), value, message)
    if kind in ("too_short", "too_long"):
        bound = context.get("min_length", context.get("max_length"))
        words = "at least" if kind == "too_short" else "at most"
        return Issue(path, None, f"has {context['actual_length']} entries, must have {words} {bound}")
    if kind in ("tuple_type", "list_type"):
        return Issue(path, value, f"was {shown}, must be a list")
    return Issue(path, value, f"was {shown}: {details['msg']}")


def _choices(context: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names in pydantic's "'a', 'b' or 'c'"."""
    text = str(context["expected"]).replace(" or ", ", ")
    return tuple(part.strip().strip("'") for part in text.split(","))


def _owner_at(owner: type[BaseModel], location: Location) -> type[BaseModel]:
    """Return the section class that `location` leads to."""
    for part in location:
        # An index leads to an entry of a list of sections, whose class `owner` already is.
        inner = section_of(owner, part) if isinstance(part, str) and part in owner.model_fields else None
        owner = inner or owner
    return owner


def _dig(raw: object, owner: type[BaseModel], location: Location) -> object:
    """Return the value that was written at `location`, expanding short forms on the way."""
    current: type[BaseModel] | None = owner
    for part in location:
        if current is not None and issubclass(current, Section):
            raw = current.expand(raw)
        if isinstance(raw, list | tuple) and isinstance(part, int) and part < len(raw):
            raw = raw[part]
        elif isinstance(raw, Mapping):
            raw = raw.get(part)
        else:
            return None
        if current is not None and isinstance(part, str):
            known = part in current.model_fields
            current = section_of(current, part) if known else None
    return raw
