"""Clusters with a role: what they take over from the top, what is wrong with them and where it is said."""

import copy
import pickle
from typing import Any

import pytest
from role_clusters import DECODE, LINK, PREFILL, WORKLOAD, plain, scenario

from frontier.config import Scenario, load
from frontier.errors import ConfigError, DoesNotFitError, Issue
from frontier.lowering import lower
from frontier.simulation import run_facts


def problems(*clusters: dict[str, Any], **sections: Any) -> dict[str, Issue]:
    """Return the issues by path of a scenario that must be refused."""
    with pytest.raises(ConfigError) as error:
        scenario(*clusters, **sections)
    return {issue.path: issue for issue in error.value.issues}


def test_a_cluster_has_the_common_engine_with_its_own_fields_over_it() -> None:
    both = scenario(
        {**PREFILL, "engine": {"max_num_batched_tokens": "16K", "cpu_overhead": {"per_seq": "5us"}}},
        {**DECODE, "hardware": "h200", "engine": {"max_num_seqs": 32}},
        engine={"tensor_parallel_size": 4, "cpu_overhead": {"per_step": "2ms"}},
    )
    prefill, decode = (view.engine for view in both.views())
    assert (prefill.tensor_parallel_size, decode.tensor_parallel_size) == (4, 4)
    assert prefill.max_num_batched_tokens == 16384
    assert decode.max_num_batched_tokens is None
    assert prefill.cpu_overhead is not None
    assert (prefill.cpu_overhead.per_step, prefill.cpu_overhead.per_seq) == (2_000_000, 5_000)
    assert [view.facts.gpu.name for view in both.views()] == ["h100", "h200"]
    assert both.resolve("decode").max_num_seqs == 32
    assert both.resolve("prefill").num_blocks < both.resolve("decode").num_blocks


def test_another_alternative_of_a_choice_replaces_it_and_null_is_the_rule_of_the_engine() -> None:
    both = scenario(
        {**PREFILL, "engine": {"step_time": {"linear": {"per_prefill_token": "1us"}}, "max_num_seqs": None}},
        {**DECODE, "engine": {"step_time": "roofline"}},
        engine={
            "tensor_parallel_size": 4,
            "max_num_seqs": 64,
            "step_time": {"linear": {"per_step": "1ms"}},
        },
    )
    prefill, decode = (view.engine for view in both.views())
    assert prefill.step_time.linear is not None
    assert (prefill.step_time.linear.per_step, prefill.step_time.linear.per_prefill_token) == (10**6, 1000)
    assert decode.step_time.chosen == "roofline"
    assert (prefill.max_num_seqs, decode.max_num_seqs) == (None, 64)
    assert lower(both).step_time == "linear+roofline"


def test_a_gpu_of_its_own_brings_its_price_and_its_node() -> None:
    both = scenario(
        {**PREFILL, "hardware": {"price_per_hour": 1.5}},
        {**DECODE, "hardware": {"gpu": "h200"}},
        {**DECODE, "name": "third"},
        hardware={"gpu": "h100", "price_per_hour": 2.0, "gpus_per_node": 4},
    )
    prefill, decode, third = (view.facts for view in both.views())
    assert (third.price_per_hour, third.layout.gpus_per_node) == (2.0, 4)
    assert (prefill.price_per_hour, prefill.layout.gpus_per_node) == (1.5, 4)
    assert decode.price_per_hour == decode.gpu.price_per_hour_usd
    assert decode.layout.gpus_per_node == 8


def test_prices_are_those_of_each_cluster() -> None:
    both = scenario(
        {**PREFILL, "replicas": 3, "hardware": {"price_per_hour": 1.5}}, {**DECODE, "hardware": "h200"}
    )
    facts = run_facts(both, lower(both))
    assert facts.gpus_total == 16
    assert [(each.name, each.gpus) for each in facts.clusters] == [("prefill", 12), ("decode", 4)]
    h200 = both.resolve("decode").gpu.price_per_hour_usd
    assert [each.gpu_price_per_hour_usd for each in facts.clusters] == [1.5, h200]


def test_each_cluster_is_resolved_as_a_co_located_scenario() -> None:
    own = {"max_num_batched_tokens": 16384, "kv_cache_dtype": "fp8"}
    both = scenario(
        {**PREFILL, "replicas": 2, "router": "least_outstanding", "engine": own},
        {**DECODE, "engine": {"kv_cache_dtype": "fp8"}},
    )
    alone = Scenario.from_dict(
        {
            "model": "llama-3.1-70b",
            "hardware": "h100",
            "engine": {"tensor_parallel_size": 4, **own},
            "cluster": {"replicas": 2, "router": "least_outstanding"},
            "workload": WORKLOAD,
        }
    )
    view = both.view("prefill")
    assert view.scenario == alone
    assert view.facts == alone.resolve()
    assert lower(both).plan["clusters"][0] == lower(alone).plan["clusters"][0] | {
        "name": "prefill",
        "placement": lower(both).plan["clusters"][0]["placement"],
    }


def test_one_colocated_cluster_is_what_cluster_is() -> None:
    one = scenario({"role": "colocated", "name": "serve", "replicas": 2})
    same = Scenario.from_dict(
        {key: value for key, value in plain().items() if key != "clusters"} | {"cluster": {"replicas": 2}}
    )
    assert lower(one).plan_json == lower(same).plan_json
    assert one.resolve() == same.resolve()


def test_documents_round_trip() -> None:
    both = scenario(
        {**PREFILL, "name": "p", "weight": 2, "engine": {"max_num_seqs": None}},
        {**PREFILL, "hardware": {"gpu": "h200"}},
        DECODE,
        engine={"tensor_parallel_size": 4, "max_num_seqs": 64},
        disaggregation={**LINK, "balance": {"prefill": "least_loaded"}, "direct_below": "1K"},
    )
    for text in (both.to_yaml(), both.to_yaml(defaults=False)):
        again = Scenario.from_yaml(text)
        assert again == both
        assert hash(again) == hash(both)
        assert lower(again).plan_json == lower(both).plan_json
    for copied in (pickle.loads(pickle.dumps(both)), copy.deepcopy(both)):
        assert copied == both
        assert copied.resolve("p").max_num_seqs == 1024
    assert "cluster" not in both.to_dict()


def test_changes_name_clusters_by_number_or_by_name() -> None:
    both = scenario()
    changed = both.with_({"clusters.0.replicas": 3, "clusters.decode.engine.max_num_seqs": 8})
    assert changed.view("prefill").scenario.cluster.replicas == 3
    assert changed.resolve("decode").max_num_seqs == 8
    stepped = both.with_({"clusters.decode.engine.step_time.roofline": {}}).with_(
        {"clusters.decode.engine.step_time.linear.per_step": "1ms"}
    )
    assert stepped.view("decode").engine.step_time.chosen == "linear"
    with pytest.raises(ConfigError, match=r"clusters\.decode\.engine\.max_num_seq: .*did you mean"):
        both.with_({"clusters.decode.engine.max_num_seq": 8})
    with pytest.raises(ConfigError, match="is no entry of a list of 2"):
        both.with_({"clusters.middle.replicas": 8})


def test_a_co_located_scenario_is_changed_into_clusters() -> None:
    alone = Scenario.from_dict({key: value for key, value in plain().items() if key != "clusters"})
    both = alone.with_({"clusters": [PREFILL, DECODE]})
    assert both == scenario()
    four = alone.with_({"cluster.replicas": 4})
    with pytest.raises(ConfigError, match="cluster: was given beside clusters"):
        four.with_({"clusters": [PREFILL, DECODE]})
    assert four.with_({"cluster": None, "clusters": [PREFILL, DECODE]}) == both


def test_the_cluster_that_is_meant_must_be_named() -> None:
    with pytest.raises(
        ConfigError, match=r"was not given, and there are 2 clusters \(allowed: prefill, decode\)"
    ):
        scenario().resolve()
    with pytest.raises(ConfigError, match="did you mean 'decode'"):
        scenario().resolve("decod")


def test_all_problems_are_found_at_once_with_their_lines() -> None:
    text = """
model: llama-3.1-70b
hardware: h100
engine: {tensor_parallel_size: 4, max_num_seqs: -1}
clusters:
  - role: prefill
    replicas: 0
    engine:
      max_num_batched_token: 16384
  - role: decode
    hardware: {gpu: h20}
    engine:
      max_num_seqs: 9256
      enable_prefix_caching: maybe
    router: least_outstandin
disaggregation:
  kv_transfer: {granularity: layer, bandwidth: 50GB/s}
workload:
  synthetic: {arrivals: burst, num_requests: 10, prompt_tokens: 1000, output_tokens: 100}
"""
    with pytest.raises(ConfigError) as error:
        Scenario.from_yaml(text)
    found = {issue.path: issue.line for issue in error.value.issues}
    assert found == {
        "engine.max_num_seqs": 4,
        "clusters.0.replicas": 7,
        "clusters.0.engine.max_num_batched_token": 9,
        "clusters.1.engine.max_num_seqs": 13,
        "clusters.1.engine.enable_prefix_caching": 14,
        "clusters.1.router.policy": 15,
        "disaggregation.kv_transfer.granularity": 17,
    }


def test_memory_is_checked_for_each_cluster() -> None:
    with pytest.raises(DoesNotFitError) as error:
        scenario(PREFILL, {**DECODE, "engine": {"tensor_parallel_size": 1}})
    (issue,) = error.value.issues
    assert issue.message.endswith("(cluster 'decode')")
    assert error.value.memory.tensor_parallel_size == 1
    with pytest.raises(DoesNotFitError) as error:
        scenario(engine={})
    assert "(cluster" not in str(error.value)


@pytest.mark.parametrize(
    ("clusters", "path", "words"),
    [
        ([PREFILL], "clusters", "must have colocated alone, prefill and decode"),
        ([DECODE], "clusters", "have the roles decode"),
        ([PREFILL, DECODE, {"role": "colocated"}], "clusters", "must have colocated alone"),
        ([PREFILL, DECODE, {"role": "ffn"}], "clusters", "have the roles prefill, decode, ffn"),
        ([PREFILL, {"role": "attention"}], "clusters", "have the roles prefill, attention"),
        ([PREFILL, DECODE, DECODE], "clusters.2.name", "as is that of clusters.1"),
        (
            [PREFILL, {**DECODE, "weight": 2}],
            "clusters.1.weight",
            "has no effect: no other cluster is decode",
        ),
        ([PREFILL, {**DECODE, "weight": 0}], "clusters.1.weight", "must be greater than 0"),
        ([PREFILL, {"role": "decod"}], "clusters.1.role", "was 'decod'"),
        ([PREFILL, {"name": "x"}], "clusters.1.role", "is required"),
        ([PREFILL, {**DECODE, "engine": 3}], "clusters.1.engine", "must be a mapping"),
        ([PREFILL, {**DECODE, "hardware": 3}], "clusters.1.hardware.gpu", "must be a preset name"),
        ([PREFILL, {**DECODE, "replica": 3}], "clusters.1.replica", "not a known field"),
    ],
)
def test_roles_names_and_weights_are_checked(clusters: list[dict[str, Any]], path: str, words: str) -> None:
    assert words in problems(*clusters)[path].message


@pytest.mark.parametrize("clusters", [3, {}, [], "prefill"])
def test_clusters_are_a_list(clusters: Any) -> None:
    with pytest.raises(ConfigError) as error:
        Scenario.from_dict(plain() | {"clusters": clusters})
    assert [issue.path for issue in error.value.issues] == ["clusters"]


@pytest.mark.parametrize(
    ("sections", "path", "words"),
    [
        ({"cluster": {"replicas": 2}}, "cluster", "remove one of the two"),
        (
            {"engine": {"tensor_parallel_size": 4, "watermark": 0.1}},
            "engine.watermark",
            "every cluster sets it",
        ),
        (
            {"disaggregation": {"balance": {"decode": "weighted"}}},
            "disaggregation.balance.decode",
            "with one",
        ),
        (
            {"disaggregation": {"balance": {"colocated": "weighted"}}},
            "disaggregation.balance.colocated",
            "without a colocated",
        ),
        ({"disaggregation": LINK, "network": {}}, "network", "beside disaggregation.kv_transfer.bandwidth"),
        (
            {"disaggregation": {"kv_transfer": {"mode": "store"}}},
            "disaggregation.kv_transfer.bandwidth",
            "needed",
        ),
        ({"network": {"nics_per_node": 9}}, "network.nics_per_node", "at most the 8 GPUs"),
        ({"network": {"nodes_per_pod": 9}}, "network.nodes_per_pod", "without network.oversubscription"),
        ({"network": {"oversubscription": 0.5}}, "network.oversubscription", "must be from 1"),
        ({"network": {"gpus_per_pcie_switch": 3}}, "network.gpus_per_pcie_switch", "must divide the 8 GPUs"),
    ],
)
def test_sections_without_effect_are_refused(sections: dict[str, Any], path: str, words: str) -> None:
    own = [{**role, "engine": {"watermark": 0.2}} for role in (PREFILL, DECODE)]
    assert words in problems(*own, **sections)[path].message


def test_hardware_that_no_cluster_takes_over_is_refused() -> None:
    own = ({**PREFILL, "hardware": "h200"}, {**DECODE, "hardware": {"price_per_hour": 3.0}})
    issue = problems(*own, hardware={"gpu": "h100", "price_per_hour": 2.0})["hardware.price_per_hour"]
    assert "no cluster takes it over" in issue.message
    scenario(*own, hardware={"gpu": "h100", "gpus_per_node": 4})


@pytest.mark.parametrize("section", [{"disaggregation": LINK}, {"network": {}}])
def test_sections_of_clusters_need_clusters(section: dict[str, Any]) -> None:
    alone = {key: value for key, value in plain().items() if key != "clusters"}
    (name,) = section
    with pytest.raises(ConfigError, match=f"{name}: has no effect without clusters"):
        Scenario.from_dict(alone | section)
    issues = problems({"role": "colocated"}, **section)
    assert all("without prefill and decode clusters" in issue.message for issue in issues.values())


@pytest.mark.parametrize(
    ("source", "destination", "path", "words"),
    [
        ({}, {"name": "sglang", "version": "0.5.3"}, "clusters.1.engine.name", "engines of one kind alone"),
        ({"scheduler": {"sarathi": {}}}, {}, "clusters.0.engine.scheduler", "only vLLM's own"),
        (
            {},
            {"kv_offloading_size": 4},
            "clusters.1.engine.kv_offloading_size",
            "not modelled where KV arrives",
        ),
        ({}, {"version": "0.31"}, "clusters.1.engine.version", "one release alone"),
        ({"kv_cache_dtype": "fp8"}, {}, "clusters.1.engine.kv_cache_dtype", "comes to bfloat16, but to fp8"),
        ({"block_size": 32}, {}, "clusters.1.engine.block_size", "comes to 16, but to 32"),
        ({"dtype": "float16"}, {}, "clusters.1.engine.dtype", "comes to bfloat16, but to float16"),
        (
            {"speculative": {"method": "eagle", "num_speculative_tokens": 2, "acceptance": 0.7}},
            {},
            "clusters.1.engine.speculative",
            "decode clusters draft alone",
        ),
    ],
)
def test_engines_that_could_not_exchange_kv_are_refused(
    source: dict[str, Any], destination: dict[str, Any], path: str, words: str
) -> None:
    found = problems({**PREFILL, "engine": source}, {**DECODE, "engine": destination})
    assert words in found[path].message


SIX_HEADS = {
    "config": "llama-3.1-8b",
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "hidden_size": 768,
    "head_dim": 128,
    "intermediate_size": 6144,
    "vocab_size": 129024,
}


def test_tensor_parallel_sizes_divide_one_another() -> None:
    def sizes(source: int, destination: int) -> list[dict[str, Any]]:
        return [
            {**role, "engine": {"tensor_parallel_size": size}}
            for role, size in ((PREFILL, source), (DECODE, destination))
        ]

    own = {"model": SIX_HEADS, "engine": {}, "disaggregation": LINK}
    for source, destination in ((1, 2), (6, 2), (3, 3)):
        scenario(*sizes(source, destination), **own)
    (issue,) = problems(*sizes(2, 3), **own).values()
    assert issue.path == "clusters.1.engine.tensor_parallel_size"
    assert issue.message == "was 3, but cluster 'prefill' has 2: one must be a multiple of the other"


def test_drafts_are_of_the_decode_side_or_of_both() -> None:
    drafts = {
        "speculative": {"method": "ngram", "num_speculative_tokens": 2, "acceptance": 0.7, "match_rate": 0.5}
    }
    scenario(PREFILL, {**DECODE, "engine": drafts})
    scenario(engine={"tensor_parallel_size": 4, **drafts})


def test_layers_with_windows_are_handed_over_as_whole_contexts_alone() -> None:
    own = {"model": "gpt-oss-20b", "engine": {}}
    assert problems(**own)["engine.disable_hybrid_kv_cache_manager"].allowed == ("true",)
    scenario(**own | {"engine": {"disable_hybrid_kv_cache_manager": True}})


def test_pushed_kv_needs_engines_of_one_rank() -> None:
    ranks = {**DECODE, "engine": {"data_parallel_size": 2}}
    scenario(PREFILL, ranks, disaggregation=LINK)
    push = {"kv_transfer": {**LINK["kv_transfer"], "mode": "push", "granularity": "layer"}}
    scenario(disaggregation=push)
    assert "clusters.1.engine.data_parallel_size" in problems(PREFILL, ranks, disaggregation=push)


def test_paths_in_clusters_start_from_the_directory_of_the_file(tmp_path: Any) -> None:
    gpu = load("chat-poisson").resolve().gpu
    (tmp_path / "own.yaml").write_text(
        f"name: own\nnum_sms: {gpu.num_sms}\nmemory: 80GiB\nmemory_bandwidth: 2TB/s\npcie_bandwidth: 64GB/s\n"
        "compute_capability: '9.0'\nnic_bandwidth: 50GB/s\ngpus_per_node: 8\n"
        "peak: {fp32: 60TFLOPS, bf16: 400TFLOPS}\n"
    )
    document = scenario().with_({"clusters.decode.hardware.gpu": "h200"}).to_yaml(defaults=False)
    (tmp_path / "pd.yaml").write_text(document.replace("gpu: h200", "gpu: ./own.yaml"))
    assert load(tmp_path / "pd.yaml").resolve("decode").gpu.name == "own"
