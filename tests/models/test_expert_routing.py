"""Layers with experts under `engine.moe` on whole layouts: what the plan says, and what a step costs."""

import json
from typing import Any

import pytest

from frontier import _frontier
from frontier.config.moe import Moe
from frontier.errors import ConfigError
from frontier.hardware import load_gpu
from frontier.models import Layout, load_model, pipeline_stages
from frontier.moe_lowering import moe_plan

DEEPEP = Layout(1, 1, 32, True, "deepep_low_latency")
GATHERED = Layout(1, 1, 8, enable_expert_parallel=True)


def breakdown(
    layout: Layout,
    batch: list[tuple[int, int, bool]],
    preset: str = "deepseek-v3",
    **section: Any,
) -> dict[str, Any]:
    """Price a typical step in which every data parallel rank has the same batch, by rooflines."""
    gpu, spec = load_gpu("h100"), load_model(preset)
    stages = [[each.to_plan() for each in stage] for stage in pipeline_stages(spec, layout)]
    plan = moe_plan(
        Moe.model_validate(section), stages, spec=spec, layout=layout, version="0.32", seed=1, replication=0
    )
    step_time = {
        "kind": "operators",
        "gpu": gpu.to_plan(),
        "links": gpu.links(layout.gpus, layout.nodes).to_plan(),
        "cpu": {"per_step_s": 0.0, "per_seq_s": 0.0, "overlapped": True},
        "layout": layout.to_plan(),
        "stages": stages,
        "residuals": None,
        "moe": plan,
    }
    facts = _frontier.step_breakdown(json.dumps(step_time), [batch] * layout.data_parallel_size)
    facts["plan"] = plan
    facts["seconds"] = {row["name"]: 0.0 for row in facts["operators"]}
    for row in facts["operators"]:
        facts["seconds"][row["name"]] += row["seconds"]
    return facts


DECODE = [(1, 2000, False)] * 64
PREFILL = [(4096, 4096, True)] * 4


@pytest.mark.parametrize("batch", [DECODE, PREFILL], ids=["decode", "prefill"])
@pytest.mark.parametrize("layout", [DEEPEP, GATHERED, Layout(8), Layout(1, 2, 16, True)], ids=str)
@pytest.mark.parametrize("dbo", [False, True])
def test_operators_add_up_to_the_step(
    layout: Layout, batch: list[tuple[int, int, bool]], *, dbo: bool
) -> None:
    facts = breakdown(layout, batch, enable_dbo=dbo and layout.is_deepep)
    total = sum(row["seconds"] for row in facts["operators"])
    # With two micro-batches, weights are read twice and tiles are padded twice, which no operator's row says.
    slack = 0.25 if dbo and layout.is_deepep else 1e-6
    assert total == pytest.approx(facts["total_ns"] / 1e9, rel=slack)


def test_skew_makes_ranks_wait_and_balancing_makes_it_good() -> None:
    def seconds(routing: Any, **section: Any) -> float:
        copies = section.get("eplb", {}).get("num_redundant_experts", 0)
        layout = Layout(1, 1, 32, True, "deepep_low_latency", num_redundant_experts=copies)
        return float(breakdown(layout, PREFILL, routing=routing, **section)["seconds"]["experts"])

    skewed = {"power_law": {"exponent": 0.8}}
    balanced, uniform, skew = seconds("balanced"), seconds("uniform"), seconds(skewed)
    assert balanced < uniform < skew
    eplb = {"num_redundant_experts": 32}
    assert seconds(skewed, eplb=eplb) < 0.5 * skew
    more = seconds({"bimodal": {"hot_experts": 8, "hot_share": 0.9}})
    assert more > seconds({"bimodal": {"hot_experts": 64, "hot_share": 0.9}}) > balanced


def test_dealing_experts_out_breaks_up_popular_neighbours(tmp_path: Any) -> None:
    path = tmp_path / "counts.json"
    path.write_text(json.dumps({"counts": [[8.0] * 32 + [1.0] * 224]}))
    trace: dict[str, Any] = {"routing": {"trace": {"path": str(path)}}}
    linear = breakdown(DEEPEP, PREFILL, **trace)
    dealt = breakdown(DEEPEP, PREFILL, **trace, expert_placement_strategy="round_robin")
    assert dealt["seconds"]["experts"] < 0.6 * linear["seconds"]["experts"]
    assert dealt["seconds"]["moe_dispatch"] < linear["seconds"]["moe_dispatch"]


def test_shared_experts_hide_behind_communication_up_to_the_threshold() -> None:
    def shared(threshold: int) -> float:
        found = breakdown(DEEPEP, DECODE, shared_experts_stream_token_threshold=threshold)["seconds"]
        return sum(seconds for name, seconds in found.items() if name.startswith("shared_experts."))

    alone = shared(63)
    assert alone == shared(0) > 0
    assert shared(64) < 0.05 * alone


def test_two_micro_batches_hide_communication() -> None:
    one, two = breakdown(DEEPEP, PREFILL), breakdown(DEEPEP, PREFILL, enable_dbo=True)
    assert two["seconds"]["moe_dispatch"] < 0.5 * one["seconds"]["moe_dispatch"]
    assert two["total_ns"] < one["total_ns"]
    few = breakdown(DEEPEP, PREFILL, enable_dbo=True, dbo_prefill_token_threshold=20_000)
    assert few["total_ns"] == one["total_ns"]
    decode = breakdown(DEEPEP, DECODE, enable_dbo=True, dbo_decode_token_threshold=65)
    assert decode["total_ns"] == breakdown(DEEPEP, DECODE)["total_ns"]


def test_copies_take_memory_and_let_odd_sizes_fit() -> None:
    def held(layout: Layout) -> int:
        return sum(op.weight_elements for stage in pipeline_stages(spec, layout) for op in stage)

    spec = load_model("deepseek-v3")
    without, with_copies = (
        Layout(1, 1, 32, True, "deepep_low_latency", num_redundant_experts=copies) for copies in (0, 32)
    )
    one_expert = 58 * 3 * 7168 * 2048
    assert held(with_copies) - held(without) == one_expert
    with pytest.raises(ConfigError, match="256 experts cannot be spread evenly over 144 ranks"):
        pipeline_stages(spec, Layout(1, 1, 144, True, "deepep_low_latency"))
    wide = Layout(1, 1, 144, True, "deepep_low_latency", num_redundant_experts=32)
    (experts,) = (op for stage in pipeline_stages(spec, wide) for op in stage if op.name == "experts")
    assert sum(tensor.copies for tensor in experts.weights) == 3 * 2
    with pytest.raises(ConfigError, match="without enable_expert_parallel"):
        Layout(8, num_redundant_experts=8)


def test_stages_number_their_layers_with_experts() -> None:
    plan = breakdown(Layout(1, 2, 16, True), DECODE)["plan"]
    # 61 layers, the first 3 without experts, in stages of 31 and 30.
    assert [stage["first_layer"] for stage in plan["stages"]] == [0, 28]
    assert [stage["layers"] for stage in plan["stages"]] == [31, 30]


@pytest.mark.parametrize(("version", "expected"), [("0.22", False), ("0.23", True), ("0.32", True)])
def test_the_version_decides_how_experts_are_moved(version: str, *, expected: bool) -> None:
    spec = load_model("deepseek-v3")
    stages = [[each.to_plan() for each in stage] for stage in pipeline_stages(spec, GATHERED)]
    plan = moe_plan(
        Moe.model_validate({"eplb": {}}),
        stages,
        spec=spec,
        layout=GATHERED,
        version=version,
        seed=0,
        replication=0,
    )
    assert plan is not None
    assert plan["eplb"] == {"window_size": 1000, "step_interval": 3000, "use_async": expected}
