"""Errors of a suite: one row per case and metric, and statistics over groups."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from frontier.errors import FrontierError
from frontier.validation.case import LeftOut, Suite
from frontier.validation.statistics import errors_of

if TYPE_CHECKING:
    import polars as pl

ALL: Final = "all"
"""Name of the group of all cases."""
_GROUP_HEADER: Final = (
    "group", "metric", "cases", "mean", "median", "p90", "largest", "bias", "rank", "ordered",
)  # fmt: skip


class Report:
    """What came of a suite.

    Attributes:
        suite: the suite.
        left_out: measured runs that were not simulated, with reasons.
    """

    def __init__(self, suite: Suite, rows: Sequence[dict[str, Any]], left_out: tuple[LeftOut, ...]) -> None:
        """Take one row per case and metric."""
        self.suite = suite
        self.left_out = left_out
        self._rows = list(rows)

    @cached_property
    def points(self) -> pl.DataFrame:
        """One row per case and metric: measured, simulated, relative error, and what the times rest on.

        Columns: `suite`, `group`, `case`, `choice`, `metric` (its unit ends its name), `measured`,
        `simulated`, `error` (simulated / measured - 1), `NAME_error` of other simulators, the shares of GPU
        time by provenance (`share_measured`, `share_interpolated`, ...), and facts of the case.
        """
        import polars as pl  # noqa: PLC0415 - slow to import

        return pl.DataFrame(self._rows, infer_schema_length=None)

    @cached_property
    def groups(self) -> pl.DataFrame:
        """One row per group and metric, then those of all cases, with the fields of `statistics.Errors`."""
        import polars as pl  # noqa: PLC0415 - slow to import

        return pl.DataFrame(self._statistics(), infer_schema_length=None)

    def _statistics(self) -> list[dict[str, Any]]:
        members: dict[tuple[str, str], list[dict[str, Any]]] = {}
        names = dict.fromkeys(row["group"] for row in self._rows)
        metrics = dict.fromkeys(row["metric"] for row in self._rows)
        for row in self._rows:
            members.setdefault((row["group"], row["metric"]), []).append(row)
            if len(names) > 1:
                members.setdefault((ALL, row["metric"]), []).append(row)
        found = []
        for group in (*names, ALL):
            for metric in metrics:
                if rows := members.get((group, metric)):
                    errors = errors_of(
                        [row["measured"] for row in rows],
                        [row["simulated"] for row in rows],
                        [row["choice"] for row in rows],
                    )
                    found.append({"group": group, "metric": metric, **asdict(errors)})
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "suite": self.suite.name,
            "points": self._rows,
            "groups": self._statistics(),
            "left_out": [asdict(one) for one in self.left_out],
        }

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Return the header and the rows of the statistics as text."""
        rows = []
        for one in self._statistics():
            rank = "" if one["spearman"] is None else f"{one['spearman']:.2f}"
            ordered = "" if one["ordered"] is None else f"{one['ordered']:.0%} of {one['pairs']:,}"
            errors = (_percent(one[name]) for name in ("mean", "median", "p90", "largest"))
            rows.append(
                (
                    one["group"],
                    one["metric"],
                    f"{one['cases']:,}",
                    *errors,
                    f"{one['bias']:+.1%}",
                    rank,
                    ordered,
                )
            )
        return _GROUP_HEADER, rows

    def reasons(self) -> dict[str, int]:
        """Return how many measured runs were left out for each reason."""
        counts: dict[str, int] = {}
        for one in self.left_out:
            counts[one.reason] = counts.get(one.reason, 0) + 1
        return counts

    def to_markdown(self) -> str:
        """Return the report as text: statistics, every point, and what was left out."""
        suite = self.suite
        lines = [f"# {suite.name}: {suite.title}", "", f"Source: {suite.source}", ""]
        lines += [f"- {assumption}" for assumption in suite.assumptions]
        header, rows = self.table()
        lines += ["", "Errors are simulated / measured - 1.", "", *_markdown(header, rows)]
        others = sorted({name for row in self._rows for name in row if name.endswith("_error")})
        columns = ("group", "case", "metric", "measured", "simulated", "error", *others)
        cells = [
            tuple(
                ""
                if row.get(name) is None
                else f"{row[name]:+.1%}"
                if name.endswith("error")
                else f"{row[name]:,.4g}"
                if isinstance(row[name], float)
                else str(row[name])
                for name in columns
            )
            for row in self._rows
        ]
        lines += ["", "## Points", "", *_markdown(columns, cells)]
        if self.left_out:
            lines += ["", "## Left out", ""]
            lines += [f"- {count:,}: {reason}" for reason, count in self.reasons().items()]
        return "\n".join(lines) + "\n"

    def write(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write `points.csv`, `groups.csv`, `report.md` and `report.json` to a folder; return their paths.

        Raises:
            FrontierError: they cannot be written.
        """
        target = Path(folder)
        texts = {
            "points.csv": self.points.write_csv(),
            "groups.csv": self.groups.write_csv(),
            "report.md": self.to_markdown(),
            "report.json": json.dumps(self.to_dict(), indent=1) + "\n",
        }
        try:
            target.mkdir(parents=True, exist_ok=True)
            for name, text in texts.items():
                (target / name).write_text(text, "utf-8")
        except OSError as error:
            raise FrontierError(f"the report cannot be written to {target}: {error.strerror}") from None
        return [target / name for name in texts]


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return lines + ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows]
