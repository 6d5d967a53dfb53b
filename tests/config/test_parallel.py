"""Parallelism inside a replica: what scenarios lower to, by version and model, and what is refused."""

from collections.abc import Callable
from typing import Any

import pytest

import frontier
from frontier.config import Scenario
from frontier.config.parallel import data_parallel_plan, layout_of
from frontier.errors import ConfigError, Issue
from frontier.hardware import load_gpu
from frontier.lowering import lower
from frontier.models import load_model

MOE = {"model": "qwen3-30b-a3b"}
SMALL = {
    "workload.synthetic.num_requests": 12,
    "workload.synthetic.prompt_tokens": 64,
    "workload.synthetic.output_tokens": 8,
}


def lock_step_of(base: Scenario, version: str, model: str) -> Any:
    """Return the plan's lock step as another version would have it."""
    engine = base.with_({"engine.data_parallel_size": 4}).engine.model_copy(update={"version": version})
    spec = load_model(model)
    layout = layout_of(engine, base.hardware, spec, load_gpu("h100"))
    return data_parallel_plan(engine, spec, layout)


def test_a_replica_without_data_parallelism_has_no_ranks(base: Scenario) -> None:
    assert lower(base).plan["clusters"][0]["data_parallel"] is None


RULES: dict[str, tuple[int, str, bool, int, bool, bool]] = {
    # API servers, score, rotating scan, sync interval, sync at the first step, padding without graphs
    "0.14": (1, "queues", False, 32, False, True),
    "0.16": (4, "queues", False, 32, False, True),
    "0.17": (4, "queues", False, 32, False, False),
    "0.25": (4, "queues", True, 32, False, False),
    "0.27": (4, "in_flight", True, 32, False, False),
    "0.30": (4, "in_flight", True, 16, True, False),
}


@pytest.mark.parametrize("version", RULES)
def test_the_rules_follow_the_version(base: Scenario, version: str) -> None:
    plan = lock_step_of(base, version, MOE["model"])
    servers, score, rotating, interval, first, pads = RULES[version]
    assert plan["balancer"] == {
        "kind": "vllm_scores",
        "api_servers": servers,
        "snapshot_interval_ns": 100_000_000,
        "score": score,
        "rotating": rotating,
    }
    assert plan["lock_step"] == {
        "dummy_tokens": 1,
        "sync_interval": interval,
        "sync_at_first_step": first,
        "pad_to_largest": pads,
        "prefill_schedule_interval": 1,
    }


def test_ranks_without_experts_are_independent_from_0_14_on(base: Scenario) -> None:
    assert lock_step_of(base, "0.13", "llama-3.1-8b")["lock_step"] is not None
    assert lock_step_of(base, "0.14", "llama-3.1-8b")["lock_step"] is None
    lowered = lower(base.with_({"engine.data_parallel_size": 4, "engine.tensor_parallel_size": 2}))
    assert lowered.plan["clusters"][0]["step_time"]["layout"]["data_parallel_size"] == 1
    assert lowered.resolved.gpus_per_replica == 8
    alone = lower(base.with_({"engine.tensor_parallel_size": 2}))
    assert lowered.resolved.num_blocks == alone.resolved.num_blocks


@pytest.mark.parametrize(
    ("changes", "ranks", "servers"),
    [
        ({}, 8, 8),
        ({"engine.api_server_count": 2}, 8, 2),
        ({"engine.data_parallel_external_lb": True}, 1, 1),
        ({"engine.data_parallel_hybrid_lb": True, "hardware.gpus_per_node": 4}, 4, 4),
        ({"engine.data_parallel_hybrid_lb": True, "engine.data_parallel_size_local": 2}, 2, 2),
    ],
)
def test_load_balancers_see_all_ranks_those_of_a_node_or_one(
    base: Scenario, changes: dict[str, Any], ranks: int, servers: int
) -> None:
    plan = lower(base.with_({**MOE, "engine.data_parallel_size": 8, **changes})).plan["clusters"][0][
        "data_parallel"
    ]
    assert (plan["ranks_per_balancer"], plan["balancer"]["api_servers"]) == (ranks, servers)


def test_tensor_parallelism_of_two_nodes_crosses_the_network(base: Scenario) -> None:
    wide = {"model": "llama-3.1-70b", "engine.tensor_parallel_size": 16}
    lowered = lower(base.with_(wide))
    links = lowered.plan["clusters"][0]["step_time"]["links"]
    assert links["network"]["bandwidth_bytes_per_s"] == 50e9
    sums = [
        op
        for op in lowered.plan["clusters"][0]["step_time"]["stages"][0]
        if op["name"].startswith("all_reduce")
    ]
    assert sums
    assert all((op["ranks"], op["nodes"]) == (16, 2) for op in sums)
    # Half the ranks on one node do without.
    eight = lower(base.with_({**wide, "engine.tensor_parallel_size": 8})).plan["clusters"][0]["step_time"]
    assert eight["links"]["network"] is None
    # So do 16 GPUs on nodes of 4, but four nodes deep.
    four = lower(base.with_({**wide, "hardware.gpus_per_node": 4})).plan["clusters"][0]["step_time"][
        "stages"
    ][0]
    assert {op["nodes"] for op in four if op["name"].startswith("all_reduce")} == {4}


def test_placement_decides_which_groups_leave_the_node(base: Scenario) -> None:
    spread = {**MOE, "engine.data_parallel_size": 8, "engine.pipeline_parallel_size": 2}

    def nodes(placement: str | None) -> tuple[set[int], set[int]]:
        stages = lower(base.with_({**spread, "hardware.placement": placement})).plan["clusters"][0][
            "step_time"
        ]["stages"]
        gathers = {op["nodes"] for op in stages[0] if op["name"] == "all_gather.dispatch"}
        sends = {op["nodes"] for op in stages[0] if op["name"].startswith("send_recv")}
        return gathers, sends

    assert nodes(None) == nodes("tp_pp_dp") == ({2}, {1})
    assert nodes("tp_dp_pp") == ({1}, {2})


def test_stages_have_the_layers_that_are_given(base: Scenario) -> None:
    two = {"engine.pipeline_parallel_size": 2}
    even = lower(base.with_(two)).resolved
    uneven = lower(base.with_({**two, "engine.pipeline_layer_partition": [20, 12]})).resolved
    counts = [
        [op.count for op in stage if op.name == "attention"] for stage in (*even.stages, *uneven.stages)
    ]
    assert counts == [[16], [16], [20], [12]]
    # The cache is as large as the stage with the least room allows: the one with more layers.
    assert uneven.num_blocks < even.num_blocks
    assert uneven.memory.pipeline_stage == 0
    assert even.gpus_total == 2


def test_decode_context_parallelism_spreads_blocks_over_ranks(base: Scenario) -> None:
    tp8 = {**MOE, "engine.tensor_parallel_size": 8}
    copies, dealt = (
        lower(base.with_({**tp8, "engine.decode_context_parallel_size": size})) for size in (1, 2)
    )
    assert dealt.resolved.num_blocks == copies.resolved.num_blocks
    assert (
        dealt.plan["clusters"][0]["scheduler"]["block_size"]
        == 2 * copies.plan["clusters"][0]["scheduler"]["block_size"]
    )
    assert dealt.resolved.memory.kv_cache_tokens == 2 * copies.resolved.memory.kv_cache_tokens
    assert dealt.resolved.memory.max_concurrency == 2 * copies.resolved.memory.max_concurrency

    def operators(lowered: Any) -> dict[str, Any]:
        return {op["name"]: op for op in lowered.plan["clusters"][0]["step_time"]["stages"][0]}

    one, two = operators(copies), operators(dealt)
    assert two["attention"]["kv_bytes_per_token"] == one["attention"]["kv_bytes_per_token"] / 2
    # 4 query heads of 128 in 16 bits on each of 2 ranks; outputs likewise; 32 bits per head and rank.
    assert two["all_gather.dcp_queries"]["bytes_per_row"] == 2 * 4 * 128 * 2
    assert two["reduce_scatter.dcp_output"]["bytes_per_row"] == 2 * 4 * 128 * 2
    assert two["all_gather.dcp_lse"]["bytes_per_row"] == 2 * 2 * 4 * 4
    assert {two[name]["ranks"] for name in two if "dcp" in name} == {2}
    assert not any("dcp" in name for name in one)


def test_prefill_context_parallelism_shares_prompts(base: Scenario) -> None:
    lowered = lower(base.with_({"engine.prefill_context_parallel_size": 4}))
    operators = {op["name"]: op for op in lowered.plan["clusters"][0]["step_time"]["stages"][0]}
    # 8 KV heads of 128, keys and values in 16 bits, of 4 ranks.
    assert operators["all_gather.pcp_kv"]["bytes_per_row"] == 4 * 8 * 128 * 2 * 2
    assert operators["all_gather.pcp_hidden_states"]["bytes_per_row"] == 4 * 4096 * 2
    assert lowered.resolved.gpus_total == 4
    one, four = (
        frontier.explain(
            base.with_({"engine.prefill_context_parallel_size": size, "engine.step_time": {"roofline": {}}}),
            prefill=8192,
        ).prefill
        for size in (1, 4)
    )
    assert 0.25 < four.gpu_s / one.gpu_s < 0.45
    work = [sum(op.flops for op in step.operators) for step in (one, four)]
    assert work[1] == pytest.approx(work[0], rel=0.01)


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"data_parallel_external_lb": True}, "data_parallel_external_lb", "no effect with data_parallel_size 1"),
    ({"dp_sync_interval": 8}, "dp_sync_interval", "no effect with data_parallel_size 1"),
    ({"api_server_count": 2}, "api_server_count", "no effect with data_parallel_size 1"),
    ({"data_parallel_size": 2, "dp_sync_interval": 8}, "dp_sync_interval", "do not step together"),
    (
        {"data_parallel_size": 2, "data_parallel_external_lb": True, "data_parallel_hybrid_lb": True},
        "data_parallel_hybrid_lb",
        "choose one",
    ),
    ({"data_parallel_size": 4, "data_parallel_size_local": 2}, "data_parallel_size_local", "without"),
    (
        {"data_parallel_size": 4, "data_parallel_hybrid_lb": True, "data_parallel_size_local": 3},
        "data_parallel_size_local",
        "must divide data_parallel_size (4)",
    ),
    (
        {"data_parallel_size": 2, "data_parallel_external_lb": True, "api_server_count": 2},
        "api_server_count",
        "each rank has one",
    ),
    ({"pipeline_layer_partition": [32]}, "pipeline_layer_partition", "no effect with pipeline"),
    (
        {"pipeline_parallel_size": 2, "pipeline_layer_partition": [20, 20]},
        "pipeline_layer_partition",
        "together 40, but llama-3.1-8b has 32 layers",
    ),
    (
        {"pipeline_parallel_size": 2, "pipeline_layer_partition": "32,0"},
        "pipeline_layer_partition",
        "every stage needs a layer",
    ),
    (
        {"pipeline_parallel_size": 3, "pipeline_layer_partition": [16, 16]},
        "pipeline_layer_partition",
        "has 2 numbers for 3 pipeline stages",
    ),
    ({"pipeline_parallel_size": 2, "pipeline_layer_partition": "a,b"}, "pipeline_layer_partition", "was"),
    ({"pipeline_parallel_size": 40}, "pipeline_parallel_size", "has 32 layers"),
    ({"enable_expert_parallel": True}, "enable_expert_parallel", "has no"),
    (
        {"tensor_parallel_size": 8, "decode_context_parallel_size": 2},
        "decode_context_parallel_size",
        "is not over the 8 KV heads",
    ),
    (
        {"tensor_parallel_size": 16, "decode_context_parallel_size": 4},
        "decode_context_parallel_size",
        "is held by 2 of 16 ranks only",
    ),
    ({"data_parallel_size": 5000}, "data_parallel_size", "was 5000"),
]


@pytest.mark.parametrize(("engine", "field", "words"), WRONG)
def test_what_cannot_be_is_refused(
    problems: Callable[..., dict[str, Issue]], engine: dict[str, Any], field: str, words: str
) -> None:
    found = problems(engine=engine)
    assert words in str(found[f"engine.{field}"])


def test_placements_without_effect_and_nodes_too_large_are_refused(base: Scenario) -> None:
    with pytest.raises(ConfigError, match=r"hardware\.placement.*no effect"):
        base.with_({"hardware.placement": "tp_dp_pp"})
    with pytest.raises(ConfigError, match=r"hardware\.gpus_per_node.*only 8 h100 share"):
        base.with_({"hardware.gpus_per_node": 16})
    with pytest.raises(ConfigError, match=r"prefill_context_parallel_size.*has experts"):
        base.with_({**MOE, "engine.prefill_context_parallel_size": 2})


@pytest.mark.parametrize("overlapped", [True, False])
def test_experts_make_ranks_wait_for_each_other(base: Scenario, overlapped: bool) -> None:
    ranks = {**MOE, **SMALL, "engine.data_parallel_size": 4, "engine.async_scheduling": overlapped}
    result = frontier.simulate(base.with_({**ranks, "engine.enable_expert_parallel": True}))
    assert result.totals["num_dummy_steps"] > 0
    assert result.columns.clusters[0].data_parallel_size == 4
    requests = result.requests
    assert set(requests["dp_rank"]) <= set(range(4))
    assert set(requests["replica"]) == {0}
    assert "replicas: 1 of 4 data parallel ranks" in repr(result)
    summary = result.summary().to_dict()
    assert summary["gpus"] == 4
    alone = frontier.simulate(base.with_({**SMALL, "engine.data_parallel_size": 4}))
    assert alone.totals["num_dummy_steps"] == 0
    assert len(alone.requests["dp_rank"].unique()) > 1
