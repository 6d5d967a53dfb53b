"""Kinds of model that are recognised and refused by name, because a number for them would be wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from frontier.errors import Issue, show_value

_ENCODER_DECODER = frozenset(
    [
        "bart",
        "blenderbot",
        "fsmt",
        "longt5",
        "m2m_100",
        "marian",
        "mbart",
        "mt5",
        "mvp",
        "nllb_moe",
        "pegasus",
        "prophetnet",
        "switch_transformers",
        "t5",
        "t5gemma",
        "umt5",
        "whisper",
    ]
)
_ENCODER_ONLY = frozenset(
    [
        "albert",
        "bert",
        "deberta",
        "deberta-v2",
        "distilbert",
        "electra",
        "gte",
        "jina",
        "modernbert",
        "mpnet",
        "nomic_bert",
        "roberta",
        "xlm-roberta",
    ]
)
_STATE_SPACE = frozenset(
    [
        "bamba",
        "falcon_h1",
        "falcon_mamba",
        "granitemoehybrid",
        "jamba",
        "kimi_linear",
        "lfm2",
        "lfm2_moe",
        "mamba",
        "mamba2",
        "minimax",
        "minimax_m1",
        "minimax_text_01",
        "nemotron_h",
        "plamo2",
        "qwen3_5",
        "qwen3_5_moe",
        "qwen3_5_moe_text",
        "qwen3_5_text",
        "qwen3_next",
        "recurrent_gemma",
        "rwkv",
        "zamba",
        "zamba2",
    ]
)
_STATE_SPACE_KEYS = (
    "linear_attn_config",
    "linear_num_key_heads",
    "mamba_d_state",
    "mamba_num_heads",
    "ssm_cfg",
    "ssm_state_size",
    "attn_type_list",
)
_PARTS = ("vision_config", "audio_config", "text_config", "llm_config", "thinker_config", "speech_config")
_ADAPTER_KEYS = ("peft_type", "base_model_name_or_path", "lora_alpha")


def refusal(config: Mapping[str, Any], known: frozenset[str]) -> Issue | None:
    """Return why the configuration is of a kind that is not modelled, or None.

    `known` are the model types that are modelled.
    """
    given = config.get("model_type")
    model_type = given if isinstance(given, str) else None
    adapter = next((key for key in _ADAPTER_KEYS if key in config), None)
    if adapter is not None:
        return Issue(adapter, config[adapter], "belongs to a LoRA adapter; give the base model's config.json")
    if config.get("is_encoder_decoder") is True or model_type in _ENCODER_DECODER:
        return Issue("model_type", model_type, f"{show_value(model_type)} is an encoder-decoder model")
    part = next((key for key in _PARTS if isinstance(config.get(key), Mapping)), None)
    if part is not None:
        return Issue(part, None, _multimodal_hint(config, known))
    if model_type in _ENCODER_ONLY:
        return Issue("model_type", model_type, f"{show_value(model_type)} is an embedding or pooling model")
    if model_type in _STATE_SPACE:
        message = f"{show_value(model_type)} has state-space or linear-attention layers"
        return Issue("model_type", model_type, message)
    return _refused_keys(config)


def _refused_keys(config: Mapping[str, Any]) -> Issue | None:
    for key in _STATE_SPACE_KEYS:
        value = config.get(key)
        if key == "attn_type_list":  # MiniMax: 1 is softmax attention, 0 linear attention
            if isinstance(value, list) and any(kind != 1 for kind in value):
                return Issue(key, value, "names linear-attention layers, which are not modelled")
        elif value is not None:
            return Issue(
                key, value, "belongs to state-space or linear-attention layers, which are not modelled"
            )
    architectures = config.get("architectures")
    if architectures is not None:
        names = architectures if isinstance(architectures, list) else [architectures]
        # Heads of EAGLE-3 are "LlamaForCausalLMEagle3".
        if names and not any("ForCausalLM" in str(name) for name in names):
            message = (
                f"{show_value(names[0])} is an embedding, pooling or classification model, not a causal LM"
            )
            return Issue("architectures", architectures, message)
    return None


def _multimodal_hint(config: Mapping[str, Any], known: frozenset[str]) -> str:
    text = "belongs to a multimodal model, which is not modelled"
    backbone = config.get("text_config")
    inner = backbone.get("model_type") if isinstance(backbone, Mapping) else None
    if isinstance(inner, str) and inner in known:
        text += f"; for the language model alone give its text_config (model_type '{inner}')"
    return text
