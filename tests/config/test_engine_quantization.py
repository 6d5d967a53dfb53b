"""`engine.quantization` in a scenario: the plan, the memory and the trust follow from it."""

from collections.abc import Callable
from typing import Any

import pytest

import frontier
from frontier.config import Scenario
from frontier.errors import Issue
from frontier.lowering import lower
from frontier.predictors import chooser
from frontier.predictors.select import GENERIC

Problems = Callable[..., dict[str, Issue]]
AWQ = {"config": "llama-3.1-8b", "quantization_config": {"quant_method": "awq", "bits": 4}}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}


def operators(scenario: Scenario) -> dict[str, dict[str, Any]]:
    (stage,) = lower(scenario).plan["clusters"][0]["step_time"]["stages"]
    return {operator["name"]: operator for operator in stage}


def test_memory_and_step_times_follow(base: Scenario) -> None:
    plain, narrow = base.resolve(), base.with_({"engine.quantization": "fp8_per_tensor"}).resolve()
    saved = plain.memory.weights_bytes - narrow.memory.weights_bytes
    linear = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    assert saved == linear - 4 * 7 * 32
    assert narrow.memory.available_bytes - plain.memory.available_bytes == saved
    assert narrow.num_blocks > plain.num_blocks
    roofline = {"engine.step_time": {"roofline": {}}}
    before = frontier.explain(base.with_(roofline))
    after = frontier.explain(base.with_({**roofline, "engine.quantization": "fp8_per_tensor"}))
    assert after.decode.gpu_s < before.decode.gpu_s
    assert after.prefill.gpu_s < before.prefill.gpu_s


def test_arithmetic_follows_the_gpu(base: Scenario) -> None:
    quantised = base.with_({"engine.quantization": "fp8_per_block"})
    assert operators(quantised)["o_proj"]["dtype"] == "fp8"
    widened = operators(quantised.with_({"hardware.gpu": "a100-80gb"}))
    assert (widened["o_proj"]["dtype"], "quant_fp8" in widened) == ("bf16", False)
    assert widened["o_proj"]["weight_bytes"] == pytest.approx(1.0, rel=1e-3)
    assert (widened["lm_head"]["dtype"], widened["lm_head"]["weight_bytes"]) == ("bf16", 2.0)


def test_what_no_pack_has_is_priced_by_its_bound_and_said_to_be_unmeasured(base: Scenario) -> None:
    if chooser.shipped_pack("h100") is None or chooser.shipped_pack(GENERIC) is None:
        pytest.skip("frontier comes without packs")
    awq = base.with_({"model": AWQ})
    lowered = lower(awq)
    (stage,) = lowered.plan["clusters"][0]["step_time"]["stages"]
    products = [operator for operator in stage if operator["op"] == "gemm"]
    assert {op["name"] for op in products if op["predictor"] is None} >= {"qkv_proj", "o_proj", "down_proj"}
    assert lowered.attached is not None
    assert any("priced by their bound" in note and "qkv_proj" in note for note in lowered.attached.notes)
    shares = frontier.explain(awq).decode.shares
    assert shares["unmeasured"] > 0.3
    assert frontier.explain(base).decode.shares["unmeasured"] < 0.1


def test_quantisation_is_not_priced_beside_products_that_were_measured_with_it(base: Scenario) -> None:
    if chooser.shipped_pack("h100") is None:
        pytest.skip("frontier comes without packs")
    quantised = base.with_({"engine.quantization": "fp8_per_block", "engine.kv_cache_dtype": "fp8"})
    lowered = lower(quantised)
    names = {op["name"] for stage in lowered.plan["clusters"][0]["step_time"]["stages"] for op in stage}
    assert "quant_fp8" not in names
    assert "query_quant" in names
    assert lowered.attached is not None
    assert any(note.startswith("quant_fp8: a part of products") for note in lowered.attached.notes)
    bounds = operators(quantised.with_({"engine.step_time": {"roofline": {}}}))
    assert {"quant_fp8", "query_quant"} <= set(bounds)


def test_a_declared_cache_halves_the_block(base: Scenario) -> None:
    declared = base.with_({"model": {"config": "llama-3.1-8b", "quantization_config": MODELOPT}}).resolve()
    assert declared.memory.bytes_per_block * 2 == base.resolve().memory.bytes_per_block
    asked = {"config": "llama-3.1-8b", "quantization_config": MODELOPT}
    kept = base.with_({"model": asked, "engine.kv_cache_dtype": "bfloat16"}).resolve()
    assert kept.memory.bytes_per_block == base.resolve().memory.bytes_per_block


def test_names_that_do_not_suit_are_problems_of_the_field(problems: Problems) -> None:
    found = problems(engine={"quantization": "fp8"})
    assert "does not convert a 16-bit checkpoint" in found["engine.quantization"].message
    found = problems(engine={"quantization": "bitsandbytes"})
    assert "not modelled" in found["engine.quantization"].message
    assert "fp8_per_block" in found["engine.quantization"].allowed
    found = problems(hardware="h100", engine={"quantization": "mxfp8"})
    assert "needs compute capability 10.0" in found["engine.quantization"].message


def test_the_name_of_the_checkpoint_is_no_other_run(base: Scenario) -> None:
    awq = base.with_({"model": AWQ})
    assert lower(awq).plan_json == lower(awq.with_({"engine.quantization": "awq_marlin"})).plan_json
