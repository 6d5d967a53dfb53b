"""Layouts: sizes of the parallel groups, where they lie, and which ones are refused."""

from collections.abc import Callable
from typing import Any

import pytest

from frontier.errors import ConfigError
from frontier.models import Layout, layout_issues, load_model
from frontier.models.layout import Group
from frontier.models.sharding import pipeline_layers, sequence_style


def test_sizes_follow_from_the_groups() -> None:
    cut = Layout(4, 2, 2, gpus_per_node=8)
    assert (cut.gpus, cut.nodes, cut.expert_ranks) == (16, 2, 8)
    assert (cut.expert_parallel_size, cut.expert_tensor_parallel_size) == (1, 8)
    whole = Layout(4, 1, 2, enable_expert_parallel=True)
    assert (whole.expert_parallel_size, whole.expert_tensor_parallel_size) == (8, 1)
    assert cut.to_plan() == {
        "tensor_parallel_size": 4,
        "pipeline_parallel_size": 2,
        "data_parallel_size": 2,
    }
    assert Layout.on_one_node(16).nodes == 1


# tensor, pipeline and data parallel ranks of 16 GPUs on two nodes of 8; nodes of the tensor, data and expert
# groups and of the link from the first stage to the second. Ranks count through data, then pipeline, then
# tensor parallel ranks, the last fastest.
TWO_NODES = [
    ((16, 1, 1), (2, 1, 2, None)),
    ((8, 1, 2), (1, 2, 2, None)),
    ((8, 2, 1), (1, 1, 1, 2)),
    ((4, 4, 1), (1, 1, 1, 1)),  # stages 0 and 1 share a node, 1 and 2 do not
    ((4, 2, 2), (1, 2, 2, 1)),
    ((1, 1, 16), (1, 2, 2, None)),
    ((2, 1, 8), (1, 2, 2, None)),
    ((2, 8, 1), (1, 1, 1, 1)),
]


@pytest.mark.parametrize(("sizes", "nodes"), TWO_NODES)
def test_groups_know_their_nodes(
    sizes: tuple[int, int, int], nodes: tuple[int, int, int, int | None]
) -> None:
    tensor, pipeline, data = sizes
    layout = Layout(tensor, pipeline, data, gpus_per_node=8)
    assert layout.nodes == 2
    assert layout.tensor_group == Group(tensor, nodes[0])
    assert layout.data_group == Group(data, nodes[1])
    assert layout.expert_group == Group(tensor * data, nodes[2])
    if nodes[3] is not None:
        assert layout.stage_link(0) == Group(2, nodes[3])
    if sizes == (4, 4, 1):
        assert [layout.stage_link(stage).nodes for stage in range(3)] == [1, 2, 1]


def test_one_node_is_one_node_for_all() -> None:
    layout = Layout(2, 2, 2, gpus_per_node=8)
    groups = (layout.tensor_group, layout.data_group, layout.expert_group, layout.stage_link(0))
    assert [group.nodes for group in groups] == [1, 1, 1, 1]


# what is wrong, the field, words of the message
WRONG: list[tuple[Callable[[], Any], str, str]] = [
    (lambda: Layout(0), "tensor_parallel_size", "was 0; from 1 to 64 ranks"),
    (lambda: Layout(65), "tensor_parallel_size", "was 65; from 1 to 64 ranks"),
    (lambda: Layout(1, -1), "pipeline_parallel_size", "was -1; from 1 to 4096 stages"),
    (lambda: Layout(1, 1, True), "data_parallel_size", "was True; from 1 to 4096 ranks"),
    (lambda: Layout(1, 1, 2.0), "data_parallel_size", "was 2.0"),  # type: ignore[arg-type]
    (lambda: Layout(gpus_per_node=0), "gpus_per_node", "was 0; from 1 to 4096 GPUs"),
    (lambda: Layout(64, 64, 64), "data_parallel_size", "takes 262144 GPUs; at most 4096"),
    (
        lambda: Layout(2, 1, 2, True, "deepep_low_latncy"),  # type: ignore[arg-type]
        "moe.all2all_backend",
        "did you mean 'deepep_low_latency'",
    ),
    (lambda: Layout(enable_expert_parallel=True), "enable_expert_parallel", "has no effect on one rank"),
    (
        lambda: Layout(8, 1, 1, True, "deepep_low_latency"),
        "moe.all2all_backend",
        "has no effect without enable_expert_parallel and data_parallel_size above 1",
    ),
    (
        lambda: Layout(1, 1, 8, False, "deepep_high_throughput"),
        "moe.all2all_backend",
        "has no effect without enable_expert_parallel",
    ),
    (lambda: Layout(12, gpus_per_node=8), "tensor_parallel_size", "unevenly on nodes of 8 GPUs"),
    (lambda: Layout(2, 1, 3, gpus_per_node=4), "data_parallel_size", "unevenly on nodes of 4 GPUs"),
    (lambda: Layout(1, 3, 4, gpus_per_node=4), "data_parallel_size", "unevenly on nodes of 4 GPUs"),
]


@pytest.mark.parametrize(("build", "field", "words"), WRONG)
def test_bad_layouts_are_refused_by_field(build: Callable[[], Any], field: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build()
    (issue,) = caught.value.issues
    assert issue.path == f"engine.{field}"
    assert words in str(issue)


# model, layout, field, words of the message
UNFIT = [
    ("llama-3.1-8b", Layout(1, 1, 2), "data_parallel_size", "independent replicas, which cluster.replicas"),
    ("llama-3.1-8b", Layout(2, enable_expert_parallel=True), "enable_expert_parallel", "has no experts"),
    ("llama-3.1-8b", Layout(1, 33), "pipeline_parallel_size", "was 33, but llama-3.1-8b has 32 layers"),
    (
        "minimax-m2",
        Layout(8),
        "tensor_parallel_size",
        "192 expert features per rank are no whole number of fp8 blocks",
    ),
    ("qwen3-30b-a3b", Layout(1, 1, 5), "data_parallel_size", "size 768 is not divisible by 5"),
    ("qwen3-30b-a3b", Layout(3), "tensor_parallel_size", "32 attention heads are not divisible by 3"),
    (
        "qwen3-30b-a3b",
        Layout(1, 1, 3, enable_expert_parallel=True),
        "enable_expert_parallel",
        "128 experts cannot be spread evenly over 3 ranks",
    ),
    (
        "minimax-m2",
        Layout(2, 1, 4, True, "deepep_low_latency"),
        "moe.all2all_backend",
        "does not shard the tokens of minimax_m2 models",
    ),
]


@pytest.mark.parametrize(("preset", "layout", "field", "words"), UNFIT)
def test_models_that_do_not_fit_a_layout_are_refused(
    preset: str, layout: Layout, field: str, words: str
) -> None:
    (issue,) = layout_issues(load_model(preset), layout)
    assert issue.path == f"engine.{field}"
    assert words in str(issue)


def test_whole_experts_fit_where_cut_ones_do_not() -> None:
    assert layout_issues(load_model("minimax-m2"), Layout(8, enable_expert_parallel=True)) == []


# layers, stages, layers of each: vLLM 0.32, distributed/utils.py, get_pp_indices
SPLITS = [
    (32, 1, [32]),
    (32, 4, [8, 8, 8, 8]),
    (61, 2, [31, 30]),
    (61, 4, [15, 15, 16, 15]),
    (62, 4, [15, 16, 16, 15]),
    (63, 4, [16, 16, 16, 15]),
    (94, 8, [11, 12, 12, 12, 12, 12, 12, 11]),
    (27, 5, [5, 5, 6, 6, 5]),
]


@pytest.mark.parametrize(("layers", "stages", "split"), SPLITS)
def test_a_remainder_of_layers_goes_before_the_last_stage(layers: int, stages: int, split: list[int]) -> None:
    assert pipeline_layers(layers, stages) == split


def test_tokens_are_shared_out_with_all_three_kinds_of_parallelism_alone() -> None:
    v3, v32 = load_model("deepseek-v3"), load_model("deepseek-v3.2")
    spread = Layout(2, 1, 2, enable_expert_parallel=True)
    assert sequence_style(load_model("qwen3-30b-a3b"), spread) == "experts"
    assert sequence_style(load_model("gpt-oss-20b"), spread) == "experts"
    assert sequence_style(v3, spread) == "moe_layers"
    assert sequence_style(v32, spread) == "all_layers"
    assert sequence_style(load_model("glm-4.5"), spread) is None
    staged = Layout(2, 2, 2, enable_expert_parallel=True)
    assert {sequence_style(v3, staged), sequence_style(v32, staged)} == {"experts"}
    for layout in (
        Layout(2, 1, 2),
        Layout(4, enable_expert_parallel=True),
        Layout(1, 1, 4, enable_expert_parallel=True),
    ):
        assert sequence_style(v3, layout) is None
