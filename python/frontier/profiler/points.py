"""A point: one operator at one size, in the words of the training columns, and the work that it does.

The columns are those of the simulator's own operators (`frontier.models.operator_program`), so that what is
measured and what is later asked for is described alike.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from frontier.training import measurements

ATTENTION: Final = measurements.ATTENTION_COLUMNS
FUSED_MOE: Final = measurements.COLUMNS["fused_moe"]
_TRAINED: Final = (
    "gemm",
    "prefill_attention",
    "decode_attention",
    "mixed_attention",
    "fused_moe",
    "rms_norm",
    "rope",
    "activation",
    "kv_write",
    "embedding",
    "quant_fp8",
    "moe_gating",
    "sampler",
)
COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    **{operator: measurements.COLUMNS[operator] for operator in _TRAINED},
    "copy": ("bytes",),
    "launch": ("kernels", "graph"),
}
"""Training columns of every operator that is measured. `copy` and `launch` are facts of the device: no
predictor is trained from them."""

ITEMSIZE: Final = {"bf16": 2, "fp16": 2, "fp32": 4, "fp8": 1}
"""Bytes of an element, by plan name of its type."""


@dataclass(frozen=True)
class Point:
    """One operator at one size.

    Attributes:
        family: the group of operators that it is planned with, as `--families` names it.
        operator: operator of the predictor that it trains.
        dtype: type of its arithmetic, as in `bf16`.
        columns: values of the operator's training columns.
        groups: attention only; groups of equal requests (count, query tokens, context with them).
        expert_loads: `fused_moe` only; rows of each expert, in order of experts.
        detail: what a kernel needs to know beyond the columns (widths, counts of heads).
        flops: multiplications and additions of one launch.
        bytes: bytes that one launch reads and writes at least.
        resident_bytes: memory of one copy of its operands and results.
    """

    family: str
    operator: str
    dtype: str
    columns: Mapping[str, float]
    flops: float
    bytes: float
    resident_bytes: int
    groups: tuple[tuple[int, int, int], ...] = ()
    expert_loads: tuple[int, ...] = ()
    detail: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if tuple(self.columns) != COLUMNS[self.operator]:
            raise AssertionError(f"{self.operator} has columns {COLUMNS[self.operator]}, not {self.columns}")

    @cached_property
    def key(self) -> str:
        """Name of the point in the journal: a hash of all that says what is to be measured."""
        content = [
            self.operator,
            self.dtype,
            {name: float(value) for name, value in self.columns.items()},
            self.groups,
            self.expert_loads,
            dict(self.detail or {}),
        ]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    def integer(self, column: str) -> int:
        """Return a column that is a whole number."""
        return int(self.columns[column])

    def more(self, name: str) -> int:
        """Return a whole number of `detail`."""
        assert self.detail is not None, self.operator
        return int(self.detail[name])

    def describe(self) -> str:
        """Return the point in one line, for messages."""
        columns = ", ".join(f"{name} {value:g}" for name, value in self.columns.items())
        groups = "".join(f"; {count} x ({query} of {context})" for count, query, context in self.groups)
        return f"{self.operator} {self.dtype}: {columns}{groups}"


def attention_pairs(groups: tuple[tuple[int, int, int], ...], window: int) -> float:
    """Return the query-key pairs of a causal batch; `window` 0 is none.

    Query i of q (from 1) of a request with context c sees the c - q + i keys up to its own, or the last
    `window` of them.
    """
    pairs = 0
    for count, query, context in groups:
        first = context - query + 1
        if not window or context <= window:
            seen = query * (first + context) // 2
        elif first >= window:
            seen = query * window
        else:
            growing = window - first
            seen = growing * (first + window - 1) // 2 + (query - growing) * window
        pairs += count * seen
    return float(pairs)
