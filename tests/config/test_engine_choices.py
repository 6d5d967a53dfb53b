"""What an engine does with a model on a GPU: KV cache manager, block size, default limits."""

from collections.abc import Callable
from typing import Any

import pytest

from frontier.config import Scenario
from frontier.config.block_size import paging_of
from frontier.errors import Issue
from frontier.hardware import load_gpu
from frontier.models import load_model

Problems = Callable[..., dict[str, Issue]]
MANAGER = "engine.disable_hybrid_kv_cache_manager"
A100: dict[str, Any] = {
    "name": "my-a100",
    "num_sms": 108,
    "memory": "79GiB",
    "memory_bandwidth": "2TB/s",
    "pcie_bandwidth": "32GB/s",
    "peak": {"bf16": "312TFLOPS"},
}


@pytest.mark.parametrize("model", ["gpt-oss-120b", "gpt-oss-20b", "gemma-3-27b"])
def test_mixed_layers_keep_windows_unless_the_manager_is_off(base: Scenario, model: str) -> None:
    scenario = base.with_({"model": model, "hardware": "h200"})
    shared = scenario.resolve()
    assert None in shared.memory.kv_group_windows
    assert any(window is not None for window in shared.memory.kv_group_windows)
    assert shared.warnings == ()
    assert scenario.with_({MANAGER: False}).resolve().num_blocks == shared.num_blocks
    whole = scenario.with_({MANAGER: True}).resolve()
    [warning] = whole.warnings
    assert f"--disable-hybrid-kv-cache-manager: {whole.num_blocks:,} blocks" in warning
    assert f"with the manager on it would be {shared.num_blocks:,} blocks" in warning
    assert whole.memory.kv_group_windows == ()


def test_groups_of_layers_as_vllm_cuts_them(base: Scenario) -> None:
    """engine-defaults: gpt-oss has 2 groups of 18 layers, Gemma 3 27B 6 + 1 groups of 10."""
    windows = {
        model: base.with_({"model": model, "hardware": "h200"}).resolve().memory.kv_group_windows
        for model in ("gpt-oss-120b", "gemma-3-27b", "mistral-7b-v0.1")
    }
    assert sorted(windows["gpt-oss-120b"], key=str) == [128, None]
    assert sorted(windows["gemma-3-27b"], key=str) == [1024] * 6 + [None]
    assert windows["mistral-7b-v0.1"] == (4096,)


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("model", ["llama-3.1-8b", "mistral-7b-v0.1", "deepseek-v2-lite"])
def test_the_manager_of_equal_layers_is_refused(problems: Problems, model: str, value: bool) -> None:
    found = problems(model=model, engine={"disable_hybrid_kv_cache_manager": value})
    assert "has no effect" in found[MANAGER].message


@pytest.mark.parametrize(
    ("model", "gpu", "dtype", "backend", "default"),
    [
        ("llama-3.1-8b", "h100", "auto", "FLASH_ATTN", 16),
        ("llama-3.1-8b", "a100-80gb", "auto", "FLASH_ATTN", 16),
        ("llama-3.1-8b", "l40s", "fp8", "TRITON_ATTN", 16),
        ("llama-3.1-8b", "b200", "auto", "FLASHINFER", 16),
        ("llama-3.1-8b", "mi300x", "auto", "TRITON_ATTN", 16),
        ("deepseek-v2-lite", "h100", "auto", "FLASH_ATTN_MLA", 16),
        ("deepseek-v2-lite", "h100", "fp8", "FLASHMLA", 64),
        ("deepseek-v2-lite", "b200", "auto", "FLASHINFER_MLA", 32),
        ("deepseek-v2-lite", "b200", "fp8", "FLASHINFER_MLA", 32),
        ("deepseek-v2-lite", "a100-80gb", "auto", "TRITON_MLA", 16),
        ("deepseek-v3.2", "h200", "auto", "FLASHMLA_SPARSE", 64),
        ("deepseek-v3.2", "b200", "fp8", "FLASHMLA_SPARSE", 64),
    ],
)
def test_the_backend_decides_the_block_size(
    model: str, gpu: str, dtype: str, backend: str, default: int
) -> None:
    paging = paging_of(load_model(model), load_gpu(gpu), dtype)
    assert (paging.backend, paging.default) == (backend, default)


def test_fp8_latent_cache_on_hopper_has_blocks_of_64(base: Scenario) -> None:
    scenario = base.with_({"model": "deepseek-v2-lite", "engine.kv_cache_dtype": "fp8"})
    assert scenario.resolve().block_size == 64


@pytest.mark.parametrize(
    ("model", "gpu", "engine", "words"),
    [
        ("llama-3.1-8b", "h100", {"block_size": 8}, "was 8, must be a multiple of 16: FLASH_ATTN"),
        ("llama-3.1-8b", "b200", {"block_size": 24}, "was 24, must be a multiple of 16: FLASHINFER"),
        ("deepseek-v2-lite", "b200", {"block_size": 16}, "must be a multiple of 32: FLASHINFER_MLA"),
        ("deepseek-v2-lite", "h100", {"block_size": 32, "kv_cache_dtype": "fp8"}, "of 64: FLASHMLA, "),
        ("glm-5-fp8", "b200", {"block_size": 128, "tensor_parallel_size": 8}, "must be 64: FLASHMLA_SPARSE"),
    ],
)
def test_other_block_sizes_are_refused(
    problems: Problems, model: str, gpu: str, engine: dict[str, Any], words: str
) -> None:
    found = problems(model=model, hardware=gpu, engine=engine)
    assert list(found) == ["engine.block_size"]
    assert words in found["engine.block_size"].message


def test_an_a100_is_one_by_the_name_that_cuda_reports(base: Scenario) -> None:
    named = base.with_({"hardware": {"gpu": {**A100, "device_name": "NVIDIA A100-SXM4-80GB"}}}).resolve()
    preset = base.with_({"hardware": "a100-80gb"}).resolve()
    for resolved in (named, preset):
        assert (resolved.max_num_batched_tokens, resolved.max_num_seqs) == (2048, 256)
        assert not resolved.warnings
    unnamed = base.with_({"hardware": {"gpu": A100}})
    assert unnamed.resolve().max_num_batched_tokens == 8192
    [warning] = unnamed.resolve().warnings
    assert "my-a100 has no device_name" in warning
    limits = {"engine.max_num_batched_tokens": 4096, "engine.max_num_seqs": 64}
    assert not unnamed.with_(limits).resolve().warnings
