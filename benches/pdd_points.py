"""Measured runs with prefill and decode apart, each as a scenario (`pdd_measured.py` compares them).

Three groups, from the folder `measured` of the reference data:

- `c3`: Llama-2-7B on two H200, 1P1D, vLLM 0.10.2 with the P2P NCCL connector, one row per request
  (NetX-lab/Frontier, fixtures of its end-to-end gate; MIT). `c1` is the same engine on one GPU, as a control.
- `dstack`: gpt-oss-120b on H200, SGLang with NIXL on one node, 1P1D to 3P1D of TP2 workers
  (dstackai/benchmarks; Apache-2.0).
- `silicon`: rows of `silicon_sample.csv` of ai-dynamo/aiconfigurator (Apache-2.0) with prefill and decode
  apart and all sizes given. `control` has rows of the same file with one co-located SGLang engine, which is
  modelled: what is wrong there too is not a matter of prefill and decode apart.

Nothing here is fitted to a measured latency or throughput. Where an engine is not modelled with prefill and
decode apart (TensorRT-LLM; SGLang with attention in data parallel, or whole experts per rank), vLLM's
scheduler stands in for its own.
"""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import frontier

STAND_IN_VERSION = "0.32"
"""vLLM's release whose rules stand in for other engines': like theirs, it schedules ahead of the GPU."""
SGLANG = {"name": "sglang", "version": "0.5.3"}
DECODE_BUDGET = 1024
"""Tokens of a step of decode workers, who get no prompts: vLLM sets memory aside for the activations of a
full budget, SGLang and TensorRT-LLM for those of what their decode servers are configured to run."""


@dataclass(frozen=True)
class Point:
    """A measured run and the scenario of it.

    Attributes:
        group: group of points that statistics are over.
        name: what was run.
        workload: rows with the same are the same load on another deployment.
        measured: `ttft_ms`, `tpot_ms` (means over requests) and, where published, `output_tok_s`.
        gpus: GPUs of all workers.
        concurrency: clients of the closed loop.
        output_tokens: mean output, for Little's law where no throughput was published.
        first_token: whose token the engine sends first: SGLang's and TensorRT-LLM's is the prefill side's.
    """

    group: str
    name: str
    workload: str
    scenario: dict[str, Any]
    measured: dict[str, float]
    gpus: int
    concurrency: int
    output_tokens: float
    first_token: str


@dataclass(frozen=True)
class Left:
    """A measured run that is not simulated, and why."""

    group: str
    name: str
    reason: str


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines))


# --- c3 -----------------------------------------------------------------------------------------------------

C3, C1 = "c3_llama2_7b_1P1D_H200_vllm_pd_qps2.csv", "c1_llama2_7b_1xH200_vllm_qps2.csv"
SIZES = [1, 2, 4, *range(8, 65, 8)]
LLAMA_ENGINE = {
    "version": "0.11",  # measured: a fork of 0.10.2; neither schedules asynchronously
    "dtype": "float16",
    "max_num_seqs": 64,
    "max_num_batched_tokens": 16384,
    "block_size": 16,
    "max_model_len": 4096,
    "enable_chunked_prefill": False,
    "enable_prefix_caching": False,
    "cuda_graph": {"mode": "full_decode_only", "capture_sizes": SIZES},
}
UPSTREAM_FIT = {"mode": "buffer", "latency": "0.664ms", "bandwidth": "263.5GB/s"}
"""The transfer constants that NetX-lab/Frontier fitted to this very run."""


def llama_scenario(table: Path, transfer: dict[str, Any] | None) -> dict[str, Any]:
    """Return the scenario of c1 (no transfer) or c3: arrivals and lengths of the table's own requests.

    A transfer without a bandwidth goes over NVLink, with what the GPU's data sheet says of it.
    """
    columns = {
        "arrival": "arrival_rel_s",
        "prompt_tokens": "prefill_tokens",
        "output_tokens": "decode_tokens",
    }
    scenario: dict[str, Any] = {
        "model": "llama-2-7b",
        "hardware": "h200",
        "engine": LLAMA_ENGINE,
        "workload": {
            "trace": {"path": str(table), "format": "plain", "columns": columns, "time_unit": "s"},
        },
    }
    if transfer is not None:
        scenario["clusters"] = [{"role": "prefill"}, {"role": "decode"}]
        scenario["disaggregation"] = {"kv_transfer": transfer}
        if "bandwidth" not in transfer:
            scenario["network"] = {"share_nodes": True}
    return scenario


# --- dstack -------------------------------------------------------------------------------------------------

STOPPED_TOKENS = 28
"""Mean output of requests that end by themselves. The same prompts were run with three limits: mean outputs
of 62 of 128, 690 of 2,048 and 11,500 of 32,784 tokens are those of a mixture in which a third goes on to the
limit and the others stop after some 28 tokens (24 to 33, solved for each deployment from its first two
limits)."""


def two_kinds(mean: float, limit: int) -> dict[str, Any]:
    """Return output lengths of this mean: some requests stop early, the others go on to the limit."""
    going_on = (mean - STOPPED_TOKENS) / (limit - STOPPED_TOKENS)
    edges = [1, 2 * STOPPED_TOKENS - 1, limit - 1, limit]
    return {"histogram": {"edges": edges, "weights": [1 - going_on, 0, going_on]}}


CACHEABLE_PROMPT = 2048
"""500 prompts of this length fit in the prefix cache of a prefill worker (75 GB), those of 32,784 do not."""


def prompts_of(isl: int, cached: bool) -> dict[str, Any]:
    """Return prompts of one length; if cached, all but their last 16 tokens are (after the first)."""
    if not cached:
        return {"prompt_tokens": isl}
    return {"prompt_tokens": 16, "shared_prefix": {"count": 1, "tokens": isl - 16}}


def dstack_points(data: Path) -> Iterator[Point | Left]:
    """Yield the runs of dstack's table; the benchmark sent 500 requests, without a warm-up.

    Every run sent the same 500 prompts (their mean length is the same to the third decimal in all), to
    servers with a prefix cache, so all but a server's first run may have found them there. Which one was a
    server's first is not recorded: prompts that fit are simulated both ways.
    """
    for row in rows_of(data / "points" / "dstack.csv"):
        if "pd_ratio" not in row["source"]:
            continue
        prefill, decode = (int(n) for n in re.findall(r"(\d+)[PD]\(TP2\)", row["parallelism"]))
        isl, limit = (int(n) for n in re.findall(r"SL(\d+)", row["notes"])[:2])
        concurrency, mean = int(row["load_value"]), float(row["osl"])
        workload = f"{isl}/{limit} C{concurrency}"
        name = f"{prefill}P{decode}D {workload}"
        if mean <= STOPPED_TOKENS or int(row["n_requests"]) < 500:
            reason = f"{row['n_requests']} of 500 requests, {mean:g} output tokens of {limit}: the run failed"
            yield Left("dstack", name, reason)
            continue
        measured = {
            "ttft_ms": float(row["ttft_ms_mean"]),
            "tpot_ms": float(row["tpot_ms_mean"]),
            "output_tok_s": float(row["output_tok_s"]),
        }
        fits = isl <= CACHEABLE_PROMPT
        groups = {"dstack, prompts new": False, "dstack, prompts cached": True}
        for group, cached in groups.items() if fits else {"dstack, ISL 32784": False}.items():
            lengths = prompts_of(isl, cached) | {"output_tokens": two_kinds(mean, limit)}
            requests = int(row["n_requests"])
            scenario = _gpt_oss(
                prefill, decode, concurrency=concurrency, requests=requests, lengths=lengths, cached=cached
            )
            yield Point(
                group=group,
                name=name,
                workload=workload,
                scenario=scenario,
                measured=measured,
                gpus=2 * (prefill + decode),
                concurrency=concurrency,
                output_tokens=mean,
                first_token="decode",
            )


def _gpt_oss(
    prefill: int, decode: int, *, concurrency: int, requests: int, lengths: dict[str, Any], cached: bool
) -> dict[str, Any]:
    # Kernels are vLLM's: with the packs' MXFP4 kernel of SGLang, a step of 32 requests takes 21 ms (measured
    # with prompts of up to 2,048: 7 to 12).
    return {
        "model": "gpt-oss-120b",
        "hardware": "h200",
        "engine": SGLANG | {"tensor_parallel_size": 2, "step_time": {"learned": {"backend": "vllm"}}},
        "clusters": [
            {
                "role": "prefill",
                "replicas": prefill,
                "engine": {"sglang": {"disable_radix_cache": not cached}},
            },
            {"role": "decode", "replicas": decode},
        ],
        "network": {"share_nodes": True},
        "workload": {
            "synthetic": {
                "arrivals": {"closed_loop": {"concurrency": concurrency}},
                "num_requests": requests,
                **lengths,
            }
        },
    }


# --- silicon ------------------------------------------------------------------------------------------------

RANGE_RATIO = 0.8
"""Of the benchmark (InferenceX): lengths are drawn from this share of the nominal one up to it."""
REQUESTS_PER_CLIENT = 10
SYSTEMS = {"h100_sxm": "h100", "h200_sxm": "h200", "b200_sxm": "b200", "gb200": "gb200"}
MODELS = {
    "deepseek-ai/DeepSeek-V3": "deepseek-v3",
    "deepseek-ai/DeepSeek-R1": "deepseek-r1",
    "Qwen/Qwen3-32B": "qwen3-32b",
}
FP8_BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
"""As a checkpoint says it; SGLang has no option that converts weights so."""
GPUS_PER_HOST = {"gb200": 4}
NVL72_GPUS = 72


@dataclass(frozen=True)
class _Role:
    workers: int
    tp: int
    dp: int
    ep: int
    batch: int

    @property
    def gpus(self) -> int:
        return self.workers * self.tp * self.dp

    def __str__(self) -> str:
        kind = f"DEP{self.dp}" if self.dp > 1 and self.ep > 1 else f"DP{self.dp}" if self.dp > 1 else ""
        kind = kind or (f"TEP{self.tp}" if self.ep > 1 else f"TP{self.tp}")
        return f"{self.workers}x{kind}"


def _role(row: dict[str, str], role: str) -> _Role | None:
    names = ("num_workers", "tp_size", "attention_dp_size", "moe_ep_size", "batch_size", "pp_size")
    values = [row[f"{role}_{name}"] for name in names]
    return _Role(*(int(value) for value in values[:5])) if all(values) else None


def _hardware(gpu: str) -> Any:
    """Return a GPU; GB200 as in an NVL72, where NVLink spans 18 nodes of 4."""
    if gpu != "gb200":
        return gpu
    preset = Path(frontier.__file__).parent / "hardware" / "presets" / "gb200.yaml"
    return {"gpu": yaml.safe_load(preset.read_text()) | {"gpus_per_node": NVL72_GPUS}}


def _cluster(name: str, role: _Role, gpus_per_host: int) -> dict[str, Any]:
    """Return a cluster; experts over more than one host are reached by DeepEP, others by gathering tokens."""
    engine: dict[str, Any] = {"tensor_parallel_size": role.tp, "data_parallel_size": role.dp}
    if name == "decode":
        engine["max_num_batched_tokens"] = DECODE_BUDGET
    if role.ep > 1:
        engine["enable_expert_parallel"] = True
        if role.dp > 1 and role.tp * role.dp > gpus_per_host:
            kind = "high_throughput" if name == "prefill" else "low_latency"
            engine["moe"] = {"all2all_backend": f"deepep_{kind}"}
    return {"role": name, "replicas": role.workers, "engine": engine}


def silicon_points(data: Path) -> Iterator[Point | Left]:
    """Yield the rows with prefill and decode apart whose sizes are all given."""
    for row in rows_of(data / "points" / "silicon_open.csv"):
        roles = {name: _role(row, name) for name in ("prefill", "decode")}
        prefill, decode = roles["prefill"], roles["decode"]
        if row["mode"] != "disagg" or prefill is None or decode is None:
            continue
        known = re.search(r"silicon_concurrency=(\d+)", row["silicon_data_source"])
        # Where both are given, the decode batch is the concurrency over the ranks that decode, in every row.
        spread = decode.batch * decode.workers * decode.dp
        concurrency = int(known.group(1)) if known else spread
        isl, osl = int(row["isl"]), int(row["osl"])
        model = row["model_path"].split("/")[-1]
        workload = f"{model} {row['gemm_quant_mode']} {isl}/{osl} C{concurrency}"
        name = f"{row['system']} {row['backend']} {prefill}+{decode} {workload}"
        group = f"silicon {SYSTEMS.get(row['system'], row['system'])} {row['backend']}"
        if row["system"] not in SYSTEMS:
            yield Left(group, name, f"no preset of {row['system']}, nor measured operators")
            continue
        if row["gemm_quant_mode"] == "nvfp4":
            yield Left(group, name, "NVFP4 checkpoint: no preset of it, and no NVFP4 kernels in the packs")
            continue
        if not known:
            group = "silicon, concurrency not recorded"
        gpu = SYSTEMS[row["system"]]
        engine: dict[str, Any] = {
            "version": STAND_IN_VERSION,
            "enable_prefix_caching": False,
            "max_model_len": isl + osl + 256,
        }
        if row["gemm_quant_mode"] == "fp8_block":
            engine["quantization"] = "fp8_per_block"
        if row["backend"] == "sglang":
            engine["step_time"] = {"learned": {"backend": "sglang"}}
        own = row["backend"] == "sglang" and all(role.dp == 1 and role.ep == 1 for role in (prefill, decode))
        host = GPUS_PER_HOST.get(gpu, 8)
        scenario = {
            "model": MODELS[row["model_path"]],
            "hardware": _hardware(gpu),
            "engine": engine,
            "clusters": [_cluster("prefill", prefill, host), _cluster("decode", decode, host)],
            "disaggregation": {"kv_transfer": {"mode": "pull"}},
            "network": {"share_nodes": gpu == "gb200"},
            "workload": _inferencex(isl, osl, concurrency),
        }
        if own:
            scenario |= _of_sglang(engine, prefill, decode)
            if "quantization" in engine:
                scenario["model"] = {"config": MODELS[row["model_path"]], "quantization_config": FP8_BLOCKS}
        yield Point(
            group=group,
            name=name,
            workload=workload,
            scenario=scenario,
            measured=_silicon_measured(row),
            gpus=prefill.gpus + decode.gpus,
            concurrency=concurrency,
            output_tokens=(1 + RANGE_RATIO) / 2 * osl,
            first_token="decode" if row["backend"] == "vllm" or own else "prefill",
        )


def _of_sglang(engine: dict[str, Any], prefill: _Role, decode: _Role) -> dict[str, Any]:
    """Return the sections of SGLang's own servers, whose layers are tensor parallel alone."""
    kept = {"step_time": engine["step_time"]}
    sglang = {"disable_radix_cache": True, "context_length": engine["max_model_len"]}
    clusters = [
        {"role": name, "replicas": role.workers, "engine": {"tensor_parallel_size": role.tp}}
        for name, role in (("prefill", prefill), ("decode", decode))
    ]
    return {"engine": SGLANG | kept | {"sglang": sglang}, "clusters": clusters, "disaggregation": {}}


def _inferencex(isl: int, osl: int, concurrency: int) -> dict[str, Any]:
    lengths = [{"uniform": {"min": int(RANGE_RATIO * most), "max": most}} for most in (isl, osl)]
    return {
        "synthetic": {
            "arrivals": {"closed_loop": {"concurrency": concurrency}},
            "num_requests": REQUESTS_PER_CLIENT * concurrency,
            "prompt_tokens": lengths[0],
            "output_tokens": lengths[1],
        }
    }


def _silicon_measured(row: dict[str, str]) -> dict[str, float]:
    return {"ttft_ms": float(row["silicon_ttft_ms"]), "tpot_ms": float(row["silicon_tpot_ms"])}


def control_points(data: Path) -> Iterator[Point]:
    """Yield co-located DeepSeek FP8 on 8 H200 or B200 (SGLang, TP8), 1,024 tokens of output; each once."""
    seen = set()
    for row in rows_of(data / "points" / "silicon_open.csv"):
        gpu = SYSTEMS.get(row["system"])
        known = re.search(r"silicon_concurrency=(\d+)", row["silicon_data_source"])
        sizes = (row["tp_size"], row["pp_size"], row["attention_dp_size"], row["moe_tp_size"], row["osl"])
        if (
            row["mode"] != "agg"
            or row["backend"] != "sglang"
            or gpu not in ("h200", "b200")
            or row["model_path"] not in MODELS
            or not row["gemm_quant_mode"].startswith("fp8")
            or sizes != ("8", "1", "1", "8", "1024")
            or known is None
            or (row["silicon_ttft_ms"], row["silicon_tpot_ms"]) in seen
        ):
            continue
        seen.add((row["silicon_ttft_ms"], row["silicon_tpot_ms"]))
        isl, osl, concurrency = int(row["isl"]), int(row["osl"]), int(known.group(1))
        workload = f"{row['model_path'].split('/')[-1]} {row['gemm_quant_mode']} {isl}/{osl} C{concurrency}"
        engine = {"name": "sglang", "tensor_parallel_size": 8, "sglang": {"disable_radix_cache": True}}
        yield Point(
            group=f"control, co-located {gpu} sglang",
            name=f"{row['system']} sglang TP8 {workload}",
            workload=workload,
            scenario={
                "model": MODELS[row["model_path"]],
                "hardware": gpu,
                "engine": engine,
                "workload": _inferencex(isl, osl, concurrency),
            },
            measured=_silicon_measured(row),
            gpus=8,
            concurrency=concurrency,
            output_tokens=(1 + RANGE_RATIO) / 2 * osl,
            first_token="decode",
        )
