"""CUDA graphs and asynchronous scheduling by version: sizes, modes, what is refused."""

from typing import Any, cast

import pytest

import frontier
from frontier.config.async_scheduling import allows_async, async_by_default
from frontier.config.cuda_graph import Mode, Support, effective_mode, full_graph_support
from frontier.errors import ConfigError
from frontier.lowering import lower
from frontier.memory.graphs import GraphCapture, capture_bytes, sglang_capture_sizes
from frontier.models import load_model

DEFAULT_LADDER = [1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)]
COARSE = [1, 2, 4, 8, 16, 32, 64]


def scenario(model: str = "llama-3.1-8b", gpu: str = "h100", **engine: Any) -> frontier.Scenario:
    return frontier.Scenario.from_dict(
        {
            "model": model,
            "hardware": gpu,
            "engine": {"max_model_len": 8192, "step_time": "roofline", **engine},
            "workload": {
                "synthetic": {
                    "arrivals": {"closed_loop": {"concurrency": 33}},
                    "num_requests": 66,
                    "prompt_tokens": 64,
                    "output_tokens": 32,
                }
            },
        }
    )


def graphs_of(**settings: Any) -> GraphCapture:
    return scenario(**settings).resolve().graphs


def decode(batch: int, **settings: Any) -> Any:
    return frontier.explain(scenario(**settings), decode=batch, context=1024).decode


def test_the_default_is_the_list_of_the_version() -> None:
    graphs = graphs_of()
    assert (graphs.mode, graphs.query_tokens) == ("full_and_piecewise", 1)
    assert list(graphs.piecewise) == DEFAULT_LADDER
    assert len(DEFAULT_LADDER) == 51
    assert graphs.full_decode == graphs.piecewise
    assert graphs_of(enforce_eager=True) == GraphCapture("none")
    assert graphs_of(cuda_graph="NONE") == GraphCapture("none")


def test_interactivity_captures_every_small_size() -> None:
    graphs = graphs_of(performance_mode="interactivity")
    assert list(graphs.piecewise) == [*range(1, 33), *DEFAULT_LADDER[7:]]


def test_drafts_of_the_first_runner_are_captured_in_whole_requests() -> None:
    drafts = {"num_speculative_tokens": 2, "acceptance": 0.7}
    sizes = {
        method: graphs_of(speculative={"method": method, **drafts}).piecewise
        for method in ("eagle", "medusa")
    }
    assert sizes["eagle"][:3] == (1, 2, 3)
    assert all(size % 3 == 0 for size in sizes["medusa"])


def test_full_graphs_end_at_the_most_requests() -> None:
    graphs = graphs_of(max_num_seqs=33)
    # 33 itself is captured from 0.31 on; the cap is 2 x 33.
    assert list(graphs.piecewise) == [1, 2, 4, 8, 16, 24, 32, 33, 40, 48, 56, 64]
    assert list(graphs.full_decode) == [1, 2, 4, 8, 16, 24, 32, 33]
    few = graphs_of(max_num_seqs=33, cuda_graph={"capture_sizes": [40, 8, 16, 8]})
    assert (few.full_decode, few.piecewise) == ((8, 16), (8, 16, 40))


def test_sizes_of_the_user_replace_the_rule() -> None:
    assert graphs_of(cuda_graph={"max_capture_size": 100}).piecewise[-1] == 96
    kept = graphs_of(max_num_batched_tokens=2048, cuda_graph={"capture_sizes": [1, 2048, 4096]})
    assert kept.piecewise == (1, 2048)
    assert graphs_of(cuda_graph="full_decode_only").piecewise == ()
    everything = graphs_of(cuda_graph="full")
    assert (everything.full, everything.full_decode) == (everything.piecewise, ())


@pytest.mark.parametrize(
    ("backend", "capability", "version", "expected"),
    [
        ("FLASH_ATTN", "9.0", "0.32", "any"),
        ("FLASH_ATTN", "8.0", "0.32", "uniform"),
        ("FLASHINFER", "10.0", "0.32", "uniform"),
        ("FLASHINFER", "9.0", "0.32", "one_token"),
        ("TRITON_MLA", "8.0", "0.21", "none"),
        ("TRITON_MLA", "8.0", "0.22", "uniform"),
        ("FLASHINFER_MLA", "10.0", "0.31", "uniform"),
        ("FLASHINFER_MLA", "10.0", "0.32", "any"),
        ("SOMETHING_ELSE", None, "0.32", "none"),
    ],
)
def test_backends_differ_in_full_graphs(
    backend: str, capability: str | None, version: str, expected: str
) -> None:
    assert full_graph_support(backend, capability, version=version) == expected


@pytest.mark.parametrize(
    ("mode", "support", "query", "expected"),
    [
        ("full", "any", 1, "full"),
        ("full", "uniform", 1, "full_and_piecewise"),
        ("full", "none", 1, "piecewise"),
        ("full_and_piecewise", "one_token", 1, "full_and_piecewise"),
        ("full_and_piecewise", "one_token", 4, "piecewise"),
        ("full_decode_only", "none", 1, "piecewise"),
        ("piecewise", "none", 1, "piecewise"),
        ("none", "any", 1, "none"),
    ],
)
def test_modes_are_lowered_to_what_the_backend_can(
    mode: str, support: str, query: int, expected: str
) -> None:
    found = effective_mode(cast("Mode", mode), cast("Support", support), query_tokens=query)
    assert found == expected


def test_an_a100_has_no_full_graphs_for_mixed_batches() -> None:
    assert graphs_of(gpu="a100-80gb", cuda_graph="full").mode == "full_and_piecewise"


@pytest.mark.parametrize(
    ("engine", "path", "message"),
    [
        ({"enforce_eager": True, "cuda_graph": "full"}, "engine.cuda_graph", "no effect with enforce_eager"),
        ({"cuda_graph": "fulll"}, "engine.cuda_graph.mode", "did you mean 'full'?"),
        (
            {"cuda_graph": {"mode": "none", "capture_sizes": [1]}},
            "engine.cuda_graph.capture_sizes",
            "no graphs are captured",
        ),
        (
            {"cuda_graph": {"capture_sizes": [1, 2], "max_capture_size": 2}},
            "engine.cuda_graph.max_capture_size",
            "remove one of the two",
        ),
        ({"cuda_graph": {"capture_sizes": []}}, "engine.cuda_graph.capture_sizes", "list of token counts"),
        ({"cuda_graph": {"capture_sizes": [0]}}, "engine.cuda_graph.capture_sizes", "from 1 to 65536"),
        (
            {"max_num_batched_tokens": 2048, "cuda_graph": {"capture_sizes": [4096]}},
            "engine.cuda_graph.capture_sizes",
            "at most max_num_batched_tokens (2048)",
        ),
    ],
)
def test_graphs_without_effect_are_refused(engine: dict[str, Any], path: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        scenario(**engine).resolve()
    assert [issue.path for issue in caught.value.issues] == [path]
    assert message in str(caught.value)


def test_33_requests_pad_to_64_in_a_coarse_list_and_to_40_in_the_default_one() -> None:
    coarse = {"cuda_graph": {"capture_sizes": COARSE}}
    full, jump = decode(32, **coarse), decode(33, **coarse)
    assert (full.graph, full.padded_tokens, full.padding) == ("full", 32, 0.0)
    assert (jump.graph, jump.padded_tokens, jump.tokens) == ("full", 64, 33)
    assert jump.padding == pytest.approx(31 / 64)
    usual, eager = decode(33), decode(33, enforce_eager=True)
    assert (usual.graph, usual.padded_tokens) == ("full", 40)
    assert (eager.graph, eager.padded_tokens) == ("eager", 33)
    assert full.gpu_s < eager.gpu_s < usual.gpu_s < jump.gpu_s
    assert eager.launch_s > 10 * usual.launch_s


def test_eager_launches_are_the_measured_ones() -> None:
    # 9.4 ms for a prefill of Llama-2-7B (reference's CPU probe): the default per kernel comes from it.
    step = frontier.explain(
        scenario(model="llama-2-7b", max_model_len=4096, enforce_eager=True), prefill=2048
    ).prefill
    assert step.launch_s == pytest.approx(9.4e-3, rel=0.01)
    assert step.host_s == 0.0


def test_steps_record_their_graphs() -> None:
    run = frontier.simulate(
        scenario(max_num_batched_tokens=2048, cuda_graph={"capture_sizes": COARSE}).with_(
            {"output.steps": True}
        )
    )
    steps = run.steps
    decodes = steps.filter((steps["num_seqs"] == 33) & (steps["prefill_tokens"] == 0))
    assert set(decodes["padded_tokens"]) == {64}
    assert set(decodes["graph"]) == {"full"}
    large = steps.filter(steps["prefill_tokens"] > 64)
    assert set(large["graph"]) == {"eager"}
    assert (large["padded_tokens"] == large["prefill_tokens"] + large["decode_tokens"]).all()


def test_graphs_take_memory_by_number_and_kind() -> None:
    spec = load_model("llama-3.1-8b")
    both = GraphCapture("full_and_piecewise", full_decode=(1, 2, 4), piecewise=(1, 2, 4, 8))
    piecewise = GraphCapture("piecewise", piecewise=(1, 2, 4, 8))
    one = GraphCapture("piecewise", piecewise=(8,))
    taken = [capture_bytes(spec, each, tensor_parallel_size=1) for each in (both, piecewise, one)]
    further = 32 * 192 * 1024
    assert taken[0] - taken[1] == 3 * further
    assert taken[1] - taken[2] == 3 * further
    assert capture_bytes(spec, GraphCapture("none"), tensor_parallel_size=1) == 0
    plans = [scenario(cuda_graph=mode).resolve().memory for mode in ("full_and_piecewise", "none")]
    assert plans[0].num_gpu_blocks < plans[1].num_gpu_blocks


def test_sglang_captures_batches_by_its_own_ladder() -> None:
    usual = sglang_capture_sizes(256)
    assert usual[:9] == [1, 2, 4, 8, 12, 16, 24, 32, 40]
    assert usual[-1] == 256
    assert sglang_capture_sizes(512)[-3:] == [480, 496, 512]
    assert sglang_capture_sizes(600)[-3:] == [512, 544, 576]
    verify = sglang_capture_sizes(160, speculative=True)
    assert verify[:10] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12]
    assert {32, 40, 60, 72, 160} <= set(verify)
    assert not {34, 64, 68} & set(verify)
    assert sglang_capture_sizes(256, num_slots=48)[-3:] == [32, 40, 48]
    assert sglang_capture_sizes(256, num_slots=45)[-2:] == [40, 45]
    assert sglang_capture_sizes(32, multiple_of=4) == [4, 8, 12, 16, 24, 32]


@pytest.mark.parametrize(
    ("minor", "settings", "expected"),
    [
        (13, {}, False),
        (14, {}, True),
        (14, {"pipeline_parallel_size": 2}, False),
        (15, {"pipeline_parallel_size": 2}, True),
        (31, {"pipeline_parallel_size": 2, "second_runner": False}, False),
        (31, {"pipeline_parallel_size": 2}, True),
        (14, {"method": "eagle3"}, True),
        (27, {"method": "draft_model"}, False),
        (28, {"method": "draft_model"}, True),
        (32, {"method": "ngram"}, False),
        (18, {"method": "ngram_gpu"}, True),
        (32, {"method": "medusa"}, False),
        (19, {"pooling": True}, True),
        (20, {"pooling": True}, False),
    ],
)
def test_asynchronous_scheduling_follows_the_version(
    minor: int, settings: dict[str, Any], expected: bool
) -> None:
    assert async_by_default(minor, **settings) is expected


def test_some_drafts_never_run_asynchronously() -> None:
    assert [allows_async(16, name) for name in (None, "draft_model", "suffix")] == [True, True, False]
    assert not allows_async(15, "draft_model")
    assert lower(scenario()).plan["clusters"][0]["scheduler"]["async_scheduling"] is True
