"""Accuracy as an HTML page with plots: error curves, predicted against measured, residuals over features."""

from __future__ import annotations

import html
import importlib
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frontier.errors import ConfigError, Issue
from frontier.training.bars import BARS

_MAX_POINTS = 1_500
_RESIDUAL_FEATURES = ("rows", "bound_s", "num_seqs", "kv_mean", "query_tokens", "kv_max", "max_load", "bytes")


def available() -> bool:
    """Return whether plotly is installed."""
    return importlib.util.find_spec("plotly") is not None


def _plotly() -> Any:
    try:
        go = importlib.import_module("plotly.graph_objects")  # slow, and only plots need it
    except ModuleNotFoundError as error:
        message = "plots need plotly; install it with `pip install 'frontier-sim[plot]'`"
        raise ConfigError(Issue("plotly", None, message)) from error
    return go


def write_page(reports: Iterable[Mapping[str, Any]], samples: Path, path: Path) -> Path:
    """Write the page.

    Args:
        reports: accuracy reports of packs.
        samples: folder with hold-out rows of each pack (`<pack>.npz`); packs without are left out of the
            scatter plots.
        path: file to write.

    Raises:
        ConfigError: plotly is not installed.
    """
    go = _plotly()
    reports = list(reports)
    figures = [_error_curves(go, reports)]
    for report in reports:
        rows = samples / f"{report['pack']}.npz"
        if rows.is_file():
            with np.load(rows) as arrays:
                figures += _scatters(go, report, dict(arrays))
    body = "\n".join(
        figure.to_html(
            full_html=False, include_plotlyjs="cdn" if index == 0 else False, div_id=f"figure{index}"
        )
        for index, figure in enumerate(figures)
    )
    title = html.escape("Accuracy of the operator predictors")
    path.write_text(f"<!doctype html><meta charset='utf-8'><title>{title}</title><h1>{title}</h1>\n{body}\n")
    return path


def _error_curves(go: Any, reports: list[Mapping[str, Any]]) -> Any:
    """Return the share of hold-out rows below an error, one curve for each GPU, backend and bar."""
    figure = go.Figure()
    for report in reports:
        groups: dict[tuple[str, str], list[tuple[NDArray[np.float64], int]]] = {}
        for each in report["predictors"]:
            bar = next((bar.name for bar in BARS if each["operator"] in bar.operators), None)
            if bar is not None:
                curve = np.asarray(each["error_quantiles"])
                groups.setdefault((each["backend"], bar), []).append((curve, each["rows"]))
        for (backend, bar), members in sorted(groups.items()):
            # Each quantile stands for an equal part of its predictor's rows.
            errors = np.concatenate([curve for curve, _ in members])
            weights = np.concatenate([np.full(len(curve), rows / len(curve)) for curve, rows in members])
            order = np.argsort(errors)
            share = np.cumsum(weights[order]) / weights.sum()
            name = f"{report['pack']} {backend} {bar}"
            figure.add_scatter(x=100 * errors[order], y=100 * share, mode="lines", name=name)
    figure.update_layout(
        title="Share of hold-out rows within an error",
        xaxis={"title": "|predicted / measured - 1|, %", "type": "log"},
        yaxis={"title": "rows, %"},
    )
    return figure


def _scatters(go: Any, report: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> list[Any]:
    """Return predicted against measured, and residuals over one feature, for each operator of a pack."""
    by_operator: dict[str, list[int]] = {}
    for index, each in enumerate(report["predictors"]):
        if f"{index}.predicted" in arrays:
            by_operator.setdefault(each["operator"], []).append(index)
    figures = []
    for operator, members in sorted(by_operator.items()):
        step = max(1, sum(len(arrays[f"{i}.predicted"]) for i in members) // _MAX_POINTS)
        both, residuals = go.Figure(), go.Figure()
        feature = next((n for n in _RESIDUAL_FEATURES if all(f"{i}.x.{n}" in arrays for i in members)), None)
        for i in members:
            each = report["predictors"][i]
            name = f"{each['backend']} {each['kernel']} {each['dtype']}"
            predicted, measured = arrays[f"{i}.predicted"][::step], arrays[f"{i}.measured"][::step]
            both.add_scattergl(
                x=1e6 * measured, y=1e6 * predicted, mode="markers", name=name, marker={"size": 3}
            )
            if feature is not None:
                x = arrays[f"{i}.x.{feature}"][::step]
                y = 100 * (predicted / measured - 1)
                residuals.add_scattergl(x=x, y=y, mode="markers", name=name, marker={"size": 3})
        axis = {"type": "log"}
        both.update_layout(
            title=f"{report['pack']}: {operator}, hold-out",
            xaxis={"title": "measured, us", **axis},
            yaxis={"title": "predicted, us", **axis},
        )
        figures.append(both)
        if feature is not None:
            residuals.update_layout(
                title=f"{report['pack']}: {operator}, error over {feature}",
                xaxis={"title": feature, **axis},
                yaxis={"title": "error, %"},
            )
            figures.append(residuals)
    return figures
