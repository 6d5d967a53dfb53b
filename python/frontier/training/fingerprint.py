"""What decides what a pack will be, as one digest: a pack of the same digest need not be built again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import numpy as np

import frontier
from frontier.hardware import load_gpu
from frontier.training.fit import require_xgboost
from frontier.training.identity import COLLECTIVES
from frontier.training.inputs import inputs_of
from frontier.training.measurements import Measurements
from frontier.training.recipe import PackRecipe
from frontier.training.settings import settings_for
from frontier.training.sources import llmservingsim

_DIGEST_ROWS = 8


def fingerprint_of(recipe: PackRecipe, found: list[Measurements], sweeps: Path | None) -> str:
    """Return a digest of all that decides what the pack will be; `sweeps`: the folder of LLMServingSim."""
    sizes = [
        (str(each.identity), len(each), asdict(settings_for(each.identity, 10**6)))
        for each in found
        if each.identity.operator not in COLLECTIVES
    ]
    presets = {each.identity.gpu for each in found}
    if sweeps is not None:
        presets |= set(llmservingsim.GPUS.values())
    facts = {
        "recipe": asdict(recipe),
        "sources": sorted({(s.file, s.sha256) for each in found for s in each.sources}),
        "sweeps": _digest_of_sweeps(sweeps),
        "sizes": sizes,
        "versions": versions(),
        "presets": {gpu: load_gpu(gpu).to_plan() for gpu in sorted(presets)},
        "inputs": sorted(
            (str(each.identity), _digest_of_inputs(each))
            for each in found
            if each.identity.operator not in COLLECTIVES and len(each)
        ),
        "trainer": digest_of_sources(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=list).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Return the versions that a pack is created by."""
    return {"frontier": frontier.__version__, "xgboost": str(require_xgboost().__version__)}


@lru_cache(maxsize=1)
def digest_of_sources(folder: Path | None = None) -> str:
    """Return a digest of the code that trains: of this package and its readers."""
    root = Path(__file__).parent if folder is None else folder
    digest = hashlib.sha256()
    for path in sorted((*root.glob("*.py"), *root.glob("sources/*.py"))):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _digest_of_inputs(measurements: Measurements) -> str:
    """Return a digest of what the core makes of the first rows: names and values of features, and costs."""
    inputs = inputs_of(measurements.take(np.arange(min(len(measurements), _DIGEST_ROWS))))
    costs = inputs.costs
    values = (inputs.features, costs.compute_s, costs.memory_s, costs.network_s, costs.launch_s)
    parts = ["\0".join(inputs.names).encode(), *(np.ascontiguousarray(value).tobytes() for value in values)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _digest_of_sweeps(root: Path | None) -> str:
    if root is None:
        return ""
    names = sorted(path for path in Path(root).rglob("*") if path.suffix in (".csv", ".parquet"))
    return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in names)).hexdigest()
