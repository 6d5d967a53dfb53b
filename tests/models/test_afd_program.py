"""Attention and FFN apart are the model: the same weights, the same work, wherever they run."""

import itertools

import pytest

from frontier.models import Operator, load_model, operator_program
from frontier.models.afd_program import (
    AfdClass,
    afd_classes,
    attention_parts,
    expected_destinations,
    ffn_parts,
    layer_runs,
    side_layout,
)
from frontier.models.operators import ComputeOperator, FusedMoe
from frontier.models.rank import Rank

MODELS = ["llama-3.1-8b", "qwen3-235b-a22b", "deepseek-v3", "gpt-oss-120b", "step-3", "gemma-3-27b"]


def sides(
    name: str, attention_gpus: int = 1, ffn_gpus: int = 1, ffn_ranks: int = 1
) -> tuple[list[AfdClass], list[list[Operator]], list[list[Operator]]]:
    spec = load_model(name)
    classes = afd_classes(spec, ffn_ranks)

    def rank(gpus: int) -> Rank:
        return Rank(spec, side_layout(gpus), "bfloat16", "bfloat16")

    attention = attention_parts(rank(attention_gpus), classes, a2f_fp8=False)
    return classes, attention, ffn_parts(rank(ffn_gpus), classes, ffn_ranks=ffn_ranks)


def totals(operators: list[Operator]) -> dict[str, tuple[int, int, int, float]]:
    found: dict[str, tuple[int, int, int, float]] = {}
    for operator in operators:
        flops = operator.flops_scale * operator.count if isinstance(operator, ComputeOperator) else 0.0
        more = (operator.count, operator.weight_elements, operator.weight_bytes, flops)
        found[operator.name] = tuple(
            map(sum, zip(found.get(operator.name, (0, 0, 0, 0.0)), more, strict=True))
        )
    return found


@pytest.mark.parametrize("name", MODELS)
def test_both_sides_are_the_colocated_program(name: str) -> None:
    classes, attention, ffn = sides(name)
    assert len(attention) == len(classes) + 2
    assert len(ffn) == len(classes)
    whole = operator_program(load_model(name), tensor_parallel_size=1)
    assert totals([*itertools.chain(*attention, *ffn)]) == totals(whole)


@pytest.mark.parametrize(
    ("name", "attention_gpus", "ffn_gpus", "ffn_ranks"),
    [
        ("llama-3.1-8b", 4, 8, 2),
        ("qwen3-235b-a22b", 8, 1, 16),
        ("qwen3-235b-a22b", 2, 2, 4),
        ("deepseek-v3", 4, 1, 64),
        ("step-3", 2, 8, 2),
    ],
)
def test_work_and_experts_are_spread_and_not_repeated(
    name: str, attention_gpus: int, ffn_gpus: int, ffn_ranks: int
) -> None:
    classes, attention, ffn = sides(name, attention_gpus, ffn_gpus, ffn_ranks)
    _, whole_attention, whole_ffn = sides(name)

    def flops(parts: list[list[Operator]], gpus: int) -> float:
        return sum(
            operator.flops_scale * operator.model_share * operator.count * gpus
            for operator in itertools.chain(*parts)
            if isinstance(operator, ComputeOperator)
        )

    assert flops(attention, attention_gpus) == pytest.approx(flops(whole_attention, 1), rel=2e-3)
    for each, part, whole in zip(classes, ffn, whole_ffn, strict=True):
        for operator, alone in zip(
            (o for o in part if isinstance(o, ComputeOperator)),
            (o for o in whole if isinstance(o, ComputeOperator)),
            strict=True,
        ):
            # Routed experts see all tokens on every GPU, all else the tokens of one FFN rank.
            gpus = ffn_gpus * ffn_ranks if isinstance(operator, FusedMoe) else ffn_gpus
            assert operator.flops_scale * gpus == pytest.approx(alone.flops_scale)
            assert operator.weight_elements * gpus == pytest.approx(alone.weight_elements, rel=1e-3)
        assert each.layers == part[0].count


@pytest.mark.parametrize("name", MODELS)
def test_runs_are_the_layers_in_order(name: str) -> None:
    spec = load_model(name)
    layers = [index for index, count in layer_runs(spec) for _ in range(count)]
    assert layers == list(spec.layer_pattern)


def test_expected_destinations_count_all_choices() -> None:
    # 6 experts in 3 pairs, 2 of them: by hand, 3 of the 15 choices are one pair, 12 are two.
    assert expected_destinations(6, 2, 3) == pytest.approx((3 * 1 + 12 * 2) / 15)
    assert expected_destinations(256, 8, 1) == 1
    assert expected_destinations(256, 8, 256) == pytest.approx(8)
