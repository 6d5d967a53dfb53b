"""`silicon-disagg`: DeepSeek and Qwen3 with prefill and decode apart on Hopper and Blackwell, up to an NVL72.

Rows of aiconfigurator's silicon sample with prefill and decode apart and all sizes given; and, as their
control, rows of the same file with one co-located SGLang engine, which is modelled: what is wrong there too
is not a matter of prefill and decode apart.

SGLang's tensor parallel workers are modelled. Where an engine is not modelled with prefill and decode apart
(TensorRT-LLM; SGLang with attention in data parallel, or whole experts per rank), vLLM's scheduler stands in
for its own: such rows say how good the sizing of a deployment is, not how well an engine is modelled.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from frontier.validation.case import Case, LeftOut, Suite
from frontier.validation.suites.prefill_decode import FirstToken, little_tok_s, mean_latencies_ms
from frontier.validation.suites.reading import rows_of

if TYPE_CHECKING:
    from frontier.results import Result

_POINTS: Final = "points/silicon_open.csv"
_STAND_IN_VERSION: Final = "0.32"
"""vLLM's release whose rules stand in for other engines': like theirs, it schedules ahead of the GPU."""
_SGLANG: Final = {"name": "sglang", "version": "0.5.3"}
_DECODE_BUDGET: Final = 1024
"""Tokens of a step of decode workers, who get no prompts: vLLM sets memory aside for the activations of a
full budget, SGLang and TensorRT-LLM for those of what their decode servers are configured to run."""
_RANGE_RATIO: Final = 0.8
"""Of the benchmark (InferenceX): lengths are drawn from this share of the nominal one up to it."""
_REQUESTS_PER_CLIENT: Final = 10
_SYSTEMS: Final = {"h100_sxm": "h100", "h200_sxm": "h200", "b200_sxm": "b200", "gb200": "gb200"}
_MODELS: Final = {
    "deepseek-ai/DeepSeek-V3": "deepseek-v3",
    "deepseek-ai/DeepSeek-R1": "deepseek-r1",
    "Qwen/Qwen3-32B": "qwen3-32b",
}
_FP8_BLOCKS: Final = {
    "quant_method": "fp8",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}
"""As a checkpoint says it; SGLang has no option that converts weights so."""
_GPUS_PER_HOST: Final = {"gb200": 4}
_NVL72_GPUS: Final = 72
NO_CONCURRENCY: Final = "concurrency not recorded"
CONTROL: Final = "control, co-located"
NVFP4: Final = "NVFP4 checkpoint: no preset of it, and no NVFP4 kernels in the packs"

_Row = dict[str, str]


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class _Load:
    prompt: int
    output: int
    clients: int

    @property
    def mean_output(self) -> float:
        return (1 + _RANGE_RATIO) / 2 * self.output

    def section(self) -> dict[str, Any]:
        lengths = [
            {"uniform": {"min": int(_RANGE_RATIO * most), "max": most}} for most in (self.prompt, self.output)
        ]
        return {
            "synthetic": {
                "arrivals": {"closed_loop": {"concurrency": self.clients}},
                "num_requests": _REQUESTS_PER_CLIENT * self.clients,
                "prompt_tokens": lengths[0],
                "output_tokens": lengths[1],
            }
        }

    def of(self, row: _Row) -> str:
        """Return what of a row makes others alternatives to it."""
        model = row["model_path"].split("/")[-1]
        return f"{model} {row['gemm_quant_mode']} {self.prompt}/{self.output} C{self.clients}"


def _cases(data: Path, _scratch: Path) -> Iterator[Case | LeftOut]:
    rows = rows_of(data / _POINTS)
    yield from _apart(rows)
    yield from _co_located(rows)


def _apart(rows: list[_Row]) -> Iterator[Case | LeftOut]:
    for row in rows:
        prefill, decode = (_role(row, name) for name in ("prefill", "decode"))
        if row["mode"] != "disagg" or prefill is None or decode is None:
            continue
        known = _clients(row)
        # Where both are given, the decode batch is the concurrency over the ranks that decode, in every row.
        clients = known or decode.batch * decode.workers * decode.dp
        load = _Load(int(row["isl"]), int(row["osl"]), clients)
        name = f"{row['system']} {row['backend']} {prefill}+{decode} {load.of(row)}"
        group = f"{_SYSTEMS.get(row['system'], row['system'])} {row['backend']}"
        if row["system"] not in _SYSTEMS:
            yield LeftOut(group, name, f"no preset of {row['system']}, nor measured operators")
            continue
        if row["gemm_quant_mode"] == "nvfp4":
            yield LeftOut(group, name, NVFP4)
            continue
        own = row["backend"] == "sglang" and all(role.dp == 1 and role.ep == 1 for role in (prefill, decode))
        sections = _of_sglang(row, load, prefill, decode) if own else _of_vllm(row, load, prefill, decode)
        gpu = _SYSTEMS[row["system"]]
        yield _case(
            row,
            load,
            group=group if known else NO_CONCURRENCY,
            name=name,
            scenario={
                "hardware": _hardware(gpu),
                "network": {"share_nodes": gpu == "gb200"},
                **sections,
            },
            gpus=prefill.gpus + decode.gpus,
            first_token="decode" if row["backend"] == "vllm" or own else "prefill",
        )


def _co_located(rows: list[_Row]) -> Iterator[Case]:
    """Yield co-located DeepSeek FP8 on 8 H200 or B200 (SGLang, TP8), 1,024 tokens of output; each once."""
    seen = set()
    runs: dict[str, int] = {}
    for row in rows:
        gpu, clients = _SYSTEMS.get(row["system"]), _clients(row)
        sizes = (row["tp_size"], row["pp_size"], row["attention_dp_size"], row["moe_tp_size"], row["osl"])
        values = (row["silicon_ttft_ms"], row["silicon_tpot_ms"])
        if (
            row["mode"] != "agg"
            or row["backend"] != "sglang"
            or gpu not in ("h200", "b200")
            or row["model_path"] not in _MODELS
            or not row["gemm_quant_mode"].startswith("fp8")
            or sizes != ("8", "1", "1", "8", "1024")
            or clients is None
            or values in seen
        ):
            continue
        seen.add(values)
        load = _Load(int(row["isl"]), int(row["osl"]), clients)
        name = f"{row['system']} sglang TP8 {load.of(row)}"
        runs[name] = runs.get(name, 0) + 1
        yield _case(
            row,
            load,
            group=f"{CONTROL} {gpu} sglang",
            name=name if runs[name] == 1 else f"{name}, run {runs[name]}",
            scenario={
                "hardware": gpu,
                "model": _MODELS[row["model_path"]],
                "engine": {
                    "name": "sglang",
                    "tensor_parallel_size": 8,
                    "sglang": {"disable_radix_cache": True},
                },
            },
            gpus=8,
            first_token="decode",
            alternative=runs[name] == 1,  # the same deployment again is not one to choose
        )


def _case(
    row: _Row,
    load: _Load,
    *,
    group: str,
    name: str,
    scenario: Mapping[str, Any],
    gpus: int,
    first_token: FirstToken,
    alternative: bool = True,
) -> Case:
    def with_throughput(latencies: dict[str, float]) -> dict[str, float]:
        tok_s = little_tok_s(
            load.clients, load.mean_output, latencies["ttft_mean_ms"], latencies["tpot_mean_ms"]
        )
        return {**latencies, "output_tok_s_gpu": tok_s / gpus}

    def read(result: Result) -> dict[str, float]:
        return with_throughput(mean_latencies_ms(result, first_token))

    ttft_ms, tpot_ms = float(row["silicon_ttft_ms"]), float(row["silicon_tpot_ms"])
    return Case(
        group=group,
        name=name,
        scenario={**scenario, "workload": load.section()},
        measured=with_throughput({"ttft_mean_ms": ttft_ms, "tpot_mean_ms": tpot_ms}),
        read=read,
        choice=load.of(row) if alternative else "",
        facts={"row": row["id"], "gpus": gpus, "clients": load.clients},
    )


def _clients(row: _Row) -> int | None:
    known = re.search(r"silicon_concurrency=(\d+)", row["silicon_data_source"])
    return int(known.group(1)) if known else None


def _role(row: _Row, role: str) -> _Role | None:
    names = ("num_workers", "tp_size", "attention_dp_size", "moe_ep_size", "batch_size", "pp_size")
    values = [row[f"{role}_{name}"] for name in names]
    return _Role(*(int(value) for value in values[:5])) if all(values) else None


def _hardware(gpu: str) -> str | dict[str, Any]:
    """Return a GPU; GB200 as in an NVL72, where NVLink spans 18 nodes of 4."""
    if gpu != "gb200":
        return gpu
    preset = resources.files("frontier.hardware") / "presets" / f"{gpu}.yaml"
    return {"gpu": {**yaml.safe_load(preset.read_text("utf-8")), "gpus_per_node": _NVL72_GPUS}}


def _of_vllm(row: _Row, load: _Load, prefill: _Role, decode: _Role) -> dict[str, Any]:
    """Return the sections of vLLM's workers, which also stand in for engines that are not modelled."""
    engine: dict[str, Any] = {
        "version": _STAND_IN_VERSION,
        "enable_prefix_caching": False,
        "max_model_len": load.prompt + load.output + 256,
    }
    if row["gemm_quant_mode"] == "fp8_block":
        engine["quantization"] = "fp8_per_block"
    if row["backend"] == "sglang":
        engine["step_time"] = {"learned": {"backend": "sglang"}}
    host = _GPUS_PER_HOST.get(_SYSTEMS[row["system"]], 8)
    return {
        "model": _MODELS[row["model_path"]],
        "engine": engine,
        "clusters": [_cluster("prefill", prefill, host), _cluster("decode", decode, host)],
        "disaggregation": {"kv_transfer": {"mode": "pull"}},
    }


def _cluster(name: str, role: _Role, gpus_per_host: int) -> dict[str, Any]:
    """Return a cluster; experts over more than one host are reached by DeepEP, others by gathering tokens."""
    engine: dict[str, Any] = {"tensor_parallel_size": role.tp, "data_parallel_size": role.dp}
    if name == "decode":
        engine["max_num_batched_tokens"] = _DECODE_BUDGET
    if role.ep > 1:
        engine["enable_expert_parallel"] = True
        if role.dp > 1 and role.tp * role.dp > gpus_per_host:
            kind = "high_throughput" if name == "prefill" else "low_latency"
            engine["moe"] = {"all2all_backend": f"deepep_{kind}"}
    return {"role": name, "replicas": role.workers, "engine": engine}


def _of_sglang(row: _Row, load: _Load, prefill: _Role, decode: _Role) -> dict[str, Any]:
    """Return the sections of SGLang's own servers, whose layers are tensor parallel alone."""
    model = _MODELS[row["model_path"]]
    blocks = row["gemm_quant_mode"] == "fp8_block"
    return {
        "model": {"config": model, "quantization_config": _FP8_BLOCKS} if blocks else model,
        "engine": {
            **_SGLANG,
            "step_time": {"learned": {"backend": "sglang"}},
            "sglang": {
                "disable_radix_cache": True,
                "context_length": load.prompt + load.output + 256,
            },
        },
        "clusters": [
            {"role": name, "replicas": role.workers, "engine": {"tensor_parallel_size": role.tp}}
            for name, role in (("prefill", prefill), ("decode", decode))
        ],
        "disaggregation": {},
    }


SILICON_DISAGG: Final = Suite(
    name="silicon-disagg",
    title="DeepSeek and Qwen3, prefill and decode apart, on H100, H200, B200 and GB200, with a control",
    source="silicon_sample.csv of ai-dynamo/aiconfigurator (github.com, Apache-2.0)",
    files=(_POINTS,),
    cases=_cases,
    assumptions=(
        "vLLM's scheduler stands in for TensorRT-LLM's, and for SGLang's with attention in data parallel or"
        " whole experts per rank",
        "decode workers take steps of up to 1,024 tokens, so that no memory is set aside for prompts there",
        "experts over more than one host are reached by DeepEP, others by gathering tokens; what the engines"
        " used is not recorded",
        "lengths are drawn uniformly from 0.8 to 1 times the nominal ones, ten requests per client",
        "throughput is Little's law of the closed loop on both sides: none was published",
        "the group without recorded concurrency has that of its decode batches",
        "groups are to be read one by one: `all` counts the co-located control rows too",
        "KV is of the type of the checkpoint's default, and there is no multi-token prediction: neither is"
        " recorded; no time in HTTP, tokeniser and proxy",
    ),
)
"""Nothing is fitted to its rows."""
