"""Packs and predictors that this process has opened: each once, shared by all scenarios."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from frontier.errors import PackError
from frontier.predictors.pack_file import PackFile, PredictorInfo, open_pack

if TYPE_CHECKING:
    from frontier import _frontier

_Key = tuple[str, int, int]


class OpenPack:
    """A pack with the predictors that were loaded from it."""

    def __init__(self, file: PackFile) -> None:
        """Take an open file."""
        self.file = file
        self._loaded: dict[int, _frontier.Predictor] = {}
        self._identities: dict[int, dict[str, str]] = {}

    @property
    def gpu(self) -> str:
        """The GPU that its predictors are of; `generic` for those pooled over several."""
        return self.file.gpu

    @property
    def infos(self) -> tuple[PredictorInfo, ...]:
        """What it says of its predictors."""
        return self.file.predictors

    @cached_property
    def name(self) -> str:
        """The name of the file, for people."""
        return self.file.path.name

    def load(self, index: int) -> _frontier.Predictor:
        """Return a predictor, loaded at the first call.

        Raises:
            PackError: it is damaged.
        """
        with _lock:
            if index not in self._loaded:
                self._loaded[index] = self.file.load(index)
            return self._loaded[index]

    def identity(self, index: int) -> dict[str, str]:
        """Return `id` and `sha256` of a predictor.

        The hash is of all that the pack says of it, the hash of its tensors included: equal hashes mean
        equal times and residuals.
        """
        if index not in self._identities:
            info = self.infos[index]
            text = json.dumps(asdict(info), sort_keys=True, separators=(",", ":"))
            digest = hashlib.sha256(text.encode()).hexdigest()
            self._identities[index] = {"id": identity_text(info), "sha256": digest}
        return dict(self._identities[index])


def identity_text(info: PredictorInfo) -> str:
    """Return which predictor it is, as one line."""
    head = f"{info.gpu}/{info.backend}-{info.version}/{info.kernel}/{info.measurement}"
    tail = "".join(f" {name}={value}" for name, value in sorted(info.detail.items()))
    return f"{head}/{info.operator}/{info.dtype}{tail}"


_lock = threading.RLock()
_open: dict[_Key, OpenPack] = {}


def opened(path: str | Path) -> OpenPack:
    """Return the pack in a file; it is read again where the file has changed.

    Raises:
        PackError: it cannot be read, or is no pack.
    """
    file = Path(path).expanduser()
    try:
        facts = file.stat()
        key = (str(file.resolve()), facts.st_mtime_ns, facts.st_size)
    except OSError as error:
        raise PackError(f"cannot be read: {error.strerror or error}", file=str(file)) from None
    with _lock:
        if key not in _open:
            for stale in [known for known in _open if known[0] == key[0]]:
                del _open[stale]
            _open[key] = OpenPack(open_pack(file))
        return _open[key]
