"""`vllm-replay`: real vLLM runs request by request, with their own arrivals, lengths and shared prefixes.

All requests sample greedily (`SamplingParams(temperature=0.0)` in LLMServingSim's `bench/core/runner.py`).
The links between GPUs are those that LLMServingSim states for the machine, which has no NVLink, as it states
them: what a message gets, with nothing taken off for protocols. The engine starts cold, as nothing was sent
before the first request; no request is left out for it, neither here nor by LLMServingSim.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, Final

import yaml

from frontier.validation.case import Case, LeftOut, Suite
from frontier.validation.suites.reading import latencies_ms, lines_of, rows_of, statistics_ms

_RUNS: Final = "vllm_runs"
_PROMPTS: Final = "../../traces/sharegpt_replay"
_GPUS: Final = {"RTX4090": "rtx-4090", "RTXPRO6000": "rtx-pro-6000"}
_MODELS: Final = {"meta-llama/Llama-3.1-8B": "llama-3.1-8b", "Qwen/Qwen3-32B": "qwen3-32b"}
_FLAGS: Final = ("tensor_parallel_size", "max_num_seqs", "max_num_batched_tokens", "max_model_len")
_OTHER: Final = "LLMServingSim"
_OTHERS_NAMES: Final = {"TTFT": "ttft", "TPOT": "tpot", "Latency": "e2e"}


def _cases(data: Path, scratch: Path) -> Iterator[Case | LeftOut]:
    for folder in sorted((data / _RUNS).iterdir()):
        if not folder.is_dir():
            continue
        gpu = _GPUS.get(folder.name.partition("-")[0])
        meta = json.loads((folder / "meta.json").read_text("utf-8"))
        if gpu is None or meta["model"] not in _MODELS:
            yield LeftOut(folder.name, folder.name, f"no preset of its GPU or of {meta['model']}")
            continue
        requests = sorted(lines_of(folder / "requests.jsonl"), key=lambda row: row["queued_ts"])
        prompts = data / _PROMPTS / f"{Path(meta['dataset_path']).stem}.csv"
        trace = scratch / f"{folder.name}.csv"
        _write_trace(trace, requests, rows_of(prompts))
        engine: dict[str, Any] = {"version": meta["vllm_version"].rpartition(".")[0], "sampling": "greedy"}
        engine |= {name: value for name in _FLAGS if (value := meta["engine_kwargs"][name]) is not None}
        if "kv_cache" in meta:
            engine["num_gpu_blocks_override"] = meta["kv_cache"]["num_gpu_blocks"]
        yield Case(
            group=folder.name,
            name="300 requests",
            scenario={
                "model": _MODELS[meta["model"]],
                "hardware": _hardware(gpu, engine["tensor_parallel_size"], folder),
                "engine": engine,
                "workload": {"trace": {"path": str(trace), "format": "sharegpt-replay"}},
            },
            measured=_measured(requests),
            read=latencies_ms,
            others={_OTHER: _other(folder / "llmservingsim_summary.txt")},
        )


def _hardware(gpu: str, gpus: int, folder: Path) -> str | dict[str, Any]:
    """Return the GPU of a run; of several, with the links of its machine."""
    if gpus == 1:
        return gpu
    stated = json.loads((folder / "llmservingsim_cluster_config.json").read_text("utf-8"))
    preset = resources.files("frontier.hardware") / "presets" / f"{gpu}.yaml"
    links = {
        "pcie_bandwidth": f"{stated['link_bw']}GB/s",
        "pcie_latency": f"{stated['link_latency']}ns",
        "link_efficiency": 1.0,
    }
    return {"gpu": {**yaml.safe_load(preset.read_text("utf-8")), **links}}


def _measured(requests: list[dict[str, Any]]) -> dict[str, float]:
    """Return what was measured; a request is there from when the engine's queue has it.

    The arrival that the client noted is on another clock (`measured-runs.md`, B.2).
    """
    several = [row for row in requests if row["output_toks"] > 1]
    return {
        **statistics_ms("ttft", [row["first_token_ts"] - row["queued_ts"] for row in requests]),
        **statistics_ms(
            "tpot",
            [(row["last_token_ts"] - row["first_token_ts"]) / (row["output_toks"] - 1) for row in several],
        ),
        **statistics_ms("e2e", [row["last_token_ts"] - row["queued_ts"] for row in requests]),
    }


def _write_trace(path: Path, requests: list[dict[str, Any]], prompts: list[dict[str, str]]) -> None:
    """Write the run's own arrivals beside the block hashes of its prompts."""
    hashes = {row["request_id"]: row["block_hash_ids_16"] for row in prompts}
    start = requests[0]["queued_ts"]
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(
            ("request_id", "arrival_s", "num_prompt_tokens", "num_output_tokens", "block_hash_ids_16")
        )
        for row in requests:
            number = row["request_id"].removeprefix("bench-")
            arrival = f"{row['queued_ts'] - start:.9f}"
            table.writerow((number, arrival, row["input_toks"], row["output_toks"], hashes[number]))


def _other(path: Path) -> dict[str, float]:
    """Return what LLMServingSim found for the same run, from its own summary."""
    found = {}
    for line in path.read_text("utf-8").splitlines():
        if match := re.match(r"(\w+) (\w+)\s+([\d.]+)\s+([\d.]+)", line):
            name, statistic, _, simulated = match.groups()
            found[f"{_OTHERS_NAMES[name]}_{statistic.lower()}_ms"] = float(simulated)
    return found


VLLM_REPLAY: Final = Suite(
    name="vllm-replay",
    title="three vLLM 0.19 runs of 300 ShareGPT requests, replayed request by request",
    source="LLMServingSim 2.0, bench/examples (github.com/casys-kaist/LLMServingSim, MIT)",
    files=(_RUNS, _PROMPTS),
    cases=_cases,
    assumptions=(
        "links of runs with several GPUs are those that LLMServingSim's configuration states for the machine,"
        " as attained (link_efficiency 1): chosen with the result in view",
        "greedy sampling, as the driver asks for",
        "a request is there from when the engine's queue has it (queued_ts): the client's clock is another",
        "the first request, which finds a cold engine, is not left out",
    ),
)
