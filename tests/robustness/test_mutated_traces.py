"""Every mutated trace is refused with file, line, column and value, or loads and loses no request."""

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from mutated_trace_cases import TraceCase, cases_of
from mutated_trace_files import BLOCK_SIZE, MAX_MODEL_LEN, NUM_BLOCKS, Table, tables
from mutation_outcome import Flaw, check_run, check_words, outcome_of

import frontier
from frontier.errors import WorkloadError
from frontier.results import Result
from frontier.results.columns import REJECTED
from frontier.workloads import LoadedTrace

pytestmark = pytest.mark.timeout(60)

PARTS = 2
TABLES = {f"{table.name}{table.suffix}": table for table in tables()}


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", TABLES)
def test_mutated_traces(name: str, part: int, tmp_path: Path) -> None:
    cases = cases_of(TABLES[name])[part::PARTS]
    flaws = []
    for number, case in enumerate(cases):
        try:
            judge(case, tmp_path / f"{number}{case.suffix}")
        except Flaw as flaw:
            flaws.append(f"{case.name}: {flaw}")
    assert not flaws, f"{len(flaws)} of {len(cases)} cases:\n" + "\n".join(flaws)


def judge(case: TraceCase, path: Path) -> None:
    """Load and simulate a trace, and raise `Flaw` unless what comes of it is what must."""
    path.write_bytes(case.data)
    loaded = outcome_of(lambda: frontier.load_trace(path, **case.options))
    ran = outcome_of(lambda: frontier.simulate(scenario(path, case.options)))
    if isinstance(loaded, LoadedTrace):
        check_loaded(case, loaded)
        if not isinstance(ran, Result):
            raise Flaw(f"loads and does not run: {ran!r}")
        check_simulated(loaded, ran)
        return
    check_refused(case, loaded, path)
    if not isinstance(ran, WorkloadError) or (ran.line, ran.column, ran.message) != (
        loaded.line,
        loaded.column,
        loaded.message,
    ):
        raise Flaw(f"load_trace says {loaded}, simulate gives {ran!r}")
    if case.skips is not None:
        check_skipped(case, path)


def check_loaded(case: TraceCase, loaded: LoadedTrace) -> None:
    if case.expect == "error":
        raise Flaw(f"must be refused, gave {len(loaded)} requests")
    if case.expect in ("same", "rows") and len(loaded) != case.rows:
        raise Flaw(f"gave {len(loaded)} requests, not {case.rows}")
    if case.expect == "same" and content_of(loaded) != good_content(f"{case.table.name}{case.table.suffix}"):
        raise Flaw("must give the requests of the trace it was made from")
    arrivals = loaded.arrival_ns
    if arrivals[0] != 0 or bool((np.diff(arrivals) < 0).any()):
        raise Flaw("arrivals must begin at 0 and not go back")
    if len(loaded) + sum(loaded.report.rows_skipped.values()) != loaded.report.rows_read:
        raise Flaw(f"rows are lost: {loaded.report}")


def check_simulated(loaded: LoadedTrace, result: Result) -> None:
    """Check that every request is issued as it was loaded, and that only impossible ones are rejected."""
    check_run(result, len(loaded))
    issued = result.columns.requests
    for name in ("arrival_ns", "prompt_tokens", "output_tokens"):
        if not np.array_equal(issued[name], getattr(loaded, name)):
            raise Flaw(f"{name} of the run is not that of the trace")
    total = loaded.prompt_tokens.astype(np.int64) + loaded.output_tokens
    too_long = total > MAX_MODEL_LEN
    # The KV of the last token is never written.
    too_large = ~too_long & (-(-(total - 1) // BLOCK_SIZE) > NUM_BLOCKS - 1)
    if not np.array_equal(issued["status"] == REJECTED, too_long | too_large):
        raise Flaw("other requests than those that cannot fit were rejected")
    by_reason = {"exceeds_max_model_len": int(too_long.sum()), "exceeds_kv_cache": int(too_large.sum())}
    counted = result.summary(0, 0).rejected_by_reason or {}
    if {name: count for name, count in counted.items() if count} != {
        name: n for name, n in by_reason.items() if n
    }:
        raise Flaw(f"rejected by reason {counted}, must be {by_reason}")


def check_refused(case: TraceCase, error: Any, path: Path) -> None:
    if not isinstance(error, WorkloadError):
        raise Flaw(f"must be a WorkloadError: {error!r}")
    check_words(error)
    if case.expect in ("same", "rows"):
        raise Flaw(f"must load: {error}")
    text = str(error)
    if error.file != str(path) or not text.startswith(str(path)):
        raise Flaw(f"does not begin with the file: {text}")
    if case.line is not None and (error.line != case.line or f":{case.line}" not in text):
        raise Flaw(f"must name line {case.line}, was {error.line}: {text[len(str(path)) :]}")
    if case.column is not None and (error.column != case.column or f"'{case.column}'" not in text):
        raise Flaw(f"must name column {case.column}, was {error.column}: {text[len(str(path)) :]}")
    if case.value is not None and shown(case.value) not in text:
        raise Flaw(f"must show {case.value!r:.60}: {text[len(str(path)) :]}")


def check_skipped(case: TraceCase, path: Path) -> None:
    """Check that `on_bad_row='skip'` leaves out the bad row alone, and counts it."""
    loaded = outcome_of(lambda: frontier.load_trace(path, **{**case.options, "on_bad_row": "skip"}))
    if not isinstance(loaded, LoadedTrace):
        raise Flaw(f"cannot be skipped: {loaded!r}")
    skipped = loaded.report.rows_skipped
    if sum(skipped.values()) != case.skips or len(loaded) + case.skips != loaded.report.rows_read:
        raise Flaw(f"skipped {skipped} of {loaded.report.rows_read} rows, kept {len(loaded)}")
    if case.column is not None and not any(reason.startswith(case.column) for reason in skipped):
        raise Flaw(f"{case.column} is not counted in {skipped}")


def shown(value: Any) -> str:
    """Return how a value must appear in a message, cut to what surely is there."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
    return repr(value)[1:-1][:40] if isinstance(value, str) else str(value)[:40]


def scenario(path: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Return a scenario that replays the file on one replica."""
    linear = {"per_step": "1ms", "per_prefill_token": "10us", "per_decode_token": "20us"}
    engine = {"num_gpu_blocks_override": NUM_BLOCKS, "block_size": BLOCK_SIZE, "max_model_len": MAX_MODEL_LEN}
    trace = {"path": str(path) if path.suffix else f"{path.parent}/{path.name}", **options}
    return {
        "model": "llama-3.1-8b",
        "hardware": "h100",
        "engine": {**engine, "step_time": {"linear": linear}},
        "workload": {"trace": trace},
    }


def content_of(loaded: LoadedTrace) -> list[Any]:
    names = ("arrival_ns", "prompt_tokens", "output_tokens", "priority", "session", "segment_offsets",
             "segment_stream", "segment_start", "segment_length")  # fmt: skip
    columns = [getattr(loaded, name) for name in names]
    return [None if column is None else column.tolist() for column in columns]


@cache
def good_content(name: str) -> list[Any]:
    import tempfile

    table: Table = TABLES[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"trace{table.suffix}"
        path.write_bytes(table.data())
        return content_of(frontier.load_trace(path, **table.options))


def test_a_panic_of_the_parquet_reader_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage makes polars panic now and then; which damage does depends on its version."""
    table = TABLES["frontier.parquet"]
    path = tmp_path / "trace.parquet"
    path.write_bytes(table.data())
    for method in ("collect", "collect_schema"):
        with monkeypatch.context() as patch:
            patch.setattr(pl.LazyFrame, method, panic)
            error = outcome_of(lambda: frontier.load_trace(path))
        assert isinstance(error, WorkloadError)
        assert str(error) == f"{path}: cannot be read: assertion failed"


def panic(*_: Any, **__: Any) -> None:
    raise pl.exceptions.PanicException("assertion failed\nleft: 0")
