"""What one step costs, operator by operator, before anything is simulated.

    explanation = frontier.explain("scenario.yaml")
    print(explanation)                    # or explanation.prefill.frame, explanation.decode.frame

A step that computes one prompt and a step that decodes a batch, as the engine of the scenario would run them:
how long every operator takes, what bounds it, which predictor says so, and how far that is from measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from frontier import _frontier
from frontier.afd_stations import Stations
from frontier.config.encode import ENCODE
from frontier.config.speculative import mean_tokens_per_step
from frontier.errors import ConfigError, Issue, show_value
from frontier.lowering import lower
from frontier.own_requests import own_requests
from frontier.results.trust import PROVENANCES
from frontier.typical_steps import DecodeStep, mean_image, typical_decode, typical_prefill

if TYPE_CHECKING:
    import polars as pl

    from frontier.config import Scenario
    from frontier.lowering import Lowered
    from frontier.simulation import ScenarioLike

Batch = list[tuple[int, int, bool]]
"""Requests of one data parallel rank: query tokens, context after the step, whether it is a prefill."""


@dataclass(frozen=True, slots=True)
class OperatorCost:
    """One operator of a step.

    Attributes:
        stage: pipeline stage, from 0.
        operator: name in the model's program.
        count: runs per step.
        seconds: time of all runs on one rank.
        share: of the GPU time of its rank and all stages.
        bound: what bounds it: `compute`, `memory`, `network` or `launch`.
        bound_s: the bound of all runs, launches included.
        ratio: `seconds` / `bound_s`, None where nothing runs.
        provenance: what the time rests on (`frontier.results.trust`).
        predictors: the learned predictors that say so, by id; none for the bound alone.
        flops: useful floating-point operations of all ranks that run it.
        bytes: useful HBM bytes of the same.
    """

    stage: int
    operator: str
    count: int
    seconds: float
    share: float
    bound: str
    bound_s: float
    ratio: float | None
    provenance: str
    predictors: tuple[str, ...]
    flops: float
    bytes: float


@dataclass(frozen=True, slots=True)
class StepCost:
    """One step of one replica; every data parallel rank runs the same batch.

    Attributes:
        kind: `prefill`, `decode` or, of a vision tower, `encode`.
        requests: requests of a rank.
        query_tokens: tokens that each of them computes; in a decode one and its drafts.
        context_tokens: tokens of each after the step, the new ones included.
        total_s: the whole step, host time that the GPU does not hide included.
        gpu_s: GPU time of one rank, all pipeline stages.
        host_s: the part of `total_s` in which the GPU waits for the host.
        launch_s: host time of launching its kernels, hidden as far as the GPU takes longer.
        draft_s: the part of `total_s` spent drafting for the next step (speculative decoding).
        graph: how they are launched: `full` (one CUDA graph), `piecewise` (one between two attention
            operators) or `eager`.
        tokens: tokens that one rank computes.
        padded_tokens: rows that its operators compute for them, padding to a captured size included.
        stages_s: GPU time of each pipeline stage.
        shares: share of GPU time by provenance.
        operators: what it is made of, in program order; none for linear step times.
        stations: with attention and FFN apart, what a micro-batch goes round. Then `gpu_s` is the time of
            one attention rank, of the FFN that it waits for and of transfers, which overlap; stages are the
            parts of attention (head, classes of layers, tail), then those of the FFN with the transfers.
    """

    kind: Literal["prefill", "decode", "encode"]
    requests: int
    query_tokens: int
    context_tokens: int
    total_s: float
    gpu_s: float
    host_s: float
    launch_s: float
    draft_s: float
    graph: str
    tokens: int
    padded_tokens: int
    stages_s: tuple[float, ...]
    shares: Mapping[str, float]
    operators: tuple[OperatorCost, ...]
    stations: Stations | None = None

    @property
    def frame(self) -> pl.DataFrame:
        """One row per operator, in program order."""
        import polars as pl  # noqa: PLC0415 - polars is slow to import

        schema: dict[str, Any] = {
            **{"stage": pl.UInt32, "operator": pl.String, "count": pl.UInt32, "seconds": pl.Float64},
            **{"share": pl.Float64, "bound": pl.String, "bound_s": pl.Float64, "ratio": pl.Float64},
            **{"provenance": pl.String, "predictors": pl.List(pl.String)},
            **{"flops": pl.Float64, "bytes": pl.Float64},
        }
        rows = [{**asdict(each), "predictors": list(each.predictors)} for each in self.operators]
        return pl.DataFrame(rows, schema=schema)

    @property
    def padding(self) -> float:
        """Share of the computed rows that are padding."""
        return 1 - self.tokens / self.padded_tokens if self.padded_tokens else 0.0

    @property
    def what(self) -> str:
        """The batch in words."""
        if self.kind == "encode":
            images = "one image" if self.requests == 1 else f"{self.requests:,} images"
            return f"encoding of {images} of {self.query_tokens:,} patches"
        if self.kind == "prefill":
            return f"prefill of {self.query_tokens:,} tokens"
        drafts = f" and {self.query_tokens - 1:,} drafts" if self.query_tokens > 1 else ""
        context = f"{self.context_tokens:,} tokens of context"
        return f"decode of {self.requests:,} requests with {context}{drafts} each"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        plain = asdict(self)
        plain["operators"] = [
            {**operator, "predictors": list(operator["predictors"])} for operator in plain["operators"]
        ]
        del plain["stations"]
        if self.stations is not None:
            plain["stations"] = self.stations.to_dict()
        return {
            **plain,
            "padding": self.padding,
            "stages_s": list(self.stages_s),
            "shares": dict(self.shares),
        }


@dataclass(frozen=True, slots=True)
class Explanation:
    """A prefill step and a decode step; of an encode cluster, a step of one image and a full one.

    Attributes:
        model: name of the model.
        gpu: name of the GPU.
        gpus_per_replica: GPUs that share a step.
        step_time: how step times are made.
        prefill: a step that computes a prompt.
        decode: a step that decodes.
        predictors: the learned predictors in use: `id`, `sha256`.
        notes: what the reader should know.
    """

    model: str
    gpu: str
    gpus_per_replica: int
    step_time: str
    prefill: StepCost
    decode: StepCost
    predictors: tuple[Mapping[str, str], ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; times in seconds."""
        return {
            "model": self.model,
            "gpu": self.gpu,
            "gpus_per_replica": self.gpus_per_replica,
            "step_time": self.step_time,
            "steps": [self.prefill.to_dict(), self.decode.to_dict()],
            "predictors": [dict(used) for used in self.predictors],
            "notes": list(self.notes),
        }


def explain(
    scenario: ScenarioLike,
    *,
    prefill: int | None = None,
    decode: int | None = None,
    context: int | None = None,
    cluster: str | None = None,
) -> Explanation:
    """Explain what one prefill step and one decode step of a scenario cost, without simulating it.

    Args:
        scenario: a `Scenario`, its plain values, or the path of its YAML file.
        prefill: tokens of the prompt that the prefill step computes; by default the mean prompt of the
            workload, or a chunk of it of `max_num_batched_tokens`.
        decode: requests that the decode step holds; by default about as many as the workload keeps in flight
            (`frontier.typical_steps`).
        context: tokens of each of them after the step; by default the mean prompt and half the mean output.
        cluster: name of the cluster whose steps they are, which a scenario with several clusters needs. A
            prefill cluster decodes nothing, nor a decode cluster whole prompts: those steps are what it would
            take. Steps of an encode cluster are of one image of `prefill` tokens (the mean of the workload),
            and of `decode` of them (as many as a step takes).

    Raises:
        ConfigError: the scenario is not valid, no cluster has that name, or a step does not fit the limits
            of its engine.
        WorkloadError: its trace cannot be read.
    """
    from frontier.simulation import as_scenario  # noqa: PLC0415 - imports this package's facade

    whole = as_scenario(scenario)
    view = whole.view(cluster)
    if not view.has_requests:
        names = tuple(each.name for each in whole.views() if each.has_requests)
        message = f"was '{view.name}', whose FFN ranks are explained with their attention cluster"
        raise ConfigError(Issue("cluster", view.name, message, names))
    chosen = view.scenario
    lowered, share = own_requests(whole, view, lower(chosen))
    _check(lowered, prefill, decode, context)
    if view.role == ENCODE:
        if context is not None:
            message = f"was {show_value(context)}, has no effect: an encoder has no context; remove it"
            raise ConfigError(Issue("context", context, message), source="explain")
        return _encoding(lowered, chosen, prefill, decode)
    prompt = typical_prefill(chosen, lowered) if prefill is None else prefill

    given = chosen.engine.speculative
    most_drafts = 0 if given is None else given.num_speculative_tokens
    emitted = 1.0 if given is None else mean_tokens_per_step(given)

    def timed(requests: int, tokens: int) -> float:
        drafts = min(most_drafts, tokens - 1)
        step = _breakdown(lowered, [(1 + drafts, tokens, False)] * requests, drafts)
        return float(step["total_ns"]) / 1e9 / emitted  # per token of a request

    batch = typical_decode(chosen, lowered, timed, requests=decode, context=context, share=share)
    notes = [*lowered.warnings, *lowered.notes]
    if lowered.attached is None:
        source = "tables have" if lowered.step_time == "tables" else "a linear step time has"
        notes.append(f"{source} no operators: only the totals are known")
    unit = lowered.only.view.unit
    ffn_gpus = 0 if unit is None else unit.facts.gpus_per_replica
    if unit is not None:
        beside = f"{ffn_gpus} x {unit.facts.gpu.name} with the FFN"
        notes.append(
            f"{lowered.resolved.gpus_per_replica} x {lowered.resolved.gpu.name} with attention, {beside}"
        )
    capacity = lowered.resolved.memory.kv_cache_tokens
    if batch.requests * batch.context_tokens > capacity:
        notes.append(f"the KV cache of a replica holds {capacity:,} tokens, fewer than this decode batch has")
    return Explanation(
        model=lowered.resolved.model.name,
        gpu=lowered.resolved.gpu.name,
        gpus_per_replica=lowered.resolved.gpus_per_replica + ffn_gpus,
        step_time=lowered.step_time,
        prefill=_step(lowered, "prefill", DecodeStep(1, prompt), prompt),
        decode=_step(lowered, "decode", batch, 1 + min(most_drafts, batch.context_tokens - 1)),
        predictors=lowered.identities,
        notes=tuple(notes),
    )


def _encoding(lowered: Lowered, chosen: Scenario, image: int | None, images: int | None) -> Explanation:
    """Return a step of one image, and one of as many as it takes.

    Raises:
        ConfigError: more images than a step takes.
    """
    resolved = lowered.resolved
    tokens = mean_image(chosen, lowered) if image is None else image
    fits = max(1, min(resolved.max_num_batched_tokens // tokens, resolved.max_num_seqs))
    if images is not None and images > fits:
        message = f"was {images}, but a step takes {fits} images of {tokens} tokens (max_num_batched_tokens)"
        raise ConfigError(Issue("decode", images, message), source="explain")
    notes = [*lowered.warnings, *lowered.notes]
    return Explanation(
        model=f"{resolved.model.name} (vision tower)",
        gpu=resolved.gpu.name,
        gpus_per_replica=resolved.gpus_per_replica,
        step_time=lowered.step_time,
        prefill=_step(lowered, "encode", DecodeStep(1, tokens), tokens),
        decode=_step(lowered, "encode", DecodeStep(fits if images is None else images, tokens), tokens),
        predictors=lowered.identities,
        notes=tuple(notes),
    )


def _check(lowered: Lowered, prefill: object, decode: object, context: object) -> None:
    """Refuse steps that the engine would not run.

    Raises:
        ConfigError: with every argument that is out of range.
    """
    resolved = lowered.resolved
    budget = min(resolved.max_num_batched_tokens, resolved.max_model_len)
    drafts = 0 if resolved.draft is None else resolved.draft.num_speculative_tokens
    seqs = max(1, min(resolved.max_num_seqs, resolved.max_num_batched_tokens // (1 + drafts)))
    issues = []
    for name, value, least, most, why in (
        ("prefill", prefill, 1, budget, "max_num_batched_tokens and max_model_len"),
        ("decode", decode, 1, seqs, "max_num_seqs and max_num_batched_tokens"),
        ("context", context, 1, resolved.max_model_len, "max_model_len"),
    ):
        good = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        if value is not None and not good:
            message = f"was {show_value(value)}, must be a whole number from {least} to {most} ({why})"
            issues.append(Issue(name, value, message))
    if issues:
        raise ConfigError(issues, source="explain")


def _breakdown(lowered: Lowered, batch: Batch, drafts: int = 0) -> dict[str, Any]:
    ranks = _data_parallel_size(lowered)
    text = json.dumps(lowered.only.plan["step_time"])
    return _frontier.step_breakdown(
        text, [batch] * ranks, lowered.predictors, 0, [[drafts] * len(batch)] * ranks
    )


def _data_parallel_size(lowered: Lowered) -> int:
    step_time = lowered.only.plan["step_time"]
    layout = (step_time["attention"] if step_time["kind"] == "afd" else step_time).get("layout", {})
    ranks: int = layout.get("data_parallel_size", 1)
    return ranks


def _step(
    lowered: Lowered, kind: Literal["prefill", "decode", "encode"], batch: DecodeStep, query_tokens: int
) -> StepCost:
    requests: Batch = [(query_tokens, batch.context_tokens, kind != "decode")] * batch.requests
    facts = _breakdown(lowered, requests, query_tokens - 1 if kind == "decode" else 0)
    rows, step_time = facts["operators"], lowered.only.plan["step_time"]
    gpu_s = sum(row["seconds"] for row in rows)
    shares = (
        {
            name: sum(row["seconds"] for row in rows if row["provenance"] == name) / gpu_s
            for name in PROVENANCES
        }
        if gpu_s > 0
        else {}
    )
    return StepCost(
        kind=kind,
        requests=batch.requests,
        query_tokens=query_tokens,
        context_tokens=batch.context_tokens,
        total_s=facts["total_ns"] / 1e9,
        gpu_s=gpu_s,
        host_s=facts["cpu_exposed_ns"] / 1e9,
        launch_s=facts["launch_ns"] / 1e9,
        draft_s=facts["draft_ns"] / 1e9,
        graph=facts["graph"],
        tokens=query_tokens * batch.requests,
        padded_tokens=facts["padded_tokens"] // _data_parallel_size(lowered),
        stages_s=tuple(facts["stages_s"]),
        shares=shares,
        operators=tuple(
            OperatorCost(
                stage=row["stage"],
                operator=row["name"],
                count=row["count"],
                seconds=row["seconds"],
                share=row["seconds"] / gpu_s if gpu_s > 0 else 0.0,
                bound=row["bound"],
                bound_s=row["bound_s"],
                ratio=row["seconds"] / row["bound_s"] if row["bound_s"] > 0 else None,
                provenance=row["provenance"],
                predictors=tuple(_predictors(lowered, operator, kind)),
                flops=row["flops"],
                bytes=row["bytes"],
            )
            for row, operator in zip(rows, _planned(lowered), strict=True)
        ),
        stations=Stations.of(facts, step_time, query_tokens * batch.requests)
        if step_time["kind"] == "afd"
        else None,
    )


def _planned(lowered: Lowered) -> list[dict[str, Any]]:
    """Return the operators of the plan, then those that draft: a breakdown has their order."""
    step_time = lowered.only.plan["step_time"]
    if step_time["kind"] == "afd":
        attention = [operator for part in step_time["attention"]["stages"] for operator in part]
        ways: list[dict[str, Any]] = [{"name": "a2f"}, {"name": "f2a"}]
        return [*attention, *(each for part in step_time["ffn"]["stages"] for each in (*part, *ways))]
    draft = step_time.get("draft") or {}
    lists = [*step_time.get("stages", []), draft.get("first_pass", []), draft.get("decode_pass", [])]
    return [operator for operators in lists for operator in operators]


def _predictors(lowered: Lowered, operator: dict[str, Any], kind: str) -> Iterable[str]:
    """Yield the ids of the predictors that price an operator in a step of this kind."""
    slots = operator.get("predictors")
    if slots is None:
        found = [operator.get("predictor")]
    else:
        found = [slots["prefill"]] if kind != "decode" else [slots["decode"], slots["skew"]]
    for reference in found:
        if reference is not None:
            yield lowered.identities[reference["index"]]["id"]
