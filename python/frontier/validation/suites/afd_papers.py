"""`afd-papers`: attention and FFN apart, as the Step-3 report (arXiv:2507.19427) measured it.

Table 8 has tokens per second and GPU of three deployments; a decode step of each is priced. Table 9 has the
time of one attention layer for 256 requests on 4 GPUs: operators of attention in a step, over the layers of
the model. Neither says all, so groups show both ways:

- FFN layouts: whole experts on each of 16 GPUs (EP16), or two ranks of 8 GPUs that cut every expert (TP8).
- Prices: bounds of the hardware (roofline), or what was measured of kernels of vLLM and others (learned).
  Step-3's own kernels are neither.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from frontier import _frontier
from frontier.afd_lowering import AfdLayout, AfdTransfer, afd_step_time
from frontier.afd_stations import Stations
from frontier.config.engine import Engine
from frontier.disaggregated_lowering import PredictorPool
from frontier.hardware import load_gpu
from frontier.models import load_model
from frontier.models.spec import Quantization
from frontier.predictors.attach import attach
from frontier.validation.case import LeftOut, Outcome, StepCase, Suite

if TYPE_CHECKING:
    from frontier.hardware import GpuSpec
    from frontier.models import ModelSpec, Operator

_StepTime = Literal["roofline", "learned"]
_Attached = Callable[[Sequence[Sequence["Operator"]], "GpuSpec"], list[list[dict[str, Any]]]]

STEPMESH_BYTES_PER_S: Final = 161.3e9 / 8
_GPUS_PER_INSTANCE: Final = 8
_MICRO_BATCHES: Final = 3
_LAYER_REQUESTS: Final = 256
_LAYER_GPUS: Final = 4
_NOT_ATTENTION: Final = ("f2a_sum", "all_gather", "all_reduce", "router", "quant_fp8")
_FFN_LAYOUTS: Final = {"EP16": (16, 1), "TP8": (2, 8)}
"""FFN ranks and the GPUs of each."""
_PRICES: Final[dict[str, _StepTime]] = {"bounds": "roofline", "learned": "learned"}
"""`engine.step_time` by the name of the group."""


@dataclass(frozen=True)
class _Deployment:
    """A row of table 8: three micro-batches within a TPOT of 50 ms, no drafts."""

    name: str
    attention_instances: int
    requests: int
    context_tokens: int
    fp8_attention: bool
    output_tok_s_gpu: float


@dataclass(frozen=True)
class _AttentionLayer:
    """A row of table 9: microseconds by GPU."""

    name: str
    model: str
    context_tokens: int
    us: dict[str, float]


_DEPLOYMENTS: Final = (
    _Deployment("2A2F", 2, 6144, 4096, fp8_attention=True, output_tok_s_gpu=4039),
    _Deployment("3A2F", 3, 6048, 4096, fp8_attention=False, output_tok_s_gpu=3321),
    _Deployment("4A2F", 4, 6144, 8192, fp8_attention=True, output_tok_s_gpu=2643),
)
_LAYERS: Final = (
    _AttentionLayer("MFA (Step-3)", "step-3", 8192, {"h800": 281, "h20": 438, "a800": 531}),
    _AttentionLayer("MLA (DeepSeek-V3)", "deepseek-v3", 8192, {"h800": 372, "h20": 1252}),
    _AttentionLayer("GQA (Qwen3-235B)", "qwen3-235b-a22b", 8192, {"h800": 382, "h20": 812, "a800": 791}),
    _AttentionLayer("MFA (Step-3)", "step-3", 32768, {"h800": 791, "h20": 1452, "a800": 1484}),
    _AttentionLayer("MLA (DeepSeek-V3)", "deepseek-v3", 32768, {"h800": 1125, "h20": 4817}),
    _AttentionLayer("GQA (Qwen3-235B)", "qwen3-235b-a22b", 32768, {"h800": 1391, "h20": 3042, "a800": 3010}),
)
_ASCEND: Final = "vLLM AFD plugin, DeepSeek-V3.2 on Ascend 910C"
NO_GPU: Final = "Ascend 910C: no preset of the GPU, its links or its kernels"


def _cases(_data: Path, _scratch: Path) -> Iterator[StepCase | LeftOut]:
    for ffn in _FFN_LAYOUTS:
        for prices in _PRICES:
            for deployment in _DEPLOYMENTS:
                group = f"{ffn}, {prices}"
                yield StepCase(
                    group=group,
                    name=deployment.name,
                    measured={"output_tok_s_gpu": deployment.output_tok_s_gpu},
                    price=partial(_price_deployment, deployment, ffn, _PRICES[prices]),
                    choice=f"{group}, {deployment.context_tokens} tokens",
                )
    for prices in _PRICES:
        for layer in _LAYERS:
            for gpu, us in layer.us.items():
                context = f"{layer.context_tokens // 1024}K"
                yield StepCase(
                    group=f"attention layer, {prices}",
                    name=f"{layer.name} {context} {gpu}",
                    measured={"attention_layer_us": us},
                    price=partial(_price_layer, layer, gpu, _PRICES[prices]),
                    choice=f"{context}, {prices}",
                )
    for context in ("16K", "32K"):
        for layout in ("EP64", "48A16F", "64A16F"):
            yield LeftOut(_ASCEND, f"{layout}, {context}", NO_GPU)


def _price_deployment(deployment: _Deployment, ffn: str, step_time: _StepTime) -> Outcome:
    ranks, size = _FFN_LAYOUTS[ffn]
    layout = AfdLayout(
        attention_ranks=deployment.attention_instances * _GPUS_PER_INSTANCE,
        ffn_ranks=ranks,
        ffn_tensor_parallel_size=size,
        micro_batches=_MICRO_BATCHES,
    )
    own = deployment.requests // layout.attention_ranks
    model = _in_blocks_of_fp8("step-3")
    batch = (own, deployment.context_tokens)
    plan, facts = _step(model, "h800", layout, step_time, batch, fp8_attention=deployment.fp8_attention)
    step_s = facts["total_ns"] / 1e9
    stations = Stations.of(facts, plan, own)
    return Outcome.of(
        {"output_tok_s_gpu": deployment.requests / step_s / layout.gpus},
        facts["operators"],
        {
            "step_ms": step_s * 1e3,
            "attention_us": stations.attention_s * 1e6,
            "ffn_us": stations.ffn_s * 1e6,
            "a2f_us": stations.a2f_s * 1e6,
            "f2a_us": stations.f2a_s * 1e6,
            "bound_by": stations.bound,
        },
    )


def _price_layer(layer: _AttentionLayer, gpu: str, step_time: _StepTime) -> Outcome:
    model = _in_blocks_of_fp8(layer.model)
    if load_gpu(gpu).peak_flops_per_s.fp8 is None:
        model = replace(model, quantization=None)
    layout = AfdLayout(attention_ranks=1, ffn_ranks=1, micro_batches=1)
    batch = (_LAYER_REQUESTS // _LAYER_GPUS, layer.context_tokens)
    plan, facts = _step(model, gpu, layout, step_time, batch, fp8_attention=False)
    attention = [
        row
        for row in facts["operators"]
        if 1 <= row["stage"] <= len(plan["classes"]) and not row["name"].startswith(_NOT_ATTENTION)
    ]
    seconds = sum(row["seconds"] for row in attention)
    return Outcome.of({"attention_layer_us": seconds / model.num_layers * 1e6}, attention)


def _step(
    model: ModelSpec,
    gpu: str,
    layout: AfdLayout,
    step_time: _StepTime,
    batch: tuple[int, int],
    *,
    fp8_attention: bool,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the step time of the plan and the breakdown of a decode step.

    `batch` is each attention GPU's requests and the tokens of each.
    """
    requests, context = batch
    attached, pool = _attaching(step_time)
    chip = load_gpu(gpu)
    plan = afd_step_time(
        model,
        layout,
        attention_gpu=chip,
        ffn_gpu=chip,
        a2f=_stepmesh("bf16" if chip.peak_flops_per_s.fp8 is None else "fp8"),
        f2a=_stepmesh("bf16"),
        kv_cache_dtype="fp8" if fp8_attention else "auto",
        fp8_attention=fp8_attention,
        attach=attached,
    )
    batches = [[(1, context, False)] * requests] * layout.attention_ranks
    return plan, _frontier.step_breakdown(json.dumps(plan), batches, pool.predictors)


def _attaching(step_time: _StepTime) -> tuple[_Attached, PredictorPool]:
    """Return what gives operators their predictors, and the pool that they are collected in."""
    pool, engine = PredictorPool(), Engine(step_time=step_time)

    def attached(stages: Sequence[Sequence[Operator]], gpu: GpuSpec) -> list[list[dict[str, Any]]]:
        found, _ = pool.numbered(attach(stages, gpu, engine), None)
        return found.stages

    return attached, pool


def _in_blocks_of_fp8(name: str) -> ModelSpec:
    return replace(load_model(name), quantization=Quantization("fp8_block", (128, 128)))


def _stepmesh(dtype: Literal["bf16", "fp8"]) -> AfdTransfer:
    return AfdTransfer(
        dtype=dtype,
        latency_s=0.0,
        attention_bandwidth_bytes_per_s=STEPMESH_BYTES_PER_S,
        ffn_bandwidth_bytes_per_s=STEPMESH_BYTES_PER_S,
    )


AFD_PAPERS: Final = Suite(
    name="afd-papers",
    title="attention and FFN apart: three Step-3 deployments on H800, and attention layers",
    source="Step-3 technical report, arXiv:2507.19427, tables 8 and 9",
    files=(),
    cases=_cases,
    assumptions=(
        "8 GPUs in each instance A or F; how experts lie in F is not published: EP16 and TP8 are both shown,"
        " and that EP16 with bounds comes near was seen afterwards",
        "three micro-batches; attention ranks are single GPUs, each with its part of the requests",
        "weights of layers are fp8 in blocks, as the report says of table 8 (16 bits on A800, without fp8)",
        "table 8 is of the peak minute (2A2F: 4,039 tokens/s/GPU; 3,910 in the long run)",
        "table 9 says neither what weights are kept in nor where requests lie: fp8 weights, 64 requests per"
        " GPU, projections included and a 16-bit cache were chosen after 16-bit weights had given a bound"
        " above a published time",
        "links reach StepMesh's 161.3 Gbps per GPU in each direction (the report); activations go out in fp8"
        " and back in 16 bits",
        "no host time; learned prices are of kernels of vLLM and others, not of Step-3's",
    ),
)
"""Nothing is fitted."""
