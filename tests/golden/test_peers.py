"""Vidur's and the reference's golden cases, batch by batch, from their own operator tables and constants.

How each is adapted says `tests/oracle/peers/adapt.py`. Known defects of the peers are not copied: their
least-outstanding router counts waiting requests alone (v10, f06: each replica is run with the requests that
it got), and the reference loses requests that it preempts (f02: equal up to the first one).

Disaggregated cases (`adapt_pdd.py`, `compare_pdd.py`) are compared cluster by cluster, transfer by transfer
and request by request. Where we part from the reference, a test says with its own log what it does there.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import compare
import compare_pdd
import golden_archive
import pytest

ARCHIVE = Path(__file__).with_name("peers.tar.xz")
ALL = golden_archive.cases(ARCHIVE)
CASES = {name: case for name, case in ALL.items() if "_pdd_" not in name}
DISAGGREGATED = {name: case for name, case in ALL.items() if "_pdd_" in name}
TIME_ERROR = 1e-6

UNTIL = {"f02_colo_dense_dummy_preempt400blk_t6": 1131}
"""Batches before the first that the peer's defects change."""

PRESSED = "f10_pdd_dense_dummy_1p1d_400blk_t6"
OFFLINE = "f11_pdd_dense_dummy_offline_t2"
DECODES_UNTIL = {PRESSED: 1404, OFFLINE: 0}
SERVED_UNTIL = {PRESSED: 31, OFFLINE: 0}
"""Decode batches, and requests that end, before the first decode batch that is not ours."""


@pytest.mark.parametrize("name", CASES)
def test_batches_and_times_are_the_peers(name: str) -> None:
    case = CASES[name]
    # The reference lists admitted requests before running ones, vLLM after them.
    found = compare.compare(case.config, case.trace, case.log, ordered=name.startswith("v"))
    expected = UNTIL.get(name, len(case.log))
    assert found.equal == expected, found.first_difference
    assert name in UNTIL or not found.first_difference
    assert found.blocks_equal == found.blocks == (expected if name.startswith("v") else 0)
    assert found.time_error <= TIME_ERROR


def test_the_reference_loses_a_request_where_we_part() -> None:
    case = CASES["f02_colo_dense_dummy_preempt400blk_t6"]
    found = compare.compare(case.config, case.trace, case.log, ordered=False)
    ours, theirs = (set(part.split()) for part in found.first_difference[1:])
    assert ours - theirs == {"37:1282"}  # preempted with its prompt computed, and never seen again
    assert not any(
        "37:" in line.split('"')[1].split()[0] for line in case.log[found.equal :] if '"37:' in line
    )


@pytest.mark.parametrize("name", DISAGGREGATED)
def test_both_clusters_and_what_goes_between_them_are_the_peers(name: str) -> None:
    case = DISAGGREGATED[name]
    found = compare_pdd.compare_pdd(case.config, case.trace, case.log, tolerance=TIME_ERROR)
    prefill, decode = found.clusters["prefill"], found.clusters["decode"]
    assert prefill.batches > 0
    assert decode.batches > 0
    assert prefill.equal == prefill.batches, prefill.first_difference
    assert not prefill.first_difference
    assert decode.equal == DECODES_UNTIL.get(name, decode.batches), decode.first_difference
    assert name in DECODES_UNTIL or not decode.first_difference
    assert max(prefill.time_error, decode.time_error) <= TIME_ERROR
    assert found.transfers_equal == found.transfers == len(case.trace) - 1, found.transfer_error
    assert found.served_equal == found.served == SERVED_UNTIL.get(name, found.transfers), found.served_error


def decode_batches(name: str) -> list[tuple[float, set[int]]]:
    """Return start and requests of the peer's decode batches."""
    lines: list[Any] = [json.loads(line) for line in DISAGGREGATED[name].log]
    batches = [line for line in lines if isinstance(line, list) and line[0] == 1]
    assert all(pair.endswith(":1") for batch in batches for pair in batch[3].split())
    return [(batch[1], {int(pair.split(":")[0]) for pair in batch[3].split()}) for batch in batches]


def lengths(name: str) -> list[tuple[int, int]]:
    """Return the tokens of prompt and output of each request."""
    _, *rows = (line.split(",") for line in DISAGGREGATED[name].trace)
    return [(int(row[1]), int(row[2])) for row in rows]


def test_the_reference_gives_a_decode_one_token_more_and_computes_its_prompt_again_token_by_token() -> None:
    case, sizes, batches = DISAGGREGATED[PRESSED], lengths(PRESSED), decode_batches(PRESSED)
    found = compare_pdd.compare_pdd(case.config, case.trace, case.log, tolerance=TIME_ERROR)
    parted = found.clusters["decode"]
    ours, theirs = (set(part.split()) for part in parted.first_difference[1:])
    assert (ours - theirs, theirs - ours) == ({"37:1"}, set())

    # In that iteration all blocks are taken if the last token of a prompt is computed again, as vLLM's decode
    # side does, and one is lacking if it is not: the reference keeps the KV of one token more per request.
    iterations = Counter(request for _, members in batches[: parted.equal] for request in members)
    members = [int(pair.split(":")[0]) for pair in ours]

    def blocks_held(more: int) -> int:
        return sum(-(-(sizes[request][0] + iterations[request] + more) // 16) for request in members)

    assert (blocks_held(0), blocks_held(1)) == (400, 401)

    # What it preempted is computed again one token per iteration, the prompt included.
    assert sum(37 in members for _, members in batches) == iterations[37] + sum(sizes[37])


def test_the_reference_decodes_offline_once_all_prompts_have_arrived() -> None:
    sizes, batches = lengths(OFFLINE), decode_batches(OFFLINE)
    lines = (json.loads(line) for line in DISAGGREGATED[OFFLINE].log)
    arrivals = [line["transfer"][1] for line in lines if isinstance(line, dict)]
    assert batches[0][0] == pytest.approx(max(arrivals), rel=TIME_ERROR)
    assert batches[0][0] > 2 * min(arrivals)
    for iteration, (_, members) in enumerate(batches):
        assert members == {request for request, (_, output) in enumerate(sizes) if output > iteration}
