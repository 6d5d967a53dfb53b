"""KV capacity as vLLM computes it, and what to do where a model does not fit."""

from dataclasses import replace
from typing import Any

import pytest

from frontier.errors import ConfigError, DoesNotFitError
from frontier.hardware import load_gpu
from frontier.memory import MemoryPlan, plan_kv_cache
from frontier.models import kv_layers, load_model, operator_program
from frontier.models.footprint import activation_bytes, capture_sizes, graph_bytes
from frontier.models.kv import KvLayer, hybrid_num_blocks

GIB = 2**30


def plan(model: str = "llama-3.1-8b", gpu: str = "h100", ranks: int = 1, **changes: Any) -> MemoryPlan:
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


def test_grouping_takes_the_larger_kind_where_counts_are_close() -> None:
    def blocks(*counts: int) -> int | None:
        layers = [KvLayer("full", n, 64, None if i else 8) for i, n in enumerate(counts)]
        return hybrid_num_blocks(layers, available_bytes=64 * 16 * 600, block_size=16)

    assert blocks(10, 14) == 600 // 14  # 14 < 1.5 x 10: groups of 14
    assert blocks(10, 15) == 600 // 10  # groups of 10
    assert blocks(12) == 600 // 12
    unequal = [KvLayer("full", 1, 64), KvLayer("sliding", 1, 32, 8)]
    assert hybrid_num_blocks(unequal, available_bytes=GIB, block_size=16) is None


def test_the_sum_is_exact() -> None:
    p = plan()
    weights = sum(
        op.weight_bytes for op in operator_program(load_model("llama-3.1-8b"), tensor_parallel_size=1)
    )
    assert p.weights_bytes == weights == 16_060_522_496
    taken = p.weights_bytes + p.activation_bytes + p.late_bytes + p.graph_bytes
    assert p.available_bytes == p.requested_bytes - taken
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
    for word in ("weights", "activations", "CUDA graphs", "KV cache", "bytes per block", "blocks", "tokens"):
        assert word in text
    assert "does not fit: engine.max_model_len" in text
    assert "-65.71 GiB" in text
    assert "warning: " in plan("gemma-3-27b", gpu="h200").explain()


def test_capture_sizes_follow_the_engine() -> None:
    sizes = capture_sizes(1024, 8192, cap=512)
    assert len(sizes) == 51
    assert sizes[:5] == [1, 2, 4, 8, 16]
    assert sizes[-3:] == [480, 496, 512]
    assert capture_sizes(4, 8192, cap=512) == [1, 2, 4, 8]
    assert capture_sizes(100, 8192, cap=512)[-3:] == [184, 192, 200]
    assert 100 in capture_sizes(100, 8192, cap=512)
    assert capture_sizes(256, 40, cap=512) == [1, 2, 4, 8, 16, 24, 32, 40]


def test_estimates_lie_where_engines_measure() -> None:
    """Activations and graphs of common deployments take some tenths of a GiB to a few GiB."""
    for model, ranks in (("llama-3.1-8b", 1), ("llama-3.1-70b", 4), ("qwen3-30b-a3b", 1), ("deepseek-v3", 8)):
        spec = load_model(model)
        activation = activation_bytes(
            spec,
            tensor_parallel_size=ranks,
            block_size=16,
            max_num_batched_tokens=8192,
            max_num_seqs=1024,
            max_model_len=8192,
        )
        graphs = graph_bytes(spec, max_num_seqs=1024, max_num_batched_tokens=8192)
        assert 0.5 * GIB < activation < 5 * GIB
        assert 0.3 * GIB < graphs < 2 * GIB


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
