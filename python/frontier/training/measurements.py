"""Measured times of one operator with their inputs, in the canonical columns of training.

Scalar operators have one float64 array per column. Attention operators have `ATTENTION_COLUMNS` as arrays
of one value per row and, for the requests of a batch, groups of equal requests: row i owns the entries
`offsets[i]` up to `offsets[i + 1]` of `count` (requests), `query` (new tokens of each) and `context` (tokens
of each after the step, the new ones included); a group with `query == 1` is decode.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frontier.errors import ConfigError, Issue
from frontier.training.identity import ATTENTION, COLLECTIVES, ELEMENTWISE, EXCHANGES, Identity

Array = NDArray[Any]

ATTENTION_COLUMNS = (
    "heads",
    "kv_heads",
    "qk_dim",
    "v_dim",
    "kv_bytes_per_token",
    "activation_bytes",
    "window",
)
RAGGED_COLUMNS = ("count", "query", "context")
COLUMNS: dict[str, tuple[str, ...]] = {
    "gemm": ("rows", "k", "n", "batch", "weight_bytes", "activation_bytes"),
    "fused_moe": (
        "rows",
        "hidden",
        "inter",
        "experts",
        "top_k",
        "moe_tp",
        "moe_ep",
        "weight_bytes",
        "activation_bytes",
        "gated",
        "imbalance",
    ),
    **dict.fromkeys(ATTENTION, ATTENTION_COLUMNS),
    **dict.fromkeys(ELEMENTWISE, ("rows", "bytes_per_row")),
    **dict.fromkeys(COLLECTIVES, ("bytes", "ranks", "nodes")),
    **dict.fromkeys(EXCHANGES, ("rows", "hidden", "top_k", "experts", "ep", "nodes", "bytes_per_element")),
}
# Columns that may be zero (no window, not gated) or negative (an imbalance of -1 means exactly balanced).
_MAY_BE_ZERO = ("window", "gated", "imbalance")


@dataclass(frozen=True)
class Source:
    """Where rows come from.

    Attributes:
        name: publisher and product; `licence`: SPDX expression; `file`: path below the publisher's root;
        sha256: of the file's bytes; `version`: commit or release of the collection.
    """

    name: str
    licence: str
    file: str
    sha256: str
    version: str


@dataclass(frozen=True)
class Skipped:
    """A file, or a part of one, that a reader left alone, with its rows and the reason."""

    file: str
    rows: int
    why: str


@dataclass(frozen=True)
class RepeatFloor:
    """How far repeats of the same inputs lie from their own median: no model can do better.

    `rows` repeated rows in `groups` keys; `median` and `p95` of |t / median - 1|; shares of repeated rows
    within 6 % and 10 %. All figures are NaN where nothing was repeated.
    """

    groups: int
    rows: int
    median: float
    p95: float
    share_6: float
    share_10: float


@dataclass(frozen=True)
class Measurements:
    """Rows of one identity.

    Attributes:
        identity: what was measured.
        columns: canonical columns (`COLUMNS`; attention also has `offsets`, `count`, `query`, `context`).
        seconds: measured time of each row, float64 [n].
        key: uint64 [n]; rows with equal inputs have equal keys.
        model: text [n]; the model or shape site a row belongs to, for splits that hold models out.
        marks: further arrays [n] by name, which are no inputs: warm_l2, quantised, skew_role, ...
        dropped: rows that were left out, by reason.
        sources: files the rows come from.
        warnings: what a user of these rows has to know.
    """

    identity: Identity
    columns: dict[str, Array]
    seconds: NDArray[np.float64]
    key: NDArray[np.uint64]
    model: Array
    marks: dict[str, Array] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    sources: tuple[Source, ...] = ()
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        identity: Identity,
        columns: Mapping[str, Any],
        seconds: Any,
        model: Any,
        *,
        marks: Mapping[str, Any] | None = None,
        dropped: Mapping[str, int] | None = None,
        sources: Iterable[Source] = (),
        warnings: Iterable[str] = (),
    ) -> Measurements:
        """Build from anything numpy can convert; scalars are spread over all rows. Keys are computed.

        Raises:
            ConfigError: a column is missing, unknown, of the wrong length, not finite or not positive.
        """
        times = np.ascontiguousarray(seconds, dtype=np.float64)
        ragged = identity.operator in ATTENTION
        converted: dict[str, Array] = {}
        for name, values in columns.items():
            kind = np.uint32 if ragged and name in (*RAGGED_COLUMNS, "offsets") else np.float64
            array = np.asarray(values, dtype=kind)
            converted[name] = np.ascontiguousarray(
                np.full(len(times), array, dtype=kind) if array.ndim == 0 else array
            )
        _check(identity, converted, times)
        names = np.asarray(model, dtype=object)
        names = np.full(len(times), names, dtype=object) if names.ndim == 0 else names
        found = cls(
            identity=identity,
            columns=converted,
            seconds=times,
            key=_keys(identity.operator, converted),
            model=names,
            marks={name: np.asarray(values) for name, values in (marks or {}).items()},
            dropped=dict(dropped or {}),
            sources=tuple(sources),
            warnings=tuple(warnings),
        )
        for name, values in (("model", names), *found.marks.items()):
            if len(values) != len(times):
                raise _bad(identity, name, len(values), f"has {len(values)} rows, `seconds` {len(times)}")
        return found

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.seconds)

    def take(self, rows: Array, *, why: str | None = None) -> Measurements:
        """Return the rows chosen by a boolean mask or by indices; with `why`, count the others as dropped."""
        index = np.flatnonzero(rows) if rows.dtype == bool else np.asarray(rows, dtype=np.int64)
        columns = {
            name: values[index]
            for name, values in self.columns.items()
            if name not in RAGGED_COLUMNS and name != "offsets"
        }
        if "offsets" in self.columns:
            offsets = self.columns["offsets"].astype(np.int64)
            sizes = np.diff(offsets)[index]
            starts = np.concatenate(([0], np.cumsum(sizes)))
            inside = np.arange(starts[-1]) - np.repeat(starts[:-1], sizes) + np.repeat(offsets[index], sizes)
            columns["offsets"] = starts.astype(np.uint32)
            columns |= {name: self.columns[name][inside] for name in RAGGED_COLUMNS}
        dropped = dict(self.dropped)
        if why is not None and len(index) < len(self):
            dropped[why] = dropped.get(why, 0) + len(self) - len(index)
        return replace(
            self,
            columns=columns,
            seconds=self.seconds[index],
            key=self.key[index],
            model=self.model[index],
            marks={name: values[index] for name, values in self.marks.items()},
            dropped=dropped,
        )

    def marked(self, name: str, values: Array) -> Measurements:
        """Return the same rows with one more mark, an array of one value per row."""
        if len(values) != len(self):
            raise _bad(self.identity, name, len(values), f"has {len(values)} rows, `seconds` {len(self)}")
        return replace(self, marks={**self.marks, name: values})

    def warned(self, text: str) -> Measurements:
        """Return the same rows with one more warning."""
        return replace(self, warnings=(*self.warnings, text))

    def per_row(self, values: Array) -> Array:
        """Return the sum over each row's groups of `values`, one per entry of the ragged columns."""
        offsets = self.columns["offsets"].astype(np.int64)
        totals = np.concatenate(([0.0], np.cumsum(values, dtype=np.float64)))
        return np.asarray(totals[offsets[1:]] - totals[offsets[:-1]])

    def unequal_rows(self) -> NDArray[np.bool_]:
        """Return which rows of attention hold requests of different contexts."""
        starts = self.columns["offsets"][:-1].astype(np.int64)
        context = self.columns["context"]
        if not len(starts):
            return np.zeros(0, dtype=bool)
        return np.asarray(np.maximum.reduceat(context, starts) > np.minimum.reduceat(context, starts))

    def repeat_errors(self) -> NDArray[np.float64]:
        """Return |t / median - 1| of every row whose inputs were measured more than once."""
        sizes, times, medians = self._by_input()
        repeated = np.repeat(sizes > 1, sizes)
        return np.asarray(np.abs(times[repeated] / medians[repeated] - 1))

    def repeat_floor(self) -> RepeatFloor:
        """Return how far rows with equal inputs deviate from their common median."""
        away = self.repeat_errors()
        if not len(away):
            return RepeatFloor(0, 0, np.nan, np.nan, np.nan, np.nan)
        sizes, *_ = self._by_input()
        return RepeatFloor(
            groups=int((sizes > 1).sum()),
            rows=len(away),
            median=float(np.median(away)),
            p95=float(np.quantile(away, 0.95)),
            share_6=float((away <= 0.06).mean()),
            share_10=float((away <= 0.10).mean()),
        )

    def _by_input(self) -> tuple[Array, Array, Array]:
        """Return sizes of groups of equal inputs, and times and medians in their order."""
        order = np.lexsort((self.seconds, self.key))
        keys, times = self.key[order], self.seconds[order]
        starts = (
            np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1]))) if len(keys) else np.empty(0, int)
        )
        sizes = np.diff(np.concatenate((starts, [len(keys)]))).astype(np.int64)
        low, high = starts + (sizes - 1) // 2, starts + sizes // 2
        return sizes, times, np.repeat((times[low] + times[high]) / 2, sizes)


def concat(parts: Sequence[Measurements]) -> Measurements:
    """Return the rows of several measurements of one identity; drops, sources and warnings add up.

    Raises:
        ConfigError: no parts, or parts of different identities.
    """
    if not parts or any(part.identity != parts[0].identity for part in parts):
        shown = sorted({str(part.identity) for part in parts})
        raise ConfigError(Issue("measurements", shown, "must be of one identity to be concatenated"))
    dropped: dict[str, int] = {}
    for part in parts:
        for why, rows in part.dropped.items():
            dropped[why] = dropped.get(why, 0) + rows
    columns: dict[str, Array] = {}
    for name in parts[0].columns:
        if name == "offsets":
            sizes = np.concatenate([np.diff(part.columns[name].astype(np.int64)) for part in parts])
            columns[name] = np.concatenate(([0], np.cumsum(sizes))).astype(np.uint32)
        else:
            columns[name] = np.concatenate([part.columns[name] for part in parts])
    shared = set(parts[0].marks).intersection(*(part.marks for part in parts))
    return replace(
        parts[0],
        columns=columns,
        seconds=np.concatenate([part.seconds for part in parts]),
        key=np.concatenate([part.key for part in parts]),
        model=np.concatenate([part.model for part in parts]),
        marks={name: np.concatenate([part.marks[name] for part in parts]) for name in sorted(shared)},
        dropped=dropped,
        sources=tuple(dict.fromkeys(source for part in parts for source in part.sources)),
        warnings=tuple(dict.fromkeys(text for part in parts for text in part.warnings)),
    )


def _bad(identity: Identity, name: str, value: object, message: str) -> ConfigError:
    return ConfigError(Issue(f"measurements.{name}", value, message), source=str(identity))


def _check(identity: Identity, columns: Mapping[str, Array], seconds: Array) -> None:
    ragged = identity.operator in ATTENTION
    wanted = {*COLUMNS[identity.operator], *((*RAGGED_COLUMNS, "offsets") if ragged else ())}
    if set(columns) != wanted:
        wrong = sorted(wanted.symmetric_difference(columns))
        raise ConfigError(
            Issue("measurements.columns", wrong, f"missing or unknown: {wrong}", tuple(sorted(wanted))),
            source=str(identity),
        )
    groups = len(columns["count"]) if ragged else 0
    for name, values in (("seconds", seconds), *columns.items()):
        length = groups if name in RAGGED_COLUMNS else len(seconds) + (name == "offsets")
        if values.ndim != 1 or len(values) != length:
            raise _bad(identity, name, values.shape, f"has shape {values.shape}, needs ({length},)")
        if name == "offsets":
            steps = np.diff(values.astype(np.int64))
            if values[0] != 0 or values[-1] != groups or (steps < 1).any():
                raise _bad(identity, name, groups, "must rise from 0 to the number of groups")
            continue
        if not np.isfinite(values).all():
            raise _bad(identity, name, "nan or inf", "must be finite")
        floor = -1.0 if name == "imbalance" else 0.0
        low = values < floor if name in _MAY_BE_ZERO else values <= 0
        if low.any():
            at = int(np.flatnonzero(low)[0])
            raise _bad(identity, name, float(values[at]), f"row {at} was {values[at]}, must be above 0")
    if ragged and (columns["context"] < columns["query"]).any():
        raise _bad(identity, "context", "context < query", "must count the new tokens too")


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return splitmix64's finaliser of each word: every bit of the input moves every bit of the output."""
    with np.errstate(over="ignore"):
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _keys(operator: str, columns: Mapping[str, Array]) -> NDArray[np.uint64]:
    rows = len(columns[COLUMNS[operator][0]])
    keys = np.full(rows, 0x9E3779B97F4A7C15, dtype=np.uint64)
    for name in COLUMNS[operator]:
        keys = _mix(keys * np.uint64(3) + np.ascontiguousarray(columns[name] + 0.0).view(np.uint64))
    if "offsets" in columns and rows:
        groups = np.zeros(len(columns["count"]), dtype=np.uint64)
        for name in RAGGED_COLUMNS:
            groups = _mix(groups * np.uint64(3) + columns[name].astype(np.uint64) + np.uint64(1))
        # A sum, so that the order of the requests in a batch does not matter.
        keys = _mix(keys + np.add.reduceat(groups, columns["offsets"][:-1].astype(np.int64)))
    return keys
