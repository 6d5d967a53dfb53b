"""The result of one run: columns as they came from the simulator, and views of them."""

from __future__ import annotations

import copy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from frontier.errors import ConfigError, FrontierError, InvariantError, Issue
from frontier.results import store
from frontier.results.attribution import Attribution, attribute
from frontier.results.by_model import check_models
from frontier.results.checks import check_all
from frontier.results.clusters import ClusterColumns
from frontier.results.columns import FINISHED, Columns
from frontier.results.facts import RunFacts
from frontier.results.kv_tiers import KvTier
from frontier.results.measure import measure
from frontier.results.statistics import Sample
from frontier.results.summary import Summary
from frontier.results.tokens import TokenRuns
from frontier.results.trust import Trust
from frontier.results.window import Window, resolve_window

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

    import polars as pl
    from numpy.typing import NDArray

    from frontier.results.interval import Interval

_OTHER_WINDOW = "summary(warmup=..., cooldown=...) measures another window"


class Result:
    """What a simulation found out.

    `requests`, `steps`, `timeline` and `transfers` are polars frames, built when first asked for; `columns`
    holds the numpy columns they are made of, read-only. `summary()` gives the metrics of a measurement window
    and `attribution()` where latency goes. All figures carry `step_time`, the way step times were made.
    """

    def __init__(self, raw: Mapping[str, Any], facts: RunFacts, *, check: bool = True) -> None:
        """Take the columns of a run and the facts of its scenario.

        Args:
            raw: what `frontier._frontier.simulate` returned.
            facts: what the columns do not say.
            check: run the conservation checks (`Result.check`).

        Raises:
            InvariantError: the columns have the wrong shape, or contradict each other or the facts.
        """
        self.columns = Columns.from_raw(raw)
        self.facts = facts
        if facts.step_time != self.columns.step_time:
            raise InvariantError(
                f"the facts say that step times are '{facts.step_time}', the run says "
                f"'{self.columns.step_time}'"
            )
        known = [cluster.name for cluster in facts.clusters]
        if known and known != [cluster.name for cluster in self.columns.clusters]:
            found = ", ".join(cluster.name for cluster in self.columns.clusters)
            raise InvariantError(f"the facts are of clusters {', '.join(known)}, the run is of {found}")
        if check:
            self.check()

    def check(self) -> None:
        """Check the conservation laws: every request ends one way, causes, tokens and counters add up.

        Raises:
            InvariantError: naming the first request and the law it breaks.
        """
        check_models(self.columns, self.facts)
        runs = check_all(self.columns, [pool.max_model_len for pool in self.facts.gpu_pools])
        self.__dict__.setdefault("token_runs", runs)  # which would only be ordered once more

    @property
    def totals(self) -> Mapping[str, Any]:
        """Totals of the run: `digest`, `end_ns`, `num_events`, `num_steps`, `replicas`, ..."""
        return self.columns.totals

    @property
    def digest(self) -> str:
        """The event digest: equal for equal scenarios, on any machine and number of threads."""
        return str(self.totals["digest"])

    @property
    def step_time(self) -> str:
        """How step times were made: "learned", "roofline", "linear" or "tables".

        Those of clusters that differ are joined: "learned+roofline".
        """
        return self.facts.step_time

    @property
    def trust(self) -> Trust:
        """What step times rest on, over the whole run: GPU time by provenance, and what lay outside.

        Empty for linear step times, which know no operators; all unmeasured for a roofline.
        """
        return self.columns.trust

    @property
    def clusters(self) -> tuple[ClusterColumns, ...]:
        """The clusters in the order of the plan: engines, KV blocks, step times, trust and tiers of each."""
        return self.columns.clusters

    @property
    def kv_tiers(self) -> tuple[KvTier, ...]:
        """What the tiers of KV found and moved over the whole run, the device first; empty without tiers.

        Tiers of one name are put together over clusters; `clusters` has those of each.
        """
        return self.columns.kv_tiers

    @property
    def decision_log(self) -> str | None:
        """The scheduler's decisions as JSON lines, None unless the plan asked for them.

        Scenarios have no such setting: the log serves the comparison with logs of the real scheduler.
        """
        return self.columns.decision_log

    @property
    def scenario(self) -> dict[str, Any]:
        """The scenario that was run, as plain values which `frontier.simulate` takes; a copy."""
        return copy.deepcopy(dict(self.facts.scenario))

    @cached_property
    def token_runs(self) -> TokenRuns:
        """When each token was emitted, as runs of steps."""
        return TokenRuns.from_columns(self.columns)

    @cached_property
    def requests(self) -> pl.DataFrame:
        """One row per request issued, in order of issue: every time stamp, latencies, counts and causes.

        Times are seconds (`*_s`, with exact nanoseconds in `*_ns` for the stamps) and null where they never
        happened; `max_itl_s` is null below two tokens, causes are null unless the request finished. With
        several clusters, `cluster` names the one that makes the tokens, and `replica` counts within it; with
        several models, `model` names the one that was asked for.
        """
        from frontier.results.frames import requests_frame  # noqa: PLC0415 - polars is slow to import

        return requests_frame(self.columns, self.token_runs, self.facts.models)

    @cached_property
    def steps(self) -> pl.DataFrame:
        """One row per engine step, by replica, data parallel rank and time.

        Dummy steps of ranks without work have none; `totals` counts them.

        Raises:
            FrontierError: the run did not record its steps.
        """
        from frontier.results.frames import steps_frame  # noqa: PLC0415 - polars is slow to import

        if not self.columns.steps_recorded:
            raise FrontierError(
                "steps were not recorded; set output.steps to true in the scenario "
                "(`--set output.steps=true` on the command line) and run it again"
            )
        return steps_frame(self.columns)

    @cached_property
    def timeline(self) -> pl.DataFrame:
        """Gauges and counters of each replica and data parallel rank, sampled in time.

        Stretches in which all replicas are idle carry no rows. Counters run from the start of the run.
        The work of ranks in lock step is divided among them equally.
        """
        from frontier.results.frames import timeline_frame  # noqa: PLC0415 - polars is slow to import

        return timeline_frame(self.columns)

    @cached_property
    def transfers(self) -> pl.DataFrame:
        """One row per hand-over of KV between clusters: from where to where, when, how much.

        `ready_s` is when the source was done, `start_s` when the first byte left, `end_s` when the last one
        was there; `wait_s` is start - ready (0 where KV moved before its prompt was done) and `flight_s` is
        end - start. Without rows in a run of one cluster.
        """
        from frontier.results.frames import transfers_frame  # noqa: PLC0415 - polars is slow to import

        return transfers_frame(self.columns)

    def inter_token_gaps(self, requests: NDArray[np.bool_] | None = None) -> Sample:
        """Return the exact multiset of gaps between consecutive tokens, in nanoseconds.

        Args:
            requests: boolean mask over the rows of `requests`; default all, unfinished ones included.
        """
        if requests is not None:
            requests = np.asarray(requests)
            if requests.dtype != np.bool_ or requests.shape != self.columns.requests["status"].shape:
                count = len(self.columns.requests["status"])
                raise ValueError(
                    f"requests was {requests.dtype} of shape {requests.shape}, must be {count} booleans"
                )
        return self.token_runs.gaps(requests)

    def window(
        self,
        warmup: float | str | None = None,
        cooldown: float | str | None = None,
        start: float | None = None,
        end: float | None = None,
    ) -> Window:
        """Return the measurement window that `summary` would use for these arguments."""
        for cut, value, edge, instead in (
            ("warmup", warmup, "start", start),
            ("cooldown", cooldown, "end", end),
        ):
            if value is not None and instead is not None:
                message = f"was given together with {edge}, which replaces it; give one of them"
                raise ConfigError(Issue(cut, value, message), source="measurement window")
        return resolve_window(
            self.totals["end_ns"],
            warmup=self.facts.warmup if warmup is None else warmup,
            cooldown=self.facts.cooldown if cooldown is None else cooldown,
            start=start,
            end=end,
        )

    def window_problem(self) -> str | None:
        """Return why the window of the scenario cannot be measured, None if it can.

        A warm-up and a cool-down that looked right beforehand may leave nothing of a run that was short; then
        `summary` and `attribution` need other values.
        """
        try:
            self.window()
        except ConfigError as error:
            return str(error)
        return None

    def summary(
        self,
        warmup: float | str | None = None,
        cooldown: float | str | None = None,
        start: float | None = None,
        end: float | None = None,
    ) -> Summary:
        """Return the metrics of a measurement window, by default that of the scenario.

        Latencies describe requests that arrived in the window and finished (at any time); throughput counts
        tokens emitted and requests completed in it; utilisation takes the counters of the time line at its
        edges.

        Args:
            warmup: what to leave out at the start: seconds, a duration such as "30s", or a share of the run
                such as "10%".
            cooldown: the same at the end.
            start: start of the window in seconds of simulated time; replaces `warmup`.
            end: its end, at most the end of the run; replaces `cooldown`.

        Raises:
            ConfigError: the window is empty, lies outside the run, or one of its edges is given twice.
        """
        if warmup is cooldown is start is end is None:
            return self._default_summary
        return measure(self.columns, self.token_runs, self.facts, self.window(warmup, cooldown, start, end))

    @cached_property
    def _default_summary(self) -> Summary:
        return measure(self.columns, self.token_runs, self.facts, self.window())

    def attribution(
        self,
        kind: str = "ttft",
        q: float | None = None,
        *,
        warmup: float | str | None = None,
        cooldown: float | str | None = None,
        start: float | None = None,
        end: float | None = None,
    ) -> Attribution:
        """Return where latency goes: mean seconds per cause of the requests that `summary` measures.

        Args:
            kind: "ttft" or "e2el" ("e2e" is another name of the latter).
            q: only the requests around this percentile (0 to 100) of the latency: those whose rank lies
                within 2.5 points of it.
            warmup: as for `summary`; so are `cooldown`, `start` and `end`.
            cooldown: see `warmup`.
            start: see `warmup`.
            end: see `warmup`.

        Raises:
            ConfigError: an argument is out of range.
        """
        requests = self.columns.requests
        arrived = self.window(warmup, cooldown, start, end).holds(requests["arrival_ns"])
        measured = arrived & (requests["status"] == FINISHED)
        return attribute(self.columns, measured, kind, q, self.step_time)

    def interval(
        self, metric: str, level: float = 0.9, replications: int = 32, threads: int | None = None
    ) -> Interval:
        """Return where a metric would lie, given what the learned predictors are known to get wrong.

        Runs the scenario again, once as it is (to see that it is the same run) and `replications` times with
        one error per operator drawn from the hold-out residuals of its predictor. `Interval` says what that
        covers and what not. Equal for equal scenarios and arguments, with any number of threads.

        Args:
            metric: a figure of `summary()`, such as "p99_ttft_s", or another way to say it ("ttft_p99").
            level: probability that one more replication would lie inside.
            replications: how many runs with errors; at least 2 / (1 - level) - 1.
            threads: worker threads, by default as many as there are processors.

        Raises:
            ConfigError: an argument is not valid, or step times are not learned.
            FrontierError: the metric is not known, or the scenario no longer gives this result (its
                predictors, its trace or frontier itself have changed).
        """
        from frontier.results.interval import interval  # noqa: PLC0415 - only where it is asked for

        return interval(self, metric, level=level, replications=replications, threads=threads)

    def save(self, path: str | PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the result to a directory: one Parquet file per table and `result.json`.

        The directory appears whole or not at all. `Result.load` reads it back exactly.

        Args:
            path: the directory to make; its parent must exist.
            overwrite: replace a result saved there before.

        Returns:
            The directory.

        Raises:
            FrontierError: something is there already, or the parent is missing.
        """
        return store.save(Path(path), self.columns, self.facts, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | PathLike[str], *, check: bool = True) -> Result:
        """Read a result that `save` wrote.

        Args:
            path: the directory.
            check: run the conservation checks, as for a new result.

        Raises:
            FrontierError: the directory is no saved result, is of another schema version, or is damaged.
            InvariantError: the columns contradict each other.
        """
        raw, facts = store.load(Path(path))
        return cls(raw, facts, check=check)

    def __repr__(self) -> str:
        status = self.columns.requests["status"]
        return (
            f"Result({len(status):,} requests, {int((status == FINISHED).sum()):,} finished, "
            f"{self.totals['end_ns'] / 1e9:,.6g} s simulated, {self._replicas}, "
            f"step time: {self.step_time}, digest {self.digest})"
        )

    @property
    def _replicas(self) -> str:
        clusters = self.columns.clusters
        parts = []
        for cluster in clusters:
            ranks = cluster.data_parallel_size
            part = f"{cluster.replicas:,}" + (f" of {ranks} data parallel ranks" if ranks > 1 else "")
            parts.append(part if len(clusters) == 1 else f"{cluster.name} {part}")
        return f"replicas: {', '.join(parts)}"

    def _repr_html_(self) -> str:
        from frontier.results.html import result_html  # noqa: PLC0415 - only needed in notebooks

        problem = self.window_problem()
        shown = self.summary() if problem is None else f"{problem}\n{_OTHER_WINDOW}"
        return result_html(shown, self.facts.scenario, self.digest, head=repr(self))
