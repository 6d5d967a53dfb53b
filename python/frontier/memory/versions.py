"""What vLLM's releases 0.11 to 0.32 do differently when they size the KV cache.

Rules were read from the source of one release per minor version (vllm/v1/worker/gpu_worker.py,
vllm/v1/core/kv_cache_utils.py, vllm/config).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from frontier.errors import ConfigError, Issue, show_value
from frontier.vllm_versions import FIRST_MINOR, LAST_MINOR, VLLM_VERSIONS

_GIB: Final = 2**30
_FIRST_RUNNER_METHODS: Final = ("suffix", "medusa")
_VERSION: Final = re.compile(r"v?0\.(\d+)(?:[.+].*|rc.*|\.post.*)?")


@dataclass(frozen=True, slots=True)
class VllmRules:
    """The rules of one minor version.

    Attributes:
        minor: its number, as 19 in 0.19.
    """

    minor: int

    @property
    def version(self) -> str:
        """The version as it is written."""
        return f"0.{self.minor}"

    @property
    def default_gpu_memory_utilization(self) -> float:
        """0.9, from 0.20 0.92."""
        return 0.92 if self.minor >= 20 else 0.9

    @property
    def graphs_subtracted(self) -> bool:
        """Whether CUDA-graph memory is taken off: from 0.20; 0.18 and 0.19 measure it, but do not apply it.

        Before that it is captured later, out of the share that `gpu_memory_utilization` leaves out.
        """
        return self.minor >= 20

    @property
    def hybrid_ratio(self) -> float:
        """Kinds of layers whose counts differ by less than this factor are grouped by the larger count."""
        return 1.5 if self.minor >= 18 else 1.25

    def uses_second_runner(self, *, dense: bool, method: str | None = None) -> bool:
        """Return whether the second model runner (`vllm/v1/worker/gpu/model_runner.py`) serves a model.

        From 0.29 on for all models but for some methods of speculative decoding; from 0.26 on for dense ones.
        The few architectures that had it before (0.22: Qwen3) are not told apart.
        """
        return method not in _FIRST_RUNNER_METHODS and (self.minor >= 29 or (self.minor >= 26 and dense))


def rules_of(version: object) -> VllmRules:
    """Return the rules of a version such as `0.19`, `v0.19.0` or `0.19.1.post1`; patches change nothing here.

    Raises:
        ConfigError: no version, or one outside 0.11 to 0.32.
    """
    match = _VERSION.fullmatch(version) if isinstance(version, str) else None
    if match is None or not FIRST_MINOR <= int(match[1]) <= LAST_MINOR:
        message = f"was {show_value(version)}; memory is modelled for vLLM 0.{FIRST_MINOR} to 0.{LAST_MINOR}"
        raise ConfigError(Issue("engine.version", version, message, VLLM_VERSIONS))
    return VllmRules(int(match[1]))
