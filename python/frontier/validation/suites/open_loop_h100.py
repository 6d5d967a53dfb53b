"""`open-loop-h100`: vLLM on H100 under open load, stage by stage, with prompts that come again and again.

How the load was made (inference-perf, `shared_prefix_datagen.py` and `load_timer.py`): a fixed set of
prompts, system prompts x users, is sent round robin, so that all but the first round are in the prefix cache.
That the published mean prompt length of an experiment is the same in all its stages to the second decimal
says so too. Conversations do not grow, though the runs had a flag for them: more requests were under way than
there were users, and prompts stayed as long as they were. The "constant" rate has exponential gaps, scaled so
that a stage lasts as long as it should: arrivals that are uniform over the stage.

What was measured: the client read two lines per token from the stream, one of them empty, and took the gap
between lines for the time per output token. (E2E - TTFT) / TPOT is 2 x output + 1 in all rows, so the time
per output token is the published one times (2 x output + 1) / (output - 1). The published output lengths
count tokens of the decoded text again; what was generated is what was asked for.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from frontier.validation.case import Case, LeftOut, Suite
from frontier.validation.suites.prompts import BLOCK, Request, around, write_trace
from frontier.validation.suites.reading import LATENCIES, rows_of

if TYPE_CHECKING:
    from frontier.results import Result

_POINTS: Final = "points/inference_sim_training_h100.csv"
_MODELS: Final = {
    "meta-llama/Llama-2-7b-hf": "llama-2-7b",
    "meta-llama/Llama-2-70b-hf": "llama-2-70b",
    "mistralai/Mixtral-8x7B-v0.1": "mixtral-8x7b",
    "codellama/CodeLlama-34b-Instruct-hf": "codellama-34b",
}
_VERSION: Final = "0.15"
_PAUSE_S: Final = 30.0
"""Between stages: long enough for the last requests to end, as the load generator waits for them."""
_CLIENT_TIMEOUT: Final = "300s"
"""Of aiohttp, whose default the load generator keeps."""
_OVERLOADED: Final = "reasoning"
STEADY: Final = "steady"
OVERLOADED: Final = "overloaded"
_NUMBER: Final = r"(\d+)"
_STATISTICS: Final = {"mean": "mean", "median": "p50", "p90": "p90", "p99": "p99"}


class _Row:
    """One stage of an experiment, as a row describes it."""

    def __init__(self, row: Mapping[str, str]) -> None:
        notes = row["notes"]
        self.row = row

        def number(name: str) -> int:
            found = re.search(name + _NUMBER, notes)
            assert found, f"{name} is not in '{notes}'"
            return int(found.group(1))

        experiment = re.search(r"exp=(\S+)", notes)
        assert experiment, notes
        self.experiment = experiment.group(1)
        self.workload = self.experiment.rsplit("-", 1)[1]
        self.stage, self.duration_s = number("stage="), float(number("dur="))
        self.system, self.question, self.output = number(" sys="), number(" q="), number(" out=")
        self.groups, self.users = number("n_sys="), number("users/sys=")
        self.failures = number("failures=")
        self.limits = {
            name: number(f"{name}=") for name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len")
        }
        self.rate = float(row["load_value"])
        self.arrivals = int(self.rate * self.duration_s)

    def measured(self) -> dict[str, float]:
        """Return what was measured, with times per output token instead of times between lines."""
        per_token = (2 * self.output + 1) / (self.output - 1)
        found = {
            f"{name}_{statistic}_ms": float(self.row[f"{name}_ms_{column}"]) * scale
            for name, scale in (("ttft", 1.0), ("tpot", per_token), ("e2e", 1.0))
            for statistic, column in _STATISTICS.items()
            if self.row.get(f"{name}_ms_{column}")
        }
        if self.workload == _OVERLOADED:
            found["throughput_req_s"] = float(self.row["req_per_s"])
        return found


def _cases(data: Path, scratch: Path) -> Iterator[Case | LeftOut]:
    experiments: dict[str, list[_Row]] = {}
    for row in sorted(map(_Row, rows_of(data / _POINTS)), key=lambda row: (row.experiment, row.stage)):
        experiments.setdefault(row.experiment, []).append(row)
    for stages in experiments.values():
        for row in stages:
            model = _MODELS[row.row["model"]]
            deployment = f"{model} TP{row.row['tp']}"
            path = scratch / f"{row.experiment}-{row.stage}.csv"
            scenario: dict[str, Any] = {
                "model": model,
                "hardware": "h100",
                "engine": {
                    "version": _VERSION,
                    "tensor_parallel_size": int(row.row["tp"]),
                    "enable_prefix_caching": True,
                    **row.limits,
                },
                "workload": {"trace": write_trace(path, requests_of(stages[: stages.index(row) + 1]))},
            }
            group, earlier = STEADY, sum(before.arrivals for before in stages if before.stage < row.stage)
            if row.workload == _OVERLOADED:
                group = OVERLOADED
                scenario["admission"] = {"timeout": _CLIENT_TIMEOUT}
            yield Case(
                group=group,
                name=f"{deployment} {row.workload} at {row.rate:g} req/s",
                scenario=scenario,
                measured=row.measured(),
                read=_reader(earlier, tuple(row.measured())),
                choice=f"{row.workload} at {row.rate:g} req/s",
                facts={"requests": row.arrivals, "measured_failures": row.failures},
            )


def requests_of(stages: list[_Row]) -> Iterator[Request]:
    """Return the requests of the first stages of an experiment."""
    first = stages[0]
    count = first.groups * first.users
    lengths = around(float(first.row["isl"]), count)
    # The system prompt has grown with the rest when text became tokens again.
    shared = round(first.system * float(first.row["isl"]) / (first.system + first.question))
    contents = []
    for prompt, tokens in enumerate(lengths):
        group = prompt % first.groups
        own = range((first.groups + prompt) * 10_000, (first.groups + prompt + 1) * 10_000)
        common = range(group * 10_000, group * 10_000 + shared // BLOCK)
        contents.append([*common, *own[: tokens // BLOCK - len(common)]])
    starts = accumulate((row.duration_s + _PAUSE_S for row in stages), initial=0.0)
    number = 0
    for row, start in zip(stages, starts, strict=False):
        stream = random.Random(f"{row.experiment} {row.stage}")
        for offset in sorted(stream.uniform(0, row.duration_s) for _ in range(row.arrivals)):
            prompt = number % count
            yield Request(start + offset, lengths[prompt], row.output, contents[prompt])
            number += 1


def _reader(earlier: int, metrics: tuple[str, ...]) -> Callable[[Result], dict[str, float]]:
    """Return what reads a run's last stage: requests from a number on that came to their end."""

    def read(result: Result) -> dict[str, float]:
        requests = result.requests
        mine = requests.filter((requests["request"] >= earlier) & (requests["status"] == "finished"))
        span_s = float(mine["finished_s"].max()) - float(mine["arrival_s"].min())  # type: ignore[arg-type]
        found = {"throughput_req_s": len(mine) / span_s}
        for name, column in LATENCIES.items():
            values = mine[column].drop_nulls().to_numpy() * 1e3
            for statistic, at in (("mean", None), ("median", 50), ("p90", 90), ("p99", 99)):
                found[f"{name}_{statistic}_ms"] = float(
                    values.mean() if at is None else np.percentile(values, at)
                )
        return {name: found[name] for name in metrics}

    return read


OPEN_LOOP_H100: Final = Suite(
    name="open-loop-h100",
    title="24 stages of vLLM on H100 under open load, 4 of them overloaded",
    source="inference-sim/training (github.com, no licence file: figures with citation)",
    files=(_POINTS,),
    cases=_cases,
    assumptions=(
        f"vLLM {_VERSION}: the runs name a fork of February 2026, without a version",
        "all outputs have the length asked for; prompts of one experiment differ by one token at most",
        "requests of the overloaded stages end after 300 s, the client's default, and count as failed",
        "times of the client and of the API server are not simulated; TTFT was measured at the client",
        "TPOT is also the mean of the gaps between tokens (ITL)",
        "BLIS publishes no figures per row; over a larger pool of the same family its mean and median errors"
        " are 9.1 and 6.8 % (E2E), 19.5 and 18.4 % (TTFT), 9.8 and 6.5 % (ITL)",
    ),
)
"""Nothing is fitted to its rows."""
