"""The output folder: one Parquet file per operator, as the trainer reads them, and a manifest beside them.

Everything is rebuilt from the journal at the end of every run. The folder:

| file | what |
|---|---|
| `<operator>.parquet` | the training columns (float64), `seconds`, `seconds_spread`, `dtype`, `kernel`; attention has its groups in the list columns `count`, `query`, `context` (uint32), `fused_moe` the rows of each expert in `expert_loads` |
| `copy.parquet`, `launch.parquet` | facts of the device in the same form, from which nothing is trained |
| `skipped.parquet` | what was not measured, with the reason |
| `manifest.json` | GPU, backend, versions, measurement, settings, licence, files with their SHA-256 and whether predictors are trained from them |
| `journal.jsonl`, `settings.json` | what a profile is resumed from |
"""  # noqa: E501 - a table

from __future__ import annotations

import datetime
import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import polars as pl

from frontier.profiler.device import DeviceFacts
from frontier.profiler.journal import Outcome, Record
from frontier.profiler.plan import Plan
from frontier.profiler.points import ATTENTION, COLUMNS, FUSED_MOE, Point
from frontier.profiler.settings import FORMAT, VERSION, Settings, as_json, write_json
from frontier.results.store import package_version

MANIFEST: Final = "manifest.json"
JOURNAL: Final = "journal.jsonl"
SKIPPED: Final = "skipped.parquet"
UNTRAINED: Final = ("copy", "launch")

_GROUPS = ("count", "query", "context")
_LIST = pl.List(pl.UInt32)


@dataclass(frozen=True)
class Notes:
    """What the user says of a profile: its date (ISO 8601, now if None) and the licence of its data."""

    date: str | None = None
    licence: str = "unspecified"


def schema(operator: str) -> dict[str, Any]:
    """Return the columns and types of an operator's file."""
    columns: dict[str, Any] = dict.fromkeys(COLUMNS[operator], pl.Float64)
    if operator == "copy":
        columns["direction"] = pl.String
    columns |= {"seconds": pl.Float64, "seconds_spread": pl.Float64, "dtype": pl.String, "kernel": pl.String}
    if COLUMNS[operator] == ATTENTION:
        columns |= dict.fromkeys(_GROUPS, _LIST)
    if COLUMNS[operator] == FUSED_MOE:
        columns["expert_loads"] = _LIST
    return columns


def write_profile(
    directory: Path,
    settings: Settings,
    facts: DeviceFacts,
    *,
    plan: Plan,
    record: Record,
    notes: Notes,
) -> dict[str, Any]:
    """Write tables and manifest from a journal's record; return the manifest."""
    outcomes = list(record.outcomes.values())
    files = {}
    for operator in COLUMNS:
        rows = [outcome.row for outcome in outcomes if outcome.row and outcome.row["operator"] == operator]
        if rows:
            table = pl.DataFrame([_values(row) for row in rows], schema=schema(operator))
            files[f"{operator}.parquet"] = _describe(operator, table, directory / f"{operator}.parquet")
    _write_skipped(directory / SKIPPED, plan, outcomes)
    manifest = {
        "format": FORMAT,
        "format_version": VERSION,
        "created_by": {"frontier": package_version()},
        "gpu": settings.gpu,
        "backend": facts.backend,
        "version": facts.version,
        "measurement": facts.measurement,
        "device": facts.kind,
        "device_name": facts.name,
        "versions": dict(facts.versions),
        "state": dict(facts.state),
        "cache_bytes": facts.cache_bytes,
        "cold": "operands rotate over more memory than the last-level cache holds",
        "date": notes.date or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "licence": notes.licence,
        "settings": as_json(settings),
        "progress": {
            family: {"done": count_done(outcomes, family), "wanted": wanted.target}
            for family, wanted in plan.families.items()
        },
        "not_profiled": list(plan.notes),
        "files": files,
    }
    write_json(directory / MANIFEST, manifest)
    return manifest


def count_done(outcomes: Sequence[Outcome], family: str) -> int:
    """Return the points of a family that were measured or refused."""
    return sum(outcome.family == family for outcome in outcomes)


def _values(row: Any) -> dict[str, Any]:
    values = dict(row["columns"])
    for name in ("seconds", "seconds_spread", "dtype", "kernel"):
        values[name] = row[name]
    operator = row["operator"]
    if operator == "copy":
        values["direction"] = row["detail"]["direction"]
    if COLUMNS[operator] == ATTENTION:
        values |= {name: [group[place] for group in row["groups"]] for place, name in enumerate(_GROUPS)}
    if COLUMNS[operator] == FUSED_MOE:
        values["expert_loads"] = row["expert_loads"]
    return values


def _describe(operator: str, table: pl.DataFrame, path: Path) -> dict[str, Any]:
    _write(path, table)
    return {
        "operator": operator,
        "trains": operator not in UNTRAINED,
        "rows": table.height,
        "dtypes": sorted(table["dtype"].unique()),
        "kernels": dict(sorted(Counter(table["kernel"]).items())),
        "median_spread": float((table["seconds_spread"] / table["seconds"]).median()),  # type: ignore[arg-type]
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def _write_skipped(path: Path, plan: Plan, outcomes: Sequence[Outcome]) -> None:
    points: dict[str, Point] = {
        point.key: point for family in plan.families.values() for point in family.points
    }
    rows = [(point.family, point.describe(), reason) for point, reason in plan.skipped]
    rows += [
        (outcome.family, points[outcome.key].describe() if outcome.key in points else "", outcome.reason)
        for outcome in outcomes
        if outcome.reason is not None
    ]
    names = {"family": pl.String, "point": pl.String, "reason": pl.String}
    _write(path, pl.DataFrame(rows, schema=names, orient="row"))


def _write(path: Path, table: pl.DataFrame) -> None:
    draft = path.with_name(path.name + ".part")
    table.write_parquet(draft)
    os.replace(draft, path)
