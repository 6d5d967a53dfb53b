"""What the adapters of both peers read in the same way."""

import csv
import gzip
from pathlib import Path

MAX_MODEL_LEN = 4096

Batch = tuple[int, float, float, str, int | None]
"""Replica, start in s, duration in s, "request:tokens ...", blocks held once formed (None: unsaid)."""


def rows(path: Path) -> list[dict[str, str]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", newline="") as file:
        return list(csv.DictReader(file))


def tokens_of(text: str) -> str:
    """Return "request:tokens ..." with whole numbers of tokens."""
    pairs = (pair.split(":") for pair in text.split())
    return " ".join(f"{request}:{int(float(tokens))}" for request, tokens in pairs)
