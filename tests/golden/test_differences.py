"""The comparison of logs sees every kind of difference, so that an equal log is really equal."""

import json

import pytest
from differences import first_difference

RECORDS = [
    {"step": 0, "ts": 5, "sched": [["a", "new", 0, 7, 0]], "hit": {"a": 0}, "free": 9},
    {"step": 1, "ts": 8, "sched": [["a", "run", 7, 1, 0]], "free": 9, "out": {"a": 1}},
]
SUMMARY = {"e0": {"requests": {"a": {"fin": 9}}, "steps": 2}}


def log(records, summary=SUMMARY, **more):
    return [json.dumps(record) for record in [*records, {"summary": summary, **more}]]


def test_equal_logs_have_no_difference():
    # What a golden log's last line holds beside the summary does not count.
    assert first_difference(log(RECORDS), log(RECORDS, vllm="0.32.0", config={})) is None


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        (log([RECORDS[0], RECORDS[1] | {"free": 8}]), "record 1, step 1, key free: ours 8, theirs 9"),
        (log([RECORDS[0], RECORDS[1] | {"out": {"a": 2}}]), "record 1, step 1, key out.a: ours 2, theirs 1"),
        (log([RECORDS[0], RECORDS[1] | {"fin": ["a"]}]), "record 1, step 1, key fin is only in ours: ['a']"),
        (log([dict(sorted(RECORDS[0].items())), RECORDS[1]]), "record 0, step 0, order of keys"),
        (log(RECORDS[:1]), "record 1, step 1, key step is only in theirs: 1"),
        (log(RECORDS)[:2], "record 2 is only in theirs"),
        (log([*RECORDS, RECORDS[1]]), "record 2, step None, key summary is only in theirs"),
        (
            log(RECORDS, {"e0": {"requests": {"a": {"fin": None}}, "steps": 2}}),
            "summary, key e0.requests.a.fin: ours None, theirs 9",
        ),
    ],
)
def test_first_difference_is_described(ours, message):
    assert first_difference(ours, log(RECORDS)).startswith(message)
