"""The scenario: everything that a simulation depends on, validated as one document."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from frontier.config.base import Section, frozen, section_of
from frontier.config.document import dump_document, parse_document
from frontier.config.engine import Engine
from frontier.config.fields import Reference, Seed, Text
from frontier.config.issues import issues_of, unknown_field
from frontier.config.locate import anchor_paths, path_texts
from frontier.config.paths import changed
from frontier.config.plain import plain_values
from frontier.config.resolve import Examined, Parts, Resolved, examine
from frontier.config.schema import schema_of
from frontier.config.sections import Cluster, Hardware, Objectives, Output
from frontier.config.workload import Workload
from frontier.errors import ConfigError, DoesNotFitError, Issue, show_value

_RESOLVED = "_resolved"
"""Key of the facts in a scenario's `__dict__`, beside its fields; pydantic neither compares nor writes it."""


class Scenario(BaseModel):
    """A simulation's whole description: model, hardware, engine, cluster, workload, objectives, output.

    A scenario is checked completely when it is made: its sections, and what they mean together (the model
    fits the GPU, the engine would start). All problems are raised as one `ConfigError`. It never changes
    afterwards; `with_` makes changed copies.

    Times, sizes and rates are written with their units (`frontier.units`) and kept as plain numbers. Scalars
    of numpy are taken as the numbers they are, and `os.PathLike` where a file may be named.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    name: Text | None = None
    """A label for results."""
    model: Reference
    """Preset name, path of a Hugging Face config.json or its directory, or an inline mapping of its keys."""
    hardware: Hardware
    """The GPU."""
    engine: Engine = Engine()
    """The inference engine."""
    cluster: Cluster = Cluster()
    """Replicas and routing."""
    workload: Workload
    """Where requests come from."""
    objectives: Objectives = Objectives()
    """Latency objectives and the window of the metrics."""
    seed: Seed = 0
    """Seed of all random streams."""
    replication: Seed = 0
    """Another number gives another independent set of random streams for the same seed."""
    output: Output = Output()
    """What to record."""

    def __init__(self, /, **data: Any) -> None:
        """Validate the sections given by name, as mappings or as section objects.

        Raises:
            ConfigError: with every problem found; a `DoesNotFitError`, which has the memory plan, if all that
                is wrong is that the model does not fit the GPUs.
        """
        sections, broken, issues = _validate_sections(path_texts(plain_values(data)))
        examined = examine(Parts.of(sections, frozenset(broken)))
        if issues or examined.resolved is None:
            raise _refusal(issues, examined)
        super().__init__(**sections)
        self.__dict__[_RESOLVED] = examined.resolved

    def __hash__(self) -> int:
        """Return a hash that equal scenarios share."""
        return hash(frozen(self.model_dump()))

    @classmethod
    def model_validate(cls, obj: Any, **_options: Any) -> Scenario:
        """Return a scenario as it is, or make one of plain values (`from_dict`), whatever pydantic's options.

        Raises:
            ConfigError: with every problem found.
        """
        return obj if isinstance(obj, cls) else cls.from_dict(obj)

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **_options: Any) -> Scenario:
        """Make a scenario from JSON text, which is YAML too, whatever pydantic's options.

        Raises:
            ConfigError: with every problem found, each with its line.
        """
        if isinstance(json_data, str):
            return cls.from_yaml(json_data)
        try:
            return cls.from_yaml(json_data.decode())
        except UnicodeDecodeError as error:
            raise ConfigError(f"is not UTF-8 text (byte {error.start})") from None

    @classmethod
    def from_dict(
        cls,
        plain: Mapping[str, Any],
        *,
        base_dir: str | os.PathLike[str] | None = None,
        source: str | None = None,
        lines: Mapping[str, int | None] | None = None,
    ) -> Scenario:
        """Make a scenario from plain values, as `to_dict` and YAML give them.

        Args:
            plain: the document.
            base_dir: directory that relative paths in it start from; the current one if not given.
            source: what to call the document in errors.
            lines: line of each dotted path in its file, for errors; None where the value is not of the file.

        Raises:
            ConfigError: with every problem found.
        """
        if not isinstance(plain, Mapping):
            raise ConfigError(
                Issue("", plain, f"was {show_value(plain)}, must be a mapping of sections"), source=source
            )
        odd = [key for key in plain if not isinstance(key, str)]
        if odd:
            issues = [Issue("", key, f"has the key {show_value(key)}, keys must be text") for key in odd]
            raise ConfigError(issues, source=source)
        anchored = anchor_paths(plain, Path(base_dir)) if base_dir is not None else dict(plain)
        try:
            return cls(**anchored)
        except ConfigError as error:
            located = [replace(issue, line=_line(issue.path, lines or {})) for issue in error.issues]
            raise error.placed(located, source) from None

    @classmethod
    def from_yaml(
        cls, text: str, *, base_dir: str | os.PathLike[str] | None = None, source: str | None = None
    ) -> Scenario:
        """Make a scenario from YAML text.

        Raises:
            ConfigError: with every problem found, each with its line.
        """
        plain, lines = parse_document(text, source=source)
        return cls.from_dict(plain, base_dir=base_dir, source=source, lines=lines)

    def with_(self, changes: Mapping[str, Any]) -> Scenario:
        """Return a validated copy with the values at dotted paths replaced.

        `cfg.with_({"cluster.replicas": 8, "objectives.ttft": "500ms"})`. Setting a field of another
        alternative (`workload.synthetic.arrivals.gamma.rate`) replaces the alternative. None removes an
        optional value. Relative paths start from the current directory.

        Raises:
            ConfigError: paths that lead to no field, and every problem of the changed scenario.
        """
        plain, wrong = changed(self.to_dict(), changes.items(), type(self))
        return made(lambda: type(self)(**plain), wrong)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Scenario:
        """Return a copy; unlike pydantic's own, `update` is validated."""
        return self.with_(update) if update else super().model_copy(deep=deep)

    def to_dict(self, *, defaults: bool = True) -> dict[str, Any]:
        """Return the scenario as plain values with units written out, such that `from_dict` gives it back.

        Fields that stand for "vLLM's own rule" or "not used" are left out. `defaults=False` also leaves out
        fields that have their default value.
        """
        plain: dict[str, Any] = self.model_dump(mode="json", exclude_none=True, exclude_defaults=not defaults)
        return plain

    def to_yaml(self, *, defaults: bool = True) -> str:
        """Return the scenario as YAML text (see `to_dict`)."""
        return dump_document(self.to_dict(defaults=defaults))

    def to_vllm(self) -> str:
        """Return the `vllm serve` command of one replica (`frontier.launch.to_vllm`)."""
        from frontier.launch import to_vllm  # noqa: PLC0415 - it imports this module

        return to_vllm(self)

    def to_sglang(self) -> str:
        """Return the command of SGLang's server of one replica (`frontier.launch.to_sglang`)."""
        from frontier.launch import to_sglang  # noqa: PLC0415

        return to_sglang(self)

    def to_dynamo(self) -> str:
        """Return a `DynamoGraphDeployment` manifest in YAML (`frontier.launch.to_dynamo`)."""
        from frontier.launch import to_dynamo  # noqa: PLC0415

        return to_dynamo(self)

    def resolve(self) -> Resolved:
        """Return the facts that follow from the scenario: model, GPU, effective limits, memory plan."""
        known: Resolved = self.__dict__[_RESOLVED]
        return known


def made(make: Callable[[], Scenario], wrong: list[Issue], source: str | None = None) -> Scenario:
    """Return what is made; where changes to it were wrong, raise their issues with those of the making."""
    try:
        scenario = make()
    except ConfigError as error:
        if not wrong:
            raise
        known = {issue.path for issue in wrong}
        rest = [issue for issue in error.issues if issue.path not in known]
        raise ConfigError([*wrong, *rest], source=source) from None
    if wrong:
        raise ConfigError(wrong, source=source)
    return scenario


def _refusal(issues: list[Issue], examined: Examined) -> ConfigError:
    """Return the error of a scenario with these issues of its sections, and what their examination found."""
    if examined.lacking is not None and not issues:
        return DoesNotFitError(examined.issues, memory=examined.lacking)
    return ConfigError([*issues, *examined.issues])


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a scenario document."""
    return schema_of(Scenario, title="frontier scenario")


def _validate_sections(data: Mapping[str, Any]) -> tuple[dict[str, Any], set[str], list[Issue]]:
    """Validate each section on its own; return the usable ones, the paths that are broken, and the issues.

    A section with a broken field is kept without it, so that checks that do not need the field still run.
    """
    sections: dict[str, Any] = {}
    broken: set[str] = set()
    issues = [
        unknown_field(Scenario, (name,), data[name], Scenario)
        for name in data
        if name not in Scenario.model_fields
    ]
    for name, field in Scenario.model_fields.items():
        if name not in data:
            if field.is_required():
                issues.append(Issue(name, None, "is required and was not given"))
                broken.add(name)
            else:
                sections[name] = field.get_default()
            continue
        owner = section_of(Scenario, name)
        if owner is None:
            _validate_leaf(name, data[name], sections, broken, issues)
        else:
            _validate_section(name, owner, data[name], sections=sections, broken=broken, issues=issues)
    return sections, broken, issues


def _validate_leaf(
    name: str, raw: object, sections: dict[str, Any], broken: set[str], issues: list[Issue]
) -> None:
    try:
        sections[name] = _leaf_adapter(name).validate_python(raw)
    except ValidationError as error:
        issues += issues_of(error, Scenario, raw, (name,))
        broken.add(name)


@cache
def _leaf_adapter(name: str) -> TypeAdapter[Any]:
    field = Scenario.model_fields[name]
    annotation: Any = field.annotation
    return TypeAdapter(Annotated[(annotation, *field.metadata)] if field.metadata else annotation)


def _validate_section(
    name: str,
    owner: type[Section],
    raw: Any,
    *,
    sections: dict[str, Any],
    broken: set[str],
    issues: list[Issue],
) -> None:
    try:
        sections[name] = owner.model_validate(raw)
        return
    except ValidationError as error:
        found = issues_of(error, owner, raw, (name,))
        at = {str(details["loc"][0]) if details["loc"] else "" for details in error.errors(include_url=False)}
    issues += found
    broken |= {issue.path for issue in found} | {f"{name}.{field}" for field in at}
    # A misspelt field leaves its namesake unknown as well.
    broken |= {f"{name}.{issue.nearest}" for issue in found if issue.nearest}
    expanded = owner.expand(raw)
    if "" in at or not isinstance(expanded, dict):
        broken.add(name)
        return
    try:
        sections[name] = owner.model_validate(
            {key: value for key, value in expanded.items() if key not in at}
        )
    except ValidationError:
        broken.add(name)


def _line(path: str, lines: Mapping[str, int | None]) -> int | None:
    """Return the line of a path, or of the nearest thing around it that has one or is not of the file."""
    while path:
        if path in lines:
            return lines[path]
        path = path.rpartition(".")[0]
    return None
