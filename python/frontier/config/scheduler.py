"""Schedulers that stand beside the engine's own, under the names and with the defaults of their sources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from frontier.config.base import Choice, Section
from frontier.config.fields import Flag, Positive, ShareBelowOne, Tokens
from frontier.errors import Issue

if TYPE_CHECKING:
    from collections.abc import Callable

    from frontier.config.engine import Engine

VLLM_V0_TOKENS: Final = 2048
"""Token budget that vLLM V0 assumed at least (`vllm/config.py` of 0.6)."""


class VllmV0(Section):
    """vLLM before V1: prompts first, in batches of their own; decodes when no prompt can be admitted."""

    max_num_batched_tokens: Tokens | None = None
    """Token budget of a batch of prompts; left out, the larger of 2048 and max_model_len."""
    padded_budget: Flag = False
    """Count prompts as padded to the longest of the batch (vLLM before 0.2.2)."""
    max_num_seqs: Positive = 256
    """Most running requests."""
    watermark: ShareBelowOne = 0.01
    """Share of the blocks kept free when admitting."""


class Sarathi(Section):
    """Sarathi-Serve: decodes first, then chunks of prompts up to a token budget."""

    chunk_size: Tokens = 512
    """Token budget of a step, decodes included."""
    max_num_seqs: Positive = 128
    """Most running requests."""
    watermark: ShareBelowOne = 0.01
    """Share of the blocks kept free when admitting."""


class Orca(Section):
    """Orca: iteration-level batches of whole prompts and decodes, with KV reserved at admission."""

    max_batch_size: Positive = 128
    """Most requests of a batch."""
    reservation: Literal["max", "pow2", "oracle"] = "max"
    """KV reserved: for max_model_len, for the next power of two of the output, or for the true length."""


class StaticBatching(Section):
    """Static batching, as over FasterTransformer: a batch runs until its longest request is done."""

    max_batch_size: Positive = 8
    """Most requests of a batch."""


class TensorrtLlm(Section):
    """TensorRT-LLM's in-flight batching."""

    capacity_policy: Literal["guaranteed_no_evict", "max_utilization"] = "guaranteed_no_evict"
    """Admit only what can run to its end, or whatever fits the next step and pause the last to start."""
    max_batch_size: Positive = 2048
    """Most requests of a batch, and most admitted."""
    max_num_tokens: Tokens = 8192
    """Token budget of a step."""
    enable_chunked_context: Flag = False
    """Split prompts over steps, at multiples of the block size."""
    enable_block_reuse: Flag = True
    """Keep computed blocks for requests with the same prefix."""


class SchedulerChoice(Choice):
    """A scheduler in place of the engine's own."""

    vllm_v0: VllmV0 | None = None
    """Prefill-first, as vLLM before V1."""
    sarathi: Sarathi | None = None
    """Stall-free chunked prefill, as Sarathi-Serve."""
    orca: Orca | None = None
    """Iteration-level batching, as Orca."""
    static: StaticBatching | None = None
    """Request-level batching, as FasterTransformer."""
    tensorrt_llm: TensorrtLlm | None = None
    """In-flight batching, as TensorRT-LLM."""


OF_VLLM_V1: Final = (
    "performance_mode",
    "disable_hybrid_kv_cache_manager",
    "max_num_batched_tokens",
    "max_num_scheduled_tokens",
    "max_num_seqs",
    "max_num_active_seqs",
    "long_prefill_token_threshold",
    "long_prefill_token_threshold_adaptive",
    "enable_chunked_prefill",
    "enable_prefix_caching",
    "scheduler_reserve_full_isl",
    "watermark",
    "async_scheduling",
    "speculative",
    "prefill_schedule_interval",
)
"""Fields of the engine that are vLLM V1's; others bring their own."""
NOT_TOGETHER: Final = {
    "pipeline_parallel_size": "is not offered with pipelines: those need vLLM's own",
    "kv_offloading_size": "knows no KV below the device",
    "kv_tiers": "knows no KV below the device",
}
"""What other schedulers cannot serve, and why."""


def scheduler_issues(engine: Engine, known: Callable[..., bool]) -> list[Issue]:
    """Return the fields of vLLM V1 that were given beside another scheduler, and limits that do not fit."""
    choice = engine.scheduler
    if choice is None or not known("engine.scheduler"):
        return []
    name = choice.chosen
    issues = []
    for field in (*OF_VLLM_V1, *NOT_TOGETHER):
        value = getattr(engine, field)
        if value != type(engine).model_fields[field].default and known(f"engine.{field}"):
            why = NOT_TOGETHER.get(field)
            message = f"has no effect with engine.scheduler.{name}, which has settings of its own; remove it"
            if why is not None:
                message = f"does not go with engine.scheduler.{name}, which {why}; remove one of the two"
            plain = value.model_dump(exclude_none=True) if isinstance(value, Section) else value
            issues.append(Issue(f"engine.{field}", plain, message))
    return issues


def fit_issues(engine: Engine, max_model_len: int) -> list[Issue]:
    """Return the limits of a scheduler that cannot hold the longest context."""
    choice = engine.scheduler
    if choice is None:
        return []
    field, tokens, why = "", None, ""
    if choice.vllm_v0 is not None:
        field, tokens = "vllm_v0.max_num_batched_tokens", choice.vllm_v0.max_num_batched_tokens
        why = "prompts are not split"
    trt = choice.tensorrt_llm
    if trt is not None and trt.capacity_policy == "max_utilization" and not trt.enable_chunked_context:
        field, tokens = "tensorrt_llm.max_num_tokens", trt.max_num_tokens
        why = "paused requests come back whole without enable_chunked_context"
    if tokens is None or tokens >= max_model_len:
        return []
    message = f"was {tokens}, must be at least max_model_len ({max_model_len}): {why}"
    return [Issue(f"engine.scheduler.{field}", tokens, message)]


def batch_limits(engine: Engine, max_model_len: int) -> tuple[int, int] | None:
    """Return the most tokens and requests of a step under another scheduler, None under the engine's own.

    The forward pass that measures activation memory is as large; whole prompts without a budget (Orca, static
    batching) count as one of the longest.
    """
    choice = engine.scheduler
    if choice is None:
        return None
    if choice.vllm_v0 is not None:
        return vllm_v0_tokens(choice.vllm_v0, max_model_len), choice.vllm_v0.max_num_seqs
    if choice.sarathi is not None:
        return choice.sarathi.chunk_size, choice.sarathi.max_num_seqs
    if choice.orca is not None:
        return max_model_len, choice.orca.max_batch_size
    if choice.static is not None:
        return max_model_len, choice.static.max_batch_size
    assert choice.tensorrt_llm is not None
    return choice.tensorrt_llm.max_num_tokens, choice.tensorrt_llm.max_batch_size


def vllm_v0_tokens(rules: VllmV0, max_model_len: int) -> int:
    """Return the token budget of a batch of prompts."""
    return rules.max_num_batched_tokens or max(VLLM_V0_TOKENS, max_model_len)


def lower_scheduler(
    choice: SchedulerChoice, *, block_size: int, num_blocks: int, max_model_len: int, policy: Any
) -> dict[str, Any]:
    """Return the plan's scheduler."""
    chosen = getattr(choice, choice.chosen)
    rules = {name: getattr(chosen, name) for name in type(chosen).model_fields}
    if choice.vllm_v0 is not None:
        rules["max_num_batched_tokens"] = vllm_v0_tokens(choice.vllm_v0, max_model_len)
    return {
        "kind": "baseline",
        "block_size": block_size,
        "num_blocks": num_blocks,
        "max_model_len": max_model_len,
        "policy": policy,
        "pipeline_parallel_size": 1,
        "rules": {"kind": choice.chosen, **rules},
    }


def keeps_prefixes(engine: Engine) -> bool:
    """Tell whether the engine's scheduler keeps prefixes for reuse."""
    choice = engine.scheduler
    if choice is None:
        return engine.caches_prefixes
    return choice.tensorrt_llm is not None and choice.tensorrt_llm.enable_block_reuse
