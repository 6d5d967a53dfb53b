"""The columns of a scenario's trace: loaded, cut, sampled and scaled as it says, shared while in use.

The files read last are kept in memory up to `CACHE_BYTES`, so that a sweep over scales or samples of one
trace reads it once. `clear_trace_cache` lets go of them.
"""

from __future__ import annotations

import hashlib
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from frontier.config.locate import is_path
from frontier.config.trace import Trace
from frontier.errors import ConfigError, Issue

if TYPE_CHECKING:
    from frontier.workloads import LoadedTrace

CACHE_BYTES: Final = 512 * 2**20
"""Most memory that files kept for the next scenario may take."""

_in_use: weakref.WeakValueDictionary[tuple[Any, ...], LoadedTrace] = weakref.WeakValueDictionary()


def trace_columns(trace: Trace, *, seed: int, replication: int, models: tuple[str, ...] = ()) -> LoadedTrace:
    """Return the rows that a trace section stands for.

    Equal sections give the same object as long as it is in use (and the file has not changed). `seed` and
    `replication` choose the rows that `sample` keeps; `models` are those that are served, if several are,
    of which each row then names one.

    Raises:
        WorkloadError: the file cannot be read, or no request is left.
        ConfigError: `num_requests` is more than the rows, and there are no arrivals to start over with.
    """
    draw = _sample_seed(seed, replication) if trace.sample < 1 else 0
    section = trace.model_dump_json(exclude={"arrivals"})
    key = (section, trace.arrivals is None, draw, models, _signature(trace.path))
    columns = _in_use.get(key)
    if columns is None:
        columns = _transform(_load(trace, models), trace, draw)
        _in_use[key] = columns
    else:
        _read_last.note_use(columns)
    rows, wanted = len(columns), trace.num_requests
    if wanted is not None and wanted > rows and trace.arrivals is None:
        cut = [name for name, used in _cuts(trace).items() if used]
        left = f" left after {' and '.join(cut)}" if cut else ""
        message = f"was {wanted}, the trace has {rows} rows{left}: lower it, or start over with arrivals"
        raise ConfigError(Issue("workload.trace.num_requests", wanted, message, (f"1 to {rows}",)))
    return columns


def _cuts(trace: Trace) -> dict[str, bool]:
    """Return which of the options that leave out rows are used."""
    return {"start": trace.start > 0, "end": trace.end is not None, "sample": trace.sample < 1}


def _load(trace: Trace, models: tuple[str, ...]) -> LoadedTrace:
    columns: dict[str, str | None] | None = None
    if trace.columns is not None:
        columns = trace.columns.model_dump(exclude_none=True)
        if trace.arrivals is not None and trace.format == "plain":
            columns.setdefault("arrival", None)  # replaced anyway, so the file need not have it
    # Reading may stop early where no later row can matter.
    whole = any(_cuts(trace).values()) or trace.on_unsorted == "sort"
    return _load_file(
        trace.path,
        _signature(trace.path),
        format=trace.format,
        columns=tuple(columns.items()) if columns is not None else None,
        time_unit=trace.time_unit,
        block_size=trace.block_size,
        on_bad_row=trace.on_bad_row,
        on_unsorted=trace.on_unsorted,
        max_requests=None if whole else trace.num_requests,
        models=models or None,
    )


def _load_file(path: str, signature: tuple[int, ...], **options: Any) -> LoadedTrace:
    """Load a file, or take it from those read last."""
    from frontier.workloads import load_trace  # noqa: PLC0415 - polars is imported where a trace is read

    key = (path, signature, *options.items())
    kept = _read_last.get(key)
    if kept is not None:
        return kept
    columns = options.pop("columns")
    loaded = load_trace(path, columns=dict(columns) if columns is not None else None, **options)
    _read_last.put(key, loaded)
    return loaded


class _Cache:
    """Loaded files, the least recently used let go first when they take more than `CACHE_BYTES`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[tuple[Any, ...], LoadedTrace] = {}

    def get(self, key: tuple[Any, ...]) -> LoadedTrace | None:
        with self._lock:
            found = self._kept.pop(key, None)
            if found is not None:
                self._kept[key] = found  # now the last used
            return found

    def put(self, key: tuple[Any, ...], loaded: LoadedTrace) -> None:
        with self._lock:
            self._kept.pop(key, None)
            self._kept[key] = loaded
            while self._kept and self.nbytes > CACHE_BYTES:
                del self._kept[next(iter(self._kept))]

    def note_use(self, loaded: LoadedTrace) -> None:
        with self._lock:
            for key in [key for key, kept in self._kept.items() if kept is loaded]:
                self._kept[key] = self._kept.pop(key)

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()

    @property
    def nbytes(self) -> int:
        return sum(loaded.nbytes for loaded in self._kept.values())


_read_last = _Cache()


def clear_trace_cache() -> None:
    """Let go of the traces that are kept in memory for the next scenario; those in use stay."""
    _read_last.clear()


def _transform(columns: LoadedTrace, trace: Trace, draw: int) -> LoadedTrace:
    from frontier.workloads import limit, sample, scale_rate, scale_time, slice_time  # noqa: PLC0415

    if trace.start or trace.end is not None:
        columns = slice_time(columns, trace.start, trace.end)
    if trace.sample < 1:
        columns = sample(columns, trace.sample, draw)
    if trace.time_scale != 1:
        columns = scale_time(columns, trace.time_scale)
    if trace.rate_scale != 1:
        columns = scale_rate(columns, trace.rate_scale)
    if trace.num_requests is not None and trace.num_requests < len(columns):
        columns = limit(columns, trace.num_requests)
    return columns


def _sample_seed(seed: int, replication: int) -> int:
    """Return the seed of the sampling, a stream of its own beside the simulator's."""
    digest = hashlib.blake2b(f"workload.sample {seed} {replication}".encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def _signature(path: str) -> tuple[int, ...]:
    """Return what tells one state of a file from another; built-in traces do not change."""
    if not is_path(path):
        return ()
    try:
        status = Path(path).stat()
    except OSError:
        return ()
    return (status.st_mtime_ns, status.st_size)
