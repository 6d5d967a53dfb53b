"""The private extension module: the Rust core behind `frontier.simulation`."""

from collections.abc import Callable
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

__version__: str
DEBUG_BUILD: bool
PLAN_SCHEMA_VERSION: int
OUTPUT_STREAM_BASE: int
ATTRIBUTION_CAUSES: list[str]

@final
class Trace:
    """Immutable, checked columns of a trace, shared between runs without copying.

    A prompt is a list of segments (stream, start, length); the identity of a token is (stream, position).
    Requests without segments have unique content. Raises `frontier.WorkloadError` naming column, row and
    value.
    """

    def __new__(
        cls,
        arrival_ns: NDArray[np.int64],
        prompt_tokens: NDArray[np.uint32],
        output_tokens: NDArray[np.uint32],
        *,
        priority: NDArray[np.int32] | None = None,
        session: NDArray[np.uint32] | None = None,
        segment_offsets: NDArray[np.uint64] | None = None,
        segment_stream: NDArray[np.uint64] | None = None,
        segment_start: NDArray[np.uint32] | None = None,
        segment_length: NDArray[np.uint32] | None = None,
        tie_rank: NDArray[np.uint32] | None = None,
    ) -> Trace: ...
    def __len__(self) -> int: ...

def simulate(
    plan_json: str,
    trace: Trace | None = None,
    progress: Callable[[dict[str, Any]], object] | None = None,
) -> dict[str, Any]: ...
def simulate_many(
    plans_json: list[str],
    traces: list[Trace | None],
    threads: int,
    done: Callable[[int, Any], object],
) -> None: ...
def step_breakdown(plan_json: str, batch: list[tuple[int, int, bool]]) -> dict[str, Any]: ...
