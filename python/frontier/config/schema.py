"""The published JSON Schema of a scenario document."""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

DIALECT = "https://json-schema.org/draft/2020-12/schema"


class _Generator(GenerateJsonSchema):
    """Writes defaults as a document would (`1ms`), and leaves out those that mean "not given"."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        json_schema = super().default_schema(schema)
        default = schema.get("default")
        if default is None:
            json_schema.pop("default", None)
        elif isinstance(default, BaseModel):
            json_schema["default"] = default.model_dump(mode="json", exclude_none=True)
        else:
            write: Any = schema["schema"].get("serialization", {})
            if write.get("type") == "function-plain":
                json_schema["default"] = write["function"](default)
        return json_schema


def describe_fields(model: type[BaseModel], schema: JsonSchemaValue) -> None:
    """Enter the docstrings of the fields of `model` as descriptions into its JSON Schema."""
    for name, field in schema.get("properties", {}).items():
        for owner in model.__mro__:
            if name in _docstrings(owner):
                field["description"] = _docstrings(owner)[name]
                break


@cache
def _docstrings(owner: type) -> dict[str, str]:
    """Return the strings that stand below the annotated attributes of a class, by attribute."""
    if owner is BaseModel or not issubclass(owner, BaseModel):
        return {}
    body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        attribute.target.id: inspect.cleandoc(text.value.value)
        for attribute, text in itertools.pairwise(body.body)
        if isinstance(attribute, ast.AnnAssign)
        and isinstance(attribute.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def schema_of(model: type[BaseModel], *, title: str) -> dict[str, Any]:
    """Return the JSON Schema of the documents that `model` reads."""
    schema = model.model_json_schema(schema_generator=_Generator)
    return {"$schema": DIALECT, **_with_parts(schema, schema["$defs"]), "title": title}


_PART_OF = "part of"
"""Key of a stand-in for the schema of a mapping with some fields of a section."""


def part_of(section: type[BaseModel]) -> JsonSchemaValue:
    """Return a stand-in for the JSON Schema of a mapping with some fields of a section, none required.

    It counts within `schema_of` alone, for a document that has the whole section elsewhere.
    """
    return {_PART_OF: section.__name__}


def _with_parts(schema: Any, definitions: JsonSchemaValue) -> Any:
    """Return a schema with what the stand-ins of `part_of` stand for."""
    if isinstance(schema, list):
        return [_with_parts(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if _PART_OF not in schema:
        return {name: _with_parts(item, definitions) for name, item in schema.items()}
    whole = definitions[schema[_PART_OF]]
    if not any("required" in part for part in whole.get("anyOf", [whole])):
        return {"$ref": f"#/$defs/{schema[_PART_OF]}"}
    part = {name: item for name, item in whole.items() if name != "required"}
    if "anyOf" in part:
        kept = [{name: item for name, item in each.items() if name != "required"} for each in part["anyOf"]]
        part["anyOf"] = kept
    return part
