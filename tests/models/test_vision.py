"""Vision towers: parameters against published checkpoints, FLOPs against closed forms, refusals."""

import copy
from typing import Any

import pytest

from frontier.errors import ConfigError
from frontier.models import Layout, load_model, parameter_counts
from frontier.models.operators import Attention, Gemm, Operator
from frontier.models.spec import ModelSpec
from frontier.models.vision_program import tower_issues, tower_parameters, tower_program

QWEN2 = {
    "model_type": "qwen2_vl",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "vision_config": {
        "depth": 32,
        "embed_dim": 1280,
        "hidden_size": 3584,
        "mlp_ratio": 4,
        "num_heads": 16,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}
"""Qwen/Qwen2-VL-7B-Instruct, the keys that count."""
GEMMA = {
    "model_type": "gemma3",
    "mm_tokens_per_image": 256,
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262208,
        "sliding_window": 1024,
        "max_position_embeddings": 131072,
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "image_size": 896,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
    },
}
"""google/gemma-3-4b-it with the defaults of its classes written out."""


@pytest.mark.parametrize(
    ("source", "whole"),
    [
        ("qwen2.5-vl-7b", 8_292_166_656),
        ("qwen3-vl-4b", 4_437_815_808),
        (QWEN2, 8_291_375_616),
        (GEMMA, 4_300_079_472),
    ],
)
def test_tower_and_language_model_have_the_parameters_of_the_checkpoint(source: Any, whole: int) -> None:
    # Sizes in the indices of the checkpoints on the Hugging Face hub, in 16 bits.
    spec = load_model(source)
    assert parameter_counts(spec).total + tower_parameters(spec) == whole


def test_towers_have_the_sizes_that_papers_give() -> None:
    # "675M" for the vision encoder of all sizes of Qwen2-VL (arXiv:2409.12191, table 1).
    assert abs(tower_parameters(load_model(QWEN2)) - 675e6) < 1e6
    # 417M for the vision encoder of all sizes of Gemma 3 (arXiv:2503.19786, table 1), without the projection.
    gemma = load_model(GEMMA)
    projection = 1152 * 2560 + 1152
    assert round((tower_parameters(gemma) - projection) / 1e6) == 417


def test_a_siglip_tower_is_so400m_without_its_pooling_head() -> None:
    # The vision model of google/siglip-so400m-patch14-384 has 428,225,600; its pooling head, which language
    # models leave out, is a probe, attention, a norm and a feed-forward part.
    config: Any = copy.deepcopy(GEMMA)
    config["vision_config"]["image_size"] = 378
    config["mm_tokens_per_image"] = 729
    width, inner = 1152, 4304
    attention = 4 * (width * width + width)
    fed = 2 * width * inner + inner + width
    head = width + attention + 2 * width + fed
    tower = tower_parameters(load_model(config)) - (width * 2560 + width)
    assert tower + head == 428_225_600


def flops(operators: list[Operator], tokens: int) -> float:
    """Return the FLOPs of products over one image."""
    return sum(2.0 * each.count * each.flops_scale * tokens for each in operators if isinstance(each, Gemm))


def test_products_of_a_pass_are_those_of_the_weights() -> None:
    spec, tokens = load_model("qwen2.5-vl-7b"), 4096
    layer = 3 * 1280 * 1280 + 1280 * 1280 + 3 * 1280 * 3420
    patches = 2.0 * tokens * (32 * layer + 1176 * 1280)
    merger = 2.0 * (tokens / 4) * (5120 * 5120 + 5120 * 3584)
    assert flops(tower_program(spec), tokens) == pytest.approx(patches + merger, rel=1e-12)


def test_a_merger_moves_the_bytes_of_its_rows() -> None:
    program = {each.name: each for each in tower_program(load_model("qwen2.5-vl-7b"))}
    first = program["merger.fc1"]
    assert isinstance(first, Gemm)
    assert first.k * first.n * first.weight_bytes_per_element == 2 * 5120 * 5120
    per_patch = (first.k + first.n) * first.activation_bytes
    assert per_patch == pytest.approx(2 * (5120 + 5120) / 4)


def test_windows_and_whole_images() -> None:
    program = [each for each in tower_program(load_model("qwen2.5-vl-7b")) if isinstance(each, Attention)]
    # Windows of 112 pixels are 8 x 8 patches; four layers of 32 see all of an image.
    assert {(each.count, each.block_tokens) for each in program} == {(28, 64), (4, None)}
    assert [each.to_plan()["span"] for each in program] == [
        {"kind": "request"},
        {"kind": "blocks", "tokens": 64},
    ]
    (fixed,) = [each for each in tower_program(load_model(GEMMA)) if isinstance(each, Attention)]
    assert fixed.block_tokens == 64 * 64


def test_deepstack_widens_embeddings() -> None:
    for name, width in (("qwen3-vl-4b", 4 * 2560), ("qwen2.5-vl-7b", 3584)):
        tower = load_model(name).vision
        assert tower is not None
        assert tower.embedding_width == width


def test_ranks_share_the_tower() -> None:
    spec = load_model("qwen2.5-vl-7b")
    alone, shared = tower_program(spec), tower_program(spec, Layout.on_one_node(2))
    assert 2 * flops(shared, 100) > flops(alone, 100)
    done = sum(
        2 * each.count * each.flops_scale * each.model_share for each in shared if isinstance(each, Gemm)
    )
    assert done == pytest.approx(
        sum(each.count * each.flops_scale for each in alone if isinstance(each, Gemm))
    )
    assert any(each.name == "all_reduce.attention" for each in shared)
    assert spec.vision is not None
    assert not tower_issues(spec.vision, 4)
    assert "3420" in tower_issues(spec.vision, 8)[0].message


def test_the_language_model_is_one_of_its_kind() -> None:
    plain, seeing = load_model("qwen2.5-7b"), load_model("qwen2.5-vl-7b")
    assert seeing.model_type == "qwen2"
    assert (seeing.layers, seeing.vocab_size) == (plain.layers, plain.vocab_size)
    text = load_model("qwen3-vl-4b")
    assert (text.model_type, text.tie_word_embeddings, text.max_model_len) == ("qwen3", True, 262_144)


def with_vision(**changes: Any) -> ModelSpec:
    config: Any = copy.deepcopy(GEMMA if "image_size" in changes else QWEN2)
    if "window_size" in changes or "fullatt_block_indexes" in changes:
        keys = {"hidden_size": 1280, "out_hidden_size": 3584, "intermediate_size": 3420, "window_size": 112}
        config = {**config, "model_type": "qwen2_5_vl"}
        config["vision_config"] = {**config["vision_config"], **keys, "fullatt_block_indexes": [7]}
    config["vision_config"] |= changes
    return load_model(config)


@pytest.mark.parametrize(
    ("changes", "path", "words"),
    [
        ({"depth": None}, "vision_config.depth", "is missing"),
        ({"num_heads": 7}, "vision_config.num_heads", "does not divide"),
        ({"hidden_size": 2048}, "vision_config.out_hidden_size", "language model's are 3584"),
        ({"mlp_ratio": "4"}, "vision_config.mlp_ratio", "number > 0"),
        ({"window_size": 100}, "vision_config.patch_size", "does not divide window_size"),
        ({"fullatt_block_indexes": None}, "vision_config.fullatt_block_indexes", "is missing"),
        ({"image_size": 900}, "vision_config.patch_size", "does not divide image_size"),
        ({"model_type": "clip_vision_model", "image_size": 896}, "vision_config.model_type", "clip"),
    ],
)
def test_towers_that_are_not_understood_are_refused(changes: dict[str, Any], path: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_vision(**changes)
    issues = {issue.path: issue.message for issue in caught.value.issues}
    assert words in issues[path], issues
