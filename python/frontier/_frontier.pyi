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
        model: NDArray[np.uint16] | None = None,
        encoder_tokens: NDArray[np.uint32] | None = None,
    ) -> Trace: ...
    def __len__(self) -> int: ...

@final
class Pack:
    """A pack of predictors whose header and manifest have been checked; `data` must stay as it is.

    Raises `frontier.errors.PackError` for bytes that are no pack, or a damaged one.
    """

    def __new__(cls, data: NDArray[np.uint8]) -> Pack: ...
    @property
    def manifest_json(self) -> str: ...
    def __len__(self) -> int: ...
    def load(self, index: int) -> Predictor: ...

@final
class Predictor:
    """A checked predictor, shared without copying between the runs that use it."""

    def margin(self, x: NDArray[np.float32]) -> NDArray[np.float32]: ...
    def compiled_margin(self, x: NDArray[np.float32], fixed: dict[int, float]) -> NDArray[np.float32]: ...
    def ratio(self, x: NDArray[np.float32], fixed: dict[int, float]) -> NDArray[np.float64]: ...
    def seconds(self, bytes: NDArray[np.float64]) -> NDArray[np.float64]: ...

@final
class BlockLookups:
    """The block look-ups of a trace; raises `frontier.WorkloadError` for an unusable block size."""

    def __new__(cls, trace: Trace, block_size: int) -> BlockLookups: ...
    def __len__(self) -> int: ...
    def distinct(self) -> int: ...
    def hit_curve(self, policy_json: str, capacities: list[int]) -> dict[str, NDArray[np.uint64]]: ...

def simulate(
    plan_json: str,
    trace: Trace | None = None,
    predictors: list[Predictor] = ...,
    progress: Callable[[dict[str, Any]], object] | None = None,
    policy: Callable[[dict[str, Any]], float] | None = None,
) -> dict[str, Any]: ...
def expression_fault(text: str, has_deadline: bool, preemptive: bool) -> str | None: ...
def simulate_many(
    plans_json: list[str],
    traces: list[Trace | None],
    predictors: list[list[Predictor]],
    threads: int,
    done: Callable[[int, Any], object],
) -> None: ...
def step_breakdown(
    step_time_json: str,
    batches: list[list[tuple[int, int, bool]]],
    predictors: list[Predictor] = ...,
    rank: int = 0,
    drafts: list[list[int]] = ...,
) -> dict[str, Any]: ...
def operator_features(
    operator: str,
    gpu_json: str,
    dtype: str,
    columns: dict[str, NDArray[np.float64] | NDArray[np.uint32]],
    links_json: str | None = None,
) -> dict[str, Any]: ...
def feature_names(operator: str) -> list[str]: ...
