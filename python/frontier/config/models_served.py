"""Several models behind one front door: which clusters serve which, by what name, and who asks for them.

A request names its model, as clients of an OpenAI-compatible server do; the names are those of vLLM's
`--served-model-name` (`vllm/entrypoints/openai/cli_args.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from frontier import units
from frontier.config.base import frozen
from frontier.config.locate import is_path
from frontier.errors import Issue, nearest_name, show_value

if TYPE_CHECKING:
    from frontier.config.clusters import RoleCluster
    from frontier.config.views import ClusterView
    from frontier.config.workload import Workload

MAX_SHARE = 1e9


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model and the clusters that serve it.

    Attributes:
        name: by which requests ask for it, None where it is the only one.
        clusters: numbers of its clusters in the scenario, in their order.
    """

    name: str | None
    clusters: tuple[int, ...]

    def of(self, known: Sequence[RoleCluster]) -> str:
        """Return whom a message is about: nothing if this is the only model."""
        if self.name is None:
            return ""
        return f" that serve '{self.name}' ({', '.join(known[index].label for index in self.clusters)})"


def served_models(
    entries: Sequence[RoleCluster | None], top: str | Mapping[str, Any] | None
) -> tuple[tuple[ServedModel, ...], list[Issue]]:
    """Return the models that clusters serve, in the order of their first clusters, and what is wrong.

    There are no models where it cannot be told which clusters belong together.

    Args:
        entries: the clusters, None where one is not valid.
        top: the model of the scenario, that of clusters which name none; None where it is not valid.
    """
    everything = ServedModel(None, tuple(range(len(entries))))
    known = [entry for entry in entries if entry is not None]
    plain = all(entry.model is None and entry.served_model_name is None for entry in known)
    if plain or len(known) < len(entries) or top is None:
        return (everything,), []
    references = [_identity(top if entry.model is None else entry.model) for entry in known]
    issues = _unused(known, top, references)
    names = [
        entry.served_model_name or (reference if isinstance(reference, str) else None)
        for entry, reference in zip(known, references, strict=True)
    ]
    groups: dict[Hashable, list[int]] = {}
    for index, (name, reference) in enumerate(zip(names, references, strict=True)):
        groups.setdefault(reference if name is None else name, []).append(index)
    if len(groups) == len(set(references)) == 1:
        return (everything,), issues + _only_one(known)
    unclear = None in names
    for index, name in enumerate(names):
        if name is None:
            path = f"clusters.{index}.served_model_name"
            message = (
                "is required: several models are served, and a path or an inline configuration is no name by"
                " which requests could ask for one"
            )
            issues.append(Issue(path, None, message))
    for members in groups.values():
        first = members[0]
        for other in members[1:]:
            if references[other] != references[first]:
                issues.append(_two_under_one_name(known, other, first, names[first], top))
                unclear = True
    if unclear:
        return (), issues
    return tuple(ServedModel(str(name), tuple(members)) for name, members in groups.items()), issues


def _identity(reference: str | Mapping[str, Any]) -> Hashable:
    """Return what equal references share: the name of a preset; of others, something that is no text."""
    if not isinstance(reference, str):
        return frozen(dict(reference))
    from frontier.models import preset_name  # noqa: PLC0415 - keeps `import frontier` light

    found = preset_name(reference)
    if found is not None:
        return found
    # What is neither a preset nor a path is refused with its cluster.
    return (reference,) if is_path(reference) else reference


def _unused(
    known: Sequence[RoleCluster], top: str | Mapping[str, Any], references: Sequence[Hashable]
) -> list[Issue]:
    """Return an issue where no cluster serves the scenario's own model."""
    if any(entry.model is None for entry in known) or _identity(top) in references:
        return []
    message = f"was {show_value(top)}, has no effect: every cluster names another model; name one of theirs"
    return [Issue("model", top, message)]


def _only_one(known: Sequence[RoleCluster]) -> list[Issue]:
    message = "has no effect: all clusters serve one model, and every request is for it; remove it"
    return [
        Issue(f"clusters.{index}.served_model_name", entry.served_model_name, message)
        for index, entry in enumerate(known)
        if entry.served_model_name is not None
    ]


def _two_under_one_name(
    known: Sequence[RoleCluster], other: int, first: int, name: str | None, top: str | Mapping[str, Any]
) -> Issue:
    own = known[other].model
    model = top if own is None else own
    path = f"clusters.{other}.{'served_model_name' if own is None else 'model'}"
    message = (
        f"was {show_value(model)}, but cluster '{known[first].label}' serves another model under the name"
        f" '{name}'; give them names that differ (served_model_name)"
    )
    return Issue(path, model if own is not None else known[other].served_model_name, message)


def by_model(views: Sequence[ClusterView]) -> Iterator[tuple[ClusterView, ...]]:
    """Yield the clusters of each model, in the order of their first clusters."""
    groups: dict[str | None, list[ClusterView]] = {}
    for view in views:
        groups.setdefault(view.served_model, []).append(view)
    for members in groups.values():
        yield tuple(members)


def model_names(views: Sequence[ClusterView]) -> tuple[str, ...]:
    """Return the names of the models by number; none where only one is served."""
    return tuple(dict.fromkeys(view.served_model for view in views if view.served_model is not None))


def parse_shares(value: object) -> dict[str, float]:
    """Read the share of the requests for each of several models, relative to the others."""
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        message = "must be a mapping such as {llama-3.1-8b: 0.7, llama-3.1-70b: 0.3}"
        raise ValueError(f"was {show_value(value)}, {message}")
    return {name: _share(name, share) for name, share in value.items()}


def _share(name: str, value: object) -> float:
    percent = isinstance(value, str) and value.rstrip().endswith("%")
    share = units.parse_share(value) if percent else units.parse_number(value)
    if not 0 < share <= MAX_SHARE:
        message = f"must be greater than 0, at most {MAX_SHARE:g}"
        raise ValueError(f"was {show_value(value)} for '{name}', {message}")
    return share


def workload_issues(
    workload: Workload | None, names: Sequence[str], known: Callable[..., bool]
) -> list[Issue]:
    """Return what is wrong between the models that are served and those that requests ask for.

    Args:
        workload: where requests come from, as far as it is valid.
        names: the models that are served; none where it is only one, so that nobody has to ask.
        known: tells whether paths are usable.
    """
    if workload is None:
        return []
    if workload.trace is not None:
        return _trace_issues(workload, names, known)
    path = "workload.synthetic.models"
    shares = workload.synthetic.models if workload.synthetic is not None else None
    if workload.synthetic is None or not known(path):
        return []
    served = tuple(names)
    if not served:
        message = "has no effect: one model is served, and every request is for it; remove it"
        return [] if shares is None else [Issue(path, shares, f"was {show_value(shares)}, {message}")]
    if shares is None:
        form = ", ".join(f"{name}: {1 / len(served):.2g}" for name in served)
        message = f"is required: clusters serve {', '.join(served)}; give each its share, such as {{{form}}}"
        return [Issue(path, None, message)]
    issues = [
        Issue(path, name, f"has '{name}', which no cluster serves", served, nearest_name(name, served))
        for name in shares
        if name not in served
    ]
    missing = [name for name in served if name not in shares]
    if missing and not issues:
        message = f"has no share for {', '.join(missing)}, which clusters serve"
        issues.append(Issue(path, shares, message))
    return issues


def _trace_issues(workload: Workload, names: Sequence[str], known: Callable[..., bool]) -> list[Issue]:
    path = "workload.trace.columns.model"
    columns = workload.trace.columns if workload.trace is not None else None
    if names or columns is None or columns.model is None or not known(path):
        return []  # with several models, the file says whether it has the column
    message = "has no effect: one model is served, and every request is for it; remove it"
    return [Issue(path, columns.model, f"was {show_value(columns.model)}, {message}")]


def model_shares(workload: Workload, names: Sequence[str]) -> dict[str, list[float]]:
    """Return the plan's `models` of a synthetic workload, by number; nothing where one model is served."""
    if not names or workload.synthetic is None:
        return {}
    shares = workload.synthetic.models
    assert shares is not None
    return {"models": [shares[name] for name in names]}


def without_models(workload: Any) -> Any:
    """Return a workload whose requests ask for no model: that of one cluster on its own."""
    if workload is None:
        return None
    if workload.synthetic is not None and workload.synthetic.models is not None:
        synthetic = workload.synthetic.model_copy(update={"models": None})
        return workload.model_copy(update={"synthetic": synthetic})
    trace = workload.trace
    if trace is not None and trace.columns is not None and trace.columns.model is not None:
        columns = trace.columns.model_copy(update={"model": None})
        return workload.model_copy(update={"trace": trace.model_copy(update={"columns": columns})})
    return workload
