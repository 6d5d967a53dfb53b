"""SGLang's prefill and decode servers in scenarios: what follows, and what is refused."""

from typing import Any

import pytest
from role_clusters import DECODE, PREFILL, plain

from frontier.config import Scenario
from frontier.errors import ConfigError
from frontier.lowering import lower

SGLANG = {"name": "sglang", "version": "0.5.3", "tensor_parallel_size": 4}
TRANSFER = "disaggregation.kv_transfer"


def pair(
    engine: dict[str, Any] | None = None,
    prefill: dict[str, Any] | None = None,
    decode: dict[str, Any] | None = None,
    **sections: Any,
) -> dict[str, Any]:
    """Return a scenario of one server each; `engine` is of both, as `engine.sglang`."""
    clusters = [{**PREFILL, "engine": prefill or {}}, {**DECODE, "engine": decode or {}}]
    common = SGLANG | ({"sglang": engine} if engine else {})
    return plain(*clusters, **{"engine": common, **sections})


def problems(document: dict[str, Any]) -> dict[str, str]:
    """Return the messages by path."""
    with pytest.raises(ConfigError) as caught:
        Scenario.from_dict(document)
    return {issue.path: issue.message for issue in caught.value.issues}


def test_what_is_left_out_is_what_sglang_does() -> None:
    plan = lower(Scenario.from_dict(pair())).plan
    receives = plan["paths"][0]["legs"][1]["receives"]
    assert (receives["mode"], receives["granularity"], receives["first_token"]) == (
        "push",
        "chunk",
        "carried",
    )
    # Keys and values of a token: 80 layers, 8 heads of 128.
    assert receives["bytes_per_block"] == 80 * 2 * 8 * 128 * 2
    prefill, decode = (cluster["scheduler"] for cluster in plan["clusters"])
    assert prefill["disaggregation"] == {"mode": "prefill"}
    assert decode["disaggregation"] == {
        "mode": "decode",
        "num_reserved_decode_tokens": 512,
        "polling_interval": 1,
    }
    assert (prefill["disable_radix_cache"], decode["disable_radix_cache"]) == (False, True)
    alone = lower(Scenario.from_dict({**plain(engine=SGLANG), "clusters": [{"role": "colocated"}]})).plan
    assert "disaggregation" not in alone["clusters"][0]["scheduler"]


def test_settings_of_the_decode_server() -> None:
    own = {"num_reserved_decode_tokens": 0, "disaggregation_decode_polling_interval": 3}
    for document in (pair(own), pair(decode={"sglang": own})):
        (_, decode) = lower(Scenario.from_dict(document)).plan["clusters"]
        assert decode["scheduler"]["disaggregation"] == {
            "mode": "decode",
            "num_reserved_decode_tokens": 0,
            "polling_interval": 3,
        }


@pytest.mark.parametrize(
    ("document", "path", "words"),
    [
        (pair(disaggregation={"kv_transfer": {"mode": "pull"}}), f"{TRANSFER}.mode", "sets memory aside"),
        (pair(disaggregation={"kv_transfer": {"mode": "store"}}), f"{TRANSFER}.mode", "sets memory aside"),
        (
            pair(disaggregation={"kv_transfer": {"granularity": "layer"}}),
            f"{TRANSFER}.granularity",
            "each chunk",
        ),
        (
            pair(disaggregation={"kv_transfer": {"proxy_latency": "1ms"}}),
            f"{TRANSFER}.proxy_latency",
            "both servers at once",
        ),
        (pair(disaggregation={"direct_below": 100}), "disaggregation.direct_below", "computes no prompts"),
        (pair(disaggregation={"deflect_above": 100}), "disaggregation.deflect_above", "computes no prompts"),
        (pair({"enable_mixed_chunk": True}), "engine.sglang.enable_mixed_chunk", "in one step"),
        (
            pair({"enable_priority_scheduling": True}),
            "engine.sglang.enable_priority_scheduling",
            "sets no priorities",
        ),
        (
            pair(prefill={"sglang": {"num_reserved_decode_tokens": 64}}),
            "clusters.0.engine.sglang.num_reserved_decode_tokens",
            "no effect on prefill servers",
        ),
        (
            pair(decode={"sglang": {"schedule_policy": "lpm"}}),
            "clusters.1.engine.sglang.schedule_policy",
            "no effect on decode servers",
        ),
        (
            pair(decode={"name": "vllm", "version": "0.32"}),
            "clusters.1.engine.name",
            "engines of one kind alone",
        ),
        (
            pair(decode={"kv_cache_dtype": "fp8_e4m3"}),
            "clusters.1.engine.kv_cache_dtype",
            "handed over as it is",
        ),
        (
            {
                **plain(),
                "engine": SGLANG | {"sglang": {"num_reserved_decode_tokens": 64}},
                "clusters": [{"role": "colocated"}],
            },
            "engine.sglang.num_reserved_decode_tokens",
            "without prefill and decode clusters",
        ),
    ],
)
def test_what_has_no_effect_or_is_not_done_is_refused(
    document: dict[str, Any], path: str, words: str
) -> None:
    assert words in problems(document)[path]


def test_vllm_has_the_same_ways_as_ever() -> None:
    receives = lower(Scenario.from_dict(plain())).plan["paths"][0]["legs"][1]["receives"]
    assert (receives["mode"], receives["granularity"], receives["first_token"]) == (
        "pull",
        "request",
        "recomputed",
    )


def test_servers_may_be_lost_and_clients_may_give_up() -> None:
    lost = {"events": [{"at": "1s", "cluster": "decode", "fail": {"down": "2s"}}], "lost_requests": "rerun"}
    Scenario.from_dict(pair(dynamics=lost))
    alone = {**plain(engine=SGLANG), "clusters": [{"role": "colocated", "name": "decode"}], "dynamics": lost}
    assert "SGLang's with prefill and decode clusters" in problems(alone)["engine.name"]
