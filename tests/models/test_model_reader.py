"""Reading Hugging Face configurations: shapes, layer patterns, names, and every way they can be wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from frontier.errors import ConfigError
from frontier.models import load_model, model_names, parameter_counts
from frontier.models.families import FAMILIES
from frontier.models.spec import GroupedQueryAttention, MixtureOfExperts, ModelSpec, MultiHeadLatentAttention

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 2048,
    "max_position_embeddings": 4096,
}


def config(**changes: Any) -> dict[str, Any]:
    """Return the small Llama with changes; None removes a key."""
    return {key: value for key, value in (LLAMA | changes).items() if value is not None}


def windows(spec: ModelSpec) -> list[int | None]:
    """Return each layer's window."""
    attentions = [spec.layers[i].attention for i in spec.layer_pattern]
    return [a.window for a in attentions if isinstance(a, GroupedQueryAttention)]


def sparse(spec: ModelSpec) -> list[bool]:
    """Return for each layer whether it has experts."""
    return [isinstance(spec.layers[i].feed_forward, MixtureOfExperts) for i in spec.layer_pattern]


def issue_paths(source: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_model(source)
    return [issue.path for issue in caught.value.issues]


def test_every_preset_loads_and_every_modelled_type_is_named() -> None:
    specs = [load_model(name) for name in model_names()]
    assert len(specs) >= 38
    assert {spec.model_type for spec in specs} <= set(FAMILIES)
    assert all(spec.num_layers == sum(group.count for group in spec.layers) for spec in specs)


@pytest.mark.parametrize(
    ("written", "preset"),
    [
        ("llama-3.1-8b", "llama-3.1-8b"),
        ("LLAMA-3.1-8B", "llama-3.1-8b"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("Qwen3-30B-A3B", "qwen3-30b-a3b"),
        ("deepseek-ai/DeepSeek-R1-0528", "deepseek-r1"),
    ],
)
def test_presets_go_by_their_own_and_their_hub_names(written: str, preset: str) -> None:
    assert load_model(written).name == preset


def test_the_same_model_from_mapping_file_and_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    specs = [load_model(LLAMA), load_model(tmp_path / "config.json"), load_model(str(tmp_path))]
    assert len({spec.layers for spec in specs}) == 1
    assert {parameter_counts(spec).total for spec in specs} == {parameter_counts(specs[0]).total}


def test_two_published_configs_equal_their_presets(shared: Path) -> None:
    for folder, preset in (("llama31_8b", "llama-3.1-8b"), ("qwen3_30b_a3b", "qwen3-30b-a3b")):
        spec = load_model(shared / "tools" / "models" / folder)
        assert spec.layers == load_model(preset).layers
        assert parameter_counts(spec) == parameter_counts(load_model(preset))


@pytest.mark.parametrize(
    ("kv_heads", "kind"), [(8, "every head its own"), (4, "groups of two"), (1, "one for all")]
)
def test_key_value_heads_decide_the_size_of_the_projection(kv_heads: int, kind: str) -> None:
    counts = parameter_counts(load_model(config(num_key_value_heads=kv_heads)))
    assert counts.by_component["attention"] == 4 * (256 * 32 * (8 + 2 * kv_heads) + 256 * 256), kind


def test_biases_count() -> None:
    plain, biased = load_model(LLAMA), load_model(config(attention_bias=True, mlp_bias=True))
    per_layer = 32 * (8 + 2 * 4) + 256 + 2 * 704 + 256
    assert parameter_counts(biased).total - parameter_counts(plain).total == 4 * per_layer


GEMMA = {**LLAMA, "model_type": "gemma3_text", "head_dim": 32, "num_hidden_layers": 7, "sliding_window": 64}
QWEN = {**LLAMA, "model_type": "qwen2", "sliding_window": 64}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (config(model_type="mistral", sliding_window=64), [64] * 4),
        (config(model_type="mistral"), [None] * 4),
        ({**GEMMA, "sliding_window_pattern": 3}, [64, 64, None, 64, 64, None, 64]),
        (GEMMA, [64] * 5 + [None, 64]),
        ({**GEMMA, "layer_types": ["full_attention"] * 6 + ["sliding_attention"]}, [None] * 6 + [64]),
        ({**QWEN, "use_sliding_window": False}, [None] * 4),
        ({**QWEN, "use_sliding_window": True, "max_window_layers": 3}, [None] * 3 + [64]),
        ({**LLAMA, "model_type": "gemma2", "head_dim": 32, "sliding_window": 64}, [64, None, 64, None]),
    ],
)
def test_sliding_windows_by_layer(source: dict[str, Any], expected: list[int | None]) -> None:
    assert windows(load_model(source)) == expected


QWEN_MOE = {
    **LLAMA,
    "model_type": "qwen3_moe",
    "head_dim": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
}
DEEPSEEK = {
    **LLAMA,
    "model_type": "deepseek_v3",
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
STEP = {
    **LLAMA,
    "model_type": "step3_text",
    "head_dim": 32,
    "share_q_dim": 64,
    "moe_num_experts": 8,
    "moe_top_k": 2,
    "moe_intermediate_size": 64,
    "share_expert_dim": 64,
}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (QWEN_MOE, [True] * 4),
        ({**QWEN_MOE, "decoder_sparse_step": 2}, [False, True, False, True]),
        ({**QWEN_MOE, "mlp_only_layers": [0, 3]}, [False, True, True, False]),
        ({**DEEPSEEK, "first_k_dense_replace": 3}, [False, False, False, True]),
        ({**DEEPSEEK, "moe_layer_freq": 2}, [True, False, True, False]),
        ({**DEEPSEEK, "mlp_layer_types": ["dense", "sparse", "dense", "sparse"]}, [False, True, False, True]),
        (STEP, [False, True, True, True]),
        ({**STEP, "moe_layers_enum": "1,3"}, [False, True, False, True]),
    ],
)
def test_experts_by_layer(source: dict[str, Any], expected: list[bool]) -> None:
    assert sparse(load_model(source)) == expected


def test_shared_experts_are_as_wide_as_all_of_them() -> None:
    ffn = load_model(DEEPSEEK).layers[0].feed_forward
    assert isinstance(ffn, MixtureOfExperts)
    assert ffn.shared_intermediate_size == 2 * 64


def test_latent_attention_without_compressed_queries() -> None:
    attention = load_model({**DEEPSEEK, "q_lora_rank": None}).layers[0].attention
    assert isinstance(attention, MultiHeadLatentAttention)
    assert attention.query_rank is None


def test_shared_indexers_follow_their_list() -> None:
    sparse_config = {
        **DEEPSEEK,
        "model_type": "glm_moe_dsa",
        "index_n_heads": 4,
        "index_head_dim": 16,
        "index_topk": 32,
    }
    assert len(load_model(sparse_config).layers) == 1
    shared_types = ["full", "shared", "shared", "full"]
    spec = load_model({**sparse_config, "indexer_types": shared_types})
    assert spec.layer_pattern == (0, 1, 1, 0)
    assert "indexer_types" in issue_paths({**sparse_config, "indexer_types": [*shared_types[1:], "full"]})


@pytest.mark.parametrize(
    ("changes", "length"),
    [
        ({}, 4096),
        ({"max_position_embeddings": None}, 2048),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, 16384),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 4096),
        ({"rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}}, 4096),
        ({"rope_scaling": {"type": "longrope", "original_max_position_embeddings": 1024}}, 1024),
        ({"seq_length": 1000}, 1000),
    ],
)
def test_max_model_len_follows_vllm(changes: dict[str, Any], length: int) -> None:
    assert load_model(config(**changes)).max_model_len == length


def test_all_problems_are_reported_together() -> None:
    broken = config(
        hidden_size=0, intermediate_size=-5, num_attention_heads="8", vocab_size=None, torch_dtype="int4"
    )
    paths = issue_paths(broken)
    assert {"hidden_size", "intermediate_size", "num_attention_heads", "vocab_size", "torch_dtype"} <= set(
        paths
    )


@pytest.mark.parametrize(
    ("source", "path", "words"),
    [
        (config(num_key_value_heads=3), "num_key_value_heads", "does not divide num_attention_heads (8)"),
        (
            config(num_attention_heads=7, num_key_value_heads=7),
            "num_attention_heads",
            "does not divide hidden_size",
        ),
        (config(num_hidden_layers=10**9), "num_hidden_layers", "at most 10000"),
        (config(hidden_size=True), "hidden_size", "was True"),
        (config(vocab_size=2.5), "vocab_size", "was 2.5"),
        (config(hiden_size=1, hidden_size=None), "hidden_size", "did you mean 'hiden_size'"),
        ({**QWEN_MOE, "num_experts_per_tok": 9}, "num_experts_per_tok", "more than the 8 experts"),
        ({**GEMMA, "layer_types": ["full_attention"]}, "layer_types", "one entry for each of the 7 layers"),
        ({**GEMMA, "layer_types": ["chunked_attention"] * 7}, "layer_types", "'chunked_attention'"),
        ({**GEMMA, "sliding_window": None}, "sliding_window", "is missing"),
        ({**STEP, "num_attention_groups": 2}, "num_attention_groups", "was 2"),
        ({**QWEN_MOE, "mlp_only_layers": ["x"]}, "mlp_only_layers", "layer indices"),
    ],
)
def test_a_bad_key_is_named_with_its_value(source: dict[str, Any], path: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_model(source)
    (issue,) = [issue for issue in caught.value.issues if issue.path == path]
    assert words in str(issue)


@pytest.mark.parametrize(
    ("source", "path", "words"),
    [
        ({**LLAMA, "model_type": "llama5"}, "model_type", "did you mean 'llama'"),
        ({**LLAMA, "model_type": "deepseek_v4"}, "model_type", "did you mean 'deepseek_v3'"),
        (config(model_type=None), "model_type", "is missing"),
        ({**LLAMA, "model_type": 3}, "model_type", "is not modelled"),
        ({**LLAMA, "is_encoder_decoder": True}, "model_type", "encoder-decoder"),
        ({"model_type": "t5"}, "model_type", "encoder-decoder"),
        ({"model_type": "bert"}, "model_type", "embedding or pooling"),
        ({**LLAMA, "architectures": ["LlamaForSequenceClassification"]}, "architectures", "classification"),
        (
            {"model_type": "paligemma", "vision_config": {}, "text_config": GEMMA},
            "vision_config",
            "give its text_config",
        ),
        ({"model_type": "mamba2"}, "model_type", "state-space"),
        ({"model_type": "qwen3_next"}, "model_type", "linear-attention"),
        ({**LLAMA, "linear_attn_config": {}}, "linear_attn_config", "linear-attention"),
        (
            {**LLAMA, "model_type": "minimax_m2", "attn_type_list": [0, 1]},
            "attn_type_list",
            "linear-attention",
        ),
        ({"peft_type": "LORA", "base_model_name_or_path": "x"}, "peft_type", "LoRA"),
        (
            {**LLAMA, "quantization_config": {"quant_method": "bitsandbytes"}},
            "quantization_config.quant_method",
            "'bitsandbytes'",
        ),
        (
            {**LLAMA, "quantization_config": {"quant_method": "fp8", "weight_block_size": [128]}},
            "quantization_config.weight_block_size",
            "two whole numbers",
        ),
        (
            {**LLAMA, "quantization_config": {"quant_method": "mxfp4"}},
            "quantization_config.quant_method",
            "gpt_oss",
        ),
    ],
)
def test_kinds_that_are_not_modelled_are_refused_by_name(
    source: dict[str, Any], path: str, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_model(source)
    (issue,) = caught.value.issues
    assert issue.path == path
    assert words in str(issue)


def test_partly_quantised_checkpoints_are_refused() -> None:
    fp8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    load_model({**LLAMA, "quantization_config": {**fp8, "modules_to_not_convert": ["lm_head"]}})
    partly = {**fp8, "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.down_proj"]}
    with pytest.raises(ConfigError, match=r"model\.layers\.0\.mlp\.down_proj"):
        load_model({**LLAMA, "quantization_config": partly})


def test_files_that_are_no_configuration_say_where(tmp_path: Path) -> None:
    broken = tmp_path / "config.json"
    broken.write_text('{\n  "model_type": llama\n}')
    with pytest.raises(ConfigError, match="line 2, column 17"):
        load_model(broken)
    broken.write_text("[1]")
    with pytest.raises(ConfigError, match="a JSON object is needed"):
        load_model(broken)
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_model(broken)
    with pytest.raises(ConfigError, match=r"did you mean 'llama-3\.1-8b'"):
        load_model("llama-3.1-8bb")
    with pytest.raises(ConfigError, match="neither a preset nor"):
        load_model(tmp_path / "nowhere")


def test_adapters_and_embedding_models_are_refused_as_directories(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "modules.json").write_text("[]")
    with pytest.raises(ConfigError, match="sentence-embedding"):
        load_model(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="LoRA adapter"):
        load_model(tmp_path)
