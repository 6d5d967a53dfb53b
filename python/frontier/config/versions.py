"""What releases of vLLM have, and what they assume where a scenario says nothing: rules by minor version.

Read from the source and the flags of one release per minor version, 0.11 to 0.32 (`vllm/config`,
`vllm/engine/arg_utils.py`). "From" is the first release that has a thing. Scheduling rules proper are in the
core (`plan/vllm_rules.rs`), memory's in `frontier.memory.versions`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from frontier.errors import Issue, show_value

if TYPE_CHECKING:
    from frontier.config.engine import Engine

FIRST_MINOR: Final = 11
LAST_MINOR: Final = 32
ENGINE_VERSIONS: Final = tuple(f"0.{minor}" for minor in range(FIRST_MINOR, LAST_MINOR + 1))
"""Minor versions of vLLM whose rules are modelled."""

FIELDS_FROM: Final[dict[str, int]] = {
    "max_num_scheduled_tokens": 17,
    "performance_mode": 17,
    "scheduler_reserve_full_isl": 19,
    "watermark": 24,
    "max_num_active_seqs": 31,
    "long_prefill_token_threshold_adaptive": 31,
}
"""Fields of the engine section that a release before this one does not have."""

METHODS_FROM: Final[dict[str, int]] = {"draft_model": 15, "ngram_gpu": 18}
"""Methods of speculative decoding that a release before this one does not have; others are older."""

_ASYNC_METHODS_FROM: Final[dict[str, int]] = {
    "eagle": 14,
    "eagle3": 14,
    "mtp": 14,
    "draft_model": 16,
    "ngram_gpu": 18,
}
"""Methods that can be scheduled asynchronously, and since when; the others force synchronous scheduling."""

_ASYNC_DEFAULT_FROM: Final = 14
_ASYNC_DRAFT_MODEL_DEFAULT_FROM: Final = 28

_V1_RUNNER_METHODS: Final = ("suffix", "medusa")


def minor_of(version: str) -> int:
    """Return N of a version 0.N."""
    return int(version.split(".")[1])


def version_issues(engine: Engine, known: Callable[..., bool]) -> list[Issue]:
    """Return the settings that the engine's version does not have."""
    if not known("engine.version"):
        return []
    minor = minor_of(engine.version)
    issues = []
    for field, first in FIELDS_FROM.items():
        value = getattr(engine, field)
        if minor < first and value is not None and known(f"engine.{field}"):
            message = (
                f"was {show_value(value)}, but vLLM {engine.version} has no such setting (from 0.{first} on);"
                " remove it"
            )
            issues.append(Issue(f"engine.{field}", value, message))
    return issues


def async_allowed(version: str, method: str | None) -> bool:
    """Return whether a version can schedule asynchronously with a method of speculative decoding, if any."""
    return method is None or minor_of(version) >= _ASYNC_METHODS_FROM.get(method, LAST_MINOR + 1)


def default_async_scheduling(
    version: str, *, method: str | None = None, pipeline_parallel_size: int = 1, v2_runner: bool = True
) -> bool:
    """Return whether steps are scheduled asynchronously where the scenario does not say: from 0.14 on.

    Not with a method of speculative decoding that cannot be, nor, before 0.28, with a draft model; not with
    pipeline stages in 0.14, and from 0.31 on only on the second model runner.
    """
    minor = minor_of(version)
    if minor < _ASYNC_DEFAULT_FROM or not async_allowed(version, method):
        return False
    if method == "draft_model" and minor < _ASYNC_DRAFT_MODEL_DEFAULT_FROM:
        return False
    return pipeline_parallel_size == 1 or not (minor == 14 or (minor >= 31 and not v2_runner))


def uses_v2_runner(version: str, *, dense: bool, method: str | None = None) -> bool:
    """Return whether the second model runner is the default.

    From 0.29 on for all models but for some methods of speculative decoding; from 0.26 on for dense ones. The
    few architectures that had it before (0.22: Qwen3) are not told apart.
    """
    minor = minor_of(version)
    return method not in _V1_RUNNER_METHODS and (minor >= 29 or (minor >= 26 and dense))
