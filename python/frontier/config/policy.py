"""The order in which requests are served."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal

from pydantic import BeforeValidator, Field

from frontier import units
from frontier.config.base import Choice, Section
from frontier.config.fields import Flag, Number, Positive, PositiveDuration, Text, TokensOrZero, parse_whole
from frontier.errors import Issue, show_value

if TYPE_CHECKING:
    from collections.abc import Callable

    from frontier.config.engine import Engine
    from frontier.config.sections import Objectives
    from frontier.config.workload import Workload

MAX_LEVELS: Final = 16

PredictionError = Annotated[float, Field(ge=0, le=10), BeforeValidator(units.parse_number)]
"""Standard deviation of the logarithm of predicted over true output length; 0 is an oracle."""


class Fcfs(Section):
    """First come, first served."""


class ByPriority(Section):
    """By the priority of requests, smaller first, then by arrival."""


class Sjf(Section):
    """Shortest job first."""

    by: Literal["prompt", "output", "total"] = "total"
    """Whose length counts; output lengths are predicted."""
    error: PredictionError = 0.0
    """Error of predictions: standard deviation of the logarithm of predicted over true; 0 is an oracle."""


class Srpt(Section):
    """Shortest remaining job first."""

    by: Literal["prompt", "output", "total"] = "total"
    """Whose rest counts; output lengths are predicted."""
    error: PredictionError = 0.0
    """Error of predicted lengths, as for sjf."""
    preemptive: Flag = True
    """Running requests make room for waiting ones that rank before them; they are recomputed later."""


class Edf(Section):
    """Earliest deadline first: arrival plus objective."""

    objective: Literal["ttft", "e2e"] = "ttft"
    """Which of the scenario's objectives sets the deadline."""
    by_priority: tuple[PositiveDuration, ...] | None = None
    """Objectives by priority instead: the first for 0 and below, the last for its own and all larger."""
    preemptive: Flag = False
    """Running requests make room for waiting ones that rank before them; they are recomputed later."""


class LeastSlack(Section):
    """Least slack first: deadline, less now, less the time that the request still needs."""

    objective: Literal["ttft", "e2e"] = "e2e"
    """What the objective limits: the first token or the last."""
    by_priority: tuple[PositiveDuration, ...] | None = None
    """Objectives by priority instead of the scenario's, as for edf."""
    per_prefill_token: PositiveDuration
    """Estimated time per prompt token still to compute."""
    per_decode_token: PositiveDuration
    """Estimated time per output token still to come."""
    error: PredictionError = 0.0
    """Error of predicted lengths, as for sjf."""


class Mlfq(Section):
    """Skip-join multi-level feedback queue, as FastServe's, with service counted in tokens."""

    levels: Annotated[int, Field(ge=2, le=MAX_LEVELS), BeforeValidator(parse_whole)] = 4
    """Queues, the first served first."""
    quantum_tokens: Positive = 64
    """Service after which a request leaves the first queue, in output tokens."""
    growth: Positive = 4
    """Quantum of a queue over that of the one before."""
    prompt_tokens_per_unit: Positive = 32
    """Prompt tokens that count as one output token of service."""
    skip_join: Flag = True
    """A request joins the first queue whose quantum covers its prompt."""
    starvation: PositiveDuration | None = None
    """A request that waited so long goes back to the first queue; left out, none does."""
    preemptive: Flag = True
    """Running requests make room for waiting ones of an earlier queue; they are recomputed later."""


class CausalMlfq(Section):
    """Feedback queues over whole sessions, after Libra's C-MLFQ."""

    levels: Annotated[int, Field(ge=2, le=MAX_LEVELS), BeforeValidator(parse_whole)] = 4
    """Queues, the first served first."""
    quantum_tokens: Positive = 256
    """Service of a session after which its turns leave the first queue, in output tokens."""
    growth: Positive = 4
    """Quantum of a queue over that of the one before."""
    prompt_tokens_per_unit: Positive = 32
    """Prompt tokens that count as one output token of service."""
    starvation: PositiveDuration | None = None
    """A request that waited so long goes back to the first queue; left out, none does."""
    preemptive: Flag = False
    """Running requests make room for waiting ones of an earlier queue; they are recomputed later."""
    small_return_tokens: TokensOrZero = 256
    """A turn that adds at most this much to its session's context starts one queue earlier."""
    large_return_tokens: TokensOrZero = 2048
    """A turn that adds at least this much starts one queue later."""


class Vtc(Section):
    """Virtual token counter: the session that got least is served next."""

    input_weight: Annotated[Number, Field(le=1e6)] = 1.0
    """Cost of a prompt token."""
    output_weight: Annotated[Number, Field(le=1e6)] = 2.0
    """Cost of an output token."""


class ByExpression(Section):
    """The value of an expression, smallest first."""

    shorthand: ClassVar[str | None] = "value"

    value: Text
    """Such as `waiting_time * -1 + prompt_tokens / 100`: fields, + - * /, comparisons, and, or, not, min,
    max, abs, if(condition, then, else)."""
    objective: Literal["ttft", "e2e"] = "ttft"
    """Which of the scenario's objectives sets `deadline`."""
    error: PredictionError = 0.0
    """Error of `predicted_output_tokens`, as for sjf."""
    preemptive: Flag = False
    """Running requests make room for waiting ones that rank before them; they are recomputed later."""


class SchedulingPolicy(Choice):
    """The order in which requests are served."""

    fcfs: Fcfs | None = None
    """First come, first served."""
    priority: ByPriority | None = None
    """By priority."""
    sjf: Sjf | None = None
    """Shortest job first."""
    srpt: Srpt | None = None
    """Shortest remaining job first."""
    edf: Edf | None = None
    """Earliest deadline first."""
    least_slack: LeastSlack | None = None
    """Least slack first."""
    mlfq: Mlfq | None = None
    """Skip-join feedback queues."""
    c_mlfq: CausalMlfq | None = None
    """Feedback queues over sessions."""
    vtc: Vtc | None = None
    """Fairness between sessions."""
    expression: ByExpression | None = None
    """A priority expression of your own."""


NEEDS_SESSIONS: Final = ("vtc", "c_mlfq")
FCFS: Final = SchedulingPolicy(fcfs=Fcfs())


def objectives_ns(policy: SchedulingPolicy, objectives: Objectives) -> list[int]:
    """Return the objectives by priority that a policy works with; empty where there is none."""
    chosen = getattr(policy, policy.chosen)
    given = getattr(chosen, "by_priority", None)
    if given:
        return list(given)
    named = getattr(chosen, "objective", None)
    value = getattr(objectives, named) if named else None
    return [] if value is None else [value]


def policy_issues(
    engine: Engine,
    objectives: Objectives | None,
    workload: Workload | None,
    known: Callable[..., bool],
) -> list[Issue]:
    """Return what a policy lacks in the rest of the scenario."""
    from frontier import _frontier  # noqa: PLC0415 - keeps `import frontier` light

    path = "engine.scheduling_policy"
    if not known(path):
        return []
    policy = engine.scheduling_policy
    name = policy.chosen
    at = f"{path}.{name}"
    chosen = getattr(policy, name)
    issues = []
    if getattr(chosen, "by_priority", None) == ():
        issues.append(Issue(f"{at}.by_priority", (), "is an empty list; leave it out to use the objectives"))
    if getattr(chosen, "preemptive", False) and engine.scheduler is not None and known("engine.scheduler"):
        message = f"was true, which engine.scheduler.{engine.scheduler.chosen} does not do; set it to false"
        issues.append(Issue(f"{at}.preemptive", True, message))
    if name == "c_mlfq" and chosen.small_return_tokens >= chosen.large_return_tokens:
        message = f"was {chosen.small_return_tokens}, must be less than large_return_tokens"
        issues.append(Issue(f"{at}.small_return_tokens", chosen.small_return_tokens, message))
    issues += _without_effect(chosen, at)
    needed = []
    if objectives is not None and known("objectives"):
        needed = objectives_ns(policy, objectives)
        if name in ("edf", "least_slack") and not needed:
            message = f"was '{chosen.objective}', needs objectives.{chosen.objective} or by_priority"
            issues.append(Issue(f"{at}.objective", chosen.objective, message))
        if name == "expression":
            fault = _frontier.expression_fault(chosen.value, bool(needed), chosen.preemptive)
            if fault is not None:
                issues.append(Issue(f"{at}.value", chosen.value, f"is no priority expression: {fault}"))
    synthetic = workload.synthetic if workload is not None else None
    sessions_known = known("workload.synthetic.sessions", "workload.synthetic")
    if name in NEEDS_SESSIONS and synthetic and synthetic.sessions is None and sessions_known:
        message = f"was '{name}', needs workload.synthetic.sessions: the requests have no sessions"
        issues.append(Issue(path, name, message))
    return issues


def _without_effect(chosen: Section, at: str) -> list[Issue]:
    """Return the settings that the order does not ask for."""
    unused = {}
    if isinstance(chosen, Edf) and chosen.by_priority:
        unused["objective"] = "by_priority, which says the objectives itself"
    if isinstance(chosen, ByExpression):
        words = set(re.findall(r"\w+", chosen.value))
        if "deadline" not in words:
            unused["objective"] = "an expression that names no deadline"
        if "predicted_output_tokens" not in words:
            unused["error"] = "an expression that names no predicted_output_tokens"
    issues = []
    for field, reason in unused.items():
        value = getattr(chosen, field)
        if value != type(chosen).model_fields[field].default:
            message = f"was {show_value(value)}, has no effect with {reason}; remove it"
            issues.append(Issue(f"{at}.{field}", value, message))
    return issues


def lower_policy(policy: SchedulingPolicy, objectives: Objectives) -> Any:
    """Return the plan's policy."""
    name = policy.chosen
    if name in ("fcfs", "priority"):
        return name
    chosen = getattr(policy, name)
    fields = {field: getattr(chosen, field) for field in type(chosen).model_fields}
    for duration in ("per_prefill_token", "per_decode_token", "starvation"):
        if duration in fields:
            fields[f"{duration}_ns"] = fields.pop(duration)
    if name == "sjf":
        fields["preemptive"] = False
    if name in ("edf", "least_slack", "expression"):
        fields["objectives_ns"] = objectives_ns(policy, objectives)
        fields.pop("by_priority", None)
        if name != "least_slack":
            fields.pop("objective")
    if name == "expression":
        fields["text"] = fields.pop("value")
    if name == "c_mlfq":
        returns = {key: fields.pop(key) for key in ("small_return_tokens", "large_return_tokens")}
        return {name: {"queues": {**fields, "skip_join": False}, **returns}}
    return {name: fields}
