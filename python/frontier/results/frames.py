"""Columns of a run as polars frames, with seconds, words and nulls in place of nanoseconds, codes and -1."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from frontier.results.attribution import RAW_KINDS
from frontier.results.columns import (
    FINISHED,
    GRAPH_MODES,
    NEVER,
    NONE_U32,
    REJECT_REASONS,
    STATUSES,
    TIMELINE_GAUGES,
    WIDE_STEP_COLUMNS,
    Columns,
    Ints,
)
from frontier.results.measure import latencies_s
from frontier.results.statistics import NS_PER_S
from frontier.results.tokens import TokenRuns
from frontier.results.transfers import flight_ns, wait_ns

_STAMPS = ("arrival", "scheduled", "first_token", "finished")
_TRANSFER_STAMPS = ("ready", "start", "end")


def requests_frame(columns: Columns, runs: TokenRuns, models: tuple[str, ...] = ()) -> pl.DataFrame:
    """Return one row per request; see `Result.requests`. `models` are the names of several models."""
    requests = columns.requests
    finished = requests["status"] == FINISHED
    latencies = latencies_s(columns)
    series = [
        pl.Series("request", np.arange(len(finished), dtype=np.uint32)),
        _words("status", requests["status"], STATUSES),
        _words("reject_reason", requests["reject_reason"], REJECT_REASONS, null_code=0),
        *((_words("model", requests["model"], models),) if models else ()),
        *_places(columns, requests["replica"]),
        _or_null("session", requests["session"], requests["session"] != NONE_U32),
        *(
            pl.Series(name, requests[name])
            for name in (
                "priority",
                *(("encoder_tokens",) if bool(requests["encoder_tokens"].any()) else ()),
                "prompt_tokens",
                "output_tokens",
                "generated_tokens",
                "cached_tokens",
                "preemptions",
                *(("attempts",) if bool((requests["attempts"] > 1).any()) else ()),
                "num_drafts",
                "draft_tokens",
                "accepted_tokens",
            )
        ),
        *(_seconds(f"{stamp}_s", requests[f"{stamp}_ns"]) for stamp in _STAMPS),
        *(
            _or_null(f"{key}_s", latencies[key], ~np.isnan(latencies[key]))
            for key in ("ttft", "tpot", "e2el", "engine_ttft")
        ),
        _seconds("max_itl_s", runs.max_gap_ns),
        *(
            _or_null(f"{kind}_{cause}_s", requests[f"{raw_kind}_{cause}_ns"] / NS_PER_S, finished)
            for kind, raw_kind in RAW_KINDS.items()
            for cause in columns.causes
        ),
        *(
            _or_null(f"{stamp}_ns", requests[f"{stamp}_ns"], requests[f"{stamp}_ns"] != NEVER)
            for stamp in _STAMPS
        ),
    ]
    return pl.DataFrame(series)


def steps_frame(columns: Columns) -> pl.DataFrame:
    """Return one row per step: replica, number within the replica, times, batch and queue."""
    per_replica = np.diff(columns.replica_offsets)
    replica: NDArray[np.uint32] = np.repeat(np.arange(len(per_replica), dtype=np.uint32), per_replica)
    step = np.arange(len(replica)) - columns.replica_offsets[:-1][replica]
    start_ns, end_ns = columns.steps["start_ns"], columns.steps["end_ns"]
    return pl.DataFrame(
        [
            *_places(columns, replica),
            pl.Series("step", step.astype(np.uint32)),
            pl.Series("start_s", start_ns / NS_PER_S),
            pl.Series("end_s", end_ns / NS_PER_S),
            pl.Series("duration_s", (end_ns - start_ns) / NS_PER_S),
            *(
                pl.Series(name, columns.steps[name])
                for name in WIDE_STEP_COLUMNS
                if not name.endswith("_ns") and name != "graph"
            ),
            _words("graph", columns.steps["graph"], GRAPH_MODES),
            pl.Series("start_ns", start_ns),
            pl.Series("end_ns", end_ns),
        ]
    )


def timeline_frame(columns: Columns) -> pl.DataFrame:
    """Return one row per sample and replica: time, gauges, share of KV blocks, counters since the start."""
    timeline = columns.timeline
    blocks = np.maximum(columns.usable_blocks_of_engine, 1)[timeline["replica"]]
    return pl.DataFrame(
        [
            pl.Series("time_s", timeline["time_ns"] / NS_PER_S),
            *_places(columns, timeline["replica"]),
            *(pl.Series(name, timeline[name]) for name in TIMELINE_GAUGES),
            pl.Series("kv_use", timeline["used_blocks"] / blocks),
            *(pl.Series(name, timeline[name]) for name in ("prompt_tokens", "output_tokens", "finished")),
            pl.Series("preemptions", timeline["preemptions"]),
            pl.Series("busy_s", timeline["busy_ns"] / NS_PER_S),
            pl.Series("used_block_s", timeline["used_block_ns"] / NS_PER_S),
            pl.Series("flops", timeline["flops"]),
            pl.Series("bytes", timeline["bytes"]),
            pl.Series("active_s", timeline["active_s"]),
            pl.Series("time_ns", timeline["time_ns"]),
        ]
    )


def transfers_frame(columns: Columns) -> pl.DataFrame:
    """Return one row per hand-over of KV; see `Result.transfers`."""
    transfers = columns.transfers
    return pl.DataFrame(
        [
            pl.Series("request", transfers["request"]),
            *_places(columns, transfers["source"], "source_"),
            *_places(columns, transfers["destination"], "destination_"),
            *(_seconds(f"{stamp}_s", transfers[f"{stamp}_ns"]) for stamp in _TRANSFER_STAMPS),
            _seconds("wait_s", wait_ns(columns)),
            _seconds("flight_s", flight_ns(columns)),
            pl.Series("bytes", transfers["bytes"]),
            *(
                _or_null(f"{stamp}_ns", transfers[f"{stamp}_ns"], transfers[f"{stamp}_ns"] != NEVER)
                for stamp in _TRANSFER_STAMPS
            ),
        ]
    )


def _places(columns: Columns, engine: NDArray[np.uint32], prefix: str = "") -> list[pl.Series]:
    """Return where engines are: cluster (only where there are several), replica there, data parallel rank."""
    known = engine != NONE_U32
    at = np.where(known, engine, 0)
    replica, rank = columns.place_of_engine
    series = [
        _or_null(f"{prefix}replica", replica.astype(np.uint32)[at], known),
        _or_null(f"{prefix}dp_rank", rank.astype(np.uint32)[at], known),
    ]
    if len(columns.clusters) == 1:
        return series
    enum = pl.Enum([cluster.name for cluster in columns.clusters])
    number = _or_null("number", columns.cluster_of_engine.astype(np.uint32)[at], known)
    names = pl.Series(f"{prefix}cluster", enum.categories, dtype=enum)
    return [names.gather(number), *series]


def _or_null(name: str, values: NDArray[np.generic], known: NDArray[np.bool_]) -> pl.Series:
    frame = pl.DataFrame([pl.Series("values", values), pl.Series("known", known)])
    return frame.select(pl.when("known").then("values").alias(name)).to_series()


def _seconds(name: str, time_ns: Ints) -> pl.Series:
    return _or_null(name, time_ns / NS_PER_S, time_ns != NEVER)


def _words(
    name: str, codes: NDArray[np.unsignedinteger], words: tuple[str, ...], null_code: int | None = None
) -> pl.Series:
    """Return codes as an Enum of words; `null_code` becomes null and is no word of the Enum."""
    known = [None if code == null_code else word for code, word in enumerate(words)]
    enum = pl.Enum([word for word in known if word is not None])
    return pl.Series(name, known, dtype=enum).gather(pl.Series(codes))
