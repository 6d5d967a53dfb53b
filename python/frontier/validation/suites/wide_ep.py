"""`wide-ep`: DeepSeek-V3 with wide expert parallelism, 32 to 144 GPUs.

What is published of these deployments is the batch of a GPU and its throughput. One step of a whole
deployment is priced, every data parallel rank with the same batch; throughput is that of steps in a row.
Where a deployment runs two micro-batches, one alone is priced too (`one_batch_tok_s_gpu`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from frontier import _frontier
from frontier.config.moe import Moe
from frontier.hardware import load_gpu
from frontier.models import Layout, load_model
from frontier.models.program import pipeline_stages
from frontier.moe_lowering import moe_plan
from frontier.predictors import attach, chooser
from frontier.predictors.loaded import opened
from frontier.validation.case import LeftOut, Outcome, StepCase, Suite

GPUS_PER_NODE: Final = 8
_Request = tuple[int, int, bool]


@dataclass(frozen=True)
class Deployment:
    """A published deployment.

    Attributes:
        group: of the suite.
        name: of the deployment.
        gpu: its preset.
        ranks: data parallel ranks of one GPU each.
        batch: of one GPU: tokens, context tokens with them, and whether they are of a prompt, per request.
        tok_s_gpu: published tokens per second and GPU.
        redundant: copies of experts (`num_redundant_experts`).
        routing: as of `engine.moe.routing`.
        dbo: whether it runs two micro-batches.
        choice: as of `StepCase`.
    """

    group: str
    name: str
    gpu: str
    ranks: int
    batch: tuple[_Request, ...]
    tok_s_gpu: float
    redundant: int = 32
    routing: str | Mapping[str, Any] = "uniform"
    dbo: bool = True
    choice: str = ""

    @property
    def is_prefill(self) -> bool:
        """Whether it computes prompts."""
        return self.batch[0][2]


def _prefill(tokens: int, length: int) -> tuple[_Request, ...]:
    return ((length, length, True),) * (tokens // length)


def _decode(requests: int, context: int) -> tuple[_Request, ...]:
    return ((1, context, False),) * requests


_SGLANG_PREFILL: Final = partial(Deployment, "SGLang prefill", gpu="h100", ranks=32)
_SGLANG_DECODE: Final = partial(Deployment, "SGLang decode", gpu="h100", ranks=72)
_PRODUCTION: Final = partial(Deployment, "DeepSeek production", gpu="h800")
_PROFILE: Final = partial(Deployment, "DeepSeek profile", gpu="h800", routing="balanced")
DEPLOYMENTS: Final = (
    _SGLANG_PREFILL("EP32, 1K", batch=_prefill(16384, 1024), tok_s_gpu=57_674 / GPUS_PER_NODE),
    _SGLANG_PREFILL("EP32, 2K", batch=_prefill(16384, 2048), tok_s_gpu=54_543 / GPUS_PER_NODE),
    _SGLANG_PREFILL("EP32, 4K", batch=_prefill(16384, 4096), tok_s_gpu=50_302 / GPUS_PER_NODE),
    _SGLANG_PREFILL(
        "EP32, 4K, perfect EPLB",
        batch=_prefill(16384, 4096),
        tok_s_gpu=59_337 / GPUS_PER_NODE,
        routing="balanced",
    ),
    _SGLANG_DECODE("EP72, 2K, 256 per GPU", batch=_decode(256, 2000 + 50), tok_s_gpu=22_282 / GPUS_PER_NODE),
    _SGLANG_DECODE(
        "EP72, 4K, 128 per GPU",
        batch=_decode(128, 4000 + 50),
        tok_s_gpu=17_373 / GPUS_PER_NODE,
        choice="micro-batches",
    ),
    _SGLANG_DECODE(
        "EP72, 4K, 128 per GPU, one batch",
        batch=_decode(128, 4000 + 50),
        tok_s_gpu=12_929 / GPUS_PER_NODE,
        dbo=False,
        choice="micro-batches",
    ),
    _PRODUCTION(
        "prefill EP32, without cache hits",
        ranks=32,
        batch=_prefill(16384, 4096),
        tok_s_gpu=32_200 / GPUS_PER_NODE,
    ),
    _PRODUCTION(
        "decode EP144, 88 per GPU", ranks=144, batch=_decode(88, 4989), tok_s_gpu=14_800 / GPUS_PER_NODE
    ),
    _PROFILE("prefill EP32, 4K", ranks=32, batch=_prefill(16384, 4096), tok_s_gpu=7_839),
    _PROFILE(
        "decode EP128, 4K, 128 per GPU", ranks=128, batch=_decode(128, 4096), tok_s_gpu=2_324, redundant=0
    ),
)
"""In nodes of 8 GPUs where the source has it so."""
NO_BATCH: Final = "the batch of a GPU is not published"
NO_SPLIT: Final = f"{NO_BATCH}, nor how nodes are split"
_LEFT_OUT: Final = (
    LeftOut("vLLM", "DeepSeek-R1 decode on 32 H200, 2K/2K: 2,200 tokens/s/GPU", NO_BATCH),
    LeftOut("vLLM", "DeepSeek-R1 prefill on GB200, 2K/2K: 26,200 tokens/s/GPU", NO_BATCH),
    LeftOut("vLLM", "DeepSeek-R1 decode EP8 on GB200, 2K/2K: 10,100 tokens/s/GPU", NO_BATCH),
    LeftOut("SGLang", "Kimi-K2 prefill on 128 H200: 224,000 tokens/s", NO_SPLIT),
    LeftOut("SGLang", "Kimi-K2 decode on 128 H200: 288,000 tokens/s", NO_SPLIT),
)


def _cases(_data: Path, _scratch: Path) -> Iterator[StepCase | LeftOut]:
    for deployment in DEPLOYMENTS:
        yield StepCase(
            group=deployment.group,
            name=deployment.name,
            measured={_metric(deployment): deployment.tok_s_gpu},
            price=partial(_price, deployment),
            choice=deployment.choice,
            facts={"gpus": deployment.ranks},
        )
    yield from _LEFT_OUT


def _metric(deployment: Deployment) -> str:
    return "input_tok_s_gpu" if deployment.is_prefill else "output_tok_s_gpu"


def _price(deployment: Deployment) -> Outcome:
    found = step(deployment)
    alone = step(replace(deployment, dbo=False)) if deployment.dbo else found
    tokens = sum(request[0] for request in deployment.batch)
    per_gpu, one_batch = (tokens / (each["total_ns"] / 1e9) for each in (found, alone))
    return Outcome.of(
        {_metric(deployment): per_gpu},
        found["operators"],
        {"step_ms": found["total_ns"] / 1e6, "one_batch_tok_s_gpu": one_batch},
    )


def step(deployment: Deployment) -> dict[str, Any]:
    """Price one step of a deployment: the breakdown of `_frontier.step_breakdown`, with its operators."""
    spec, gpu = load_model("deepseek-v3"), load_gpu(deployment.gpu)
    layout = Layout(
        data_parallel_size=deployment.ranks,
        enable_expert_parallel=True,
        all2all_backend="deepep_high_throughput" if deployment.is_prefill else "deepep_low_latency",
        gpus_per_node=GPUS_PER_NODE,
        num_redundant_experts=deployment.redundant,
    )
    paths = [path for name in (gpu.name, "generic") if (path := chooser.shipped_pack(name)) is not None]
    choose = chooser.Chooser([opened(path) for path in paths], gpu.name, backend="sglang", version=None)
    attached = attach.attach_chosen(pipeline_stages(spec, layout), choose, {})
    section: dict[str, Any] = {
        "routing": deployment.routing,
        "all2all_backend": layout.all2all_backend,
        "enable_dbo": deployment.dbo,
    }
    if deployment.routing != "balanced":
        section["eplb"] = {"num_redundant_experts": deployment.redundant}
    moe = Moe.model_validate(section)
    step_time = {
        "kind": "operators",
        "gpu": gpu.to_plan(),
        "links": gpu.links(layout.gpus, layout.nodes).to_plan(),
        "cpu": {"per_step_s": 0.0, "per_seq_s": 0.0, "overlapped": True},
        "layout": layout.to_plan(),
        "stages": attached.stages,
        "residuals": None,
        "moe": moe_plan(
            moe, attached.stages, spec=spec, layout=layout, version="0.32", seed=0, replication=0
        ),
    }
    batches = [list(deployment.batch)] * deployment.ranks
    return _frontier.step_breakdown(json.dumps(step_time), batches, list(attached.predictors))


WIDE_EP: Final = Suite(
    name="wide-ep",
    title="DeepSeek-V3 on 32 to 144 GPUs with wide expert parallelism, tokens per second and GPU",
    source="LMSYS, 'Deploying DeepSeek with PD disaggregation and large-scale expert parallelism on 96 H100"
    " GPUs', May 2025; DeepSeek open-infra-index, 'DeepSeek-V3/R1 inference system overview', February 2025"
    " (CC0); DeepSeek profile-data, February 2025",
    files=(),
    cases=_cases,
    assumptions=(
        "routing is uniform and balanced by EPLB with 32 copies of experts, or forced balance where the"
        " publication says so (perfect EPLB, DeepSeek's profiles); 288 experts on EP32 and EP144 are as"
        " published, the profile of decode on EP128 has no copies",
        "SGLang decodes 4K with simulated MTP: priced as steps of one token per request",
        "SGLang's contexts are half an output of 100 tokens longer than the prompt",
        "DeepSeek's production figures are means over a day, so that of prefill is of load, not of capacity;"
        " 16,384 tokens per step and prompts of 4,096 are those of its profile",
        "DeepSeek's decode batch in production is not published: throughput over its 20 to 22 tokens/s per"
        " user makes some 88 requests per GPU, at the published mean context of 4,989",
        "no host time; kernels of SGLang where measured",
    ),
)
"""Nothing is fitted."""
