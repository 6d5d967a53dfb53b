"""More KV heads than were profiled: a request of 32 heads is four of eight, kernels work on pairs of both."""

import json
from typing import Any

import pytest

from frontier import _frontier
from frontier.config import Scenario
from frontier.lowering import lower

FEW_HEADS: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 32,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "torch_dtype": "float16",
}


def attention(model: Any, batch: list[tuple[int, int, bool]], **engine: Any) -> dict[str, Any]:
    scenario = Scenario.from_dict(
        {
            "model": model,
            "hardware": "h100",
            "engine": {"max_num_seqs": 512, "max_model_len": 4096, **engine},
            "workload": {
                "synthetic": {
                    "arrivals": "burst",
                    "num_requests": 1,
                    "prompt_tokens": 10,
                    "output_tokens": 10,
                }
            },
        }
    )
    lowered = lower(scenario)
    step_time = json.dumps(lowered.plan["clusters"][0]["step_time"])
    found = _frontier.step_breakdown(step_time, [batch], lowered.predictors)
    return next(each for each in found["operators"] if each["name"] == "attention")


@pytest.mark.parametrize(("requests", "context"), [(3, 2000), (20, 700), (40, 300)])
def test_decodes_of_many_heads_are_more_decodes_of_few(requests: int, context: int) -> None:
    many = attention("llama-2-7b", [(1, context, False)] * requests)
    few = attention(FEW_HEADS, [(1, context, False)] * 4 * requests)
    assert many["seconds"] == pytest.approx(few["seconds"], rel=1e-6)
    assert few["provenance"] == "measured"
    assert many["provenance"] == "interpolated"  # the kernel was profiled, not this shape


def test_prefills_of_many_heads_were_profiled_and_stay_as_they_are() -> None:
    assert attention("llama-2-7b", [(512, 512, True)] * 2)["provenance"] == "measured"


@pytest.mark.parametrize(("requests", "context"), [(4, 2000), (16, 1000), (48, 500)])
def test_where_many_heads_were_profiled_both_ways_agree(requests: int, context: int) -> None:
    """SGLang's FlashAttention 3 was profiled on an H100 with 1 to 64 KV heads: nothing is folded there."""
    kernels = {"step_time": {"learned": {"backend": "sglang"}}}
    many = attention("llama-2-7b", [(1, context, False)] * requests, **kernels)
    few = attention(FEW_HEADS, [(1, context, False)] * 4 * requests, **kernels)
    assert many["provenance"] == few["provenance"]
    assert many["seconds"] == pytest.approx(few["seconds"], rel=0.05)
