"""The scenario: everything that a simulation depends on, validated as one document."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from frontier.config import encode
from frontier.config.admission import Admission
from frontier.config.base import frozen, section_of
from frontier.config.clusters import MAX_CLUSTERS, RoleCluster
from frontier.config.disaggregation import Disaggregation
from frontier.config.document import dump_document, parse_document
from frontier.config.dynamics import Dynamics
from frontier.config.engine import Engine
from frontier.config.fields import Reference, Seed, Text
from frontier.config.issues import issues_of, unknown_field
from frontier.config.locate import anchor_paths, path_texts
from frontier.config.models_served import workload_issues
from frontier.config.network import Network
from frontier.config.paths import changed
from frontier.config.plain import plain_values
from frontier.config.resolve import Parts, Resolved, examine
from frontier.config.schema import schema_of
from frontier.config.sections import Cluster, Hardware, Objectives, Output
from frontier.config.validate import validate_section
from frontier.config.views import (
    ClusterView,
    colocated_service_issues,
    colocated_view,
    examine_clusters,
)
from frontier.config.workload import Workload
from frontier.errors import ConfigError, DoesNotFitError, Issue, nearest_name, show_value

if TYPE_CHECKING:
    from frontier.memory import MemoryPlan
    from frontier.memory.sglang import SglangPlan

_RESOLVED = "_resolved"
"""Key of the facts in a scenario's `__dict__`, beside its fields; pydantic neither compares nor writes it."""
_VIEWS = "_views"
"""The same of its clusters, where it has `clusters`."""
_PART = "_part"
"""The mark of a scenario that is one of several clusters."""
_ROLE_SECTIONS = ("clusters", "disaggregation", "network", "admission", "dynamics")
"""Sections that a cluster on its own does not have."""


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
    """Preset name, path of a Hugging Face config.json or its directory, or an inline mapping of its keys; of
    clusters with a role, that of those which name no other."""
    hardware: Hardware
    """The GPU; of clusters with a role, of those that name no other."""
    engine: Engine = Engine()
    """The inference engine; of clusters with a role, what they have in common."""
    cluster: Cluster = Cluster()
    """Replicas and routing, where every replica serves requests as a whole."""
    clusters: Annotated[tuple[RoleCluster, ...], Field(min_length=1, max_length=MAX_CLUSTERS)] | None = None
    """Clusters with a role, in place of `cluster`: prefill and decode clusters, attention and ffn clusters
    in place of either or both, or colocated ones of several kinds."""
    disaggregation: Disaggregation | None = None
    """How requests go through clusters with a role."""
    network: Network | None = None
    """Links between the GPUs of prefill and decode clusters, over which KV is handed on; left out, those of
    the GPUs' usual servers."""
    admission: Admission | None = None
    """Who is let in, and how long clients wait; left out, everybody, for ever."""
    dynamics: Dynamics | None = None
    """What changes while the run goes on: faults, restarts, roles, autoscaling."""
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
        data = path_texts(plain_values(data))
        if data.get("clusters") is not None and data.get("cluster", 0) is None:
            del data["cluster"]
        sections, broken, issues = _validate_sections(data)
        if data.get("clusters") is not None:
            self._init_clusters(data, sections, broken=broken, issues=issues)
            return
        issues += [
            Issue(name, None, "has no effect without clusters; remove it")
            for name in ("disaggregation", "network")
            if data.get(name) is not None
        ]
        parts = Parts.of(sections, frozenset(broken))
        examined = examine(parts)
        issues += colocated_service_issues(sections, parts)
        issues += workload_issues(sections.get("workload"), (), parts.known)
        issues += encode.workload_issues(parts.workload, ("colocated",))
        if issues or examined.resolved is None:
            raise _refusal(issues, examined.issues, examined.lacking)
        super().__init__(**sections)
        self.__dict__[_RESOLVED] = examined.resolved

    def _init_clusters(
        self, data: Mapping[str, Any], sections: dict[str, Any], *, broken: set[str], issues: list[Issue]
    ) -> None:
        if "cluster" in data:
            message = (
                "was given beside clusters, whose entries have replicas and routers; remove one of the two"
            )
            issues.append(Issue("cluster", show_value(data["cluster"]), message))
        examined = examine_clusters(
            data["clusters"], data, sections, frozenset(broken), lambda *facts: type(self)._view(*facts)
        )
        known = {(issue.path, issue.message) for issue in issues}
        found = [issue for issue in examined.issues if (issue.path, issue.message) not in known]
        if issues or found or not examined.views:
            raise _refusal(issues, found, examined.lacking)
        super().__init__(**{**sections, "clusters": examined.clusters})
        self.__dict__[_VIEWS] = examined.views
        for view in examined.views:
            if view.unit is not None or view.role == encode.ENCODE:
                # On its own, too, it has FFN ranks, or is an encoder, and its model is the only one.
                view.scenario.__dict__[_VIEWS] = (replace(view, served_model=None),)

    @classmethod
    def _view(cls, sections: dict[str, Any], facts: Resolved) -> Scenario:
        """Return a co-located scenario of sections that are known to be valid."""
        kept = {name: value for name, value in sections.items() if name not in _ROLE_SECTIONS}
        view = cls.__new__(cls)
        super(Scenario, view).__init__(**kept)
        view.__dict__[_RESOLVED] = facts
        view.__dict__[_PART] = True
        return view

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
        plain = self.to_dict()
        if self.clusters is None and self.cluster == Cluster() and changes.get("clusters") is not None:
            del plain["cluster"]  # nobody asked for it
        plain, wrong = changed(plain, changes.items(), type(self))
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
        if self.clusters is not None:
            plain.pop("cluster", None)
            for cluster, entry in zip(plain["clusters"], self.clusters, strict=True):
                # A null of a cluster stands for the engine's own rule where the scenario has another.
                cluster |= {
                    name: copy.deepcopy(getattr(entry, name))
                    for name in ("hardware", "engine")
                    if name in cluster
                }
        return plain

    def to_yaml(self, *, defaults: bool = True) -> str:
        """Return the scenario as YAML text (see `to_dict`)."""
        return dump_document(self.to_dict(defaults=defaults))

    def to_vllm(self) -> str:
        """Return the `vllm serve` command of one replica, of each cluster (`frontier.launch.to_vllm`)."""
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

    def resolve(self, cluster: str | None = None) -> Resolved:
        """Return the facts that follow from the scenario: model, GPU, effective limits, memory plan.

        Args:
            cluster: the name of one of several clusters, whose facts are wanted.

        Raises:
            ConfigError: no cluster has that name, or there are several and none was named.
        """
        return self.view(cluster).facts

    def views(self) -> tuple[ClusterView, ...]:
        """Return the clusters, each with its role, the facts that follow and a scenario of its own.

        A scenario with `cluster` has one, named serve.
        """
        known: tuple[ClusterView, ...] | None = self.__dict__.get(_VIEWS)
        return (colocated_view(self, self.__dict__[_RESOLVED]),) if known is None else known

    @property
    def is_part(self) -> bool:
        """Whether it is one of the clusters of another scenario, whose requests may pass others before it."""
        return _PART in self.__dict__

    def view(self, cluster: str | None = None) -> ClusterView:
        """Return a cluster by its name, which may be left out where there is only one.

        Raises:
            ConfigError: no cluster has that name, or there are several and none was named.
        """
        views = self.views()
        names = tuple(view.name for view in views)
        if cluster is None and len(views) == 1:
            return views[0]
        for view in views:
            if view.name == cluster:
                return view
        message = (
            f"was not given, and there are {len(views)} clusters"
            if cluster is None
            else f"was {show_value(cluster)}, no cluster has this name"
        )
        raise ConfigError(Issue("cluster", cluster, message, names, nearest_name(cluster or "", names)))


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


def _refusal(issues: list[Issue], found: list[Issue], lacking: MemoryPlan | SglangPlan | None) -> ConfigError:
    """Return the error of a scenario with these issues of its sections, and what their examination found."""
    if lacking is not None and not issues:
        return DoesNotFitError(found, memory=lacking)
    return ConfigError([*issues, *found])


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
        if name == "clusters" or (name in _ROLE_SECTIONS and data.get(name) is None):
            sections[name] = None  # clusters are examined together, once the rest is known
            continue
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
            section = validate_section((name,), owner, data[name], broken=broken, issues=issues)
            if section is not None:
                sections[name] = section
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


def _line(path: str, lines: Mapping[str, int | None]) -> int | None:
    """Return the line of a path, or of the nearest thing around it that has one or is not of the file."""
    while path:
        if path in lines:
            return lines[path]
        path = path.rpartition(".")[0]
    return None
