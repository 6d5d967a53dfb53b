"""The trace that comes with the package, and the published traces it is like."""

import numpy as np
import pytest

from frontier.errors import WorkloadError
from frontier.workloads import builtin_path, builtin_traces, load_trace


def test_azure_2023_conv_is_complete():
    trace = load_trace("azure-2023-conv")
    assert builtin_traces() == ("azure-2023-conv",)
    assert trace.report.file == "azure-2023-conv"
    assert len(trace) == 19_366
    assert (int(trace.prompt_tokens.sum()), int(trace.output_tokens.sum())) == (22_361_870, 4_088_665)
    rows = zip(
        trace.arrival_ns.tolist(), trace.prompt_tokens.tolist(), trace.output_tokens.tolist(), strict=True
    )
    rows = list(rows)
    assert rows[:2] == [(0, 374, 44), (4_314_579_000, 396, 109)]
    assert rows[-1] == (3_501_721_937_000, 197, 183)
    assert trace.rate_per_s == pytest.approx(5.530, abs=1e-3)


def test_the_attribution_lies_beside_the_data():
    text = (builtin_path("azure-2023-conv").parent / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert "CC BY 4.0" in text
    assert "Splitwise: Efficient generative LLM inference using phase splitting" in text
    assert builtin_path("azure-2023-conv").stat().st_size < 200_000


def test_unknown_built_in_traces_are_refused():
    with pytest.raises(
        WorkloadError, match=r"must be one of azure-2023-conv; did you mean 'azure-2023-conv'\?"
    ):
        builtin_path("azure-2023")


def test_the_simulator_takes_a_loaded_trace():
    pytest.importorskip("frontier._frontier", reason="the extension is not built")
    assert len(load_trace("azure-2023-conv").to_trace()) == 19_366


def test_the_built_in_trace_equals_the_published_one(shared):
    published = load_trace(shared / "traces/azure/AzureLLMInferenceTrace_conv.csv")
    ours = load_trace("azure-2023-conv")
    for column in ("arrival_ns", "prompt_tokens", "output_tokens"):
        assert np.array_equal(getattr(ours, column), getattr(published, column)), column


@pytest.mark.parametrize(
    ("file", "requests", "prompt_tokens"),
    [("conversation_trace.jsonl", 12_031, 144_793_823), ("synthetic_trace.jsonl", 3_993, 61_194_628)],
)
def test_mooncake_traces_load_whole(shared, file, requests, prompt_tokens):
    trace = load_trace(shared / "traces/mooncake" / file)
    assert (len(trace), int(trace.prompt_tokens.sum())) == (requests, prompt_tokens)
    lengths = np.add.reduceat(
        trace.segment_length.astype(np.int64), trace.segment_offsets[:-1].astype(np.int64)
    )
    assert np.array_equal(lengths, trace.prompt_tokens)


def test_other_published_traces_load_whole(shared):
    for file in sorted((shared / "traces/sharegpt_replay").glob("*.csv")):
        assert len(load_trace(file)) == 300
    assert len(load_trace(shared / "traces/vidur_processed/splitwise_code.csv")) == 8_819
