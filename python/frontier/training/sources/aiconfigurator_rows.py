"""What the readers of aiconfigurator's tables share: the rows of a table, and what becomes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl

from frontier.training import traps
from frontier.training.identity import Fact, Identity
from frontier.training.measurements import Measurements, Source

MS, US = 1e-3, 1e-6


class Table(NamedTuple):
    """Rows of one table, GPU, backend and version, with those of the table to join them to."""

    gpu: str
    backend: str
    version: str
    frame: pl.DataFrame
    other: pl.DataFrame | None
    sources: tuple[Source, ...]


class Scheme(NamedTuple):
    """A quantisation scheme: plan name, bytes of a weight (scales included) and of an activation."""

    dtype: str
    weight_bytes: float
    activation_bytes: float


# Scales: nvfp4 one byte for 16 weights, mxfp4 one for 32, int4 two bytes for 128.
SCHEMES = {
    "bfloat16": Scheme("bf16", 2, 2),
    "float16": Scheme("fp16", 2, 2),
    "fp8": Scheme("fp8", 1, 1),
    "fp8_block": Scheme("fp8_block", 1, 1),
    "sq": Scheme("int8", 1, 1),
    "int8_wo": Scheme("int8", 1, 2),
    "int4_wo": Scheme("int4", 0.515625, 2),
    "nvfp4": Scheme("nvfp4", 0.5625, 0.5625),
    "w4a16_mxfp4": Scheme("mxfp4", 0.53125, 2),
    "w4a8_mxfp4_mxfp8": Scheme("mxfp4", 0.53125, 1.03125),
}


def identity_of(
    table: Table,
    kernel: str,
    operator: str,
    dtype: str,
    facts: Mapping[str, Fact],
    *,
    measurement: str = "cuda_graph",
) -> Identity:
    """Return the identity of rows of `table`."""
    return Identity(
        table.gpu, table.backend, table.version, kernel, measurement, operator, dtype, tuple(facts.items())
    )


def finished(
    table: Table,
    identity: Identity,
    columns: Mapping[str, Any],
    seconds: Any,
    model: Sequence[str] | Any,
    *,
    dropped: Mapping[str, int] | None = None,
) -> Measurements:
    """Return measurements of `table`, those faster than the hardware marked."""
    found = Measurements.of(identity, columns, seconds, model, dropped=dropped, sources=table.sources)
    return traps.mark_impossible(found)


def site_names(pattern: str, rows: pl.DataFrame, *columns: str) -> Any:
    """Return, for each row, `pattern` with the values of `columns`."""
    return rows.select(pl.format(pattern, *columns)).to_series().to_numpy().astype(object)
