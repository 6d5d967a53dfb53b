"""`inferencex-slo`: large models on 8 H200, exact lengths, closed loops of 4 to 64 clients.

How the load was made (InferenceX, `experimental/token_position_decode_slo`): one server stays up while runs
with longer and longer prompts, and of each length with more and more clients, follow one another. The client
draws its prompts from a fixed seed, and the server keeps prefixes: prompt i of a run is prompt i of every
run, longer or shorter. So each run finds what the runs before it have left in the KV cache. The table says so
too: with twice the clients and the first half of the prompts known, half of the rounds take next to no time.

A case therefore has the runs that the table has before it, as far back as any cache could hold them, with one
token of output each; then requests too short to be cached, after which all clients send at once again; then
the warm-up, which sends the first prompt twice per client; and then the run that was measured, of which alone
the metrics are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from frontier.validation.case import Case, LeftOut, Suite
from frontier.validation.suites.prompts import LONG_BLOCK, Request, write_long_trace
from frontier.validation.suites.reading import LATENCIES, rows_of

if TYPE_CHECKING:
    from frontier.results import Result

_POINTS: Final = "points/inferencex_slo.csv"
_MODELS: Final = {"zai-org/GLM-5-FP8": "glm-5-fp8", "MiniMaxAI/MiniMax-M2.5": "minimax-m2"}
_ACCEPTANCE: Final = 0.85
_ENGINES: Final[Mapping[str, Mapping[str, Any]]] = {
    "zai-org/GLM-5-FP8 tp8": {
        "tensor_parallel_size": 8,
        "speculative": {"method": "mtp", "num_speculative_tokens": 1, "acceptance": _ACCEPTANCE},
    },
    "MiniMaxAI/MiniMax-M2.5 tep8": {"tensor_parallel_size": 8, "enable_expert_parallel": True},
    "MiniMaxAI/MiniMax-M2.5 dep8": {"data_parallel_size": 8, "enable_expert_parallel": True},
}
_VERSION: Final = "0.16"
_REMEMBERED_TOKENS: Final = 4_000_000
"""More than the largest KV cache of the set holds (3.2 million)."""
_SYNC: Final = 15
"""Prompt tokens of requests that leave nothing in the cache: less than a block of it."""
_SYNC_ROUNDS: Final = 4
_NOBODY: Final = 10**9
_STATISTICS: Final = {"median": 50, "p99": 99}


@dataclass(frozen=True, slots=True)
class _Run:
    prompt: int
    output: int
    clients: int
    requests: int

    @classmethod
    def of(cls, row: Mapping[str, str]) -> _Run:
        return cls(*(int(row[name]) for name in ("isl", "osl", "load_value", "n_requests")))


def _cases(data: Path, scratch: Path) -> Iterator[Case | LeftOut]:
    before: dict[str, list[_Run]] = {}
    for row in sorted(rows_of(data / _POINTS), key=lambda row: row["date"]):
        run, server = _Run.of(row), f"{row['model']} {row['parallelism']}"
        name = f"{run.prompt}/{run.output} {run.clients} clients"
        if server not in _ENGINES:
            yield LeftOut(server, name, f"{row['model']} has linear attention, which is not modelled")
            continue
        earlier = before.setdefault(server, [])
        requests = requests_of(run, earlier)
        earlier.append(run)
        path = scratch / f"{server.replace('/', '-')}-{run.prompt}-{run.clients}.jsonl"
        trace = write_long_trace(path, requests)
        yield Case(
            group=server,
            name=name,
            scenario={
                "model": _MODELS[row["model"]],
                "hardware": "h200",
                "engine": {"version": _VERSION, "enable_prefix_caching": True, **_ENGINES[server]},
                "workload": {"trace": {**trace, "arrivals": {"closed_loop": {"concurrency": run.clients}}}},
            },
            measured=_measured(row),
            read=_reader(len(requests) - run.requests),
            choice=f"{row['model']} {run.prompt}/{run.output}",
            facts={"clients": run.clients, "prompt_tokens": run.prompt},
        )


def requests_of(run: _Run, earlier: Sequence[_Run]) -> list[Request]:
    """Return what the server has had before a run, what brings clients together, the warm-up, and the run."""
    kept: list[_Run] = []
    tokens = 0
    for one in reversed(earlier):
        if tokens >= _REMEMBERED_TOKENS:
            break
        kept.append(one)
        tokens += one.requests * one.prompt
    found = [_request(number, one.prompt, 1) for one in reversed(kept) for number in range(one.requests)]
    if found:
        found += [Request(0.0, _SYNC, 1, (_NOBODY,))] * (_SYNC_ROUNDS * run.clients)
    found += [_request(0, run.prompt, run.output)] * (2 * run.clients)
    return found + [_request(number, run.prompt, run.output) for number in range(run.requests)]


def _request(number: int, prompt: int, output: int) -> Request:
    """Return a request for prompt `number`; prompts of one number begin with the same content."""
    return Request(0.0, prompt, output, range(number * 1000, number * 1000 + prompt // LONG_BLOCK))


def _measured(row: Mapping[str, str]) -> dict[str, float]:
    columns = {"median": "p50", "p99": "p99"}
    found = {
        f"{name}_{statistic}_ms": float(row[f"{name}_ms_{columns[statistic]}"])
        for name in LATENCIES
        for statistic in _STATISTICS
    }
    return {**found, "output_tok_s": float(row["output_tok_s"])}


def _reader(earlier: int) -> Callable[[Result], dict[str, float]]:
    """Return what reads the requests of a run from a number on."""

    def read(result: Result) -> dict[str, float]:
        requests = result.requests
        mine = requests.filter(requests["request"] >= earlier)
        span_s = float(mine["finished_s"].max()) - float(mine["arrival_s"].min())  # type: ignore[arg-type]
        found = {"output_tok_s": float(mine["generated_tokens"].sum()) / span_s}
        for name, column in LATENCIES.items():
            values = mine[column].drop_nulls().to_numpy() * 1e3
            for statistic, at in _STATISTICS.items():
                found[f"{name}_{statistic}_ms"] = float(np.percentile(values, at))
        return found

    return read


INFERENCEX_SLO: Final = Suite(
    name="inferencex-slo",
    title="GLM-5 with MTP and MiniMax-M2.5 as TEP and DEP on 8 H200, 4 to 64 clients",
    source="SemiAnalysisAI/InferenceX, experimental/token_position_decode_slo (Apache-2.0)",
    files=(_POINTS,),
    cases=_cases,
    assumptions=(
        f"vLLM {_VERSION} for nightly builds of February 2026, defaults where the scripts give no flag",
        f"{_ACCEPTANCE:.0%} of the drafts of GLM-5's MTP layer are accepted (DeepSeek-V3's report: 85 to 90"
        " %; nothing is known of prompts without meaning, as these are)",
        "MiniMax-M2.5 has the shape of M2; experts receive equal shares of the tokens on average",
        "the KV cache is as the runs before have left it, outputs apart; prompts keep their tokens when they"
        " are cut from text; runs that failed are not in the table, though they may have filled the cache",
    ),
)
"""Nothing is fitted to its rows."""
