"""Prefill and decode apart on 32 to 4,096 GPUs: CPU seconds and memory beside the reference simulator's.

    python benches/pdd_scale.py [--gpus 32 1024 4096] [--cases dense moe] [--clocks linear learned]
                                [--links dedicated network] [--runs 3]

The workload is that of the reference's own study of its wall-clock time: 512 prompt and 128 output tokens,
two requests per GPU, Poisson arrivals at a quarter of a request per GPU and second, half of the GPUs prefill
and half decode. `dense` is Llama-3.1-70B with TP4 PP2, `moe` Qwen3-235B-A22B with TP4 DP2 EP8 PP2. The
reference ran with constants of 1 ms per operator and without metrics; `linear` is a step of constants (so
that work, not its price, is compared), `roofline` and `learned` price every operator of every step. All
results and metrics are kept.

Every size runs in a process of its own: CPU is user + system of that process, the interpreter's start and
all imports included (of modules compiled before, as those of an installed package are); `simulate` is the
part in the core; peak is the resident set.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any

SIZES = (32, 64, 128, 256, 512, 1024, 4096)
REFERENCE_S = {
    "dense": {32: 0.39, 64: 0.79, 128: 1.70, 256: 3.49, 512: 8.08, 1024: 17.98, 4096: 72.85},
    "moe": {32: 33.7, 64: 72.8, 128: 150.9, 256: 310.7, 512: 645.7, 1024: 1288.0, 4096: 5256.8},
}
"""Wall seconds that the reference's authors publish, on a cluster node; 5.8 s of its start come on top."""
REFERENCE_MB = {
    "dense": {32: 210, 64: 211, 128: 213, 256: 216, 512: 227, 1024: 252, 4096: 403},
    "moe": {32: 230, 64: 256, 128: 313, 256: 427, 512: 660, 1024: 1106, 4096: 3786},
}

CASES: dict[str, tuple[dict[str, Any], int]] = {
    "dense": (
        {
            "model": "llama-3.1-70b",
            "hardware": "h100",
            "engine": {"tensor_parallel_size": 4, "pipeline_parallel_size": 2, "max_model_len": 4096},
        },
        8,
    ),
    "moe": (
        {
            "model": "qwen3-235b-a22b",
            "hardware": "h200",
            "engine": {
                "tensor_parallel_size": 4,
                "pipeline_parallel_size": 2,
                "data_parallel_size": 2,
                "enable_expert_parallel": True,
                "max_model_len": 4096,
            },
        },
        16,
    ),
}
"""Scenarios without clusters, and the GPUs of a replica."""

CLOCKS: dict[str, Any] = {
    "linear": {"linear": {"per_step": "10ms", "per_prefill_token": "20us"}},
    "roofline": "roofline",
    "learned": "learned",
}


@dataclass(frozen=True, slots=True)
class Run:
    """One process.

    Attributes:
        facts: what it said of itself.
        cpu_s: its user + system time.
        peak_mib: its largest resident set.
    """

    facts: dict[str, Any]
    cpu_s: float
    peak_mib: float


def scenario_of(case: str, gpus: int, clock: str, links: str) -> dict[str, Any]:
    """Return the scenario of a size."""
    fixed, per_replica = CASES[case]
    replicas = gpus // 2 // per_replica
    if not replicas:
        raise SystemExit(
            f"{case}: {gpus} GPUs are fewer than a prefill and a decode replica of {per_replica}"
        )
    transfer = {"mode": "pull"} | ({"bandwidth": "50GB/s"} if links == "dedicated" else {})
    return fixed | {
        "engine": fixed["engine"] | {"step_time": CLOCKS[clock]},
        "clusters": [{"role": role, "replicas": replicas} for role in ("prefill", "decode")],
        "disaggregation": {"kv_transfer": transfer},
        "workload": {
            "synthetic": {
                "arrivals": {"poisson": {"rate": gpus / 4}},
                "num_requests": 2 * gpus,
                "prompt_tokens": 512,
                "output_tokens": 128,
            }
        },
    }


def child(case: str, gpus: int, clock: str, links: str) -> None:
    """Simulate one size; print what it took."""
    begin = time.process_time()
    import frontier  # noqa: PLC0415 - part of what is measured
    from frontier import _frontier, simulation  # noqa: PLC0415
    from frontier.lowering import lower  # noqa: PLC0415

    imported = time.process_time()
    scenario = frontier.Scenario.from_dict(scenario_of(case, gpus, clock, links))
    lowered = lower(scenario)
    planned = time.process_time()
    raw = _frontier.simulate(lowered.plan_json, lowered.trace, lowered.predictors)
    simulated = time.process_time()
    result = frontier.Result(raw, simulation.run_facts(scenario, lowered))
    str(result.summary())
    summarised = time.process_time()
    totals = result.totals
    tokens = int(result.columns.requests["generated_tokens"].sum())
    if tokens != 2 * gpus * 128:
        raise SystemExit(f"{tokens} tokens were made, not {2 * gpus * 128}")
    facts = {
        "start_s": imported,
        "import_s": imported - begin,
        "lower_s": planned - imported,
        "simulate_s": simulated - planned,
        "summary_s": summarised - simulated,
        "steps": totals["num_steps"],
        "events": totals["num_events"],
        "digest": totals["digest"],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(facts))


def run_once(case: str, gpus: int, clock: str, links: str, bytecode: str) -> Run:
    """Run a size in a process of its own, whose compiled modules lie in the folder `bytecode`."""
    command = [sys.executable, __file__, "--child", case, str(gpus), clock, links]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = bytecode
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
    peak = usage.ru_maxrss / (1024 if sys.platform != "darwin" else 1024 * 1024)
    return Run(json.loads(output), usage.ru_utime + usage.ru_stime, peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--gpus", type=int, nargs="+", default=SIZES)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--clocks", nargs="+", choices=CLOCKS, default=["linear", "learned"])
    parser.add_argument("--links", nargs="+", choices=("dedicated", "network"), default=["dedicated"])
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    if options.child:
        case, gpus, clock, links = options.child
        child(case, int(gpus), clock, links)
        return
    with tempfile.TemporaryDirectory() as bytecode:
        measure(options, bytecode)


def measure(options: argparse.Namespace, bytecode: str) -> None:
    """Print a table for each case, clock and kind of links."""
    for case, clock, links in itertools.product(options.cases, options.clocks, options.links):
        run_once(case, options.gpus[0], clock, links, bytecode)  # compile modules, warm the file cache
        print(f"\n{case}, step time {clock}, {links} links; medians of {options.runs} processes")
        print(
            "| GPUs | requests | steps | CPU s | simulate s | us/step | peak MiB | its s | ratio | its MB |"
        )
        print("|---|---|---|---|---|---|---|---|---|---|")
        for gpus in options.gpus:
            runs = [run_once(case, gpus, clock, links, bytecode) for _ in range(options.runs)]
            if len({run.facts["digest"] for run in runs}) > 1:
                raise SystemExit("runs of one scenario differ")
            cpu = statistics.median(run.cpu_s for run in runs)
            simulate = statistics.median(run.facts["simulate_s"] for run in runs)
            peak = max(run.peak_mib for run in runs)
            steps = runs[0].facts["steps"]
            theirs, theirs_mb = REFERENCE_S[case].get(gpus), REFERENCE_MB[case].get(gpus)
            beside = f"{theirs:,} | {theirs / cpu:,.0f} | {theirs_mb:,}" if theirs else "- | - | -"
            per_step_us = simulate / steps * 1e6
            row = f"{gpus:,} | {2 * gpus:,} | {steps:,} | {cpu:.2f} | {simulate:.3f} | {per_step_us:.2f}"
            print(f"| {row} | {peak:.0f} | {beside} |", flush=True)


if __name__ == "__main__":
    main()
