"""Prefill and decode clusters from scenario to result, against closed forms."""

from typing import Any

import pytest

import frontier
from frontier.config import Scenario

MS = 1_000_000
STEP_NS = 10 * MS
BLOCK_BYTES = 16 * 32 * 2 * 8 * 128 * 2
"""16 tokens of Llama-3.1-8B: keys and values of 8 heads of 128 in 32 layers, in 16 bits."""


def pair(**changes: Any) -> Scenario:
    """Return one request of 1,000 and 5 tokens on engines whose steps take 10 ms."""
    plain = {
        "model": "llama-3.1-8b",
        "hardware": "h100",
        "engine": {"async_scheduling": False, "step_time": {"linear": {"per_step": "10ms"}}},
        "clusters": [
            {"role": "prefill", "hardware": {"price_per_hour": 1.5}},
            {"role": "decode", "replicas": 2, "hardware": {"gpu": "h200", "price_per_hour": 4.0}},
        ],
        "disaggregation": {"kv_transfer": {"bandwidth": "50GB/s", "latency": "50us", "proxy_latency": "1ms"}},
        "workload": {
            "synthetic": {
                "arrivals": "burst",
                "num_requests": 1,
                "prompt_tokens": 1000,
                "output_tokens": 5,
            }
        },
    }
    return Scenario.from_dict(plain).with_(changes)


def blocks_ns(blocks: int) -> int:
    """Return the time of KV blocks over 50 GB/s."""
    return round(blocks * BLOCK_BYTES / 50)


@pytest.mark.parametrize(
    ("mode", "proxy_ns", "crossings"),
    [("pull", MS, 1), ("buffer", MS, 1), ("store", MS, 2), ("push", 0, 1)],
)
def test_one_request_takes_a_prefill_a_transfer_and_as_many_steps_as_tokens(
    mode: str, proxy_ns: int, crossings: int
) -> None:
    """A pool is written and read; a pushed request was announced to the decode side before its prefill."""
    result = frontier.simulate(pair(**{"disaggregation.kv_transfer.mode": mode}))
    (request,) = result.requests.to_dicts()
    (transfer,) = result.transfers.to_dicts()
    # The prompt fills 62.5 blocks.
    flight_ns = 50_000 + blocks_ns(63)
    assert request["cluster"] == "decode"
    assert request["first_token_ns"] == STEP_NS + proxy_ns + crossings * flight_ns + STEP_NS
    # Five tokens take five steps of the decode engine, the first of which has the last prompt token again.
    assert request["finished_ns"] == request["first_token_ns"] + 4 * STEP_NS
    if mode != "store":
        assert transfer["bytes"] == 63 * BLOCK_BYTES
        assert transfer["end_ns"] - transfer["start_ns"] == flight_ns


def test_a_co_located_engine_takes_one_step_less() -> None:
    alone = pair(clusters=None, disaggregation=None)
    (request,) = frontier.simulate(alone).requests.to_dicts()
    assert request["first_token_ns"] == STEP_NS
    assert request["finished_ns"] == 5 * STEP_NS


def test_short_prompts_stay_on_the_decode_side() -> None:
    result = frontier.simulate(pair(**{"disaggregation.direct_below": 1000}))
    (request,) = result.requests.to_dicts()
    assert len(result.transfers) == 0
    assert request["finished_ns"] == 5 * STEP_NS
    assert request["cluster"] == "decode"
    below = frontier.simulate(pair(**{"disaggregation.direct_below": 999}))
    assert len(below.transfers) == 1


def test_costs_are_sums_over_clusters() -> None:
    summary = frontier.simulate(pair()).summary().to_dict()
    assert summary["cost_per_hour_usd"] == pytest.approx(1 * 1.5 + 2 * 4.0)


def test_weights_spread_requests_over_pools() -> None:
    clusters = [
        {"role": "prefill"},
        {"role": "decode", "name": "a", "weight": 3},
        {"role": "decode", "name": "b", "weight": 1},
    ]
    result = frontier.simulate(pair(**{"clusters": clusters, "workload.synthetic.num_requests": 40}))
    served = result.requests["cluster"].to_list()
    assert (served.count("a"), served.count("b")) == (30, 10)


def test_transfers_share_the_nic_of_their_gpu() -> None:
    """Two prompts of one step leave over one NIC of 400 Gb/s, of which 80 % are attained."""
    changes = {"disaggregation.kv_transfer": {"proxy_latency": "1ms"}}
    nic_bytes_per_ns = 40
    for requests in (1, 2):
        several = {**changes, "workload.synthetic.num_requests": requests}
        result = frontier.simulate(pair(**several))
        for transfer in result.transfers.to_dicts():
            alone_ns = 63 * BLOCK_BYTES / nic_bytes_per_ns
            assert transfer["end_ns"] - transfer["start_ns"] == pytest.approx(
                requests * alone_ns + 5_000, abs=2
            )


def test_engines_on_one_node_hand_over_by_nvlink() -> None:
    changes = {
        "disaggregation.kv_transfer": {},
        "clusters.decode.hardware": {"price_per_hour": 4.0},
        "network": {"share_nodes": True, "link_efficiency": 1},
    }
    (transfer,) = frontier.simulate(pair(**changes)).transfers.to_dicts()
    flight_ns = 63 * BLOCK_BYTES / 450 + 4_000
    assert transfer["end_ns"] - transfer["start_ns"] == pytest.approx(flight_ns, abs=2)


def test_a_function_orders_the_requests_of_one_cluster_alone() -> None:
    with pytest.raises(frontier.ConfigError, match="policy: was given for 2 clusters, must be for one"):
        frontier.simulate(pair(), policy=lambda request: request["prompt_tokens"])


def test_errors_of_predictors_are_drawn_in_every_cluster_that_has_them() -> None:
    from frontier.simulation import simulate_with_residuals

    learned = {"engine.step_time": {"learned": {}}, "clusters.decode.engine": {"step_time": "roofline"}}
    for changes in ({"engine.step_time": {"learned": {}}}, learned):
        best, drawn = simulate_with_residuals(pair(**changes), 2, reduce=lambda result: result.digest)
        assert len({best.digest, *drawn}) == 3
    mixed = pair(**{"clusters.prefill.engine": {"step_time": {"learned": {}}}})
    best, drawn = simulate_with_residuals(mixed, 1, reduce=lambda result: result.digest)
    assert best.digest != drawn[0]
    assert best.facts.step_time == "learned+linear"
