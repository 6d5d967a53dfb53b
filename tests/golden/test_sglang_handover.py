"""Prefill and decode servers of SGLang decide as a restatement of their source does: by hand, at random."""

from typing import Any

import fuzz_sgl
import pytest
import replay_sgl_pd
from ref_sgl import DEFAULTS

SEED, CASES, CHUNKS = 7, 300, 6
CLOCK = {"a": 1_000_000, "b": 10_000, "c": 0, "d": 0, "e": 0}


def config(
    prefill: dict[str, Any] | None = None, decode: dict[str, Any] | None = None, **link: Any
) -> dict[str, Any]:
    """Return servers with a step of 1 ms and 10 us per prompt token, and 50 us per token on the link."""
    settings = DEFAULTS | {"overlap": True, "clock": CLOCK}
    return {
        "prefill": settings | (prefill or {}),
        "decode": settings | {"reserved": 16, "polling": 1} | (decode or {}),
        "granularity": "chunk",
        "latency": 0,
        "per_token": 50_000,
        **link,
    }


def rows(*requests: tuple[int, str, int]) -> list[str]:
    """Return a trace of (arrival in us, prompt, output tokens)."""
    return fuzz_sgl.lines([[1000 * t, prompt, output, 0] for t, prompt, output in requests])


def both(case: dict[str, Any], trace: list[str]) -> dict[str, Any]:
    """Check that simulator and restatement agree, and return what they do."""
    assert replay_sgl_pd.difference(case, trace) is None
    return replay_sgl_pd.simulated(case, trace)


def test_a_request_alone_takes_a_decode_step_less_than_it_has_tokens() -> None:
    for overlap in (False, True):
        found = both(config({"overlap": overlap}, {"overlap": overlap}), rows((0, "u0:100", 6)))
        # 2 ms of prefill, 5 ms on the way.
        assert found["requests"]["r0"] == {"arrive": 0, "first": 7_000_000, "fin": 12_000_000, "ntok": 6}
        assert len(found["decode"]) == 5 + overlap


def test_chunks_leave_when_the_loop_sees_their_results() -> None:
    case = config({"chunked_prefill_size": 64}, per_token=1)
    found = both(case, rows((0, "u0:200", 2)))
    chunks = [entry[2:] for record in found["prefill"] for entry in record["sched"]]
    assert chunks == [[0, 64], [64, 64], [128, 64], [192, 8]]
    assert found["requests"]["r0"]["first"] == found["prefill"][-1]["end"] + 8


def test_a_cached_prompt_is_moved_as_a_whole() -> None:
    found = both(config(), rows((0, "t0:100|u0:10", 2), (50_000, "t0:100|u1:10", 2)))
    assert found["prefill"][1]["sched"] == [["r1", "prefill", 100, 10]]
    assert found["requests"]["r1"]["first"] == 50_000_000 + 1_100_000 + 110 * 50_000


def test_who_comes_while_others_decode_costs_a_turn_and_no_step() -> None:
    found = both(config(), rows((0, "u0:20", 60), (10_000, "u1:20", 4)))
    ((_, at, joined),) = [
        event for event in found["events"] if event[:1] == ["carried"] and event[2] == ["r1"]
    ]
    assert joined == ["r1"]
    # It joins where a step ends; with overlap one is under way then, for which the loop waits.
    (under_way,) = [record for record in found["decode"] if record["start"] == at]
    after = next(record for record in found["decode"] if len(record["sched"]) == 2)
    assert after["start"] == under_way["end"]


def test_prompts_wait_for_memory_of_the_decode_server() -> None:
    found = both(config(decode={"max_total_tokens": 400}), rows(*[(0, f"u{i}:100", 40) for i in range(8)]))
    reserves = [event for event in found["events"] if event[0] == "reserve"]
    assert [event[1] for event in reserves[:3]] == [0, 0, 0]
    ends = sorted(row["fin"] for row in found["requests"].values())
    assert reserves[3][1] >= ends[0]
    assert [event[2] for event in reserves] == [f"r{i}" for i in range(8)]


def test_the_retracted_go_first() -> None:
    case = config(decode={"max_total_tokens": 330, "reserved": 1}, per_token=1)
    found = both(case, rows(*[(0, f"u{i}:100", 60) for i in range(4)]))
    retracted = [record for record in found["decode"] if "retract" in record]
    assert retracted
    joins = [name for event in found["events"] if event[0] == "carried" for name in event[2]]
    (again,) = {name for name in joins if joins.count(name) > 1}
    assert joins.index(again, joins.index(again) + 1) < joins.index("r3")


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_cases_agree_with_the_restatement(chunk: int) -> None:
    for k in range(chunk, CASES, CHUNKS):
        found = replay_sgl_pd.difference(*replay_sgl_pd.drawn(SEED, k))
        assert found is None, f"seed {SEED}, case {k}: {found}"


def test_random_cases_meet_what_matters() -> None:
    seen = {"retract": 0, "chunk": 0, "several let in": 0, "one token": 0, "failures": 0}
    for k in range(0, CASES, 3):
        found = replay_sgl_pd.simulated(*replay_sgl_pd.drawn(SEED, k))
        seen["failures"] += found["failure"] is not None
        seen["retract"] += sum("retract" in record for record in found["decode"])
        seen["chunk"] += sum(entry[1] == "chunk" for record in found["prefill"] for entry in record["sched"])
        seen["several let in"] += sum(len(event[2]) > 1 for event in found["events"] if event[0] == "carried")
        seen["one token"] += sum(row["ntok"] == 1 for row in found["requests"].values())
    assert all(count > 2 for count in seen.values()), seen
