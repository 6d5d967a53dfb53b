"""The memory plan against the one measured start: Llama-3.1-8B on an RTX 4090 (from LLMServingSim)."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from frontier.hardware import load_gpu
from frontier.memory import MemoryPlan, plan_kv_cache
from frontier.models import load_model


def plan_of_the_run(total_bytes: int, **settings: object) -> MemoryPlan:
    gpu = replace(load_gpu("rtx-4090"), memory_bytes=total_bytes)
    return plan_kv_cache(load_model("llama-3.1-8b"), gpu, **settings)  # type: ignore[arg-type]


def test_blocks_of_the_rtx_4090_run() -> None:
    """vLLM 0.19.0 at 0.9 utilisation logged 2,588 blocks; the late allocations are fitted on it."""
    found = plan_of_the_run(
        25_250_627_584,
        tensor_parallel_size=1,
        block_size=16,
        gpu_memory_utilization=0.9,
        max_num_batched_tokens=2048,
        max_num_seqs=256,
        max_model_len=32768,
        version="0.19.0",
    )
    assert found.fits
    assert found.num_gpu_blocks == pytest.approx(2588, rel=0.019)


def test_the_preset_is_the_card_of_that_run() -> None:
    assert load_gpu("rtx-4090").memory_bytes == pytest.approx(25_250_627_584, abs=2**20)


def test_the_run_as_its_metadata_describe_it(shared: Path) -> None:
    meta = json.loads((shared / "data/measured/vllm_runs/RTX4090-Llama-3.1-8B/meta.json").read_text())
    engine, cache = meta["engine_kwargs"], meta["kv_cache"]
    found = plan_of_the_run(
        meta["hardware"]["device_total_memory_bytes"],
        tensor_parallel_size=engine["tensor_parallel_size"],
        block_size=cache["block_size"],
        gpu_memory_utilization=cache["gpu_memory_utilization"],
        max_num_batched_tokens=engine["max_num_batched_tokens"],
        max_num_seqs=engine["max_num_seqs"],
        max_model_len=engine["max_model_len"],
        version=meta["vllm_version"],
    )
    assert found.num_gpu_blocks == pytest.approx(cache["num_gpu_blocks"], rel=0.019)
