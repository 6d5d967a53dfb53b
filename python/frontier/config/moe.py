"""Layers with experts: how tokens are routed, where experts are, how tokens get there.

Names and defaults are vLLM's where it has them (`vllm/config/parallel.py`: `ParallelConfig`, `EPLBConfig`;
`vllm/envs.py`: `VLLM_SHARED_EXPERTS_STREAM_TOKEN_THRESHOLD`). Routing is a fact of model and traffic, for
which an engine has no setting.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal

from pydantic import BeforeValidator, Field

from frontier.config.base import Choice, Section
from frontier.config.fields import Flag, Positive, Text, TokensOrZero, Whole
from frontier.config.locate import why_no_file
from frontier.errors import Issue, show_value
from frontier.models.layout import ALL2ALL_BACKENDS
from frontier.units import parse_number, parse_share
from frontier.vllm_versions import minor_of

if TYPE_CHECKING:
    from frontier.config.engine import Engine
    from frontier.models import ModelSpec

DEFAULT_SHARED_EXPERTS_TOKENS: Final = 256
DEFAULT_DBO_DECODE_TOKENS: Final = 32
DEFAULT_DBO_PREFILL_TOKENS: Final = 512
EPLB_ASYNC_FIELD_SINCE: Final = 12
"""Minor version of vLLM from which the choice is there."""
ASYNC_EPLB_SINCE: Final = 23
"""Minor version of vLLM from which experts are moved beside the steps by default."""

Known = Callable[..., bool]


class BalancedRouting(Section):
    """As evenly as whole tokens allow: forced balance, without chance."""


class UniformRouting(Section):
    """Every expert with equal chances."""


class PowerLawRouting(Section):
    """The i-th most popular expert of a layer gets visits in proportion to 1 / i^exponent."""

    exponent: Annotated[float, Field(gt=0, le=10), BeforeValidator(parse_number)]
    """Over 0; larger is more uneven."""


class BimodalRouting(Section):
    """A few experts of each layer get most visits."""

    hot_experts: Positive
    """Popular experts of a layer."""
    hot_share: Annotated[float, Field(gt=0, lt=1), BeforeValidator(parse_share)]
    """Share of all visits that they get together; each token visits different experts."""


class TraceRouting(Section):
    """Visits that were counted."""

    shorthand: ClassVar[str | None] = "path"

    path: Text
    """File of counts: CSV with the columns layer, expert, count and perhaps window; or JSON or npz with
    `counts`, by layer and expert, or by window, layer and expert. One layer stands for all."""


class Routing(Choice):
    """How popular the experts of a layer are. Every layer has popular experts of its own, by the seed."""

    balanced: BalancedRouting | None = None
    """Even by force."""
    uniform: UniformRouting | None = None
    """Even but for chance."""
    power_law: PowerLawRouting | None = None
    """Many degrees of popularity."""
    bimodal: BimodalRouting | None = None
    """Two degrees of popularity."""
    trace: TraceRouting | None = None
    """As counted."""


class Drift(Section):
    """Popularity changes while the engine runs."""

    step_interval: Positive
    """Steps from one change to the next, or that a window of a trace lasts."""
    shift: Positive | None = None
    """Places by which the experts of a layer move in its order of popularity; left out, 1. Windows of a trace
    say themselves what changes."""


class Eplb(Section):
    """Expert parallel load balancing: copies of popular experts, rearranged by the loads that they had."""

    window_size: Positive = 1000
    """Steps over which loads are counted."""
    step_interval: Positive = 3000
    """Steps from one rearrangement to the next; the first comes after a quarter of it."""
    num_redundant_experts: Whole = 0
    """Copies of experts in each layer, which take memory."""
    use_async: Flag | None = None
    """Move weights beside the steps, a layer per step, instead of between two of them; left out, the
    version's default (from 0.23)."""


class Moe(Section):
    """Layers with experts. Without this section, loads are the typical ones of equal chances."""

    routing: Routing = Routing(uniform=UniformRouting())
    """How popular experts are."""
    sampling: Literal["draw", "mean"] | None = None
    """Whether each step draws the time of its slowest ranks, or takes the mean; left out, it draws."""
    drift: Drift | None = None
    """How popularity changes; left out, not at all."""
    all2all_backend: Literal[ALL2ALL_BACKENDS] = "allgather_reducescatter"  # type: ignore[valid-type]
    """How tokens reach the experts of other ranks: gathered by all of them, or sent by DeepEP."""
    expert_placement_strategy: Literal["linear", "round_robin"] = "linear"
    """Which experts a rank holds: neighbours, or dealt out one by one."""
    eplb: Eplb | None = None
    """Balance load by rearranging; left out, never."""
    shared_experts_stream_token_threshold: TokensOrZero | None = None
    """Shared experts run beside the routed ones in steps of up to so many tokens of a rank; left out, 256."""
    enable_dbo: Flag = False
    """Dual-batch overlap: two micro-batches, one computes while the other communicates."""
    dbo_decode_token_threshold: Positive | None = None
    """Least tokens of each rank for that in steps that only decode; left out, 32."""
    dbo_prefill_token_threshold: Positive | None = None
    """The same in other steps; left out, 512."""


def layout_settings(engine: Engine) -> dict[str, Any]:
    """Return the settings that a `Layout` takes from the section."""
    moe = engine.moe
    if moe is None:
        return {}
    return {
        "all2all_backend": moe.all2all_backend,
        "num_redundant_experts": moe.eplb.num_redundant_experts if moe.eplb is not None else 0,
    }


def moe_issues(engine: Engine, known: Known) -> list[Issue]:
    """Return what is wrong with the section on its own, and settings in it without effect."""
    moe = engine.moe
    if moe is None or not known("engine.moe"):
        return []
    issues = [*_routing_issues(moe)]
    if not engine.step_time.knows_operators and known("engine.step_time"):
        own = "a linear step time" if engine.step_time.linear is not None else "step times from tables"
        message = f"has no effect with {own}: no experts are known; remove one of the two"
        issues.append(Issue("engine.moe", moe.model_dump(mode="json", exclude_none=True), message))
    eplb, at = moe.eplb, "engine.moe.eplb.use_async"
    old = (
        engine.name == "vllm"
        and known("engine.version")
        and minor_of(engine.version) < EPLB_ASYNC_FIELD_SINCE
    )
    if eplb is not None and eplb.use_async is not None and old:
        message = f"was {show_value(eplb.use_async)}, vLLM {engine.version} has no such setting"
        issues.append(Issue(at, eplb.use_async, message))
    if moe.enable_dbo and moe.all2all_backend == ALL2ALL_BACKENDS[0]:
        message = f"was true, needs DeepEP: set engine.moe.all2all_backend to one of {_DEEPEP}"
        issues.append(Issue("engine.moe.enable_dbo", True, message, ("false",)))
    for field in ("dbo_decode_token_threshold", "dbo_prefill_token_threshold"):
        value = getattr(moe, field)
        if value is not None and not moe.enable_dbo:
            message = f"was {value}, has no effect without enable_dbo; remove it"
            issues.append(Issue(f"engine.moe.{field}", value, message))
    return issues


_DEEPEP = ", ".join(ALL2ALL_BACKENDS[1:])


def _routing_issues(moe: Moe) -> list[Issue]:
    routing = moe.routing.chosen
    issues = []
    if routing == "balanced":
        for field, value in (("sampling", moe.sampling), ("eplb", moe.eplb)):
            if value is not None:
                message = "has no effect with balanced routing, which is even without chance; remove it"
                shown = value if isinstance(value, str) else value.model_dump(exclude_none=True)
                issues.append(Issue(f"engine.moe.{field}", shown, message))
    if moe.drift is not None and routing in ("balanced", "uniform"):
        message = f"has no effect with {routing} routing, in which no expert is more popular; remove it"
        issues.append(Issue("engine.moe.drift", moe.drift.model_dump(exclude_none=True), message))
    if moe.expert_placement_strategy == "round_robin" and moe.eplb is not None:
        message = "was 'round_robin', which vLLM does not take with eplb; remove one of the two"
        issues.append(Issue("engine.moe.expert_placement_strategy", "round_robin", message, ("linear",)))
    trace = moe.routing.trace
    if trace is not None:
        why = why_no_file(Path(trace.path).expanduser())
        if why is not None:
            message = f"was {show_value(trace.path)}, {why}"
            issues.append(Issue("engine.moe.routing.trace.path", trace.path, message))
    return issues


def moe_model_issues(engine: Engine, spec: ModelSpec, expert_parallel_size: int, known: Known) -> list[Issue]:
    """Return what the section cannot mean for a model whose experts are spread over so many ranks."""
    from frontier.models.spec import MixtureOfExperts  # noqa: PLC0415 - keeps `import frontier` light

    moe = engine.moe
    if moe is None or not known("engine.moe"):
        return []
    if not spec.is_moe:
        message = f"has no effect: {spec.name} has no experts; remove it"
        return [Issue("engine.moe", moe.model_dump(mode="json", exclude_none=True), message)]
    issues = []
    whole = expert_parallel_size > 1
    if not whole and moe.eplb is not None:
        message = "has no effect without expert parallelism over several ranks; remove it"
        issues.append(Issue("engine.moe.eplb", moe.eplb.model_dump(exclude_none=True), message))
    if not whole and moe.expert_placement_strategy != "linear":
        message = "was 'round_robin', has no effect without expert parallelism over several ranks"
        issues.append(Issue("engine.moe.expert_placement_strategy", "round_robin", message, ("linear",)))
    experts = [g.feed_forward for g in spec.layers if isinstance(g.feed_forward, MixtureOfExperts)]
    threshold = moe.shared_experts_stream_token_threshold
    if threshold is not None and not any(each.shared_intermediate_size for each in experts):
        message = f"was {threshold}, has no effect: {spec.name} has no shared experts; remove it"
        issues.append(Issue("engine.moe.shared_experts_stream_token_threshold", threshold, message))
    bimodal = moe.routing.bimodal
    if bimodal is not None:
        issues += _bimodal_issues(bimodal, experts[0])
    return issues


def _bimodal_issues(bimodal: BimodalRouting, moe: Any) -> list[Issue]:
    hot, share = bimodal.hot_experts, bimodal.hot_share
    if hot >= moe.num_experts:
        message = f"was {hot}, must be less than the {moe.num_experts} experts of a layer"
        return [Issue("engine.moe.routing.bimodal.hot_experts", hot, message)]
    if share > hot / moe.top_k:
        message = (
            f"was {share:g}, but each token visits {moe.top_k} different experts, so {hot} of them get at"
            f" most {hot / moe.top_k:.1%} of the visits"
        )
        return [Issue("engine.moe.routing.bimodal.hot_share", share, message)]
    return []
