"""The simulator takes the programs of whole layouts, and counts the model's FLOPs in each."""

import json
from dataclasses import replace
from typing import Any

import pytest

from frontier import _frontier
from frontier.hardware import load_gpu
from frontier.models import Layout, Operator, load_model, pipeline_stages
from frontier.models.operators import FusedMoe

BATCH = [(63, 63, True), (1, 700, False)]
"""64 tokens, of which each tensor parallel rank has an equal share, and each expert an equal number."""


def evenly(operator: Operator) -> Operator:
    """Spread tokens over experts evenly: otherwise the busiest rank counts for all."""
    return replace(operator, imbalance=-1.0) if isinstance(operator, FusedMoe) else operator


def breakdown(preset: str, layout: Layout) -> dict[str, Any]:
    """Price one step in which every data parallel rank has the same batch."""
    gpu = load_gpu("h200")
    stages = pipeline_stages(load_model(preset), layout, weight_dtype="auto")
    step_time = {
        "kind": "operators",
        "gpu": gpu.to_plan(),
        "links": gpu.links(layout.gpus, layout.nodes).to_plan(),
        "cpu": {"per_step_s": 0.0, "per_seq_s": 0.0, "overlapped": True},
        "layout": layout.to_plan(),
        "stages": [[evenly(operator).to_plan() for operator in stage] for stage in stages],
        "residuals": None,
    }
    priced = _frontier.step_breakdown(json.dumps(step_time), [BATCH] * layout.data_parallel_size)
    assert len(priced["operators"]) == sum(len(stage) for stage in stages)
    return priced


WHOLE_BATCHES = [
    ("llama-3.1-70b", Layout(8, 2)),
    ("llama-3.1-70b", Layout(1, 3)),
    ("qwen3-30b-a3b", Layout(2, 1, 4)),
    ("qwen3-30b-a3b", Layout(8, enable_expert_parallel=True)),
    ("glm-4.5-air", Layout(4, 1, 4, enable_expert_parallel=True)),
    ("deepseek-v3", Layout(1, 1, 16, True, "deepep_high_throughput")),
    ("deepseek-v3", Layout(8, 2)),
]
SHARES_OF_BATCHES = [
    ("qwen3-30b-a3b", Layout(4, 1, 2, enable_expert_parallel=True)),
    ("deepseek-v3", Layout(8, 1, 2, True, "deepep_low_latency")),
    ("deepseek-v3", Layout(4, 2, 2, enable_expert_parallel=True)),
    ("deepseek-v3.2", Layout(8, 1, 2, enable_expert_parallel=True)),
]


@pytest.mark.parametrize(("preset", "layout"), WHOLE_BATCHES + SHARES_OF_BATCHES)
def test_every_layout_computes_the_model_once(preset: str, layout: Layout) -> None:
    one = breakdown(preset, Layout())
    spread = breakdown(preset, layout)
    # padded vocabularies repeat a little
    assert spread["flops"] == pytest.approx(layout.data_parallel_size * one["flops"], rel=2e-3)
    assert len(spread["stages_s"]) == layout.pipeline_parallel_size
    assert spread["total_ns"] > 0
