"""Traces of columns in memory, and their way through a file."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from frontier.errors import WorkloadError
from frontier.workloads import NO_SESSION, load_trace, trace_from_columns

ARRIVALS = [0.5, 0.75, 2.0]
COLUMNS = {"arrival_s": ARRIVALS, "prompt_tokens": [5, 6, 7], "output_tokens": [1, 2, 3]}


@pytest.mark.parametrize("kind", [list, tuple, np.array, pl.Series, lambda c: np.array(c, dtype=object)])
def test_columns_may_be_of_any_kind(kind):
    trace = trace_from_columns(**{name: kind(column) for name, column in COLUMNS.items()})
    assert trace.arrival_ns.tolist() == [0, 250_000_000, 1_500_000_000]
    assert trace.prompt_tokens.tolist() == [5, 6, 7]
    assert trace.output_tokens.tolist() == [1, 2, 3]
    assert trace.priority is None
    assert trace.session is None
    assert len(trace.to_trace()) == 3


def test_a_trace_that_is_written_reads_back_the_same(tmp_path):
    trace = trace_from_columns(
        arrival_s=[1e-9, 3, 7.123456789], prompt_tokens=[1, 2**31, 3], output_tokens=np.array([9, 8, 7]),
        priority=[0, -4, 2], session=["a", None, 7],
    )  # fmt: skip
    assert trace.session.tolist() == [0, NO_SESSION, 1]
    path = trace.write(tmp_path / "mine.parquet")
    again = load_trace(path)
    assert again.report.format == "frontier"
    for name in ("arrival_ns", "prompt_tokens", "output_tokens", "priority", "session"):
        assert getattr(again, name).tolist() == getattr(trace, name).tolist(), name
    assert again.nbytes == trace.nbytes == 3 * (8 + 4 + 4 + 4 + 4)


def test_bad_rows_and_order_are_the_callers_choice():
    with pytest.raises(WorkloadError, match=r"columns:2, column 'arrival_s'.* arrives 250ms before"):
        trace_from_columns(**COLUMNS | {"arrival_s": [0.5, 0.25, 2]})
    trace = trace_from_columns(**COLUMNS | {"arrival_s": [0.5, 0.25, 2]}, on_unsorted="sort")
    assert trace.prompt_tokens.tolist() == [6, 5, 7]
    trace = trace_from_columns(**COLUMNS | {"prompt_tokens": [5, 0, 7]}, on_bad_row="skip")
    assert trace.prompt_tokens.tolist() == [5, 7]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt_tokens": [5, 0, 7]}, "columns:2, column 'prompt_tokens'"),
        ({"prompt_tokens": [5, 2.5, 7]}, "columns:2, column 'prompt_tokens'"),
        ({"prompt_tokens": [True, True, True]}, "column 'prompt_tokens': holds Boolean"),
        ({"arrival_s": [0, float("nan"), 1]}, "columns:2, column 'arrival_s'"),
        ({"arrival_s": [-1.0, 0, 1]}, "columns:1, column 'arrival_s'"),
        ({"output_tokens": [1, 2]}, "has 2 rows, arrival_s has 3"),
        ({"output_tokens": np.ones((3, 2))}, "has 2 dimensions, must have 1"),
        ({"output_tokens": 5}, "was int, must be an array, a series or a list"),
        ({"output_tokens": "123"}, "was str, must be"),
        ({"session": [1.5, 2, 3]}, "column 'session'"),
        ({name: [] for name in COLUMNS}, "has no rows"),
        ({"on_bad_row": "ignore"}, "must be one of error, skip"),
    ],
)
def test_what_is_no_trace_is_refused(changes, words):
    with pytest.raises(WorkloadError) as caught:
        trace_from_columns(**COLUMNS | changes)
    assert words in str(caught.value)


def test_what_cannot_be_written_is_refused(tmp_path: Path):
    trace = trace_from_columns(**COLUMNS)
    with pytest.raises(WorkloadError, match=r"must be '\.parquet'"):
        trace.write(tmp_path / "mine.csv")
    with pytest.raises(WorkloadError, match="cannot be written"):
        trace.write(tmp_path / "none" / "mine.parquet")
    hashed = tmp_path / "hashed.jsonl"
    hashed.write_text('{"timestamp": 0, "input_length": 5, "output_length": 5, "hash_ids": [1]}\n')
    with pytest.raises(WorkloadError, match="share content"):
        load_trace(hashed, format="mooncake").write(tmp_path / "mine.parquet")
