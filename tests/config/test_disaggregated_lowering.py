"""The plan of prefill and decode clusters: legs, hand-over, bytes, network, placements, predictors."""

from typing import Any

import pytest
from role_clusters import DECODE, LINK, PREFILL, plain, scenario

from frontier.config import Scenario
from frontier.disaggregated_lowering import kv_bytes_per_block
from frontier.lowering import lower


def test_the_parts_of_a_plan_with_prefill_and_decode_clusters() -> None:
    plan = lower(
        scenario(
            {**PREFILL, "replicas": 4},
            {**DECODE, "replicas": 2, "router": "least_outstanding"},
            disaggregation={
                "kv_transfer": {
                    "mode": "push",
                    "granularity": "layer",
                    "proxy_latency": "1ms",
                    "latency": "50us",
                    "bandwidth": "400Gbps",
                },
                "direct_below": 256,
                "deflect_above": "64K",
            },
        )
    ).plan
    assert [(c["name"], c["replicas"], c["router"]["policy"]) for c in plan["clusters"]] == [
        ("prefill", 4, "round_robin"),
        ("decode", 2, "least_outstanding"),
    ]
    common = {"balance": "weighted"}
    assert plan["paths"][0] == {
        "legs": [
            {"clusters": [0], "weights": [4.0], "encodes": None, "receives": None, **common},
            {
                "clusters": [1],
                "weights": [2.0],
                "encodes": None,
                "receives": {
                    "mode": "push",
                    "granularity": "layer",
                    "first_token": "recomputed",
                    "proxy_latency_ns": 1_000_000,
                    "latency_ns": 50_000,
                    "bytes_per_block": 16 * 80 * 2 * 8 * 128 * 2,
                    "fixed_bytes": 0,
                    "num_layers": 80,
                    "transport": {"kind": "dedicated", "bytes_per_s": 50e9},
                },
                **common,
            },
        ],
        "direct": {"max_uncached_tokens": 256, "deflect_above_tokens": 65536},
    }
    assert "network" not in plan
    assert all("placement" not in cluster for cluster in plan["clusters"])


def test_a_link_for_every_transfer_is_told_as_such() -> None:
    assert any("none slows another down" in told for told in lower(scenario(disaggregation=LINK)).warnings)
    assert not any("none slows another down" in told for told in lower(scenario()).warnings)


def test_pools_of_one_role_share_its_requests_by_weight() -> None:
    plan = lower(
        scenario(
            {**DECODE, "name": "fast", "hardware": "h200", "replicas": 3},
            {**PREFILL, "weight": 2.5, "name": "p1"},
            {**DECODE, "name": "slow", "replicas": 2},
            {**PREFILL, "name": "p2"},
            disaggregation={**LINK, "balance": {"decode": "least_loaded"}},
        )
    ).plan
    prefill, decode = plan["paths"][0]["legs"]
    assert (prefill["clusters"], prefill["weights"], prefill["balance"]) == ([1, 3], [2.5, 1.0], "weighted")
    assert (decode["clusters"], decode["weights"], decode["balance"]) == ([0, 2], [3.0, 2.0], "least_loaded")


def test_pools_of_co_located_replicas_are_one_leg() -> None:
    pools = [{"role": "colocated", "name": "a"}, {"role": "colocated", "name": "b", "hardware": "h200"}]
    plan = lower(scenario(*pools, disaggregation={"balance": {"colocated": "least_loaded"}})).plan
    (leg,) = plan["paths"][0]["legs"]
    assert leg == {
        "clusters": [0, 1],
        "weights": [1.0, 1.0],
        "balance": "least_loaded",
        "encodes": None,
        "receives": None,
    }
    assert plan["paths"][0]["direct"] is None
    assert "network" not in plan


@pytest.mark.parametrize(
    ("section", "direct"),
    [
        ({}, None),
        ({"direct_below": 9}, {"max_uncached_tokens": 9, "deflect_above_tokens": None}),
        ({"deflect_above": 9}, {"max_uncached_tokens": None, "deflect_above_tokens": 9}),
    ],
)
def test_who_goes_to_the_decode_side_at_once(section: dict[str, Any], direct: Any) -> None:
    assert lower(scenario(disaggregation={**LINK, **section})).plan["paths"][0]["direct"] == direct


@pytest.mark.parametrize(
    ("model", "engine", "bytes_per_token"),
    [
        # layers * (keys and values) * heads * head size * bytes of an element
        ("llama-3.1-8b", {}, 32 * 2 * 8 * 128 * 2),
        ("llama-3.1-8b", {"kv_cache_dtype": "fp8"}, 32 * 2 * 8 * 128),
        ("llama-2-7b", {}, 32 * 2 * 32 * 128 * 2),
        # More ranks than the 4 KV heads hold copies, which are sent once.
        ("qwen3-30b-a3b", {"tensor_parallel_size": 8}, 48 * 2 * 4 * 128 * 2),
        # One latent vector per token of 512 + 64 elements, on every rank, sent once.
        ("deepseek-v2-lite", {"tensor_parallel_size": 2}, 27 * (512 + 64) * 2),
    ],
)
def test_a_block_is_sent_once_whatever_ranks_hold(
    model: str, engine: dict[str, Any], bytes_per_token: int
) -> None:
    both = scenario(model=model, engine=engine)
    facts, dtype = both.resolve("decode"), engine.get("kv_cache_dtype", "auto")
    assert kv_bytes_per_block(facts, dtype) == facts.block_size * bytes_per_token
    receives = lower(both).plan["paths"][0]["legs"][1]["receives"]
    assert receives["bytes_per_block"] == facts.block_size * bytes_per_token
    assert receives["num_layers"] == facts.model.num_layers


def test_without_settings_transfers_share_the_links_of_the_usual_servers() -> None:
    plan = lower(scenario({**PREFILL, "replicas": 3}, {**DECODE, "replicas": 1})).plan
    assert plan["paths"][0]["legs"][1]["receives"]["transport"] == {"kind": "network"}
    assert plan["paths"][0]["legs"][1]["receives"]["latency_ns"] == 0  # the links have their own
    # HGX H100: 450 GB/s of NVLink, a 400 Gb/s NIC and 64 GB/s of PCIe per GPU, of which 80 % are attained.
    assert plan["network"] == {
        "groups": [
            {
                "nodes": 3,
                "gpus_per_node": 8,
                "nvlink": {"bytes_per_s": 360e9, "nodes_per_domain": 1},
                "pcie": {"bytes_per_s": 51.2e9, "gpus_per_switch": 1},
                "nic": {"per_node": 8, "bytes_per_s": 40e9},
                "leaf": None,
            }
        ],
        "trunks": [],
        "intra_latency_ns": 4000,
        "inter_latency_ns": 5000,
        "efficiency": {"kind": "saturating", "half_bytes": 0},
    }
    common = {
        "gpus_per_engine": 4,
        "tensor_parallel_size": 4,
        "pipeline_parallel_size": 1,
        "kv_heads": 8,
    }
    assert [cluster["placement"] for cluster in plan["clusters"]] == [
        {"first_gpu": 0, **common},
        {"first_gpu": 16, **common},  # 12 GPUs fill two nodes, the last one in half
    ]


def test_clusters_share_nodes_where_asked() -> None:
    shared = lower(scenario(network={"share_nodes": True})).plan
    assert [cluster["placement"]["first_gpu"] for cluster in shared["clusters"]] == [0, 4]
    assert [group["nodes"] for group in shared["network"]["groups"]] == [1]
    # An engine of 4 GPUs begins where it does not lie across nodes.
    mixed = [{**PREFILL, "replicas": 3, "engine": {"tensor_parallel_size": 2}}, DECODE]
    plan = lower(scenario(*mixed, engine={"tensor_parallel_size": 4}, model="llama-3.1-8b", **SHARE)).plan
    assert [cluster["placement"]["first_gpu"] for cluster in plan["clusters"]] == [0, 8]


SHARE = {"network": {"share_nodes": True}}


def test_gpus_of_each_kind_are_a_group_with_their_own_links() -> None:
    plan = lower(
        scenario(
            {**PREFILL, "replicas": 4},
            {**DECODE, "name": "d1", "hardware": "b200"},
            {**DECODE, "name": "d2", "replicas": 2},
            engine={"tensor_parallel_size": 4, "block_size": 32},
            network={"link_efficiency": 1, "inter_latency": "9us"},
        )
    ).plan
    h100, b200 = plan["network"]["groups"]
    assert (h100["nodes"], b200["nodes"]) == (3, 1)
    assert (h100["nvlink"]["bytes_per_s"], b200["nvlink"]["bytes_per_s"]) == (450e9, 900e9)
    # GPUs are numbered through groups: the three nodes of H100 come first.
    assert [cluster["placement"]["first_gpu"] for cluster in plan["clusters"]] == [0, 24, 16]
    assert plan["network"]["inter_latency_ns"] == 9000


def test_settings_of_the_network() -> None:
    network = {
        "nvlink_bandwidth": "900GB/s",
        "nvlink_nodes": 18,
        "pcie_bandwidth": "100GB/s",
        "gpus_per_pcie_switch": 2,
        "nics_per_node": 4,
        "nic_bandwidth": "800Gbps",
        "oversubscription": 2,
        "nodes_per_pod": 4,
        "rail_optimised": False,
        "intra_latency": "2us",
        "link_efficiency": "50%",
        "half_size": "64KiB",
    }
    plan = lower(scenario(network=network)).plan["network"]
    assert plan["groups"][0] | {"nodes": 0} == {
        "nodes": 0,
        "gpus_per_node": 8,
        "nvlink": {"bytes_per_s": 450e9, "nodes_per_domain": 18},
        "pcie": {"bytes_per_s": 50e9, "gpus_per_switch": 2},
        "nic": {"per_node": 4, "bytes_per_s": 50e9},
        "leaf": {"nodes_per_pod": 4, "rail_optimised": False, "oversubscription": 2.0},
    }
    assert (plan["intra_latency_ns"], plan["inter_latency_ns"]) == (2000, 5000)
    assert plan["efficiency"] == {"kind": "saturating", "half_bytes": 65536}


def test_engines_of_ranks_and_stages_are_placed_one_by_one() -> None:
    own = {"tensor_parallel_size": 4, "data_parallel_size": 2, "enable_expert_parallel": True}
    model = {
        "model": "qwen3-235b-a22b",
        "engine": {**own, "pipeline_parallel_size": 2, "max_model_len": 8192},
    }
    plan = lower(scenario(**model)).plan
    assert [cluster["placement"] for cluster in plan["clusters"]] == [
        {
            "first_gpu": first,
            "gpus_per_engine": 8,
            "tensor_parallel_size": 4,
            "pipeline_parallel_size": 2,
            "kv_heads": 4,
        }
        for first in (0, 16)
    ]
    assert plan["network"]["groups"][0]["nodes"] == 4


def test_gpus_without_a_network_are_named() -> None:
    from frontier.errors import ConfigError

    small = {"model": "llama-3.1-8b", "hardware": "rtx-4090", "engine": {"max_model_len": 8192}}
    with pytest.raises(
        ConfigError, match=r"network\.nic_bandwidth: was not given, and rtx-4090 has no network"
    ):
        scenario(**small)
    scenario(**small, **SHARE)
    scenario(**small, network={"nic_bandwidth": "100Gbps"})


def test_engines_that_lie_across_nodes_are_refused() -> None:
    from frontier.errors import ConfigError

    odd = {"tensor_parallel_size": 1, "pipeline_parallel_size": 3}
    with pytest.raises(ConfigError, match="an engine of 3 GPUs neither divides the 8"):
        scenario(model="llama-3.1-8b", engine=odd)
    scenario(model="llama-3.1-8b", engine=odd, disaggregation=LINK)


def test_predictors_of_all_clusters_go_beside_one_plan() -> None:
    lowered = lower(scenario(PREFILL, {**DECODE, "hardware": "h200"}, disaggregation=LINK))
    used: list[set[int]] = []
    for cluster, alone in zip(lowered.clusters, map(_alone, lowered.clusters), strict=True):
        operators = cluster.plan["step_time"]["stages"][0]
        names = [_predictors(operator, lowered.identities) for operator in operators]
        assert names == [
            _predictors(operator, alone.identities)
            for operator in alone.plan["clusters"][0]["step_time"]["stages"][0]
        ]
        used.append({reference["index"] for operator in operators for reference in _references(operator)})
    assert used[0] | used[1] == set(range(len(lowered.predictors)))
    assert used[1] - used[0]
    assert len({id(predictor) for predictor in lowered.predictors}) == len(lowered.predictors)
    assert len(lowered.identities) == len(lowered.predictors)


def _alone(cluster: Any) -> Any:
    return lower(cluster.view.scenario)


def _references(operator: dict[str, Any]) -> list[dict[str, Any]]:
    slots = operator.get("predictors") or {"predictor": operator.get("predictor")}
    return [reference for reference in slots.values() if reference is not None]


def _predictors(operator: dict[str, Any], identities: Any) -> list[str]:
    return [identities[reference["index"]]["id"] for reference in _references(operator)]


def test_what_is_told_of_one_cluster_names_it() -> None:
    lowered = lower(scenario(PREFILL, {**DECODE, "hardware": "h200"}, disaggregation=LINK))
    notes = [note for note in lowered.notes if "predictors of" in note]
    assert any(note.startswith("prefill: predictors of h100") for note in notes)
    assert any(note.startswith("decode: predictors of h200") for note in notes)
    assert not any(note.startswith("decode, prefill:") for note in lowered.notes)


def test_the_plan_is_equal_for_equal_documents() -> None:
    document = plain(disaggregation=LINK)
    assert lower(Scenario.from_dict(document)).plan_json == lower(Scenario.from_dict(document)).plan_json
