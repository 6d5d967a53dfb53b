"""Traces of prompts that share content, as files that scenarios name."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

BLOCK: Final = 16
LONG_BLOCK: Final = 512
"""Tokens per hash, of the two kinds of trace."""


@dataclass(frozen=True, slots=True)
class Request:
    """One row.

    Attributes:
        arrival_s: when it arrives; without effect where a scenario gives arrivals of its own.
        prompt_tokens, output_tokens: its lengths.
        content: numbers of its blocks; equal numbers from the start are equal content.
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    content: Sequence[int] = ()


def write_trace(path: Path, requests: Iterable[Request]) -> dict[str, Any]:
    """Write requests whose content is of full blocks of `BLOCK` tokens; return the trace section."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(
            ("request_id", "arrival_s", "num_prompt_tokens", "num_output_tokens", "block_hash_ids_16")
        )
        for number, one in enumerate(requests):
            hashes = "|".join(map(str, one.content))
            table.writerow((number, f"{one.arrival_s:.9f}", one.prompt_tokens, one.output_tokens, hashes))
    return {"path": str(path), "format": "sharegpt-replay"}


def write_long_trace(path: Path, requests: Iterable[Request]) -> dict[str, Any]:
    """Write requests whose content is of blocks of `LONG_BLOCK` tokens, the last of which may be partial."""
    with path.open("w", encoding="utf-8") as file:
        for one in requests:
            row = {
                "timestamp": one.arrival_s * 1e3,
                "input_length": one.prompt_tokens,
                "output_length": one.output_tokens,
                "hash_ids": list(one.content),
            }
            file.write(json.dumps(row) + "\n")
    return {"path": str(path), "format": "mooncake"}


def around(mean: float, count: int) -> list[int]:
    """Return whole lengths, all equal or neighbours, whose mean is the nearest possible to the given one."""
    low = int(mean)
    longer = round((mean - low) * count)
    return [low + 1] * longer + [low] * (count - longer)
