"""FLOPs summed over ranks are the model's, however many ranks repeat parts of the work."""

import pytest

from frontier.models import load_model, operator_program
from frontier.models.operators import ComputeOperator


def model_flops(name, ranks):
    """Return what the FLOPs of all ranks are proportional to, per operator name, repeats left out."""
    totals = {}
    program = operator_program(load_model(name), tensor_parallel_size=ranks, weight_dtype="auto")
    for operator in program:
        if isinstance(operator, ComputeOperator):
            flops = operator.count * operator.flops_scale * operator.model_share * ranks
            totals[operator.name] = totals.get(operator.name, 0.0) + flops
    return totals


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        ("llama-3.1-8b", 8),
        ("llama-3.1-70b", 16),  # 8 KV heads: two ranks hold each
        ("qwen3-30b-a3b", 8),
        ("gpt-oss-120b", 8),
        ("deepseek-v3", 8),
        ("deepseek-v3.2", 8),
    ],
)
def test_ranks_together_compute_the_model_once(name, ranks):
    assert model_flops(name, ranks) == pytest.approx(model_flops(name, 1), rel=2e-3)  # vocabulary padding


def test_work_that_every_rank_does_whole_counts_once():
    program = operator_program(load_model("deepseek-v3"), tensor_parallel_size=8, weight_dtype="auto")
    shares = {
        operator.name: operator.model_share for operator in program if isinstance(operator, ComputeOperator)
    }
    assert shares["fused_qkv_a_proj"] == pytest.approx(1 / 8)
    assert shares["o_proj"] == 1
