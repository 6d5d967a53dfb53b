"""Vidur's and the reference's golden cases, batch by batch, from their own operator tables and constants.

How each is adapted says `tests/oracle/peers/adapt.py`. Known defects of the peers are not copied: their
least-outstanding router counts waiting requests alone (v10, f06: each replica is run with the requests that
it got), and the reference loses requests that it preempts (f02: equal up to the first one).
"""

from pathlib import Path

import compare
import golden_archive
import pytest

ARCHIVE = Path(__file__).with_name("peers.tar.xz")
CASES = golden_archive.cases(ARCHIVE)
TIME_ERROR = 1e-6

UNTIL = {"f02_colo_dense_dummy_preempt400blk_t6": 1131}
"""Batches before the first that the peer's defects change."""


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
