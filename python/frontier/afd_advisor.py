"""How many attention ranks to how many FFN ranks, and how many micro-batches, under a limit on TPOT.

Every choice is priced by the simulator's own step time (`frontier.afd_lowering`), so that barriers, links and
padding count. MegaScale-Infer (arXiv:2504.02263, section 4.1) names what a good choice looks like: attention
and FFN take equally long (`balance` 1), transfers are shorter than either, and there are enough micro-batches
to hide them, `m >= 2 (1 + Tc / Tf)` (`least_micro_batches`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from frontier import _frontier
from frontier.afd_lowering import AfdLayout
from frontier.afd_stations import Bound, Stations
from frontier.errors import ConfigError, Issue, show_value
from frontier.hardware.spec import GpuSpec

StepTimeOf = Callable[[AfdLayout], dict[str, Any]]
"""The plan's step time of a layout, as `afd_step_time` gives it."""

_MOST = 1 << 20
"""Most requests of one attention rank that are tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AfdChoice:
    """One layout at the largest batch that keeps the limit.

    Attributes:
        layout: ranks and micro-batches.
        requests_per_rank: requests of every attention rank.
        step_s: time of a decode step, which is every request's TPOT.
        attention_s: attention of one micro-batch in the mean layer (Ta).
        ffn_s: FFN of one micro-batch in the mean layer (Te).
        transfer_s: the longer way of the two (Tc).
        tokens_per_s: output tokens of all ranks.
        tokens_per_s_per_gpu: the same over all GPUs of both sides.
        tokens_per_usd: output tokens per US dollar at the GPUs' list prices; None without them.
        least_micro_batches: fewest that hide transfers, `ceil(2 (1 + Tc / max(Ta, Te)))`.
        bound: what sets the pace: the slowest station, or `latency` where there are too few micro-batches to
            keep it busy.
    """

    layout: AfdLayout
    requests_per_rank: int
    step_s: float
    attention_s: float
    ffn_s: float
    transfer_s: float
    tokens_per_s: float
    tokens_per_s_per_gpu: float
    tokens_per_usd: float | None
    least_micro_batches: int
    bound: Bound

    @property
    def balance(self) -> float:
        """Attention over FFN: 1 where neither waits for the other; infinite without FFN time."""
        return self.attention_s / self.ffn_s if self.ffn_s > 0 else math.inf

    @property
    def hides_transfers(self) -> bool:
        """MegaScale-Infer's conditions: transfers shorter than the slower side, and enough micro-batches."""
        within = self.transfer_s < max(self.attention_s, self.ffn_s)
        return within and self.layout.micro_batches >= self.least_micro_batches


@dataclass(frozen=True, slots=True)
class AfdAdvice:
    """Choices, the one with most tokens per second and GPU first; and layouts that no batch fits into.

    Attributes:
        choices: layouts that keep the limit.
        infeasible: layouts whose step is too long even with one request per rank.
        too_large: layouts whose FFN ranks do not fit into their GPUs' memory.
    """

    choices: tuple[AfdChoice, ...]
    infeasible: tuple[AfdLayout, ...]
    too_large: tuple[AfdLayout, ...] = ()

    @property
    def best(self) -> AfdChoice | None:
        """The first choice, None if no layout keeps the limit."""
        return self.choices[0] if self.choices else None


def advise(
    layouts: Iterable[AfdLayout],
    step_time_of: StepTimeOf,
    *,
    context_tokens: int,
    tpot_limit_s: float,
    attention_gpu: GpuSpec,
    ffn_gpu: GpuSpec,
    max_requests_per_rank: int | None = None,
    prices: tuple[float | None, float | None] | None = None,
    predictors: list[_frontier.Predictor] | None = None,
) -> AfdAdvice:
    """Find the largest batch of every layout under a limit on TPOT, and rank the layouts.

    Batches are multiples of the number of micro-batches, or fewer requests than that.

    Args:
        layouts: what to compare, as `afd_ratios` lists them.
        step_time_of: gives a layout's step time.
        context_tokens: tokens of every request after the step.
        tpot_limit_s: longest step.
        attention_gpu: the GPU of attention ranks, for its price.
        ffn_gpu: the GPU of FFN ranks, for its price.
        max_requests_per_rank: what the KV cache of an attention rank holds, if that is a limit.
        prices: US dollars per hour of a GPU of either side instead of the GPUs' own.
        predictors: those that step times refer to; looked at once a step time is made, which may add some.

    Raises:
        ConfigError: numbers that are not positive, or a layout that the model does not fit into.
    """
    issues = [
        Issue(name, value, f"was {show_value(value)}, must be positive")
        for name, value in (
            ("context_tokens", context_tokens),
            ("tpot_limit_s", tpot_limit_s),
            ("max_requests_per_rank", 1 if max_requests_per_rank is None else max_requests_per_rank),
        )
        if not value > 0
    ]
    if issues:
        raise ConfigError(issues)
    if prices is None:
        prices = attention_gpu.price_per_hour_usd, ffn_gpu.price_per_hour_usd
    used = [] if predictors is None else predictors
    choices, infeasible = [], []
    for layout in layouts:
        text = json.dumps(step_time_of(layout))
        most = min(max_requests_per_rank or _MOST, _MOST)

        def step_s(requests: int, text: str = text, ranks: int = layout.attention_ranks) -> float:
            return float(_step(text, ranks, requests, context_tokens, used)["total_ns"]) / 1e9

        requests = _largest(step_s, tpot_limit_s, layout.micro_batches, most)
        if requests is None:
            infeasible.append(layout)
            continue
        facts = _step(text, layout.attention_ranks, requests, context_tokens, used)
        choices.append(_choice(layout, requests, facts, json.loads(text), prices))
    choices.sort(key=lambda choice: -choice.tokens_per_s_per_gpu)
    return AfdAdvice(tuple(choices), tuple(infeasible))


def afd_ratios(
    *,
    attention_ranks: Iterable[int],
    ffn_ranks: Iterable[int],
    micro_batches: Iterable[int],
    attention_tensor_parallel_size: int = 1,
    ffn_tensor_parallel_size: int = 1,
    max_gpus: int | None = None,
) -> list[AfdLayout]:
    """Return the layouts of all combinations, those that take more GPUs than `max_gpus` left out."""
    batches, ffns = list(micro_batches), list(ffn_ranks)
    layouts = [
        AfdLayout(
            attention_ranks=attention,
            ffn_ranks=ffn,
            micro_batches=m,
            attention_tensor_parallel_size=attention_tensor_parallel_size,
            ffn_tensor_parallel_size=ffn_tensor_parallel_size,
        )
        for attention in attention_ranks
        for ffn in ffns
        for m in batches
    ]
    return [layout for layout in layouts if max_gpus is None or layout.gpus <= max_gpus]


def _step(
    text: str, ranks: int, requests: int, context_tokens: int, predictors: list[_frontier.Predictor]
) -> dict[str, Any]:
    return _frontier.step_breakdown(text, [[(1, context_tokens, False)] * requests] * ranks, predictors)


def _largest(step_s: Callable[[int], float], limit_s: float, unit: int, most: int) -> int | None:
    """Return the largest batch of whole micro-batches, or of one request each, within the limit.

    Steps grow with the batch, but for a CUDA graph or a wave that a larger one fills better: the batch found
    keeps the limit, and the next one that was tried does not.
    """
    units = most // unit
    if units == 0 or step_s(unit) > limit_s:
        few = [requests for requests in range(min(unit - 1, most), 0, -1) if step_s(requests) <= limit_s]
        return few[0] if few else None
    good, bad = 1, 2
    while bad <= units and step_s(bad * unit) <= limit_s:
        good, bad = bad, 2 * bad
    bad = min(bad, units + 1)
    while bad - good > 1:
        middle = (good + bad) // 2
        if step_s(middle * unit) <= limit_s:
            good = middle
        else:
            bad = middle
    return good * unit


def _choice(
    layout: AfdLayout,
    requests: int,
    facts: dict[str, Any],
    step_time: dict[str, Any],
    prices: tuple[float | None, float | None],
) -> AfdChoice:
    stations = Stations.of(facts, step_time, requests)
    step_s = facts["total_ns"] / 1e9
    tokens_per_s = requests * layout.attention_ranks / step_s
    tokens_per_usd = None
    if prices[0] is not None and prices[1] is not None:
        per_hour = prices[0] * layout.attention_gpus + prices[1] * layout.ffn_gpus
        tokens_per_usd = tokens_per_s * 3600 / per_hour
    return AfdChoice(
        layout=layout,
        requests_per_rank=requests,
        step_s=step_s,
        attention_s=stations.attention_s,
        ffn_s=stations.ffn_s,
        transfer_s=stations.transfer_s,
        tokens_per_s=tokens_per_s,
        tokens_per_s_per_gpu=tokens_per_s / layout.gpus,
        tokens_per_usd=tokens_per_usd,
        least_micro_batches=stations.least_micro_batches,
        bound=stations.bound,
    )
