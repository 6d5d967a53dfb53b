"""The `quantization_config` of a checkpoint: which are modelled, and refusing the others by name.

Keys are those that vLLM reads (`from_config` of each method in `vllm/model_executor/layers/quantization`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

from frontier.errors import show_value
from frontier.models.fields import Fields
from frontier.models.plain_modules import read_plain_modules
from frontier.models.spec import Quantization, QuantizationMethod

_WHOLE = (0, 0)
_PER_CHANNEL = (1, 0)
_NVFP4_GROUP = 16
_MX_GROUP = 32


def read_quantization(f: Fields, model_type: str) -> Quantization | None:
    """Read `quantization_config`; problems gather in `f`."""
    config = f.config.get("quantization_config")
    if config is None:
        return None
    if not isinstance(config, Mapping):
        f.problem("quantization_config", f"was {show_value(config)}; a mapping is needed", value=config)
        return None
    inner = Fields(_flat(config), prefix="quantization_config.")
    quantization = _read(inner, model_type, f.config)
    f.issues += inner.issues
    return quantization


def _flat(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return ModelOpt's nested form, as in hf_quant_config.json, in the flat one."""
    nested = config.get("quantization")
    return {**config, **nested} if isinstance(nested, Mapping) else config


def _read(f: Fields, model_type: str, model: Mapping[str, Any]) -> Quantization | None:
    method = f.config.get("quant_method")
    reader = _READERS.get(method) if isinstance(method, str) else None
    if reader is None:
        message = f"{show_value(method)} checkpoints are not modelled; give the unquantised model"
        f.problem("quant_method", message, value=method, allowed=tuple(_READERS))
        return None
    if method == "mxfp4" and model_type != "gpt_oss":
        message = f"'mxfp4' is modelled for gpt_oss alone, not for {model_type}"
        f.problem("quant_method", message, value=method)
    found = reader(f)
    always = ("self_attn",) if found is not None and found.experts_only else ()
    plain = read_plain_modules(f, model=model, always=always)
    return None if found is None else replace(found, plain=plain)


def _fp8(f: Fields) -> Quantization | None:
    """Read fp8 of one scale per tensor, or in blocks."""
    block = f.config.get("weight_block_size")
    scheme = f.text("activation_scheme", default="dynamic", allowed=("dynamic", "static"))
    if block is None:
        return Quantization("fp8_tensor", _WHOLE, static=scheme == "static", name="fp8")
    size = _block(f, "weight_block_size", block)
    if scheme != "dynamic":
        message = f"was {show_value(scheme)}; with blocks vLLM requires dynamic"
        f.problem("activation_scheme", message, value=scheme, allowed=("dynamic",))
    return None if size is None else Quantization("fp8_block", size, name="fp8")


def _block(f: Fields, key: str, block: object) -> tuple[int, int] | None:
    """Read rows and columns of a block."""
    if isinstance(block, list | tuple) and len(block) == 2:
        sizes = [size for size in block if type(size) is int and size > 0]
        if len(sizes) == 2:
            return sizes[0], sizes[1]
    f.problem(key, f"was {show_value(block)}; two whole numbers are needed, as in [128, 128]", value=block)
    return None


def _mxfp4(f: Fields) -> Quantization:
    """Return gpt-oss's own scheme: routed experts alone."""
    return Quantization("mxfp4", (1, _MX_GROUP), weight_only=True, experts_only=True, name="mxfp4")


def _awq(f: Fields) -> Quantization | None:
    """Read 4-bit integers in groups, with zero points unless told otherwise."""
    bits = f.whole("bits", "w_bit", default=4)
    if bits != 4:
        f.problem("bits", f"was {bits}; awq is 4 bits", value=bits, allowed=("4",))
        return None
    zero = f.flag("zero_point", default=True)
    group = _group(f, ("group_size", "q_group_size"))
    return Quantization("int4_group_zero" if zero else "int4_group", (1, group), weight_only=True, name="awq")


def _gptq(f: Fields) -> Quantization | None:
    """Read 4- or 8-bit integers in groups; the permutation of act-order costs nothing that is counted."""
    bits = f.whole("bits", default=4)
    symmetric = f.flag("sym", default=True)
    if f.config.get("dynamic"):
        f.problem("dynamic", "changes the scheme of single modules, which is not modelled")
        return None
    if bits not in (4, 8) or (bits == 8 and not symmetric):
        kind = "" if symmetric else " without symmetry"
        f.problem("bits", f"was {bits}{kind}; 4, or 8 with symmetry, are modelled", value=bits)
        return None
    group = _group(f, ("group_size",))
    method: QuantizationMethod = "int8_group"
    if bits == 4:
        method = "int4_group" if symmetric else "int4_group_zero"
    return Quantization(method, (1, group), weight_only=True, name="gptq")


def _group(f: Fields, keys: tuple[str, ...]) -> int:
    """Read the size of a group; -1 is the whole input, for which 0 is returned."""
    if any(f.config.get(key) == -1 for key in keys):
        return 0
    return f.whole(*keys, default=128)


def _modelopt(f: Fields) -> Quantization | None:
    """Read NVIDIA ModelOpt's schemes."""
    algorithms: dict[str, Quantization] = {
        "FP8": Quantization("fp8_tensor", _WHOLE, static=True, name="modelopt"),
        "FP8_PER_CHANNEL_PER_TOKEN": Quantization("fp8_channel", _PER_CHANNEL, name="modelopt"),
        "NVFP4": Quantization("nvfp4", (1, _NVFP4_GROUP), name="modelopt_fp4"),
        "MXFP8": Quantization("mxfp8", (1, _MX_GROUP), name="modelopt_mxfp8"),
    }
    algorithm = f.config.get("quant_algo")
    found = algorithms.get(algorithm) if isinstance(algorithm, str) else None
    if found is None:
        message = f"was {show_value(algorithm)}, a scheme of ModelOpt that is not modelled"
        f.problem("quant_algo", message, value=algorithm, allowed=tuple(algorithms))
        return None
    key = "kv_cache_quant_algo"
    cache = f.config.get(key)
    if cache is None and f.config.get("kv_cache_scheme") is not None:
        return replace(found, kv_cache=_cache_scheme(f))
    if cache not in (None, "FP8"):
        f.problem(key, f"was {show_value(cache)}, which is not modelled", value=cache, allowed=("FP8",))
    return replace(found, kv_cache="fp8" if cache == "FP8" else None)


def _compressed_tensors(f: Fields) -> Quantization | None:
    """Read the schemes of llm-compressor: one group of settings for all linear layers."""
    groups = f.config.get("config_groups")
    if (
        not isinstance(groups, Mapping)
        or not groups
        or not all(isinstance(g, Mapping) for g in groups.values())
    ):
        f.problem("config_groups", f"was {show_value(groups)}; a mapping of schemes is needed", value=groups)
        return None
    sparsity = f.config.get("sparsity_config")
    if isinstance(sparsity, Mapping) and sparsity.get("format") not in (None, "dense"):
        f.problem("sparsity_config", "makes weights sparse, which is not modelled", value=dict(sparsity))
        return None
    schemes = {
        _scheme(f, f"config_groups.{name}", group.get("weights"), group.get("input_activations"))
        for name, group in groups.items()
    }
    targets = [group.get("targets", ["Linear"]) for group in groups.values()]
    if len(schemes) > 1 or any(target != ["Linear"] for target in targets):
        message = "gives modules unlike schemes; one for targets ['Linear'] is modelled"
        f.problem("config_groups", message)
        return None
    (found,) = schemes
    return None if found is None else replace(found, kv_cache=_cache_scheme(f), name="compressed-tensors")


def _cache_scheme(f: Fields) -> Literal["fp8"] | None:
    """Read the type that a checkpoint declares for the KV cache."""
    scheme = f.config.get("kv_cache_scheme")
    if scheme is None:
        return None
    if isinstance(scheme, Mapping) and (scheme.get("num_bits"), scheme.get("type")) == (8, "float"):
        return "fp8"
    f.problem("kv_cache_scheme", f"was {show_value(scheme)}; 8-bit floats are modelled", value=scheme)
    return None


def _scheme(f: Fields, at: str, weights: object, inputs: object) -> Quantization | None:
    """Return the scheme of weights and inputs, None with a problem noted where it is not modelled."""
    if isinstance(weights, Mapping) and (inputs is None or isinstance(inputs, Mapping)):
        kind, bits = weights.get("type", "int"), weights.get("num_bits")
        strategy, group = weights.get("strategy"), weights.get("group_size")
        size = group if type(group) is int and group > 0 else 0
        taken = None if inputs is None else (inputs.get("type", "int"), inputs.get("num_bits"))
        static = inputs is not None and not inputs.get("dynamic", False)
        only = inputs is None
        if kind == "float" and bits == 8 and taken in (None, ("float", 8)):
            block = weights.get("block_structure") if strategy == "block" else None
            known = {"tensor": ("fp8_tensor", _WHOLE), "channel": ("fp8_channel", _PER_CHANNEL)}
            if strategy == "block" and (shape := _block(f, f"{at}.weights.block_structure", block)):
                return Quantization("fp8_block", shape, weight_only=only)
            if strategy in known:
                method, shape = known[strategy]
                return Quantization(method, shape, weight_only=only, static=static)  # type: ignore[arg-type]
        if kind == "int" and taken == ("int", 8) and bits == 8 and strategy in ("channel", "tensor"):
            shape = _PER_CHANNEL if strategy == "channel" else _WHOLE
            return Quantization("int8_channel", shape, static=static)
        if kind == "int" and taken is None and bits in (4, 8) and strategy in ("group", "channel"):
            zero = not weights.get("symmetric", True)
            if bits == 8 and not zero:
                return Quantization("int8_group", (1, size), weight_only=True)
            if bits == 4:
                return Quantization("int4_group_zero" if zero else "int4_group", (1, size), weight_only=True)
        if kind == "float" and bits == 4 and size == _NVFP4_GROUP and taken in (None, ("float", 4)):
            return Quantization("nvfp4", (1, size), weight_only=only)
        if kind == "float" and bits == 4 and size == _MX_GROUP and taken in (None, ("float", 4)):
            return Quantization("mxfp4", (1, size), weight_only=True)
    message = (
        f"has weights {show_value(weights)} and inputs {show_value(inputs)}, a scheme that is not modelled"
    )
    f.problem(at, message)
    return None


_READERS: dict[str, Callable[[Fields], Quantization | None]] = {
    "awq": _awq,
    "compressed-tensors": _compressed_tensors,
    "fp8": _fp8,
    "gptq": _gptq,
    "modelopt": _modelopt,
    "mxfp4": _mxfp4,
}
