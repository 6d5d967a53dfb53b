"""Validating one section of a scenario: what is usable of it, which paths are broken, and the issues."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from frontier.config.base import Section
from frontier.config.issues import Location, dotted, issues_of
from frontier.errors import Issue


def validate_section(
    at: Location, owner: type[Section], raw: Any, *, broken: set[str], issues: list[Issue]
) -> Any | None:
    """Return the section, None where nothing of it is usable.

    A section with a broken field is kept without it, so that checks that do not need the field still run.
    Issues and broken paths are added to the collections given.

    Args:
        at: where it lies in the scenario.
        owner: its class.
        raw: its plain values.
        broken: dotted paths that are not usable.
        issues: what is wrong.
    """
    path = dotted(at)
    try:
        return owner.model_validate(raw)
    except ValidationError as error:
        found = issues_of(error, owner, raw, at)
        names = {
            str(details["loc"][0]) if details["loc"] else "" for details in error.errors(include_url=False)
        }
    issues += found
    broken |= {issue.path for issue in found} | {f"{path}.{field}" for field in names}
    # A misspelt field leaves its namesake unknown as well.
    broken |= {f"{path}.{issue.nearest}" for issue in found if issue.nearest}
    expanded = owner.expand(raw)
    if "" in names or not isinstance(expanded, dict):
        broken.add(path)
        return None
    try:
        return owner.model_validate({key: value for key, value in expanded.items() if key not in names})
    except ValidationError:
        broken.add(path)
        return None
