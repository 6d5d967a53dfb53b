"""DeepSeek-V3 with wide expert parallelism: simulated throughput per node of 8 GPUs beside published figures.

    python benches/wide_ep.py [--skew EXPONENT]

One step of a whole deployment is priced (every data parallel rank with the same batch); throughput per node
is that of steps in a row. Published figures:

- SGLang on 96 H100: LMSYS, "Deploying DeepSeek with PD disaggregation and large-scale expert parallelism on
  96 H100 GPUs", May 2025.
- DeepSeek's production on H800: open-infra-index, "DeepSeek-V3/R1 inference system overview", February 2025.
  Means over a day, so the prefill figure is of load, not of capacity. The decode batch is not published:
  throughput over its 20 to 22 tokens/s per user makes some 88 requests per GPU, at the published mean context
  of 4,989.
- DeepSeek's profiles on H800 (profile-data), with forced balance.

Where a deployment runs two micro-batches, both are simulated: together, and one alone. Routing is uniform and
balanced by EPLB, or forced balance where the publication says so; `--skew` takes a power law instead of the
uniform law.
"""

import argparse
import json
from dataclasses import dataclass, replace
from typing import Any

from frontier import _frontier
from frontier.config.moe import Moe
from frontier.hardware import load_gpu
from frontier.models import Layout, load_model
from frontier.models.program import pipeline_stages
from frontier.moe_lowering import moe_plan
from frontier.predictors import attach, chooser
from frontier.predictors.loaded import opened

GPUS_PER_NODE = 8
Request = tuple[int, int, bool]


@dataclass(frozen=True)
class Deployment:
    """A published figure: `batch` is that of one GPU, `per_node` its tokens per second and node of 8 GPUs."""

    name: str
    gpu: str
    ranks: int
    batch: tuple[Request, ...]
    per_node: float
    redundant: int = 32
    balanced: bool = False
    dbo: bool = True


def prefill(tokens: int, length: int) -> tuple[Request, ...]:
    return ((length, length, True),) * (tokens // length)


def decode(requests: int, context: int) -> tuple[Request, ...]:
    return ((1, context, False),) * requests


DEPLOYMENTS = (
    Deployment("SGLang prefill EP32, 1K", "h100", 32, prefill(16384, 1024), 57_674),
    Deployment("SGLang prefill EP32, 2K", "h100", 32, prefill(16384, 2048), 54_543),
    Deployment("SGLang prefill EP32, 4K", "h100", 32, prefill(16384, 4096), 50_302),
    Deployment(
        "SGLang prefill EP32, 4K, perfect EPLB", "h100", 32, prefill(16384, 4096), 59_337, balanced=True
    ),
    Deployment("SGLang decode EP72, 2K, 256 per GPU", "h100", 72, decode(256, 2000 + 50), 22_282),
    Deployment("SGLang decode EP72, 4K, 128, no TBO", "h100", 72, decode(128, 4000 + 50), 12_929, dbo=False),
    Deployment("DeepSeek prefill EP32 (no cache hits)", "h800", 32, prefill(16384, 4096), 32_200),
    Deployment("DeepSeek decode EP144, 88 per GPU", "h800", 144, decode(88, 4989), 14_800),
    Deployment(
        "DeepSeek profile, prefill EP32, 4K",
        "h800",
        32,
        prefill(16384, 4096),
        7_839 * GPUS_PER_NODE,
        balanced=True,
    ),
    Deployment(
        "DeepSeek profile, decode EP128, 4K, 128",
        "h800",
        128,
        decode(128, 4096),
        2_324 * GPUS_PER_NODE,
        redundant=0,
        balanced=True,
    ),
)


def step(deployment: Deployment, skew: float | None) -> dict[str, Any]:
    """Price one step of the deployment."""
    spec, gpu = load_model("deepseek-v3"), load_gpu(deployment.gpu)
    is_prefill = deployment.batch[0][2]
    layout = Layout(
        data_parallel_size=deployment.ranks,
        enable_expert_parallel=True,
        all2all_backend="deepep_high_throughput" if is_prefill else "deepep_low_latency",
        gpus_per_node=GPUS_PER_NODE,
        num_redundant_experts=deployment.redundant,
    )
    stages = pipeline_stages(spec, layout)
    paths = [path for name in (gpu.name, "generic") if (path := chooser.shipped_pack(name)) is not None]
    choose = chooser.Chooser([opened(path) for path in paths], gpu.name, backend="sglang", version=None)
    attached = attach.attach_chosen(stages, choose, {})
    law: Any = "balanced" if deployment.balanced else "uniform"
    if skew is not None and not deployment.balanced:
        law = {"power_law": {"exponent": skew}}
    section = {
        "routing": law,
        "all2all_backend": layout.all2all_backend,
        "enable_dbo": deployment.dbo,
        "eplb": None if deployment.balanced else {"num_redundant_experts": deployment.redundant},
    }
    moe = Moe.model_validate({key: value for key, value in section.items() if value is not None})
    plan = moe_plan(moe, attached.stages, spec=spec, layout=layout, version="0.32", seed=0, replication=0)
    step_time = {
        "kind": "operators",
        "gpu": gpu.to_plan(),
        "links": gpu.links(layout.gpus, layout.nodes).to_plan(),
        "cpu": {"per_step_s": 0.0, "per_seq_s": 0.0, "overlapped": True},
        "layout": layout.to_plan(),
        "stages": attached.stages,
        "residuals": None,
        "moe": plan,
    }
    batches = [list(deployment.batch)] * deployment.ranks
    return _frontier.step_breakdown(json.dumps(step_time), batches, list(attached.predictors))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--skew", type=float, help="exponent of a power law of popularity")
    arguments.add_argument("--operators", action="store_true", help="list operators")
    given = arguments.parse_args()
    print(f"{'':42} {'published':>10} {'simulated':>10} {'error':>8} {'one batch':>10} {'step ms':>8}")
    for deployment in DEPLOYMENTS:
        tokens = sum(request[0] for request in deployment.batch) * GPUS_PER_NODE
        found = step(deployment, given.skew)
        alone = step(replace(deployment, dbo=False), given.skew) if deployment.dbo else found
        per_node, one_batch = (tokens / (each["total_ns"] / 1e9) for each in (found, alone))
        print(
            f"{deployment.name:42} {deployment.per_node:10,.0f} {per_node:10,.0f}"
            f" {per_node / deployment.per_node - 1:+8.1%} {one_batch:10,.0f} {found['total_ns'] / 1e6:8.2f}"
        )
        if given.operators:
            for row in sorted(alone["operators"], key=lambda row: -row["seconds"]):
                if row["seconds"] > 0.01 * alone["total_ns"] / 1e9:
                    print(
                        f"    {row['name']:32} {row['seconds'] * 1e3:8.2f} ms, bound"
                        f" {row['bound_s'] * 1e3:8.2f} ms by {row['bound']:8} {row['provenance']}"
                    )


if __name__ == "__main__":
    main()
