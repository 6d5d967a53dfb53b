"""Laws of runs of several clusters: each broken one stops the result, and names what broke it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fifo import MS, Ask, cluster, facts, fifo
from run_of_two_clusters import REQUESTS, raw_run

from frontier.errors import InvariantError
from frontier.results import Result

Raw = dict[str, Any]
Change = Callable[[Raw], None]


def transfer(name: str, row: int, value: int) -> Change:
    def change(raw: Raw) -> None:
        raw["transfers"][name][row] = value

    return change


def without(row: int) -> Change:
    def change(raw: Raw) -> None:
        raw["transfers"] = {name: np.delete(column, row) for name, column in raw["transfers"].items()}

    return change


def timeline(name: str, more: int) -> Change:
    def change(raw: Raw) -> None:
        raw["timeline"][name][-1] += more

    return change


def of_cluster(number: int, **values: Any) -> Change:
    return lambda raw: raw["clusters"][number].update(values)


def total(name: str, value: int) -> Change:
    return lambda raw: raw["totals"].update({name: value})


def twice(raw: Raw) -> None:
    raw["clusters"][1]["name"] = "prefill"


def unfinished_without_end(raw: Raw) -> None:
    raw["transfers"]["end_ns"][0] = -1


def whole_on_the_second(raw: Raw) -> None:
    """Serve request 2 where it decodes, without a hand-over, but leave its time on one."""
    without(2)(raw)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (transfer("request", 1, REQUESTS), "transfers names request 4 of 4"),
        (transfer("source", 1, 3), "request 1 has a transfer whose source does not exist"),
        (transfer("destination", 1, 7), "whose destination does not exist"),
        (transfer("source", 1, 1), r"request 1 has a transfer within a cluster \(source 1, destination 2\)"),
        (transfer("end_ns", 2, 2041 * MS), "request 2 has a transfer with time stamps out of order"),
        (transfer("ready_ns", 2, 2061 * MS), "time stamps out of order"),
        (transfer("start_ns", 2, -1), "time stamps out of order"),
        (transfer("ready_ns", 2, 1999 * MS), "request 2 has a transfer before it arrived"),
        (transfer("end_ns", 3, 9000 * MS), "request 3 has a transfer after the end of the run"),
        (transfer("end_ns", 3, 3161 * MS), "request 3 has its first token before its KV was there"),
        (unfinished_without_end, "request 0 finished without the end of its transfer"),
        (transfer("destination", 1, 1), "request 1 goes on elsewhere than where its KV went"),
        (whole_on_the_second, "request 2 spent time on a transfer that it had not"),
        (timeline("output_tokens", 1), "timeline.output_tokens ends at 17"),
        (timeline("output_tokens", -5), "timeline.output_tokens falls within a replica"),
        (timeline("preemptions", 1), "timeline.preemptions ends at 1"),
        (total("prefix_hit_tokens", 59), "totals.prefix_hit_tokens is 59, requests add up to 60"),
        (of_cluster(0, replicas=2), "clusters have 4 engines, totals.replicas says 3"),
        (of_cluster(1, data_parallel_size=3), "decode has 2 engines, not a multiple of its 3 data parallel"),
        (of_cluster(1, num_blocks=0), "clusters.num_blocks of decode was 0, must be at least 1"),
        (of_cluster(1, num_blocks=10), "exceeds the 9 usable blocks"),
        (of_cluster(0, num_steps=3), "totals.num_steps is 16, clusters add up to 15"),
        (of_cluster(0, num_empty_steps=-1), "num_empty_steps of prefill was -1, must be at least 0"),
        (of_cluster(1, step_time=""), "clusters.step_time was '', must be a word"),
        (of_cluster(1, extra=1), "must have name, replicas"),
        (twice, "clusters are prefill, prefill; there must be some, of different names"),
        (lambda raw: raw.update(clusters=[]), "clusters are none"),
    ],
)
def test_broken_laws_are_named(change: Change, message: str) -> None:
    Result(raw_run(), facts())
    raw = raw_run()
    change(raw)
    with pytest.raises(InvariantError, match=message):
        Result(raw, facts())


def test_a_cluster_that_hands_over_finishes_nothing_itself() -> None:
    raw = raw_run()
    raw["clusters"] = [cluster("prefill", 2, num_steps=16), cluster("decode", 1)]
    # Requests 0 and 2 end on engine 1, now of the cluster that prefills; 1 and 3 are handed over as before.
    for row in (2, 0):
        without(row)(raw)
    for kind in ("ttft", "e2e"):
        for cause in ("kv_transfer_wait", "kv_transfer"):
            raw["requests"][f"{kind}_queue_ns"] += np.where(
                np.arange(REQUESTS) % 2 == 0, raw["requests"][f"{kind}_{cause}_ns"], 0
            )
            raw["requests"][f"{kind}_{cause}_ns"][::2] = 0
    with pytest.raises(
        InvariantError, match="request 0 finished on a cluster that hands over, without a transfer"
    ):
        Result(raw, facts())


def test_a_request_may_be_served_whole_where_it_decodes() -> None:
    raw = raw_run()
    without(2)(raw)
    for kind in ("ttft", "e2e"):
        for cause in ("kv_transfer_wait", "kv_transfer"):
            raw["requests"][f"{kind}_queue_ns"][2] += raw["requests"][f"{kind}_{cause}_ns"][2]
            raw["requests"][f"{kind}_{cause}_ns"][2] = 0
    raw["timeline"]["output_tokens"][raw["timeline"]["replica"] == 0] = 0
    result = Result(raw, facts())
    assert result.transfers["request"].to_list() == [0, 1, 3]
    assert result.summary().prefix_hit_rate_by_cluster == {"prefill": 40 / 300, "decode": 20 / 100}


def cut_off(raw: Raw, row: int) -> None:
    """Put a transfer of the same request before one, which was cut off when the other engine was lost."""
    transfers = raw["transfers"]
    first = {name: column[row] for name, column in transfers.items()} | {"end_ns": -1, "bytes": 0}
    first["destination"] = 3 - first["destination"]
    raw["transfers"] = {
        name: np.insert(column, row, np.array(first[name]).astype(column.dtype))
        for name, column in transfers.items()
    }


def test_of_several_transfers_the_last_with_an_end_counts() -> None:
    raw = raw_run()
    cut_off(raw, 1)
    with pytest.raises(InvariantError, match="request 1 finished without the end of its transfer"):
        Result(raw, facts())
    raw["requests"]["attempts"][1] = 2
    result = Result(raw, facts())
    assert result.transfers.height == REQUESTS + 1
    assert result.summary().kv_transfers == REQUESTS
    raw["transfers"]["destination"][2] = 1
    with pytest.raises(InvariantError, match="request 1 goes on elsewhere than where its KV went"):
        Result(raw, facts())


def test_counters_of_one_cluster_stay_exact() -> None:
    raw = fifo([Ask(0, 5)])
    raw["timeline"]["output_tokens"][-1] += 1
    with pytest.raises(InvariantError, match="output_tokens ends at 6, the requests add up to 5"):
        Result(raw, facts())


def test_what_a_stopped_run_left_in_flight_has_no_end() -> None:
    raw = raw_run(stop_ns=3065 * MS)
    raw["transfers"]["end_ns"][3] = -1
    raw["requests"]["generated_tokens"][3] = 0
    result = Result(raw, facts())
    assert result.transfers["end_s"].to_list()[3] is None
    assert result.transfers["flight_s"].to_list()[3] is None
    assert result.summary().kv_transfers == REQUESTS - 1
