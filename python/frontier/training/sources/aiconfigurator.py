"""Reader of NVIDIA aiconfigurator's operator tables (Apache-2.0).

Two layouts are understood:

- the package `aiconfigurator-core` from PyPI, or the data folder of its repository:
  `<system>/<family>/<backend>/<version>/<table>.parquet`, one table a file, columns `framework, version,
  device, op_name, kernel_source, <inputs>, latency`;
- a condensed copy: `<system>/<table>.parquet`, with `src_backend` and `src_version` as columns instead.

How it was measured: graphs replayed and timed by CUDA events (3 warm-ups, 6 to 20 runs, mean), milliseconds;
DeepEP and `moe_a2a` tables by the profiler, microseconds. Exceptions are in `aiconfigurator_tables`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import polars as pl

from frontier.errors import ConfigError, Issue
from frontier.predictors.select import version_order
from frontier.training import traps
from frontier.training.measurements import Measurements, Skipped, Source
from frontier.training.sources.aiconfigurator_rows import Table
from frontier.training.sources.aiconfigurator_tables import NOT_USED, TABLES

LICENCE = "Apache-2.0"
GPUS = {
    "a100_sxm": "a100-80gb",
    "b200_sxm": "b200",
    "gb200": "gb200",
    "h100_sxm": "h100",
    "h200_sxm": "h200",
    "l40s": "l40s",
    "rtx_pro_6000_server": "rtx-pro-6000",
}
# Systems without a preset here, or without rows there.
_OTHER_SYSTEMS = ("a100_pcie", "a30", "b300_sxm", "b60", "gb300", "h100_pcie", "l4")
# Of these every version is read: versions differ in what they cover (nodes, sizes), not in quality alone.
_EVERY_VERSION = (
    "nccl_perf",
    "custom_allreduce_perf",
    "wideep_deepep_normal_perf",
    "wideep_deepep_ll_perf",
    "moe_a2a_perf",
    "trtllm_alltoall_perf",
)
# The newest version may be a partial drop for one new model: it has to have this share of the largest's rows.
_COMPLETE = 0.5


class _File(NamedTuple):
    path: Path
    system: str
    table: str
    backend: str | None
    version: str | None


def installed_root() -> Path:
    """Return the data folder of the installed package `aiconfigurator-core`.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        root = Path(str(resources.files("aiconfigurator_core"))) / "systems" / "data"
    except ModuleNotFoundError as error:
        message = "aiconfigurator-core is not installed; `pip install aiconfigurator-core`, or name a folder"
        raise ConfigError(Issue("root", None, message)) from error
    return root


def read(
    root: Path | None = None,
    gpus: Iterable[str] | None = None,
    *,
    tables: Iterable[str] | None = None,
    every_version: bool = False,
    keep_suspect: bool = False,
    skipped: list[Skipped] | None = None,
) -> Iterator[Measurements]:
    """Yield the measurements of the tables under `root`, one identity at a time.

    Args:
        root: folder of either layout; None for the installed package.
        gpus: names of presets to read; None for all.
        tables: names of tables (keys of `TABLES`); None for all.
        every_version: read every version of each table, not only the newest complete one.
        keep_suspect: keep times that the hardware cannot reach (they are marked `impossible`).
        skipped: is given what was left alone, if a list.

    Raises:
        ConfigError: nothing to read under `root`, or a name that is not known.
    """
    folder = installed_root() if root is None else Path(root)
    wanted_gpus = _chosen("gpus", gpus, tuple(GPUS.values()))
    wanted_tables = _chosen("tables", tables, tuple(TABLES))
    notes = skipped if skipped is not None else []
    files = sorted(_files(folder))
    if not files:
        raise ConfigError(Issue("root", str(folder), f"holds no tables of aiconfigurator: {folder}"))
    for system in dict.fromkeys(file.system for file in files):
        if GPUS.get(system) not in wanted_gpus:
            if system not in GPUS:
                notes.append(Skipped(system, 0, "no preset of this GPU"))
            continue
        own = [file for file in files if file.system == system]
        for file in own:
            if file.table in NOT_USED:
                notes.append(Skipped(_relative(file, folder), _rows(file.path), NOT_USED[file.table]))
        for table in sorted({file.table for file in own} & set(wanted_tables)):
            same = [file for file in own if file.table == table]
            complete = _newest(same) if not every_version and table not in _EVERY_VERSION else same
            for file in same:
                if file not in complete:
                    notes.append(Skipped(_relative(file, folder), _rows(file.path), "not the newest version"))
            for file in complete:
                for part in _parts(file, folder, own):
                    for found in TABLES[table](part):
                        yield found if keep_suspect else traps.drop_impossible(found)


def _chosen(name: str, given: Iterable[str] | None, allowed: tuple[str, ...]) -> tuple[str, ...]:
    chosen = allowed if given is None else tuple(given)
    if unknown := [value for value in chosen if value not in allowed]:
        raise ConfigError(Issue(name, unknown[0], f"{unknown[0]!r} is not known", allowed))
    return chosen


def _files(root: Path) -> Iterator[_File]:
    known = {*GPUS, *_OTHER_SYSTEMS}
    for path in root.glob("*/*/*/*/*_perf.parquet"):
        system, _, backend, version = path.relative_to(root).parts[:4]
        if system in known:
            yield _File(path, system, path.stem, backend, version)
    for path in root.glob("*/*_perf.parquet"):
        if path.parent.name in known:
            yield _File(path, path.parent.name, path.stem, None, None)
    # The condensed copy keeps tables of the package alone apart: moe_a2a_wheel/<system>__<backend>_<version>.
    for path in root.glob("moe_a2a_wheel/*.parquet"):
        system, _, rest = path.stem.partition("__")
        backend, _, version = rest.partition("_")
        if system in known:
            yield _File(path, system, "moe_a2a_perf", backend, version)


def _newest(files: list[_File]) -> list[_File]:
    """Return, for each backend, the newest version that is complete."""
    chosen = []
    for backend in {file.backend for file in files}:
        own = [file for file in files if file.backend == backend]
        largest = max(_rows(file.path) for file in own)
        complete = [file for file in own if _rows(file.path) >= _COMPLETE * largest]
        chosen.append(max(complete, key=lambda file: version_order(file.version or "")))
    return sorted(chosen)


def _parts(file: _File, root: Path, own: list[_File]) -> Iterator[Table]:
    """Yield the rows of each backend and version in `file`, with the table it is to be joined to, if any."""
    gpu = GPUS[file.system]
    source = _source(file, root)
    frame = _frame(file.path)
    partner = _partner(file, own)
    other = None if partner is None else _frame(partner.path)
    sources = (source,) if partner is None else (source, _source(partner, root))
    if file.backend is not None and file.version is not None:
        yield Table(gpu, file.backend, file.version, frame, other, sources)
        return
    for (backend, version), rows in frame.group_by("src_backend", "src_version", maintain_order=True):
        joined = None
        if other is not None:
            same = (pl.col("src_backend") == str(backend)) & (pl.col("src_version") == str(version))
            joined = other.filter(same)
        yield Table(gpu, str(backend), str(version), rows, joined, sources)


def _partner(file: _File, own: list[_File]) -> _File | None:
    if file.table != "computescale_perf":
        return None
    where = (file.backend, file.version)
    same = [f for f in own if f.table == "scale_matrix_perf" and (f.backend, f.version) == where]
    return same[0] if same else None


def _frame(path: Path) -> pl.DataFrame:
    frame = pl.read_parquet(path)
    return frame.with_columns(pl.col(pl.Categorical).cast(pl.String), pl.col(pl.Float32).cast(pl.Float64))


def _rows(path: Path) -> int:
    return int(pl.scan_parquet(path).select(pl.len()).collect().item())


def _relative(file: _File, root: Path) -> str:
    return file.path.relative_to(root).as_posix()


def _source(file: _File, root: Path) -> Source:
    digest = hashlib.sha256(file.path.read_bytes()).hexdigest()
    version = file.version or "condensed"
    return Source("NVIDIA aiconfigurator", LICENCE, _relative(file, root), digest, version)
