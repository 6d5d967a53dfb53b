"""The A:F ratio advisor for the attention and FFN clusters of a scenario.

    advice = frontier.advise_afd("afd-qwen3-235b", attention_ranks=(2, 4, 8), ffn_ranks=(8, 16))
    advice.best

Each layout is priced as the scenario would run it: its GPUs, links, predictors, CUDA graphs, hosts and
routing (`frontier.afd_advisor` says what is looked for).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from frontier.afd_advisor import AfdAdvice, PromptLoad, advise, afd_ratios
from frontier.afd_lowering import AfdLayout
from frontier.config.afd import MAX_MICRO_BATCHES
from frontier.config.afd_facts import AfdUnit, with_batches
from frontier.config.disaggregation import Disaggregation, program_of
from frontier.config.parallel import MAX_DATA_PARALLEL_SIZE
from frontier.disaggregated_lowering import PredictorPool
from frontier.errors import ConfigError, Issue, show_value
from frontier.lowering import lower
from frontier.models.sharding import disaggregated_issues
from frontier.own_requests import own_requests
from frontier.typical_steps import mean_context, mean_lengths
from frontier.unit_lowering import UnitStepTime

if TYPE_CHECKING:
    from frontier.config import Scenario
    from frontier.config.views import ClusterView
    from frontier.lowering import Lowered
    from frontier.simulation import ScenarioLike

DEFAULT_MICRO_BATCHES = (1, 2, 3, 4)


def advise_afd(
    scenario: ScenarioLike,
    *,
    cluster: str | None = None,
    attention_ranks: Sequence[int] | None = None,
    ffn_ranks: Sequence[int] | None = None,
    micro_batches: Sequence[int] | None = None,
    context: int | None = None,
    tpot_s: float | None = None,
    max_gpus: int | None = None,
) -> AfdAdvice:
    """Return how many attention ranks to how many FFN ranks give most tokens per GPU under a limit on TPOT.

    Every layout gets the largest batch that keeps the limit, that the KV cache of an attention rank holds,
    and that `max_num_seqs` lets run. Units that serve whole requests compute the prompts that keep up with
    their decodes in the same steps, within `max_num_batched_tokens`; the step is then the mean one, and
    nothing is taken to be cached.

    Args:
        scenario: a `Scenario`, its plain values, or the path of its YAML file, with attention clusters.
        cluster: name of one of several attention clusters.
        attention_ranks: numbers to try; by default a quarter of the scenario's own to four times as many.
        ffn_ranks: the same; numbers over which the experts cannot be spread are left out.
        micro_batches: numbers to try; by default 1 to 4.
        context: tokens of every request after the step; by default the mean prompt and half the mean output.
        tpot_s: the limit in seconds; by default `objectives.tpot`.
        max_gpus: of both sides of a unit.

    Raises:
        ConfigError: the scenario is not valid or has no such cluster, an argument is out of range, there is
            no limit, or its units decode nothing.
    """
    from frontier.simulation import as_scenario  # noqa: PLC0415 - imports this package's facade

    chosen = as_scenario(scenario)
    view = _view(chosen, cluster)
    unit = view.unit
    assert unit is not None
    own = unit.layout
    if tpot_s is None and chosen.objectives.tpot is not None:
        tpot_s = chosen.objectives.tpot / 1e9
    tried = {
        "attention_ranks": _numbers(attention_ranks, own.attention_ranks),
        "ffn_ranks": _numbers(ffn_ranks, own.ffn_ranks),
        "micro_batches": tuple(DEFAULT_MICRO_BATCHES if micro_batches is None else micro_batches),
    }
    if tpot_s is None:
        message = "was not given, and the scenario has no objectives.tpot"
        raise ConfigError(Issue("tpot_s", None, message), source="advise_afd")
    _check(tried, context)
    lowered, _ = own_requests(chosen, view, lower(view.scenario))
    prompts, notes = _prompts(chosen, view, lowered)
    if context is None:
        context = mean_context(view.scenario, lowered)
    layouts = [
        replace(layout, redundant_experts=own.redundant_experts)
        for layout in afd_ratios(
            **tried,
            attention_tensor_parallel_size=own.attention_tensor_parallel_size,
            ffn_tensor_parallel_size=own.ffn_tensor_parallel_size,
            max_gpus=max_gpus,
        )
        if ffn_ranks is not None or _spreads(view, layout)
    ]
    units = {layout: _with_layout(view, unit, layout) for layout in layouts}
    fit = [layout for layout in layouts if not units[layout].facts.memory.issues]
    facts = view.facts
    fits = facts.memory.kv_cache_tokens // context
    if fits == 0:
        message = f"was {context}, but the KV cache of an attention rank holds {facts.memory.kv_cache_tokens}"
        raise ConfigError(Issue("context", context, message), source="advise_afd")
    most = min(fits, facts.max_num_seqs)
    if prompts is not None:
        most = min(most, prompts.most_requests(facts.max_num_batched_tokens))
    if most == 0:
        message = (
            f"was {facts.max_num_batched_tokens}, but with one decode a step computes"
            f" {prompts.per_decode if prompts else 0:,.0f} prompt tokens, so that prompts do not keep up"
        )
        issue = Issue("engine.max_num_batched_tokens", facts.max_num_batched_tokens, message)
        raise ConfigError(issue, source="advise_afd")
    pool = PredictorPool()
    found = advise(
        fit,
        lambda layout: UnitStepTime(replace(view, unit=units[layout]), pool).of(),
        context_tokens=context,
        tpot_limit_s=tpot_s,
        attention_gpu=facts.gpu,
        ffn_gpu=unit.facts.gpu,
        max_requests_per_rank=most,
        prices=(facts.price_per_hour, unit.facts.price_per_hour),
        predictors=pool.predictors,
        prompts=prompts,
        max_num_batched_tokens=facts.max_num_batched_tokens,
    )
    too_large = tuple(layout for layout in layouts if layout not in fit)
    return replace(found, too_large=too_large, notes=notes)


def _prompts(
    scenario: Scenario, view: ClusterView, lowered: Lowered
) -> tuple[PromptLoad | None, tuple[str, ...]]:
    """Return the prompts that units compute beside decodes, and what to tell of them.

    Raises:
        ConfigError: units that decode nothing.
    """
    same = [each.plain for each in scenario.views() if each.served_model == view.served_model]
    program = program_of(same) or ()
    if program[-1:] != ("attention",):
        message = f"was '{view.name}', whose units compute prompts alone: layouts are compared by decodes"
        raise ConfigError(Issue("cluster", view.name, message), source="advise_afd")
    if program[0] == "attention":
        prompt, output = mean_lengths(view.scenario, lowered)
        load = PromptLoad(prompt_tokens=max(1, round(prompt)), output_tokens=output)
        note = (
            f"steps compute {load.per_decode:,.1f} prompt tokens for each request that decodes: those of the"
            " mean request, none of them cached"
        )
        return load, (note,)
    section = scenario.disaggregation or Disaggregation()
    given = [name for name in ("direct_below", "deflect_above") if getattr(section, name) is not None]
    told = (
        f"steps are decodes alone: prompts that come by disaggregation.{name} are not in them"
        for name in given
    )
    return None, tuple(told)


def _view(scenario: Scenario, cluster: str | None) -> ClusterView:
    views = [view for view in scenario.views() if view.unit is not None]
    names = tuple(view.name for view in views)
    for view in views:
        if view.name == cluster or (cluster is None and len(views) == 1):
            return view
    what = f"was {show_value(cluster)}, no attention cluster has this name" if cluster else "was not given"
    message = what if names else "has no attention cluster"
    raise ConfigError(Issue("cluster", cluster, message, names), source="advise_afd")


def _numbers(given: Sequence[int] | None, own: int) -> tuple[int, ...]:
    if given is not None:
        return tuple(given)
    around = {own * 4, own * 2, own, own // 2, own // 4}
    return tuple(sorted(number for number in around if 1 <= number <= MAX_DATA_PARALLEL_SIZE))


def _check(tried: dict[str, tuple[int, ...]], context: int | None) -> None:
    issues = []
    for name, numbers in tried.items():
        most = MAX_MICRO_BATCHES if name == "micro_batches" else MAX_DATA_PARALLEL_SIZE
        wrong: list[Any] = [
            number
            for number in numbers
            if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= most
        ]
        if wrong:
            message = f"has {show_value(wrong[0])}, must have whole numbers from 1 to {most}"
            issues.append(Issue(name, wrong[0], message))
    if context is not None and (isinstance(context, bool) or not isinstance(context, int) or context < 1):
        issues.append(Issue("context", context, f"was {show_value(context)}, must be a whole number from 1"))
    if issues:
        raise ConfigError(issues, source="advise_afd")


def _spreads(view: ClusterView, layout: AfdLayout) -> bool:
    return not disaggregated_issues(
        view.facts.model,
        attention_tensor_parallel_size=layout.attention_tensor_parallel_size,
        ffn_tensor_parallel_size=layout.ffn_tensor_parallel_size,
        ffn_ranks=layout.ffn_ranks,
        redundant_experts=layout.redundant_experts,
    )


def _with_layout(view: ClusterView, unit: AfdUnit, layout: AfdLayout) -> AfdUnit:
    """Return a unit of another layout: its FFN ranks' weights, graphs and memory."""
    engine = unit.engine.model_copy(update={"data_parallel_size": layout.ffn_ranks})
    section = unit.section.model_copy(update={"micro_batches": layout.micro_batches})
    changed = replace(unit, engine=engine, section=section, attention_ranks=layout.attention_ranks)
    return with_batches(changed, view.facts)
