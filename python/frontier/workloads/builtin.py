"""Traces that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from frontier.errors import WorkloadError, nearest_name, show_value

_DATA: Final = Path(__file__).parent / "data"
_FILES: Final = {"azure-2023-conv": "azure_2023_conv.parquet"}


def builtin_traces() -> tuple[str, ...]:
    """Return the names of the built-in traces. `ATTRIBUTION.md` beside the data names the sources."""
    return tuple(_FILES)


def builtin_path(name: str) -> Path:
    """Return the file of a built-in trace."""
    if name not in _FILES:
        near = nearest_name(name, _FILES)
        hint = f"; did you mean '{near}'?" if near else ""
        raise WorkloadError(
            f"built-in trace was {show_value(name)}, must be one of {', '.join(_FILES)}{hint}", value=name
        )
    return _DATA / _FILES[name]
