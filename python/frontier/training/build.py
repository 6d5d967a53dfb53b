"""Build packs by a recipe: read, choose, train, write; each pack whole or not at all, and only if it changed.

The same sources, recipe and versions give the same bytes. A pack that was built from the same inputs before
is left as it is, so an interrupted build goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from frontier.errors import ConfigError, Issue
from frontier.predictors.select import GENERIC
from frontier.training import transfer
from frontier.training.export import write_pack
from frontier.training.fingerprint import fingerprint_of, versions
from frontier.training.fit import require_xgboost
from frontier.training.generic import pooled_predictors
from frontier.training.identity import COLLECTIVES
from frontier.training.measurements import Measurements
from frontier.training.pack_report import mixed_of, report_of, samples_of, save_samples
from frontier.training.predictor import MIN_ROWS, Trained, train, with_detail
from frontier.training.recipe import SOURCES, PackRecipe, newest
from frontier.training.skew import KNOWS_UNEQUAL_LENGTHS, knows_unequal_lengths
from frontier.training.sources import aiconfigurator, llmservingsim, profiler, vidur
from frontier.training.tables import tables
from frontier.training.transfer import Transfer

_NOTICES = {
    "NVIDIA aiconfigurator": "Learned from operator measurements of NVIDIA aiconfigurator (Apache-2.0).",
    "Frontier / Vidur profiles": "Learned from profiles of Frontier (NetX-lab) and Vidur (Microsoft) (MIT).",
    "LLMServingSim profiles": "Learned from profiles of LLMServingSim (CASYS, KAIST) (MIT).",
}

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
        self,
        sources: Mapping[str, Path | None],
        out: Path,
        reports: Path | None = None,
        *,
        jobs: int = 2,
        samples: Path | None = None,
    ) -> None:
        """Take the roots of the sources by name, and folders for packs, reports, and samples for plots."""
        require_xgboost()
        self.sources = dict(sources)
        self.out = out
        self.reports = out if reports is None else reports
        self.jobs = jobs
        self.samples = samples
        self.transfer = lru_cache(maxsize=1)(self._transfer)

    def build(self, recipe: PackRecipe, progress: Progress = lambda *_: None) -> Built | None:
        """Build one pack, None if none of its sources are at hand or they hold nothing for it."""
        found = self._read(recipe)
        if not found:
            return None
        path = self.out / f"{recipe.name}.safetensors"
        report_path = self.reports / "accuracy" / f"{recipe.name}.json"
        fingerprint = fingerprint_of(recipe, found, self.sources.get("llmservingsim"))
        samples = None if self.samples is None else self.samples / f"{recipe.name}.npz"
        known = _known(path, report_path, fingerprint)
        if known is not None and (samples is None or samples_of(samples) == known["sha256"]):
            return Built(path, known, fresh=False)
        trained, left_out = self._train(recipe, found, progress)
        if not trained:
            return None
        manifest = _manifest(recipe, found, trained, self.transfer())
        path.parent.mkdir(parents=True, exist_ok=True)
        report_path.parent.mkdir(parents=True, exist_ok=True)
        write_pack(path, manifest, [each.tensors for each in trained])
        report = report_of(recipe, trained, left_out, path, fingerprint)
        if recipe.gpu == GENERIC:
            report["mixed"] = mixed_of(self.transfer())
            report["unequal"] = self.transfer().unequal
        text = json.dumps(report, indent=None, separators=(",", ":"), sort_keys=True, allow_nan=False)
        report_path.write_text(text.replace('{"accuracy"', '\n{"accuracy"') + "\n")
        if samples is not None:
            save_samples(samples, trained, report["sha256"])
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
            return Transfer(None, {}, {}, None, {}, {})
        return transfer.learn(read_source("llmservingsim", self.sources["llmservingsim"], None))

    def _train(
        self, recipe: PackRecipe, found: list[Measurements], progress: Progress
    ) -> tuple[list[Trained], dict[str, str]]:
        if recipe.gpu == GENERIC:
            progress(recipe.name, 0, 1)
            skew = self.transfer().skew
            trained = pooled_predictors(found) + ([skew] if skew is not None else [])
            return [_told(each, self.transfer(), GENERIC) for each in trained], {}
        learned = self.transfer()
        trained, left_out = [], {}
        work: list[Measurements] = []
        for each in found:
            identity = each.identity
            if identity.operator == "decode_skew":
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
            futures = [pool.submit(_trained, each) for each in work]
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
        ordered = sorted(
            trained, key=lambda each: (each.identity, sorted(map(str, each.entry["detail"].items())))
        )
        return [_told(each, learned, recipe.gpu) for each in ordered], left_out


def _trained(measurements: Measurements) -> Trained:
    if knows_unequal_lengths(measurements):
        return train(measurements, skewed=True, detail=KNOWS_UNEQUAL_LENGTHS)
    return train(measurements)


def _told(trained: Trained, learned: Transfer, gpu: str) -> Trained:
    if trained.identity.operator != "decode_attention":
        return trained
    return with_detail(trained, learned.detail(gpu, trained.identity.kernel))


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


def _manifest(
    recipe: PackRecipe, found: list[Measurements], trained: list[Trained], learned: Transfer
) -> dict[str, Any]:
    sources = [source for each in trained for source in each.entry["sources"]]
    names = sorted({source["name"] for source in sources})
    return {
        "gpu": recipe.gpu,
        "created_by": versions(),
        "licences": sorted({source["licence"] for source in sources}),
        "notices": [_NOTICES.get(name, f"Learned from {name}.") for name in names],
        "warnings": sorted(
            {f"{each.identity}: {text}" for each in found for text in each.warnings}
            | set(_missing_rules(trained, learned))
        ),
        "predictors": [each.entry for each in trained],
    }


def _missing_rules(trained: list[Trained], learned: Transfer) -> Iterable[str]:
    """Yield what a pack's decodes say nothing about for want of sweeps when it was built."""
    decodes = [each for each in trained if each.identity.operator == "decode_attention"]
    knows = all("knows_unequal_lengths" in each.entry["detail"] for each in decodes)
    if decodes and not knows and learned.skew is None:
        yield (
            "decode_attention: built without sweeps of unequal lengths, so batches of unequal lengths are "
            "priced as if all requests had the mean"
        )
    if decodes and learned.per_head is None:
        yield (
            "decode_attention: built without sweeps of mixed batches, so prefills and decodes in one batch "
            "are assumed to add up"
        )
