"""Changes and clusters together: names, replicas, reserves, and what cannot lose requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from frontier.config.admission import Admission, admission_issues
from frontier.config.dynamics import Autoscale, Dynamics
from frontier.config.engine import Engine
from frontier.errors import Issue, nearest_name, show_value

Known = Callable[..., bool]


@dataclass(frozen=True, slots=True)
class ServingCluster:
    """A cluster as far as changes are concerned.

    Attributes:
        name: by which sections call it.
        path: of its replicas in the scenario.
        replicas: how many there are.
        in_service: how many of them are in service at the start, None where that was not said.
        engine: its engine, None where it is not valid.
        engine_path: returns where a field of its engine was given.
        hands_over: whether it is a prefill or a decode cluster of one deployment.
        has_links: whether KV from or to it goes over links that transfers share.
        gpus: how many GPUs of which kind a replica has, None where that is not known.
    """

    name: str
    path: str
    replicas: int
    in_service: int | None
    engine: Engine | None
    engine_path: Callable[[str], str]
    hands_over: bool = False
    has_links: bool = True
    gpus: tuple[int, str] | None = None

    @property
    def serving(self) -> int:
        """Replicas in service at the start."""
        return self.replicas if self.in_service is None else self.in_service

    @property
    def reserve(self) -> int:
        """Replicas that are not."""
        return self.replicas - self.serving


def service_issues(
    sections: Mapping[str, Any], clusters: Sequence[ServingCluster], known: Known, *, has_network: bool
) -> list[Issue]:
    """Return what is wrong with `admission`, `dynamics` and the replicas in service.

    Args:
        sections: the scenario's sections, as far as they are valid.
        clusters: its clusters.
        known: tells whether paths are usable.
        has_network: whether transfers share links.
    """
    admission: Admission | None = sections.get("admission")
    dynamics: Dynamics | None = sections.get("dynamics")
    issues = [] if admission is None else admission_issues(admission, known)
    if admission is not None or dynamics is not None:
        name = "dynamics" if dynamics is not None else "admission"
        issues += [issue for each in clusters for issue in _engine_issues(each, name, known)]
    grows: set[str] = set()
    if dynamics is not None and known("dynamics"):
        rules = _Rules(dynamics, clusters, has_network)
        grows = rules.grows
        issues += rules.issues()
    elif dynamics is not None or not known("dynamics"):
        grows = {each.name for each in clusters}  # who knows
    for each in clusters:
        if known(each.path):
            issues += _reserve_issues(each, grows)
    return issues


def _reserve_issues(cluster: ServingCluster, grows: set[str]) -> list[Issue]:
    count, path = cluster.in_service, f"{cluster.path}.in_service"
    if count is None:
        return []
    if count > cluster.replicas:
        return [Issue(path, count, f"was {count}, must be at most the {cluster.replicas} replicas")]
    if count == 0 and cluster.name not in grows:
        message = "was 0, and no change of dynamics brings a replica into service; must be at least 1"
        return [Issue(path, count, message)]
    return []


def _engine_issues(cluster: ServingCluster, section: str, known: Known) -> list[Issue]:
    """Return what of a cluster's engine cannot let go of requests before their end."""
    engine = cluster.engine
    if engine is None:
        return []
    message = (
        f"requests can leave before their end ({section}) only under vLLM's own scheduler, and SGLang's with"
        " prefill and decode clusters"
    )
    refused: list[tuple[str, Any, tuple[str, ...]]] = []
    if engine.name != "vllm" and not cluster.hands_over:
        refused.append(("name", engine.name, ("vllm",)))
    if engine.scheduler is not None:
        refused.append(("scheduler", engine.scheduler.model_dump(mode="json", exclude_none=True), ()))
    return [
        Issue(
            cluster.engine_path(f"engine.{field}"),
            value,
            f"was {show_value(value)}: {message}" + ("" if allowed else "; remove it"),
            allowed,
        )
        for field, value, allowed in refused
        if known(f"engine.{field}")
    ]


class _Rules:
    """Checks of one `dynamics` section."""

    def __init__(self, dynamics: Dynamics, clusters: Sequence[ServingCluster], has_network: bool) -> None:
        self.dynamics = dynamics
        self.clusters = {each.name: each for each in clusters}
        self.has_network = has_network
        self.found: list[Issue] = []
        switches = [each.switch_role.to for each in dynamics.events if each.switch_role is not None]
        scaled = [self._named(each.cluster) for each in dynamics.autoscale]
        self.grows = {*switches, *(each.name for each in scaled if each is not None)}
        """Clusters that replicas may join."""

    def issues(self) -> list[Issue]:
        """Return everything that is wrong."""
        dynamics = self.dynamics
        if not dynamics.events and not dynamics.autoscale:
            message = "changes nothing; give events or autoscale, or remove it"
            self._report("dynamics", None, message)
        stops = {each.kind for each in dynamics.events} - {"slow", "degrade_links"}
        if dynamics.lost_requests == "fail" and not stops and not dynamics.autoscale:
            message = "was 'fail', has no effect: no replica leaves service; remove it"
            self._report("dynamics.lost_requests", dynamics.lost_requests, message)
        for index in range(len(dynamics.events)):
            self._event(index)
        self._switches()
        seen: set[str] = set()
        for index, scaler in enumerate(dynamics.autoscale):
            self._autoscale(f"dynamics.autoscale.{index}", scaler, seen)
        return self.found

    def _report(
        self,
        path: str,
        value: object,
        message: str,
        allowed: tuple[str, ...] = (),
        nearest: str | None = None,
    ) -> None:
        self.found.append(Issue(path, value, message, allowed, nearest))

    def _named(self, name: str | None) -> ServingCluster | None:
        if name is None:
            return next(iter(self.clusters.values())) if len(self.clusters) == 1 else None
        return self.clusters.get(name)

    def _cluster(self, path: str, name: str | None) -> ServingCluster | None:
        """Return the cluster of a name, None (and an issue) where there is none."""
        cluster = self._named(name)
        if cluster is None:
            names = tuple(self.clusters)
            what = (
                f"was not given, and there are {len(names)} clusters"
                if name is None
                else f"was {show_value(name)}, no cluster has this name"
            )
            self._report(path, name, what, names, nearest_name(name or "", names))
        return cluster

    def _event(self, index: int) -> None:
        event, path = self.dynamics.events[index], f"dynamics.events.{index}"
        cluster = self._cluster(f"{path}.cluster", event.cluster)
        if cluster is None:
            return
        if event.replica >= cluster.replicas:
            message = (
                f"was {event.replica}, must be below the {cluster.replicas} replicas of {cluster.name},"
                " which count from 0"
            )
            self._report(f"{path}.replica", event.replica, message)
        elif event.replica >= cluster.serving and cluster.name not in self.grows:
            message = (
                f"was {event.replica}, has no effect: {cluster.path}.in_service is {cluster.serving}, and"
                " nothing brings it into service"
            )
            self._report(f"{path}.replica", event.replica, message)
        if event.degrade_links is not None and not (self.has_network and cluster.has_links):
            message = (
                "needs links that transfers share: prefill and decode clusters without kv_transfer.bandwidth"
            )
            self._report(f"{path}.degrade_links", event.degrade_links.model_dump(mode="json"), message)
        if event.switch_role is not None:
            to = event.switch_role.to
            if to == cluster.name:
                message = f"was {show_value(to)}, where the replica is already; must be another cluster"
                others = tuple(name for name in self.clusters if name != to)
                self._report(f"{path}.switch_role.to", to, message, others)
            else:
                self._same_gpus(f"{path}.switch_role.to", cluster, to)

    def _same_gpus(self, path: str, cluster: ServingCluster, to: str) -> None:
        """Report a replica that joins a cluster whose replicas have other GPUs, which it takes along."""
        other = self._cluster(path, to)
        if other is None or None in (cluster.gpus, other.gpus) or cluster.gpus == other.gpus:
            return
        have = [f"{count} x {gpu}" for count, gpu in (each.gpus or (0, "") for each in (other, cluster))]
        message = (
            f"was {show_value(to)}, whose replicas have {have[0]}, but those of {cluster.name} have"
            f" {have[1]}: a replica takes its GPUs along"
        )
        names = tuple(
            name for name, each in self.clusters.items() if each.gpus == cluster.gpus and name != cluster.name
        )
        self._report(path, to, message, names)

    def _switches(self) -> None:
        """Report replicas that switch to a cluster without a place for them."""
        moves = [
            (index, self._named(event.cluster), event.switch_role.to)
            for index, event in enumerate(self.dynamics.events)
            if event.switch_role is not None
        ]
        left = Counter(source.name for _, source, _ in moves if source is not None)
        for name, cluster in self.clusters.items():
            coming = [index for index, _, to in moves if to == name]
            places = cluster.reserve + left[name]
            for index in coming[places:]:
                message = (
                    f"was '{name}', of which {cluster.reserve} replicas are not in service: a replica that"
                    f" joins takes the place of one; raise {cluster.path}.replicas above its in_service"
                )
                self._report(f"dynamics.events.{index}.switch_role.to", name, message)

    def _autoscale(self, path: str, scaler: Autoscale, seen: set[str]) -> None:
        cluster = self._cluster(f"{path}.cluster", scaler.cluster)
        if scaler.up_above <= scaler.down_below:
            message = f"was {scaler.up_above:g}, must be above down_below ({scaler.down_below:g})"
            self._report(f"{path}.up_above", scaler.up_above, message)
        if scaler.metric == "kv_use" and scaler.up_above >= 1:
            message = f"was {scaler.up_above:g}, must be below 1: kv_use is a share of the KV blocks"
            self._report(f"{path}.up_above", scaler.up_above, message)
        if cluster is None:
            return
        if cluster.name in seen:
            message = f"was '{cluster.name}', which another entry scales; keep one"
            self._report(f"{path}.cluster", scaler.cluster, message)
        seen.add(cluster.name)
        most = cluster.replicas if scaler.max_replicas is None else scaler.max_replicas
        if most > cluster.replicas:
            message = f"was {most}, must be at most the {cluster.replicas} replicas of {cluster.name}"
            self._report(f"{path}.max_replicas", most, message)
        if scaler.min_replicas > most:
            message = f"was {scaler.min_replicas}, must be at most {most} (max_replicas)"
            self._report(f"{path}.min_replicas", scaler.min_replicas, message)
        elif scaler.min_replicas == most:
            message = f"was {most}, as min_replicas: nothing is scaled; remove the entry"
            self._report(f"{path}.max_replicas", most, message)
        elif not scaler.min_replicas <= cluster.serving <= most:
            message = (
                f"comes to {cluster.serving}, must be from min_replicas ({scaler.min_replicas}) to"
                f" max_replicas ({most}) of {path}"
            )
            self._report(f"{cluster.path}.in_service", cluster.in_service, message)
