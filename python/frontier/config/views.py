"""Each cluster as a scenario of its own: merged sections, examined as those of a co-located one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from frontier.config import afd, encode, sglang_handover
from frontier.config import disaggregation as rules
from frontier.config.afd import Afd
from frontier.config.afd_facts import AfdUnit, step_time_issues, with_batches
from frontier.config.clusters import MAX_CLUSTERS, PARTIAL, RoleCluster, is_given, over_engine, over_hardware
from frontier.config.disaggregation import Disaggregation, KvTransfer
from frontier.config.dynamics_checks import ServingCluster, service_issues
from frontier.config.engine import Engine
from frontier.config.models_served import (
    ServedModel,
    by_model,
    served_models,
    without_models,
    workload_issues,
)
from frontier.config.network import Network, network_facts
from frontier.config.resolve import Examined, Parts, Resolved, examine
from frontier.config.sections import Hardware
from frontier.config.validate import validate_section
from frontier.errors import Issue, show_value

if TYPE_CHECKING:
    from frontier.config.scenario import Scenario
    from frontier.memory import MemoryPlan
    from frontier.memory.sglang import SglangPlan

COLOCATED_NAME = "serve"
"""Name of the cluster of a scenario with `cluster`."""

_SHARED = ("model", "workload", "objectives")
"""Sections that are the same for all clusters."""


@dataclass(frozen=True, slots=True)
class ClusterView:
    """One cluster of a scenario.

    Attributes:
        name: its name in plans and results.
        role: what it does for a request.
        weight: its part of the requests among the clusters of its role.
        engine: its engine, the fields at the top of the scenario included.
        model: its model, the scenario's or its own.
        index: its number in `clusters`, None where the scenario has a `cluster`.
        own: its entry in `clusters`.
        found: the facts that follow, None where it is not valid.
        unit: of an attention cluster, the FFN ranks of each of its replicas.
        served_model: by what name requests ask for its model, None where all clusters serve one.
    """

    name: str
    role: str
    weight: float
    engine: Engine
    model: Any
    index: int | None = None
    own: RoleCluster | None = None
    found: Resolved | None = None
    unit: AfdUnit | None = None
    served_model: str | None = None
    _scenario: Scenario | None = field(default=None, repr=False, compare=False)

    @property
    def facts(self) -> Resolved:
        """What follows from its sections."""
        assert self.found is not None
        return self.found

    @property
    def has_requests(self) -> bool:
        """Whether requests go to it: FFN ranks have none, and belong to an attention cluster."""
        return self.role != "ffn"

    @property
    def scenario(self) -> Scenario:
        """The cluster as a co-located scenario of its own: the same workload, merged hardware and engine."""
        assert self._scenario is not None
        return self._scenario

    @property
    def plain(self) -> RoleCluster:
        """Its entry in `clusters`."""
        assert self.own is not None
        return self.own

    def placed(self, issue: Issue) -> Issue:
        """Return an issue of `scenario` at the place in the whole scenario that it is about."""
        path = issue.path
        head, _, rest = path.partition(".")
        if self.index is None or self.own is None:
            return issue
        if head == "cluster":
            return replace(issue, path=f"clusters.{self.index}.{rest}" if rest else f"clusters.{self.index}")
        if head == "model" and self.own.model is not None:
            return replace(issue, path=f"clusters.{self.index}.{path}")
        if head not in ("engine", "hardware"):
            return issue
        if rest and not is_given(getattr(self.own, head), PARTIAL[head], rest):
            return issue
        return replace(issue, path=f"clusters.{self.index}.{path}")


@dataclass(frozen=True, slots=True)
class ExaminedClusters:
    """What became of a scenario with `clusters`.

    Attributes:
        clusters: the entries as they are kept, None where some are not valid.
        views: the clusters, empty where there are problems.
        issues: what is wrong.
        lacking: the memory plan of a cluster, if all that is wrong is that models do not fit.
    """

    clusters: tuple[RoleCluster, ...] | None
    views: tuple[ClusterView, ...]
    issues: list[Issue]
    lacking: MemoryPlan | SglangPlan | None = None


def colocated_view(scenario: Scenario, facts: Resolved) -> ClusterView:
    """Return the one cluster of a scenario with `cluster`."""
    return ClusterView(
        COLOCATED_NAME, "colocated", 1.0, scenario.engine, scenario.model, found=facts, _scenario=scenario
    )


def colocated_service_issues(sections: Mapping[str, Any], parts: Parts) -> list[Issue]:
    """Return what is wrong with changes and the front door of a scenario with `cluster`."""
    if parts.cluster is None:
        return []
    cluster, engine = parts.cluster, parts.engine
    found = ServingCluster(
        COLOCATED_NAME, "cluster", cluster.replicas, cluster.in_service, engine, lambda path: path
    )
    return service_issues(sections, [found], parts.known, has_network=False)


def _service_issues(
    views: Sequence[ClusterView], sections: Mapping[str, Any], broken: frozenset[str]
) -> list[Issue]:
    """Return what is wrong with changes and the front door of several clusters."""
    disaggregation: Disaggregation = sections.get("disaggregation") or Disaggregation()
    transfer = disaggregation.kv_transfer or KvTransfer()
    apart = {
        view.name
        for members in by_model(views)
        if {view.role for view in members} - {encode.ENCODE} == {"prefill", "decode"}
        for view in members
        if view.role != encode.ENCODE
    }
    linked = apart if transfer.bandwidth is None else set()
    clusters = []
    for view in (view for view in views if view.has_requests):
        assert view.own is not None
        own, place = view.own, view.placed
        clusters.append(
            ServingCluster(
                view.name,
                f"clusters.{view.index}",
                own.replicas,
                own.in_service,
                view.engine,
                lambda path, place=place: place(Issue(path, None, "")).path,  # type: ignore[misc]
                hands_over=view.name in apart,
                has_links=view.name in linked,
                gpus=_replica_gpus(view),
            )
        )
    issues = service_issues(
        sections,
        clusters,
        Parts.of({}, broken).known,
        has_network=bool(linked),
    )
    # An engine at the top is that of all clusters.
    return list({(issue.path, issue.message): issue for issue in issues}.values())


def _replica_gpus(view: ClusterView) -> tuple[int, str] | None:
    """Return how many GPUs of which kind a replica has, None where that is not known."""
    return None if view.found is None else (view.found.gpus_per_replica, view.found.gpu.name)


def examine_clusters(
    raw: Any,
    data: Mapping[str, Any],
    sections: Mapping[str, Any],
    broken: frozenset[str],
    make: Callable[[dict[str, Any], Resolved], Scenario],
) -> ExaminedClusters:
    """Check clusters on their own, as co-located scenarios, and together.

    Args:
        raw: the plain values of `clusters`.
        data: those of the whole scenario.
        sections: its other sections, as far as they are valid.
        broken: its broken paths.
        make: makes a co-located scenario of valid sections and the facts that follow.
    """
    issues: list[Issue] = []
    if not isinstance(raw, list | tuple):
        message = f"was {show_value(raw)}, must be a list of clusters such as {{role: prefill, replicas: 2}}"
        return ExaminedClusters(None, (), [Issue("clusters", raw, message)])
    if not 1 <= len(raw) <= MAX_CLUSTERS:
        message = f"has {len(raw)} entries, must have from 1 to {MAX_CLUSTERS}"
        return ExaminedClusters(None, (), [Issue("clusters", None, message)])
    wrong: set[str] = set()
    entries = [
        validate_section(("clusters", index), RoleCluster, item, broken=wrong, issues=issues)
        for index, item in enumerate(raw)
    ]
    disaggregation = sections.get("disaggregation")
    issues += _overridden(sections.get("engine"), entries)
    issues += _overridden_hardware(sections.get("hardware"), entries)
    models, found = served_models(entries, sections.get("model"))
    issues += found
    issues += rules.program_issues(entries, models, disaggregation)
    section = None if disaggregation is None else disaggregation.afd
    issues += afd.entry_issues(entries, section, sections.get("engine"))
    embeddings = None if disaggregation is None else disaggregation.embedding_transfer
    issues += encode.entry_issues(entries, embeddings, len(models))
    examined = [
        _examine_entry(index, entry, data, sections, broken=broken | _as_cluster(wrong, index), make=make)
        for index, entry in enumerate(entries)
        if entry is not None
    ]
    own_issues = not issues and not broken and all(part.is_lacking or not part.issues for part in examined)
    lacking = (
        next((part.lacking for part in examined if part.lacking is not None), None) if own_issues else None
    )
    issues += _merged_issues(examined)
    if models and not any(f".{issue.path}".endswith(".model") for issue in issues):
        names = [each.name for each in models if each.name is not None]
        found = workload_issues(sections.get("workload"), names, Parts.of({}, broken).known)
        lacking = None if found else lacking
        issues += found
    views = _named(tuple(part.view for part in examined), models)
    issues += _service_issues(views, sections, broken | wrong)
    issues += _encode_issues(views, sections, embeddings)
    if any(view.role in afd.AFD_ROLES for view in views):
        units: list[ClusterView] = []
        found = []
        for members in by_model(views):
            prefills = rules.units_prefill([view.role for view in members], disaggregation)
            changed, wrong_units = _units(members, section or Afd(), broken, prefills=prefills)
            units += changed
            found += wrong_units
        views = tuple(sorted(units, key=lambda view: view.index or 0))
        issues += found
        lacking = None if found else lacking
    apart = hand_over(views)
    if apart or not views:
        transfer_broken = any(path.startswith(("disaggregation", "network")) for path in broken)
        found = (
            []
            if transfer_broken
            else _hand_over_issues(apart, disaggregation, sections.get("network"), broken)
        )
        lacking = None if found else lacking
        issues += found
    elif sections.get("network") is not None and views:
        message = "has no effect without prefill and decode clusters; remove it"
        issues.append(Issue("network", None, message))
    clusters = tuple(entry for entry in entries if entry is not None) if not issues else None
    return ExaminedClusters(clusters, () if issues or broken else views, issues, lacking)


def _named(views: tuple[ClusterView, ...], models: Sequence[ServedModel]) -> tuple[ClusterView, ...]:
    """Return the clusters with the names of the models that they serve."""
    names = {index: model.name for model in models for index in model.clusters}
    return tuple(replace(view, served_model=names.get(view.index or 0)) for view in views)


def hand_over(views: Sequence[ClusterView]) -> tuple[ClusterView, ...]:
    """Return the clusters of models whose KV is handed from one cluster to the next."""
    groups = by_model(views)
    apart = [
        members
        for members in groups
        if all(view.role != "colocated" for view in members)
        and rules.hands_over(view.role for view in members)
    ]
    return tuple(view for members in apart for view in members if view.role != encode.ENCODE)


def _encode_issues(
    views: Sequence[ClusterView], sections: Mapping[str, Any], section: encode.EmbeddingTransfer | None
) -> list[Issue]:
    """Return what is wrong between encode clusters, the workload, and the clusters that come next."""
    issues = [*encode.workload_issues(sections.get("workload"), [view.role for view in views])]
    encoders = [view for view in views if view.role == encode.ENCODE and view.found is not None]
    if not encoders:
        return issues
    issues += encode.switch_issues(sections.get("dynamics"), views)
    receivers = [view.facts.gpu for view in views if view.role in encode.RECEIVERS and view.found is not None]
    return [*issues, *encode.link_issues(section, [view.facts.gpu for view in encoders], receivers)]


def _overridden(top: Engine | None, entries: Sequence[RoleCluster | None]) -> list[Issue]:
    """Return fields of the common engine that every cluster sets for itself."""
    if top is None:
        return []
    message = "has no effect: every cluster sets it for itself; remove it here"
    return [
        Issue(f"engine.{path}", value, f"was {show_value(value)}, {message}")
        for path, value in _leaves(top.model_dump(mode="json", exclude_none=True, exclude_defaults=True))
        if all(entry is not None and is_given(entry.engine, Engine, path) for entry in entries)
    ]


def _overridden_hardware(top: Hardware | None, entries: Sequence[RoleCluster | None]) -> list[Issue]:
    """Return fields of the common hardware that no cluster takes over; the GPU is always needed there."""
    issues = []
    for name in ("price_per_hour", "gpus_per_node", "placement"):
        value = None if top is None else getattr(top, name)
        own = [entry is not None and bool({"gpu", name} & set(entry.hardware or ())) for entry in entries]
        if value is not None and all(own):
            message = f"was {show_value(value)}, has no effect: no cluster takes it over; remove it here"
            issues.append(Issue(f"hardware.{name}", value, message))
    return issues


def _leaves(plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in plain.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


@dataclass(frozen=True, slots=True)
class _Entry:
    view: ClusterView
    issues: list[Issue]
    lacking: MemoryPlan | SglangPlan | None

    @property
    def is_lacking(self) -> bool:
        """Whether all that is wrong is that the model does not fit."""
        return self.lacking is not None


def _as_cluster(wrong: set[str], index: int) -> frozenset[str]:
    """Return the broken paths of an entry as those of a scenario with `cluster`."""
    start = f"clusters.{index}."
    return frozenset(f"cluster.{path.removeprefix(start)}" for path in wrong if path.startswith(start))


def _examine_entry(
    index: int,
    entry: RoleCluster,
    data: Mapping[str, Any],
    sections: Mapping[str, Any],
    *,
    broken: frozenset[str],
    make: Callable[[dict[str, Any], Resolved], Scenario],
) -> _Entry:
    issues: list[Issue] = []
    own = {name: value for name, value in sections.items() if name not in ("engine", "hardware")}
    own["workload"] = without_models(own.get("workload"))
    bad = {path for path in broken if path.partition(".")[0] in (*_SHARED, "cluster")}
    if "cluster.model" in bad:
        own["model"] = None
        bad.add("model")
    elif entry.model is not None:
        own["model"] = entry.model
        bad -= {"model"}
    parts = {
        "engine": over_engine(encode.common_engine(data.get("engine"), entry.role), entry.engine),
        "hardware": over_hardware(data.get("hardware"), entry.hardware),
    }
    for name, raw in parts.items():
        if raw is None:
            bad.add(name)  # hardware that is nowhere given, which is said of the top
            continue
        section = validate_section((name,), PARTIAL[name], raw, broken=bad, issues=issues)
        if section is not None:
            own[name] = section
    own["cluster"] = entry.plain_cluster
    engine = own.get("engine", Engine())
    view = ClusterView(
        entry.label,
        entry.role,
        float(entry.replicas) if entry.weight is None else entry.weight,
        engine,
        data.get("model") if entry.model is None else entry.model,
        index=index,
        own=entry,
    )
    examined: Examined = examine(Parts.of(own, frozenset(bad), entry.role))
    lacking = examined.lacking if not issues else None
    issues = [view.placed(issue) for issue in (*issues, *examined.issues)]
    facts = examined.resolved
    if facts is not None and not issues:
        view = replace(view, found=facts, _scenario=make(own, facts))
    return _Entry(view, issues, lacking)


def _merged_issues(examined: Sequence[_Entry]) -> list[Issue]:
    """Return the issues of all clusters; what only some say of a common place names them."""
    said: dict[tuple[str, str], tuple[Issue, list[str]]] = {}
    for part in examined:
        for issue in part.issues:
            said.setdefault((issue.path, issue.message), (issue, []))[1].append(part.view.name)
    merged = []
    for issue, names in said.values():
        common = not issue.path.startswith("clusters.")
        if common and len(names) < len(examined) and issue.path.startswith(("engine", "hardware")):
            quoted = ", ".join(f"'{name}'" for name in names)
            issue = replace(issue, message=f"{issue.message} (cluster {quoted})")  # noqa: PLW2901
        merged.append(issue)
    return merged


def _hand_over_issues(
    views: Sequence[ClusterView],
    disaggregation: Disaggregation | None,
    network: Network | None,
    broken: frozenset[str],
) -> list[Issue]:
    """Return what is wrong between clusters that compute prompts and those that KV is handed to."""
    views = [view for view in views if view.has_requests and view.role != encode.ENCODE]
    section = disaggregation or Disaggregation()
    transfer = section.kv_transfer or KvTransfer()
    issues: list[Issue] = []
    for members in by_model(views):
        engines = {view.engine.name for view in members}
        own = transfer.under(*engines) if len(engines) == 1 else transfer
        found = rules.transfer_issues(own, network)
        if engines == {"sglang"}:
            found = sglang_handover.way_issues(own, section) or found
        issues += [*found, *_model_hand_over_issues(members, own, broken)]
    if transfer.bandwidth is None and all(view.found is not None for view in views):
        facts = network_facts(network or Network(), [(view, view.facts) for view in views])
        issues += facts.issues
    return list({(issue.path, issue.message): issue for issue in issues}.values())


def _model_hand_over_issues(
    views: Sequence[ClusterView], transfer: KvTransfer, broken: frozenset[str]
) -> list[Issue]:
    """Return what is wrong between the clusters of one model."""
    receivers = rules.receivers(view.role for view in views)
    issues: list[Issue] = []
    for view in views:
        if view.engine.name == "sglang" and not broken:
            issues += sglang_handover.server_issues(view)
        issues += [
            view.placed(issue)
            for issue in rules.engine_issues(
                transfer,
                view.engine,
                lambda *paths: not any(path in broken for path in paths),
                receives=view.role in receivers,
            )
        ]
        if view.found is not None:
            issues += map(view.placed, rules.facts_issues(view, view.found))
    for source in (view for view in views if view.role not in receivers):
        for destination in (view for view in views if view.role in receivers):
            issues += rules.pair_issues(source, destination)
    return issues


def _units(
    views: tuple[ClusterView, ...], section: Afd, broken: frozenset[str], *, prefills: bool
) -> tuple[tuple[ClusterView, ...], list[Issue]]:
    """Return the clusters with the FFN ranks of each attention cluster, and what is wrong with them."""
    issues: list[Issue] = []
    for view in views:
        if view.role in afd.AFD_ROLES:
            known = not any(path.startswith("engine") for path in broken)
            issues += map(view.placed, afd.engine_issues(view.role, view.engine, lambda *_: known))  # noqa: B023
    of_role = {role: [view for view in views if view.role == role] for role in afd.AFD_ROLES}
    changed: dict[int | None, ClusterView] = {}
    for attention, ffn in zip(of_role["attention"], of_role["ffn"], strict=False):
        if attention.found is None or ffn.found is None:
            continue
        found = [
            ffn.placed(issue)
            for issue in afd.unit_issues(
                attention.name,
                (attention.plain.replicas, attention.engine, attention.found),
                (ffn.plain.replicas, ffn.engine, ffn.found),
            )
        ]
        unit = AfdUnit(
            section,
            ffn.engine,
            ffn.found,
            attention.plain.replicas,
            attention.engine.data_parallel_size,
            attention.engine.tensor_parallel_size,
            ffn.name,
            prefills,
        )
        sides = {"attention": attention, "ffn": ffn}
        found = found or [
            sides[role].placed(issue)
            for role, issue in step_time_issues(unit, attention.found, attention.engine.kv_cache_dtype)
        ]
        issues += found
        if found or issues:
            continue
        unit = with_batches(unit, attention.found)
        issues += [ffn.placed(issue) for issue in unit.facts.memory.issues]
        changed[attention.index] = replace(attention, unit=unit)
        changed[ffn.index] = replace(ffn, found=unit.facts)
    # What stands at the top may be wrong for both sides.
    issues = list({(issue.path, issue.message): issue for issue in issues}.values())
    return tuple(changed.get(view.index, view) for view in views), issues
