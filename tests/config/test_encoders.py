"""Runs with encode clusters: closed forms of one request, conservation, traces, and where time goes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encode_clusters import COLOCATED, ENCODE, PAIR, WORKLOAD, plain, scenario

import frontier
from frontier.config import Scenario
from frontier.errors import ConfigError, WorkloadError
from frontier.workloads import trace_from_columns

ALONE = {**WORKLOAD["synthetic"], "num_requests": 1, "arrivals": {"burst": {}}}


def without_images(**sections: Any) -> dict[str, Any]:
    """Return the scenario of a colocated cluster alone, and its workload without images."""
    whole = plain(**sections)
    del whole["clusters"]
    del whole["workload"]["synthetic"]["encoder"]
    return whole


def ttft_ns(result: Any) -> int:
    requests = result.columns.requests
    return int(requests["first_token_ns"][0] - requests["arrival_ns"][0])


def test_one_request_takes_its_encoding_its_embeddings_flight_and_its_prompt() -> None:
    link = {"embedding_transfer": {"bandwidth": "1GB/s", "latency": "2ms"}}
    seeing = scenario(workload={"synthetic": ALONE}, disaggregation=link)
    step = frontier.explain(seeing, cluster="encode", prefill=4096).prefill
    flight_ns = 2_000_000 + round(4096 * 3584 * 2 / 4)
    alone = frontier.simulate(Scenario.from_dict(without_images(workload={"synthetic": ALONE})))
    result = frontier.simulate(seeing)
    assert ttft_ns(result) == ttft_ns(alone) + round(step.total_s * 1e9) + flight_ns
    assert result.columns.requests["encoder_tokens"].tolist() == [4096]


def test_three_legs_add_up_too() -> None:
    alone = {"synthetic": {key: value for key, value in ALONE.items() if key != "encoder"}}
    before = frontier.simulate(scenario(*PAIR, workload=alone))
    seeing = scenario(ENCODE, *PAIR, workload={"synthetic": ALONE})
    encodes = frontier.lowering.lower(seeing).plan["paths"][0]["legs"][0]["encodes"]
    flight_s = encodes["latency_ns"] / 1e9 + 4096 * encodes["bytes_per_token"] / encodes["bytes_per_s"]
    step = frontier.explain(seeing, cluster="encode", prefill=4096).prefill
    result = frontier.simulate(seeing)
    assert ttft_ns(result) - ttft_ns(before) == pytest.approx((step.total_s + flight_s) * 1e9, abs=2)
    assert len(result.columns.transfers["request"]) == 1


def test_attention_of_whole_images_grows_with_the_square_of_their_patches() -> None:
    def flops(patches: int, images: int, name: str) -> float:
        workload = {"synthetic": WORKLOAD["synthetic"] | {"prompt_tokens": 4096, "encoder": {"tokens": 8192}}}
        found = frontier.explain(
            scenario(workload=workload), cluster="encode", prefill=patches, decode=images
        ).decode
        return sum(each.flops for each in found.operators if each.operator == name)

    pairs = 4 * 1280 * 4  # FLOPs of a pair in four layers: 2 products of 2 x 1280
    assert flops(4096, 1, "attention") == pytest.approx(4096**2 * pairs)
    assert flops(4096, 3, "attention") == pytest.approx(3 * 4096**2 * pairs)
    assert flops(4096, 3, "attention_blocks") == pytest.approx(3 * 4096 * 64 * 7 * pairs)


def test_what_is_brought_is_encoded_and_nothing_else() -> None:
    workload = {"synthetic": WORKLOAD["synthetic"] | {"encoder": {"tokens": 2000, "share": 0.4}}}
    workload["synthetic"]["num_requests"] = 200
    result = frontier.simulate(scenario({**ENCODE, "replicas": 2}, COLOCATED, workload=workload))
    requests = result.columns.requests
    brought = requests["encoder_tokens"] > 0
    assert 40 < brought.sum() < 120
    assert ((requests["ttft_encode_ns"] > 0) == brought).all()
    assert result.summary()["completed"] == 200
    assert (requests["generated_tokens"] == requests["output_tokens"]).all()


def test_images_wait_for_encoders_that_are_busy() -> None:
    burst = {**WORKLOAD["synthetic"], "arrivals": {"burst": {}}, "num_requests": 40}
    narrow = {"role": "encode", "engine": {"max_num_batched_tokens": 1024, "max_num_seqs": 1}}
    one = frontier.simulate(scenario(narrow, COLOCATED, workload={"synthetic": burst}))
    two = frontier.simulate(scenario({**narrow, "replicas": 2}, COLOCATED, workload={"synthetic": burst}))
    assert two.summary()["mean_ttft_s"] < one.summary()["mean_ttft_s"]
    # One image after the other: the last one's embeddings are there after as many steps.
    step = frontier.explain(
        scenario(narrow, COLOCATED, workload={"synthetic": burst}), cluster="encode", prefill=4096
    ).prefill
    last = int(one.columns.requests["first_token_ns"].max())
    assert last > 40 * step.gpu_s * 1e9


def test_a_lost_encoder_loses_no_request() -> None:
    burst = {**WORKLOAD["synthetic"], "arrivals": {"burst": {}}, "num_requests": 40}
    clusters = [{**ENCODE, "replicas": 2}, COLOCATED]
    lost = {"events": [{"at": "30ms", "cluster": "encode", "replica": 0, "fail": {"down": "100ms"}}]}
    result = frontier.simulate(scenario(*clusters, workload={"synthetic": burst}, dynamics=lost))
    requests = result.columns.requests
    assert result.summary()["completed"] == 40
    assert requests["attempts"].max() == 2
    assert (requests["ttft_encode_ns"] > 0).all()


def traced(path: Path, encoder: list[int], *clusters: dict[str, Any]) -> Scenario:
    rows = len(encoder)
    trace_from_columns(
        arrival_s=np.arange(rows) / 4,
        prompt_tokens=[1500] * rows,
        output_tokens=[10] * rows,
        encoder_tokens=encoder,
    ).write(path)
    return scenario(*clusters, workload={"trace": {"path": str(path)}})


def test_a_trace_brings_images_of_its_own_sizes(tmp_path: Path) -> None:
    encoder = [4096, 0, 1024, 5476]
    found = traced(tmp_path / "images.parquet", encoder, ENCODE, COLOCATED)
    result = frontier.simulate(found)
    assert result.columns.requests["encoder_tokens"].tolist() == encoder
    assert frontier.explain(found, cluster="encode").prefill.query_tokens == round(sum(encoder) / 3)
    frontier.explain(found, cluster="colocated")


def test_a_large_image_of_a_trace_raises_the_budget(tmp_path: Path) -> None:
    narrow = {"role": "encode", "engine": {"max_num_batched_tokens": 256, "max_num_seqs": 8}}
    found = traced(tmp_path / "images.parquet", [4096, 100], narrow, COLOCATED)
    assert frontier.lowering.lower(found).plan["clusters"][0]["scheduler"]["max_num_batched_tokens"] == 4097
    frontier.simulate(found)


def test_traces_that_do_not_suit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "images.parquet"
    with pytest.raises(ConfigError, match="role encode"):
        frontier.simulate(traced(path, [100], COLOCATED, {**COLOCATED, "name": "b"}))
    with pytest.raises(ConfigError, match="has no encoder_tokens"):
        frontier.simulate(traced(path, [0, 0], ENCODE, COLOCATED))
    with pytest.raises(ConfigError, match="in row 2, of which the model makes 1501"):
        frontier.simulate(traced(path, [100, 6001], ENCODE, COLOCATED))
    with pytest.raises(WorkloadError, match="encoder_tokens"):
        traced(path, [-1], ENCODE, COLOCATED)


def test_explain_shows_the_tower() -> None:
    found = frontier.explain(scenario(), cluster="encode")
    names = [each.operator for each in found.prefill.operators]
    assert names[0] == "patch_embed"
    assert {"attention", "attention_blocks", "merger.fc1", "merger.fc2"} <= set(names)
    assert "lm_head" not in names
    assert found.prefill.what == "encoding of one image of 4,096 patches"
    assert found.decode.what == "encoding of 8 images of 4,096 patches"
    assert found.prefill.graph == "eager"


def test_steps_that_no_encoder_takes_are_not_explained() -> None:
    with pytest.raises(ConfigError, match="a step takes 8 images of 4096 tokens"):
        frontier.explain(scenario(), cluster="encode", decode=9)
    with pytest.raises(ConfigError, match="an encoder has no context"):
        frontier.explain(scenario(), cluster="encode", context=100)


def test_a_common_calibration_holds_for_the_operators_that_a_tower_has() -> None:
    def step_s(calibration: dict[str, float] | None, **own: Any) -> float:
        step_time = {"learned": {} if calibration is None else {"calibration": calibration}}
        cluster = {**ENCODE, "engine": own} if own else ENCODE
        found = scenario(cluster, COLOCATED, engine={"step_time": step_time})
        return frontier.explain(found, cluster="encode").prefill.gpu_s

    assert step_s({"sampler": 2.0}) == step_s(None)
    assert step_s({"gemm": 2.0, "sampler": 2.0}) > 1.3 * step_s(None)
    with pytest.raises(ConfigError, match="no predictor of this operator is in use"):
        step_s(None, step_time={"learned": {"calibration": {"sampler": 2.0}}})


def test_units_of_attention_and_ffn_come_after_encoders_too() -> None:
    unit = [
        {"role": "attention", "engine": {"data_parallel_size": 2}},
        {"role": "ffn", "engine": {"data_parallel_size": 1}},
    ]
    result = frontier.simulate(scenario(ENCODE, PAIR[0], *unit, model="qwen3-vl-4b"))
    assert result.summary()["completed"] == 30
    assert (result.columns.requests["ttft_encode_ns"] > 0).all()
