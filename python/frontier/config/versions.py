"""What releases of vLLM have, and what they assume where a scenario says nothing: rules by minor version.

Read from the source and the flags of one release per minor version, 0.11 to 0.32 (`vllm/config`,
`vllm/engine/arg_utils.py`). "From" is the first release that has a thing. Scheduling rules proper are in the
core (`plan/vllm_rules.rs`), memory's in `frontier.memory.versions`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from frontier.errors import Issue, show_value
from frontier.vllm_versions import minor_of

if TYPE_CHECKING:
    from frontier.config.engine import Engine

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
