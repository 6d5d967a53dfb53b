"""The published JSON Schema is current, and admits what scenarios admit."""

import json
from pathlib import Path
from typing import Any

import pytest

from frontier.config import Scenario, json_schema
from frontier.config.issues import leaf_paths

PUBLISHED = Path(__file__).parents[2] / "docs" / "scenario.schema.json"


def test_the_published_schema_is_current() -> None:
    """Mend with: frontier schema > docs/scenario.schema.json."""
    if not PUBLISHED.exists():
        pytest.skip("docs/ is not beside the tests: they run from an installed wheel")
    assert json.loads(PUBLISHED.read_text("utf-8")) == json_schema()


def resolve(schema: dict[str, Any], root: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the alternatives of a schema, references followed."""
    if "$ref" in schema:
        return resolve(root["$defs"][schema["$ref"].rsplit("/", 1)[-1]], root)
    if "anyOf" in schema:
        return [found for part in schema["anyOf"] for found in resolve(part, root)]
    return [schema]


def test_every_field_is_described() -> None:
    root = json_schema()
    for path in leaf_paths(Scenario):
        alternatives = [root]
        for name in path.split("."):
            held = [a["properties"][name] for a in alternatives if name in a.get("properties", {})]
            assert held, path
            described = root["$defs"].get(held[0].get("$ref", "").rsplit("/", 1)[-1], held[0])
            assert "description" in held[0] or "description" in described, path
            alternatives = [found for part in held for found in resolve(part, root)]
            alternatives += [
                found
                for part in alternatives
                if part.get("type") == "array" and "$ref" in part["items"]
                for found in resolve(part["items"], root)
            ]


def test_objects_are_closed() -> None:
    for name, schema in json_schema()["$defs"].items():
        objects = [part for part in schema.get("anyOf", [schema]) if part.get("properties") is not None]
        assert objects, name
        assert all(part["additionalProperties"] is False for part in objects), name


def test_defaults_are_written_as_a_document_would() -> None:
    definitions = json_schema()["$defs"]
    assert definitions["CpuOverhead"]["properties"]["per_step"]["default"] == "1ms"
    assert definitions["Output"]["properties"]["timeline_interval"]["default"] == "1s"
    window = next(p for p in resolve(definitions["Objectives"]["properties"]["window"], json_schema()))
    assert window["properties"]["warmup"]["default"] == "0s"
