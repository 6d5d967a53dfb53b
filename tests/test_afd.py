"""Decode steps with attention and FFN on ranks of their own, from a model to a time."""

import json
from dataclasses import replace
from typing import Any

import pytest

from frontier import _frontier
from frontier.afd_lowering import ActivationDtype, AfdHost, AfdLayout, AfdTransfer, afd_step_time
from frontier.errors import ConfigError
from frontier.hardware import load_gpu
from frontier.models import load_model

FREE = AfdTransfer(
    dtype="bf16",
    latency_s=0.0,
    attention_bandwidth_bytes_per_s=1e30,
    ffn_bandwidth_bytes_per_s=1e30,
)
H800 = load_gpu("h800")


def plan(name: str, layout: AfdLayout, **settings: Any) -> dict[str, Any]:
    given = {"attention_gpu": H800, "ffn_gpu": H800, "a2f": FREE, "f2a": FREE, **settings}
    return afd_step_time(load_model(name), layout, **given)


def step(
    step_time: dict[str, Any],
    requests: list[int],
    context: int = 4096,
    prompts: tuple[tuple[int, int, bool], ...] = (),
) -> dict[str, Any]:
    batches = [[(1, context, False)] * count + list(prompts) for count in requests]
    return _frontier.step_breakdown(json.dumps(step_time), batches)


@pytest.mark.parametrize("prompts", [(), ((5000, 7000, True), (700, 700, True))], ids=["decode", "mixed"])
@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen3-30b-a3b", "deepseek-v2-lite"])
def test_alone_and_over_free_links_it_is_the_colocated_step(
    name: str, prompts: tuple[tuple[int, int, bool], ...]
) -> None:
    from frontier.models import operator_program

    alone = AfdLayout(attention_ranks=1, ffn_ranks=1, micro_batches=1)
    apart = step(plan(name, alone), [64], prompts=prompts)
    whole = plan(name, AfdLayout(attention_ranks=1, ffn_ranks=1, micro_batches=1))["attention"]
    whole["stages"] = [
        [each.to_plan() for each in operator_program(load_model(name), tensor_parallel_size=1)]
    ]
    whole["launches"] = None
    whole["layout"]["pipeline_parallel_size"] = 1
    together = step({"kind": "operators", **whole}, [64], prompts=prompts)
    layers = load_model(name).num_layers
    assert apart["total_ns"] == pytest.approx(together["total_ns"], abs=2 * layers + 2)
    assert apart["flops"] == pytest.approx(together["flops"])
    assert apart["bytes"] == pytest.approx(together["bytes"])
    # Cut, it is the same work, but for weights and keys that are read again.
    parts = step(plan(name, replace(alone, micro_batches=3)), [64], prompts=prompts)
    assert parts["flops"] == pytest.approx(together["flops"])
    assert parts["bytes"] > together["bytes"]


def test_more_micro_batches_hide_transfers_until_the_slowest_side_is_busy() -> None:
    slow = AfdTransfer.over_network("bf16", H800, H800)

    def total(micro_batches: int) -> int:
        layout = AfdLayout(attention_ranks=4, ffn_ranks=4, micro_batches=micro_batches)
        found: int = step(plan("qwen3-30b-a3b", layout, a2f=slow, f2a=slow), [384] * 4)["total_ns"]
        return found

    one, three = total(1), total(3)
    assert three < one


def test_idle_ranks_and_repeats_change_nothing() -> None:
    two = AfdLayout(attention_ranks=2, ffn_ranks=4, micro_batches=3)
    one = replace(two, attention_ranks=1)
    moving = AfdTransfer.over_network("fp8", H800, H800)
    found = [
        step(plan("deepseek-v3", layout, a2f=moving, f2a=FREE), requests)["total_ns"]
        for layout, requests in [(one, [48]), (two, [48, 0]), (two, [0, 48]), (two, [0, 48])]
    ]
    assert len(set(found)) == 1


def test_hosts_work_once_per_step_and_graphs_pad_every_micro_batch() -> None:
    layout = AfdLayout(attention_ranks=1, ffn_ranks=1, micro_batches=3)
    free = step(plan("llama-3.1-8b", layout), [35])
    host = AfdHost(per_step_s=2e-3, per_seq_s=1e-5, overlapped=False)
    busy = step(plan("llama-3.1-8b", layout, attention_host=host), [35])
    assert busy["total_ns"] == free["total_ns"] + 2_350_000
    graphs = AfdHost(capture_sizes=(1, 2, 4, 8, 16, 32))
    padded = step(plan("llama-3.1-8b", layout, attention_host=graphs, ffn_host=graphs), [35])
    assert (padded["padded_tokens"], padded["graph"]) == (3 * 16, "full")
    assert (free["padded_tokens"], free["graph"]) == (35, "eager")


def test_routing_brings_stragglers() -> None:
    layout = AfdLayout(attention_ranks=2, ffn_ranks=8, micro_batches=2)
    routing = {
        **{"seed": 1, "replication": 0, "sampling": "mean", "drift": None, "placement": "linear"},
        **{"eplb": None, "shared_overlap_max_tokens": 0, "dbo": None},
    }

    def total(kind: dict[str, Any]) -> int:
        step_time = plan("qwen3-30b-a3b", layout, routing={**routing, "routing": kind})
        found: int = step(step_time, [512, 512])["total_ns"]
        return found

    assert total({"kind": "balanced"}) < total({"kind": "power_law", "exponent": 1.0})


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"micro_batches": 0}, "micro_batches"),
        ({"ffn_ranks": 7}, "ffn_ranks"),
        ({"attention_tensor_parallel_size": 16}, "attention_tensor_parallel_size"),
        ({"ffn_tensor_parallel_size": 5}, "ffn_tensor_parallel_size"),
        ({"redundant_experts": -1}, "redundant_experts"),
    ],
)
def test_layouts_that_do_not_fit_are_refused(change: dict[str, int], path: str) -> None:
    layout = replace(AfdLayout(attention_ranks=2, ffn_ranks=8, micro_batches=3), **change)
    with pytest.raises(ConfigError) as caught:
        plan("qwen3-30b-a3b", layout)
    assert path in [issue.path for issue in caught.value.issues]
    with pytest.raises(ConfigError):
        plan(
            "qwen3-30b-a3b",
            AfdLayout(attention_ranks=1, ffn_ranks=1, micro_batches=1),
            ffn_host=AfdHost(per_step_s=1.0),
        )


@pytest.mark.parametrize(
    ("attention_gpus", "requests", "context", "fp8_attention", "published"),
    [(16, 384, 4096, True, 4039), (24, 252, 4096, False, 3321), (32, 192, 8192, True, 2643)],
    ids=["2A2F", "3A2F", "4A2F"],
)
def test_step_3_published_deployments(
    attention_gpus: int, requests: int, context: int, published: int, *, fp8_attention: bool
) -> None:
    """Tokens per second and GPU of Step-3 on H800 (arXiv:2507.19427, table 8): 3 micro-batches, 16 FFN GPUs.

    Experts are spread over the FFN's GPUs one by one; links reach StepMesh's 161.3 Gbps; GPUs their roofline.
    """
    from frontier.models.spec import Quantization

    def transfer(dtype: ActivationDtype) -> AfdTransfer:
        bandwidth = 161.3e9 / 8
        return AfdTransfer(
            dtype=dtype,
            latency_s=0.0,
            attention_bandwidth_bytes_per_s=bandwidth,
            ffn_bandwidth_bytes_per_s=bandwidth,
        )

    model = replace(load_model("step-3"), quantization=Quantization("fp8_block", (128, 128)))
    step_time = afd_step_time(
        model,
        AfdLayout(attention_ranks=attention_gpus, ffn_ranks=16, micro_batches=3),
        attention_gpu=H800,
        ffn_gpu=H800,
        a2f=transfer("fp8"),
        f2a=transfer("bf16"),
        kv_cache_dtype="fp8" if fp8_attention else "auto",
        fp8_attention=fp8_attention,
    )
    found = step(step_time, [requests] * attention_gpus, context)["total_ns"] / 1e9
    tokens_per_s_per_gpu = requests * attention_gpus / found / (attention_gpus + 16)
    assert tokens_per_s_per_gpu == pytest.approx(published, rel=0.15)
