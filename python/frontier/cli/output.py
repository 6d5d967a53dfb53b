"""Printing: tables, JSON documents, quantities with units.

Text is plain; on a terminal, a run's summary and progress bar go through rich. There are no colours where
there is no terminal or NO_COLOR is set.
"""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from frontier.results import Summary

GIB = 2**30


def console(*, stderr: bool = False) -> Console:
    """Return rich's console for the current standard output or error."""
    from rich.console import Console  # noqa: PLC0415 - slow to import

    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def width() -> int:
    """Return the columns to write in: those of the terminal, 80 where there is none, 100 at most."""
    return min(shutil.get_terminal_size((80, 24)).columns, 100) if sys.stdout.isatty() else 80


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> None:
    """Print a table without lines; all but the first `left` columns are right-aligned."""
    cells = [tuple(columns), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for number, row in enumerate(cells):
        padded = [
            cell.ljust(wide) if index < left else cell.rjust(wide)
            for index, (cell, wide) in enumerate(zip(row, widths, strict=True))
        ]
        click.secho("  ".join(padded).rstrip(), bold=not number)


def print_facts(rows: Iterable[tuple[str, str]]) -> None:
    """Print names and values side by side; long values wrap."""
    listed = list(rows)
    indent = max(len(name) for name, _ in listed) + 2
    for name, value in listed:
        for number, line in enumerate(value.split("\n")):
            start = name.ljust(indent) if not number else " " * indent
            click.echo(_wrap(line, start, " " * indent))


def print_summary(summary: Summary) -> None:
    """Print the summary of a run: through rich on a terminal, else as plain text."""
    if sys.stdout.isatty():
        console().print(summary)
    else:
        print_text(str(summary))


def print_text(text: str) -> None:
    """Print text, each line of it wrapped on its own."""
    for line in text.split("\n"):
        click.echo(_wrap(line, "", "  "))


def _wrap(line: str, first: str, rest: str) -> str:
    if len(first) + len(line) <= width():
        return first + line
    wrapper = textwrap.TextWrapper(width(), first, rest, break_long_words=False, break_on_hyphens=False)
    return wrapper.fill(line)


def print_json(document: Any) -> None:
    """Print one JSON document on the standard output."""
    click.echo(json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False))


def parameters(count: int) -> str:
    """Return a number of parameters in three or four digits: `8.03 B`, `1.03 T`."""
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if count >= scale:
            return f"{_digits(count / scale)} {unit}"
    return f"{count:,}"


def size(count: float) -> str:
    """Return a size in bytes in three or four digits: `79.19 GiB`, `128 KiB`."""
    for unit, scale in (("TiB", 2**40), ("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(count) >= scale:
            return f"{_digits(count / scale)} {unit}"
    return f"{count:,} B"


def bandwidth(bytes_per_s: float | None) -> str:
    """Return a bandwidth: `3.35 TB/s`; a dash where there is none."""
    if bytes_per_s is None:
        return "-"
    unit, scale = ("TB/s", 1e12) if bytes_per_s >= 1e12 else ("GB/s", 1e9)
    return f"{bytes_per_s / scale:.4g} {unit}"


def teraflops(flops_per_s: float | None) -> str:
    """Return a compute rate in TFLOP/s without its unit, a dash where there is none."""
    return "-" if flops_per_s is None else f"{flops_per_s / 1e12:,.0f}"


def _digits(value: float) -> str:
    if value == round(value):
        return f"{value:,.0f}"
    return f"{value:.2f}" if value < 100 else f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"
