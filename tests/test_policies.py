"""Schedulers and orderings through the public interface: configuration, refusals, the caller's own policy."""

import json
from pathlib import Path
from typing import Any

import pytest

import frontier
from frontier.errors import ConfigError, SimulationError
from frontier.lowering import lower

BASE: dict[str, Any] = {
    "model": "llama-3.1-8b",
    "hardware": {"gpu": "h100"},
    "engine": {
        "max_model_len": 4096,
        "num_gpu_blocks_override": 600,
        "step_time": {"linear": {"per_step": "10ms", "per_prefill_token": "20us"}},
    },
    "workload": {
        "synthetic": {
            "arrivals": {"poisson": {"rate": "12/s"}},
            "num_requests": 120,
            "prompt_tokens": {"uniform": {"min": 20, "max": 1200}},
            "output_tokens": {"uniform": {"min": 2, "max": 200}},
            "sessions": 4,
            "max_priority": 2,
        }
    },
    "objectives": {"ttft": "2s", "e2e": "10s"},
}
SCHEDULERS: tuple[Any, ...] = (
    None,
    "vllm_v0",
    "sarathi",
    {"orca": {"reservation": "oracle"}},
    {"static": {"max_batch_size": 16}},
    "tensorrt_llm",
    {"tensorrt_llm": {"capacity_policy": "max_utilization", "enable_chunked_context": True}},
)
ORDERS: tuple[Any, ...] = (
    "fcfs",
    "priority",
    "sjf",
    {"srpt": {"preemptive": False}},
    "edf",
    {"least_slack": {"per_prefill_token": "20us", "per_decode_token": "12ms"}},
    {"mlfq": {"preemptive": False, "starvation": "20s"}},
    "c_mlfq",
    "vtc",
    {"expression": "prompt_tokens + 10 * predicted_output_tokens - 100 * waiting_time"},
)


def scenario(**engine: Any) -> frontier.Scenario:
    return frontier.Scenario.model_validate({**BASE, "engine": {**BASE["engine"], **engine}})


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=str)
def test_all_requests_are_served(scheduler: Any, order: Any) -> None:
    result = frontier.simulate(scenario(scheduler=scheduler, scheduling_policy=order))
    requests = result.requests
    assert (requests["status"] == "finished").all()
    assert (requests["generated_tokens"] == requests["output_tokens"]).all()


def test_every_scheduler_and_order_is_another() -> None:
    digests = [frontier.simulate(scenario(scheduler=each)).digest for each in SCHEDULERS]
    assert len(set(digests)) == len(digests)
    preemptive: tuple[Any, ...] = (
        {"srpt": {"preemptive": True}},
        {"edf": {"by_priority": ["1s", "9s"], "preemptive": True}},
        {"mlfq": {"quantum_tokens": 8}},
    )
    same_as_others = (
        "edf",
        ORDERS[3],
        ORDERS[6],
    )  # one class, no displacement, queues wider than all prompts
    orders = (*(each for each in ORDERS if each not in same_as_others), *preemptive)
    digests = [frontier.simulate(scenario(scheduling_policy=each, max_num_seqs=8)).digest for each in orders]
    assert len(set(digests)) == len(digests)


def test_short_jobs_first_lowers_the_mean_latency() -> None:
    def mean(order: Any) -> float:
        requests = frontier.simulate(scenario(scheduling_policy=order, max_num_seqs=8)).requests
        return float(requests["e2el_s"].mean())

    fcfs = mean("fcfs")
    sjf, srpt = (mean({order: {"by": "output"}}) for order in ("sjf", "srpt"))
    assert sjf < 0.8 * fcfs
    assert srpt < 0.8 * fcfs
    assert sjf < mean({"sjf": {"by": "output", "error": 3}}) < fcfs * 1.2


def test_a_function_ranks_requests_as_an_expression_of_the_same_facts_does() -> None:
    seen: list[dict[str, Any]] = []

    def longest_first(facts: dict[str, Any]) -> int:
        seen.append(facts)
        return -int(facts["prompt_tokens"])

    few = {"max_num_seqs": 4}
    ours = frontier.simulate(scenario(**few), policy=longest_first)
    assert (
        ours.digest
        == frontier.simulate(scenario(scheduling_policy={"expression": "-prompt_tokens"}, **few)).digest
    )
    assert ours.digest != frontier.simulate(scenario(**few)).digest
    assert [facts["request"] for facts in seen] == list(range(120))
    assert {facts["session"] for facts in seen} == {0, 1, 2, 3}
    assert max(facts["num_running"] for facts in seen) == 4
    assert max(facts["num_waiting"] for facts in seen) > 4


@pytest.mark.parametrize(
    ("policy", "part"),
    [
        (lambda facts: 1 // (facts["request"] - 3), "request 3: ZeroDivisionError"),
        (lambda _: float("nan"), "request 0: its rank is not a number"),
        (lambda _: "first", "request 0: TypeError"),
    ],
)
def test_a_function_that_fails_names_the_request(policy: Any, part: str) -> None:
    with pytest.raises(SimulationError, match=part):
        frontier.simulate(scenario(), policy=policy)


def test_a_function_stands_alone() -> None:
    with pytest.raises(ConfigError, match=r"engine\.scheduling_policy: was 'sjf'"):
        frontier.simulate(scenario(scheduling_policy="sjf"), policy=lambda _: 0)
    with pytest.raises(ConfigError, match="policy: was int, must be a function"):
        frontier.simulate(scenario(), policy=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("engine", "path", "part"),
    [
        (
            {"scheduler": "sarathi", "watermark": 0.1},
            "engine.watermark",
            "has no effect with engine.scheduler.sarathi",
        ),
        (
            {
                "scheduler": "sarathi",
                "speculative": {"method": "ngram", "num_speculative_tokens": 2, "acceptance": 0.5},
            },
            "engine.speculative",
            "has no effect with engine.scheduler.sarathi",
        ),
        (
            {"scheduler": "static", "pipeline_parallel_size": 2},
            "engine.pipeline_parallel_size",
            "does not go with engine.scheduler.static",
        ),
        (
            {"scheduler": "sarathi", "kv_offloading_size": 8},
            "engine.kv_offloading_size",
            "no KV below the device",
        ),
        ({"name": "sglang", "scheduler": "orca"}, "engine.scheduler", "has no effect on sglang"),
        (
            {"name": "sglang", "scheduling_policy": "sjf"},
            "engine.scheduling_policy",
            "has no effect on sglang",
        ),
        ({"scheduler": "orca", "max_num_seqs": 4}, "engine.max_num_seqs", "has no effect"),
        (
            {"scheduler": {"vllm_v0": {"max_num_batched_tokens": 1000}}},
            "engine.scheduler.vllm_v0.max_num_batched_tokens",
            "at least max_model_len (4096)",
        ),
        (
            {"scheduler": {"tensorrt_llm": {"capacity_policy": "max_utilization", "max_num_tokens": 2048}}},
            "engine.scheduler.tensorrt_llm.max_num_tokens",
            "enable_chunked_context",
        ),
        (
            {"scheduler": "orca", "scheduling_policy": "srpt"},
            "engine.scheduling_policy.srpt.preemptive",
            "does not do",
        ),
        (
            {"scheduling_policy": {"expression": "promt_tokens"}},
            "engine.scheduling_policy.expression.value",
            "is no field",
        ),
        (
            {"scheduling_policy": {"expression": "1 +"}},
            "engine.scheduling_policy.expression.value",
            "at character 4",
        ),
        (
            {"scheduling_policy": {"expression": {"value": "now", "preemptive": True}}},
            "engine.scheduling_policy.expression.value",
            "cannot be preemptive",
        ),
        (
            {"scheduling_policy": {"edf": {"objective": "e2e", "by_priority": ["1s"]}}},
            "engine.scheduling_policy.edf.objective",
            "has no effect",
        ),
        (
            {"scheduling_policy": {"expression": {"value": "prompt_tokens", "error": 1}}},
            "engine.scheduling_policy.expression.error",
            "has no effect",
        ),
        (
            {"scheduling_policy": {"expression": {"value": "prompt_tokens", "objective": "e2e"}}},
            "engine.scheduling_policy.expression.objective",
            "has no effect",
        ),
        (
            {"scheduling_policy": {"c_mlfq": {"small_return_tokens": 9, "large_return_tokens": 9}}},
            "engine.scheduling_policy.c_mlfq.small_return_tokens",
            "less than large_return_tokens",
        ),
        ({"step_time": {"tables": "nowhere.json"}}, "engine.step_time.tables.path", "no such file"),
    ],
)
def test_what_makes_no_sense_is_refused(engine: dict[str, Any], path: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        scenario(**engine)
    found = {issue.path: issue.message for issue in caught.value.issues}
    assert part in found[path]


def test_schedulers_count_the_tokens_that_context_parallel_ranks_hold_together() -> None:
    def block_size(**engine: Any) -> int:
        chosen = {"scheduler": "sarathi", "tensor_parallel_size": 4, **engine}
        values = {**BASE, "model": "qwen3-30b-a3b", "engine": {**BASE["engine"], **chosen}}
        size = lower(frontier.Scenario.model_validate(values)).plan["clusters"][0]["scheduler"]["block_size"]
        assert isinstance(size, int)
        return size

    assert block_size(tensor_parallel_size=8, decode_context_parallel_size=2) == 2 * block_size()


def test_schedulers_keep_whole_contexts_under_sliding_windows() -> None:
    def planned(**engine: Any) -> Any:
        values = {**BASE, "model": "gpt-oss-20b", "engine": {"max_model_len": 4096, **engine}}
        return lower(frontier.Scenario.model_validate(values)).resolved.memory

    own, whole, sarathi = (
        planned(),
        planned(disable_hybrid_kv_cache_manager=True),
        planned(scheduler="sarathi"),
    )
    assert own.kv_group_windows
    assert not whole.kv_group_windows
    assert not sarathi.kv_group_windows
    assert sarathi.bytes_per_block == whole.bytes_per_block
    with pytest.raises(ConfigError, match=r"manager: has no effect with engine\.scheduler\.sarathi"):
        planned(scheduler="sarathi", disable_hybrid_kv_cache_manager=True)


@pytest.mark.parametrize(
    ("scheduler", "part"),
    [
        ("sarathi", "cannot be with engine.scheduler.sarathi"),
        (
            {"tensorrt_llm": {"enable_block_reuse": False}},
            "needs engine.scheduler.tensorrt_llm.enable_block_reuse to be true",
        ),
    ],
)
def test_routing_by_prefixes_needs_a_scheduler_that_keeps_them(scheduler: Any, part: str) -> None:
    values = {**BASE, "engine": {**BASE["engine"], "scheduler": scheduler}}
    with pytest.raises(ConfigError) as caught:
        frontier.Scenario.model_validate(values | {"cluster": {"router": {"policy": "prefix_aware"}}})
    assert part in caught.value.issues[0].message


def test_sglang_has_orders_of_its_own() -> None:
    values = {**BASE, "engine": {"name": "sglang", "step_time": BASE["engine"]["step_time"]}}
    with pytest.raises(ConfigError, match=r"policy: was given for engine sglang"):
        frontier.simulate(frontier.Scenario.model_validate(values), policy=lambda _: 0)


def test_policies_say_what_they_need() -> None:
    for order, missing, path in (
        ("edf", "objectives", "engine.scheduling_policy.edf.objective"),
        ("vtc", "sessions", "engine.scheduling_policy"),
    ):
        values = json.loads(json.dumps(BASE))
        values["engine"]["scheduling_policy"] = order
        if missing == "objectives":
            del values["objectives"]
        else:
            del values["workload"]["synthetic"]["sessions"]
        with pytest.raises(ConfigError) as caught:
            frontier.Scenario.model_validate(values)
        assert path in {issue.path for issue in caught.value.issues}


def test_tables_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "tables.json"
    attention = {
        "first": [seqs for seqs in range(1, 129) for _ in range(64)],
        "second": [64 * step for _ in range(1, 129) for step in range(1, 65)],
        "time_s": [1e-4] * 128 * 64,
    }
    tables = {
        "tokens_s": [0.01] * 8192,
        "decode": attention,
        "kv_granularity": 64,
        "prefill_batching_factor": 1.0,
    }
    prefill = {"first": [0], "second": [100], "time_s": [0.002]}
    path.write_text(json.dumps({**tables, "prefill": prefill}))
    lengths = {
        "synthetic": {"arrivals": "burst", "num_requests": 1, "prompt_tokens": 100, "output_tokens": 3}
    }
    base = {
        **BASE,
        "workload": lengths,
        "engine": {"step_time": {"tables": str(path)}, "max_model_len": 4096},
    }
    result = frontier.simulate(base)
    assert result.step_time == "tables"
    assert result.requests["e2el_s"].to_list() == pytest.approx([0.012 + 2 * 0.0101], abs=1e-9)
    base["workload"]["synthetic"]["prompt_tokens"] = 101
    with pytest.raises(SimulationError, match="no entry for prefill attention of 101 tokens after 0"):
        frontier.simulate(base)
    for text, part in (("{", "cannot be read as JSON"), ("[]", "must have exactly"), ("{}", "has nothing")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=part):
            lower(frontier.Scenario.model_validate(base))
