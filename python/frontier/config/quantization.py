"""`engine.quantization`: vLLM's names, what they make of a checkpoint, and what the GPU makes of that.

Names and schemes are those of vLLM (`vllm/model_executor/layers/quantization/__init__.py`); which conversions
of a 16-bit checkpoint a version has is from its documentation (`features/quantization/online`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from frontier.errors import Issue, nearest_name, show_value
from frontier.vllm_versions import FIRST_MINOR, minor_of

if TYPE_CHECKING:
    from frontier.hardware import GpuSpec
    from frontier.models import ModelSpec
    from frontier.models.spec import Quantization

FIELD: Final = "engine.quantization"

CHECKPOINT_NAMES: Final[dict[str, tuple[str, ...]]] = {
    # what a checkpoint declares, and the names under which a user may ask for the same
    "fp8": ("fp8",),
    "compressed-tensors": ("compressed-tensors",),
    "awq": ("awq", "awq_marlin", "auto_awq", "moe_wna16"),
    "gptq": ("gptq", "gptq_marlin", "auto_gptq", "moe_wna16"),
    "modelopt": ("modelopt",),
    "modelopt_fp4": ("modelopt_fp4", "modelopt"),
    "modelopt_mxfp8": ("modelopt_mxfp8", "modelopt"),
    "mxfp4": ("mxfp4", "gpt_oss_mxfp4"),
}


@dataclass(frozen=True, slots=True)
class _Online:
    """A conversion at load: minor versions that have it, and whether only routed experts are converted."""

    first: int
    last: int | None = None
    experts_only: bool = False


_ONLINE: Final[dict[str, _Online]] = {
    "fp8": _Online(11, last=30),
    "fp8_per_tensor": _Online(20),
    "fp8_per_block": _Online(20),
    "fp8_per_channel": _Online(32),
    "experts_int8": _Online(11, experts_only=True),
    "int8_per_channel_weight_only": _Online(32, experts_only=True),
    "mxfp8": _Online(20),
    "nvfp4_per_token": _Online(32, experts_only=True),
}

NOT_MODELLED: Final = ("deepseek_v4_fp8", "humming", "inc", "modelopt_mixed", "quark", "torchao")
GONE: Final = (
    *("aqlm", "auto-round", "bitblas", "bitsandbytes", "deepspeedfp", "fbgemm_fp8", "gguf", "gptq_bitblas"),
    *("gptq_marlin_24", "hqq", "marlin", "petit_nvfp4", "ptpc_fp8", "qqq", "rtn"),
)
"""Names of some version that 0.32 no longer has; none of them is modelled."""

QUANTIZATION_NAMES: Final = tuple(
    dict.fromkeys([*(name for names in CHECKPOINT_NAMES.values() for name in names), *_ONLINE])
)
"""Every name that some checkpoint or conversion is modelled under."""

_FIRST_KV_CACHE: Final = {"modelopt": 14, "compressed-tensors": 15}
"""First minor version that takes the KV cache's type from such a checkpoint."""

_OF_SGLANG: Final = (
    *("awq", "fp8", "gptq", "marlin", "gptq_marlin", "awq_marlin", "bitsandbytes", "gguf", "modelopt"),
    *("modelopt_fp4", "petit_nvfp4", "w8a8_int8", "w8a8_fp8", "moe_wna16", "qoq", "w4afp8", "mxfp4"),
)
"""What SGLang's `--quantization` takes (`server_args.py`, 0.5.3)."""
_ONLINE_OF_SGLANG: Final = ("fp8",)
"""Conversions of a 16-bit checkpoint that are modelled: SGLang's fp8 is per output channel
(`layers/quantization/fp8.py`: `Fp8LinearMethod.process_weights_after_loading`)."""
_FP8: Final = (8, 9)
_BLACKWELL: Final = (10, 0)


def quantized_model(
    spec: ModelSpec, name: str | None, *, version: str, gpu: GpuSpec | None, sglang: bool = False
) -> tuple[ModelSpec, list[Issue]]:
    """Return the model as the engine holds it, and what is wrong with the choice.

    Args:
        spec: the model as its checkpoint declares it.
        name: the engine's name of a scheme; None takes what the checkpoint declares.
        version: of the engine, as in `0.32`.
        gpu: decides in what is multiplied: below compute capability 8.9 fp8 weights are widened by Marlin
            kernels (`vllm/model_executor/layers/quantization/fp8.py`), without fp4 units so is NVFP4
            (`modelopt.py`), and 8-bit integers have no kernel from 10.0 on
            (`csrc/.../c3x/scaled_mm_helper.hpp`). None leaves that open.
        sglang: the engine is SGLang, whose names and conversions are others; the GPU's kernels are taken to
            be as above.
    """
    minor = minor_of(version)
    found = spec.quantization
    if name is not None:
        issue, found = _named(spec, name, None if sglang else minor)
        if issue is not None:
            return spec, [issue]
    if found is None:
        return spec, []
    declared = next((first for key, first in _FIRST_KV_CACHE.items() if found.name.startswith(key)), 0)
    if found.kv_cache is not None and minor < declared:
        found = replace(found, kv_cache=None)
    found, issues = _on_gpu(found, gpu, name)
    return replace(spec, quantization=found), issues


def attends_in_fp8(gpu: GpuSpec | None, kv_cache_dtype: str) -> bool:
    """Return whether attention over an fp8 cache computes in fp8, with queries quantised beside.

    The kernels of Hopper (FlashAttention-3, FlashMLA) and Blackwell 10.x (FlashInfer's TRT-LLM kernels) do
    (`supports_quant_query_input` of `vllm/v1/attention/backends`); elsewhere the cache is widened.

    Args:
        gpu: the GPU.
        kv_cache_dtype: resolved type of the cache.
    """
    capability = _capability(gpu)
    return kv_cache_dtype == "fp8" and capability is not None and capability[0] in (9, 10)


def _named(spec: ModelSpec, name: str, minor: int | None) -> tuple[Issue | None, Quantization | None]:
    """Return the scheme that a name asks for, or why it cannot be had; `minor` is None for SGLang."""
    declared, shown = spec.quantization, f"was {show_value(name)}"
    others: tuple[str, ...] = (*NOT_MODELLED, *GONE) if minor is not None else _OF_SGLANG
    owner = "vLLM" if minor is not None else "SGLang"
    names = tuple(each for each in QUANTIZATION_NAMES if minor is not None or each in _OF_SGLANG)
    if name not in names:
        known = name in others
        message = f"{shown}, a scheme of {owner} that is not modelled" if known else shown
        near = None if known else nearest_name(name, names)
        return Issue(FIELD, name, message, names, near), None
    if declared is not None:
        allowed = tuple(each for each in CHECKPOINT_NAMES.get(declared.name, ()) if each in names)
        if name in allowed:
            if name == "moe_wna16" and not spec.is_moe:
                return Issue(FIELD, name, f"{shown}, but {spec.name} has no experts", allowed), None
            return None, declared
        message = f"{shown}, but the checkpoint of {spec.name} is quantised as {declared.name}"
        return Issue(FIELD, name, message, allowed), None
    online = _ONLINE.get(name) if minor is not None or name in _ONLINE_OF_SGLANG else None
    if online is None:
        message = f"{shown}, but the checkpoint of {spec.name} is not quantised; give one that is"
        return Issue(FIELD, name, message, _online_names(spec, minor)), None
    if minor is None:
        return None, replace(_converted("fp8_per_channel"), name=name)
    if minor < online.first or (online.last is not None and minor > online.last):
        owner = (
            f"vLLM 0.{minor} does not convert" if minor >= FIRST_MINOR else "no SGLang is modelled to convert"
        )
        message = f"{shown}, but {owner} a 16-bit checkpoint to it"
        return Issue(FIELD, name, message, _online_names(spec, minor)), None
    if online.experts_only and not spec.is_moe:
        message = f"{shown}, which converts experts, but {spec.name} has none"
        return Issue(FIELD, name, message, _online_names(spec, minor)), None
    return None, _converted(name)


def _online_names(spec: ModelSpec, minor: int | None) -> tuple[str, ...]:
    if minor is None:
        return _ONLINE_OF_SGLANG
    return tuple(
        name
        for name, online in _ONLINE.items()
        if online.first <= minor <= (online.last or minor) and (spec.is_moe or not online.experts_only)
    )


def _converted(name: str) -> Quantization:
    """Return what a 16-bit checkpoint becomes."""
    from frontier.models.spec import Quantization  # noqa: PLC0415 - keeps `import frontier` light

    int8 = Quantization("int8_channel", (1, 0), weight_only=True, experts_only=True)
    schemes = {
        "fp8": Quantization("fp8_tensor", (0, 0)),
        "fp8_per_tensor": Quantization("fp8_tensor", (0, 0)),
        "fp8_per_block": Quantization("fp8_block", (128, 128)),
        "fp8_per_channel": Quantization("fp8_channel", (1, 0)),
        "experts_int8": int8,
        "int8_per_channel_weight_only": int8,
        "mxfp8": Quantization("mxfp8", (1, 32)),
        "nvfp4_per_token": Quantization("nvfp4", (1, 16), experts_only=True),
    }
    return replace(schemes[name], name=name, online=True)


def _on_gpu(found: Quantization, gpu: GpuSpec | None, name: str | None) -> tuple[Quantization, list[Issue]]:
    """Return the scheme with the arithmetic that the GPU has for it, or why vLLM does not run it there."""
    capability = _capability(gpu)
    if gpu is None or capability is None:
        return found, []
    asked = name or found.name
    arithmetic = found.arithmetic
    if found.method == "mxfp8" and capability < _BLACKWELL and not found.weight_only:
        message = f"was {show_value(asked)}, which needs compute capability 10.0; {gpu.name} has"
        return found, [Issue(FIELD, name, f"{message} {gpu.compute_capability}")]
    if found.online and arithmetic == "fp4" and capability < _BLACKWELL:
        message = f"was {show_value(asked)}, which needs fp4 units; {gpu.name} has none"
        return found, [Issue(FIELD, name, message)]
    if arithmetic == "int8" and capability >= _BLACKWELL:
        message = f"was {show_value(asked)} with 8-bit integers, for which vLLM has no kernel on {gpu.name}"
        return found, [Issue(FIELD, name, f"{message}; fp8 has one")]
    lacks_fp8 = arithmetic == "fp8" and capability < _FP8
    lacks_fp4 = arithmetic == "fp4" and capability < _BLACKWELL
    return replace(found, weight_only=found.weight_only or lacks_fp8 or lacks_fp4), []


def _capability(gpu: GpuSpec | None) -> tuple[int, int] | None:
    if gpu is None or gpu.compute_capability is None:
        return None
    major, _, minor = gpu.compute_capability.partition(".")
    return int(major), int(minor or 0)
