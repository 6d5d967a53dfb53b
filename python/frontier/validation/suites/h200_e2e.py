"""`h200-e2e`: Llama-2-7B on one H200 (c1) and on two, prefill and decode apart (c3), request by request.

c1 is the control of c3: the same engine under the same load, so that what is wrong there too is not a matter
of prefill and decode apart. TTFT was measured to the end of the prompt, which in c3 is on the prefill side;
`gap` of c3 is from there to the first token of the decode side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from frontier.validation.case import Case, LeftOut, Suite
from frontier.validation.suites.prefill_decode import request_times_ms
from frontier.validation.suites.reading import rows_of, statistics_ms

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from frontier.results import Result

ByRequest = Mapping[str, "NDArray[np.float64]"]
"""Milliseconds by name of a latency, one value per request in the order of the table."""

C1: Final = "h200_e2e/c1_llama2_7b_1xH200_vllm_qps2.csv"
C3: Final = "h200_e2e/c3_llama2_7b_1P1D_H200_vllm_pd_qps2.csv"
_GROUPS: Final = {C1: "c1, one GPU (control)", C3: "c3, 1P1D"}
_GPUS: Final = {C1: 1, C3: 2}
_LATENCIES: Final = ("ttft", "tpot", "e2e")
_ENGINE: Final = {
    "version": "0.11",  # measured: a fork of 0.10.2; neither schedules asynchronously
    "dtype": "float16",
    "max_num_seqs": 64,
    "max_num_batched_tokens": 16384,
    "block_size": 16,
    "max_model_len": 4096,
    "enable_chunked_prefill": False,
    "enable_prefix_caching": False,
    "cuda_graph": {"mode": "full_decode_only", "capture_sizes": [1, 2, 4, *range(8, 65, 8)]},
}


def _cases(data: Path, _scratch: Path) -> Iterator[Case | LeftOut]:
    for table, group in _GROUPS.items():
        apart, gpus = table == C3, _GPUS[table]
        rows = rows_of(data / table)
        arrival_s = np.array([float(row["arrival_rel_s"]) for row in rows])
        tokens = sum(int(row["decode_tokens"]) for row in rows)
        times = measured_ms(rows, apart=apart)
        span_s = float((arrival_s + times["e2e"] / 1e3).max() - arrival_s.min())
        yield Case(
            group=group,
            name=f"{len(rows)} requests",
            scenario=_scenario(data / table, apart=apart),
            measured={**_statistics(times), "output_tok_s_gpu": tokens / span_s / gpus},
            read=_reader(gpus, apart=apart),
            facts={"gpus": gpus},
        )


def _scenario(table: Path, *, apart: bool) -> dict[str, Any]:
    """Return the scenario of c1 or (apart) c3: arrivals and lengths of the table's own requests."""
    columns = {
        "arrival": "arrival_rel_s",
        "prompt_tokens": "prefill_tokens",
        "output_tokens": "decode_tokens",
    }
    trace = {"path": str(table), "format": "plain", "columns": columns, "time_unit": "s"}
    scenario: dict[str, Any] = {
        "model": "llama-2-7b",
        "hardware": "h200",
        "engine": _ENGINE,
        "workload": {"trace": trace},
    }
    if apart:
        scenario["clusters"] = [{"role": "prefill"}, {"role": "decode"}]
        scenario["disaggregation"] = {"kv_transfer": {"mode": "buffer"}}
        scenario["network"] = {"share_nodes": True}
    return scenario


def measured_ms(rows: list[dict[str, str]], *, apart: bool) -> ByRequest:
    """Return the measured latencies of the rows of a table; `apart`: with the gap."""
    found = {name: np.array([float(row[f"{name}_ms"]) for row in rows]) for name in _LATENCIES}
    if apart:
        decoded = np.array([int(row["decode_tokens"]) - 1 for row in rows])
        found["gap"] = found["e2e"] - found["ttft"] - found["tpot"] * decoded
    return found


def simulated_ms(result: Result, *, apart: bool) -> ByRequest:
    """Return the same of a run."""
    times = request_times_ms(result)
    found = {
        "ttft": times["ready"],
        "tpot": (times["last"] - times["first"]) / (times["output"] - 1),
        "e2e": times["last"],
    }
    if apart:
        found["gap"] = times["first"] - times["ready"]
    return found


def _statistics(times: ByRequest) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, values in times.items():
        found |= statistics_ms(name, values / 1e3)
    return found


def _reader(gpus: int, *, apart: bool) -> Callable[[Result], dict[str, float]]:
    def read(result: Result) -> dict[str, float]:
        requests = result.columns.requests
        span_s = float(requests["finished_ns"].max() - requests["arrival_ns"].min()) / 1e9
        tokens = float(requests["generated_tokens"].sum())
        return {
            **_statistics(simulated_ms(result, apart=apart)),
            "output_tok_s_gpu": tokens / span_s / gpus,
        }

    return read


H200_E2E: Final = Suite(
    name="h200-e2e",
    title="Llama-2-7B on one H200 and 1P1D on two, vLLM 0.10.2, 100 requests of 2,048 + 256 tokens, 2/s",
    source="NetX-lab/Frontier, fixtures of its end-to-end gate (github.com, MIT)",
    files=(C1, C3),
    cases=_cases,
    assumptions=(
        "vLLM's rules are those of 0.11; measured was a fork of 0.10.2 with the P2P NCCL connector",
        "KV of c3 goes over NVLink as the GPU's data sheet has it, after the prefill and as a whole; the"
        " connector sends it layer by layer",
        "TTFT of c3 is to the end of the prompt on the prefill side, as it was measured",
        "the gap of c3 is what E2E leaves beside TTFT and TPOT x (output - 1)",
        "throughput is output tokens from the first arrival to the last token; arrivals, not the engine, make"
        " most of it",
    ),
)
"""Nothing is fitted to its rows."""
