"""`pdd-h200`: gpt-oss-120b on H200 with SGLang and NIXL on one node, 1P1D to 3P1D of TP2 workers.

The benchmark sent 500 requests without a warm-up. Every run sent the same 500 prompts (their mean length is
the same to the third decimal in all), to servers with a prefix cache, so all but a server's first run may
have found them there. Which one was a server's first is not recorded: prompts that fit in the cache are
simulated both ways, as two groups.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from frontier.validation.case import Case, LeftOut, Suite
from frontier.validation.suites.prefill_decode import mean_latencies_ms
from frontier.validation.suites.reading import rows_of

if TYPE_CHECKING:
    from frontier.results import Result

_POINTS: Final = "points/dstack.csv"
_REQUESTS: Final = 500
GPUS_PER_WORKER: Final = 2
STOPPED_TOKENS: Final = 28
"""Mean output of requests that end by themselves. The same prompts were run with three limits: mean outputs
of 62 of 128, 690 of 2,048 and 11,500 of 32,784 tokens are those of a mixture in which a third goes on to the
limit and the others stop after some 28 tokens (24 to 33, solved for each deployment from its first two
limits)."""
CACHEABLE_PROMPT: Final = 2048
"""500 prompts of this length fit in the prefix cache of a prefill worker (75 GB), those of 32,784 do not."""
NEW: Final = "prompts new"
CACHED: Final = "prompts cached"
LONG: Final = "prompts of 32784"


def _cases(data: Path, _scratch: Path) -> Iterator[Case | LeftOut]:
    for row in rows_of(data / _POINTS):
        if "pd_ratio" not in row["source"]:
            continue
        prefill, decode = (int(n) for n in re.findall(r"(\d+)[PD]\(TP2\)", row["parallelism"]))
        prompt, limit = (int(n) for n in re.findall(r"SL(\d+)", row["notes"])[:2])
        clients, requests, mean = int(row["load_value"]), int(row["n_requests"]), float(row["osl"])
        load = f"{prompt}/{limit} C{clients}"
        name = f"{prefill}P{decode}D {load}"
        groups = {NEW: False, CACHED: True} if prompt <= CACHEABLE_PROMPT else {LONG: False}
        if mean <= STOPPED_TOKENS or requests < _REQUESTS:
            reason = f"{requests} of {_REQUESTS} requests, {mean:g} output tokens of {limit}: the run failed"
            yield LeftOut(next(iter(groups)), name, reason)
            continue
        gpus = GPUS_PER_WORKER * (prefill + decode)
        for group, cached in groups.items():
            lengths = _prompts(prompt, cached=cached) | {"output_tokens": two_kinds(mean, limit)}
            load_section = {
                "arrivals": {"closed_loop": {"concurrency": clients}},
                "num_requests": requests,
                **lengths,
            }
            yield Case(
                group=group,
                name=name,
                scenario=_scenario(prefill, decode, load_section, cached=cached),
                measured={
                    "ttft_mean_ms": float(row["ttft_ms_mean"]),
                    "tpot_mean_ms": float(row["tpot_ms_mean"]),
                    "output_tok_s_gpu": float(row["output_tok_s"]) / gpus,
                },
                read=_reader(gpus),
                choice=f"{load}, {group}",
                facts={"gpus": gpus, "clients": clients},
            )


def two_kinds(mean: float, limit: int) -> dict[str, Any]:
    """Return output lengths of this mean: some requests stop early, the others go on to the limit."""
    going_on = (mean - STOPPED_TOKENS) / (limit - STOPPED_TOKENS)
    edges = [1, 2 * STOPPED_TOKENS - 1, limit - 1, limit]
    return {"histogram": {"edges": edges, "weights": [1 - going_on, 0, going_on]}}


def _prompts(length: int, *, cached: bool) -> dict[str, Any]:
    """Return prompts of one length; if cached, all but their last 16 tokens are (after the first)."""
    if not cached:
        return {"prompt_tokens": length}
    return {"prompt_tokens": 16, "shared_prefix": {"count": 1, "tokens": length - 16}}


def _scenario(prefill: int, decode: int, load: dict[str, Any], *, cached: bool) -> dict[str, Any]:
    # Kernels are vLLM's: with the packs' MXFP4 kernel of SGLang, a step of 32 requests takes 21 ms (measured
    # with prompts of up to 2,048: 7 to 12).
    engine = {
        "name": "sglang",
        "version": "0.5.3",
        "tensor_parallel_size": GPUS_PER_WORKER,
        "step_time": {"learned": {"backend": "vllm"}},
    }
    return {
        "model": "gpt-oss-120b",
        "hardware": "h200",
        "engine": engine,
        "clusters": [
            {
                "role": "prefill",
                "replicas": prefill,
                "engine": {"sglang": {"disable_radix_cache": not cached}},
            },
            {"role": "decode", "replicas": decode},
        ],
        "network": {"share_nodes": True},
        "workload": {"synthetic": load},
    }


def _reader(gpus: int) -> Callable[[Result], dict[str, float]]:
    def read(result: Result) -> dict[str, float]:
        return {
            **mean_latencies_ms(result, "decode"),
            "output_tok_s_gpu": result.summary().output_throughput / gpus,
        }

    return read


PDD_H200: Final = Suite(
    name="pdd-h200",
    title="gpt-oss-120b on 4 to 8 H200, SGLang, 1P1D, 1P3D, 2P2D and 3P1D of TP2 workers",
    source="dstackai/benchmarks, pd_ratio (github.com, Apache-2.0)",
    files=(_POINTS,),
    cases=_cases,
    assumptions=(
        "SGLang's rules are those of 0.5.3; the image was `latest` of the day",
        "prompts that fit in the prefix cache are simulated new and, all but their last 16 tokens, cached:"
        " which runs found them there is not recorded",
        "outputs are of two kinds, as the means of three limits say: some 28 tokens, or up to the limit;"
        " their mean is that of each run",
        "kernels are vLLM's: the packs' only MXFP4 kernel of SGLang is far slower than what was measured",
        "no time in HTTP, tokeniser and proxy",
    ),
)
"""Nothing is fitted to its latencies and throughputs."""
