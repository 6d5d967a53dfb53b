"""What several clusters of a plan share: the way of a request through them, the network, learned predictors.

The plan's `paths`, `network` and `placement` (schema: `rust/frontier-core/src/plan`). A scenario of one
co-located cluster has none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from frontier.config.disaggregation import Disaggregation, KvTransfer, program_of
from frontier.config.encode import ENCODE, embeddings_plan
from frontier.config.models_served import by_model
from frontier.config.network import Network, network_facts
from frontier.config.views import hand_over

if TYPE_CHECKING:
    from frontier import _frontier
    from frontier.config import Resolved, Scenario
    from frontier.config.views import ClusterView
    from frontier.predictors.attach import Attached

NO_CONTENTION = (
    "disaggregation.kv_transfer.bandwidth: every transfer has a link of its own, so that none slows another"
    " down; leave it out for the links of the network"
)


@dataclass(frozen=True, slots=True)
class ProgramPlan:
    """Parts of a plan with several clusters.

    Attributes:
        paths: the plan's `paths`, one for each model.
        network: its `network`, None where no transfer crosses it.
        placements: the `placement` of each cluster, likewise.
        warnings: what a reader of the results should know.
    """

    paths: list[dict[str, Any]]
    network: dict[str, Any] | None
    placements: list[dict[str, Any] | None]
    warnings: tuple[str, ...]


def program_plan(scenario: Scenario, views: Sequence[ClusterView]) -> ProgramPlan | None:
    """Return what the clusters of a scenario share, None for a single one."""
    if len(views) == 1:
        return None
    section = scenario.disaggregation or Disaggregation()
    paths = [_path(section, members, views) for members in by_model(scenario.views())]
    if not any(leg["receives"] for path in paths for leg in path["legs"]):
        return ProgramPlan(paths, None, [None] * len(views), ())
    transfer = section.kv_transfer or KvTransfer()
    if transfer.bandwidth is not None:
        return ProgramPlan(paths, None, [None] * len(views), (NO_CONTENTION,))
    apart = [view for view in hand_over(scenario.views()) if view.has_requests]
    facts = network_facts(scenario.network or Network(), [(view, view.facts) for view in apart])
    placed = {view.name: placement for view, placement in zip(apart, facts.placements, strict=True)}
    return ProgramPlan(paths, facts.plan, [placed.get(view.name) for view in views], ())


def _path(
    section: Disaggregation, members: Sequence[ClusterView], views: Sequence[ClusterView]
) -> dict[str, Any]:
    """Return the plan's path over the clusters of one model; `views` are those of the plan."""
    roles = program_of([view.plain for view in members])
    assert roles is not None
    numbers = {view.name: number for number, view in enumerate(views)}
    members = [view for view in members if view.has_requests]
    legs = []
    for role in roles:
        pool = [view for view in members if view.role == role]
        legs.append(
            {
                "clusters": [numbers[view.name] for view in pool],
                "weights": [view.weight for view in pool],
                "balance": getattr(section.balance, role) or "weighted",
                "encodes": None,
                "receives": None,
            }
        )
    if roles[0] == ENCODE:
        encoders = [view for view in members if view.role == ENCODE]
        receivers = [view for view in members if view.role != ENCODE]
        legs[0]["encodes"] = embeddings_plan(section.embedding_transfer, encoders, receivers)
    serving = [role for role in roles if role != ENCODE]
    if len(serving) == 1:
        return {"legs": legs, "direct": None}
    transfer = section.kv_transfer or KvTransfer()
    sources, destinations = ([view for view in members if view.role == role] for role in serving)
    legs[-1]["receives"] = _receives(transfer, sources, destinations)
    return {"legs": legs, "direct": _direct(section)}


def _direct(section: Disaggregation) -> dict[str, Any] | None:
    if section.direct_below is None and section.deflect_above is None:
        return None
    return {
        "max_uncached_tokens": section.direct_below,
        "deflect_above_tokens": section.deflect_above,
    }


def _receives(
    transfer: KvTransfer,
    sources: Sequence[ClusterView],
    destinations: Sequence[ClusterView],
) -> dict[str, Any]:
    dedicated = transfer.bandwidth is not None
    latency = transfer.latency
    if latency is None:
        gpus = [view.facts.gpu for view in (*sources, *destinations)]
        latency = max(gpu.nic_latency_ns for gpu in gpus) if dedicated else 0
    one, engine = destinations[0].facts, destinations[0].engine
    transfer = transfer.under(engine.name)
    return {
        "mode": transfer.mode,
        "granularity": transfer.granularity,
        "first_token": "carried" if engine.name == "sglang" else "recomputed",
        "proxy_latency_ns": transfer.proxy_latency,
        "latency_ns": latency,
        "bytes_per_block": kv_bytes_per_block(one, engine.kv_cache_dtype),
        "fixed_bytes": 0,
        "num_layers": one.model.num_layers,
        "transport": {"kind": "dedicated", "bytes_per_s": transfer.bandwidth}
        if dedicated
        else {"kind": "network"},
    }


def kv_bytes_per_block(facts: Resolved, kv_cache_dtype: str = "auto") -> int:
    """Return the bytes of one KV block of a model over all layers and all GPUs of an engine, each once.

    Keys and values of every head, or the latent vector of every token (and an indexer's key): what ranks hold
    in copies, because they are more than the heads or because latents are not divided, is sent once. Caches
    of a draft model are not sent: they are the decode side's own.
    """
    from frontier.models.kv import block_bytes, kv_layers  # noqa: PLC0415 - keeps `import frontier` light

    layers = kv_layers(facts.model, tensor_parallel_size=1, kv_cache_dtype=kv_cache_dtype)
    return block_bytes(layers, facts.block_size)


@dataclass(slots=True)
class PredictorPool:
    """The learned predictors of all clusters, numbered as they go beside the plan."""

    predictors: list[_frontier.Predictor] = field(default_factory=list)
    identities: list[dict[str, str]] = field(default_factory=list)

    def numbered(
        self, attached: Attached, draft: dict[str, Any] | None
    ) -> tuple[Attached, dict[str, Any] | None]:
        """Take in a cluster's predictors; return its operators and its drafts with their numbers here."""
        known = {id(predictor): index for index, predictor in enumerate(self.predictors)}
        numbers = []
        for predictor, identity in zip(attached.predictors, attached.identities, strict=True):
            if id(predictor) not in known:
                known[id(predictor)] = len(self.predictors)
                self.predictors.append(predictor)
                self.identities.append(identity)
            numbers.append(known[id(predictor)])
        if numbers == list(range(len(numbers))):
            return attached, draft
        stages = [[_renumbered(operator, numbers) for operator in stage] for stage in attached.stages]
        if draft is not None:
            passes = ("first_pass", "decode_pass")
            draft = draft | {
                name: [_renumbered(operator, numbers) for operator in draft[name]] for name in passes
            }
        return replace(attached, stages=stages), draft


def _renumbered(operator: dict[str, Any], numbers: Sequence[int]) -> dict[str, Any]:
    """Return an operator of a plan whose predictors have other numbers."""
    if operator.get("predictor") is not None:
        return operator | {"predictor": _reference(operator["predictor"], numbers)}
    slots = operator.get("predictors")
    if slots is None:
        return operator
    return operator | {"predictors": {name: _reference(slot, numbers) for name, slot in slots.items()}}


def _reference(reference: dict[str, Any] | None, numbers: Sequence[int]) -> dict[str, Any] | None:
    return None if reference is None else reference | {"index": numbers[reference["index"]]}
