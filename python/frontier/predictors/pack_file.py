"""Open a pack: its manifest as typed facts, its predictors on demand.

The file is mapped into memory, so that a run reads the predictors it needs and no others. Header and
manifest are checked when a pack is opened, the tensors of a predictor when it is loaded
(`frontier._frontier.Pack` does both).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from frontier import _frontier
from frontier.errors import PackError

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class BoundParameters:
    """Fitted bound: `max(compute, memory, network) + launch_s`, each of the three scaled."""

    launch_s: float
    compute_scale: float
    memory_scale: float
    network_scale: float


@dataclass(frozen=True, slots=True)
class Cold:
    """Correction of decode attention measured with its KV in a warm L2 cache of `l2_bytes`."""

    l2_bytes: float
    s_per_byte: float


@dataclass(frozen=True, slots=True)
class Source:
    """A data set that a predictor learned from; `sha256` is that of the file."""

    name: str
    licence: str
    file: str
    sha256: str
    version: str


@dataclass(frozen=True, slots=True)
class PredictorInfo:
    """What a pack says of one predictor.

    Attributes:
        gpu: name of the GPU's preset.
        backend: serving engine or library, and its `version`.
        kernel: the name that the source of the measurements gives the kernel.
        measurement: `cuda_graph` and `kernel` are the kernel alone, `event` includes the launch.
        operator: which operator.
        dtype: number type of the arithmetic, by its name in plans.
        detail: small facts, such as the number type of the KV cache.
        form: trees over features, or a table over bytes.
        features: names in the order of columns.
        ranges: smallest and largest value of each feature in training.
        bound: fitted bound.
        cold: correction of warm measurements, decode attention alone.
        calibration: factor of every time.
        base_score: what the sum of leaves begins with.
        residual_quantiles: pairs of probability and log(measured / predicted) on held-out rows.
        shapes: names of the columns that make a static shape.
        accuracy: hold-out figures.
        rows: rows learned from; `rows_dropped` counts those left out, by reason.
        sources: where the rows are from.
        sha256: of the predictor's tensors.
    """

    gpu: str
    backend: str
    version: str
    kernel: str
    measurement: Literal["cuda_graph", "kernel", "event"]
    operator: str
    dtype: str
    detail: Mapping[str, Any]
    form: Literal["trees", "table"]
    features: tuple[str, ...]
    ranges: tuple[tuple[float, float], ...]
    bound: BoundParameters
    cold: Cold | None
    calibration: float
    base_score: float
    residual_quantiles: tuple[tuple[float, float], ...]
    shapes: tuple[str, ...]
    accuracy: Mapping[str, Any]
    rows: int
    rows_dropped: Mapping[str, int]
    sources: tuple[Source, ...]
    sha256: str


@dataclass(frozen=True, slots=True)
class PackFile:
    """An open pack.

    Attributes:
        path: the file.
        gpu: name of the preset of the GPU that its predictors are of.
        created_by: versions of what made it.
        licences: licences of the data that its predictors learned from.
        notices: notices that those licences ask for.
        warnings: what a user should know.
        predictors: one entry per predictor.
    """

    path: Path
    gpu: str
    created_by: Mapping[str, str]
    licences: tuple[str, ...]
    notices: tuple[str, ...]
    warnings: tuple[str, ...]
    predictors: tuple[PredictorInfo, ...]
    _pack: _frontier.Pack = field(repr=False, compare=False)

    def load(self, index: int) -> _frontier.Predictor:
        """Load the predictor with this number in `predictors`, counted from 0.

        Raises:
            PackError: there is none, or its tensors are damaged.
        """
        if not 0 <= index < len(self.predictors):
            message = f"predictor {index}: there are {len(self.predictors)}, numbered from 0"
            raise PackError(message, file=str(self.path))
        return _naming_file(lambda: self._pack.load(index), self.path)


def open_pack(path: str | Path) -> PackFile:
    """Open a pack.

    Raises:
        PackError: the file cannot be read, or is no pack of a version that this frontier knows.
    """
    path = Path(path)
    data = _map(path)
    pack = _naming_file(lambda: _frontier.Pack(data), path)
    document = json.loads(pack.manifest_json)
    infos = tuple(_info(document["gpu"], entry) for entry in document["predictors"])
    return PackFile(
        path=path,
        gpu=document["gpu"],
        created_by=document["created_by"],
        licences=tuple(document["licences"]),
        notices=tuple(document["notices"]),
        warnings=tuple(document["warnings"]),
        predictors=infos,
        _pack=pack,
    )


def _map(path: Path) -> NDArray[np.uint8]:
    try:
        if path.stat().st_size == 0:  # which cannot be mapped
            return np.empty(0, np.uint8)
        return np.memmap(path, np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise PackError(f"cannot be read: {error}", file=str(path)) from None


def _naming_file(read: Callable[[], _T], path: Path) -> _T:
    """Return what `read` returns; its `PackError` is told where the pack came from."""
    try:
        return read()
    except PackError as error:
        raise PackError(error.message, file=str(path)) from None


def _info(gpu: str, entry: Mapping[str, Any]) -> PredictorInfo:
    """Return an entry of a checked manifest as facts."""
    return PredictorInfo(
        **{
            **entry,
            "gpu": gpu,
            "features": tuple(entry["features"]),
            "ranges": tuple((low, high) for low, high in entry["ranges"]),
            "bound": BoundParameters(**entry["bound"]),
            "cold": None if entry.get("cold") is None else Cold(**entry["cold"]),
            "residual_quantiles": tuple((q, residual) for q, residual in entry["residual_quantiles"]),
            "shapes": tuple(name for name in entry["shapes"].split(",") if name),
            "sources": tuple(Source(**source) for source in entry["sources"]),
        }
    )
