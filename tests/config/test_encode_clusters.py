"""Encode clusters in scenarios: what they take over, what is refused, what becomes of them in the plan."""

from typing import Any

import pytest
from encode_clusters import COLOCATED, ENCODE, PAIR, WORKLOAD, plain, scenario

from frontier.config import Scenario
from frontier.errors import ConfigError
from frontier.lowering import lower


def issues(*clusters: dict[str, Any], **sections: Any) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        Scenario.from_dict(plain(*clusters, **sections))
    return {issue.path: issue.message for issue in caught.value.issues}


def own(**engine: Any) -> dict[str, Any]:
    return {"role": "encode", "engine": engine}


def test_the_first_leg_encodes_and_its_embeddings_go_over_one_network_card() -> None:
    for others in ([COLOCATED], PAIR):
        plan = lower(scenario(ENCODE, *others)).plan
        first, *legs = plan["paths"][0]["legs"]
        assert len(legs) == len(others)
        assert all(leg["encodes"] is None for leg in legs)
        # 3584 numbers of 16 bits for four patches; an H100 has 50 GB/s of network.
        assert first["encodes"]["bytes_per_token"] == 3584 * 2 / 4
        facts = scenario(ENCODE, *others).resolve("encode").gpu
        assert facts.nic_bandwidth_bytes_per_s is not None
        assert first["encodes"]["bytes_per_s"] == facts.nic_bandwidth_bytes_per_s * facts.link_efficiency
        assert first["encodes"]["latency_ns"] == facts.nic_latency_ns
        assert plan["workload"]["encoder"] == {"tokens": {"kind": "fixed", "tokens": 4096}, "share": 1.0}


def test_kv_crosses_a_network_on_which_encoders_have_no_place() -> None:
    lowered = lower(scenario(ENCODE, *PAIR))
    assert lowered.plan["network"] is not None
    placements = [each["placement"] for each in lowered.plan["clusters"]]
    assert placements[0] is None
    assert None not in placements[1:]


def test_encoders_take_images_whole_within_the_budget_of_embeddings() -> None:
    clusters = [own(max_num_batched_tokens=2048, max_num_seqs=64), COLOCATED]
    scheduler = lower(scenario(*clusters)).plan["clusters"][0]["scheduler"]
    assert scheduler["max_num_batched_tokens"] == 2048 * 4
    assert (scheduler["block_size"], scheduler["num_blocks"]) == (4, 2048 + 1)
    assert not scheduler["enable_chunked_prefill"]
    assert not scheduler["enable_prefix_caching"]
    # An image of more embeddings raises budget and cache, as vLLM does.
    large = scenario(own(max_num_batched_tokens=256, max_num_seqs=64), COLOCATED)
    scheduler = lower(large).plan["clusters"][0]["scheduler"]
    assert scheduler["max_num_batched_tokens"] == 4096 + 1
    assert scheduler["num_blocks"] == 1024 + 1 + 1


def test_settings_of_language_engines_are_not_taken_over() -> None:
    common = {
        "step_time": "roofline",
        "kv_cache_dtype": "fp8",
        "block_size": 32,
        "max_num_seqs": 32,
        "speculative": {"method": "ngram", "num_speculative_tokens": 2, "acceptance": 0.5, "match_rate": 0.5},
        "pipeline_parallel_size": 2,
    }
    lowered = lower(scenario(engine=common))
    encoder, server = lowered.plan["clusters"]
    assert encoder["scheduler"]["speculative"] is None
    assert encoder["scheduler"]["pipeline_parallel_size"] == 1
    assert encoder["scheduler"]["max_num_seqs"] == server["scheduler"]["max_num_seqs"] == 32
    assert server["scheduler"]["speculative"] is not None
    assert len(encoder["step_time"]["stages"]) == 1


def test_memory_is_the_towers() -> None:
    facts = scenario().resolve("encode")
    memory = facts.memory
    assert memory.weights_bytes == 2 * 676_550_144
    assert memory.bytes_per_block == 0
    assert memory.encoder_cache_bytes == 8192 * 3584 * 2
    assert "encoder cache" in memory.explain()
    assert issues({**own(gpu_memory_utilization=0.02)}, COLOCATED)["hardware.gpu"].startswith("has 1.58 GiB")


@pytest.mark.parametrize(
    ("clusters", "path", "words"),
    [
        ([ENCODE], "clusters", "encode before any of these"),
        ([ENCODE, PAIR[0]], "clusters", "must have"),
        ([own(kv_cache_dtype="fp8"), COLOCATED], "clusters.0.engine.kv_cache_dtype", "no KV cache"),
        ([own(enable_prefix_caching=True), COLOCATED], "clusters.0.engine.enable_prefix_caching", "again"),
        ([own(data_parallel_size=2), COLOCATED], "clusters.0.engine.data_parallel_size", "more replicas"),
        ([own(quantization="fp8_per_block"), COLOCATED], "clusters.0.engine.quantization", "16 bits"),
        (
            [own(cpu_overhead={"per_graph_launch": "1us"}), COLOCATED],
            "clusters.0.engine.cpu_overhead.per_graph_launch",
            "kernel by kernel",
        ),
        ([own(tensor_parallel_size=8), COLOCATED], "clusters.0.engine.tensor_parallel_size", "3420"),
        ([own(version="0.11"), COLOCATED], "clusters.0.engine.version", "no encoders of their own"),
        ([own(name="sglang"), COLOCATED], "clusters.0.engine.name", "vLLM's rules alone"),
    ],
)
def test_clusters_that_are_refused(clusters: list[dict[str, Any]], path: str, words: str) -> None:
    found = issues(*clusters)
    assert words in found[path], found


def test_images_need_encoders_and_encoders_images_of_a_model_that_sees() -> None:
    at = "workload.synthetic.encoder"
    assert "role encode" in issues(COLOCATED, {**COLOCATED, "name": "b"})[at]
    bare = plain()
    del bare["clusters"]
    with pytest.raises(ConfigError, match="role encode"):
        Scenario.from_dict(bare)
    without = {"synthetic": {key: value for key, value in WORKLOAD["synthetic"].items() if key != "encoder"}}
    assert "no request has anything" in issues(workload=without)["clusters.0.role"]
    assert "no vision_config" in issues(model="qwen3-8b")["model"]


def test_prompts_hold_their_embeddings() -> None:
    synthetic = WORKLOAD["synthetic"] | {"prompt_tokens": 1023}
    found = issues(workload={"synthetic": synthetic})
    assert "becomes 1024 of the prompt's tokens" in found["workload.synthetic.prompt_tokens"]
    scenario(workload={"synthetic": WORKLOAD["synthetic"] | {"prompt_tokens": 1024}})


def test_transfers_of_embeddings() -> None:
    section = {"embedding_transfer": {"bandwidth": "1GB/s", "latency": "2ms"}}
    first = lower(scenario(disaggregation=section)).plan["paths"][0]["legs"][0]["encodes"]
    assert (first["bytes_per_s"], first["latency_ns"]) == (1e9, 2_000_000)
    lonely = {"synthetic": {key: value for key, value in WORKLOAD["synthetic"].items() if key != "encoder"}}
    found = issues(COLOCATED, {**COLOCATED, "name": "b"}, disaggregation=section, workload=lonely)
    assert "without an encode cluster" in found["disaggregation.embedding_transfer"]
    alone = {"role": "encode", "hardware": {"gpu": "rtx-4090"}}
    if scenario(ENCODE, COLOCATED).resolve("encode").gpu.nic_bandwidth_bytes_per_s is not None:
        found = issues(alone, COLOCATED)
        assert "has no network" in found["disaggregation.embedding_transfer.bandwidth"]
        scenario(alone, COLOCATED, disaggregation=section)


def test_replicas_do_not_become_encoders() -> None:
    clusters = [{**ENCODE, "replicas": 2}, {**COLOCATED, "replicas": 2, "in_service": 1}]
    event = {"at": "1s", "cluster": "encode", "switch_role": {"to": "colocated", "delay": "1s"}}
    found = issues(*clusters, dynamics={"events": [event]})
    assert "cannot change sides" in found["dynamics.events.0.switch_role.to"]


def test_commands_are_not_written() -> None:
    with pytest.raises(ConfigError, match="are encoders"):
        scenario().to_vllm()


def test_encoders_beside_several_models_are_refused() -> None:
    other = {**COLOCATED, "name": "other", "model": "llama-3.1-8b"}
    found = issues(ENCODE, COLOCATED, other)
    assert "several models" in found["clusters.0.role"]
