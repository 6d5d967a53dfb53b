"""`trtllm-throughput`: the most output tokens per second of TensorRT-LLM, all requests queued at once.

What stands in for what: the scheduler is TensorRT-LLM's (`engine.scheduler.tensorrt_llm`), so are the size of
KV blocks and the share of the free memory that the KV cache takes. Kernels, the host's part of a step, CUDA
graphs, and how much memory weights and activations need are vLLM's.

The rows of version 1 note that models with experts run attention data parallel. Those of 1.2 call that DEP;
those of 1.0 say TP alone, and are simulated as the note says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from frontier.config import Scenario
from frontier.errors import FrontierError
from frontier.validation.case import Case, LeftOut, Suite
from frontier.validation.suites.reading import rows_of

if TYPE_CHECKING:
    from frontier.results import Result

_POINTS: Final = "points/trtllm.csv"
_GPUS: Final = {
    "A100-SXM-80GB": "a100-80gb",
    "H100-SXM-80GB": "h100",
    "H200-SXM-141GB": "h200",
    "B200-180GB": "b200",
    "GB200-192GB": "gb200",
    "RTX PRO 6000 Blackwell": "rtx-pro-6000",
}
_MODELS: Final = {
    # Of the same shape as its successor.
    "Llama-3-70B": "llama-3.1-70b",
    "Llama-3.1-70B": "llama-3.1-70b",
    "Llama-3.3-70B": "llama-3.3-70b",
    "Llama-3.1-8B": "llama-3.1-8b",
    "Llama-3.1-405B": "llama-3.1-405b",
    "Mixtral-8x7B": "mixtral-8x7b",
    "Mixtral-8x22B": "mixtral-8x22b",
    "Qwen3-235B-A22B": "qwen3-235b-a22b",
    "Qwen3-30B-A3B": "qwen3-30b-a3b",
    "DeepSeek-R1-0528": "deepseek-r1",
    "gpt-oss-120b": "gpt-oss-120b",
    "gpt-oss-20b": "gpt-oss-20b",
}
_OWN_FORMAT: Final = ("gpt-oss-120b", "gpt-oss-20b")
"""Models that are served as their checkpoints are, whatever the row calls their precision."""
_CHECKPOINTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "fp8": {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"},
    "fp4": {
        "quant_method": "modelopt",
        "quant_algo": "NVFP4",
        "kv_cache_quant_algo": "FP8",
        "group_size": 16,
    },
}
_ATTENTION_DP: Final = ("v1.0", ("Qwen3-235B-A22B", "Qwen3-30B-A3B"))
"""Version whose TP is attention data parallel for these models."""
_TRT_ENGINES: Final = "v0.14"
_RULES: Final = "0.19"
"""vLLM whose memory rules stand in: the last that does not take CUDA graphs off the KV cache."""
_KV_SHARE: Final = 0.9
"""Of the memory left free by weights and activations, TensorRT-LLM's default."""
STATIC: Final = "static batches of v0.9, an engine without in-flight batching: another measurement"
PIPELINE: Final = "pipeline parallel, which `engine.scheduler.tensorrt_llm` does not offer"


def _cases(data: Path, _scratch: Path) -> Iterator[Case | LeftOut]:
    seen: dict[str, int] = {}
    for row in rows_of(data / _POINTS):
        version = row["engine_version"].split(" ")[0]
        group = f"{version} {row['gpu']}"
        lengths = f"{row['isl']}/{row['osl']}"
        deployment = f"{row['model']} {row['precision']} {row['parallelism']}"
        name = f"{deployment} {lengths}"
        seen[group + name] = seen.get(group + name, 0) + 1
        if seen[group + name] > 1:
            name += f" (again, {seen[group + name]})"
        if row["load_kind"] == "static batch":
            yield LeftOut(group, name, STATIC)
            continue
        if row["model"] not in _MODELS:
            yield LeftOut(group, name, f"no preset of {row['model']}")
            continue
        if int(row["pp"] or 1) > 1:
            yield LeftOut(group, name, PIPELINE)
            continue
        scenario = scenario_of(row)
        try:
            blocks = kv_blocks(scenario)
        except FrontierError as error:
            yield LeftOut(group, name, f"refused: {error}")
            continue
        scenario["engine"]["num_gpu_blocks_override"] = blocks
        yield Case(
            group=group,
            name=name,
            scenario=scenario,
            measured={"output_tok_s": float(row["output_tok_s"])},
            read=_read,
            choice=f"{group} {row['model']} {row['precision']} {lengths}",
            facts={
                "model": row["model"],
                "precision": row["precision"],
                "parallelism": row["parallelism"],
                "lengths": lengths,
                "kv_tokens": blocks * scenario["engine"]["block_size"],
            },
        )


def scenario_of(row: Mapping[str, str]) -> dict[str, Any]:
    """Return the scenario of a row, without the size of its KV cache."""
    preset = _MODELS[row["model"]]
    model: dict[str, Any] = {"config": preset}
    engine: dict[str, Any] = {
        "version": _RULES,
        "block_size": 64 if row["engine_version"].startswith(_TRT_ENGINES) else 32,
        "max_model_len": int(row["isl"]) + int(row["osl"]),
        "scheduler": {
            "tensorrt_llm": {
                "enable_block_reuse": False,
                "enable_chunked_context": True,
            }
        },
    }
    if row["precision"] == "fp16":
        engine["dtype"] = "float16"
    elif row["model"] not in _OWN_FORMAT and not (preset == "deepseek-r1" and row["precision"] == "fp8"):
        model["quantization_config"] = dict(_CHECKPOINTS[row["precision"]])
    version, models = _ATTENTION_DP
    ranks = re.match(r"(DEP|TP)(\d+)", row["parallelism"])
    assert ranks, row["parallelism"]
    data_parallel = ranks[1] == "DEP" or (
        row["engine_version"].startswith(version) and row["model"] in models and ranks[2] != "1"
    )
    if data_parallel:
        engine |= {"data_parallel_size": int(ranks[2]), "enable_expert_parallel": True}
    else:
        engine["tensor_parallel_size"] = int(ranks[2])
    return {
        "model": model,
        "hardware": _GPUS[row["gpu"]],
        "engine": engine,
        "workload": {
            "synthetic": {
                "arrivals": {"burst": {}},
                "num_requests": int(row["n_requests"]),
                "prompt_tokens": int(row["isl"]),
                "output_tokens": int(row["osl"]),
            }
        },
    }


def kv_blocks(scenario: Mapping[str, Any]) -> int:
    """Return the blocks that TensorRT-LLM would have: a share of what weights and activations leave free.

    Raises:
        FrontierError: nothing is left, or the deployment is refused for another reason.
    """
    whole = {**scenario, "engine": {**scenario["engine"], "gpu_memory_utilization": 1.0}}
    return max(2, int(_KV_SHARE * Scenario.from_dict(whole).resolve().num_blocks))


def _read(result: Result) -> dict[str, float]:
    requests = result.requests
    done = requests.filter(requests["status"] == "finished")
    if len(done) < len(requests):
        reasons = requests["reject_reason"].drop_nulls().unique().to_list()
        why = ", ".join(map(str, reasons)) or "unfinished"
        raise FrontierError(f"{len(requests) - len(done)} of {len(requests)} requests did not end: {why}")
    span_s = float(done["finished_s"].max()) - float(done["arrival_s"].min())  # type: ignore[arg-type]
    return {"output_tok_s": float(done["generated_tokens"].sum()) / span_s}


TRTLLM_THROUGHPUT: Final = Suite(
    name="trtllm-throughput",
    title="offline throughput of TensorRT-LLM 0.14, 1.0 and 1.2 on six kinds of GPU",
    source="NVIDIA/TensorRT-LLM, performance overview (Apache-2.0)",
    files=(_POINTS,),
    cases=_cases,
    assumptions=(
        "the scheduler is TensorRT-LLM's with its default limits (2,048 requests, 8,192 tokens a step),"
        " prompts in chunks, as trtllm-bench asks for; the limits of each row were not published",
        "kernels and the host's part of a step are vLLM's",
        f"KV cache: {_KV_SHARE:.0%} of what weights and activations leave free, by vLLM {_RULES}'s estimate"
        " of both; blocks of 64 tokens (v0.14) and 32 (later)",
        "fp8 and fp4 are ModelOpt checkpoints with an FP8 KV cache; gpt-oss and FP8 DeepSeek as published",
        "v1.0 rows of Qwen3 with more than one GPU have attention data parallel, as they note; 1.2 says DEP",
        "experts receive equal shares of the tokens on average",
    ),
)
"""Nothing is fitted to its rows."""
