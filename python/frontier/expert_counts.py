"""Files of expert counts: how many tokens visited each expert of each layer, perhaps by window of time.

Three forms, told by the suffix. `.csv`: columns `layer`, `expert`, `count` and, if there are windows,
`window`; numbers start at 0, what is left out is 0. `.json`: `{"counts": ...}` nested by layer and expert, or
by window, layer and expert. `.npz`: an array `counts` of the same two or three dimensions.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frontier.errors import ConfigError, Issue, show_value

if TYPE_CHECKING:
    import numpy as np

MAX_COUNTS = 20_000_000
"""Most numbers of one file."""

PATH = "engine.moe.routing.trace.path"


def load_expert_counts(
    path: str, *, num_experts: int, top_k: int, num_layers: int
) -> list[list[list[float]]]:
    """Return counts by window, layer (one stands for all) and expert.

    Args:
        path: the file.
        num_experts: experts of a layer.
        top_k: experts that a token visits: as many have to have been visited.
        num_layers: layers with experts.

    Raises:
        ConfigError: the file cannot be read or does not suit the model.
    """

    def refuse(message: str) -> ConfigError:
        return ConfigError(Issue(PATH, path, f"was {show_value(path)}: {message}"))

    try:
        counts = _read(Path(path).expanduser())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise refuse(f"cannot be read as expert counts ({type(error).__name__}: {error})") from None
    if counts.ndim == 2:
        counts = counts[None]
    if counts.ndim != 3 or not 0 < counts.size <= MAX_COUNTS:
        shape = " x ".join(map(str, counts.shape))
        raise refuse(f"counts are {shape}, must be [window,] layer, expert")
    _, layers, experts = counts.shape
    if experts != num_experts:
        raise refuse(f"counts are of {experts} experts, the model has {num_experts}")
    if layers not in (1, num_layers):
        raise refuse(f"counts are of {layers} layers, the model has {num_layers} with experts (or give one)")
    if not ((counts >= 0) & (counts < float("inf"))).all():
        raise refuse("counts must be finite and not negative")
    if ((counts > 0).sum(axis=2) < top_k).any():
        raise refuse(f"every layer must have at least {top_k} experts that were visited")
    found: list[list[list[float]]] = counts.tolist()
    return found


def _read(path: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
    import numpy as np  # noqa: PLC0415 - keeps `import frontier` light

    suffix = path.suffix.lower()
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return np.asarray(arrays["counts"], dtype=np.float64)
    if suffix == ".json":
        return np.asarray(json.loads(path.read_text(encoding="utf-8"))["counts"], dtype=np.float64)
    if suffix != ".csv":
        raise ValueError("the file must end in .csv, .json or .npz")
    with path.open(newline="", encoding="utf-8") as file:
        rows = [
            (int(row.get("window") or 0), int(row["layer"]), int(row["expert"]), float(row["count"]))
            for row in csv.DictReader(file)
        ]
    if not rows:
        raise ValueError("there are no rows")
    if min(min(row[:3]) for row in rows) < 0:
        raise ValueError("numbers of windows, layers and experts start at 0")
    windows, layers, experts = (max(int(row[axis]) for row in rows) + 1 for axis in range(3))
    if windows * layers * experts > MAX_COUNTS:
        raise ValueError(f"more than {MAX_COUNTS:,} counts")
    counts = np.zeros((windows, layers, experts))
    for window, layer, expert, count in rows:
        counts[window, layer, expert] += count
    return counts
