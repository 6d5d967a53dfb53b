"""The engine section: vLLM's own settings under vLLM's own names, and how long a step takes."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator

from frontier import units
from frontier.config.base import Section
from frontier.config.fields import (
    U32_MAX,
    Duration,
    Flag,
    Positive,
    PositiveShare,
    ShareBelowOne,
    Tokens,
    TokensOrZero,
    parse_whole,
)
from frontier.config.kv_tiers import KvTiers, OffloadingSize
from frontier.config.step_time import LearnedStepTime, StepTime
from frontier.errors import show_value

ENGINE_VERSIONS: Final = ("0.32",)
"""Minor versions of vLLM whose rules are modelled."""

DEFAULT_CPU_PER_STEP_NS: Final = 1_000_000
DEFAULT_CPU_PER_SEQ_NS: Final = 10_000

Auto = Literal["auto"]


def parse_version(value: object) -> str:
    """Read an engine version; a patch number is dropped, because rules change with minor versions."""
    text = repr(value) if isinstance(value, float) else value
    if not isinstance(text, str):
        raise ValueError(f"was {show_value(value)}, must be a version such as '{ENGINE_VERSIONS[-1]}'")
    minor = ".".join(text.removeprefix("v").split(".")[:2])
    if minor not in ENGINE_VERSIONS:
        allowed = ", ".join(ENGINE_VERSIONS)
        raise ValueError(f"was {show_value(value)}, a version that is not modelled (allowed: {allowed})")
    return minor


def parse_max_model_len(value: object) -> int | str:
    """Read a length in tokens, or `auto`."""
    if value in ("auto", -1):
        return "auto"
    if isinstance(value, str) and value[:1].isalpha():
        raise ValueError(f"was {show_value(value)}, must be 'auto' or a number of tokens")
    tokens = units.parse_count(value)
    if not 2 <= tokens <= U32_MAX:
        raise ValueError(f"was {show_value(value)}, must be 'auto' or a number of tokens from 2 to {U32_MAX}")
    return tokens


class CpuOverhead(Section):
    """Host time of one step: scheduling, input preparation and output processing."""

    per_step: Duration = DEFAULT_CPU_PER_STEP_NS
    """Per step."""
    per_seq: Duration = DEFAULT_CPU_PER_SEQ_NS
    """Per scheduled request."""


class Engine(Section):
    """One inference engine. Fields left out follow `vllm serve` of the version named."""

    name: Literal["vllm"] = "vllm"
    """Which engine's rules."""
    version: Annotated[
        str, BeforeValidator(parse_version), WithJsonSchema({"enum": [*ENGINE_VERSIONS, 0.32]})
    ] = ENGINE_VERSIONS[-1]
    """Its version."""
    tensor_parallel_size: Positive = 1
    """GPUs that share every layer; also the GPUs of one replica."""
    dtype: Literal["auto", "bfloat16", "float16", "half"] = "auto"
    """Type of weights and activations that are not quantised; `auto` is the checkpoint's."""
    kv_cache_dtype: Literal["auto", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2", "fp8_ds_mla"] = (
        "auto"
    )
    """Type of the KV cache; `auto` is the model's."""
    gpu_memory_utilization: PositiveShare = 0.92
    """Share of the GPU's memory that the engine may use."""
    block_size: Annotated[int, Field(ge=1, le=4096), BeforeValidator(parse_whole)] | None = None
    """Tokens per KV block: a size that the attention backend takes; left out, the one it prefers."""
    num_gpu_blocks_override: Annotated[int, Field(ge=2, le=U32_MAX), BeforeValidator(parse_whole)] | None = (
        None
    )
    """KV blocks (the null block included) instead of what fits in memory."""
    disable_hybrid_kv_cache_manager: Flag | None = None
    """For models that mix sliding windows with full attention, which need it to be true: all layers keep the
    KV cache of the whole context. vLLM's hybrid manager, its default, is not modelled yet."""
    max_model_len: (
        Annotated[
            int | Auto,
            BeforeValidator(parse_max_model_len),
            WithJsonSchema(
                {"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 2}, {"type": "string"}]}
            ),
        ]
        | None
    ) = None
    """Longest prompt + output; left out, the model's; `auto`, the longest that fits in the KV cache."""
    max_num_batched_tokens: Tokens | None = None
    """Token budget of a step; left out, vLLM's default for the GPU."""
    max_num_scheduled_tokens: Tokens | None = None
    """A smaller budget for scheduling, if any."""
    max_num_seqs: Positive | None = None
    """Most running requests; left out, vLLM's default for the GPU."""
    max_num_active_seqs: Positive | None = None
    """A smaller limit on admissions to running, if any."""
    long_prefill_token_threshold: TokensOrZero = 0
    """Largest chunk of a prompt while other requests wait or run; 0 is no limit."""
    long_prefill_token_threshold_adaptive: Flag = False
    """Raise the threshold to a fair share of the budget when that is larger."""
    enable_chunked_prefill: Flag = True
    """Split prompts over steps."""
    enable_prefix_caching: Flag = True
    """Keep full blocks for requests with the same prefix."""
    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    """Order of the waiting queue."""
    scheduler_reserve_full_isl: Flag = True
    """Admit a request only if its whole input fits."""
    watermark: ShareBelowOne = 0.0
    """Share of the blocks kept free when admitting beside running requests."""
    async_scheduling: Flag = True
    """Schedule the next step while the present one runs."""
    kv_offloading_size: OffloadingSize | None = None
    """Host memory for KV blocks, of all ranks together, as vLLM's OffloadingConnector uses it; a bare number
    is GiB. Short for a host tier of this capacity in `kv_tiers`."""
    kv_tiers: KvTiers | None = None
    """Tiers of KV below the device."""
    cpu_overhead: CpuOverhead | None = None
    """Host time of a step; left out, 1 ms and 10 us per request. Not with a linear step time."""
    step_time: StepTime = StepTime(learned=LearnedStepTime())
    """How long a step takes."""

    @field_validator("name", mode="before")
    @classmethod
    def _only_vllm(cls, value: Any) -> Any:
        if isinstance(value, str) and value.lower() in (
            "sglang",
            "trtllm",
            "tensorrt-llm",
            "orca",
            "sarathi",
        ):
            raise ValueError(f"was {show_value(value)}, this engine is not modelled (allowed: vllm)")
        return value
