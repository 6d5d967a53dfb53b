"""Attention and FFN clusters: what they are checked for, and the plan that they lower to."""

import json
from typing import Any

import pytest
from afd_clusters import ATTENTION, DECODE, FFN, LINK, PREFILL, over, plain, scenario

from frontier.afd_lowering import AfdHost, AfdTransfer, afd_step_time
from frontier.config import Scenario
from frontier.errors import ConfigError, DoesNotFitError, Issue
from frontier.hardware import load_gpu
from frontier.launch import to_vllm
from frontier.lowering import lower
from frontier.models import load_model, operator_program
from frontier.models.afd_sides import attention_side, ffn_side, weight_bytes

MOE = {"moe": {"routing": {"power_law": {"exponent": 1}}}}


def problems(*clusters: dict[str, Any], **sections: Any) -> dict[str, Issue]:
    """Return what is wrong, by path."""
    with pytest.raises(ConfigError) as caught:
        scenario(*clusters, **sections)
    return {issue.path: issue for issue in caught.value.issues}


def test_a_unit_is_one_cluster_of_the_plan_with_the_step_time_of_both_sides() -> None:
    lowered = lower(scenario())
    prefill, unit = lowered.plan["clusters"]
    assert (prefill["name"], unit["name"]) == ("prefill", "attention")
    assert [leg["clusters"] for leg in lowered.plan["paths"][0]["legs"]] == [[0], [1]]
    step_time = unit["step_time"]
    assert step_time["kind"] == "afd"
    assert (step_time["micro_batches"], step_time["attention"]["layout"]["data_parallel_size"]) == (3, 2)
    assert step_time["ffn"]["layout"]["data_parallel_size"] == 4
    assert unit["data_parallel"]["size"] == 2
    assert unit["data_parallel"]["lock_step"] is not None


def test_it_lowers_to_what_the_fidelity_layer_makes_of_the_same_unit() -> None:
    """The golden plan: everything written out by hand, hosts and graphs included."""
    graphs = {"cuda_graph": {"mode": "full_decode_only", "capture_sizes": [1, 2, 4, 8]}, "max_num_seqs": 12}
    hosts = {"cpu_overhead": {"per_step": "2ms", "per_seq": "3us", "per_kernel_launch": "7us"}}
    given = scenario(
        PREFILL,
        over(ATTENTION, engine={**graphs, **hosts}, hardware={"gpu": "h20"}),
        over(FFN, engine={"cpu_overhead": {"per_graph_launch": "5us"}}),
        disaggregation={**LINK, "afd": {"micro_batches": 2, "a2f_dtype": "fp8"}},
    )
    h20, h100 = load_gpu("h20"), load_gpu("h100")
    view = given.view("attention")
    assert view.unit is not None
    launches = {"per_graph_kernel_s": 9e-7}
    expected = afd_step_time(
        load_model("qwen3-30b-a3b"),
        view.unit.layout,
        attention_gpu=h20,
        ffn_gpu=h100,
        a2f=AfdTransfer.over_network("fp8", h20, h100),
        f2a=AfdTransfer.over_network("bf16", h20, h100),
        attention_host=AfdHost(
            per_step_s=2e-3,
            per_seq_s=3e-6,
            per_kernel_launch_s=7e-6,
            per_graph_launch_s=1e-5,
            capture_sizes=(1, 2, 4, 8),
            **launches,
        ),
        # Graphs for one attention rank (dense layers) and for both (experts), up to 6 requests of each.
        ffn_host=AfdHost(
            per_kernel_launch_s=29e-6,
            per_graph_launch_s=5e-6,
            capture_sizes=(1, 2, 4, 8, 16),
            **launches,
        ),
    )
    found = lower(given).plan["clusters"][1]["step_time"]
    assert json.loads(json.dumps(found)) == json.loads(json.dumps(expected))


@pytest.mark.parametrize("name", ["qwen3-30b-a3b", "deepseek-v2-lite", "llama-3.1-8b"])
def test_both_sides_hold_the_weights_of_the_model_once(name: str) -> None:
    spec = load_model(name)
    sides = attention_side(spec, 1, kv_cache_dtype="auto", fp8_attention=False), ffn_side(spec, 1, 1, 0)
    whole = operator_program(spec, tensor_parallel_size=1)
    assert sum(map(weight_bytes, sides)) == sum(operator.weight_bytes for operator in whole)


def test_attention_ranks_have_the_memory_of_their_own_weights_alone() -> None:
    given = scenario()
    attention, ffn = given.view("attention").facts, given.view("ffn").facts
    spec = load_model("qwen3-30b-a3b")
    assert attention.memory.weights_bytes == weight_bytes(
        attention_side(spec, 1, kv_cache_dtype="auto", fp8_attention=False)
    )
    assert ffn.memory.weights_bytes == weight_bytes(ffn_side(spec, 1, 4, 0))
    alone = Scenario.from_dict(
        {**plain(), "clusters": [{"role": "colocated"}], "disaggregation": None}
    ).resolve()
    # The same GPU with the whole model: what the FFN takes there is KV blocks here.
    assert attention.num_blocks > alone.num_blocks + 50 * 2**30 // alone.memory.bytes_per_block
    assert (attention.gpus_total, ffn.gpus_total) == (2, 4)


def test_ffn_ranks_must_fit() -> None:
    big = {"model": "qwen3-235b-a22b"}
    with pytest.raises(DoesNotFitError, match="FFN ranks"):
        scenario(
            over(PREFILL, engine={"tensor_parallel_size": 8}),
            over(ATTENTION, engine={"tensor_parallel_size": 4}),
            FFN,
            **big,
        )
    many = over(FFN, engine={"data_parallel_size": 8})
    prefill = over(PREFILL, engine={"tensor_parallel_size": 8})
    assert scenario(prefill, over(ATTENTION, engine={"tensor_parallel_size": 4}), many, **big)
    # Micro-batches and graphs count beside the weights (54.0 GiB of 54.5), and only both sides know them.
    tight = over(many, engine={"gpu_memory_utilization": 0.675})
    found = problems(prefill, over(ATTENTION, engine={"tensor_parallel_size": 4}), tight, **big)
    assert "micro-batches and graphs" in found["hardware.gpu"].message


@pytest.mark.parametrize(
    ("clusters", "path", "words"),
    [
        ([ATTENTION], "clusters", "have the roles attention"),
        ([ATTENTION, DECODE], "clusters", "have the roles attention, decode"),
        ([PREFILL, ATTENTION, FFN, DECODE], "clusters", "with prefill clusters before them, or decode"),
        ([PREFILL, ATTENTION, FFN, {"role": "colocated"}], "clusters", "must have colocated alone"),
        ([PREFILL, ATTENTION], "clusters", "have the roles prefill, attention"),
        ([PREFILL, ATTENTION, over(ATTENTION, name="b"), FFN], "clusters", "as many of each"),
        ([PREFILL, over(ATTENTION, replicas=2), FFN], "clusters.2.replicas", "has 2: every attention"),
        ([PREFILL, ATTENTION, over(FFN, router="random")], "clusters.2.router", "no effect"),
        # Units take KV as decode clusters do.
        (
            [over(PREFILL, engine={"kv_cache_dtype": "fp8"}), ATTENTION, FFN],
            "clusters.1.engine.kv_cache_dtype",
            "but to fp8",
        ),
        (
            [over(PREFILL, engine={"block_size": 32}), ATTENTION, FFN],
            "clusters.1.engine.block_size",
            "blocks of unlike size",
        ),
        (
            [over(PREFILL, engine={"version": "0.30"}), ATTENTION, FFN],
            "clusters.1.engine.version",
            "one release alone",
        ),
        ([PREFILL, ATTENTION, over(FFN, weight=2)], "clusters.2.weight", "no effect"),
        (
            [PREFILL, ATTENTION, over(FFN, hardware={"gpus_per_node": 4})],
            "clusters.2.hardware.gpus_per_node",
            "",
        ),
        (
            [PREFILL, ATTENTION, over(FFN, engine={"max_num_seqs": 8})],
            "clusters.2.engine.max_num_seqs",
            "was 8, has no effect: FFN ranks have no requests",
        ),
        (
            [PREFILL, ATTENTION, over(FFN, engine={"enable_expert_parallel": True})],
            "clusters.2.engine.enable_expert_parallel",
            "whole experts are spread",
        ),
        (
            [PREFILL, ATTENTION, over(FFN, engine={"cpu_overhead": {"per_step": "1ms"}})],
            "clusters.2.engine.cpu_overhead.per_step",
            "prepare steps",
        ),
        (
            [PREFILL, ATTENTION, over(FFN, engine={"moe": {"all2all_backend": "deepep_low_latency"}})],
            "clusters.2.engine.moe.all2all_backend",
            "in micro-batches",
        ),
        (
            [PREFILL, ATTENTION, over(FFN, engine={"moe": {"eplb": {"use_async": False}}})],
            "clusters.2.engine.moe.eplb.use_async",
            "between steps",
        ),
        (
            [PREFILL, ATTENTION, over(FFN, engine={"cuda_graph": "piecewise"})],
            "clusters.2.engine.cuda_graph.mode",
            "no attention to cut graphs at",
        ),
        ([PREFILL, over(ATTENTION, engine=MOE), FFN], "clusters.1.engine.moe", "those of the FFN cluster"),
        (
            [PREFILL, over(ATTENTION, engine={"enable_expert_parallel": False}), FFN],
            "clusters.1.engine.enable_expert_parallel",
            "no experts",
        ),
        (
            [PREFILL, over(ATTENTION, engine={"pipeline_parallel_size": 2}), FFN],
            "clusters.1.engine.pipeline_parallel_size",
            "pipelines of layers",
        ),
        (
            [PREFILL, over(ATTENTION, engine={"step_time": {"linear": {"per_step": "1ms"}}}), FFN],
            "clusters.1.engine.step_time",
            "operator by operator",
        ),
        (
            [PREFILL, ATTENTION, over(FFN, engine={"data_parallel_size": 7})],
            "clusters.2.engine.data_parallel_size",
            "128 experts cannot be spread evenly",
        ),
        (
            [PREFILL, over(ATTENTION, engine={"tensor_parallel_size": 16}), FFN],
            "clusters.1.engine.tensor_parallel_size",
            "lies on one node",
        ),
        (
            [PREFILL, ATTENTION, over(FFN, engine={"version": "0.20"})],
            "clusters.2.engine.version",
            "cluster 'attention' has 0.32",
        ),
        (
            [PREFILL, ATTENTION, over(FFN, engine={"quantization": "fp8_per_block"})],
            "clusters.2.engine.quantization",
            "other weights",
        ),
        (
            [PREFILL, ATTENTION, over(FFN, hardware={"gpu": "rtx-4090"}, engine={"data_parallel_size": 16})],
            "clusters.2.hardware.gpu",
            "network between its nodes",
        ),
    ],
)
def test_what_means_nothing_or_is_not_modelled_is_refused(
    clusters: list[dict[str, Any]], path: str, words: str
) -> None:
    assert words in problems(*clusters)[path].message


def test_units_form_programs_alone_before_and_after_other_clusters() -> None:
    def legs(*clusters: dict[str, Any], **sections: Any) -> list[tuple[list[int], bool]]:
        plan = lower(scenario(*clusters, **sections)).plan
        found = plan["paths"][0]["legs"] if "paths" in plan else []
        return [(leg["clusters"], leg["receives"] is not None) for leg in found]

    assert legs(ATTENTION, FFN, disaggregation=None) == []
    two = [over(each, name=each["role"] + name) for each in (ATTENTION, FFN) for name in "ab"]
    assert legs(*two, disaggregation=None) == [([0, 1], False)]
    assert legs(PREFILL, ATTENTION, FFN) == [([0], False), ([1], True)]
    # Prompts on the unit, tokens on a decode cluster.
    assert legs(DECODE, ATTENTION, FFN) == [([1], False), ([0], True)]


@pytest.mark.parametrize(
    ("section", "value", "clusters"),
    [
        ("kv_transfer", {"bandwidth": "1GB/s"}, [ATTENTION, FFN]),
        ("direct_below", 100, [ATTENTION, FFN]),
        ("deflect_above", 100, [ATTENTION, FFN]),
        ("balance", {"prefill": "weighted"}, [ATTENTION, FFN, DECODE]),
        ("balance", {"attention": "least_loaded"}, [ATTENTION, FFN]),
    ],
)
def test_what_hands_kv_over_means_nothing_to_units_alone(
    section: str, value: Any, clusters: list[dict[str, Any]]
) -> None:
    (found,) = problems(*clusters, disaggregation={section: value}).values()
    assert found.path.startswith(f"disaggregation.{section}")
    assert "has no effect" in found.message


@pytest.mark.parametrize(
    ("engine", "path", "words"),
    [
        ({"enable_expert_parallel": True}, "enable_expert_parallel", "attention ranks have no experts"),
        ({"moe": {"all2all_backend": "deepep_low_latency"}}, "moe.all2all_backend", "FFN ranks take no such"),
        ({"scheduler": "sarathi"}, "scheduler", "vLLM's own scheduler alone"),
        (
            {"prefill_context_parallel_size": 2},
            "prefill_context_parallel_size",
            "not modelled with attention",
        ),
        (
            {"decode_context_parallel_size": 2, "tensor_parallel_size": 8},
            "decode_context_parallel_size",
            "not modelled with attention",
        ),
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size", "pipelines of layers"),
        ({"name": "sglang"}, "name", "vLLM's rules alone"),
    ],
)
def test_what_units_alone_do_not_take_is_refused(engine: dict[str, Any], path: str, words: str) -> None:
    """Without other clusters, what stands at the top must mean something to one of the two sides."""
    alone = [over(ATTENTION, engine={"data_parallel_size": 1}), FFN]
    found = problems(*alone, engine={"step_time": "roofline", **engine}, disaggregation=None)
    assert words in found[f"engine.{path}"].message


def test_routing_at_the_top_is_that_of_ffn_ranks() -> None:
    given = scenario(ATTENTION, FFN, engine={"step_time": "roofline", **MOE}, disaggregation=None)
    (cluster,) = lower(given).plan["clusters"]
    assert cluster["step_time"]["ffn"]["moe"]["routing"] == {"kind": "power_law", "exponent": 1.0}


def test_graphs_of_ffn_ranks_hold_micro_batches_of_prompts() -> None:
    """Where units prefill, micro-batches have more rows than decodes: every size of attention has a graph."""
    few = over(ATTENTION, engine={"max_num_seqs": 12})

    def largest(*clusters: dict[str, Any], **sections: Any) -> int:
        return max(scenario(*clusters, **sections).view("ffn").facts.graphs.full_decode)

    attention = scenario(few, FFN, disaggregation=None).view("attention").facts.graphs
    sizes = {*attention.full_decode, *attention.full, *attention.piecewise}
    assert largest(PREFILL, few, FFN) == 2 * 4
    assert largest(few, FFN, disaggregation=None) == 2 * max(sizes)


def test_the_section_needs_such_clusters_and_drafts_are_refused() -> None:
    found = problems({"role": "prefill"}, {"role": "decode"}, disaggregation={**LINK, "afd": {}})
    assert "without attention and ffn" in found["disaggregation.afd"].message
    drafts = {"speculative": {"method": "ngram", "num_speculative_tokens": 2, "acceptance": 0.5}}
    found = problems(engine={"step_time": "roofline", **drafts})
    assert "drafts are not modelled" in found["engine.speculative"].message


def test_what_is_inherited_from_the_top_is_the_prefill_clusters_business() -> None:
    """Settings at the top have their effect on prefill clusters, and mean nothing to FFN ranks."""
    common = {"step_time": "roofline", "max_num_batched_tokens": 4096, "enable_prefix_caching": False}
    assert scenario(engine=common).view("ffn").facts.gpus_total == 4


def test_a_dense_model_steps_together_too() -> None:
    given = scenario(PREFILL, over(ATTENTION, engine={"dp_sync_interval": 4}), FFN, model="llama-3.1-8b")
    plan = lower(given).plan["clusters"][1]
    assert plan["data_parallel"]["lock_step"]["sync_interval"] == 4
    assert [each["kind"] for each in plan["step_time"]["classes"]] == ["dense"]


def test_predictors_of_both_sides_are_numbered_through_the_plan() -> None:
    lowered = lower(scenario(engine={"step_time": {"learned": {}}}))
    step_time = lowered.plan["clusters"][1]["step_time"]
    families = {"attention": set(), "ffn": set()}  # type: dict[str, set[str]]
    for side, found in families.items():
        for operator in (each for stage in step_time[side]["stages"] for each in stage):
            slots = operator.get("predictors") or {"predictor": operator.get("predictor")}
            found |= {lowered.identities[slot["index"]]["id"] for slot in slots.values() if slot}
    assert any("decode_attention" in name for name in families["attention"])
    assert any("fused_moe" in name for name in families["ffn"])
    assert lowered.clusters[1].step_time == "learned"
    drawn = json.loads(lowered.with_residuals(3))["clusters"][1]["step_time"]
    assert drawn["attention"]["residuals"] == drawn["ffn"]["residuals"] == {"seed": 0, "replication": 3}


def test_a_calibration_has_its_effect_on_the_side_that_has_the_operator() -> None:
    factors = {"decode_attention": 2.0, "fused_moe": 3.0}
    lowered = lower(scenario(engine={"step_time": {"learned": {"calibration": factors}}}))
    step_time = lowered.plan["clusters"][1]["step_time"]
    (experts,) = (each for stage in step_time["ffn"]["stages"] for each in stage if each["op"] == "fused_moe")
    assert experts["predictor"]["calibration"] == 3.0


def test_no_command_starts_such_clusters() -> None:
    with pytest.raises(ConfigError, match="attention or FFN ranks"):
        to_vllm(scenario(disaggregation=None))
