"""What a build leaves beside a pack: its accuracy as JSON, and hold-out rows for plots."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frontier.training.bars import bar_of
from frontier.training.predictor import Trained
from frontier.training.recipe import PackRecipe
from frontier.training.transfer import Transfer

_SHOWN_ERRORS = tuple(round(0.05 * i, 2) for i in range(1, 20))


def report_of(
    recipe: PackRecipe, trained: list[Trained], left_out: dict[str, str], path: Path, fingerprint: str
) -> dict[str, Any]:
    """Return the accuracy of a pack that was just written to `path`, as its JSON file has it."""
    data = path.read_bytes()
    return {
        "pack": recipe.name,
        "gpu": recipe.gpu,
        "optional": recipe.optional,
        "fingerprint": fingerprint,
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "compressed_bytes": len(zlib.compress(data, 6)),
        "left_out": left_out,
        "families": _families(trained),
        "bars": _bars(trained),
        "predictors": [_predictor_report(each) for each in trained],
    }


def _predictor_report(trained: Trained) -> dict[str, Any]:
    entry = trained.entry
    names = ("accuracy", "backend", "version", "kernel", "measurement", "operator", "dtype", "detail", "rows")
    return {
        **{name: entry[name] for name in names},
        "bytes": trained.size_bytes,
        "error_quantiles": [float(f"{q:.4g}") for q in np.quantile(trained.errors, _SHOWN_ERRORS)],
    }


def _families(trained: list[Trained]) -> list[dict[str, Any]]:
    """Return the random hold-out errors of each (backend, operator, measurement), all kernels together."""
    groups: dict[tuple[str, str, str], list[Trained]] = {}
    for each in trained:
        identity = each.identity
        groups.setdefault((identity.backend, identity.operator, identity.measurement), []).append(each)
    return [
        {"backend": backend, "operator": operator, "measurement": measurement, **_together(members)}
        for (backend, operator, measurement), members in sorted(groups.items())
    ]


def _bars(trained: list[Trained]) -> list[dict[str, Any]]:
    """Return the same for the operators of each bar together; launches timed with events apart."""
    groups: dict[tuple[str, str, bool], list[Trained]] = {}
    for each in trained:
        identity = each.identity
        bar = bar_of(identity.operator)
        if bar is not None:
            key = (identity.backend, bar.name, identity.measurement == "event")
            groups.setdefault(key, []).append(each)
    return [
        {"backend": backend, "bar": bar, "event": event, **_together(members)}
        for (backend, bar, event), members in sorted(groups.items())
    ]


def _together(members: list[Trained]) -> dict[str, Any]:
    repeated = np.concatenate([each.repeat_errors for each in members])
    return {
        "predictors": len(members),
        "rows": sum(each.entry["rows"] for each in members),
        "bytes": sum(each.size_bytes for each in members),
        **_shares(np.concatenate([each.errors for each in members])),
        "repeats": _shares(repeated) if len(repeated) else None,
    }


def _shares(errors: NDArray[np.float64]) -> dict[str, float | int]:
    return {
        "tested": len(errors),
        "median": float(f"{np.median(errors):.4g}"),
        "p95": float(f"{np.quantile(errors, 0.95):.4g}"),
        "within_6": float(f"{(errors <= 0.06).mean():.4g}"),
        "within_10": float(f"{(errors <= 0.10).mean():.4g}"),
    }


def mixed_of(learned: Transfer) -> dict[str, Any]:
    """Return what sweeps say of mixed batches, of the GPU itself and as the others teach it."""

    def shown(shares: Mapping[str, Any]) -> dict[str, Any]:
        return {gpu: asdict(share) for gpu, share in sorted(shares.items())}

    return {"own": shown(learned.shares), "carried_over": shown(learned.crossed)}


def samples_of(path: Path) -> str | None:
    """Return the digest of the pack that samples are of, None where there are none."""
    if not path.is_file():
        return None
    try:
        with np.load(path) as arrays:
            return str(arrays["sha256"]) if "sha256" in arrays else None
    except (OSError, ValueError, zipfile.BadZipFile):
        return None


def save_samples(path: Path, trained: list[Trained], sha256: str) -> None:
    """Write hold-out rows for plots, one group of arrays per predictor, and whose they are."""
    arrays: dict[str, Any] = {"sha256": np.array(sha256)}
    for index, each in enumerate(trained):
        if each.samples is not None:
            arrays[f"{index}.predicted"] = each.samples.predicted
            arrays[f"{index}.measured"] = each.samples.measured
            arrays |= {f"{index}.x.{name}": column for name, column in each.samples.features.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
