"""How many attention ranks to how many FFN ranks, and how many micro-batches, under a limit on TPOT.

Every choice is priced by the simulator's own step time (`frontier.afd_lowering`), so that barriers, links and
padding count. MegaScale-Infer (arXiv:2504.02263, section 4.1) names what a good choice looks like: attention
and FFN take equally long (`balance` 1), transfers are shorter than either, and there are enough micro-batches
to hide them, `m >= 2 (1 + Tc / Tf)` (`least_micro_batches`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
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

_STRATA = 7
"""Typical steps that stand for all, where prompts are computed in them: a prime, so that orders differ."""

_HARDLY_VARIES = 500.0
"""Prompts in a step of which as many are taken to be in every step."""

Batch = list[tuple[int, int, bool]]
"""Requests of an attention rank: query tokens, context after the step, whether it is a prefill."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLoad:
    """Requests of which units compute the prompts as well, in tokens.

    A request takes `output_tokens - 1` steps after its prompt, so a batch that stays as large as it is
    computes `prompt_tokens / (output_tokens - 1)` prompt tokens in the mean step for each request that
    decodes.

    Attributes:
        prompt_tokens: of a request, those left out that are cached.
        output_tokens: of a request.
    """

    prompt_tokens: int
    output_tokens: float

    @property
    def per_decode(self) -> float:
        """Prompt tokens of a step for each request that decodes in it."""
        return self.prompt_tokens / self._decodes

    @property
    def first_tokens(self) -> float:
        """Tokens that a request gets for each of its decodes: one more than these, from its prompt."""
        return 1 + 1 / self._decodes

    @property
    def _decodes(self) -> float:
        return max(self.output_tokens - 1, 1.0)

    def most_requests(self, max_num_batched_tokens: int) -> int:
        """Return the most requests that can decode while their prompts fit into the same steps."""
        return int(max_num_batched_tokens / (1 + self.per_decode))

    def tokens(self, requests: int) -> int:
        """Return the prompt tokens of the mean step."""
        return round(requests * self.per_decode)

    def chunks(self, tokens: int) -> Batch:
        """Return prompt tokens of one step: whole prompts, and the middle of one."""
        whole, rest = divmod(tokens, self.prompt_tokens)
        chunks = [(self.prompt_tokens, self.prompt_tokens, True)] * whole
        return [*chunks, (rest, (self.prompt_tokens + rest) // 2, True)] if rest else chunks

    def steps(self, requests: int, ranks: int, max_num_batched_tokens: int) -> list[list[int]]:
        """Return typical steps: the prompt tokens of every rank in each of them.

        Prompts come to ranks independently of each other and are computed at once, as far as the budget
        goes, so a rank has a Poisson number of them in a step, and the rank with most holds up all. A rank
        has each part of the law (one of `_STRATA` equally likely ones, as its mean) in one of the steps, and
        ranks have theirs in orders of their own.
        """
        room = max_num_batched_tokens - requests
        chunk = min(self.prompt_tokens, room)
        if chunk <= 0:
            return [[0] * ranks]
        parts = [min(room, round(part * chunk)) for part in _strata(requests * self.per_decode / chunk)]
        return [
            [parts[(step * (1 + rank % (_STRATA - 1)) + 3 * rank) % _STRATA] for rank in range(ranks)]
            for step in range(_STRATA)
        ]


def _strata(mean: float) -> list[float]:
    """Return the means of a Poisson law over its `_STRATA` equally likely parts, ascending."""
    if mean > _HARDLY_VARIES:
        return [mean] * _STRATA
    parts, number, share, below = [0.0] * _STRATA, 0, math.exp(-mean), 0.0
    most = mean + 10 * math.sqrt(mean) + 10
    while number <= most:
        above = min(1.0, below + share)
        for part in range(_STRATA):
            within = min(above, (part + 1) / _STRATA) - max(below, part / _STRATA)
            parts[part] += max(0.0, within) * _STRATA * number
        number, below = number + 1, above
        share *= mean / number
    return parts


@dataclass(frozen=True, slots=True, kw_only=True)
class AfdChoice:
    """One layout at the largest batch that keeps the limit.

    Attributes:
        layout: ranks and micro-batches.
        requests_per_rank: requests of every attention rank.
        step_s: time of a decode step, which is every request's TPOT; the mean of typical ones where prompts
            are computed in them.
        attention_s: attention of one micro-batch in the mean layer (Ta).
        ffn_s: FFN of one micro-batch in the mean layer (Te).
        transfer_s: the longer way of the two (Tc).
        tokens_per_s: output tokens of all ranks.
        tokens_per_s_per_gpu: the same over all GPUs of both sides.
        tokens_per_usd: output tokens per US dollar at the GPUs' list prices; None without them.
        least_micro_batches: fewest that hide transfers, `ceil(2 (1 + Tc / max(Ta, Te)))`.
        bound: what sets the pace: the slowest station, or `latency` where there are too few micro-batches to
            keep it busy.
        prompt_tokens: that each attention rank computes in the mean step beside its decodes; stations are
            those of a step with so many.
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
    prompt_tokens: int = 0

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
        notes: what the reader should know.
    """

    choices: tuple[AfdChoice, ...]
    infeasible: tuple[AfdLayout, ...]
    too_large: tuple[AfdLayout, ...] = ()
    notes: tuple[str, ...] = ()

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
    prompts: PromptLoad | None = None,
    max_num_batched_tokens: int = _MOST,
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
        prompts: requests whose prompts are computed in the same steps; None for decodes alone.
        max_num_batched_tokens: most tokens of an attention rank's step, which bound chunks of prompts.

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
        text, ranks = json.dumps(step_time_of(layout)), layout.attention_ranks
        most = min(max_requests_per_rank or _MOST, _MOST)

        def facts_of(requests: int, tokens: Sequence[int], text: str = text) -> Any:
            decodes = [(1, context_tokens, False)] * requests
            batches = [decodes if prompts is None else decodes + prompts.chunks(each) for each in tokens]
            return _frontier.step_breakdown(text, batches, used)

        def step_s(requests: int, facts_of: Callable[..., Any] = facts_of, ranks: int = ranks) -> float:
            steps = [[0] * ranks]
            if prompts is not None:
                steps = prompts.steps(requests, ranks, max_num_batched_tokens)
            total_ns: int = sum(facts_of(requests, tokens)["total_ns"] for tokens in steps)
            return total_ns / len(steps) / 1e9

        requests = _largest(step_s, tpot_limit_s, layout.micro_batches, most)
        if requests is None:
            infeasible.append(layout)
            continue
        tokens = 0 if prompts is None else prompts.tokens(requests)
        facts = facts_of(requests, [tokens] * ranks)
        stations = Stations.of(facts, json.loads(text), requests + tokens)
        choice = _choice(layout, requests, step_s(requests), stations, prices)
        choices.append(choice if prompts is None else _with_prompts(choice, prompts))
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
    step_s: float,
    stations: Stations,
    prices: tuple[float | None, float | None],
) -> AfdChoice:
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


def _with_prompts(choice: AfdChoice, prompts: PromptLoad) -> AfdChoice:
    """Return the choice with the prompts of its step, and the tokens that come of them."""
    more, usd = prompts.first_tokens, choice.tokens_per_usd
    return replace(
        choice,
        prompt_tokens=prompts.tokens(choice.requests_per_rank),
        tokens_per_s=choice.tokens_per_s * more,
        tokens_per_s_per_gpu=choice.tokens_per_s_per_gpu * more,
        tokens_per_usd=None if usd is None else usd * more,
    )
