"""`static-batch`: prompt time, time per token and E2E of single batches, as Splitwise measured them.

A batch of B equal requests arrives at once at an engine that takes B requests as one batch and runs it to its
end (`engine.scheduler.static`). Its TTFT is the prompt time, its TPOT the time per token. So the host's part
of every step is in, as it was in the measurement; the price of one step on the GPU alone would leave it out,
and with an engine that launched every kernel by itself it is most of the time.

Five or more repeats per configuration; their median is taken, since some repeats met an end token.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from frontier.validation.case import Case, LeftOut, Suite
from frontier.validation.suites.reading import rows_of

if TYPE_CHECKING:
    from frontier.results import Result

_POINTS: Final = "points/splitwise.csv"
_GPUS: Final = {"A100-80GB": "a100-80gb", "H100-80GB": "h100"}
_MODELS: Final = {"llama2-70b": "llama-2-70b"}
_COLUMNS: Final = {
    "ttft_mean_ms": "ttft_ms_mean",
    "tpot_mean_ms": "tpot_ms_mean",
    "e2e_mean_ms": "e2e_ms_mean",
}
_AGREE: Final = 0.03
"""How far E2E may lie from prompt time + time per token x (output - 1)."""
UNKNOWN: Final = "no preset: ALiBi attention and a feed-forward without a gate are not modelled"
CAPPED: Final = "GPU with a lowered power limit, of which nothing but the limit is known"
STOPPED: Final = (
    "E2E is not prompt time + time per token x (output - 1): requests met an end token, or the batch did not"
    " run as one"
)

_Key = tuple[str, str, int, int, int, int]


def _cases(data: Path, _scratch: Path) -> Iterator[Case | LeftOut]:
    repeats: dict[_Key, list[dict[str, str]]] = {}
    for row in rows_of(data / _POINTS):
        sizes = (int(row[name]) for name in ("tp", "isl", "osl", "load_value"))
        repeats.setdefault((row["model"], row["gpu"], *sizes), []).append(row)  # type: ignore[arg-type]
    for key, rows in sorted(repeats.items()):
        model, gpu, ranks, prompt, output, batch = key
        group, name = f"{model} {gpu}", f"TP{ranks} {prompt}/{output} batch {batch}"
        if gpu not in _GPUS:
            yield LeftOut(group, name, CAPPED)
            continue
        if model not in _MODELS:
            yield LeftOut(group, name, UNKNOWN)
            continue
        values = {metric: [float(row[of]) for row in rows] for metric, of in _COLUMNS.items()}
        measured = {metric: median(of) for metric, of in values.items()}
        sum_ms = measured["ttft_mean_ms"] + measured["tpot_mean_ms"] * (output - 1)
        if abs(measured["e2e_mean_ms"] / sum_ms - 1) > _AGREE:
            yield LeftOut(group, name, STOPPED)
            continue
        yield Case(
            group=group,
            name=name,
            scenario=_scenario(key),
            measured=measured,
            read=_read,
            choice=f"{model} {prompt}/{output} batch {batch}",
            facts={
                "repeats": len(rows),
                **{f"spread_{metric}": max(of) / min(of) - 1 for metric, of in values.items()},
            },
        )


def _scenario(key: _Key) -> dict[str, Any]:
    model, gpu, ranks, prompt, output, batch = key
    return {
        # Some prompts are longer than the model was trained for, which changes no time.
        "model": {"config": _MODELS[model], "max_position_embeddings": 16_384},
        "hardware": _GPUS[gpu],
        "engine": {
            "version": "0.11",
            "tensor_parallel_size": ranks,
            "enforce_eager": True,
            "scheduler": {"static": {"max_batch_size": batch}},
        },
        "workload": {
            "synthetic": {
                "arrivals": {"burst": {}},
                "num_requests": batch,
                "prompt_tokens": prompt,
                "output_tokens": output,
            }
        },
    }


def _read(result: Result) -> dict[str, float]:
    summary = result.summary()
    return {
        "ttft_mean_ms": summary.mean_ttft_s * 1e3,
        "tpot_mean_ms": summary.mean_tpot_s * 1e3,
        "e2e_mean_ms": summary.mean_e2el_s * 1e3,
    }


STATIC_BATCH: Final = Suite(
    name="static-batch",
    title="single batches of Llama-2-70B on A100 and H100, TP 2 to 8",
    source="Splitwise (ISCA 2024), perf_model.csv of Mutinifni/splitwise-sim (MIT)",
    files=(_POINTS,),
    cases=_cases,
    assumptions=(
        "vLLM of November 2023 had no CUDA graphs: every kernel is launched by itself",
        "host times and kernels are those of the oldest vLLM that is modelled, 0.11",
        "all prompts of a batch are computed in one step",
    ),
)
"""Nothing is fitted to its rows."""
