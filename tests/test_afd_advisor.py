"""The A:F ratio advisor: what it says is what the step time says, and what the closed form expects."""

import json
from typing import Any

import pytest

from frontier import _frontier
from frontier.afd_advisor import AfdAdvice, advise, afd_ratios
from frontier.afd_lowering import AfdLayout, AfdTransfer, afd_step_time
from frontier.errors import ConfigError
from frontier.hardware import load_gpu
from frontier.models import load_model

H800 = load_gpu("h800")
MODEL = load_model("qwen3-235b-a22b")
CONTEXT = 4096


def step_time_of(layout: AfdLayout) -> dict[str, Any]:
    return afd_step_time(
        MODEL,
        layout,
        attention_gpu=H800,
        ffn_gpu=H800,
        a2f=AfdTransfer.over_network("fp8", H800, H800),
        f2a=AfdTransfer.over_network("bf16", H800, H800),
    )


def advice(layouts: list[AfdLayout], **settings: Any) -> AfdAdvice:
    given = {
        "context_tokens": CONTEXT,
        "tpot_limit_s": 0.08,
        "attention_gpu": H800,
        "ffn_gpu": H800,
        **settings,
    }
    return advise(layouts, step_time_of, **given)


def step_s(layout: AfdLayout, requests: int) -> float:
    batches = [[(1, CONTEXT, False)] * requests] * layout.attention_ranks
    found: int = _frontier.step_breakdown(json.dumps(step_time_of(layout)), batches)["total_ns"]
    return found / 1e9


LAYOUTS = afd_ratios(attention_ranks=(2, 8, 24), ffn_ranks=(8,), micro_batches=(1, 2, 3, 4))


def test_batches_are_the_largest_within_the_limit() -> None:
    found = advice(LAYOUTS)
    assert len(found.choices) + len(found.infeasible) == len(LAYOUTS)
    for choice in found.choices:
        m = choice.layout.micro_batches
        assert choice.step_s == step_s(choice.layout, choice.requests_per_rank) <= 0.08
        assert step_s(choice.layout, choice.requests_per_rank + m) > 0.08
        tokens = choice.requests_per_rank * choice.layout.attention_ranks / choice.step_s
        assert choice.tokens_per_s == pytest.approx(tokens)
        assert choice.tokens_per_s_per_gpu == pytest.approx(tokens / choice.layout.gpus)
    ranked = [choice.tokens_per_s_per_gpu for choice in found.choices]
    assert ranked == sorted(ranked, reverse=True)
    assert found.best is found.choices[0]


def test_ping_pong_pays_and_balance_moves_with_the_ratio() -> None:
    choices = {
        (choice.layout.attention_ranks, choice.layout.micro_batches): choice
        for choice in advice(LAYOUTS).choices
    }
    best = {m: max(c.tokens_per_s_per_gpu for (_, at), c in choices.items() if at == m) for m in (1, 3)}
    assert best[3] > best[1]
    for m in (1, 2, 3, 4):
        # More attention ranks, fewer requests each: attention becomes the lighter side.
        balances = [choices[ranks, m].balance for ranks in (2, 8, 24)]
        assert balances == sorted(balances, reverse=True)
    # One micro-batch keeps nothing busy.
    assert all(choices[ranks, 1].bound == "latency" for ranks in (2, 8, 24))


def test_the_least_number_of_micro_batches_is_megascale_infers() -> None:
    for choice in advice(LAYOUTS).choices:
        tf, tc = max(choice.attention_s, choice.ffn_s), choice.transfer_s
        m = choice.least_micro_batches
        assert m >= 2 * (1 + tc / tf) > m - 1
        assert choice.hides_transfers == (tc < tf and choice.layout.micro_batches >= m)


def test_limits_hold() -> None:
    few = advice(LAYOUTS[:4], max_requests_per_rank=10)
    assert [choice.requests_per_rank for choice in few.choices if choice.layout.micro_batches == 3] == [9]
    assert advice(LAYOUTS[:1], tpot_limit_s=1e-4).best is None
    assert not afd_ratios(attention_ranks=(8,), ffn_ranks=(8,), micro_batches=(3,), max_gpus=15)
    with pytest.raises(ConfigError, match="tpot_limit_s"):
        advice(LAYOUTS, tpot_limit_s=0.0)
