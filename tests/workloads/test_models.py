"""Columns of models: names that may be there, their numbers, and rows of others."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from frontier.errors import WorkloadError
from frontier.workloads import load_trace, sample, slice_time, trace_from_columns

CSV = "t,p,o,model\n0,5,1,large\n1,6,2, small \n2,7,3,large\n"
JSON = "".join(
    f'{{"t": {t}, "p": {p}, "o": {o}, "model": "{m}"}}\n'
    for t, p, o, m in ((0, 5, 1, "large"), (1, 6, 2, " small "), (2, 7, 3, "large"))
)
COLUMNS = {"arrival": "t", "prompt_tokens": "p", "output_tokens": "o"}
NAMES = ["small", "large"]


@pytest.mark.parametrize(("name", "text"), [("t.csv", CSV), ("t.jsonl", JSON), ("t.csv.gz", CSV)])
@pytest.mark.parametrize("chunk_bytes", [8, 1 << 20])
def test_models_are_numbered_in_the_order_asked_for(
    tmp_path: Path, name: str, text: str, chunk_bytes: int
) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    trace = load_trace(path, columns=COLUMNS, models=NAMES, chunk_bytes=chunk_bytes)
    assert trace.model is not None
    assert trace.model.dtype == np.uint16
    assert trace.model.tolist() == [1, 0, 1]
    assert trace.models == ("small", "large")
    assert load_trace(path, columns=COLUMNS).model is None, "nobody asked"


@pytest.mark.parametrize(
    ("cell", "reason"), [("larg", "must be one of small, large; did"), ("", "is missing")]
)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_row_for_another_model_is_named_or_left_out(
    tmp_path: Path, kind: str, cell: str, reason: str
) -> None:
    path = tmp_path / f"t.{kind}"
    row = f"3,1,1,{cell}\n" if kind == "csv" else f'{{"t": 3, "p": 1, "o": 1, "model": "{cell}"}}\n'
    path.write_text((CSV if kind == "csv" else JSON) + row)
    with pytest.raises(WorkloadError, match=reason) as error:
        load_trace(path, columns=COLUMNS, models=NAMES)
    assert (error.value.line, error.value.column) == (5 if kind == "csv" else 4, "model")
    trace = load_trace(path, columns=COLUMNS, models=NAMES, on_bad_row="skip")
    assert len(trace) == 3
    assert list(trace.report.rows_skipped) == [f"model: {'not served' if cell else 'missing'}"]


def test_the_column_has_the_name_of_the_format_or_that_given(tmp_path: Path) -> None:
    burst = tmp_path / "burst.csv"
    burst.write_text(
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "1,GPT-4,5,6,11,x\n2,ChatGPT,5,6,11,x\n"
    )
    trace = load_trace(burst, models=["ChatGPT", "GPT-4"])
    assert trace.report.format == "burstgpt"
    assert trace.model is not None
    assert trace.model.tolist() == [1, 0]
    azure = tmp_path / "azure.csv"
    azure.write_text("TIMESTAMP,ContextTokens,GeneratedTokens,which\n2024-05-10 00:00:00,5,6,large\n")
    trace = load_trace(azure, models=NAMES, columns={"model": "which"})
    assert (trace.report.format, trace.models) == ("azure", ("small", "large"))
    with pytest.raises(WorkloadError, match="has no column that names the model of each request"):
        load_trace(azure, models=NAMES)
    with pytest.raises(WorkloadError, match="is missing; did you mean 'which'"):
        load_trace(azure, models=NAMES, columns={"model": "whic"})
    with pytest.raises(WorkloadError, match="columns names a model, which needs models"):
        load_trace(azure, columns={"model": "which"})
    with pytest.raises(WorkloadError, match="must be names that differ"):
        load_trace(azure, models=["large", "large"])


def test_sorting_cutting_and_sampling_keep_the_models(tmp_path: Path) -> None:
    count = 200
    model = ["large" if index % 3 else "small" for index in range(count)]
    made = trace_from_columns(
        arrival_s=np.arange(count)[::-1],
        prompt_tokens=np.arange(1, count + 1),
        output_tokens=[1] * count,
        model=model,
        on_unsorted="sort",
    )
    cut = sample(slice_time(made, 10**10, 10**11), 0.5, seed=3)
    assert cut.model is not None
    assert 20 < len(cut) < 70
    names = [cut.models[number] for number in cut.model]
    assert names == [model[prompt - 1] for prompt in cut.prompt_tokens]
    written = cut.write(tmp_path / "cut.parquet")
    again = load_trace(written, models=NAMES)
    assert again.model is not None
    assert [NAMES[number] for number in again.model] == names


def test_names_in_memory_are_numbered_by_first_appearance() -> None:
    times = {"arrival_s": [0, 1, 2], "prompt_tokens": [1, 1, 1], "output_tokens": [1, 1, 1]}
    trace = trace_from_columns(**times, model=["b", "a", "b"])  # type: ignore[arg-type]
    assert trace.models == ("b", "a")
    assert trace.model is not None
    assert trace.model.tolist() == [0, 1, 0]
    with pytest.raises(WorkloadError, match="is missing, must be one of b"):
        trace_from_columns(**times, model=["b", None, "b"])  # type: ignore[arg-type]
