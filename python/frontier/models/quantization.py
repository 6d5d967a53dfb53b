"""The `quantization_config` of a checkpoint: which are modelled, and refusing the others by name."""

from __future__ import annotations

from collections.abc import Mapping

from frontier.errors import show_value
from frontier.models.fields import Fields
from frontier.models.spec import Quantization

_METHODS = ("fp8", "mxfp4")

_ALWAYS_PLAIN = frozenset(
    {
        "e_score_correction_bias",
        "eh_proj",
        "embed_tokens",
        "enorm",
        "gate",
        "hnorm",
        "indexers_proj",
        "input_layernorm",
        "k_norm",
        "kv_a_layernorm",
        "lm_head",
        "norm",
        "post_attention_layernorm",
        "q_a_layernorm",
        "q_norm",
        "router",
        "shared_expert_gate",
        "weights_proj",
    }
)
"""Modules that stay in 16 or 32 bits in every fp8 checkpoint that is modelled, listed there or not."""

_PLAIN_BUT_EXPERTS = _ALWAYS_PLAIN | {"self_attn"}


def read_quantization(f: Fields, model_type: str) -> Quantization | None:
    """Read `quantization_config`; problems gather in `f`."""
    config = f.config.get("quantization_config")
    if config is None:
        return None
    if not isinstance(config, Mapping):
        f.problem("quantization_config", f"was {show_value(config)}; a mapping is needed", value=config)
        return None
    inner = Fields(config, prefix="quantization_config.")
    quantization = _read(inner, model_type)
    f.issues += inner.issues
    return quantization


def _read(f: Fields, model_type: str) -> Quantization | None:
    method = f.config.get("quant_method")
    if method not in _METHODS:
        message = f"{show_value(method)} checkpoints are not modelled; give the unquantised model"
        f.problem("quant_method", message, value=method, allowed=_METHODS)
        return None
    if method == "mxfp4":
        if model_type != "gpt_oss":
            f.problem(
                "quant_method", f"'mxfp4' is modelled for gpt_oss alone, not for {model_type}", value=method
            )
        _check_plain(f, _PLAIN_BUT_EXPERTS)
        return Quantization("mxfp4", (1, 32))
    block = f.config.get("weight_block_size")
    valid = (
        isinstance(block, list | tuple) and len(block) == 2 and all(type(b) is int and b > 0 for b in block)
    )
    if not valid:
        message = f"was {show_value(block)}; only fp8 in blocks is modelled, as in [128, 128]"
        f.problem("weight_block_size", message, value=block)
        return None
    if (scheme := f.config.get("activation_scheme", "dynamic")) != "dynamic":
        message = f"was {show_value(scheme)}; only dynamic is modelled, as vLLM requires with blocks"
        f.problem("activation_scheme", message, value=scheme, allowed=("dynamic",))
    _check_plain(f, _ALWAYS_PLAIN)
    rows, columns = (int(b) for b in block or (1, 1))
    return Quantization("fp8_block", (rows, columns))


def _check_plain(f: Fields, plain: frozenset[str]) -> None:
    """Refuse a list of exceptions that names a module which is counted as quantised."""
    for key in ("modules_to_not_convert", "ignored_layers"):
        names = f.config.get(key)
        if names is None:
            continue
        if not isinstance(names, list):
            f.problem(key, f"was {show_value(names)}; a list of module names is needed", value=names)
            continue
        odd = [name for name in names if str(name).rsplit(".", 1)[-1] not in plain]
        if odd:
            more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
            message = (
                f"has {show_value(odd[0])}{more}; a checkpoint quantised in part this way is not modelled"
            )
            f.problem(key, message, value=names)
