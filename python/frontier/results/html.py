"""Small self-contained HTML for notebooks: no scripts, no external assets, every word escaped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from frontier.results import layout
from frontier.results.attribution import Attribution
from frontier.results.columns import ATTRIBUTION_CAUSES
from frontier.results.metrics import LATENCIES

# A qualitative palette that stays apart for colour-blind readers (Okabe and Ito), and greys.
_COLOURS = dict(
    zip(
        ATTRIBUTION_CAUSES,
        (
            "#BBBBBB",
            "#E69F00",
            "#0072B2",
            "#56B4E9",
            "#009E73",
            "#7FC8A9",
            "#F0E442",
            "#D55E00",
            "#CC79A7",
            "#999999",
            "#555555",
            "#000000",
            "#882255",
            "#AA4499",
            "#661100",
            "#117733",
        ),
        strict=True,
    )
)
_VERDICT_COLOURS = {"stable": "#009E73", "saturated": "#D55E00", "too short to tell": "#B8860B"}
_CELL = "padding:1px 10px 1px 0;border:none;background:none"


def summary_html(summary: Mapping[str, Any]) -> str:
    """Return the summary as one `<div>`."""
    latencies = "".join(_latency_table(*table) for table in layout.latency_tables(summary))
    tables = "".join(
        f'<div style="margin:0 2em .5em 0"><b>{escape(section.title)}</b>'
        f'<table style="border:none">{"".join(_row(row) for row in section.rows)}</table></div>'
        for section in layout.sections(summary)
    )
    bars = "".join(
        bar_html(f"mean {LATENCIES[key]}", summary[f"{key}_attribution_s"]) for key in ("ttft", "e2el")
    )
    verdict = summary["saturation"]
    warnings = "".join(f"<li>{escape(warning)}</li>" for warning in summary["warnings"])
    return (
        '<div style="font-variant-numeric:tabular-nums;line-height:1.4">'
        f"<div><b>{escape(layout.title(summary))}</b></div>"
        f'<div style="opacity:.7">{escape(layout.window_line(summary))}</div>'
        f'<div style="opacity:.7">{escape(layout.trust_line(summary))}</div>'
        f"{latencies}"
        f'<div style="display:flex;flex-wrap:wrap">{tables}</div>{bars}'
        f'<div>Saturation: <b style="color:{_VERDICT_COLOURS[verdict]}">{escape(verdict)}</b> '
        f"({escape(summary['saturation_reason'])})</div>"
        + (f'<ul style="color:#B8860B;margin:.3em 0">{warnings}</ul>' if warnings else "")
        + "</div>"
    )


def _latency_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(_cell(name, "th", right=index > 0) for index, name in enumerate(header))
    body = "".join(_row(row) for row in rows)
    return (
        f'<table style="border:none;margin:.5em 0"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def attribution_html(attribution: Attribution) -> str:
    """Return one attribution as a bar with its legend."""
    around = "" if attribution.q is None else f" around p{attribution.q:g}"
    name = LATENCIES[attribution.kind]
    label = f"mean {name}{around}, {attribution.num_requests:,} requests (step time: {attribution.step_time})"
    return f"<div>{bar_html(label, attribution.causes_s) or escape(label)}</div>"


def result_html(
    shown: Mapping[str, Any] | str, scenario: Mapping[str, Any], digest: str, head: str = ""
) -> str:
    """Return a summary, or what stands in its way, followed by the scenario, folded away."""
    if isinstance(shown, str):
        body = (
            f"<div><b>{escape(head)}</b></div>"
            f'<pre style="color:#B8860B;white-space:pre-wrap">{escape(shown)}</pre>'
        )
    else:
        body = summary_html(shown)
    folded = escape(json.dumps(scenario, indent=2, ensure_ascii=False, default=str))
    return (
        f"<div>{body}<details><summary>scenario (digest {escape(digest)})</summary>"
        f'<pre style="font-size:90%">{folded}</pre></details></div>'
    )


def bar_html(label: str, causes_s: Mapping[str, float]) -> str:
    """Return a stacked bar of causes with a legend; empty when there is no time to share out."""
    total = sum(causes_s.values())
    if not total > 0:
        return ""
    bar, legend = "", ""
    for cause, value in causes_s.items():
        if value <= 0:
            continue
        words = escape(f"{cause}: {layout.format_seconds(value)} ({value / total:.1%})")
        bar += f'<div title="{words}" style="width:{value / total:.4%};background:{_COLOURS[cause]}"></div>'
        legend += (
            '<span style="margin-right:1em;white-space:nowrap">'
            f'<span style="color:{_COLOURS[cause]}">&#9632;</span> {words}</span>'
        )
    return (
        f'<div style="margin:.4em 0"><div>{escape(label)}: {escape(layout.format_seconds(total))}</div>'
        f'<div style="display:flex;height:14px;max-width:720px">{bar}</div>'
        f'<div style="font-size:90%">{legend}</div></div>'
    )


def _row(cells: Sequence[str]) -> str:
    return "<tr>" + "".join(_cell(cell, "td", right=index > 0) for index, cell in enumerate(cells)) + "</tr>"


def _cell(text: str, tag: str, *, right: bool) -> str:
    return f'<{tag} style="{_CELL};text-align:{"right" if right else "left"}">{escape(text)}</{tag}>'
