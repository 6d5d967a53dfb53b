"""Units of attention and FFN ranks that compute prompts: alone, before decode clusters, for short prompts."""

import json
import math
from typing import Any

import pytest

import frontier
from frontier import _frontier
from frontier.afd_advisor import PromptLoad
from frontier.config import Scenario
from frontier.lowering import lower

ATTENTION: dict[str, Any] = {"role": "attention", "engine": {"data_parallel_size": 2}}
FFN: dict[str, Any] = {"role": "ffn", "engine": {"data_parallel_size": 4}}
DECODE: dict[str, Any] = {"role": "decode", "engine": {"tensor_parallel_size": 2}}
PREFILL: dict[str, Any] = {"role": "prefill", "engine": {"tensor_parallel_size": 2}}
LINK = {"kv_transfer": {"bandwidth": "50GB/s", "latency": "50us"}}


def unit(*others: dict[str, Any], **changes: Any) -> Scenario:
    """Return requests of unequal lengths on two attention ranks and four FFN ranks."""
    plain = {
        "model": "qwen3-30b-a3b",
        "hardware": "h100",
        "engine": {"step_time": "roofline"},
        "clusters": [*others, ATTENTION, FFN],
        "workload": {
            "synthetic": {
                "arrivals": {"poisson": {"rate": 60}},
                "num_requests": 120,
                "prompt_tokens": {"uniform": {"min": 10, "max": 6000}},
                "output_tokens": {"uniform": {"min": 1, "max": 40}},
            }
        },
    }
    if others:
        plain["disaggregation"] = LINK
    return Scenario.from_dict(plain).with_(changes)


def one(prompt: int, output: int, **changes: Any) -> Scenario:
    """Return a single request."""
    workload = {"arrivals": "burst", "num_requests": 1, "prompt_tokens": prompt, "output_tokens": output}
    engine = {"step_time": "roofline", "async_scheduling": False}
    return unit(**{"engine": engine, "workload.synthetic": workload, "output.steps": True, **changes})


def step_ns(scenario: Scenario, batches: list[list[tuple[int, int, bool]]]) -> int:
    """Return what the step timer says of a step of the only cluster that has requests."""
    lowered = lower(scenario)
    (cluster,) = lowered.plan["clusters"]
    found: int = _frontier.step_breakdown(json.dumps(cluster["step_time"]), batches, lowered.predictors)[
        "total_ns"
    ]
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"disaggregation.afd": {"micro_batches": 1, "a2f_dtype": "fp8"}},
        {"engine": {"async_scheduling": False, "step_time": {"learned": {}}}},
        {"model": "deepseek-v2-lite", "clusters.ffn.engine.data_parallel_size": 2},
        {"model": "llama-3.1-8b", "clusters.ffn.engine": {"tensor_parallel_size": 2}},
    ],
    ids=["roofline", "one micro-batch", "learned", "latent", "dense"],
)
def test_every_step_of_one_request_takes_what_the_timer_says(changes: dict[str, Any]) -> None:
    """Its prompt in chunks, then a token each; the rank without a request has a dummy token."""
    scenario = one(5000, 4, **{"clusters.attention.engine.max_num_batched_tokens": 2048, **changes})
    result = frontier.simulate(scenario)
    (request,) = result.requests.to_dicts()
    computed = [(2048, 2048, True), (2048, 4096, True), (904, 5000, True)]
    computed += [(1, 5000 + token, False) for token in range(1, 4)]
    found = [row["end_ns"] - row["start_ns"] for row in result.steps.to_dicts()]
    assert found == [step_ns(scenario, [[batch], [(1, 1, False)]]) for batch in computed]
    assert request["first_token_ns"] - request["arrival_ns"] >= sum(found[:3])
    assert request["finished_ns"] - request["first_token_ns"] == sum(found[3:])


def test_alone_with_one_micro_batch_over_free_links_it_serves_as_a_colocated_engine() -> None:
    free = {"latency": "0s", "bandwidth": "1000TB/s", "micro_batches": 1}
    common = {
        "engine": {
            "step_time": "roofline",
            "enforce_eager": True,
            "num_gpu_blocks_override": 2000,
            "max_model_len": 8192,
            "cpu_overhead": dict.fromkeys(
                ("per_step", "per_seq", "per_kernel_launch", "per_graph_launch"), "0s"
            ),
        },
        "workload.synthetic.arrivals": "burst",
        "output.steps": True,
    }
    sides = [{"role": "attention"}, {"role": "ffn"}]
    apart = unit(**common, clusters=sides, **{"disaggregation.afd": free})
    alone = unit(**common, clusters=[{"role": "colocated"}])
    found, expected = (frontier.simulate(scenario).steps.to_dicts() for scenario in (apart, alone))
    assert len(found) == len(expected) > 100
    layers = 48
    for own, other in zip(found, expected, strict=True):
        for name in ("prefill_tokens", "decode_tokens"):
            assert own[name] == other[name]
        took, takes = (row["end_ns"] - row["start_ns"] for row in (own, other))
        # Every part of every layer is rounded; 4 KiB per token cross the fastest link twice in a layer.
        tokens = own["prefill_tokens"] + own["decode_tokens"]
        moved = round(2 * layers * tokens * 4096 / 1e15 * 1e9)
        assert abs(took - takes - moved) <= 4 * layers + 2


@pytest.mark.parametrize(
    "scenario",
    [
        unit(),
        unit(**{"clusters.attention.replicas": 2, "clusters.ffn.replicas": 2}),
        unit(DECODE),
        unit(DECODE, **{"disaggregation.kv_transfer": {}}),
        unit(PREFILL, **{"disaggregation.direct_below": 1000}),
        unit(DECODE, **{"disaggregation.direct_below": 1000}),
    ],
    ids=["alone", "two units", "prefill", "over the network", "short prompts", "the decode side's"],
)
def test_requests_are_conserved_and_runs_repeat_bit_for_bit(scenario: Scenario) -> None:
    result = frontier.simulate(scenario)
    assert result.digest == frontier.simulate(scenario).digest
    assert result.digest != frontier.simulate(scenario.with_({"seed": 1})).digest
    rows = result.requests.to_dicts()
    assert len(rows) == 120
    assert all(row["generated_tokens"] == row["output_tokens"] for row in rows)
    whole = [row for row in rows if row["prompt_tokens"] <= 1000]
    moved = len(result.transfers)
    disaggregation = scenario.disaggregation
    if disaggregation is None or disaggregation.kv_transfer is None:
        assert moved == 0
    else:
        assert moved == 120 - (len(whole) if disaggregation.direct_below else 0)
    for row in rows:
        for name, end in (("ttft", "first_token_ns"), ("e2el", "finished_ns")):
            causes = [
                value for key, value in row.items() if key.startswith(f"{name}_") and key != f"{name}_s"
            ]
            assert sum(causes) == pytest.approx((row[end] - row["arrival_ns"]) / 1e9, abs=1e-9)


def test_prefixes_are_found_on_attention_ranks() -> None:
    shared = {"workload.synthetic.shared_prefix": {"count": 1, "tokens": 2000, "share": 1.0}}
    found = frontier.simulate(unit(**shared)).summary().to_dict()["prefix_hit_rate"]
    assert found > 0.3
    off = frontier.simulate(unit(**shared, **{"engine.enable_prefix_caching": False}))
    assert off.summary().to_dict()["prefix_hit_rate"] in (None, 0.0)


def test_links_decide_how_long_prompts_take() -> None:
    """A prompt sends kilobytes per token and layer: over a slow link its first token waits for that alone."""
    tokens, gbps = 6000, 10

    def ttft_s(**changes: Any) -> float:
        found: float = frontier.simulate(one(tokens, 1, **changes)).summary().to_dict()["mean_ttft_s"]
        return found

    slow = ttft_s(**{"disaggregation.afd": {"bandwidth": f"{gbps}GB/s", "latency": "0s"}})
    assert slow > ttft_s()
    lowered = lower(unit())
    (cluster,) = lowered.plan["clusters"]
    destinations = cluster["step_time"]["classes"][0]["destinations"]
    # 48 layers of 2,048 16-bit values per token to so many ranks, and back, on the same link in turn.
    sent_s = 48 * tokens * 2048 * 2 * destinations / (gbps * 1e9)
    assert sent_s < slow < 2 * sent_s * 1.2


def test_ffn_ranks_have_room_for_micro_batches_of_prompts() -> None:
    def activations(scenario: Scenario) -> int:
        return scenario.view("ffn").facts.memory.activation_bytes

    decodes, whole = unit(PREFILL), unit()
    assert activations(whole) > activations(decodes)
    # As many rows as max_num_batched_tokens comes to, on all attention ranks, over micro-batches.
    twice = unit(**{"clusters.attention.engine.max_num_batched_tokens": 16384})
    assert activations(twice) == pytest.approx(2 * activations(whole), rel=1e-3)
    assert activations(unit(PREFILL, **{"disaggregation.direct_below": 100})) == activations(whole)
    assert activations(unit(DECODE)) == activations(whole)


def test_a_prefill_step_is_explained_by_its_stations() -> None:
    found = frontier.explain(unit(), cluster="attention", prefill=6000)
    stations = found.prefill.stations
    assert stations is not None
    assert stations.micro_batches == 3
    assert stations.bound == "link"
    # The closed form is of equal micro-batches; parts of a prompt differ in their attention alone.
    assert stations.iteration_s == pytest.approx(found.prefill.total_s - found.prefill.host_s, rel=0.02)


@pytest.mark.parametrize(("ranks", "ffn_ranks"), [(2, 2), (4, 4)])
def test_the_advisor_counts_prompts_as_the_simulation_does(ranks: int, ffn_ranks: int) -> None:
    lengths = {"prompt_tokens": 1000, "output_tokens": {"uniform": {"min": 100, "max": 300}}}
    layout = {
        "clusters.attention.engine.data_parallel_size": ranks,
        "clusters.ffn.engine.data_parallel_size": ffn_ranks,
    }
    scenario = unit(**layout, **{f"workload.synthetic.{name}": law for name, law in lengths.items()})
    tried = {"attention_ranks": (ranks,), "ffn_ranks": (ffn_ranks,), "micro_batches": (3,)}
    best = frontier.advise_afd(scenario, **tried, tpot_s=0.06).best
    assert best is not None
    assert best.prompt_tokens == round(best.requests_per_rank * 1000 / 199)
    concurrency = best.requests_per_rank * ranks
    run = scenario.with_(
        {
            "workload.synthetic.arrivals": {"closed_loop": {"concurrency": concurrency}},
            "workload.synthetic.num_requests": 10 * concurrency,
        }
    )
    summary = frontier.simulate(run).summary().to_dict()
    assert summary["mean_tpot_s"] == pytest.approx(best.step_s, rel=0.12)
    assert summary["output_throughput"] == pytest.approx(best.tokens_per_s, rel=0.12)


def test_prompts_of_the_mean_step() -> None:
    load = PromptLoad(prompt_tokens=1000, output_tokens=201)
    assert load.per_decode == 5
    assert load.most_requests(8192) == 1365
    assert load.tokens(500) == 2500
    assert load.chunks(2500) == [(1000, 1000, True), (1000, 1000, True), (500, 750, True)]
    assert load.chunks(0) == []
    for requests in (1, 20, 500):
        steps = load.steps(requests, 4, 8192)
        # Every rank has the same tokens over all steps, those of the mean step; but not at the same time.
        of_rank = [sum(column) / len(steps) for column in zip(*steps, strict=True)]
        assert of_rank == pytest.approx([load.tokens(requests)] * 4, abs=1)
        assert len({tuple(column) for column in zip(*steps, strict=True)}) == 4
    # 2.5 prompts in a step: seven parts of the law, against its quantiles one by one.
    below, number, quantiles = math.exp(-2.5), 0, []
    for place in range(7000):
        while below < (place + 0.5) / 7000:
            number += 1
            below += math.exp(-2.5) * 2.5**number / math.factorial(number)
        quantiles.append(1000 * number)
    parts = [sum(quantiles[part * 1000 : part * 1000 + 1000]) / 1000 for part in range(7)]
    assert sorted(tokens for (tokens,) in load.steps(500, 1, 8192)) == pytest.approx(parts, abs=5)
    assert max(map(max, load.steps(1300, 4, 8192))) == 8192 - 1300


def test_the_advisor_says_what_it_leaves_out() -> None:
    limit = {"tpot_s": 0.05, "attention_ranks": (2,), "ffn_ranks": (4,), "micro_batches": (3,)}
    assert "none of them cached" in frontier.advise_afd(unit(), **limit).notes[0]
    assert frontier.advise_afd(unit(PREFILL), **limit).notes == ()
    short = unit(PREFILL, **{"disaggregation.direct_below": 100})
    assert "disaggregation.direct_below are not in them" in frontier.advise_afd(short, **limit).notes[0]
    with pytest.raises(frontier.ConfigError, match="compute prompts alone"):
        frontier.advise_afd(unit(DECODE), **limit)
    # One decode with 6,000 prompt tokens: no step of 4,096 keeps up.
    long = {"prompt_tokens": 6000, "output_tokens": 1, "arrivals": "burst", "num_requests": 9}
    small = unit(**{"workload.synthetic": long, "clusters.attention.engine.max_num_batched_tokens": 4096})
    with pytest.raises(frontier.ConfigError, match="do not keep up"):
        frontier.advise_afd(small, **limit)


def test_faults_and_the_front_door() -> None:
    two = {"clusters.attention.replicas": 2, "clusters.ffn.replicas": 2}
    fails = {"dynamics.events": [{"at": "1s", "cluster": "attention", "fail": {"down": "1s"}}]}
    rows = frontier.simulate(unit(**two, **fails)).requests.to_dicts()
    assert all(row["generated_tokens"] == row["output_tokens"] for row in rows)
    assert any(row["attempts"] > 1 for row in rows)
    few = frontier.simulate(unit(**{"admission.classes": [{"max_outstanding": 4}]}))
    assert len(few.requests) == 120
    with pytest.raises(frontier.ConfigError, match="was 'ffn', no cluster has this name"):
        unit(**two, **{"dynamics.events": [{"at": "1s", "cluster": "ffn", "fail": {"down": "1s"}}]})
