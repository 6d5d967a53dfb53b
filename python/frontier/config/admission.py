"""The front door: how many requests are let in, how long clients wait, how often they try again.

Who is turned away or gives up may come again, as clients do: openai-python 1.x retries after timeouts and
overload (429, 503), at first after half a second (`openai/_constants.py`).
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from frontier import units
from frontier.config.base import Section
from frontier.config.fields import Duration, Positive, PositiveDuration, parse_whole
from frontier.errors import Issue, show_value

if TYPE_CHECKING:
    from collections.abc import Callable

RETRY_DELAY_NS: Final = 500_000_000
MAX_CLASSES: Final = 64
MAX_RETRIES: Final = 1000
_PRIORITY_MIN, _PRIORITY_MAX = -(2**31), 2**31 - 1


def parse_priority(value: object) -> int:
    """Read the priority number of a request, which may be negative."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"was {show_value(value)}, must be a whole number")
    if not _PRIORITY_MIN <= value <= _PRIORITY_MAX:
        raise ValueError(f"was {value}, must be from {_PRIORITY_MIN} to {_PRIORITY_MAX}")
    return value


class AdmissionClass(Section):
    """How requests of some priorities are let in."""

    priority: Annotated[int, BeforeValidator(parse_priority)] | None = None
    """Largest priority number of the class (small numbers are served first); left out in the last class,
    which has all requests that no class before it has."""
    max_outstanding: Positive | None = None
    """Requests of the class under way at once, at most: others are turned away. Left out, any number."""
    timeout: PositiveDuration | None = None
    """A client that does not have its last token so long after it was let in gives up; left out, never."""
    max_retries: Annotated[int, Field(ge=0, le=MAX_RETRIES), BeforeValidator(parse_whole)] = 0
    """How often a client that was turned away or gave up tries again."""
    retry_delay: Duration | None = None
    """Time before it does; left out, 500ms."""

    def to_plan(self, priority: int) -> dict[str, Any]:
        """Return the plan's `AdmissionClass`; `priority` stands in for one that was left out."""
        delay = RETRY_DELAY_NS if self.retry_delay is None else self.retry_delay
        return {
            "priority": priority if self.priority is None else self.priority,
            "max_outstanding": self.max_outstanding,
            "timeout_ns": self.timeout,
            "max_retries": self.max_retries,
            "retry_delay_ns": delay,
        }


class Admission(Section):
    """Who is let in, and how long clients wait; the fields of a single class may stand here themselves."""

    classes: Annotated[tuple[AdmissionClass, ...], Field(max_length=MAX_CLASSES)]
    """Classes of requests by rising priority number; a request belongs to the first that has its own."""

    @classmethod
    def expand(cls, value: Any) -> Any:
        """Return the one class whose fields stand in the section itself as a list of classes."""
        flat = isinstance(value, dict) and set(value) & set(AdmissionClass.model_fields)
        return {"classes": [value]} if flat and "classes" not in value else super().expand(value)

    @classmethod
    def expected(cls, value: object) -> str:
        return (
            f"was {show_value(value)}, must be a mapping with fields such as 'max_outstanding' or 'classes'"
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = super().__get_pydantic_json_schema__(core, handler)
        inner = handler.resolve_ref_schema(schema)
        about: dict[str, Any] = {key: inner.pop(key) for key in ("title", "description") if key in inner}
        mapping = dict(inner)
        inner.clear()
        inner.update({**about, "anyOf": [dict(mapping["properties"]["classes"]["items"]), mapping]})
        return schema

    def to_plan(self) -> dict[str, Any]:
        """Return the plan's `AdmissionSpec`."""
        return {"classes": [each.to_plan(_PRIORITY_MAX) for each in self.classes]}


def admission_issues(admission: Admission, known: Callable[..., bool]) -> list[Issue]:
    """Return fields without effect, and classes that cannot be told apart."""
    path = "admission.classes"
    if not known("admission"):
        return []
    if not admission.classes:
        return [Issue(path, None, "has 0 entries, must have at least 1")]
    issues: list[Issue] = []

    def report(index: int, field: str, message: str) -> None:
        value = getattr(admission.classes[index], field)
        shown = units.format_duration(value) if field == "retry_delay" else show_value(value)
        issues.append(Issue(f"{path}.{index}.{field}", value, f"was {shown}, {message}"))

    *others, last = admission.classes
    for index, each in enumerate(others):
        if each.priority is None:
            message = "is required of all classes but the last, whose requests are the rest"
            issues.append(Issue(f"{path}.{index}.priority", None, message))
    if last.priority is not None:
        report(len(others), "priority", "has no effect: the last class has all the rest; remove it")
    for index, (one, other) in enumerate(pairwise(each.priority for each in others)):
        if one is not None and other is not None and other <= one:
            report(index + 1, "priority", f"must be above that of the class before it ({one})")
    for index, each in enumerate(admission.classes):
        limited = each.max_outstanding is not None or each.timeout is not None
        if each.max_retries and not limited:
            report(
                index,
                "max_retries",
                "has no effect without max_outstanding or timeout: nobody is turned away",
            )
        if each.retry_delay is not None and not each.max_retries:
            report(index, "retry_delay", "has no effect without max_retries; remove it")
    if all(each.max_outstanding is None and each.timeout is None for each in admission.classes):
        message = "limits nothing; give max_outstanding or timeout, or remove it"
        issues.append(Issue("admission", None, message))
    return issues
