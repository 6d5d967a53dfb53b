"""What speculative decoding costs a scenario: time of every pass, memory of the draft, work in vain."""

import json
from typing import Any

import pytest

import frontier
from frontier import _frontier
from frontier.config import Scenario
from frontier.errors import ConfigError
from frontier.lowering import Lowered, lower

K = 3
EAGLE: dict[str, Any] = {"method": "eagle", "num_speculative_tokens": K, "acceptance": 0.7}
NGRAM: dict[str, Any] = {**EAGLE, "method": "ngram", "match_rate": 1.0}


def scenario(speculative: dict[str, Any] | None, *, concurrency: int = 1, **engine: Any) -> Scenario:
    return Scenario.from_dict(
        {
            "model": "llama-3.1-8b",
            "hardware": "h100",
            "engine": {"step_time": "roofline", "speculative": speculative, **engine},
            "workload": {
                "synthetic": {
                    "arrivals": {"closed_loop": {"concurrency": concurrency}},
                    "num_requests": 4 * concurrency,
                    "prompt_tokens": 200,
                    "output_tokens": 401,
                }
            },
        }
    )


def step_of(lowered: Lowered, drafted: bool, batch: int = 8, context: int = 1000) -> dict[str, Any]:
    step_time = lowered.plan["clusters"][0]["step_time"]
    if not drafted:
        step_time = {**step_time, "draft": None}
    return _frontier.step_breakdown(
        json.dumps(step_time), [[(1 + K, context, False)] * batch], lowered.predictors, 0, [[K] * batch]
    )


@pytest.mark.parametrize("step_time", ["roofline", "learned"])
def test_a_step_is_longer_by_the_passes_of_its_draft(step_time: str) -> None:
    lowered = lower(scenario(EAGLE, step_time=step_time))
    with_drafts, without = step_of(lowered, True), step_of(lowered, False)
    passes = [row for row in with_drafts["operators"] if row["name"].startswith("draft")]
    counts = {row["name"]: row["count"] for row in passes}
    assert (counts["draft.lm_head"], counts["draft_next.lm_head"]) == (1, K - 1)
    took_s = sum(row["seconds"] for row in passes)
    assert with_drafts["draft_ns"] == pytest.approx(took_s * 1e9, abs=1)
    gpu_s = [sum(row["seconds"] for row in step["operators"]) for step in (with_drafts, without)]
    assert gpu_s[0] - gpu_s[1] == pytest.approx(took_s, rel=1e-9)
    assert with_drafts["total_ns"] > without["total_ns"]
    assert "rejection_sampler" in {row["name"] for row in without["operators"]}


def test_the_target_verifies_in_full_graphs_of_one_token_and_its_drafts() -> None:
    plan = lower(scenario(EAGLE)).plan
    graphs = plan["clusters"][0]["step_time"]["launches"]["graphs"]
    assert graphs["decode_query_tokens"] == 1 + K
    assert graphs["full_decode"]
    assert all(size % (1 + K) == 0 for size in graphs["full_decode"])
    assert frontier.explain(scenario(EAGLE), decode=8, context=1000).decode.graph == "full"


def test_the_head_takes_memory_and_enlarges_every_block() -> None:
    plain, drafting = (scenario(given).resolve() for given in (None, EAGLE))
    assert drafting.draft is not None
    head = drafting.draft.weight_bytes
    assert head == pytest.approx(2 * 0.25e9, rel=0.02)  # the head's README: 0.25 B parameters
    assert drafting.memory.weights_bytes - plain.memory.weights_bytes == head
    assert drafting.memory.bytes_per_block * 32 == plain.memory.bytes_per_block * 33
    assert drafting.num_blocks == drafting.memory.available_bytes // drafting.memory.bytes_per_block
    assert drafting.num_blocks < plain.num_blocks * 32 / 33
    assert scenario(NGRAM).resolve().memory.bytes_per_block == plain.memory.bytes_per_block


def test_drafts_that_are_never_accepted_slow_a_run_down_and_sure_ones_speed_it_up() -> None:
    plain, vain, sure = (
        frontier.simulate(scenario(given)).summary()
        for given in (None, {**EAGLE, "acceptance": 0.0}, {**EAGLE, "acceptance": 1.0})
    )
    assert vain.mean_tpot_s > plain.mean_tpot_s > sure.mean_tpot_s
    assert vain.output_throughput < plain.output_throughput < sure.output_throughput
    assert (vain.mean_acceptance_length, sure.mean_acceptance_length) == (1.0, pytest.approx(1 + K))
    assert (vain.rejected_token_share, sure.rejected_token_share) == (K / (1 + K), 0.0)
    assert plain.rejected_token_share is plain.draft_time_share is None


def test_the_share_of_time_spent_drafting_is_that_of_the_steps() -> None:
    """All steps of one request have nearly the same passes, so the whole run has the share of one of them."""
    chosen = scenario({**EAGLE, "acceptance": 1.0})
    summary = frontier.simulate(chosen).summary()
    decode = frontier.explain(chosen, decode=1, context=400).decode
    assert decode.draft_s > 0
    assert summary.draft_time_share == pytest.approx(decode.draft_s / decode.total_s, rel=0.03)


def test_explain_shows_passes_and_drafts() -> None:
    found = frontier.explain(scenario(EAGLE), decode=8, context=1000)
    assert found.decode.query_tokens == 1 + K
    assert "3 drafts" in found.decode.what
    names = [each.operator for each in found.decode.operators]
    assert {"draft.qkv_proj", "draft_next.qkv_proj", "rejection_sampler"} <= set(names)
    assert found.prefill.draft_s > 0
    with pytest.raises(ConfigError, match=r"from 1 to 2 "):
        frontier.explain(scenario(EAGLE, max_num_batched_tokens=8, max_num_seqs=8), decode=3)


def test_what_the_host_searches_delays_the_step() -> None:
    contexts = 1000 * 8
    searching = step_of(lower(scenario(NGRAM)), True)
    assert searching["draft_ns"] == contexts  # 1 ns per token
    assert searching["total_ns"] - step_of(lower(scenario(NGRAM)), False)["total_ns"] == contexts
    given = step_of(lower(scenario({**NGRAM, "cpu_per_step": "2ms"})), True)
    assert given["draft_ns"] == 2_000_000
    suffix = {**NGRAM, "method": "suffix", "cpu_per_step": "1ms"}
    assert step_of(lower(scenario(suffix)), True)["draft_ns"] == 1_000_000
    assert lower(scenario({**suffix, "cpu_per_step": 0})).plan["clusters"][0]["step_time"]["draft"] is None


def test_a_linear_clock_says_that_drafting_takes_no_time() -> None:
    linear = {"linear": {"per_step": "5ms"}}
    result = frontier.simulate(scenario(EAGLE, step_time=linear))
    assert any("drafting takes no time" in warning for warning in result.summary().warnings)
    assert result.summary().draft_time_share is None
    with pytest.raises(ConfigError, match="no effect with step times of your own"):
        scenario({**NGRAM, "cpu_per_step": "1ms"}, step_time=linear)


def test_a_head_of_its_own_is_read(tmp_path: Any) -> None:
    default = scenario(EAGLE).resolve().draft
    base = {"config": "llama-3.1-8b", "num_hidden_layers": 1}
    assert scenario({**EAGLE, "model": base}).resolve().draft == default
    wider = scenario({**EAGLE, "model": {**base, "intermediate_size": 28_672}}).resolve().draft
    assert default is not None
    assert wider is not None
    assert wider.weight_bytes - default.weight_bytes == 3 * 14_336 * 4096 * 2


def test_a_prediction_layer_of_deepseek_drafts() -> None:
    given = {"method": "mtp", "num_speculative_tokens": 1, "acceptance": 0.85}
    document = scenario(None, concurrency=8).to_dict()
    document |= {"model": "deepseek-v3", "hardware": {"gpu": "h200"}}
    document["engine"] = {"step_time": "roofline", "tensor_parallel_size": 8}
    plain = Scenario.from_dict(document)
    document["engine"] = {**document["engine"], "speculative": given}
    drafting = Scenario.from_dict(document)
    blocks = [each.resolve().memory.bytes_per_block for each in (plain, drafting)]
    assert blocks[1] * 61 == blocks[0] * 62
    found = [frontier.simulate(each).summary() for each in (plain, drafting)]
    assert found[1].mean_acceptance_length == pytest.approx(1.85, abs=0.05)
    assert 0 < found[1].draft_time_share < 0.2
    assert found[1].mean_tpot_s < found[0].mean_tpot_s


def test_a_host_that_launches_slowly_delays_its_drafts_too() -> None:
    """Launches alone: the kernels of the target's graph, then of each pass in piecewise graphs, by count."""
    cpu = {"per_graph_kernel": "1ms", "per_graph_launch": "3ms", "per_kernel_launch": "10ms"}
    overhead = {"per_step": 0, "per_seq": 0, **cpu}
    plan = lower(scenario(EAGLE, cpu_overhead=overhead))
    with_drafts, without = step_of(plan, True), step_of(plan, False)
    # One layer: a piece before its attention and one after, attention and KV write; LM head and argmax.
    pieces, between, tail = {}, 2, 2
    launches = plan.plan["clusters"][0]["step_time"]["launches"]["draft"]
    for name in ("first_pass", "decode_pass"):
        counted = launches[name]
        operators = plan.plan["clusters"][0]["step_time"]["draft"][name]
        pieces[name] = sum(each["count"] for each in operators) - between - tail
        assert counted == {
            "pieces_kernels": pieces[name],
            "attention_kernels": between,
            "tail_kernels": tail,
            "pieces": 2,
        }
    per_pass_ns = {
        name: (2 * 3 + kernels + 10 * (between + tail)) * 10**6 for name, kernels in pieces.items()
    }
    drafting_ns = per_pass_ns["first_pass"] + (K - 1) * per_pass_ns["decode_pass"]
    assert with_drafts["launch_ns"] - without["launch_ns"] == pytest.approx(drafting_ns, abs=1)
    assert with_drafts["total_ns"] - without["total_ns"] == pytest.approx(drafting_ns, abs=2)
    assert with_drafts["draft_ns"] == pytest.approx(drafting_ns, abs=1)
    nothing = lower(scenario(NGRAM)).plan["clusters"][0]["step_time"]["launches"]["draft"]["first_pass"]
    assert not any(nothing.values())
