"""Roles that form a program, KV that goes from one to the next, and what of it is not modelled.

Engines: vLLM's NIXL connector (`vllm/distributed/kv_transfer/kv_connector/v1/nixl`), whose handshake compares
release, model, KV dtype and heads, and whose tensor parallel sizes must divide one another; SGLang's prefill
and decode servers (`sglang_handover`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from frontier.config.afd import Afd
from frontier.config.base import Section
from frontier.config.clusters import RoleCluster
from frontier.config.encode import ENCODE, EmbeddingTransfer
from frontier.config.fields import Duration, Tokens
from frontier.config.kv_tiers import Bandwidth
from frontier.config.models_served import ServedModel
from frontier.config.speculative import Speculative
from frontier.errors import Issue, show_value

if TYPE_CHECKING:
    from frontier.config.engine import Engine
    from frontier.config.network import Network
    from frontier.config.resolve import Resolved
    from frontier.config.views import ClusterView

Balance = Literal["weighted", "least_loaded"]
Mode = Literal["pull", "push", "buffer", "store"]
Granularity = Literal["request", "chunk", "layer"]

_PROGRAMS: Final = (
    (("colocated",), ("colocated",)),
    (("prefill", "decode"), ("prefill", "decode")),
    (("prefill", "attention"), ("prefill", "attention", "ffn")),
    (("attention", "decode"), ("attention", "ffn", "decode")),
    (("attention",), ("attention", "ffn")),
)
PROGRAMS: Final = (*_PROGRAMS, *(((ENCODE, *way), (ENCODE, *roles)) for way, roles in _PROGRAMS))
"""Roles of the clusters through which a request goes, in its order, and all roles that there are then: what
is modelled. KV is handed from the first to the second."""


class KvTransfer(Section):
    """How the KV of a prompt gets from a prefill cluster to a decode cluster."""

    mode: Mode | None = None
    """Who moves it, and where to: the decode side reads it from the prefill side, which holds its blocks
    until then (vLLM's NIXL); the decode side sets blocks aside first, and the prefill side writes into them
    (SGLang, Mooncake); the prefill side sends it into memory of the decode side beside the KV cache (vLLM's
    P2P NCCL); or it writes it to a pool and is free, and the decode side reads it there (LMCache). Left out,
    pull under vLLM, and push under SGLang, which has no other."""
    granularity: Granularity | None = None
    """What is sent at once: the whole prompt after its last step; with push also every chunk after its step,
    or, under vLLM, every layer of a step when it is computed. Left out, request under vLLM, chunk under
    SGLang."""
    proxy_latency: Duration = 0
    """From the end of the prefill to the request's arrival at the decode side."""
    latency: Duration | None = None
    """Of every transfer, before its first byte; left out, with a bandwidth that of the slower GPU's network,
    else none beside the links' own."""
    bandwidth: Bandwidth | None = None
    """A link of this bandwidth for every transfer, all GPUs of an engine together: transfers never wait for
    each other. Left out, they share the links of `network`; mode store needs it."""

    def under(self, engine: str) -> KvTransfer:
        """Return it with what is left out as the engine named has it."""
        mode, granularity = _WAYS.get(engine, _WAYS["vllm"])
        return self.model_copy(
            update={"mode": self.mode or mode, "granularity": self.granularity or granularity}
        )


_WAYS: Final[dict[str, tuple[Mode, Granularity]]] = {
    "vllm": ("pull", "request"),
    "sglang": ("push", "chunk"),
}


class Balances(Section):
    """How requests are spread over several clusters of a role."""

    colocated: Balance | None = None
    """Over colocated clusters; left out, weighted: in turn, by weight."""
    prefill: Balance | None = None
    """Over prefill clusters: weighted, or to the one with the fewest unfinished requests per weight."""
    decode: Balance | None = None
    """Over decode clusters."""
    attention: Balance | None = None
    """Over attention clusters, whatever their units do."""
    encode: Balance | None = None
    """Over encode clusters."""


class Disaggregation(Section):
    """How requests go through clusters with a role."""

    kv_transfer: KvTransfer | None = None
    """How KV gets from prefill to decode; left out, vLLM's NIXL, or SGLang's servers, over `network`."""
    embedding_transfer: EmbeddingTransfer | None = None
    """How embeddings get from an encode cluster to where the prompt is computed; left out, over one network
    card."""
    direct_below: Tokens | None = None
    """Conditional disaggregation: a request with at most so many prompt tokens that the decode side has not
    cached is served there as a whole."""
    deflect_above: Tokens | None = None
    """A request that finds more prompt tokens than this waiting on the prefill side is served as a whole on
    the decode side."""
    balance: Balances = Balances()
    """How requests are spread over several clusters of a role."""
    afd: Afd | None = None
    """How attention and FFN clusters work together; left out, three micro-batches in 16 bits over the GPUs'
    networks."""


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Something that is not modelled where KV is handed over.

    Attributes:
        path: field of a cluster's engine.
        applies: whether an engine has it.
        message: why not, after the value.
        roles: of clusters that must not have it.
        modes: of transfers with which it must not be.
        allowed: values that may be given instead.
    """

    path: str
    applies: Callable[[Engine], bool]
    message: str
    roles: tuple[str, ...] = ("prefill", "decode")
    modes: tuple[str, ...] = get_args(Mode)
    allowed: tuple[str, ...] = ()


_REFUSALS: Final = (
    _Refusal(
        "scheduler", lambda e: e.scheduler is not None, "only vLLM's own scheduler hands KV over; remove it"
    ),
    _Refusal(
        "kv_tiers",
        lambda e: e.kv_tiers is not None,
        "tiers are not modelled where KV arrives; remove it",
        roles=("decode",),
    ),
    _Refusal(
        "kv_offloading_size",
        lambda e: e.kv_offloading_size is not None,
        "tiers are not modelled where KV arrives; remove it",
        roles=("decode",),
    ),
    _Refusal(
        "data_parallel_size",
        lambda e: e.data_parallel_size > 1,
        "data parallel ranks are not modelled with pushed KV",
        modes=("push",),
        allowed=("1",),
    ),
    _Refusal(
        "decode_context_parallel_size",
        lambda e: e.decode_context_parallel_size > 1,
        "handing over KV whose tokens are dealt out over ranks is not modelled",
        allowed=("1",),
    ),
    _Refusal(
        "prefill_context_parallel_size",
        lambda e: e.prefill_context_parallel_size > 1,
        "handing over KV whose tokens are dealt out over ranks is not modelled",
        allowed=("1",),
    ),
)
"""What the simulator cannot do yet where KV is handed over; it refuses the same in plans."""


def program_of(clusters: Sequence[RoleCluster]) -> tuple[str, ...] | None:
    """Return the roles of the clusters in the order of a request's way, None where they form no program."""
    return _program(cluster.role for cluster in clusters)


def _program(roles: Iterable[str]) -> tuple[str, ...] | None:
    found = set(roles)
    return next((program for program, present in PROGRAMS if set(present) == found), None)


def _serving(roles: Iterable[str]) -> tuple[str, ...] | None:
    """Return the roles that have prompts or tokens, in the order of a request's way."""
    program = _program(roles)
    return None if program is None else tuple(role for role in program if role != ENCODE)


def hands_over(roles: Iterable[str]) -> bool:
    """Tell whether KV goes from clusters to others; so it seems, too, where the roles form no program."""
    program = _serving(roles)
    return program is None or len(program) > 1


def receivers(roles: Iterable[str]) -> tuple[str, ...]:
    """Return the roles of clusters that KV is handed to."""
    program = _serving(roles)
    return ("decode",) if program is None else program[1:]


def units_prefill(roles: Iterable[str], disaggregation: Disaggregation | None) -> bool:
    """Tell whether prompts go to attention and FFN ranks: they come first, or serve some requests whole."""
    program = _serving(roles) or ()
    section = disaggregation or Disaggregation()
    whole = section.direct_below is not None or section.deflect_above is not None
    return program[:1] == ("attention",) or ("attention" in program and whole)


def program_issues(
    clusters: Sequence[RoleCluster | None],
    models: Sequence[ServedModel],
    disaggregation: Disaggregation | None,
) -> list[Issue]:
    """Return what is wrong with the roles, names and weights of clusters; None stands for a broken one.

    The clusters of each model form a program of their own.
    """
    issues: list[Issue] = []
    labels: dict[str, int] = {}
    for index, cluster in enumerate(clusters):
        if cluster is None:
            continue
        if cluster.label in labels:
            other = f"clusters.{labels[cluster.label]}"
            message = f"was '{cluster.label}', as is that of {other}; give them names that differ"
            issues.append(Issue(f"clusters.{index}.name", cluster.name, message))
        labels.setdefault(cluster.label, index)
    known = [cluster for cluster in clusters if cluster is not None]
    if len(known) < len(clusters) or issues or not models:
        return issues
    for model in models:
        issues += _program_issues(known, model)
    if any(issue.path == "clusters" for issue in issues):
        return issues
    by_model = [[known[index].role for index in model.clusters] for model in models]
    return issues + _role_issues(by_model, disaggregation or Disaggregation())


def _program_issues(known: Sequence[RoleCluster], model: ServedModel) -> list[Issue]:
    """Return what is wrong with the roles and weights of the clusters that serve one model."""
    members = [known[index] for index in model.clusters]
    roles = [cluster.role for cluster in members]
    of = model.of(known)
    program = program_of(members)
    if program is None:
        found = ", ".join(dict.fromkeys(roles))
        message = (
            f"have the roles {found}, must have colocated alone, prefill and decode, or attention and ffn:"
            " alone, with prefill clusters before them, or decode clusters after them (any number of each),"
            " and encode before any of these"
        )
        return [Issue("clusters", roles, f"{of} {message}".strip())]
    if roles.count("attention") != roles.count("ffn"):
        message = (
            f"have {roles.count('attention')} attention and {roles.count('ffn')} ffn clusters, must have as"
            " many of each: the first of one belongs to the first of the other, and so on"
        )
        return [Issue("clusters", roles, f"{of} {message}".strip())]
    issues = []
    for index, cluster in zip(model.clusters, members, strict=True):
        if cluster.weight is not None and cluster.role != "ffn" and roles.count(cluster.role) == 1:
            others = "no other cluster" + ("" if model.name is None else f" of '{model.name}'")
            message = f"was {cluster.weight:g}, has no effect: {others} is {cluster.role}; remove it"
            issues.append(Issue(f"clusters.{index}.weight", cluster.weight, message))
    return issues


def _role_issues(by_model: Sequence[Sequence[str]], disaggregation: Disaggregation) -> list[Issue]:
    """Return fields of the section that mean nothing with these roles, of the clusters of each model."""
    issues = []
    roles = [role for found in by_model for role in found]
    for role in Balances.model_fields:
        balance = getattr(disaggregation.balance, role)
        if balance is not None and max(found.count(role) for found in by_model) < 2:
            has = "has no effect with one" if role in roles else "has no effect without a"
            each = " of each model" if len(by_model) > 1 and role in roles else ""
            message = f"was '{balance}', {has} {role} cluster{each}; remove it"
            issues.append(Issue(f"disaggregation.balance.{role}", balance, message))
    if not any(map(hands_over, by_model)):
        for name in ("kv_transfer", "direct_below", "deflect_above"):
            value = getattr(disaggregation, name)
            if value is not None:
                shown = value.model_dump(mode="json") if isinstance(value, KvTransfer) else value
                message = "has no effect without prefill and decode clusters; remove it"
                issues.append(Issue(f"disaggregation.{name}", shown, message))
    return issues


def transfer_issues(transfer: KvTransfer, network: Network | None) -> list[Issue]:
    """Return what is wrong with a transfer on its own."""
    issues = []
    path = "disaggregation.kv_transfer"
    if transfer.granularity not in (None, "request") and transfer.mode != "push":
        message = (
            f"was '{transfer.granularity}', needs mode push: with {transfer.mode} a whole prompt is sent"
        )
        issues.append(Issue(f"{path}.granularity", transfer.granularity, message, ("request",)))
    if transfer.mode == "store" and transfer.bandwidth is None:
        message = "is needed with mode store: where the pool lies in the network is not modelled"
        issues.append(Issue(f"{path}.bandwidth", None, message))
    if transfer.bandwidth is not None and network is not None:
        message = "has no effect beside disaggregation.kv_transfer.bandwidth; remove one of the two"
        issues.append(Issue("network", network.model_dump(mode="json", exclude_defaults=True), message))
    return issues


def engine_issues(
    transfer: KvTransfer, engine: Engine, known: Callable[..., bool], *, receives: bool
) -> list[Issue]:
    """Return the settings of one cluster's engine that do not go with the handing over of KV."""
    issues = []
    role = "decode" if receives else "prefill"
    for refusal in _REFUSALS:
        path = f"engine.{refusal.path}"
        wanted = role in refusal.roles and (transfer.mode or "pull") in refusal.modes
        if wanted and known(path) and refusal.applies(engine):
            value: Any = getattr(engine, refusal.path)
            value = value.model_dump(mode="json", exclude_none=True) if isinstance(value, Section) else value
            issues.append(Issue(path, value, f"was {show_value(value)}: {refusal.message}", refusal.allowed))
    return issues


def pair_issues(source: ClusterView, destination: ClusterView) -> list[Issue]:
    """Return where the engines of two clusters could not exchange KV, said of the destination."""
    issues: list[Issue] = []
    one, other = source.engine, destination.engine

    def report(field: str, value: object, message: str, allowed: tuple[str, ...] = ()) -> None:
        issues.append(Issue(f"clusters.{destination.index}.engine.{field}", value, message, allowed))

    of = f"cluster '{source.name}'"
    if one.name != other.name:
        message = (
            f"was {other.name}, but {of} has {one.name}: KV is handed over between engines of one kind alone"
        )
        report("name", other.name, message, (one.name,))
        return issues
    if one.name == "sglang" and destination.role == "attention":
        report("name", other.name, "was sglang: attention and FFN ranks are vLLM's alone", ("vllm",))
        return issues
    if one.version != other.version:
        message = (
            f"was {other.version}, but {of} has {one.version}: NIXL connects engines of one release alone"
        )
        report("version", other.version, message)
    sizes = sorted((one.tensor_parallel_size, other.tensor_parallel_size))
    if sizes[1] % sizes[0]:
        tp = other.tensor_parallel_size
        message = f"was {tp}, but {of} has {one.tensor_parallel_size}: one must be a multiple of the other"
        report("tensor_parallel_size", tp, message)
    ahead = one.speculative
    if ahead is not None and _drafts(ahead) != _drafts(other.speculative):
        shown = None if other.speculative is None else other.speculative.method
        message = (
            f"was {show_value(shown)}, but {of} drafts with {ahead.method}: decode clusters draft alone, or"
            " both sides alike"
        )
        report("speculative", shown, message)
    first, second = source.found, destination.found
    if first is None or second is None:
        return issues
    if first.model.dtype != second.model.dtype:
        report("dtype", other.dtype, f"comes to {second.model.dtype}, but to {first.model.dtype} in {of}")
    types = [_kv_dtype(view, facts) for view, facts in ((source, first), (destination, second))]
    if types[0] != types[1]:
        message = f"comes to {types[1]}, but to {types[0]} in {of}: KV is handed over as it is"
        report("kv_cache_dtype", other.kv_cache_dtype, message)
    if first.block_size != second.block_size:
        message = (
            f"comes to {second.block_size}, but to {first.block_size} in {of}: blocks of unlike size are not"
            " modelled; give both the same"
        )
        report("block_size", other.block_size, message)
    return issues


def facts_issues(view: ClusterView, facts: Resolved) -> list[Issue]:
    """Return what of a cluster's KV cannot be handed over."""
    windows = getattr(facts.memory, "kv_group_windows", ())
    if not windows:
        return []
    message = (
        f"was not given: {facts.model.name} has layers with sliding windows, and handing over groups of"
        " layers is not modelled"
    )
    if None not in windows:
        message = (
            f"was {show_value(view.model)}, whose layers have sliding windows, and handing those over is not"
            " modelled"
        )
        return [Issue("model", view.model, message)]
    return [view.placed(Issue("engine.disable_hybrid_kv_cache_manager", None, message, ("true",)))]


def _kv_dtype(view: ClusterView, facts: Resolved) -> str:
    from frontier.models.kv import resolve_kv_cache_dtype  # noqa: PLC0415 - keeps `import frontier` light

    return resolve_kv_cache_dtype(facts.model, view.engine.kv_cache_dtype)


def _drafts(speculative: Speculative | None) -> Any:
    """Return what both sides of a hand-over must agree on where both draft."""
    if speculative is None:
        return None
    return (speculative.method, speculative.num_speculative_tokens, speculative.model)
