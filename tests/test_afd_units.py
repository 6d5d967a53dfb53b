"""Attention and FFN clusters from scenario to result, against the step timer that prices one decode step."""

import json
from typing import Any

import pytest

import frontier
from frontier import _frontier
from frontier.config import Scenario
from frontier.lowering import lower

PROMPT, OUTPUT = 1000, 6


def unit(**changes: Any) -> Scenario:
    """Return one request on two prefill GPUs, two attention ranks and four FFN ranks."""
    plain = {
        "model": "qwen3-30b-a3b",
        "hardware": {"gpu": "h100", "price_per_hour": 2.0},
        "engine": {"async_scheduling": False, "step_time": "roofline"},
        "clusters": [
            {"role": "prefill", "engine": {"tensor_parallel_size": 2}},
            {
                "role": "attention",
                "hardware": {"gpu": "h20", "price_per_hour": 1.0},
                "engine": {"data_parallel_size": 2},
            },
            {"role": "ffn", "engine": {"data_parallel_size": 4}},
        ],
        "disaggregation": {"kv_transfer": {"bandwidth": "50GB/s", "latency": "50us"}},
        "workload": {
            "synthetic": {
                "arrivals": "burst",
                "num_requests": 1,
                "prompt_tokens": PROMPT,
                "output_tokens": OUTPUT,
            }
        },
    }
    return Scenario.from_dict(plain).with_(changes)


BUSY = {
    "workload.synthetic.num_requests": 120,
    "workload.synthetic.output_tokens": {"uniform": {"min": 2, "max": 60}},
    "workload.synthetic.arrivals": {"poisson": {"rate": 200}},
}


def step_ns(scenario: Scenario, batches: list[list[tuple[int, int, bool]]]) -> int:
    """Return what the step timer says of a decode step of the attention cluster."""
    lowered = lower(scenario)
    step_time = json.dumps(lowered.plan["clusters"][1]["step_time"])
    found: int = _frontier.step_breakdown(step_time, batches, lowered.predictors)["total_ns"]
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"disaggregation.afd": {"micro_batches": 1, "a2f_dtype": "fp8", "latency": "20us"}},
        {"engine.step_time": {"learned": {}}},
        {"model": "deepseek-v2-lite", "clusters.ffn.engine.data_parallel_size": 2},
        {"model": "llama-3.1-8b", "clusters.ffn.engine": {"tensor_parallel_size": 2}},
    ],
    ids=["roofline", "fp8", "learned", "shared experts", "dense"],
)
def test_every_decode_step_of_one_request_takes_what_the_timer_says(changes: dict[str, Any]) -> None:
    """The rank without a request takes part with one dummy token, as vLLM's idle ranks do."""
    scenario = unit(**changes, **{"output.steps": True})
    result = frontier.simulate(scenario)
    (request,) = result.requests.to_dicts()
    assert request["cluster"] == "attention"
    steps = [row for row in result.steps.to_dicts() if row["cluster"] == "attention"]
    found = [row["end_ns"] - row["start_ns"] for row in steps]
    # The first step has the last prompt token again, the others one more token each.
    assert found == [
        step_ns(scenario, [[(1, PROMPT + done, done == 0)], [(1, 1, False)]]) for done in range(OUTPUT)
    ]
    assert request["finished_ns"] - request["first_token_ns"] == sum(found[1:])


def test_requests_are_conserved_and_runs_repeat_bit_for_bit() -> None:
    scenario = unit(**BUSY)
    result = frontier.simulate(scenario)
    assert result.digest == frontier.simulate(scenario).digest
    assert result.digest != frontier.simulate(scenario.with_({"seed": 1})).digest
    rows = result.requests.to_dicts()
    assert len(rows) == 120
    assert all(row["generated_tokens"] == row["output_tokens"] for row in rows)
    assert {row["cluster"] for row in rows} == {"attention"}
    assert {row["dp_rank"] for row in rows} == {0, 1}
    assert len(result.transfers) == 120


def test_gpus_costs_and_power_count_both_sides() -> None:
    scenario = unit(**{"clusters.attention.replicas": 3, "clusters.ffn.replicas": 3})
    result = frontier.simulate(scenario)
    # Two for prefill, three units of two for attention and four for the FFN.
    assert result.facts.gpus_total == 2 + 3 * (2 + 4)
    summary = result.summary().to_dict()
    assert summary["cost_per_hour_usd"] == pytest.approx(2 * 2.0 + 3 * (2 * 1.0 + 4 * 2.0))
    _, mean = result.facts.clusters
    h20, h100 = frontier.load_gpu("h20"), frontier.load_gpu("h100")
    assert h20.power is not None
    assert h100.power is not None
    assert mean.peak_power_w == pytest.approx((2 * h20.power.peak_w + 4 * h100.power.peak_w) / 6)


def test_slower_links_cost_time() -> None:
    def tpot(**changes: Any) -> float:
        found: float = frontier.simulate(unit(**BUSY, **changes)).summary().to_dict()["mean_tpot_s"]
        return found

    assert tpot(**{"disaggregation.afd": {"bandwidth": "1GB/s"}}) > tpot()


def test_routing_of_the_ffn_cluster_makes_stragglers() -> None:
    """In large batches: in small ones popular experts leave others, and their weights, alone."""
    routing, launches = "clusters.ffn.engine.moe", "engine.cpu_overhead.per_kernel_launch"
    # Nothing else hides the slowest rank.
    alone = {"disaggregation.afd": {"micro_batches": 1, "bandwidth": "1TB/s"}}
    batches = [[(1, 32, False)] * 6000] * 2
    balanced, hot = (
        step_ns(unit(**alone, **{routing: {"routing": law, **more}, launches: "0s"}), batches)
        for law, more in (("balanced", {}), ({"power_law": {"exponent": 1.2}}, {"sampling": "mean"}))
    )
    assert hot > 1.02 * balanced


def test_errors_of_predictors_are_drawn_on_both_sides() -> None:
    from frontier.simulation import simulate_with_residuals

    scenario = unit(**BUSY, **{"engine.step_time": {"learned": {}}})
    best, drawn = simulate_with_residuals(scenario, 2, reduce=lambda result: result.digest)
    assert len({best.digest, *drawn}) == 3


def test_full_attention_ranks_hold_prefill_back() -> None:
    """Attention ranks with room for few requests: KV waits on the prefill side, and everything ends."""
    tight = {"clusters.attention.engine": {"data_parallel_size": 2, "num_gpu_blocks_override": 100}}
    lengths = {"engine.max_model_len": 1500}
    result = frontier.simulate(unit(**BUSY, **tight, **lengths))
    free = frontier.simulate(unit(**BUSY, **lengths))
    assert all(row["generated_tokens"] == row["output_tokens"] for row in result.requests.to_dicts())
    waits = [each.summary().to_dict()["mean_kv_transfer_wait_s"] for each in (free, result)]
    assert waits[1] > 10 * waits[0]


def test_a_step_is_explained_by_parts_and_by_the_closed_form() -> None:
    found = frontier.explain(unit(), cluster="attention", decode=96, context=2048)
    stations = found.decode.stations
    assert stations is not None
    assert found.gpus_per_replica == 6
    names = [each.operator for each in found.decode.operators]
    assert names.index("router.gate") < names.index("sampler") < names.index("experts") < names.index("a2f")
    # 96 requests in three equal micro-batches, layers of one kind: nothing but head and tail is left out.
    lowered = lower(unit().view("attention").scenario)
    rows = _frontier.step_breakdown(
        json.dumps(lowered.only.plan["step_time"]), [[(1, 2048, False)] * 96] * 2, lowered.predictors
    )["operators"]
    ends = sum(row["seconds"] for row in rows if row["stage"] in (0, 2))
    assert stations.iteration_s + ends == pytest.approx(found.decode.total_s - found.decode.host_s, rel=0.01)
    with pytest.raises(frontier.ConfigError, match="explained with their attention cluster"):
        frontier.explain(unit(), cluster="ffn")


def test_the_advisor_prices_what_the_scenario_would_run() -> None:
    scenario = unit(**{"objectives.tpot": "30ms"})
    advice = frontier.advise_afd(scenario, attention_ranks=(2,), ffn_ranks=(4,), micro_batches=(1, 3))
    assert advice.best is not None
    for choice in advice.choices:
        own = scenario.with_({"disaggregation.afd": {"micro_batches": choice.layout.micro_batches}})
        batches = [[(1, PROMPT + OUTPUT // 2, False)] * choice.requests_per_rank] * 2
        assert choice.step_s == step_ns(own, batches) / 1e9
    usd_per_s = (2 * 1.0 + 4 * 2.0) / 3600
    assert advice.best.tokens_per_usd == pytest.approx(advice.best.tokens_per_s / usd_per_s)
    default = frontier.advise_afd(scenario, max_gpus=8)
    assert {choice.layout.ffn_ranks for choice in default.choices} <= {1, 2, 4}
    small = frontier.advise_afd(
        scenario.with_({"clusters.ffn.engine.gpu_memory_utilization": 0.3}), ffn_ranks=(1, 4)
    )
    assert {layout.ffn_ranks for layout in small.too_large} == {1}
    for wrong, path in (
        ({"tpot_s": None}, "tpot_s"),
        ({"ffn_ranks": (0,)}, "ffn_ranks"),
        ({"context": 0}, "context"),
        ({"cluster": "ffn"}, "cluster"),
    ):
        bare = unit() if path == "tpot_s" else scenario
        with pytest.raises(frontier.ConfigError) as caught:
            frontier.advise_afd(bare, **wrong)
        assert [issue.path for issue in caught.value.issues] == [path]
