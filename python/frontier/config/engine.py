"""The engine section: vLLM's own settings under vLLM's own names, and how long a step takes."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from frontier import units
from frontier.config.async_scheduling import async_by_default
from frontier.config.base import Section
from frontier.config.cuda_graph import CudaGraph
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
from frontier.config.frontend import Frontend
from frontier.config.kv_tiers import KvTiers, OffloadingSize
from frontier.config.moe import Moe
from frontier.config.parallel import Parallelism
from frontier.config.policy import FCFS, SchedulingPolicy
from frontier.config.scheduler import SchedulerChoice
from frontier.config.sglang import SGLANG_VERSIONS, Sglang
from frontier.config.speculative import Speculative
from frontier.config.step_time import LearnedStepTime, StepTime
from frontier.errors import show_value
from frontier.vllm_versions import LATEST, VLLM_VERSIONS, minor_of

DEFAULT_CPU_PER_STEP_NS: Final = 1_000_000
DEFAULT_CPU_PER_SEQ_NS: Final = 10_000
DEFAULT_KERNEL_LAUNCH_NS: Final = 29_000
"""Measured: 9.4 ms to launch the 323 kernels of a Llama-2-7B prefill (vLLM V1, one H200; `forward_launch` of
NetX-lab/Frontier's CPU probe). The engine's Python around each kernel is most of it."""
DEFAULT_GRAPH_LAUNCH_NS: Final = 10_000
"""Assumed: the replay's own Python and driver call."""
DEFAULT_GRAPH_KERNEL_NS: Final = 900
"""Measured: `cudaGraphLaunch` of a graph of 2,187 nodes took 1.983 ms of host time in vLLM, and of 2,876
nodes 2.826 ms in SGLang (sgl-project/sglang issue 29960)."""

Auto = Literal["auto"]

_VERSION_SCHEMA: Final[dict[str, Any]] = {
    "enum": [
        *VLLM_VERSIONS,
        *(float(version) for version in VLLM_VERSIONS if not version.endswith("0")),
    ]
}


def parse_version(value: object) -> str:
    """Read an engine version; a patch number is dropped, because rules change with minor versions."""
    text = repr(value) if isinstance(value, float) else value
    if isinstance(text, str) and text.removeprefix("v") in SGLANG_VERSIONS:
        return text.removeprefix("v")
    if not isinstance(text, str):
        raise ValueError(f"was {show_value(value)}, must be a version such as '{LATEST}'")
    minor = ".".join(text.removeprefix("v").split(".")[:2])
    if minor not in VLLM_VERSIONS:
        allowed = f"{VLLM_VERSIONS[0]} to {LATEST}, {', '.join(SGLANG_VERSIONS)} of sglang"
        # YAML and JSON read 0.30 as the number 0.3.
        hint = (
            f"; write '{minor}0' in quotes"
            if isinstance(value, float) and f"{minor}0" in VLLM_VERSIONS
            else ""
        )
        raise ValueError(
            f"was {show_value(value)}, a version that is not modelled (allowed: {allowed}){hint}"
        )
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
    per_kernel_launch: Duration = DEFAULT_KERNEL_LAUNCH_NS
    """Per kernel launched outside a CUDA graph, beside the above."""
    per_graph_launch: Duration = DEFAULT_GRAPH_LAUNCH_NS
    """Per replay of a CUDA graph."""
    per_graph_kernel: Duration = DEFAULT_GRAPH_KERNEL_NS
    """Per kernel in a replayed CUDA graph."""


class Engine(Parallelism):
    """One inference engine. Fields left out follow `vllm serve`, or SGLang's server, of the version named."""

    name: Literal["vllm", "sglang"] = "vllm"
    """Which engine's rules. Settings of SGLang's own are in `sglang`; those not shared with it are vLLM's."""
    version: Annotated[str, BeforeValidator(parse_version), WithJsonSchema(_VERSION_SCHEMA)] = LATEST
    """Its version; left out, the latest that is modelled."""
    tensor_parallel_size: Positive = 1
    """GPUs that share every layer."""
    dtype: Literal["auto", "bfloat16", "float16", "half"] = "auto"
    """Type of weights and activations that are not quantised; `auto` is the checkpoint's."""
    quantization: str | None = None
    """The engine's name of how linear layers are quantised; left out, what the checkpoint declares. Names
    such as `fp8_per_tensor` convert a 16-bit checkpoint as it loads."""
    kv_cache_dtype: Literal["auto", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2", "fp8_ds_mla"] = (
        "auto"
    )
    """Type of the KV cache; `auto` is the model's."""
    gpu_memory_utilization: PositiveShare | None = None
    """Share of the GPU's memory that the engine may use; left out, 0.92 (0.9 before version 0.20)."""
    performance_mode: Literal["balanced", "interactivity", "throughput"] | None = None
    """Preset of vLLM's own (from 0.17): throughput doubles the default limits of a batch, interactivity
    captures a CUDA graph of every size up to 32; left out, balanced."""
    block_size: Annotated[int, Field(ge=1, le=4096), BeforeValidator(parse_whole)] | None = None
    """Tokens per KV block: a size that the attention backend takes; left out, the one it prefers."""
    num_gpu_blocks_override: Annotated[int, Field(ge=2, le=U32_MAX), BeforeValidator(parse_whole)] | None = (
        None
    )
    """KV blocks (the null block included) instead of what fits in memory."""
    disable_hybrid_kv_cache_manager: Flag | None = None
    """For models that mix sliding windows with full attention: all layers keep the KV cache of the whole
    context. Left out or false, layers with a window free what it has left behind."""
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
    """A smaller budget for scheduling, if any (from 0.17)."""
    max_num_seqs: Positive | None = None
    """Most running requests; left out, vLLM's default for the GPU."""
    max_num_active_seqs: Positive | None = None
    """A smaller limit on admissions to running, if any (from 0.31)."""
    long_prefill_token_threshold: TokensOrZero = 0
    """Largest chunk of a prompt while other requests wait or run; 0 is no limit."""
    long_prefill_token_threshold_adaptive: Flag | None = None
    """Raise the threshold to a fair share of the budget when that is larger (from 0.31; left out, false)."""
    enable_chunked_prefill: Flag = True
    """Split prompts over steps."""
    enable_prefix_caching: Flag = True
    """Keep full blocks for requests with the same prefix."""
    scheduler: SchedulerChoice | None = None
    """A scheduler in place of the engine's own; left out, the engine's."""
    scheduling_policy: SchedulingPolicy = FCFS
    """Order in which requests are served."""
    scheduler_reserve_full_isl: Flag | None = None
    """Admit a request only if its whole input fits (from 0.19; left out, true)."""
    watermark: ShareBelowOne | None = None
    """Share of the blocks kept free when admitting beside running requests (from 0.24; left out, 0)."""
    async_scheduling: Flag | None = None
    """Schedule the next step while the present one runs; left out, what the version does by default."""
    enforce_eager: Flag = False
    """Launch every kernel by itself: no CUDA graphs."""
    cuda_graph: CudaGraph | None = None
    """Captured CUDA graphs; left out, the version's."""
    speculative: Speculative | None = None
    """Speculative decoding, if any."""
    kv_offloading_size: OffloadingSize | None = None
    """Host memory for KV blocks, of all ranks together, as vLLM's OffloadingConnector uses it; a bare number
    is GiB. Short for a host tier of this capacity in `kv_tiers`."""
    kv_tiers: KvTiers | None = None
    """Tiers of KV below the device."""
    moe: Moe | None = None
    """Routing, placement and exchange of experts; left out, typical loads of equal chances."""
    sampling: Literal["random", "greedy"] | None = None
    """How requests sample: `greedy` (a temperature of 0) reads the logits once; left out, random."""
    cpu_overhead: CpuOverhead | None = None
    """Host time of a step; left out, 1 ms, 10 us per request, and launches. Not with given step times."""
    frontend: Frontend | None = None
    """API servers before and behind the engine; left out, they take no time."""
    step_time: StepTime = StepTime(learned=LearnedStepTime())
    """How long a step takes."""
    sglang: Sglang | None = None
    """SGLang's own settings; only with `name: sglang`."""

    @property
    def caches_prefixes(self) -> bool:
        """Whether what requests share is kept for others."""
        if self.name == "sglang":
            return not (self.sglang or Sglang()).disable_radix_cache
        return self.enable_prefix_caching

    @property
    def hides_host_time(self) -> bool:
        """Whether a step is scheduled while the one before runs."""
        if self.name == "sglang":
            return not (self.sglang or Sglang()).disable_overlap_schedule
        return self.schedules_asynchronously and self.scheduler is None

    @model_validator(mode="before")
    @classmethod
    def _version_of_the_engine(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("name") == "sglang" and value.get("version") is None:
            return {**value, "version": SGLANG_VERSIONS[-1]}
        return value

    @property
    def schedules_asynchronously(self) -> bool:
        """Whether the next step is scheduled while the present one runs: given, or the version's default."""
        if self.async_scheduling is not None:
            return self.async_scheduling
        method = None if self.speculative is None else self.speculative.method
        return async_by_default(
            minor_of(self.version), method=method, pipeline_parallel_size=self.pipeline_parallel_size
        )

    @field_validator("name", mode="before")
    @classmethod
    def _only_modelled(cls, value: Any) -> Any:
        if isinstance(value, str) and value.lower() in ("trtllm", "tensorrt-llm"):
            raise ValueError(f"was {show_value(value)}, this engine is not modelled (allowed: vllm, sglang)")
        return value
