"""Saved results: a directory with one Parquet file per table and one JSON document beside them.

`result.json` holds the facts, the totals, versions, and for each file its rows, columns and SHA-256, so that
a damaged or half-copied directory is noticed. The directory is written under another name and renamed at
the end: it appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from frontier.errors import ConfigError, FrontierError
from frontier.results.columns import Columns, Table
from frontier.results.facts import RunFacts

FORMAT = "frontier-result"
SCHEMA_VERSION = 6
DOCUMENT = "result.json"
DECISION_LOG = "decision_log.jsonl"
TABLES = ("requests", "steps", "token_runs", "timeline", "transfers")


def package_version() -> str:
    """Return the version of the installed package, "unknown" when it runs from a source tree."""
    try:
        return importlib.metadata.version("frontier-sim")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def save(path: Path, columns: Columns, facts: RunFacts, *, overwrite: bool) -> Path:
    """Write a run to the directory `path`; see `Result.save`."""
    _check_target(path, overwrite)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
    try:
        draft.mkdir()
        _write(draft, columns, facts)
        _replace(draft, path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return path


def _check_target(path: Path, overwrite: bool) -> None:
    if not path.parent.is_dir():
        raise FrontierError(f"cannot save to {path}: the directory {path.parent} does not exist")
    if not path.exists():
        return
    if path.is_dir() and not any(path.iterdir()):
        return
    if not _is_result(path):
        raise FrontierError(f"cannot save to {path}: it exists and is no saved result; choose another name")
    if not overwrite:
        raise FrontierError(
            f"cannot save to {path}: a result is there already; pass overwrite=True to replace it"
        )


def _is_result(path: Path) -> bool:
    try:
        document = json.loads((path / DOCUMENT).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and document.get("format") == FORMAT


def _replace(draft: Path, path: Path) -> None:
    """Rename `draft` to `path`, moving what is there aside first and back if that fails."""
    if not path.exists():
        draft.rename(path)
        return
    aside = draft.with_name(draft.name + ".old")
    path.rename(aside)
    try:
        draft.rename(path)
    except OSError:
        aside.rename(path)
        raise
    shutil.rmtree(aside)


def _write(folder: Path, columns: Columns, facts: RunFacts) -> None:
    import polars as pl  # noqa: PLC0415 - polars is slow to import

    files: dict[str, Any] = {}
    for name in TABLES:
        table: Table = getattr(columns, name)
        file = folder / f"{name}.parquet"
        pl.DataFrame({column: pl.Series(column, values) for column, values in table.items()}).write_parquet(
            file
        )
        files[file.name] = {
            "sha256": _sha256(file),
            "rows": len(next(iter(table.values()))),
            "columns": {column: values.dtype.name for column, values in table.items()},
        }
    if columns.decision_log is not None:
        file = folder / DECISION_LOG
        file.write_bytes(columns.decision_log.encode("utf-8"))
        files[file.name] = {"sha256": _sha256(file)}
    document = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "frontier_version": package_version(),
        "step_time": facts.step_time,
        "totals": dict(columns.totals),
        "clusters": [cluster.to_raw() for cluster in columns.clusters],
        "replica_offsets": columns.replica_offsets.tolist(),
        "facts": facts.to_dict(),
        "files": files,
    }
    try:
        text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise FrontierError(
            f"cannot save: the scenario in the facts is no plain JSON value: {error}"
        ) from error
    (folder / DOCUMENT).write_text(text + "\n", "utf-8")


def load(path: Path) -> tuple[dict[str, Any], RunFacts]:
    """Read the raw columns and the facts from the directory `path`; see `Result.load`."""
    document = _read_document(path)
    try:
        raw: dict[str, Any] = {
            "totals": document["totals"],
            "clusters": document["clusters"],
            "decision_log": None,
            **{name: _read_table(path, f"{name}.parquet", document["files"]) for name in TABLES},
        }
        raw["steps"]["replica_offsets"] = np.array(document["replica_offsets"], np.uint64)
        if DECISION_LOG in document["files"]:
            _verify(path / DECISION_LOG, document["files"][DECISION_LOG])
            raw["decision_log"] = (path / DECISION_LOG).read_bytes().decode("utf-8")
        facts = RunFacts.from_dict(document["facts"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, ConfigError):
            raise ConfigError(error.issues, source=f"{path / DOCUMENT}: facts") from None
        raise FrontierError(f"{path / DOCUMENT} is damaged: {type(error).__name__}: {error}") from error
    return raw, facts


def _read_document(path: Path) -> Mapping[str, Any]:
    file = path / DOCUMENT
    if not file.is_file():
        what = "is not a directory" if not path.is_dir() else f"lacks {DOCUMENT}"
        raise FrontierError(f"{path} is no saved result: it {what}")
    try:
        document = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise FrontierError(f"{file} is damaged: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise FrontierError(f"{file} is no saved result: its format is not '{FORMAT}'")
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        raise FrontierError(
            f"{file} has schema version {version}, this version of frontier reads {SCHEMA_VERSION} "
            f"(it was written by frontier {document.get('frontier_version')})"
        )
    return document


def _read_table(path: Path, name: str, files: Mapping[str, Any]) -> dict[str, Any]:
    import polars as pl  # noqa: PLC0415 - polars is slow to import

    _verify(path / name, files[name])
    frame = pl.read_parquet(path / name)
    found = {column: frame[column].to_numpy() for column in frame.columns}
    types = {column: values.dtype.name for column, values in found.items()}
    if types != files[name]["columns"] or frame.height != files[name]["rows"]:
        raise FrontierError(f"{path / name} is damaged: its columns or rows differ from {DOCUMENT}")
    return found


def _verify(file: Path, entry: Mapping[str, Any]) -> None:
    if not file.is_file():
        raise FrontierError(f"{file} is missing: the saved result is incomplete")
    if _sha256(file) != entry["sha256"]:
        raise FrontierError(f"{file} is damaged: its SHA-256 differs from the one in {DOCUMENT}")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
