"""Accuracy of packs as a Markdown document, from the reports that a build leaves beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from frontier.errors import ConfigError, Issue
from frontier.predictors.select import GENERIC
from frontier.training.bars import BARS, bar_of, percent, reason, verdict

Report = Mapping[str, Any]


_MIN_ROWS = 1_000
_SPLITS = ("random", "models", "rows", "batch", "context", "left_out", "every_second")


def load_reports(folder: Path) -> list[dict[str, Any]]:
    """Read the accuracy files of a folder, the package's own packs first.

    Raises:
        ConfigError: there are none.
    """
    found = [json.loads(path.read_text()) for path in sorted((folder / "accuracy").glob("*.json"))]
    if not found:
        raise ConfigError(Issue("out", str(folder), "holds no accuracy reports; build packs first"))
    return sorted(found, key=lambda report: (report["optional"], report["gpu"] == GENERIC, report["pack"]))


def markdown(reports: Iterable[Report]) -> str:
    """Return the document."""
    reports = list(reports)
    lines = [
        "# Accuracy of the operator predictors",
        "",
        "Written by `frontier train --report`; do not edit. Errors: |predicted / measured - 1| in percent,",
        "of rows that the evaluated model has not seen; what is shipped is then trained on all rows.",
        "",
        "Some choices were made on the same held-out rows, which therefore flatter: of each predictor's two",
        "bounds by the splits of largest sizes; of the generic pack's bounds and sizes of model by GPUs held",
        "out; how much of the factor of unequal lengths is carried over (`CARRIED_OVER`) by the GPUs whose",
        "factors are then reported. Rows held out at random took no part in a choice of this build.",
        "",
        *_sizes(reports),
        *_against_bars(reports),
        *_hard_splits(reports),
        *_families(reports),
        *_identities(reports),
        *_unequal(reports),
        *_mixed(reports),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _sizes(reports: list[Report]) -> list[str]:
    rows = [
        (
            report["pack"] + (" (optional)" if report["optional"] else ""),
            str(len(report["predictors"])),
            f"{report['bytes'] / 1e3:,.0f}",
            f"{report['compressed_bytes'] / 1e3:,.0f}",
        )
        for report in reports
    ]
    own = [report for report in reports if not report["optional"]]
    rows.append(
        (
            "all of the package",
            str(sum(len(report["predictors"]) for report in own)),
            f"{sum(report['bytes'] for report in own) / 1e3:,.0f}",
            f"{sum(report['compressed_bytes'] for report in own) / 1e3:,.0f}",
        )
    )
    return ["## Packs", "", *_table(("pack", "predictors", "kB", "kB compressed"), rows), ""]


def _against_bars(reports: list[Report]) -> list[str]:
    rows = []
    for report in reports:
        for found in report["bars"]:
            bar = next(bar for bar in BARS if bar.name == found["bar"])
            rows.append(
                (
                    report["gpu"],
                    found["backend"] + (" (events)" if found["event"] else ""),
                    bar.name,
                    *_errors(found),
                    _floor(found.get("repeats")),
                    verdict(bar, found),
                    reason(bar, found),
                )
            )
    asked = "; ".join(
        f"{bar.name} p50 {percent(bar.median)}, p95 {percent(bar.p95)}"
        + ("" if bar.within is None else f", > {percent(bar.within[1])} % within {bar.within[0][7:]} %")
        for bar in BARS
    )
    return [
        "## Bars",
        "",
        f"Asked: {asked}. All number types and kernels of a backend together, random hold-out.",
        "Repeats: p50 / p95, and the shares within 6 and 10 %, of repeated rows against their own median, of",
        "the same tables and for as many rows as were repeated; no model can do better on these.",
        "",
        *_table(("GPU", "backend", "family", *_ERRORS, "repeats", "verdict", "why missed"), rows),
        "",
    ]


def _hard_splits(reports: list[Report]) -> list[str]:
    """Return the bars' families by what else was held out: medians over predictors."""
    groups: dict[tuple[str, str, str], list[Report]] = {}
    for report in reports:
        for each in report["predictors"]:
            bar = bar_of(each["operator"])
            if bar is not None and each["backend"] != GENERIC:
                backend = each["backend"] + (" (events)" if each["measurement"] == "event" else "")
                groups.setdefault((report["gpu"], backend, bar.name), []).append(each)
    rows = []
    for key, members in groups.items():
        cells = []
        for split in _HARD_SPLITS:
            found = [
                each["accuracy"]["splits"][split] for each in members if split in each["accuracy"]["splits"]
            ]
            if not found:
                cells.append("")
                continue
            middle = {name: float(np.median([each[name] for each in found])) for name in ("median", "p95")}
            cells.append(f"{_cell(middle)} ({len(found)})")
        if any(cells):
            rows.append((*key, str(len(members)), *cells))
    if not rows:
        return []
    head = ("GPU", "backend", "family", "predictors", *_HARD_SPLITS.values())
    return [
        "## Shapes and sizes held out",
        "",
        "p50 / p95 (percent), each the median over the predictors of a family, whatever their rows, and in",
        "brackets of how many. Held out: a fifth of the shapes, or sizes above a quarter of the largest.",
        "",
        *_table(head, rows),
        "",
    ]


_HARD_SPLITS = {
    "models": "models held out",
    "rows": "most rows",
    "batch": "largest batch",
    "context": "longest context",
}
_ERRORS = ("tested", "p50", "p95", "< 6 %", "< 10 %")


def _errors(found: Mapping[str, Any]) -> tuple[str, ...]:
    names = ("median", "p95", "within_6", "within_10")
    return (f"{found['tested']:,}", *(percent(found[name]) for name in names))


def _floor(floor: Mapping[str, Any] | None) -> str:
    if floor is None:
        return ""
    return f"{_cell(floor)}; {percent(floor['within_6'])}, {percent(floor['within_10'])}"


def _families(reports: list[Report]) -> list[str]:
    rows = [
        (
            report["gpu"],
            family["backend"],
            family["operator"],
            family["measurement"],
            *_errors(family),
            f"{family['bytes'] / 1e3:,.0f}",
        )
        for report in reports
        for family in report["families"]
    ]
    head = ("GPU", "backend", "family", "measured by", *_ERRORS, "kB")
    return [
        "## Families",
        "",
        "Random hold-out (20 % of distinct inputs), all number types and kernels of a backend",
        "together; of the generic pack: each GPU as other generations predict it; of collectives: each size",
        "as its neighbours predict it.",
        "",
        *_table(head, rows),
        "",
    ]


def _identities(reports: list[Report]) -> list[str]:
    rows = []
    for report in reports:
        for each in report["predictors"]:
            if each["rows"] < _MIN_ROWS:
                continue
            splits = each["accuracy"]["splits"]
            cells = [_cell(splits.get(name)) for name in _SPLITS[:5]]
            if not any(cells):
                continue
            detail = " ".join(
                f"{name}={value}"
                for name, value in sorted(each["detail"].items())
                if name in ("kv_cache_dtype", "mla", "scheme", "sms", "comm_dtype", "batched")
            )
            floor = each["accuracy"]["repeats"]
            repeats = f"{100 * floor['median']:.1f} / {100 * floor['p95']:.1f}" if floor else ""
            rows.append(
                (
                    report["gpu"],
                    f"{each['backend']} {each['version']}",
                    each["operator"],
                    f"{each['kernel']} {each['dtype']} {detail}".strip(),
                    f"{each['rows']:,}",
                    *cells,
                    repeats,
                    f"{each['bytes'] / 1e3:.0f}",
                )
            )
    head = (
        "GPU",
        "backend",
        "operator",
        "kernel",
        "rows",
        "random",
        "models held out",
        "most rows",
        "largest batch",
        "longest context",
        "repeats",
        "kB",
    )
    return [
        "## Predictors of 1,000 rows and more",
        "",
        "p50 / p95 (percent) by what was held out: rows at random; a fifth of the shapes; sizes above",
        "a quarter of the largest. The bound is the better of two for these last splits, so they flatter a",
        "little.",
        "Repeats: deviation of repeated measurements from their median, which no model can beat.",
        "",
        *_table(head, rows),
        "",
    ]


_SWEEPS = {"decode_skew": "decodes", "mixed_attention": "decodes beside a prefill"}


def _unequal(reports: list[Report]) -> list[str]:
    rows = [
        (gpu, _SWEEPS[operator], stand_in, *_errors({"tested": found["rows"], **found}))
        for report in reports
        for gpu, by_operator in report.get("unequal", {}).items()
        for operator, by_stand_in in by_operator.items()
        for stand_in, found in by_stand_in.items()
    ]
    if not rows:
        return []
    return [
        "## Batches of unequal lengths",
        "",
        "What stands for the time of a batch whose decodes differ in length: the measured time of the",
        "same batch with all of them at the mean or at the maximum, or models that see so much of the",
        "distribution (25 trees of depth 10). Only these sweeps hold such batches; the packs of other GPUs",
        "learn half of the logarithm of the factor seen here (`decode_skew`), and know nothing of how their",
        "own kernels schedule unequal batches.",
        "",
        *_table(("GPU", "batches", "stands for it", *_ERRORS), rows),
        "",
    ]


def _mixed(reports: list[Report]) -> list[str]:
    rows = []
    for report in reports:
        for origin, by_gpu in report.get("mixed", {}).items():
            for gpu, found in by_gpu.items():
                for form, each in found["figures"].items():
                    parameter = {"share": found["share"], "per head": found["per_head"]}.get(form)
                    rows.append(
                        (
                            gpu,
                            origin.replace("_", " "),
                            form,
                            "" if parameter is None else f"{parameter:.2f}",
                            f"{found['rows']:,}",
                            _cell(each),
                            percent(each["within_6"]),
                            percent(each["within_10"]),
                        )
                    )
    if not rows:
        return []
    head = ("GPU", "parameter", "form", "value", "rows", "p50 / p95", "< 6 %", "< 10 %")
    return [
        "## Prefills and decodes in one kernel",
        "",
        "From the predicted times of both parts alone. share: longer + share x shorter. per head: prefill +",
        "decode x (1 + value x (query heads per KV head - 1)). Own: fitted on the same GPU; carried over: by",
        "the others.",
        "",
        *_table(head, rows),
        "",
    ]


def _cell(figures: Mapping[str, Any] | None) -> str:
    return "" if figures is None else f"{100 * figures['median']:.1f} / {100 * figures['p95']:.1f}"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|" + " --- |" * len(head),
        *("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows),
    ]
