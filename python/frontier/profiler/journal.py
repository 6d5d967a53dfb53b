"""The journal of a profile: one line of JSON per point begun and per outcome, only ever appended to.

A point that was begun and has no outcome was in flight when the process ended; it is measured again. One that
was in flight twice when the process died (not by Ctrl-C) is taken for what killed it, and skipped.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from frontier.errors import FrontierError
from frontier.profiler.device import PointRefusedError
from frontier.profiler.measure import Measurement
from frontier.profiler.points import Point

_DEADLY = 2
_SYNC_S = 1.0
"""The journal is forced to the disk this often: what the failure of a whole machine may lose."""


@dataclass(frozen=True)
class Outcome:
    """What came of a point: a measurement, or why there is none."""

    key: str
    family: str
    row: Mapping[str, Any] | None
    reason: str | None = None

    @property
    def seconds(self) -> float | None:
        """Measured time, None without one."""
        return None if self.row is None else float(self.row["seconds"])


@dataclass
class Record:
    """What a journal holds: outcomes in the order in which they came, and deaths of points in flight."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    begun: dict[str, int] = field(default_factory=dict)

    def is_deadly(self, key: str) -> bool:
        """Return whether the process died twice while this point was in flight."""
        return key not in self.outcomes and self.begun.get(key, 0) >= _DEADLY


class Journal:
    """An open journal, locked against other processes; use it in a `with` block."""

    def __init__(self, path: Path) -> None:
        """Open or create the journal at `path` and read what it holds.

        Raises:
            FrontierError: it is damaged, or another process is profiling into it.
        """
        self.path = path
        self._file = path.open("a+b")
        self._sync_after = 0.0
        try:
            _lock(self._file.fileno(), path)
            self.record = self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def begin(self, point: Point) -> None:
        """Write that a point is in flight."""
        self._append({"begin": point.key})
        self.record.begun[point.key] = self.record.begun.get(point.key, 0) + 1

    def interrupted(self, point: Point) -> None:
        """Write that the user stopped a point in flight: it did not kill the process."""
        self._append({"interrupted": point.key})
        self.record.begun[point.key] -= 1

    def measured(self, point: Point, measurement: Measurement) -> Outcome:
        """Write a measurement."""
        return self._outcome(Outcome(point.key, point.family, _row(point, measurement)))

    def refused(self, point: Point, reason: str | PointRefusedError) -> Outcome:
        """Write why a point has no measurement."""
        return self._outcome(Outcome(point.key, point.family, None, str(reason)))

    def _outcome(self, outcome: Outcome) -> Outcome:
        content: dict[str, Any] = {"done": outcome.key, "family": outcome.family}
        if outcome.row is None:
            content["reason"] = outcome.reason
        else:
            content["row"] = outcome.row
        self._append(content)
        self.record.outcomes[outcome.key] = outcome
        return outcome

    def _append(self, content: Mapping[str, Any]) -> None:
        line = json.dumps(content, separators=(",", ":"), allow_nan=False) + "\n"
        self._file.write(line.encode())
        self._file.flush()  # from here on the death of this process loses nothing
        if time.monotonic() >= self._sync_after:
            os.fsync(self._file.fileno())
            self._sync_after = time.monotonic() + _SYNC_S

    def _read(self) -> Record:
        self._file.seek(0)
        data = self._file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):  # the process died while it wrote this line
            self._file.truncate(whole)
        record = Record()
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            try:
                _replay(record, json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise FrontierError(f"{self.path}:{number}: the journal is damaged ({error})") from None
        return record


def _replay(record: Record, content: dict[str, Any]) -> None:
    for event, change in (("begin", 1), ("interrupted", -1)):
        if event in content:
            key = content[event]
            record.begun[key] = record.begun.get(key, 0) + change
            return
    key, row, reason = content["done"], content.get("row"), content.get("reason")
    if (row is None) == (reason is None):
        raise ValueError("an outcome has either a row or a reason")
    record.outcomes[key] = Outcome(key, content["family"], row, reason)


def _row(point: Point, measurement: Measurement) -> dict[str, Any]:
    return {
        "operator": point.operator,
        "dtype": point.dtype,
        "columns": {name: float(value) for name, value in point.columns.items()},
        "groups": [list(group) for group in point.groups],
        "expert_loads": list(point.expert_loads),
        "detail": dict(point.detail or {}),
        "seconds": measurement.seconds,
        "seconds_spread": measurement.spread,
        "kernel": measurement.kernel,
        "rounds": measurement.rounds,
        "outliers": measurement.outliers,
        "warmup": measurement.warmup,
        "copies": measurement.copies,
        "clock_mhz": measurement.clock_mhz,
    }


def _lock(descriptor: int, path: Path) -> None:
    try:
        import fcntl  # noqa: PLC0415 - not on Windows, where nothing locks
    except ImportError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise FrontierError(f"{path}: another process is profiling into this directory") from None
