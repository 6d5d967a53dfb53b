"""Step-3's published attention-FFN disaggregation on H800 beside ours, and its attention-layer times.

    python benches/step3.py

Published (Step-3 technical report, arXiv:2507.19427): tokens per second and GPU of three deployments with
three micro-batches within a TPOT of 50 ms (table 8; 8 GPUs in each instance A or F), and the time of one
attention layer for 256 requests on 4 GPUs (table 9). Where the report does not say how something lies on the
GPUs, both ways are shown:

- FFN layouts: whole experts on each of 16 GPUs (EP16), or two ranks of 8 GPUs that cut every expert (TP8).
- Prices: bounds of the hardware (roofline), or what was measured of kernels of vLLM and others (learned).
  Step-3's own kernels are neither.

Attention ranks are single GPUs with their part of the requests; weights of layers are fp8 in blocks, as the
report says of table 8 (16 bits on A800, which has no fp8); table 9 is taken to include the projections, over
a cache of 16 bits. Links reach StepMesh's 161.3 Gbps per GPU in each direction (a figure of the report);
activations go out in fp8 and back in 16 bits. No host time. Nothing is fitted.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from frontier import _frontier
from frontier.afd_lowering import AfdLayout, AfdTransfer, afd_step_time
from frontier.afd_stations import Stations
from frontier.config.engine import Engine
from frontier.disaggregated_lowering import PredictorPool
from frontier.hardware import GpuSpec, load_gpu
from frontier.models import ModelSpec, Operator, load_model
from frontier.models.spec import Quantization
from frontier.predictors.attach import attach

STEPMESH_BYTES_PER_S = 161.3e9 / 8
NOT_ATTENTION = ("f2a_sum", "all_gather", "all_reduce", "router", "quant_fp8")
Attached = Callable[[Sequence[Sequence[Operator]], GpuSpec], list[list[dict[str, Any]]]]


@dataclass(frozen=True)
class Deployment:
    """A row of table 8."""

    name: str
    attention_gpus: int
    requests: int
    context: int
    fp8_attention: bool
    tokens_per_s_per_gpu: float


@dataclass(frozen=True)
class AttentionLayer:
    """A row of table 9: microseconds by GPU, None where the report has none."""

    name: str
    model: str
    context: int
    h800: float
    h20: float | None
    a800: float | None


DEPLOYMENTS = (
    Deployment("2A2F", 16, 6144, 4096, True, 4039),
    Deployment("3A2F", 24, 6048, 4096, False, 3321),
    Deployment("4A2F", 32, 6144, 8192, True, 2643),
)
LAYERS = (
    AttentionLayer("MFA (Step-3)", "step-3", 8192, 281, 438, 531),
    AttentionLayer("MLA (DeepSeek-V3)", "deepseek-v3", 8192, 372, 1252, None),
    AttentionLayer("GQA (Qwen3-235B)", "qwen3-235b-a22b", 8192, 382, 812, 791),
    AttentionLayer("MFA (Step-3)", "step-3", 32768, 791, 1452, 1484),
    AttentionLayer("MLA (DeepSeek-V3)", "deepseek-v3", 32768, 1125, 4817, None),
    AttentionLayer("GQA (Qwen3-235B)", "qwen3-235b-a22b", 32768, 1391, 3042, 3010),
)
FFN_LAYOUTS = {"EP16": (16, 1), "TP8": (2, 8)}
PRICINGS = ("roofline", "learned")


def attaching(pricing: str) -> tuple[Attached, PredictorPool]:
    """Return what gives operators their predictors, and the pool that they are collected in."""
    pool, engine = PredictorPool(), Engine(step_time=pricing)

    def attached(stages: Sequence[Sequence[Operator]], gpu: GpuSpec) -> list[list[dict[str, Any]]]:
        found, _ = pool.numbered(attach(stages, gpu, engine), None)
        return found.stages

    return attached, pool


def in_blocks_of_fp8(name: str) -> ModelSpec:
    """Return a model whose linear layers are fp8."""
    return replace(load_model(name), quantization=Quantization("fp8_block", (128, 128)))


def stepmesh(dtype: Any) -> AfdTransfer:
    """Return a transfer over StepMesh."""
    return AfdTransfer(
        dtype=dtype,
        latency_s=0.0,
        attention_bandwidth_bytes_per_s=STEPMESH_BYTES_PER_S,
        ffn_bandwidth_bytes_per_s=STEPMESH_BYTES_PER_S,
    )


def step(
    model: ModelSpec, gpu: str, layout: AfdLayout, pricing: str, batch: tuple[int, int], *, fp8: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the step time of the plan and the breakdown of a decode step.

    `batch` is each attention GPU's requests and the tokens of each.
    """
    requests, context = batch
    attached, pool = attaching(pricing)
    chip = load_gpu(gpu)
    plan = afd_step_time(
        model,
        layout,
        attention_gpu=chip,
        ffn_gpu=chip,
        a2f=stepmesh("bf16" if chip.peak_flops_per_s.fp8 is None else "fp8"),
        f2a=stepmesh("bf16"),
        kv_cache_dtype="fp8" if fp8 else "auto",
        fp8_attention=fp8,
        attach=attached,
    )
    batches = [[(1, context, False)] * requests] * layout.attention_ranks
    return plan, _frontier.step_breakdown(json.dumps(plan), batches, pool.predictors)


def deployments() -> None:
    """Print table 8."""
    print(
        "tokens/s/GPU      published      ours   error      step   Ta      Te      a2f     f2a (us)  bound by"
    )
    model = in_blocks_of_fp8("step-3")
    for each in DEPLOYMENTS:
        for ffn, (ranks, size) in FFN_LAYOUTS.items():
            for pricing in PRICINGS:
                layout = AfdLayout(
                    attention_ranks=each.attention_gpus,
                    ffn_ranks=ranks,
                    ffn_tensor_parallel_size=size,
                    micro_batches=3,
                )
                own = each.requests // each.attention_gpus
                batch = (own, each.context)
                plan, facts = step(model, "h800", layout, pricing, batch, fp8=each.fp8_attention)
                found = each.requests / (facts["total_ns"] / 1e9) / layout.gpus
                stations = Stations.of(facts, plan, own)
                times = "  ".join(
                    f"{getattr(stations, f'{name}_s') * 1e6:6.1f}"
                    for name in ("attention", "ffn", "a2f", "f2a")
                )
                error = found / each.tokens_per_s_per_gpu - 1
                print(
                    f"{each.name} {ffn:4} {pricing:8} {each.tokens_per_s_per_gpu:8,.0f} {found:9,.0f}"
                    f" {error:+7.1%} {facts['total_ns'] / 1e6:6.1f} ms {times}  {stations.bound}"
                )


def attention_layers() -> None:
    """Print table 9: 64 requests on each GPU, projections included, a 16-bit cache."""
    print("\nattention layer, 4 GPUs, 256 requests   published us   roofline   error   learned   error")
    for each in LAYERS:
        for gpu in ("h800", "h20", "a800"):
            published = getattr(each, gpu)
            if published is None:
                continue
            model, cells = in_blocks_of_fp8(each.model), []
            if gpu == "a800":
                model = replace(model, quantization=None)  # no fp8 there
            for pricing in PRICINGS:
                layout = AfdLayout(attention_ranks=1, ffn_ranks=1, micro_batches=1)
                plan, facts = step(model, gpu, layout, pricing, (64, each.context), fp8=False)
                classes = len(plan["classes"])
                layers = model.num_layers
                seconds = sum(
                    row["seconds"]
                    for row in facts["operators"]
                    if 1 <= row["stage"] <= classes and not row["name"].startswith(NOT_ATTENTION)
                )
                cells.append(seconds / layers * 1e6)
            shown = "".join(f"{cell:10.0f} {cell / published - 1:+7.1%}" for cell in cells)
            print(f"{each.name:18} {each.context // 1024:3}K {gpu:5} {published:21,.0f}  {shown}")


if __name__ == "__main__":
    deployments()
    attention_layers()
