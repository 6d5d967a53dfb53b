"""Clusters with a role: their own hardware and engine over those of the whole scenario."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema

from frontier import units
from frontier.config.base import Choice, Section, section_of
from frontier.config.engine import Engine
from frontier.config.fields import Reference, Text, Whole, parse_plain_mapping, parse_whole
from frontier.config.schema import part_of
from frontier.config.sections import MAX_REPLICAS, Cluster, Hardware, Router
from frontier.errors import show_value

Role = Literal["colocated", "prefill", "decode", "attention", "ffn", "encode"]
"""What a cluster does for a request: everything, prompts, tokens, one half of every layer, or its images."""

MAX_CLUSTERS: Final = 64
MAX_WEIGHT: Final = 1e9


PARTIAL: Final[dict[str, type[Section]]] = {"hardware": Hardware, "engine": Engine}
"""Sections of which a cluster may have some fields of its own."""


def _parse_part(section: type[Section]) -> Any:
    def parse(value: object) -> dict[str, Any]:
        """Read some fields of a section: a mapping, its short form, or what was set of a section object."""
        if isinstance(value, section):
            return value.model_dump(mode="json", exclude_unset=True)
        expanded = section.expand(value)
        if not isinstance(expanded, dict):
            raise ValueError(section.expected(value))
        return parse_plain_mapping(expanded)

    return parse


def parse_weight(value: object) -> float:
    """Read a share of the requests relative to others."""
    weight = units.parse_number(value)
    if not 0 < weight <= MAX_WEIGHT:
        raise ValueError(f"was {show_value(value)}, must be greater than 0, at most {MAX_WEIGHT:g}")
    return weight


class RoleCluster(Section):
    """Equal replicas with a role. What they have in common with other clusters stands at the top."""

    name: Text | None = None
    """What it is called in results; left out, its role."""
    role: Role
    """What it does for a request: all of it (colocated), its prompt (prefill), its tokens (decode), the
    images that come with its prompt (encode), or attention or the FFN in every layer: of its tokens, after
    prefill clusters, of its prompt, before decode clusters, or of all of it."""
    model: Reference | None = None
    """What it serves, in place of the model at the top: clusters of several models stand behind one front
    door, and each request goes to those of the model that it names."""
    served_model_name: Text | None = None
    """Name by which requests ask for its model, where several are served; left out, that of the preset.
    Clusters of one name serve one model."""
    replicas: Annotated[int, Field(ge=1, le=MAX_REPLICAS), BeforeValidator(parse_whole)] = 1
    """Number of engine instances; of an ffn cluster, those of its attention cluster: each has FFN ranks of
    its own, `engine.data_parallel_size` of `engine.tensor_parallel_size` GPUs."""
    in_service: Whole | None = None
    """How many of them are in service at the start, the first ones; left out, all. Others are a reserve for
    `dynamics`."""
    hardware: (
        Annotated[dict[str, Any], BeforeValidator(_parse_part(Hardware)), WithJsonSchema(part_of(Hardware))]
        | None
    ) = None
    """Fields of `hardware` in place of those at the top; one with a `gpu` of its own inherits none of them,
    since a price and a node are those of a GPU."""
    engine: (
        Annotated[dict[str, Any], BeforeValidator(_parse_part(Engine)), WithJsonSchema(part_of(Engine))]
        | None
    ) = None
    """Fields of `engine` in place of those at the top, however deep; null is the engine's own rule."""
    router: Router = Router()
    """How its requests are spread over its replicas."""
    weight: Annotated[float, BeforeValidator(parse_weight)] | None = None
    """Its part of the requests, relative to the other clusters of its role; left out, its replicas."""

    @classmethod
    def partial_of(cls, field: str) -> type[Section] | None:
        return PARTIAL.get(field)

    @property
    def label(self) -> str:
        """Its name, or else its role."""
        return self.role if self.name is None else self.name

    @property
    def plain_cluster(self) -> Cluster:
        """Its replicas and their router."""
        return Cluster(replicas=self.replicas, in_service=self.in_service, router=self.router)


def plain_section(section: type[Section], raw: Any) -> Any:
    """Return a section's fields as a mapping, short forms written out; anything odd as it is."""
    if isinstance(raw, BaseModel):
        return raw.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    return section.expand(raw)


def over_engine(top: Any, own: Mapping[str, Any] | None) -> Any:
    """Return the engine section of a cluster: that at the top, with the cluster's own fields over it."""
    base = plain_section(Engine, {} if top is None else top)
    return _over(base, own, Engine) if isinstance(base, Mapping) and own else base


def over_hardware(top: Any, own: Mapping[str, Any] | None) -> Any:
    """Return the hardware section of a cluster; a GPU of its own replaces the whole section."""
    base = plain_section(Hardware, top)
    if own and "gpu" in own:
        return dict(own)
    return _over(base, own, Hardware) if isinstance(base, Mapping) and own else base


def is_given(own: Mapping[str, Any] | None, section: type[Section], path: str) -> bool:
    """Return whether a dotted path below a section leads to, or into, something that `own` has."""
    current: Any = own or {}
    owner: type[BaseModel] | None = section
    for part in path.split("."):
        if isinstance(current, list | tuple):
            entry = int(part) if part.isdecimal() else len(current)
            current, owner = current[entry] if entry < len(current) else None, None
            continue
        if not isinstance(current, Mapping):
            return True  # the path leads below a value that the cluster gives
        if part not in current:
            # Another alternative of a choice replaces the whole.
            return owner is not None and issubclass(owner, Choice) and bool(current)
        current = current[part]
        owner = section_of(owner, part) if owner is not None and part in owner.model_fields else None
        if owner is not None and issubclass(owner, Section):
            current = owner.expand(current)
    return True


def _over(base: Mapping[str, Any], own: Mapping[str, Any], owner: type[BaseModel]) -> dict[str, Any]:
    """Return `base` with the fields of `own` over it; another alternative of a choice replaces its."""
    result = dict(base)
    for name, value in own.items():
        part = section_of(owner, name) if name in owner.model_fields else None
        if value is None:
            result.pop(name, None)
            continue
        below = result.get(name)
        if part is not None:
            own_part, below = part.expand(value), part.expand(below)
            if isinstance(own_part, Mapping) and isinstance(below, Mapping):
                if issubclass(part, Choice):
                    below = {key: item for key, item in below.items() if key in own_part}
                result[name] = _over(below, own_part, part)
                continue
        result[name] = copy.deepcopy(value)
    return result
