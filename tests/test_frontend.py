"""API servers: client latency is engine latency plus named amounts, and steps do not change."""

from typing import Any

import numpy as np
import polars as pl
import pytest

import frontier
from frontier.errors import ConfigError


def scenario(arrivals: Any = "burst", requests: int = 3, **frontend: Any) -> dict[str, Any]:
    linear = {"per_step": "10ms"}
    engine: dict[str, Any] = {"step_time": {"linear": linear}, "async_scheduling": False}
    if frontend:
        engine["frontend"] = frontend
    return {
        "model": "llama-3.1-8b",
        "hardware": "h100",
        "engine": engine,
        "workload": {
            "synthetic": {
                "arrivals": arrivals,
                "num_requests": requests,
                "prompt_tokens": 100,
                "output_tokens": 4,
            }
        },
    }


def run(*args: Any, **settings: Any) -> frontier.Result:
    return frontier.simulate(scenario(*args, **settings))


def ms(frame: pl.DataFrame, *names: str) -> list[list[float]]:
    return [[round(value * 1e3, 6) for value in frame[name]] for name in names]


def test_the_client_waits_by_named_amounts() -> None:
    found = run(network="2ms", per_request="1ms", per_prompt_token="10us", per_output="500us").requests
    # Prompts of 100 tokens leave the one server at 4, 6 and 8 ms. The first step is from 4 to 14 ms;
    # the others are in the step from 14 to 24, whose outputs leave the server in turn, 0.5 ms each.
    ingress, queue, delivery = ms(found, "ttft_ingress_s", "ttft_queue_s", "ttft_delivery_s")
    assert ingress == [4.0, 6.0, 8.0]
    assert queue == [0.0, 8.0, 6.0]
    assert delivery == [2.5, 3.0, 3.5]
    assert ms(found, "ttft_s")[0] == [16.5, 27.0, 27.5]
    assert ms(found, "engine_ttft_s")[0] == [10.0, 18.0, 16.0]
    # The first request ends with the step to 44 ms, before the others in the same message.
    assert ms(found, "e2el_s")[0] == [46.5, 57.0 - 0.5, 57.0]
    assert ms(found, "tpot_s")[0][0] == pytest.approx((46.5 - 16.5) / 3)


def test_more_servers_wait_less() -> None:
    one, two = (
        run(per_request="1ms", api_server_count=count).requests["ttft_ingress_s"].to_list()
        for count in (1, 2)
    )
    assert one == [0.001, 0.002, 0.003]
    assert two == [0.001, 0.001, 0.002]


def test_delivery_delays_no_step() -> None:
    plain, slow = run(), run(per_output="3ms", per_message="1ms")
    assert np.array_equal(plain.columns.steps["end_ns"], slow.columns.steps["end_ns"])
    assert (
        slow.columns.requests["first_token_ns"].tolist() == plain.columns.requests["first_token_ns"].tolist()
    )
    assert slow.requests["ttft_s"].to_list() == pytest.approx([0.014, 0.017, 0.020])
    summary = slow.summary()
    difference = summary["mean_ttft_s"] - summary["mean_engine_ttft_s"]
    assert difference == pytest.approx(summary["ttft_attribution_s"]["delivery"])
    assert plain.summary()["mean_ttft_s"] == plain.summary()["mean_engine_ttft_s"]


def test_causes_add_up_under_load() -> None:
    busy = {"poisson": {"rate": "200/s"}}
    costs = {"network": "300us", "per_request": "2ms", "per_prompt_token": "3us", "per_output": "40us"}
    for separate in (False, True):
        result = run(
            busy, 200, separate_detokenizer=separate, per_message="20us", api_server_count=2, **costs
        )
        requests = result.columns.requests
        assert (requests["status"] == 0).all()
        # `Result` checks the sums; here that there is something to add up, and waiting in it.
        assert (requests["ttft_ingress_ns"] >= 2_600_000).all()
        assert requests["ttft_ingress_ns"].max() > 2_600_000
        assert (requests["e2e_delivery_ns"] >= 360_000 - 20_000).all()
        assert (
            result.digest
            == run(
                busy, 200, separate_detokenizer=separate, per_message="20us", api_server_count=2, **costs
            ).digest
        )


def test_a_closed_loop_waits_for_delivery() -> None:
    loop = {"closed_loop": {"concurrency": 1}}
    near, far = run(loop, 2), run(loop, 2, network="5ms")
    assert near.requests["arrival_s"].to_list() == [0.0, 0.04]
    assert far.requests["arrival_s"].to_list() == [0.0, 0.05]


@pytest.mark.parametrize(
    ("frontend", "path", "message"),
    [
        ({"api_server_count": 2}, "engine.frontend", "has no costs"),
        ({"network": "1ms", "api_server_count": 2}, "engine.frontend.api_server_count", "no effect"),
        (
            {"per_request": "1ms", "separate_detokenizer": True},
            "engine.frontend.separate_detokenizer",
            "without effect",
        ),
        ({"per_request": "2h"}, "engine.frontend.per_request", "must be at most"),
        ({"per_request": "1ms", "api_server_count": 0}, "engine.frontend.api_server_count", "1"),
    ],
)
def test_servers_without_effect_are_refused(frontend: dict[str, Any], path: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        frontier.Scenario.from_dict(scenario(**frontend)).resolve()
    assert [issue.path for issue in caught.value.issues] == [path]
    assert message in str(caught.value)
