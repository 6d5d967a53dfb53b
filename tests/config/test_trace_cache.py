"""Files of traces that are kept for the next scenario: bounded by bytes, and let go on demand."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import frontier.workloads
from frontier import trace_columns
from frontier.config import Scenario
from frontier.lowering import lower


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Return the names of the files that are read, in order."""
    names: list[str] = []
    load_trace = frontier.workloads.load_trace

    def note(path: str, **options: object) -> object:
        names.append(Path(path).stem)
        return load_trace(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(frontier.workloads, "load_trace", note)
    trace_columns.clear_trace_cache()
    yield names
    trace_columns.clear_trace_cache()


@pytest.fixture
def of_file(base: Scenario, tmp_path: Path) -> Callable[[str], Scenario]:
    """Return a function that makes a scenario of a trace of three rows of 16 bytes."""

    def make(name: str) -> Scenario:
        path = tmp_path / f"{name}.csv"
        path.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0,5,5\n1,5,5\n2,5,5\n")
        return base.with_({"workload": {"trace": {"path": str(path)}}})

    return make


def test_many_files_are_kept_until_they_are_cleared(
    read: list[str], of_file: Callable[[str], Scenario]
) -> None:
    scenarios = [of_file(name) for name in "abcde"]
    for scale in (1, 2, 3):
        for scenario in scenarios:
            lower(scenario.with_({"workload.trace.rate_scale": scale}))
    assert read == list("abcde")
    trace_columns.clear_trace_cache()
    lower(scenarios[0])
    assert read == list("abcdea")


def test_the_least_used_files_make_room(
    read: list[str], of_file: Callable[[str], Scenario], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_columns, "CACHE_BYTES", 2 * 48 + 47)
    a, b, c = (of_file(name) for name in "abc")
    for scenario in (a, b, a, c, a, b):
        lower(scenario)
    assert read == list("abcb")
    monkeypatch.setattr(trace_columns, "CACHE_BYTES", 47)
    lower(c)
    lower(c)
    assert read == list("abcbcc")
