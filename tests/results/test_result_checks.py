"""Each conservation law, broken one at a time."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from fifo import MS, Ask, S, facts, fifo

from frontier.errors import InvariantError
from frontier.results import Result
from frontier.results.kv_tiers import KvTier

Raw = dict[str, Any]


def a_run() -> Raw:
    """Two replicas; request 2 is rejected, request 4 is cut off by the end of the run."""
    asks = [Ask(0, 5), Ask(20 * MS, 3, replica=1), Ask(30 * MS, 4, reject=1), Ask(40 * MS, 2), Ask(S, 400)]
    return fifo(asks, replicas=2, stop_ns=2 * S, interval_ns=S // 2)


def test_a_sound_run_passes() -> None:
    result = Result(a_run(), facts())
    assert result.columns.requests["status"].tolist() == [0, 0, 1, 0, 2]


def put(table: str, column: str, row: int, value: float) -> Callable[[Raw], None]:
    """Return a change of one value."""

    def change(raw: Raw) -> None:
        raw[table][column] = raw[table][column].copy()
        raw[table][column][row] = value

    return change


def add(table: str, column: str, row: int, value: float) -> Callable[[Raw], None]:
    """Return a change of one value by some amount."""

    def change(raw: Raw) -> None:
        put(table, column, row, raw[table][column][row] + value)(raw)

    return change


def total(name: str, value: object) -> Callable[[Raw], None]:
    return lambda raw: raw["totals"].update({name: value})


def of_cluster(name: str, value: object) -> Callable[[Raw], None]:
    return lambda raw: raw["clusters"][0].update({name: value})


def both(*changes: Callable[[Raw], None]) -> Callable[[Raw], None]:
    def change(raw: Raw) -> None:
        for each in changes:
            each(raw)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("requests", "status", 0, 4), "request 0 has an unknown status"),
        (put("requests", "reject_reason", 2, 9), "unknown reject reason"),
        (put("requests", "reject_reason", 2, 0), "request 2 is rejected without a reason"),
        (put("requests", "reject_reason", 2, 5), "request 2 is rejected without a reason"),
        (put("requests", "status", 4, 3), "request 4 is failed without a reason"),
        (put("requests", "reject_reason", 4, 5), "request 4 is failed without a reason, or the reverse"),
        (put("requests", "attempts", 1, 0), "request 1 was never started"),
        (put("requests", "e2e_lost_ns", 4, 5), "request 4 lost time in its only attempt"),
        (put("requests", "reject_reason", 0, 1), "request 0 is rejected without a reason"),
        (put("requests", "status", 0, 2), "request 0 has a status that its stamps deny"),
        (put("requests", "finished_ns", 0, -1), "request 0 has a status that its stamps deny"),
        (put("requests", "arrival_ns", 1, -1), "request 1 never arrived"),
        (put("requests", "scheduled_ns", 1, 0), "request 1 has time stamps out of order"),
        (put("requests", "first_token_ns", 1, -1), "request 1 has time stamps out of order"),
        (put("requests", "finished_ns", 3, 3 * S), "request 3 finished after the end of the run"),
        (put("requests", "scheduled_ns", 2, S), "request 2 was rejected and scheduled"),
        (put("requests", "replica", 0, 4_294_967_295), "request 0 was scheduled on no replica"),
        (put("requests", "replica", 0, 2), "request 0 ran on a replica that does not exist"),
        (
            add("requests", "ttft_queue_ns", 3, 1),
            r"request 3 has ttft causes that do not add up .*latency_ns",
        ),
        (add("requests", "e2e_cpu_ns", 0, 1), "request 0 has e2e causes that do not add up"),
        (
            both(add("requests", "e2e_cpu_ns", 0, -1), add("requests", "e2e_decode_ns", 0, 1)),
            "request 0 spent a negative time in e2e cpu",
        ),
        (put("requests", "output_tokens", 0, 6), "request 0 finished before it generated what it asked for"),
        (put("requests", "output_tokens", 0, 4), "request 0 generated more tokens than it asked for"),
        (put("requests", "generated_tokens", 2, 1), "request 2 was rejected and generated tokens"),
        (put("token_runs", "request", 0, 5), "token_runs names request 5 of 5"),
        (put("token_runs", "request", 0, 2), "token_runs names a request that was never routed"),
        (put("token_runs", "last_step", 1, 99), "request 1 emitted tokens in steps that do not exist"),
        (put("token_runs", "first_step", 1, 3), "request 1 emitted tokens in steps that do not exist"),
        (put("token_runs", "last_step", 0, 3), "request 0 has token runs that miss its token count"),
        (
            both(put("token_runs", "first_step", 1, 1), put("token_runs", "last_step", 1, 2)),
            "request 1 has token runs that miss its token count",
        ),
        (
            both(put("token_runs", "request", 2, 0), put("token_runs", "first_step", 2, 4)),
            "request 0 has token runs out of order",
        ),
        (add("steps", "end_ns", 0, 1), "request 0 has a first_token_ns other than the end of the step"),
        (add("steps", "end_ns", 4, 1), "request 0 has a finished_ns other than the end of the step"),
        (add("steps", "end_ns", 1, -100 * MS), "step 1 ends before the step before it"),
        (put("steps", "end_ns", 0, -1), "a step ends before the run starts"),
        (put("steps", "end_ns", -1, 3 * S), "request 1 emitted a token after the end of the run"),
        (add("timeline", "busy_ns", 0, S), "timeline.busy_ns"),
        (add("timeline", "output_tokens", 0, 500), "timeline.output_tokens falls within a replica"),
        (add("timeline", "output_tokens", -1, 1), "timeline.output_tokens ends at"),
        (add("timeline", "finished", -1, 1), "timeline.finished ends at 4, the requests add up to 3"),
        (add("timeline", "preemptions", -1, 1), "timeline.preemptions ends at 1, the requests add up to 0"),
        (put("timeline", "used_blocks", 0, 101), "timeline.used_blocks exceeds the 100 usable blocks"),
        (put("timeline", "peak_used_blocks", 0, 101), "peak_used_blocks exceeds the 100 usable blocks"),
        (
            put("timeline", "peak_used_blocks", 4, 9),
            "peak_used_blocks is less than the used_blocks at the ends",
        ),
        (
            put("timeline", "peak_used_blocks", 6, 9),
            "peak_used_blocks is less than the used_blocks at the ends",
        ),
        (put("timeline", "peak_used_blocks", 0, 0), "used_block_ns grows faster than timeline.peak_used"),
        (put("requests", "cached_tokens", 0, 50), "totals.prefix_hit_tokens is 0, requests add up to 50"),
        (put("requests", "cached_tokens", 0, 101), "request 0 hit more of its prefix than its prompt has"),
        (
            both(put("requests", "cached_tokens", 0, 9), total("prefix_hit_tokens", 9)),
            "exceeds prefix_lookup",
        ),
    ],
)
def test_a_broken_law_is_named(change: Callable[[Raw], None], message: str) -> None:
    raw = a_run()
    change(raw)
    with pytest.raises(InvariantError, match=message):
        Result(raw, facts())
    Result(raw, facts(), check=False)


def again(raw: Raw) -> None:
    """Let request 0 be in its second attempt, 20 ms of its queue time lost in the first."""
    put("requests", "attempts", 0, 2)(raw)
    for kind in ("ttft", "e2e"):
        add("requests", f"{kind}_prefill_ns", 0, -20 * MS)(raw)
        add("requests", f"{kind}_lost_ns", 0, 20 * MS)(raw)


def test_a_request_may_lose_time_in_an_attempt() -> None:
    raw = a_run()
    again(raw)
    # Engines made tokens of the first attempt as well.
    add("timeline", "output_tokens", -2, 5)(raw)
    result = Result(raw, facts())
    assert result.requests["attempts"].to_list() == [2, 1, 1, 1, 1]
    assert result.requests["ttft_lost_s"][0] == 0.02
    add("timeline", "output_tokens", -2, 2)(raw)
    with pytest.raises(InvariantError, match=r"timeline\.output_tokens ends at"):
        Result(raw, facts())


def test_time_is_lost_before_the_first_token_of_the_attempt_that_counts() -> None:
    raw = a_run()
    again(raw)
    add("requests", "e2e_decode_ns", 0, -MS)(raw)
    add("requests", "e2e_lost_ns", 0, MS)(raw)
    with pytest.raises(InvariantError, match="request 0 lost time after its first token"):
        Result(raw, facts())


def test_a_failed_request_is_in_the_system_until_it_is_given_up() -> None:
    raw = a_run()
    put("requests", "status", 4, 3)(raw)
    put("requests", "reject_reason", 4, 5)(raw)
    for name in [name for name in raw["requests"] if name.startswith("e2e_")]:
        put("requests", name, 4, 0)(raw)
    put("requests", "e2e_lost_ns", 4, S // 2)(raw)
    found = Result(raw, facts()).summary()
    assert (found.failed, found.failed_by_reason, found.unfinished) == (1, {"timed_out": 1}, 0)
    others = (raw["requests"]["finished_ns"] - raw["requests"]["arrival_ns"])[[0, 1, 3]].sum()
    assert found.mean_concurrent_requests == pytest.approx((others + S // 2) / (2 * S))


def test_one_error_counts_all_offenders() -> None:
    raw = a_run()
    raw["requests"]["ttft_cpu_ns"] = raw["requests"]["ttft_cpu_ns"] + 1
    with pytest.raises(InvariantError, match=r"request 0 .*; 3 in all"):
        Result(raw, facts())


def test_a_request_may_end_early_at_max_model_len() -> None:
    raw = a_run()
    raw["requests"]["output_tokens"][0] = 500  # prompt 100 + 5 generated
    Result(raw, facts(max_model_len=105))
    for too_long in (106, None):
        with pytest.raises(InvariantError, match="finished before it generated"):
            Result(raw, facts(max_model_len=too_long))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.pop("timeline"), "the raw result lacks 'timeline'"),
        (lambda raw: raw["requests"].pop("session"), "requests lacks 'session'"),
        (lambda raw: raw["requests"].update(extra=np.zeros(5)), "requests has unknown columns extra"),
        (lambda raw: raw["timeline"].update(extra=np.zeros(5)), "timeline has unknown columns extra"),
        (lambda raw: raw["timeline"].update(flops=np.array(["a"])), "timeline.flops was 1-d"),
        (
            lambda raw: raw["requests"].update(status=np.zeros(5)),
            "requests.status was 1-d float64, must be 1-d uint8",
        ),
        (
            lambda raw: raw["requests"].update(status=np.zeros(4, np.uint8)),
            "columns of requests differ in length",
        ),
        (
            lambda raw: raw["steps"].update(replica_offsets=np.array([0, 1])),
            "replica_offsets was .* in 3 entries",
        ),
        (lambda raw: raw["steps"].update(replica_offsets=np.uint64(7)), "replica_offsets was"),
        (lambda raw: raw["steps"].update(start_ns=raw["steps"]["end_ns"]), "steps lacks 'prefill_tokens'"),
        (total("end_ns", "soon"), "totals.end_ns was 'soon', must be int"),
        (
            of_cluster("step_time", "linear"),
            "the facts say that step times are 'roofline', the run says 'linear'",
        ),
    ],
)
def test_columns_of_another_shape_are_refused(change: Callable[[Raw], object], message: str) -> None:
    raw = a_run()
    change(raw)
    with pytest.raises(InvariantError, match=message):
        Result(raw, facts(), check=False)


def test_columns_cannot_be_changed() -> None:
    columns = Result(a_run(), facts()).columns
    for table in (columns.requests, columns.steps, columns.token_runs, columns.timeline):
        for values in table.values():
            with pytest.raises(ValueError, match="read-only"):
                values[0] = 1


def tiers(device: tuple[int, int], host: tuple[int, int]) -> list[dict[str, Any]]:
    """Return tiers with these look-ups and hits, of blocks of 16 tokens."""
    names = [each.name for each in fields(KvTier) if each.name != "tier"]
    rows = []
    for tier, (lookups, hits) in (("device", device), ("host", host)):
        known = {"lookup_blocks": lookups, "hit_blocks": hits, "hit_tokens": 16 * hits}
        rows.append({"tier": tier, **dict.fromkeys(names, 0), **known})
    return rows


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (tiers((5, 6), (0, 0)), "device has 6 hits of 5 look-ups"),
        (tiers((5, 0), (4, 0)), "host was asked for 4 blocks, device lacked 5"),
        ([{"tier": "host"}], "kv_tiers has the fields tier"),
        ([{**tiers((5, 0), (5, 0))[0], "hit_blocks": -1}], "hit_blocks was -1, must be a count"),
    ],
)
def test_tiers_of_kv_that_contradict_each_other_are_named(found: list[dict[str, Any]], message: str) -> None:
    raw = a_run()
    raw["clusters"][0]["kv_tiers"] = found
    with pytest.raises(InvariantError, match=message):
        Result(raw, facts())
    raw["clusters"][0]["kv_tiers"] = tiers((5, 0), (5, 0))
    assert [tier.hit_rate for tier in Result(raw, facts()).kv_tiers] == [0.0, 0.0]


def test_hits_of_tiers_make_the_prefix_hits() -> None:
    raw = fifo([Ask(0, 5)], replicas=1, stop_ns=None, interval_ns=S // 2)
    raw["clusters"][0]["kv_tiers"] = tiers((5, 1), (4, 3))
    with pytest.raises(InvariantError, match="hits are 64 tokens more"):
        Result(raw, facts())
