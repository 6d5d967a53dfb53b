"""Whether vLLM schedules the next step while the present one runs.

`VllmConfig.__post_init__` (`vllm/config/vllm.py`), 0.11 to 0.32: off up to 0.13 unless asked for, on from
0.14 except where something in the engine cannot.
"""

from __future__ import annotations

from typing import Final

_ASYNC_FROM: Final = 14
_METHODS_BY_DEFAULT: Final = {
    "eagle": 14,
    "eagle3": 14,
    "mtp": 14,
    "ngram_gpu": 18,
    "dspark": 25,
    "draft_model": 28,
    "dflash": 31,
}
"""Speculative methods under which asynchronous scheduling is on by default, and since which minor version."""
_METHODS_ON_REQUEST: Final = {"draft_model": 16}
"""Those that allow it earlier, if asked for."""


def allows_async(minor: int, method: str | None) -> bool:
    """Return whether a speculative method (None: none) works with asynchronous scheduling at all.

    n-gram on the CPU, suffix decoding and Medusa need the tokens of a step before they draft for the next.
    """
    if method is None:
        return True
    since = _METHODS_ON_REQUEST.get(method, _METHODS_BY_DEFAULT.get(method))
    return since is not None and minor >= since


def async_by_default(
    minor: int,
    *,
    method: str | None = None,
    pipeline_parallel_size: int = 1,
    second_runner: bool = True,
    pooling: bool = False,
) -> bool:
    """Return whether a minor version schedules asynchronously where the user does not say.

    Args:
        minor: of vLLM, as 14 in 0.14.
        method: of speculative decoding, None without.
        pipeline_parallel_size: with more than one stage it is off in 0.14, and from 0.31 with the first model
            runner.
        second_runner: whether vLLM's second model runner serves the model.
        pooling: a pooling model, for which it is off from 0.20.
    """
    if minor < _ASYNC_FROM or (pooling and minor >= 20):
        return False
    if pipeline_parallel_size > 1 and (minor == _ASYNC_FROM or (minor >= 31 and not second_runner)):
        return False
    return method is None or minor >= _METHODS_BY_DEFAULT.get(method, minor + 1)
