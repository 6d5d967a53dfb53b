"""The engine's effective limits: vLLM's defaults by GPU, its clamps, and its start-up errors.

Mirrors vLLM 0.11 to 0.32: `vllm/engine/arg_utils.py` (defaults of `vllm serve`), `vllm/config/scheduler.py`
(errors), `vllm/config/vllm.py` (slots of a draft model).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from frontier.config.engine import Engine
from frontier.errors import Issue
from frontier.vllm_versions import VLLM_VERSIONS, minor_of

if TYPE_CHECKING:
    from frontier.hardware import GpuSpec

_LARGE_BYTES: Final = 160 * 2**30
_MEDIUM_BYTES: Final = 70 * 2**30
_LARGE_FROM: Final = 28
_DRAFT_SLOTS_SET_ASIDE: Final = range(17, 28)
"""Minor versions that take the slots of a draft model off the scheduling budget for good; later ones charge
each scheduled request."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the scheduler works with.

    Attributes:
        max_model_len: longest prompt + output, in tokens; the model's own where the scenario says `auto`,
            until the KV cache is known.
        max_num_batched_tokens: token budget of a step.
        max_num_seqs: most running requests.
        max_num_scheduled_tokens: a smaller budget for scheduling, None where there is none.
    """

    max_model_len: int
    max_num_batched_tokens: int
    max_num_seqs: int
    max_num_scheduled_tokens: int | None = None


def default_batch(
    device_name: str | None, memory_bytes: int, version: str = VLLM_VERSIONS[-1]
) -> tuple[int, int]:
    """Return the batched tokens and sequences that `vllm serve` assumes for a GPU.

    By the memory the device reports: from 160 GiB (from 0.28 on), from 70 GiB unless its name says that it is
    an A100, and all others. `device_name` is the name that CUDA reports; None is no A100.
    """
    if memory_bytes >= _LARGE_BYTES and minor_of(version) >= _LARGE_FROM:
        return 16384, 1024
    if memory_bytes >= _MEDIUM_BYTES and not _is_a100(device_name):
        return 8192, 1024
    return 2048, 256


def _is_a100(name: str | None) -> bool:
    return name is not None and "a100" in name.lower()


def effective_limits(
    engine: Engine, *, model_max_len: int, device_name: str | None, memory_bytes: int
) -> Limits:
    """Return the limits with vLLM's defaults and clamps for those that the scenario leaves out."""
    given = engine.max_model_len
    max_model_len = given if isinstance(given, int) else model_max_len
    default_tokens, default_seqs = default_batch(device_name, memory_bytes, engine.version)
    if engine.performance_mode == "throughput":
        default_tokens, default_seqs = 2 * default_tokens, 2 * default_seqs
    tokens = engine.max_num_batched_tokens or default_tokens
    seqs = engine.max_num_seqs or default_seqs
    if engine.max_num_batched_tokens is None:
        if not engine.enable_chunked_prefill:
            tokens = max(tokens, max_model_len)
        tokens = min(tokens, seqs * max_model_len)
    if engine.max_num_seqs is None:
        seqs = min(seqs, tokens)
    scheduled = engine.max_num_scheduled_tokens
    drafts = engine.speculative is not None and engine.speculative.method == "draft_model"
    if scheduled is None and drafts and minor_of(engine.version) in _DRAFT_SLOTS_SET_ASIDE:
        scheduled = tokens - seqs
    return Limits(max_model_len, tokens, seqs, scheduled)


def limit_issues(
    engine: Engine, limits: Limits | None, known: Callable[[str], bool], *, model_max_len: int | None
) -> list[Issue]:
    """Return the settings with which vLLM would not start.

    Args:
        engine: the engine section.
        limits: effective limits, None where model or GPU are not known; what is given is checked then.
        known: tells whether a field of the engine is usable.
        model_max_len: the model's longest context, None where not known.
    """
    issues: list[Issue] = []

    def report(field: str, message: str) -> None:
        if known(field):
            issues.append(Issue(f"engine.{field}", getattr(engine, field), message))

    def effective(field: str, value: int | None) -> int | None:
        return value if known(field) else None

    given = engine.max_model_len if isinstance(engine.max_model_len, int) else None
    length = effective("max_model_len", limits.max_model_len if limits else given)
    tokens = effective(
        "max_num_batched_tokens", limits.max_num_batched_tokens if limits else engine.max_num_batched_tokens
    )
    seqs = effective("max_num_seqs", limits.max_num_seqs if limits else engine.max_num_seqs)
    if given is not None and model_max_len is not None and given > model_max_len:
        report("max_model_len", f"was {given}, the model allows at most {model_max_len}")
    whole_prompts = known("enable_chunked_prefill") and not engine.enable_chunked_prefill
    if whole_prompts and length and tokens and tokens < length:
        report(
            "max_num_batched_tokens",
            f"was {tokens}, must be at least max_model_len ({length}) without chunked prefill;"
            " raise it, lower max_model_len or set enable_chunked_prefill",
        )
    if tokens and seqs and tokens < seqs:
        field = "max_num_batched_tokens" if engine.max_num_batched_tokens is not None else "max_num_seqs"
        report(field, f"max_num_batched_tokens ({tokens}) must be at least max_num_seqs ({seqs})")
    at_most = (
        ("max_num_active_seqs", "max_num_seqs", seqs),
        ("max_num_scheduled_tokens", "max_num_batched_tokens", tokens),
        ("long_prefill_token_threshold", "max_model_len", length),
    )
    for field, bound_name, bound in at_most:
        value = getattr(engine, field)
        if value is not None and bound is not None and value > bound:
            report(field, f"was {value}, must be at most {bound_name} ({bound})")
    if limits is not None and limits.max_num_scheduled_tokens == 0 and known("max_num_scheduled_tokens"):
        message = (
            f"max_num_batched_tokens ({tokens}) must exceed max_num_seqs ({seqs}): vLLM {engine.version} sets"
            " a token aside for each request's draft model"
        )
        report("max_num_batched_tokens", message)
    adaptive = engine.long_prefill_token_threshold_adaptive
    if adaptive and not engine.long_prefill_token_threshold and known("long_prefill_token_threshold"):
        message = "was true without effect: set long_prefill_token_threshold, which it raises"
        report("long_prefill_token_threshold_adaptive", message)
    return issues


def limit_warnings(engine: Engine, limits: Limits, gpu: GpuSpec) -> list[str]:
    """Return what vLLM warns about at start, and which GPU the defaults may be wrong for."""
    warnings = []
    most = limits.max_num_seqs * limits.max_model_len
    if limits.max_num_batched_tokens > most:
        tokens = f"engine.max_num_batched_tokens ({limits.max_num_batched_tokens})"
        warnings.append(f"{tokens} exceeds max_num_seqs * max_model_len ({most}): no step can be that large")
    by_default = engine.max_num_batched_tokens is None or engine.max_num_seqs is None
    unnamed = gpu.device_name is None and _is_a100(gpu.name)
    if by_default and unnamed and _MEDIUM_BYTES <= gpu.memory_bytes < _LARGE_BYTES:
        warnings.append(
            f"hardware.gpu: {gpu.name} has no device_name, so the engine's default limits are not those that"
            " vLLM has for an A100; give the name that CUDA reports, such as NVIDIA A100-SXM4-80GB"
        )
    return warnings
