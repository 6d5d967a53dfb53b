"""Compare the first forward pass of Qwen3-30B-A3B on H200 (TP4, DP2, EP8) with a measured one.

    python benches/first_forward.py DATA

DATA is the folder `h200_e2e` of the reference data. One rank prefills 4,096 tokens, the other runs one dummy
token. The measured engine was a fork of vLLM 0.10.2, eager, with FlashInfer, every operator between CUDA
events. The last lines say how long launching takes the host: eager with frontier's cost per kernel, and what
a kernel would have to cost for launches alone to explain the measured total.
"""

import csv
import json
import sys
from pathlib import Path

from frontier import _frontier
from frontier.config.engine import CpuOverhead
from frontier.hardware import load_gpu
from frontier.memory.graphs import GraphCapture
from frontier.models import Layout, load_model
from frontier.models.launches import stage_launches
from frontier.models.program import pipeline_stages
from frontier.predictors import attach, chooser
from frontier.predictors.loaded import opened

BATCHES = [[(4096, 4096, True)], [(1, 1, False)]]
# Our operators by those of the measured table; what is not in it is part of the total alone.
SAME = {
    "fused_add_rms_norm": ("input_layernorm", "post_attention_layernorm", "final_layernorm"),
    "qkv_proj": ("attn_pre_proj(QKV)",),
    "rotary_embedding": ("attn_rope",),
    "kv_cache_write": ("attn_kv_cache_save",),
    "attention": ("attn_prefill(FlashInfer)",),
    "o_proj": ("attn_post_proj(row_parallel_gemm)",),
    "all_reduce.attention": ("attention_TP4_allreduce_in_context(range 5.537-5.709)",),
    "router.gate": ("moe_gating_linear",),
    "router.topk": ("moe_gating_routing_topk",),
    "experts": ("moe_shuffling", "moe_grouped_gemm(W1+act+W2)", "moe_sum"),
    "embedding": ("embedding",),
}
TOTAL = "first_forward_total_batch_after"


def main() -> None:
    table = Path(sys.argv[1], "h200_qwen3_30b_first_prefill_ops.csv")
    with table.open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["gpu"] == "H200"]
    measured = {row["op"]: float(row["vllm_measured_ms_48_layers_TP0"]) for row in rows}
    gpu = load_gpu("h200")
    layout = Layout(tensor_parallel_size=4, data_parallel_size=2, enable_expert_parallel=True)
    stages = pipeline_stages(load_model("qwen3-30b-a3b"), layout)
    paths = [path for name in ("h200", "generic") if (path := chooser.shipped_pack(name)) is not None]
    choose = chooser.Chooser([opened(path) for path in paths], gpu.name, backend="vllm", version=None)
    attached = attach.attach_chosen(stages, choose, {})
    launches = [stage_launches(stage) for stage in attached.stages]
    overhead = CpuOverhead()
    step_time = {
        "kind": "operators",
        "gpu": gpu.to_plan(),
        "links": gpu.links(8).to_plan(),
        "cpu": {"per_step_s": 0.0, "per_seq_s": 0.0, "overlapped": True},
        "launches": {
            "per_kernel_s": overhead.per_kernel_launch / 1e9,
            "per_graph_s": overhead.per_graph_launch / 1e9,
            "per_graph_kernel_s": overhead.per_graph_kernel / 1e9,
            "graphs": GraphCapture("none").to_plan(),
            "stages": launches,
        },
        "layout": layout.to_plan(),
        "stages": attached.stages,
        "residuals": None,
    }
    step = _frontier.step_breakdown(json.dumps(step_time), BATCHES, list(attached.predictors))
    print(f"{'operator':26}{'runs':>5}{'ours, ms':>10}{'measured':>10}{'ratio':>7}  provenance")
    for row in step["operators"]:
        ours = row["seconds"] * 1e3
        names = SAME.get(row["name"], ())
        found = sum(measured[name] for name in names)
        compared = f"{found:10.3f}{ours / found:7.2f}" if names else " " * 17
        print(f"{row['name']:26}{row['count']:5}{ours:10.3f}{compared}  {row['provenance']}")
    gpu = sum(row["seconds"] for row in step["operators"]) * 1e3
    kernels = sum(sum(stage.values()) - stage["pieces"] for stage in launches)
    print(f"{'GPU':31}{gpu:10.3f}{measured[TOTAL]:10.3f}{gpu / measured[TOTAL]:7.2f}")
    needed = measured[TOTAL] * 1e3 / kernels
    launching = step["launch_ns"] / 1e6
    print(f"{f'launches of {kernels:,} kernels':31}{launching:10.3f}  (all of it: {needed:.0f} us each)")
    ours = step["total_ns"] / 1e6
    print(f"{'total':31}{ours:10.3f}{measured[TOTAL]:10.3f}{ours / measured[TOTAL]:7.2f}")


if __name__ == "__main__":
    main()
