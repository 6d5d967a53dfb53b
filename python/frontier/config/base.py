"""What all parts of a scenario share: strictness, short forms, and the choice of one among alternatives."""

from __future__ import annotations

import inspect
from collections.abc import Hashable
from typing import Any, ClassVar, cast

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from frontier.config.schema import describe_fields
from frontier.errors import nearest_name, show_value

BASE_KEY = "config"
"""Key of an inline model that names the configuration its other keys change."""

UNMODELLED: dict[str, str] = {
    "cudagraph_capture_sizes": "sizes outside engine.cuda_graph (use engine.cuda_graph.capture_sizes)",
    "compilation_config": "compilation (CUDA graphs have settings of their own, engine.cuda_graph)",
    "kv_transfer_config": "KV transfer between engines",
    "cpu_offload_gb": "weight offloading",
    "enable_lora": "LoRA",
    "stream_interval": "output streaming intervals",
    "kv_cache_memory_bytes": "an explicit KV cache size in bytes (use engine.num_gpu_blocks_override)",
}
"""Settings of vLLM that frontier knows of and does not model; naming one is refused with its reason."""


_ABOUT = ("title", "description")
"""Keys of a JSON Schema that stay outside when alternatives are added."""


class Section(BaseModel):
    """A part of a scenario: unknown fields are refused, values do not change once made.

    A field that is None stands for vLLM's own rule or for "not used" and is not written back.
    """

    # Docstrings of fields reach the JSON Schema when it is asked for (`describe_fields`): pydantic's own
    # `use_attribute_docstrings` would parse the sources of all sections at every start.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, defer_build=True)

    shorthand: ClassVar[str | None] = None
    """Name of the field that a bare value stands for, if the section has a short form."""

    @classmethod
    def partial_of(cls, field: str) -> type[Section] | None:
        """Return the section of which a field holds some fields as a mapping, None where it holds no such."""
        return None

    @classmethod
    def expand(cls, value: Any) -> Any:
        """Return the mapping that a short form stands for; anything else as it is."""
        if cls.shorthand is not None and isinstance(value, str | int | float) and not isinstance(value, bool):
            return {cls.shorthand: value}
        return value

    @model_validator(mode="before")
    @classmethod
    def _expand_before(cls, value: Any) -> Any:
        value = cls.expand(value)
        if not isinstance(value, dict | cls):
            raise PydanticCustomError("section", "{message}", {"message": cls.expected(value)})
        return value

    @classmethod
    def expected(cls, value: object) -> str:
        """Return the message for a value that is no form of this section."""
        # Its own fields before those that it inherits.
        fields = [name for name in inspect.get_annotations(cls) if name in cls.model_fields]
        first = next(iter(fields or cls.model_fields), None)
        form = f"a mapping with fields such as '{first}'" if first is not None else "{}"
        return f"was {show_value(value)}, must be {form}"

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core)
        inner = handler.resolve_ref_schema(schema)
        describe_fields(cls, inner)
        if cls.shorthand is None:
            return schema
        field = dict(inner["properties"][cls.shorthand])
        about: dict[str, Any] = {key: inner.pop(key) for key in _ABOUT if key in inner}
        mapping = dict(inner)
        inner.clear()
        inner.update({**about, "anyOf": [field, mapping]})
        return schema


class Choice(Section):
    """A section of which exactly one alternative is given: `{poisson: {rate: 12/s}}`.

    An alternative whose fields all have defaults may be given by its name alone (`burst`).
    """

    @classmethod
    def alternatives(cls) -> tuple[str, ...]:
        """Return the names of the alternatives."""
        return tuple(cls.model_fields)

    @classmethod
    def bare(cls) -> tuple[str, ...]:
        """Return the names of the alternatives that need no fields of their own."""
        found = []
        for name in cls.model_fields:
            part = section_of(cls, name)
            if part is not None and not any(f.is_required() for f in part.model_fields.values()):
                found.append(name)
        return tuple(found)

    @classmethod
    def expand(cls, value: Any) -> Any:
        """Return `{name: {}}` for a bare name."""
        return {value: {}} if isinstance(value, str) and value in cls.bare() else super().expand(value)

    @property
    def chosen(self) -> str:
        """The name of the alternative that is given."""
        return next(name for name in type(self).alternatives() if getattr(self, name) is not None)

    @classmethod
    def expected(cls, value: object) -> str:
        nearest = nearest_name(value, cls.alternatives()) if isinstance(value, str) else None
        hint = f"; did you mean '{nearest}'?" if nearest else ""
        return f"was {show_value(value)}, must be one of: {cls._forms()}{hint}"

    @classmethod
    def _forms(cls) -> str:
        bare = cls.bare()
        return ", ".join(name if name in bare else f"{{{name}: ...}}" for name in cls.alternatives())

    @model_validator(mode="before")
    @classmethod
    def _exactly_one(cls, value: Any) -> Any:
        value = cls.expand(value)
        if not isinstance(value, dict):
            return value
        given = [name for name in cls.alternatives() if value.get(name) is not None]
        unknown = [name for name in value if name not in cls.alternatives()]
        if len(given) > 1:
            message = f"has {' and '.join(given)} at once, must have exactly one of: {cls._forms()}"
            raise PydanticCustomError("section", "{message}", {"message": message})
        if not given and not unknown:
            message = f"was {show_value(value)}, must have exactly one of: {cls._forms()}"
            raise PydanticCustomError("section", "{message}", {"message": message})
        return value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core)
        inner = handler.resolve_ref_schema(schema)
        describe_fields(cls, inner)
        about: dict[str, Any] = {key: inner.pop(key) for key in _ABOUT if key in inner}
        mapping = dict(inner, minProperties=1, maxProperties=1)
        short = [{"enum": list(cls.bare())}] if cls.bare() else []
        if cls.shorthand is not None:
            short.append(dict(mapping["properties"][cls.shorthand]))
        inner.clear()
        inner.update({**about, "anyOf": [*short, mapping]} if short else {**about, **mapping})
        return schema


def frozen(value: Any) -> Hashable:
    """Return a hashable stand-in for plain values; equal values have equal ones."""
    if isinstance(value, dict):
        return frozenset((key, frozen(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(frozen(item) for item in value)
    return cast(Hashable, value)


def section_of(owner: type[BaseModel], field: str) -> type[Section] | None:
    """Return the Section class that a field holds (also behind `| None` or in a list), None for a leaf."""
    annotation = owner.model_fields[field].annotation
    candidates = [annotation]
    while candidates:
        candidate = candidates.pop(0)
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
        candidates += getattr(candidate, "__args__", ())
    return None
