"""Summaries for the terminal: plain text for `print`, renderables for rich."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from frontier.results import layout

if TYPE_CHECKING:
    from rich.console import Group

_STYLES = {"stable": "green", "saturated": "bold red", "too short to tell": "yellow"}


def summary_text(summary: Mapping[str, Any]) -> str:
    """Return the summary as plain text of at most about 100 columns."""
    blocks = [[layout.title(summary), layout.window_line(summary), *_trust_lines(summary)]]
    blocks += [_table([header, *rows]) for header, rows in layout.latency_tables(summary)]
    for section in layout.sections(summary):
        width = max(len(label) for label, _ in section.rows)
        blocks.append([section.title, *(f"  {label:<{width}}  {value:>16}" for label, value in section.rows)])
    blocks.append(layout.attribution_lines(summary))
    blocks.append([f"saturation: {summary['saturation']} ({summary['saturation_reason']})"])
    blocks.append([f"warning: {warning}" for warning in summary["warnings"]])
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _trust_lines(summary: Mapping[str, Any]) -> list[str]:
    line = layout.trust_line(summary)
    return [line] if line else []


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [
            first.ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)),
        ]
        lines.append("  ".join(cells))
    return lines


def summary_rich(summary: Mapping[str, Any]) -> Group:
    """Return the summary for rich: a latency table, the other metrics side by side, the verdict."""
    from rich.columns import Columns  # noqa: PLC0415 - rich is slow to import
    from rich.console import Group  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    latencies = []
    for header, rows in layout.latency_tables(summary):
        latency = Table(box=None, pad_edge=False, padding=(0, 1))
        for index, name in enumerate(header):
            latency.add_column(name, justify="right" if index else "left", no_wrap=True)
        for row in rows:
            latency.add_row(*map(Text, row))
        latencies.append(latency)
    tables = []
    for section in layout.sections(summary):
        table = Table(
            box=None, title=section.title, title_justify="left", title_style="bold", show_header=False
        )
        table.add_column(no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        for label, value in section.rows:
            table.add_row(Text(label), Text(value))
        tables.append(table)
    verdict = Text.assemble(
        "saturation: ",
        (summary["saturation"], _STYLES[summary["saturation"]]),
        f" ({summary['saturation_reason']})",
    )
    return Group(
        Text(layout.title(summary), style="bold"),
        Text(layout.window_line(summary), style="dim"),
        *(Text(line, style="dim") for line in _trust_lines(summary)),
        *latencies,
        Columns(tables),
        *map(Text, layout.attribution_lines(summary)),
        verdict,
        *(Text(f"warning: {warning}", style="yellow") for warning in summary["warnings"]),
    )
