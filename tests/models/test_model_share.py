"""FLOPs summed over ranks are the model's, however many ranks repeat parts of the work."""

import pytest

from frontier.models import Layout, load_model, operator_program, pipeline_stages
from frontier.models.operators import ComputeOperator, FusedMoe, Gemm

TOKENS = 640  # of every data parallel rank; divisible by all tensor parallel sizes below


def rows(operator: ComputeOperator, layout: Layout) -> float:
    """Return the rows of an operator on one rank; of attention, as many times a constant."""
    kind = operator.rows if isinstance(operator, Gemm | FusedMoe) else "tokens"
    if kind == "sharded_tokens":
        return TOKENS / layout.tensor_parallel_size
    return TOKENS * layout.data_parallel_size if kind == "all_tokens" else TOKENS


def model_flops(name: str, layout: Layout) -> dict[str, float]:
    """Return what the FLOPs of all ranks are proportional to, per token and operator, repeats left out."""
    totals: dict[str, float] = {}
    for stage in pipeline_stages(load_model(name), layout, weight_dtype="auto"):
        for operator in stage:
            if isinstance(operator, ComputeOperator):
                flops = rows(operator, layout) * operator.count * operator.flops_scale * operator.model_share
                flops *= layout.expert_ranks / (TOKENS * layout.data_parallel_size)
                totals[operator.name] = totals.get(operator.name, 0.0) + flops
    return totals


EP = {"enable_expert_parallel": True}


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("llama-3.1-8b", Layout(8)),
        ("llama-3.1-70b", Layout(16)),  # 8 KV heads: two ranks hold each
        ("llama-3.1-70b", Layout(4, 3, gpus_per_node=12)),
        ("qwen3-30b-a3b", Layout(8)),
        ("qwen3-30b-a3b", Layout(8, **EP)),
        ("qwen3-30b-a3b", Layout(4, 1, 2, **EP)),
        ("qwen3-30b-a3b", Layout(2, 2, 4)),
        ("gpt-oss-120b", Layout(8)),
        ("gpt-oss-120b", Layout(2, 1, 4, **EP)),
        ("glm-4.5", Layout(4, 1, 2, **EP)),
        ("deepseek-v3", Layout(8)),
        ("deepseek-v3", Layout(1, 1, 8, **EP)),
        ("deepseek-v3", Layout(8, 1, 2, True, "deepep_low_latency")),
        ("deepseek-v3", Layout(2, 2, 4, **EP)),
        ("deepseek-v3.2", Layout(8)),
        ("deepseek-v3.2", Layout(8, 1, 2, **EP)),
    ],
)
def test_ranks_together_compute_the_model_once(name: str, layout: Layout) -> None:
    whole = model_flops(name, Layout())
    assert model_flops(name, layout) == pytest.approx(whole, rel=2e-3)  # vocabulary padding


def test_work_that_every_rank_does_whole_counts_once() -> None:
    program = operator_program(load_model("deepseek-v3"), tensor_parallel_size=8, weight_dtype="auto")
    shares = {
        operator.name: operator.model_share for operator in program if isinstance(operator, ComputeOperator)
    }
    assert shares["fused_qkv_a_proj"] == pytest.approx(1 / 8)
    assert shares["router.gate"] == pytest.approx(1 / 8)
    assert shares["o_proj"] == 1
    assert shares["experts"] == 1
