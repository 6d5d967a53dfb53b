"""Build packs by a recipe: read, choose, train, write; each pack whole or not at all, and only if it changed.

The same sources, recipe and versions give the same bytes. A pack that was built from the same inputs before
is left as it is, so an interrupted build goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import frontier
from frontier.errors import ConfigError, Issue
from frontier.training import transfer
from frontier.training.export import write_pack
from frontier.training.fit import LEAF_GRID, require_xgboost
from frontier.training.generic import pooled_predictors
from frontier.training.identity import COLLECTIVES
from frontier.training.measurements import Measurements
from frontier.training.predictor import MIN_ROWS, Trained, train, with_detail
from frontier.training.recipe import GENERIC, SOURCES, PackRecipe, newest
from frontier.training.settings import SEED, settings_for
from frontier.training.sources import aiconfigurator, llmservingsim, profiler, vidur
from frontier.training.tables import tables
from frontier.training.transfer import Transfer

TRAINER = 1
"""To be raised when the same settings would give other predictors."""
_NOTICES = {
    "NVIDIA aiconfigurator": "Learned from operator measurements of NVIDIA aiconfigurator (Apache-2.0).",
    "Frontier / Vidur profiles": "Learned from profiles of Frontier (NetX-lab) and Vidur (Microsoft) (MIT).",
    "LLMServingSim profiles": "Learned from profiles of LLMServingSim (CASYS, KAIST) (MIT).",
}
_SHOWN_ERRORS = tuple(round(0.05 * i, 2) for i in range(1, 20))

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Built:
    """One pack: `path` of the file, `report` of its accuracy, whether it was `fresh` or had been there."""

    path: Path
    report: dict[str, Any]
    fresh: bool


def read_source(name: str, root: Path | None, gpus: list[str] | None) -> list[Measurements]:
    """Return all measurements of one source, of the GPUs that it has.

    Raises:
        ConfigError: the source is not known, or there is nothing to read at `root`.
    """
    known: dict[str, tuple[Any, Iterable[str] | None]] = {
        "aiconfigurator": (aiconfigurator, aiconfigurator.GPUS.values()),
        "llmservingsim": (llmservingsim, llmservingsim.GPUS.values()),
        "vidur": (vidur, vidur.GPUS.values()),
        "profiler": (profiler, None),
    }
    if name not in known:
        raise ConfigError(Issue("source", name, f"{name!r} is not known", SOURCES))
    module, available = known[name]
    if root is None and name != "aiconfigurator":
        raise ConfigError(Issue("source", name, f"{name} needs a path: {name}=PATH"))
    wanted = gpus if available is None or gpus is None else [gpu for gpu in gpus if gpu in available]
    return [] if wanted == [] else [found for found in module.read(root, wanted) if len(found)]


class Builder:
    """Builds packs from sources into a folder."""

    def __init__(
        self, sources: Mapping[str, Path | None], out: Path, *, jobs: int = 2, samples: Path | None = None
    ) -> None:
        """Take the roots of the sources by name, the folder for packs, and one for samples for plots."""
        require_xgboost()
        self.sources = dict(sources)
        self.out = out
        self.jobs = jobs
        self.samples = samples
        self.transfer = lru_cache(maxsize=1)(self._transfer)

    def build(self, recipe: PackRecipe, progress: Progress = lambda *_: None) -> Built | None:
        """Build one pack, None if none of its sources are at hand or they hold nothing for it."""
        found = self._read(recipe)
        if not found:
            return None
        path = self.out / f"{recipe.name}.safetensors"
        report_path = self.out / "accuracy" / f"{recipe.name}.json"
        fingerprint = self._fingerprint(recipe, found)
        known = _known(path, report_path, fingerprint)
        if known is not None:
            return Built(path, known, fresh=False)
        trained, left_out = self._train(recipe, found, progress)
        if not trained:
            return None
        manifest = _manifest(recipe, found, trained)
        path.parent.mkdir(parents=True, exist_ok=True)
        report_path.parent.mkdir(parents=True, exist_ok=True)
        write_pack(path, manifest, [each.tensors for each in trained])
        report = _report(recipe, trained, left_out, path, fingerprint)
        if recipe.gpu == GENERIC:
            report["mixed"] = _mixed(self.transfer())
        text = json.dumps(report, indent=None, separators=(",", ":"), sort_keys=True, allow_nan=False)
        report_path.write_text(text.replace('{"accuracy"', '\n{"accuracy"') + "\n")
        if self.samples is not None:
            _save_samples(self.samples / f"{recipe.name}.npz", trained)
        return Built(path, report, fresh=True)

    def _read(self, recipe: PackRecipe) -> list[Measurements]:
        gpus = None if recipe.gpu == GENERIC else [recipe.gpu]
        found: list[Measurements] = []
        for name in recipe.sources:
            if name in self.sources:
                found += read_source(name, self.sources[name], gpus)
        kept = [each for each in found if recipe.takes(each.identity)]
        if recipe.gpu != GENERIC:
            return newest(kept)
        by_gpu: dict[str, list[Measurements]] = {}
        for each in kept:
            by_gpu.setdefault(each.identity.gpu, []).append(each)
        return [each for gpu in sorted(by_gpu) for each in newest(by_gpu[gpu])]

    def _transfer(self) -> Transfer:
        if "llmservingsim" not in self.sources:
            return Transfer(None, {}, {}, None, {})
        return transfer.learn(read_source("llmservingsim", self.sources["llmservingsim"], None))

    def _fingerprint(self, recipe: PackRecipe, found: list[Measurements]) -> str:
        """Return a digest of all that decides what the pack will be."""
        sizes = [(str(each.identity), len(each), asdict(settings_for(each.identity, 10**6)))
                 for each in found if each.identity.operator not in (*COLLECTIVES, "mixed")]
        facts = {
            "recipe": asdict(recipe),
            "sources": sorted({(s.file, s.sha256) for each in found for s in each.sources}),
            "sweeps": _digest_of_sweeps(self.sources.get("llmservingsim")),
            "sizes": sizes,
            "versions": _versions(),
            "constants": [TRAINER, SEED, LEAF_GRID, MIN_ROWS],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=list).encode()).hexdigest()

    def _train(
        self, recipe: PackRecipe, found: list[Measurements], progress: Progress
    ) -> tuple[list[Trained], dict[str, str]]:
        if recipe.gpu == GENERIC:
            progress(recipe.name, 0, 1)
            skew = self.transfer().skew
            trained = pooled_predictors(found) + ([skew] if skew is not None else [])
            share = self.transfer().detail(GENERIC)
            return [_told(each, share) for each in trained], {}
        learned = self.transfer()
        detail = learned.detail(recipe.gpu)
        trained, left_out = [], {}
        work: list[Measurements] = []
        for each in found:
            identity = each.identity
            if identity.operator in ("mixed", "decode_skew"):
                continue
            if identity in learned.own:
                trained.append(learned.own[identity])
            elif identity.operator in COLLECTIVES:
                trained += tables(each)
            elif len(each) < MIN_ROWS:
                left_out[str(identity)] = f"{len(each)} rows, fewer than {MIN_ROWS}"
            else:
                work.append(each)
        with ThreadPoolExecutor(self.jobs) as pool:
            futures = [pool.submit(train, each) for each in work]
            try:
                for done, future in enumerate(futures):
                    progress(recipe.name, done, len(work))
                    trained.append(future.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        decodes = [each for each in trained if each.identity.operator == "decode_attention"]
        knows = all("knows_unequal_lengths" in each.entry["detail"] for each in decodes)
        if decodes and not knows and learned.skew is not None:
            trained.append(learned.skew)
        ordered = sorted(trained, key=lambda each: (each.identity, sorted(map(str, each.entry["detail"].items()))))
        return [_told(each, detail) for each in ordered], left_out


def _told(trained: Trained, detail: Mapping[str, Any]) -> Trained:
    return with_detail(trained, detail) if trained.identity.operator == "decode_attention" else trained


def _versions() -> dict[str, str]:
    return {"frontier": frontier.__version__, "xgboost": str(require_xgboost().__version__)}


def _digest_of_sweeps(root: Path | None) -> str:
    if root is None:
        return ""
    names = sorted(path for path in Path(root).rglob("*") if path.suffix in (".csv", ".parquet"))
    return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in names)).hexdigest()


def _known(path: Path, report_path: Path, fingerprint: str) -> dict[str, Any] | None:
    """Return the report of a pack that is there already, and whole."""
    if not (path.is_file() and report_path.is_file()):
        return None
    try:
        report = json.loads(report_path.read_text())
    except ValueError:
        return None
    same = report.get("fingerprint") == fingerprint
    return report if same and report.get("sha256") == hashlib.sha256(path.read_bytes()).hexdigest() else None


def _manifest(recipe: PackRecipe, found: list[Measurements], trained: list[Trained]) -> dict[str, Any]:
    sources = [source for each in trained for source in each.entry["sources"]]
    names = sorted({source["name"] for source in sources})
    return {
        "gpu": recipe.gpu,
        "created_by": _versions(),
        "licences": sorted({source["licence"] for source in sources}),
        "notices": [_NOTICES.get(name, f"Learned from {name}.") for name in names],
        "warnings": sorted({f"{each.identity}: {text}" for each in found for text in each.warnings}),
        "predictors": [each.entry for each in trained],
    }


def _report(
    recipe: PackRecipe, trained: list[Trained], left_out: dict[str, str], path: Path, fingerprint: str
) -> dict[str, Any]:
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
    found = []
    for (backend, operator, measurement), members in sorted(groups.items()):
        errors = np.concatenate([each.errors for each in members])
        found.append(
            {
                "backend": backend,
                "operator": operator,
                "measurement": measurement,
                "predictors": len(members),
                "rows": sum(each.entry["rows"] for each in members),
                "bytes": sum(each.size_bytes for each in members),
                "tested": len(errors),
                "median": float(f"{np.median(errors):.4g}"),
                "p95": float(f"{np.quantile(errors, 0.95):.4g}"),
                "within_6": float(f"{(errors <= 0.06).mean():.4g}"),
                "within_10": float(f"{(errors <= 0.10).mean():.4g}"),
            }
        )
    return found


def _mixed(learned: Transfer) -> dict[str, Any]:
    def shown(shares: Mapping[str, Any]) -> dict[str, Any]:
        return {gpu: asdict(share) for gpu, share in sorted(shares.items())}

    return {"own": shown(learned.shares), "carried_over": shown(learned.crossed)}


def _save_samples(path: Path, trained: list[Trained]) -> None:
    """Write hold-out rows for plots, one group of arrays per predictor."""
    arrays: dict[str, Any] = {}
    for index, each in enumerate(trained):
        if each.samples is not None:
            arrays[f"{index}.predicted"] = each.samples.predicted
            arrays[f"{index}.measured"] = each.samples.measured
            arrays |= {f"{index}.x.{name}": column for name, column in each.samples.features.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)


