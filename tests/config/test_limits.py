"""The engine's effective limits, against vLLM's rules for `vllm serve`."""

from collections.abc import Callable
from typing import Any

import pytest

from frontier.config import Scenario
from frontier.config.limits import default_batch
from frontier.errors import Issue

Problems = Callable[..., dict[str, Issue]]
GIB = 2**30


@pytest.mark.parametrize(
    ("name", "memory_bytes", "expected"),
    [
        ("b200", 178 * GIB, (16384, 1024)),
        ("mi300x", 192 * GIB, (16384, 1024)),
        ("anything", 160 * GIB, (16384, 1024)),
        ("h200", 140 * GIB, (8192, 1024)),
        ("h100", 79 * GIB, (8192, 1024)),
        ("anything", 70 * GIB, (8192, 1024)),
        ("anything", 70 * GIB - 1, (2048, 256)),
        (None, 79 * GIB, (8192, 1024)),
        ("NVIDIA A100-SXM4-80GB", 79 * GIB, (2048, 256)),
        ("a800", 79 * GIB, (8192, 1024)),
        ("l40s", 44 * GIB, (2048, 256)),
    ],
)
def test_batch_defaults_by_gpu(name: str | None, memory_bytes: int, expected: tuple[int, int]) -> None:
    assert default_batch(name, memory_bytes) == expected


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        # (max_model_len, max_num_batched_tokens, max_num_seqs) of Llama-3.1-8B on an H100
        ({}, (131072, 8192, 1024)),
        ({"max_num_batched_tokens": 512}, (131072, 512, 512)),
        ({"max_num_seqs": 16}, (131072, 8192, 16)),
        ({"max_model_len": 256, "max_num_seqs": 16}, (256, 4096, 16)),
        ({"max_model_len": 4096, "enable_chunked_prefill": False}, (4096, 8192, 1024)),
        ({"max_model_len": 20_000, "enable_chunked_prefill": False}, (20_000, 20_000, 1024)),
        ({"max_model_len": 256, "max_num_seqs": 16, "max_num_batched_tokens": 8192}, (256, 8192, 16)),
        ({"max_model_len": "auto"}, (131072, 8192, 1024)),
    ],
)
def test_clamps_apply_to_values_left_out(
    base: Scenario, engine: dict[str, Any], expected: tuple[int, int, int]
) -> None:
    resolved = base.with_({"engine": engine}).resolve()
    assert (resolved.max_model_len, resolved.max_num_batched_tokens, resolved.max_num_seqs) == expected


@pytest.mark.parametrize(
    ("engine", "path", "words"),
    [
        (
            {"enable_chunked_prefill": False, "max_num_batched_tokens": 4096},
            "engine.max_num_batched_tokens",
            "was 4096, must be at least max_model_len (131072) without chunked prefill",
        ),
        (
            {"max_num_batched_tokens": 64, "max_num_seqs": 128},
            "engine.max_num_batched_tokens",
            "max_num_batched_tokens (64) must be at least max_num_seqs (128)",
        ),
        ({"max_num_seqs": 10_000}, "engine.max_num_seqs", "(8192) must be at least max_num_seqs (10000)"),
        (
            {"max_model_len": 1000, "long_prefill_token_threshold": 1001},
            "engine.long_prefill_token_threshold",
            "was 1001, must be at most max_model_len (1000)",
        ),
        (
            {"max_num_active_seqs": 1025},
            "engine.max_num_active_seqs",
            "was 1025, must be at most max_num_seqs (1024)",
        ),
        (
            {"max_num_scheduled_tokens": 8193},
            "engine.max_num_scheduled_tokens",
            "was 8193, must be at most max_num_batched_tokens (8192)",
        ),
        ({"max_model_len": 131073}, "engine.max_model_len", "the model allows at most 131072"),
        (
            {"long_prefill_token_threshold_adaptive": True},
            "engine.long_prefill_token_threshold_adaptive",
            "set long_prefill_token_threshold, which it raises",
        ),
        ({"tensor_parallel_size": 3}, "engine.tensor_parallel_size", "32 attention heads are not divisible"),
        ({"num_gpu_blocks_override": 100}, "engine.num_gpu_blocks_override", "takes 8192 blocks"),
        ({"gpu_memory_utilization": 0.1}, "hardware.gpu", "leaves no memory for the KV cache"),
        ({"gpu_memory_utilization": 0.3}, "engine.max_model_len", "but the KV cache holds"),
        (
            {"cpu_overhead": {}, "step_time": {"linear": {"per_step": "1ms"}}},
            "engine.cpu_overhead",
            "has no effect with a linear step time",
        ),
        (
            {"sampling": "greedy", "step_time": {"linear": {"per_step": "1ms"}}},
            "engine.sampling",
            "has no effect where the step time knows no operators",
        ),
        ({"kv_cache_dtype": "fp8_ds_mla"}, "engine.kv_cache_dtype", "was 'fp8_ds_mla'"),
    ],
)
def test_settings_with_which_vllm_does_not_start(
    problems: Problems, engine: dict[str, Any], path: str, words: str
) -> None:
    found = problems(engine=engine)
    assert path in found
    assert words in str(found[path])


def test_a_gpu_without_the_units_a_model_needs_is_refused(problems: Problems) -> None:
    found = problems(model="deepseek-v3.2", hardware="a100-80gb", engine={"tensor_parallel_size": 8})
    assert "computes in fp8, for which a100-80gb has no peak rate" in found["model"].message


def test_auto_length_is_the_longest_that_fits(base: Scenario) -> None:
    tight = base.with_({"engine.max_model_len": "auto", "engine.gpu_memory_utilization": 0.3})
    resolved = tight.resolve()
    assert resolved.max_model_len == resolved.num_blocks * resolved.block_size
    assert 1000 < resolved.max_model_len < 131072


@pytest.mark.parametrize(
    ("model", "gpu", "engine", "block_size"),
    [
        ("llama-3.1-8b", "h100", {}, 16),
        ("llama-3.1-8b", "b200", {}, 16),
        ("deepseek-v2-lite", "h100", {}, 16),
        ("deepseek-v2-lite", "b200", {}, 32),
        ("deepseek-v3.2", "b200", {"tensor_parallel_size": 8}, 64),
        ("deepseek-v2-lite", "b200", {"block_size": 128}, 128),
    ],
)
def test_block_size_is_what_the_backend_prefers(
    base: Scenario, model: str, gpu: str, engine: dict[str, Any], block_size: int
) -> None:
    scenario = base.with_({"model": model, "hardware": gpu, "engine": engine})
    assert scenario.resolve().block_size == block_size


def test_warnings_are_collected(base: Scenario) -> None:
    engine = {"max_model_len": 256, "max_num_seqs": 16, "max_num_batched_tokens": 8192}
    warnings = base.with_({"engine": engine}).resolve().warnings
    assert any("exceeds max_num_seqs * max_model_len (4096)" in warning for warning in warnings)
    assert any("all will be rejected" in warning for warning in warnings)
    assert base.resolve().warnings == ()


def test_the_peak_is_that_of_the_types_computed_in(base: Scenario) -> None:
    resolved = base.resolve()
    assert resolved.peak_flops_per_s == resolved.gpu.peak_flops_per_s.bf16
    changes = {"model": "deepseek-v3", "hardware": "h200", "engine.tensor_parallel_size": 8}
    eight_bits = base.with_(changes).resolve()
    assert eight_bits.peak_flops_per_s == eight_bits.gpu.peak_flops_per_s.fp8
