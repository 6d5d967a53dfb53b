"""Which texts in a scenario are paths, and where relative ones start."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

_SUFFIX: Final = re.compile(r"\.(json|ya?ml|csv|tsv|jsonl|ndjson|txt|parquet|gz|zst|npz)\Z", re.IGNORECASE)


def is_path(text: str) -> bool:
    """Return whether a text names a file rather than a preset: it has a slash or a file suffix."""
    return "/" in text or "\\" in text or text.startswith((".", "~")) or bool(_SUFFIX.search(text))


def why_no_file(path: Path) -> str | None:
    """Return why no file can be read at a path, None if one can."""
    try:
        if path.is_file():
            return None
        return "is a directory, must be a file" if path.is_dir() else "no such file"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def anchor_paths(plain: Mapping[str, Any], base_dir: Path) -> dict[str, Any]:
    """Return a copy of a scenario's plain mapping with relative paths made absolute from `base_dir`.

    Texts that are no paths (preset names, names of built-in traces) stay as they are.
    """
    result: dict[str, Any] = path_texts(copy.deepcopy(dict(plain)))
    for part in (result, *_clusters_of(result)):
        for location, is_name in _PATH_FIELDS:
            _anchor(part, location, base_dir.resolve(), is_name)
        for location in _PATH_LISTS:
            _anchor_list(part, location, base_dir.resolve())
    return result


def _clusters_of(plain: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of `clusters`, which have sections with paths as the scenario itself."""
    clusters = plain.get("clusters")
    return [each for each in clusters if isinstance(each, dict)] if isinstance(clusters, list | tuple) else []


def path_texts(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return a scenario's mapping with `os.PathLike` made text, where a file may be named.

    Only the mappings that change are copied. A path of one name is written `./name`: it is no preset.
    """
    result = _with_path_texts(plain)
    clusters = result.get("clusters")
    if isinstance(clusters, list | tuple):
        result["clusters"] = [_with_path_texts(each) if isinstance(each, dict) else each for each in clusters]
    return result


def _with_path_texts(plain: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(plain)
    for location, _ in _PATH_FIELDS:
        container: dict[str, Any] = result
        for part in location[:-1]:
            inner = container.get(part)
            if not isinstance(inner, dict):
                break
            container[part] = container = dict(inner)
        else:
            value = container.get(location[-1])
            if isinstance(value, os.PathLike):
                text = os.fspath(value)
                container[location[-1]] = text if not isinstance(text, str) or is_path(text) else f"./{text}"
    return result


def _may_be_hub_name(text: str) -> bool:
    """Return whether a text is written like a name on the Hugging Face hub: `organisation/model`."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text)) and not _SUFFIX.search(text)


def _never(text: str) -> bool:
    return False


_PATH_FIELDS: Final[tuple[tuple[tuple[str, ...], Callable[[str], bool]], ...]] = (
    (("model",), _may_be_hub_name),
    (("model", "config"), _may_be_hub_name),
    (("hardware",), _never),
    (("hardware", "gpu"), _never),
    (("workload", "trace"), _never),
    (("workload", "trace", "path"), _never),
    (("engine", "speculative", "model"), _may_be_hub_name),
    (("engine", "speculative", "acceptance", "trace"), _never),
    (("engine", "moe", "routing", "trace"), _never),
    (("engine", "moe", "routing", "trace", "path"), _never),
)


_PATH_LISTS: Final[tuple[tuple[str, ...], ...]] = (("engine", "step_time", "learned", "packs"),)
"""Lists whose texts are all paths, whatever they look like."""


def _anchor_list(plain: dict[str, Any], location: tuple[str, ...], base_dir: Path) -> None:
    container: Any = plain
    for part in location[:-1]:
        container = container.get(part) if isinstance(container, dict) else None
    listed = container.get(location[-1]) if isinstance(container, dict) else None
    if isinstance(listed, list | tuple):
        texts = [os.fspath(path) if isinstance(path, os.PathLike) else path for path in listed]
        container[location[-1]] = [
            str(base_dir / Path(text).expanduser()) if isinstance(text, str) and text else text
            for text in texts
        ]


def _anchor(
    plain: dict[str, Any], location: tuple[str, ...], base_dir: Path, is_name: Callable[[str], bool]
) -> None:
    container: Any = plain
    for part in location[:-1]:
        container = container.get(part) if isinstance(container, dict) else None
    if not isinstance(container, dict):
        return
    text = container.get(location[-1])
    if not isinstance(text, str) or not is_path(text):
        return
    path = base_dir / Path(text).expanduser()
    if not is_name(text) or path.exists():
        container[location[-1]] = str(path)
