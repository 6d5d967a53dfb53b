"""Reader of the measurements that `frontier profile` takes (written by `frontier.profiler.store`).

A folder of measurements holds one or more runs; a run is a folder with a `manifest.json` and, beside it, one
table per operator, `<operator>.parquet` (or `.csv`, scalar operators alone), operators as in
`frontier.training.identity.OPERATORS`. Tables that the manifest does not list, or lists as not for training,
are left alone. Every further field of a manifest is for people.

manifest.json, texts that are not empty, all required unless said otherwise:
    format            "frontier-profile"
    format_version    1, an integer
    gpu               name of a GPU preset
    backend, version  of the library that launched the kernels ("vllm", "0.24.0"; "torch", "2.8.0")
    measurement       "cuda_graph", "kernel" or "event"
    versions          mapping of libraries to versions (torch, CUDA, driver, ...), null where not known
    date              of the run, ISO 8601
    licence           SPDX expression under which the measurements may be used
    files             mapping of file names to {"operator": ..., "trains": true or false, "sha256": ...};
                      the digest is optional
    cold              (optional) how caches were kept cold: without it, decodes that fit in L2 count as warm
    notes             (optional) what else a reader should know; becomes a warning

A table has, for each row:
    the canonical columns of its operator (`frontier.training.measurements.COLUMNS`), numbers;
    for attention, the groups of equal requests of the batch as three list columns of equal lengths, `count`,
    `query` and `context` (unsigned integers; context includes the new tokens);
    seconds           measured time of one call (median over repeats)
    seconds_spread    spread over the repeats, in seconds >= 0 (standard deviation)
    dtype             plan name of the arithmetic, as in the identity
    kernel            name of the kernel or implementation
    kv_cache_dtype    (optional, attention) plan name; becomes part of the identity
    model             (optional) the model or site of a row, for splits; the shape where it is left out
    topology          (optional, collectives) part of the identity
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from frontier.errors import ConfigError, Issue
from frontier.hardware import gpu_names
from frontier.profiler.settings import FORMAT, VERSION
from frontier.profiler.store import MANIFEST
from frontier.training import traps
from frontier.training.identity import ATTENTION, OPERATORS, Fact, Identity
from frontier.training.measurements import COLUMNS, RAGGED_COLUMNS, Measurements, Source

_REQUIRED = ("gpu", "backend", "version", "measurement", "date", "licence")
_IDENTITY_COLUMNS = ("kv_cache_dtype", "topology")
_SITE = {
    "gemm": ("k", "n"),
    "fused_moe": ("hidden", "inter", "top_k", "experts"),
    **dict.fromkeys(ATTENTION, ("heads", "kv_heads", "qk_dim", "v_dim")),
}


def read(root: Path, gpus: Iterable[str] | None = None) -> Iterator[Measurements]:
    """Yield the measurements of every run in `root` (or `root` itself), one identity and table at a time.

    Raises:
        ConfigError: no run, a manifest or a table that does not follow the layout, or a table that is absent
            or not the one that the manifest means.
    """
    manifests = sorted(Path(root).rglob(MANIFEST))
    if not manifests:
        raise ConfigError(Issue("root", str(root), f"holds no {MANIFEST}: {root}"))
    wanted = None if gpus is None else set(gpus)
    for path in manifests:
        manifest = _manifest(path)
        if wanted is not None and manifest["gpu"] not in wanted:
            continue
        for name, facts in sorted(manifest["files"].items()):
            if facts["trains"]:
                yield from _table(path.parent / name, facts, manifest)


def _manifest(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(Issue("manifest", str(path), f"is not JSON: {error}"), source=str(path)) from error
    found = loaded if isinstance(loaded, dict) else {}
    issues = [
        Issue(
            f"manifest.{name}", found.get(name), f"was {found.get(name)!r}, must be {value!r}", (str(value),)
        )
        for name, value in (("format", FORMAT), ("format_version", VERSION))
        if found.get(name) != value
    ]
    issues += [
        Issue(f"manifest.{name}", found.get(name), "must be a text that is not empty")
        for name in _REQUIRED
        if not isinstance(found.get(name), str) or not found[name]
    ]
    versions, files = found.get("versions"), found.get("files")
    if not isinstance(versions, dict) or not all(isinstance(v, str | None) for v in versions.values()):
        issues.append(Issue("manifest.versions", versions, "must map names of libraries to texts"))
    if not isinstance(files, dict):
        issues.append(Issue("manifest.files", files, "must map names of files to their facts"))
    else:
        issues += [
            Issue(
                f"manifest.files.{name}", facts, "must have `operator`, a text, and `trains`, true or false"
            )
            for name, facts in files.items()
            if not isinstance(facts, dict)
            or not isinstance(facts.get("operator"), str)
            or not isinstance(facts.get("trains"), bool)
            or Path(name).name != name
        ]
    if not issues and found["gpu"] not in gpu_names():
        issues.append(Issue("manifest.gpu", found["gpu"], "is no preset", tuple(gpu_names())))
    if issues:
        raise ConfigError(issues, source=str(path))
    return found


def _table(path: Path, facts: Mapping[str, Any], manifest: Mapping[str, Any]) -> Iterator[Measurements]:
    operator = str(facts["operator"])
    if operator not in OPERATORS:
        raise ConfigError(
            Issue("table", path.name, f"is of {operator!r}, no operator", OPERATORS), source=str(path)
        )
    if not path.is_file():
        raise ConfigError(
            Issue("table", path.name, "is absent, though the manifest lists it"), source=str(path)
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if facts.get("sha256", digest) != digest:
        raise ConfigError(
            Issue("table", path.name, f"has SHA-256 {digest}, the manifest says {facts['sha256']}"),
            source=str(path),
        )
    ragged = operator in ATTENTION
    if ragged and path.suffix == ".csv":
        raise ConfigError(Issue("table", path.name, "attention has list columns: parquet"), source=str(path))
    frame = pl.read_csv(path) if path.suffix == ".csv" else pl.read_parquet(path)
    needed = (
        *COLUMNS[operator],
        *(RAGGED_COLUMNS if ragged else ()),
        "seconds",
        "seconds_spread",
        "dtype",
        "kernel",
    )
    if missing := [name for name in needed if name not in frame.columns]:
        raise ConfigError(Issue("columns", missing, f"lacks {missing}", needed), source=str(path))
    file = f"{path.parent.name}/{path.name}"
    source = Source("frontier profile", manifest["licence"], file, digest, manifest["date"])
    told = [name for name in _IDENTITY_COLUMNS if name in frame.columns]
    for values, rows in frame.group_by("kernel", "dtype", *told, maintain_order=True):
        kernel, dtype, *rest = values
        detail: tuple[tuple[str, Fact], ...] = tuple(
            (name, str(value)) for name, value in zip(told, rest, strict=True)
        )
        identity = Identity(
            manifest["gpu"],
            manifest["backend"],
            manifest["version"],
            str(kernel),
            manifest["measurement"],
            operator,
            str(dtype),
            detail,
        )
        yield _measurements(identity, rows, source, manifest)


def _measurements(
    identity: Identity, rows: pl.DataFrame, source: Source, manifest: Mapping[str, Any]
) -> Measurements:
    columns: dict[str, Any] = {name: rows[name].to_numpy() for name in COLUMNS[identity.operator]}
    if identity.operator in ATTENTION:
        sizes = [rows[name].list.len().to_numpy() for name in RAGGED_COLUMNS]
        if any((size != sizes[0]).any() for size in sizes[1:]):
            raise ConfigError(
                Issue("count, query, context", None, "must be lists of equal lengths in each row"),
                source=source.file,
            )
        columns |= {name: rows[name].explode().to_numpy() for name in RAGGED_COLUMNS}
        columns["offsets"] = np.concatenate(([0], np.cumsum(sizes[0])))
    if "model" in rows.columns:
        model: Any = rows["model"].to_numpy()
    else:
        site = _SITE.get(identity.operator, COLUMNS[identity.operator][1:])
        text = pl.concat_str([pl.format(f"{name}={{}}", name) for name in site], separator=" ")
        model = rows.select(text).to_series().to_numpy()
    found = Measurements.of(
        identity,
        columns,
        rows["seconds"].to_numpy(),
        model,
        marks={"seconds_spread": rows["seconds_spread"].to_numpy()},
        sources=[source],
        warnings=[str(manifest["notes"])] if manifest.get("notes") else [],
    )
    found = traps.mark_impossible(found)
    may_be_warm = identity.operator == "decode_attention" and not manifest.get("cold")
    return traps.mark_warm_l2(found) if may_be_warm else found
