"""KV capacity as vLLM computes it, and what to do where a model does not fit."""

import math
from dataclasses import replace
from typing import Any

import pytest

from frontier.errors import ConfigError, DoesNotFitError
from frontier.hardware import load_gpu
from frontier.memory import MemoryPlan, draft_head, plan_kv_cache, rules_of
from frontier.memory.graphs import capture_sizes, graph_bytes
from frontier.memory.weights import cut_stages, stage_weight_bytes
from frontier.models import Layout, kv_layers, load_model, operator_program
from frontier.models.kv import KvLayer, block_bytes, hybrid_num_blocks, merge_layers

GIB = 2**30


def plan(model: str = "llama-3.1-8b", gpu: str = "h100", ranks: int | None = 1, **changes: Any) -> MemoryPlan:
    spec = load_model(model)
    settings: dict[str, Any] = {
        "block_size": 16,
        "gpu_memory_utilization": 0.92,
        "max_num_batched_tokens": 8192,
        "max_num_seqs": 1024,
        "max_model_len": min(spec.max_model_len, 8192),
    }
    return plan_kv_cache(spec, load_gpu(gpu), tensor_parallel_size=ranks, **(settings | changes))


# model, blocks that vLLM makes of 40 GiB: engine versions 0.15.1, 0.19.0, 0.26.0 and 0.32.0, run
PUBLISHED_BLOCKS = [("gpt-oss-120b", 72_817), ("gemma-3-27b", 32_768), ("llama-3.1-8b", 20_480)]


@pytest.mark.parametrize(("model", "blocks"), PUBLISHED_BLOCKS)
def test_blocks_of_40_gib_equal_the_real_engine(model: str, blocks: int) -> None:
    layers = kv_layers(load_model(model), tensor_parallel_size=1)
    assert hybrid_num_blocks(layers, available_bytes=40 * GIB, block_size=16) == blocks


def test_an_eagle_head_is_one_layer_more() -> None:
    spec = load_model("llama-3.1-8b")
    layers = merge_layers(
        kv_layers(spec, tensor_parallel_size=1), draft_head(spec, tensor_parallel_size=1).layers
    )
    assert layers == [KvLayer("full", 33, 4096)]
    assert 40 * GIB // block_bytes(layers, 16) == 19_859
    assert hybrid_num_blocks(layers, available_bytes=40 * GIB, block_size=16) == 19_859


@pytest.mark.parametrize(("model", "blocks"), [*PUBLISHED_BLOCKS[2:], ("llama-3.1-8b", 20_480)])
def test_a_given_cache_size_makes_these_blocks_in_every_version(model: str, blocks: int) -> None:
    for version in ("0.11", "0.19.0", "0.32"):
        p = plan(model, kv_cache_memory_bytes=40 * GIB, version=version)
        assert (p.num_gpu_blocks, p.available_bytes) == (blocks, 40 * GIB)
    spec = load_model(model)
    head = draft_head(spec, tensor_parallel_size=1)
    assert plan(model, kv_cache_memory_bytes=40 * GIB, draft=head).num_gpu_blocks == 19_859


def test_grouping_takes_the_larger_kind_where_counts_are_close() -> None:
    def blocks(*counts: int, ratio: float = 1.5) -> int | None:
        layers = [KvLayer("full", n, 64, None if i else 8) for i, n in enumerate(counts)]
        return hybrid_num_blocks(layers, available_bytes=64 * 16 * 600, block_size=16, hybrid_ratio=ratio)

    assert blocks(10, 14) == 600 // 14  # 14 < 1.5 x 10: groups of 14
    assert blocks(10, 15) == 600 // 10  # groups of 10
    assert blocks(10, 14, ratio=1.25) == 600 // 10  # before 0.18
    assert blocks(10, 12, ratio=1.25) == 600 // 12
    assert blocks(12) == 600 // 12


def test_unequal_pages_are_unified_where_the_ratio_is_whole() -> None:
    def blocks(*layers: KvLayer) -> int | None:
        return hybrid_num_blocks(list(layers), available_bytes=GIB, block_size=16)

    small = KvLayer("sliding", 1, 32, 8)
    assert blocks(KvLayer("full", 1, 64), small) == GIB // (64 * 16)
    assert blocks(KvLayer("full", 1, 48), small) is None
    assert blocks(KvLayer("mla_sparse", 2, 656), KvLayer("indexer", 1, 132)) == GIB // (16 * (2 * 656 + 132))


def test_the_sum_is_exact() -> None:
    p = plan()
    weights = sum(
        op.weight_bytes for op in operator_program(load_model("llama-3.1-8b"), tensor_parallel_size=1)
    )
    assert p.weights_bytes == weights == 16_060_522_496
    assert p.rotary_bytes == 131072 * 128 * 2
    assert (p.padding_bytes, p.communication_bytes) == (0, 0)
    taken = p.weights_bytes + p.rotary_bytes + p.activation_bytes + p.late_bytes + p.graph_bytes
    assert p.available_bytes == p.requested_bytes - taken == p.requested_bytes - p.needed_bytes
    assert p.bytes_per_block == 16 * 32 * 4096
    assert p.num_gpu_blocks == p.available_bytes // p.bytes_per_block
    assert p.kv_cache_tokens == (p.num_gpu_blocks - 1) * 16
    assert p.max_concurrency == p.num_gpu_blocks / (8192 / 16)
    assert p.fits
    assert not p.warnings
    p.raise_if_not_fitting()


def test_ranks_divide_weights_and_cache() -> None:
    one, four = plan("llama-3.1-8b", ranks=1), plan("llama-3.1-8b", ranks=4)
    assert four.bytes_per_block * 4 == one.bytes_per_block
    assert four.weights_bytes < one.weights_bytes / 3.9
    latent = [plan("deepseek-v2-lite", ranks=n).bytes_per_block for n in (1, 4)]
    assert latent[0] == latent[1] == 16 * 27 * 1152


def test_settings_move_the_plan_the_way_they_should() -> None:
    base = plan()
    assert plan(gpu_memory_utilization=0.5).num_gpu_blocks < base.num_gpu_blocks
    assert plan(kv_cache_dtype="fp8").bytes_per_block * 2 == base.bytes_per_block
    assert plan(block_size=32).bytes_per_block == 2 * base.bytes_per_block
    assert plan(max_num_seqs=64).num_gpu_blocks > base.num_gpu_blocks
    assert plan(max_num_batched_tokens=65536).num_gpu_blocks < base.num_gpu_blocks
    assert plan(gpu="h200").num_gpu_blocks > base.num_gpu_blocks


def test_sparse_attention_counts_its_indexer_cache() -> None:
    p = plan("deepseek-v3.2", "h200", 8, block_size=64, kv_cache_dtype="fp8")
    assert p.bytes_per_block == 64 * 61 * (656 + 132)


def test_fp8_latent_attention_keeps_a_plain_copy_of_its_expansion() -> None:
    v3 = load_model("deepseek-v3")
    ranks = 8
    copies = 61 * (128 // ranks) * (128 + 128) * 512 * 2
    derived = [
        op.count * sum(t.bytes for t in op.weights if t.derived)
        for op in operator_program(v3, tensor_parallel_size=ranks)
    ]
    assert sum(derived) == copies


def test_sliding_layers_are_planned_as_full_with_a_warning() -> None:
    p = plan("gpt-oss-120b", gpu="h200")
    assert p.bytes_per_block == 16 * 36 * 2048
    (warning,) = p.warnings
    assert "18 of 36 layers have sliding windows" in warning
    assert "--disable-hybrid-kv-cache-manager" in warning
    assert f"{p.num_gpu_blocks:,} blocks; with the manager on" in warning
    assert f"{p.available_bytes // (16 * 2048 * 18):,} blocks, shared" in warning


def test_a_model_that_does_not_fit_says_how_many_ranks_it_needs() -> None:
    p = plan("llama-3.1-70b")
    assert not p.fits
    assert p.num_gpu_blocks == 0
    (issue,) = p.issues
    assert issue.path == "hardware.gpu"
    assert "tensor_parallel_size 2 or more" in issue.message
    assert plan("llama-3.1-70b", ranks=2).fits
    with pytest.raises(DoesNotFitError, match="leaves no memory for the KV cache") as caught:
        p.raise_if_not_fitting()
    assert caught.value.memory is p


def test_a_model_that_fits_nowhere_offers_no_ranks() -> None:
    (issue,) = plan("kimi-k2", gpu="rtx-4090").issues
    assert "tensor_parallel_size" not in issue.message
    assert "a larger GPU" in issue.message


def test_a_length_that_does_not_fit_names_the_longest_and_the_ranks() -> None:
    p = plan("llama-3.1-70b", ranks=2, max_model_len=131072)
    (issue,) = p.issues
    longest = p.num_gpu_blocks * 16
    assert issue.path == "engine.max_model_len"
    assert issue.value == 131072
    assert issue.allowed == (f"max_model_len {longest} or less", "tensor_parallel_size 4 or more")
    assert plan("llama-3.1-70b", ranks=2, max_model_len=longest).fits
    assert not plan("llama-3.1-70b", ranks=2, max_model_len=longest + 1).fits
    assert plan("llama-3.1-70b", ranks=4, max_model_len=131072).fits


def test_a_length_left_out_is_the_models_own() -> None:
    p = plan("llama-3.1-70b", ranks=2, max_model_len=None)
    assert p.max_model_len == 131072
    (issue,) = p.issues
    assert issue.message.startswith("is the model's own 131072, but")
    assert issue.value is None
    (short,) = plan(max_model_len=None, num_gpu_blocks_override=100).issues
    assert "max_model_len (the model's own 131072) takes 8192 blocks" in short.message


def test_an_override_replaces_the_number_of_blocks() -> None:
    p = plan(num_gpu_blocks_override=1000)
    assert (p.num_gpu_blocks, p.fits, p.warnings) == (1000, True, ())
    computed = plan().num_gpu_blocks
    (warning,) = plan(num_gpu_blocks_override=computed + 1).warnings
    assert f"{computed:,} blocks" in warning
    (short,) = plan(num_gpu_blocks_override=100).issues
    assert short.allowed == ("512 or more",)
    (impossible,) = plan(num_gpu_blocks_override=10**9).issues
    assert impossible.path == "engine.num_gpu_blocks_override"
    assert "has room for" in impossible.message


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"block_size": 0}, "engine.block_size"),
        ({"max_num_seqs": -1}, "engine.max_num_seqs"),
        ({"max_num_batched_tokens": 1.5}, "engine.max_num_batched_tokens"),
        ({"max_model_len": True}, "engine.max_model_len"),
        ({"gpu_memory_utilization": 0}, "engine.gpu_memory_utilization"),
        ({"gpu_memory_utilization": 1.01}, "engine.gpu_memory_utilization"),
        ({"gpu_memory_utilization": float("nan")}, "engine.gpu_memory_utilization"),
        ({"num_gpu_blocks_override": 0}, "engine.num_gpu_blocks_override"),
        ({"ranks": 16}, "engine.tensor_parallel_size"),
        ({"ranks": 3}, "engine.tensor_parallel_size"),
    ],
)
def test_arguments_out_of_range_are_refused(changes: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(**changes)
    assert {issue.path for issue in caught.value.issues} == {path}


def test_explanation_names_every_part() -> None:
    text = plan("llama-3.1-70b", ranks=2, max_model_len=131072).explain()
    words = ("left out", "weights", "rotary tables", "activations", "late allocations", "all-reduce")
    for word in (*words, "CUDA graphs", "fragmentation", "KV cache", "bytes per block", "blocks", "tokens"):
        assert f"\n{word} " in text
    assert "does not fit: engine.max_model_len" in text
    assert "-65.71 GiB  exact: llama-3.1-70b, rank of 2" in text
    assert "warning: " in plan("gemma-3-27b", gpu="h200").explain()
    assert "vLLM 0.19 takes" in plan(version="0.19").explain()
    assert "stage 2 of 2" in staged(2).explain()  # it has the sampler
    assert "expert padding" in plan("gpt-oss-20b").explain()


# version, max_num_seqs, batched tokens, drafts: sizes that vLLM captures
CAPTURES = [
    ("0.32", 1024, 8192, 0, [1, 2, 4, 8, 16], [480, 496, 512], 51),
    ("0.32", 4, 8192, 0, [1, 2, 4, 8], [2, 4, 8], 4),
    ("0.32", 100, 8192, 0, [1, 2, 4], [184, 192, 200], 29),
    ("0.30", 100, 8192, 0, [1, 2, 4], [184, 192, 200], 28),
    ("0.32", 256, 40, 0, [1, 2, 4, 8], [24, 32, 40], 8),
    ("0.20", 256, 37, 0, [1, 2, 4, 8], [24, 32, 37], 8),
    ("0.19", 256, 37, 0, [1, 2, 4, 8], [16, 24, 32], 7),
    ("0.12", 16, 8192, 3, [4, 8, 16], [16, 24, 32], 5),
    ("0.13", 16, 8192, 3, [4, 8, 16], [112, 120, 128], 17),
    ("0.32", 16, 8192, 3, [1, 2, 4, 8], [112, 120, 128], 19),
]


@pytest.mark.parametrize("case", CAPTURES)
def test_capture_sizes_follow_the_version(case: tuple[str, int, int, int, list[int], list[int], int]) -> None:
    version, seqs, tokens, drafts, first, last, count = case
    sizes = capture_sizes(seqs, tokens, rules=rules_of(version), num_speculative_tokens=drafts)
    assert sizes[: len(first)] == first
    assert sizes[-3:] == last
    assert len(set(sizes)) == len(sizes) == count


def test_capture_sizes_of_special_cases() -> None:
    gpt_oss = capture_sizes(16, 8192, rules=rules_of("0.19"), model_type="gpt_oss")
    assert gpt_oss[-1] == 1024
    eager = capture_sizes(64, 8192, rules=rules_of("0.20"), interactivity=True)
    assert eager[:33] == [*range(1, 33), 40]
    assert capture_sizes(1024, 8192, rules=rules_of("0.27"), compute_capability="10.0")[-1] == 512
    assert capture_sizes(1024, 8192, rules=rules_of("0.28"), compute_capability="10.0")[-1] == 1024


def test_graphs_are_taken_off_from_0_20() -> None:
    before, after = plan(version="0.19"), plan(version="0.20")
    assert (before.graph_bytes, after.graphs_outside_bytes) == (0, 0)
    assert before.graphs_outside_bytes == after.graph_bytes > 0.3 * GIB
    assert plan(version="0.20", cuda_graphs=False).graph_bytes == 0
    assert (
        graph_bytes(
            load_model("llama-3.1-8b"), [], tensor_parallel_size=1, max_num_seqs=1, num_speculative_tokens=0
        )
        == 0
    )


def test_versions_have_their_default_utilization_and_others_are_refused() -> None:
    assert plan(gpu_memory_utilization=None, version="0.19.1").requested_bytes < 0.901 * plan().total_bytes
    assert plan(gpu_memory_utilization=None, version="v0.20").requested_bytes > 0.919 * plan().total_bytes
    for version in ("0.10.2", "0.33", "1.19", "nightly", 0.19, None):
        with pytest.raises(ConfigError, match=r"vLLM 0\.11 to 0\.32") as caught:
            plan(version=version)
        assert [issue.path for issue in caught.value.issues] == ["engine.version"]


def staged(stages: int, model: str = "llama-3.1-8b", **changes: Any) -> MemoryPlan:
    return plan(model, ranks=None, layout=Layout(pipeline_parallel_size=stages), **changes)


def test_pipeline_stages_share_layers_and_the_smallest_cache_counts() -> None:
    sizes = [stage.spec.num_layers for stage in cut_stages(load_model("llama-3.1-70b"), 6)]
    assert sizes == [13, 13, 13, 14, 14, 13]  # 80 = 6 x 13 + 2, which goes to the last but one and before
    spec = load_model("llama-3.1-8b")
    (whole,) = stage_weight_bytes(spec, Layout(), "bfloat16")
    for count in (2, 4, 8):
        assert sum(stage_weight_bytes(spec, Layout(pipeline_parallel_size=count), "bfloat16")) == whole
    tied = load_model("qwen3-0.6b")
    copies = sum(stage_weight_bytes(tied, Layout(pipeline_parallel_size=2), "bfloat16"))
    assert copies - stage_weight_bytes(tied, Layout(), "bfloat16")[0] == 151_936 * 1024 * 2
    p = staged(2)
    assert p.pipeline_parallel_size == 2
    assert p.bytes_per_block == 16 * 16 * 4096
    assert p.num_gpu_blocks > 2 * plan().num_gpu_blocks
    with pytest.raises(ConfigError, match="has 32 layers"):
        staged(40)


def test_data_parallel_engines_share_experts() -> None:
    layout = Layout(data_parallel_size=2, enable_expert_parallel=True)
    p = plan("qwen3-30b-a3b", ranks=None, layout=layout)
    assert p.weights_bytes == plan("qwen3-30b-a3b").weights_bytes - 27 * GIB
    assert p.bytes_per_block == plan("qwen3-30b-a3b").bytes_per_block
    assert "one of 2 data-parallel engines" in p.explain()
    with pytest.raises(ValueError, match="either"):
        plan(layout=layout)


def test_weights_of_another_layout_can_be_given() -> None:
    p = plan("qwen3-30b-a3b", rank_weight_bytes=[30 * GIB])
    assert p.weights_bytes == 30 * GIB
    with pytest.raises(ConfigError, match="one per pipeline stage"):
        plan(rank_weight_bytes=[GIB, GIB])


def test_drafts_take_weights_and_enlarge_blocks() -> None:
    spec = load_model("llama-3.1-8b")
    head = draft_head(spec, tensor_parallel_size=1, weight_bytes=GIB, num_speculative_tokens=3)
    p = plan(draft=head)
    assert p.bytes_per_block == 16 * 33 * 4096
    assert p.weights_bytes == plan().weights_bytes + GIB
    sparse = draft_head(load_model("deepseek-v3.2"), tensor_parallel_size=8, kv_cache_dtype="fp8")
    assert [layer.bytes_per_token for layer in sparse.layers] == [656, 132]
    with pytest.raises(ConfigError, match="at least one layer"):
        draft_head(spec, tensor_parallel_size=1, layers=0)


def test_data_centre_blackwell_captures_more() -> None:
    spec, gpu = load_model("llama-3.1-8b"), load_gpu("b200")
    common: dict[str, Any] = {
        "tensor_parallel_size": 1,
        "block_size": 16,
        "gpu_memory_utilization": 0.9,
        "max_num_batched_tokens": 8192,
        "max_num_seqs": 1024,
        "max_model_len": 8192,
    }
    older = plan_kv_cache(spec, replace(gpu, compute_capability="9.0"), **common)
    assert plan_kv_cache(spec, gpu, **common).graph_bytes > older.graph_bytes


def test_the_length_that_fits_is_named_exactly_where_all_layers_slide() -> None:
    cache = {"kv_cache_memory_bytes": 100 * 16 * 131_072, "hybrid_kv_cache": True}

    def planned(length: int) -> MemoryPlan:
        return plan("mistral-7b-v0.1", max_num_batched_tokens=2048, max_model_len=length, **cache)

    refused = planned(32_768)
    assert refused.num_gpu_blocks == 100
    assert refused.longest_request_blocks == math.ceil((4096 - 1 + 2048) / 16) + 1
    assert refused.issues[0].allowed[0] == "max_model_len 1600 or less"
    assert planned(1600).fits
    assert not planned(1601).fits
