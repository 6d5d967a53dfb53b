"""Minor versions of vLLM whose rules are modelled, and how one is told from its name.

What a release has and assumes is in `frontier.config.versions`, what it does to memory in
`frontier.memory.versions`, how it schedules in the core (`plan/vllm_rules.rs`).
"""

from __future__ import annotations

from typing import Final

FIRST_MINOR: Final = 11
LAST_MINOR: Final = 32
VLLM_VERSIONS: Final = tuple(f"0.{minor}" for minor in range(FIRST_MINOR, LAST_MINOR + 1))
LATEST: Final = VLLM_VERSIONS[-1]


def minor_of(version: str) -> int:
    """Return N of a version 0.N."""
    return int(version.split(".")[1])
