"""`gptoss-h200`: gpt-oss-120b on one H200 under closed loops of 1 to 256 clients.

Runs of one number of clients and of requests are repeats, of which the mean is taken; how far they lie apart
is what no simulation could beat. Their lengths are equal from repeat to repeat, as is their TTFT, though all
prompts of a run would fit in the KV cache: nothing was found in a prefix cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from frontier.validation.case import Case, LeftOut, Suite
from frontier.validation.suites.reading import rows_of

if TYPE_CHECKING:
    from frontier.results import Result

_POINTS: Final = "points/gptoss120b_h200.csv"
_COLUMNS: Final = {
    "output_tok_s": "output_tok_s",
    "ttft_mean_ms": "ttft_ms_mean",
    "tpot_mean_ms": "tpot_ms_mean",
    "e2e_mean_ms": "e2e_ms_mean",
}
_LONGEST: Final = {"isl": 8192, "osl": 1024}
"""Nominal lengths, which are the longest drawn."""
STEADY: Final = "10 or more requests per client"
SHORT: Final = "1 to 5 requests per client"


def _cases(data: Path, _scratch: Path) -> Iterator[Case | LeftOut]:
    repeats: dict[tuple[int, int], list[dict[str, str]]] = {}
    for row in rows_of(data / _POINTS):
        repeats.setdefault((int(row["load_value"]), int(row["n_requests"])), []).append(row)
    for (clients, requests), rows in sorted(repeats.items()):
        values = {metric: [float(row[column]) for row in rows] for metric, column in _COLUMNS.items()}
        facts: dict[str, float | str] = {"clients": clients, "requests": requests, "repeats": len(rows)}
        if len(rows) > 1:
            facts |= {f"spread_{metric}": max(of) / min(of) - 1 for metric, of in values.items()}
        group = STEADY if requests >= 10 * clients else SHORT
        yield Case(
            group=group,
            name=f"{clients} clients, {requests} requests",
            scenario=_scenario(clients, requests, rows[0]),
            measured={metric: sum(of) / len(of) for metric, of in values.items()},
            read=_read,
            choice=group,
            facts=facts,
        )


def _scenario(clients: int, requests: int, row: dict[str, str]) -> dict[str, Any]:
    return {
        "model": "gpt-oss-120b",
        "hardware": "h200",
        "engine": {"version": "0.22", "enable_prefix_caching": False},
        "workload": {
            "synthetic": {
                "arrivals": {"closed_loop": {"concurrency": clients}},
                "num_requests": requests,
                "prompt_tokens": _lengths(row, "isl"),
                "output_tokens": _lengths(row, "osl"),
            }
        },
    }


def _lengths(row: dict[str, str], column: str) -> dict[str, Any]:
    """Return a uniform law with the nominal length as its end and the published mean of the run."""
    longest = _LONGEST[column]
    return {"uniform": {"min": max(1, round(2 * float(row[column]) - longest)), "max": longest}}


def _read(result: Result) -> dict[str, float]:
    summary = result.summary()
    return {
        "output_tok_s": summary.output_throughput,
        "ttft_mean_ms": summary.mean_ttft_s * 1e3,
        "tpot_mean_ms": summary.mean_tpot_s * 1e3,
        "e2e_mean_ms": summary.mean_e2el_s * 1e3,
    }


GPTOSS_H200: Final = Suite(
    name="gptoss-h200",
    title="gpt-oss-120b on one H200 with vLLM 0.22, 1 to 256 clients",
    source="GloriaXimingLu/inferencex-profiling (github.com, no licence file: figures with citation)",
    files=(_POINTS,),
    cases=_cases,
    assumptions=(
        "lengths are drawn uniformly up to the nominal 8192 and 1024, their means those of each run; the"
        " runs' own draws were not published (their means are under those of 0.8 to 1 times nominal)",
        "the engine's limits are the defaults of `vllm serve`, without prefix caching",
        "warm-up requests left nothing behind",
    ),
)
"""Nothing is fitted to its rows."""
