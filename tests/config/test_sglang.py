"""SGLang engines: their own settings, what follows from them, and what is refused."""

from collections.abc import Callable
from typing import Any

import pytest
from test_fields_have_effect import SGLANG

from frontier.config import Scenario
from frontier.errors import ConfigError, DoesNotFitError, Issue
from frontier.lowering import lower
from frontier.memory.sglang import SglangPlan

Problems = Callable[..., dict[str, Issue]]


def sglang(**settings: Any) -> dict[str, Any]:
    return {"name": "sglang", "sglang": settings}


def test_what_is_left_out_follows_the_server_of_the_version(base: Scenario) -> None:
    scenario = Scenario.from_dict({**base.to_dict(), "engine": {"name": "sglang"}})
    assert scenario.engine.version == "0.5.3"
    lowered = lower(scenario)
    memory = lowered.resolved.memory
    assert isinstance(memory, SglangPlan)
    plan = lowered.plan["clusters"][0]["scheduler"]
    assert plan == {
        "kind": "sglang",
        "max_total_tokens": memory.max_total_num_tokens,
        "max_running_requests": 2048,
        "context_length": 131072,
        "chunked_prefill_size": 8192,
        "max_prefill_tokens": 16384,
        "schedule_policy": "fcfs",
        "schedule_conservativeness": 1.0,
        "disable_radix_cache": False,
        "radix_eviction_policy": "lru",
        "enable_mixed_chunk": False,
        "disable_overlap_schedule": False,
        "enable_priority_scheduling": False,
        "priority_scheduling_preemption_threshold": 10,
        "schedule_low_priority_values_first": False,
    }
    assert lowered.plan["clusters"][0]["step_time"]["cpu"]["overlapped"] is True


def test_the_pool_follows_the_memory_formula(base: Scenario) -> None:
    def pool(**settings: Any) -> SglangPlan:
        plan = base.with_({**SGLANG, "engine.sglang": settings}).resolve().memory
        assert isinstance(plan, SglangPlan)
        return plan

    plain = pool()
    # h100: R = 512 + 1.5 * 8192 + 2 * 256 + 128 MiB of M = 81,089 MiB as the driver reports it.
    assert plain.mem_fraction_static == pytest.approx((81089 - 13440) / 81089, abs=5e-4)
    assert pool(chunked_prefill_size=16384).mem_fraction_static < plain.mem_fraction_static
    assert pool(cuda_graph_max_bs=1024).mem_fraction_static < plain.mem_fraction_static
    unchunked = pool(chunked_prefill_size=-1)
    assert (unchunked.chunked_prefill_size, unchunked.mem_fraction_static) == (-1, 0.874)
    assert pool(max_total_tokens=10_000).max_total_num_tokens == 10_000
    assert pool(max_total_tokens=10**9).max_total_num_tokens == plain.max_total_num_tokens
    assert pool(max_running_requests=5000).max_running_requests == 5000


def test_the_longest_request_leaves_room(base: Scenario) -> None:
    resolved = base.with_({**SGLANG, "engine.sglang.max_total_tokens": 5000}).resolve()
    assert (resolved.max_model_len, resolved.block_size, resolved.num_blocks) == (4998, 1, 5001)


@pytest.mark.parametrize(
    ("engine", "path", "message"),
    [
        ({"sglang": {"max_prefill_tokens": 5}}, "engine.sglang", "has no effect on vllm"),
        ({"name": "sglang", "version": "0.32"}, "engine.version", "a version of vLLM"),
        ({"version": "0.5.3"}, "engine.version", "a version of SGLang"),
        ({"name": "sglang", "version": "0.5.4"}, "engine.version", "0.5.3 of sglang"),
        (
            {"name": "sglang", "max_num_seqs": 64},
            "engine.max_num_seqs",
            "has no effect on sglang; remove it (SGLang has engine.sglang.max_running_requests)",
        ),
        ({"name": "sglang", "enable_prefix_caching": False}, "engine.enable_prefix_caching", "disable_radix"),
        (
            {"name": "sglang", "pipeline_parallel_size": 2},
            "engine.pipeline_parallel_size",
            "remove it (SGLang's own --pipeline-parallel-size is not modelled)",
        ),
        ({"name": "sglang", "quantization": "awq"}, "engine.quantization", "give one that is (allowed: fp8)"),
        (
            {"name": "sglang", "quantization": "w8a8_int8"},
            "engine.quantization",
            "a scheme of SGLang that is not modelled",
        ),
        ({"name": "sglang", "quantization": "fp8_per_block"}, "engine.quantization", "(allowed: fp8, awq,"),
        ({"name": "sglang", "kv_cache_dtype": "fp8"}, "engine.kv_cache_dtype", "fp8_e4m3"),
        (sglang(page_size=16), "engine.sglang.page_size", "pages of several tokens are not modelled"),
        (sglang(schedule_policy="random"), "engine.sglang.schedule_policy", "'random'"),
        (sglang(chunked_prefill_size=0), "engine.sglang.chunked_prefill_size", "must be -1 (no chunks)"),
        (sglang(mem_fraction_static=1.0), "engine.sglang.mem_fraction_static", "between 0 and 1"),
        (sglang(context_length=10**6), "engine.sglang.context_length", "the model allows at most 131072"),
        (sglang(max_total_tokens=6), "engine.sglang.max_total_tokens", "too small for any prompt"),
        (
            sglang(enable_mixed_chunk=True, chunked_prefill_size=-1),
            "engine.sglang.enable_mixed_chunk",
            "without effect",
        ),
        (
            sglang(disable_radix_cache=True, radix_eviction_policy="lru"),
            "engine.sglang.radix_eviction_policy",
            "no effect",
        ),
        (
            sglang(schedule_low_priority_values_first=True),
            "engine.sglang.schedule_low_priority_values_first",
            "needs enable_priority_scheduling",
        ),
        (
            sglang(priority_scheduling_preemption_threshold=1),
            "engine.sglang.priority_scheduling_preemption_threshold",
            "needs enable_priority_scheduling",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("engine.") else "",
)
def test_wrong_settings_are_refused(
    problems: Problems, engine: dict[str, Any], path: str, message: str
) -> None:
    assert message in str(problems(engine=engine)[path])


def test_models_with_another_pool_are_refused(problems: Problems) -> None:
    assert "page_size 64" in str(problems(model="deepseek-v3.2", engine={"name": "sglang"})["model"])
    scenario = {"model": "gpt-oss-20b", "hardware": "h100", "engine": {"name": "sglang"}}
    assert Scenario.from_dict({**scenario, "workload": SHORT}).resolve().model.name == "gpt-oss-20b"


def test_a_model_that_does_not_fit_is_refused(problems: Problems) -> None:
    found = problems(model="llama-3.1-405b", engine={"name": "sglang"})
    assert "no memory for the token pool" in str(found["hardware.gpu"])
    with pytest.raises(DoesNotFitError) as error:
        Scenario.from_dict(
            {
                "model": "llama-3.1-405b",
                "hardware": "h100",
                "engine": {"name": "sglang"},
                "workload": SHORT,
            }
        )
    assert error.value.memory.kv_cache_tokens == 0
    assert "weights" in error.value.memory.explain()


def test_prefix_aware_routing_needs_the_radix_cache(base: Scenario) -> None:
    aware = {**SGLANG, "cluster.router.policy": "prefix_aware"}
    base.with_(aware)
    with pytest.raises(ConfigError, match="disable_radix_cache to be false"):
        base.with_({**aware, "engine.sglang.disable_radix_cache": True})


def test_what_sglang_does_otherwise_is_a_warning(base: Scenario) -> None:
    changes = {"engine.sglang": {"radix_eviction_policy": "lfu"}}
    assert any("lfu equals lru" in text for text in base.with_({**SGLANG, **changes}).resolve().warnings)
    changes = {"engine.sglang": {"schedule_policy": "lpm", "disable_radix_cache": True}}
    assert any("becomes fcfs" in text for text in base.with_({**SGLANG, **changes}).resolve().warnings)


SHORT: dict[str, Any] = {
    "synthetic": {
        "arrivals": "burst",
        "num_requests": 2,
        "prompt_tokens": 16,
        "output_tokens": 4,
    }
}


def test_sglang_converts_a_16_bit_checkpoint_to_fp8(base: Scenario) -> None:
    plain = base.with_(SGLANG).resolve()
    narrow = base.with_({**SGLANG, "engine.quantization": "fp8"}).resolve()
    linear = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    scales = 4 * 32 * (4096 + 2 * 1024 + 4096 + 2 * 14336 + 4096)  # of each output channel, in 32 bits
    assert plain.memory.weights_bytes - narrow.memory.weights_bytes == linear - scales
    assert narrow.num_blocks > plain.num_blocks


def test_nodes_of_the_hardware_section_hold_for_sglang(base: Scenario) -> None:
    tp4 = {"engine": {"name": "sglang", "tensor_parallel_size": 4}}
    near, far = (base.with_({**tp4, "hardware.gpus_per_node": size}).resolve() for size in (4, 2))
    assert (near.layout.nodes, far.layout.nodes) == (1, 2)
    with pytest.raises(ConfigError, match=r"hardware\.placement: has no effect"):
        base.with_({**tp4, "hardware.placement": "tp_dp_pp"})
