"""SGLang 0.5.3's memory: default share, token pool, request limits."""

from typing import Any

import pytest

from frontier.errors import ConfigError
from frontier.hardware import load_gpu
from frontier.memory.sglang import (
    SglangDefaults,
    SglangPlan,
    Speculation,
    mem_fraction_static,
    plan_token_pool,
    sglang_defaults,
)
from frontier.models import load_model

MIB = 2**20

# MiB that nvidia-smi reports, arguments, share: SGLang 0.5.3's own function, run
FRACTIONS: list[tuple[int, dict[str, Any], float]] = [
    (81559, {}, 0.835),
    (81559, {"tensor_parallel_size": 8}, 0.818),
    (81559, {"speculative": "EAGLE"}, 0.81),
    (143771, {}, 0.907),
    (143771, {"tensor_parallel_size": 8, "attention_data_parallel_size": 8}, 0.769),
    (183359, {"tensor_parallel_size": 8}, 0.852),
    (24564, {}, 0.848),
]


@pytest.mark.parametrize(("memory", "arguments", "share"), FRACTIONS)
def test_default_share_equals_the_real_function(memory: int, arguments: dict[str, Any], share: float) -> None:
    assert mem_fraction_static(memory, **arguments) == share


def test_defaults_by_memory() -> None:
    found = [
        sglang_defaults(m, tensor_parallel_size=tp) for m in (16_000, 24_564, 46_068, 81_559) for tp in (1, 4)
    ]
    assert [(each.chunked_prefill_size, each.cuda_graph_max_bs) for each in found] == [
        (2048, 8),
        (2048, 8),
        (2048, 16),
        (2048, 80),
        (4096, 32),
        (4096, 160),
        (8192, 256),
        (8192, 512),
    ]
    assert sglang_defaults(160 * 1024) == SglangDefaults(16384, 512)


def pool(model: str = "llama-3.1-8b", gpu: str = "h100", ranks: int = 1, **changes: Any) -> SglangPlan:
    settings: dict[str, Any] = {"memory_mib": 81559, "runtime_bytes": 1024 * MIB}
    return plan_token_pool(
        load_model(model), load_gpu(gpu), tensor_parallel_size=ranks, **(settings | changes)
    )


def test_pool_is_what_the_share_leaves_after_weights() -> None:
    p = pool()
    free = (81090 - 1024) * MIB
    assert p.mem_fraction_static == 0.835
    assert p.rest_bytes == round(free * 0.835) - 16_060_522_496
    assert p.cell_bytes == 32 * 4096
    assert p.max_total_num_tokens == p.rest_bytes // (32 * 4096)
    assert p.max_req_input_len == 131_072 - 6
    assert p.request_slots == 2048  # tokens / length x 512 is less
    assert p.max_running_requests == 2048
    for word in ("kept free", "token pool", "max_running_requests"):
        assert word in p.explain()


def test_pages_are_whole() -> None:
    p = pool(page_size=64)
    assert p.max_total_num_tokens % 64 == 0
    assert 0 <= pool().max_total_num_tokens - p.max_total_num_tokens < 64


def test_drafts_enlarge_the_pool_after_the_division_and_limit_requests() -> None:
    eagle = Speculation("EAGLE")
    p = pool(speculation=eagle)
    assert p.mem_fraction_static == 0.81
    assert p.max_running_requests == 48
    assert p.max_total_num_tokens == p.rest_bytes // p.cell_bytes + 48 * (5 * 4 + 8) + 100
    assert pool(speculation=Speculation("NGRAM")).max_running_requests == 48
    assert pool(speculation=eagle, max_running_requests=16).max_running_requests == 16


def test_request_limits() -> None:
    short = pool(context_len=1000)
    assert short.request_slots == 4096
    assert short.max_running_requests == 4096
    assert short.max_req_input_len == 994
    few = pool("llama-3.1-70b", "h100", 2, fraction=0.95)
    assert few.max_running_requests == min(few.max_total_num_tokens // 2, few.request_slots)
    assert pool(max_running_requests=64).max_running_requests == 64


def test_latent_attention_counts_one_vector_and_no_indexer() -> None:
    p = pool("deepseek-v3.2", "h200", 8, memory_mib=143771)
    assert p.cell_bytes == 61 * 1152


def test_sliding_layers_have_a_pool_of_their_own_where_asked() -> None:
    whole, split = pool("gpt-oss-20b"), pool("gpt-oss-20b", hybrid_swa=True)
    assert whole.swa_tokens is None
    assert split.max_total_num_tokens == int(whole.max_total_num_tokens * 24 / (0.8 * 12 + 12))
    assert split.swa_tokens == int(split.max_total_num_tokens * 0.8)


def test_attention_data_parallelism_replicates_heads() -> None:
    arguments: dict[str, Any] = {"data_parallel_size": 4, "rank_weight_bytes": 20 * 2**30}
    p = pool("qwen3-30b-a3b", "h100", 4, **arguments)
    assert p.cell_bytes == 48 * 4 * 128 * 2 * 2
    assert p.chunked_prefill_size == 2048
    with pytest.raises(ConfigError, match="replicates attention weights"):
        pool("qwen3-30b-a3b", "h100", 4, data_parallel_size=4)
    with pytest.raises(ConfigError, match="must divide"):
        pool("qwen3-30b-a3b", "h100", 4, data_parallel_size=3)


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"page_size": 0}, "page_size"),
        ({"fraction": 1.0}, "mem_fraction_static"),
        ({"memory_mib": True}, "memory_mib"),
        ({"memory_mib": 3000}, "memory_mib"),
        ({"model": "llama-3.1-70b"}, "hardware.gpu"),
        ({"max_running_requests": 0}, "max_running_requests"),
    ],
)
def test_bad_input_is_refused(changes: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        pool(**changes)
    assert path in {issue.path for issue in caught.value.issues}
