"""Write a pack: the tensors of predictors behind one header, in the safetensors format.

The same input gives the same bytes: keys are sorted, tensors lie in a fixed order, and nothing tells the
time. The file is read back with every check before it appears under its name, whole or not at all.
"""

from __future__ import annotations

import copy
import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frontier import _frontier
from frontier.errors import ConfigError, Issue

FORMAT = "frontier-pack"
FORMAT_VERSION = "1"
_TYPE_NAMES = {"uint8": "U8", "uint32": "U32", "uint64": "U64", "float16": "F16", "float32": "F32"}
_ALIGNMENT = 8
_FNV_BASIS = 0xCBF29CE484222325
_FNV_PRIME = 0x100000001B3

Tensors = Mapping[str, NDArray[Any]]


def static_shape_hash(values: Sequence[float]) -> int:
    """Return the hash of a static shape, an element of `static_shapes`.

    64-bit FNV-1a over the little-endian bytes of the values as doubles, in the order of the manifest's
    `shapes`.
    """
    state = _FNV_BASIS
    for byte in np.array(values, "<f8").tobytes():
        state = (state ^ byte) * _FNV_PRIME % 2**64
    return state


def tensors_sha256(tensors: Tensors) -> str:
    """Return the checksum of a predictor's tensors: names and bytes in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(_bytes(tensors[name]))
    return digest.hexdigest()


def write_pack(path: str | Path, manifest: Mapping[str, Any], tensors: Sequence[Tensors]) -> Path:
    """Write a pack, replacing the file that may be there.

    Args:
        path: the file, `<gpu>.safetensors`.
        manifest: the manifest; `sha256` of its predictors is filled in.
        tensors: those of each predictor, in the order of the manifest: `thresholds`, `threshold_offsets`,
            `nodes`, `tree_starts` and `leaves` (`ensemble_tensors`), or `x` and `seconds` of a table; and
            `static_shapes` uint64, ascending, for both.

    Returns:
        The path.

    Raises:
        ConfigError: the manifest holds what JSON cannot, or tensors are of other types or dimensions.
        PackError: the pack would not load; the message says why. Nothing is written.
    """
    path = Path(path)
    data = pack_bytes(manifest, tensors)
    pack = _frontier.Pack(np.frombuffer(data, np.uint8))
    for index in range(len(pack)):
        pack.load(index)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
    try:
        draft.write_bytes(data)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return path


def pack_bytes(manifest: Mapping[str, Any], tensors: Sequence[Tensors]) -> bytes:
    """Return the bytes of a pack, not checked; see `write_pack`."""
    document = copy.deepcopy(dict(manifest))
    entries = document.get("predictors", [])
    if len(entries) != len(tensors):
        raise ConfigError(
            Issue("predictors", len(entries), f"are {len(entries)}, but there are tensors of {len(tensors)}")
        )
    for entry, arrays in zip(entries, tensors, strict=True):
        entry["sha256"] = tensors_sha256(arrays)
    text = _json(document, "manifest")
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "manifest": text,
        "manifest_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    named = {f"{i}.{name}": array for i, arrays in enumerate(tensors) for name, array in arrays.items()}
    # Wide elements first keeps every tensor aligned to its elements.
    order = sorted(named, key=lambda name: (-named[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name in order:
        start, end = end, end + named[name].nbytes
        header[name] = {
            "dtype": _type_name(name, named[name]),
            "shape": list(named[name].shape),
            "data_offsets": [start, end],
        }
    head = _json(header, "header").encode()
    head += b" " * (-len(head) % _ALIGNMENT)
    return b"".join([len(head).to_bytes(8, "little"), head, *(_bytes(named[name]) for name in order)])


def _json(document: Mapping[str, Any], what: str) -> str:
    try:
        return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(Issue(what, None, f"cannot be written as JSON: {error}")) from None


def _type_name(name: str, array: NDArray[Any]) -> str:
    known = _TYPE_NAMES.get(array.dtype.name)
    if known is None or array.ndim != 1:
        message = f"was {array.ndim}-dimensional {array.dtype.name}, must be one-dimensional of a known type"
        raise ConfigError(Issue(name, array.dtype.name, message, tuple(_TYPE_NAMES)))
    return known


def _bytes(array: NDArray[Any]) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
