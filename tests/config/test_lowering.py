"""The plan that a scenario lowers to, and that the simulator accepts it."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frontier import _frontier
from frontier.config import Scenario
from frontier.errors import ConfigError, WorkloadError
from frontier.lowering import LIVELOCK_STEPS, SCHEMA_VERSION, lower

AZURE = {"trace": {"path": "azure-2023-conv"}}


RUST = Path(__file__).parents[2] / "rust" / "frontier-core" / "src" / "plan" / "step_time.rs"


def plan_fields(struct: str) -> set[str]:
    body = re.search(rf"pub struct {struct} \{{\n(.*?)\n\}}", RUST.read_text(), re.DOTALL)
    assert body is not None
    return set(re.findall(r"^    pub (\w+):", body.group(1), re.MULTILINE))


def tiny(scenario: Scenario) -> Scenario:
    return scenario.with_({"workload.synthetic.num_requests": 3})


def test_the_plan_has_the_shape_of_the_schema(base: Scenario) -> None:
    plan = lower(base.with_({"engine.tensor_parallel_size": 2, "cluster.replicas": 3})).plan
    assert set(plan) == {
        "schema_version",
        "seed",
        "replication",
        "clusters",
        "workload",
        "output",
        "limits",
    }
    (cluster,) = plan["clusters"]
    assert set(cluster) == {
        "name",
        "replicas",
        "router",
        "data_parallel",
        "scheduler",
        "kv_tiers",
        "step_time",
        "frontend",
    }
    assert plan["schema_version"] == SCHEMA_VERSION == _frontier.PLAN_SCHEMA_VERSION
    assert (cluster["name"], cluster["replicas"]) == ("serve", 3)
    assert cluster["router"] == {"policy": "round_robin"}
    assert cluster["scheduler"]["max_num_batched_tokens"] == 8192
    assert cluster["scheduler"]["max_num_seqs"] == 1024
    assert cluster["scheduler"]["max_model_len"] == 131072
    step_time = cluster["step_time"]
    assert set(step_time) == plan_fields("OperatorsSpec") | {"kind"}
    assert step_time["kind"] == "operators"
    assert step_time["layout"] == {
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 1,
        "data_parallel_size": 1,
    }
    assert step_time["links"]["node"]["bandwidth_bytes_per_s"] == 450e9
    assert step_time["links"]["network"] is None
    assert step_time["cpu"] == {"per_step_s": 1e-3, "per_seq_s": 1e-5, "overlapped": True}
    launches = step_time["launches"]
    assert launches["graphs"]["full_decode"] == launches["graphs"]["piecewise"]
    (counted,) = launches["stages"]
    # Of 32 layers: 65 norms, 7 other operators and 2 all-reduces; the embedding and its all-reduce.
    assert counted == {
        "pieces_kernels": 65 + 32 * 8 + 2,
        "attention_kernels": 64,
        "tail_kernels": 2,
        "pieces": 33,
    }
    assert step_time["residuals"] is None
    (stage,) = step_time["stages"]
    assert {"embedding", "all_reduce.embedding", "attention", "sampler"} <= {op["name"] for op in stage}
    assert any(op.get("predictor") for op in stage)
    assert plan["limits"] == {
        "max_steps": None,
        "refuse_oversized": True,
        "livelock_steps": LIVELOCK_STEPS,
    }


def test_one_gpu_crosses_no_link(base: Scenario) -> None:
    step_time = lower(base).plan["clusters"][0]["step_time"]
    assert step_time["links"] == {"node": None, "network": None}
    assert step_time["layout"]["tensor_parallel_size"] == 1


def test_the_plan_is_canonical(base: Scenario) -> None:
    lowered = lower(base)
    assert json.loads(lowered.plan_json) == lowered.plan
    assert lowered.plan_json == json.dumps(lowered.plan, sort_keys=True, separators=(",", ":"))
    assert lower(Scenario.from_yaml(base.to_yaml())).plan_json == lowered.plan_json
    assert lower(Scenario.from_yaml(base.to_yaml(defaults=False))).plan_json == lowered.plan_json


ARRIVALS: list[tuple[Any, dict[str, Any]]] = [
    ({"poisson": {"rate": "90/min"}}, {"kind": "poisson", "rate_per_s": 1.5}),
    ({"gamma": {"rate": 2, "cv": 3}}, {"kind": "gamma", "rate_per_s": 2.0, "cv": 3.0}),
    ({"constant": {"rate": "4/s"}}, {"kind": "constant", "rate_per_s": 4.0}),
    ("burst", {"kind": "burst"}),
    (
        {
            "piecewise": {
                "segments": [{"duration": "1s", "rate": 5}, {"duration": "2ms", "rate": 0}],
                "repeat": True,
            }
        },
        {
            "kind": "piecewise",
            "segments": [
                {"duration_ns": 10**9, "rate_per_s": 5.0},
                {"duration_ns": 2 * 10**6, "rate_per_s": 0.0},
            ],
            "repeat": True,
        },
    ),
    (
        {"closed_loop": {"concurrency": 2, "think_time": "5ms"}},
        {"kind": "closed_loop", "concurrency": 2, "think_time_ns": 5_000_000},
    ),
]

LENGTHS: list[tuple[Any, dict[str, Any]]] = [
    (7, {"kind": "fixed", "tokens": 7}),
    ({"uniform": {"min": 2, "max": 9}}, {"kind": "uniform", "min": 2, "max": 9}),
    ({"range_ratio": {"mean": 101, "ratio": 0.5}}, {"kind": "uniform", "min": 50, "max": 152}),
    ({"range_ratio": {"mean": 1, "ratio": 0.9}}, {"kind": "uniform", "min": 1, "max": 2}),
    (
        {"lognormal": {"mean": 50, "cv": 0.5, "max": 500}},
        {"kind": "lognormal", "mean": 50.0, "cv": 0.5, "min": 1, "max": 500},
    ),
    ({"zipf": {"exponent": 1.5, "max": 40}}, {"kind": "zipf", "exponent": 1.5, "min": 1, "max": 40}),
    (
        {"histogram": {"edges": [1, 5, 9.5], "weights": [1, 2]}},
        {"kind": "histogram", "edges": [1.0, 5.0, 9.5], "weights": [1.0, 2.0]},
    ),
]


@pytest.mark.parametrize(("written", "planned"), ARRIVALS, ids=[p["kind"] for _, p in ARRIVALS])
def test_arrivals(base: Scenario, written: Any, planned: dict[str, Any]) -> None:
    lowered = lower(tiny(base.with_({"workload.synthetic.arrivals": written})))
    assert lowered.plan["workload"]["arrivals"] == planned
    assert len(_frontier.simulate(lowered.plan_json, None, lowered.predictors)["requests"]["status"]) == 3


@pytest.mark.parametrize(("written", "planned"), LENGTHS, ids=[str(w)[:20] for w, _ in LENGTHS])
def test_lengths(base: Scenario, written: Any, planned: dict[str, Any]) -> None:
    changes = {
        "prompt_tokens": written,
        "output_tokens": written,
        "shared_prefix": {"count": 2, "tokens": written},
    }
    scenario = base.with_({f"workload.synthetic.{name}": value for name, value in changes.items()})
    lowered = lower(tiny(scenario))
    workload = lowered.plan["workload"]
    assert workload["prompt_tokens"] == workload["output_tokens"] == planned
    assert workload["shared_prefix"]["tokens"] == planned
    drawn = _frontier.simulate(lowered.plan_json, None, lowered.predictors)["requests"]["output_tokens"]
    least, most = scenario.workload.synthetic.output_tokens.bounds()  # type: ignore[union-attr]
    assert least <= drawn.min() <= drawn.max() <= most


@pytest.mark.parametrize(
    "policy",
    [
        "round_robin",
        "random",
        "least_outstanding",
        "power_of_two",
        "least_kv_use",
        "prefix_aware",
        "session_sticky",
    ],
)
def test_every_router_is_known_to_the_simulator(base: Scenario, policy: str) -> None:
    changes = {"cluster.router.policy": policy, "cluster.replicas": 2, "workload.synthetic.sessions": 2}
    lowered = lower(tiny(base.with_(changes)))
    router = lowered.plan["clusters"][0]["router"]
    assert router["policy"] == policy
    assert router.get("max_imbalance") == (32 if policy == "prefix_aware" else None)
    _frontier.simulate(lowered.plan_json, None, lowered.predictors)


def test_a_linear_step_time(base: Scenario) -> None:
    constants = {
        "per_step": "10ms",
        "per_prefill_token": "20us",
        "per_decode_token": "3us",
        "per_seq": "400ns",
        "per_kv_token": "5ns",
    }
    lowered = lower(tiny(base.with_({"engine.step_time": {"linear": constants}})))
    assert lowered.plan["clusters"][0]["step_time"] == {
        "kind": "linear",
        "per_step_ns": 10_000_000,
        "per_prefill_token_ns": 20_000,
        "per_decode_token_ns": 3_000,
        "per_seq_ns": 400,
        "per_kv_token_ns": 5,
    }
    assert (
        lowered.plan["clusters"][0]["scheduler"]["num_blocks"]
        == lower(base).plan["clusters"][0]["scheduler"]["num_blocks"]
    )
    _frontier.simulate(lowered.plan_json, None, lowered.predictors)


def test_a_trace_goes_beside_the_plan(base: Scenario) -> None:
    lowered = lower(base.with_({"workload": AZURE}))
    assert lowered.plan["workload"] == {"kind": "trace", "arrivals": None, "num_requests": None}
    assert lowered.columns is not None
    assert lowered.trace is not None
    assert len(lowered.trace) == len(lowered.columns) == 19_366
    assert lowered.trace is lowered.trace
    assert lower(base).trace is None


def test_scenarios_with_the_same_trace_share_it(base: Scenario) -> None:
    scenario = base.with_({"workload": AZURE})
    first = lower(scenario)
    assert lower(scenario.with_({"cluster.replicas": 2, "seed": 5})).columns is first.columns
    assert lower(scenario.with_({"workload.trace.rate_scale": 2})).columns is not first.columns


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({"num_requests": 100}, slice(0, 100)),
        ({"start": "10min", "num_requests": 100}, "from 10 min, 100"),
        ({"start": "10min", "end": "20min"}, "10 min to 20 min"),
        ({"num_requests": 10**6, "arrivals": {"poisson": {"rate": 5}}}, slice(0, None)),
    ],
)
def test_a_trace_is_cut(base: Scenario, changes: dict[str, Any], rows: slice | str) -> None:
    whole = lower(base.with_({"workload": AZURE})).columns
    lowered = lower(base.with_({"workload": {"trace": {"path": "azure-2023-conv", **changes}}}))
    assert whole is not None
    assert lowered.columns is not None
    if isinstance(rows, str):
        first, last = np.searchsorted(whole.arrival_ns, [600 * 10**9, 1200 * 10**9])
        rows = slice(first, first + 100 if "100" in rows else last)
    assert list(lowered.columns.prompt_tokens) == list(whole.prompt_tokens[rows])
    assert lowered.plan["workload"]["num_requests"] == changes.get("num_requests")


def test_sampling_follows_seed_and_replication(base: Scenario) -> None:
    scenario = base.with_({"workload": {"trace": {"path": "azure-2023-conv", "sample": "10%"}}})
    kept = [
        tuple(lower(scenario.with_(changes)).columns.arrival_ns[:50])  # type: ignore[union-attr]
        for changes in ({}, {"seed": 1}, {"replication": 1}, {"seed": 0})
    ]
    assert len(set(kept)) == 3
    assert kept[0] == kept[3]


def test_a_changed_file_is_read_again(base: Scenario, tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    rows = ["arrived_at,num_prefill_tokens,num_decode_tokens", "0,5,5", "1,5,5"]
    file.write_text("\n".join(rows))
    scenario = base.with_({"workload": {"trace": {"path": str(file)}}})
    first = lower(scenario)
    file.write_text("\n".join([*rows, "2,5,5"]))
    second = lower(scenario)
    assert (len(first.columns or ()), len(second.columns or ())) == (2, 3)


def test_a_plain_trace_without_arrivals(base: Scenario, tmp_path: Path) -> None:
    file = tmp_path / "lengths.csv"
    file.write_text("in,out\n5,6\n7,8\n")
    columns = {"prompt_tokens": "in", "output_tokens": "out"}
    trace = {"path": str(file), "format": "plain", "columns": columns, "arrivals": {"constant": {"rate": 2}}}
    lowered = lower(base.with_({"workload": {"trace": {**trace, "num_requests": 5}}}))
    ended = _frontier.simulate(lowered.plan_json, lowered.trace, lowered.predictors)["requests"]
    assert list(ended["prompt_tokens"]) == [5, 7, 5, 7, 5]
    assert set(np.diff(ended["arrival_ns"])) == {500_000_000}
    with pytest.raises(WorkloadError, match="arrival"):
        lower(base.with_({"workload": {"trace": {**trace, "arrivals": None}}}))


def test_what_only_the_rows_tell_is_refused(base: Scenario) -> None:
    trace = {"path": "azure-2023-conv"}
    with pytest.raises(ConfigError, match="was 20000, the trace has 19366 rows: lower it"):
        lower(base.with_({"workload": {"trace": {**trace, "num_requests": 20_000}}}))
    with pytest.raises(ConfigError, match="the trace has no sessions"):
        lower(base.with_({"workload": {"trace": trace}, "cluster.router": "session_sticky"}))


def test_skipped_rows_are_a_warning(base: Scenario, tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0,5,5\n1,-5,5\n")
    scenario = base.with_({"workload": {"trace": {"path": str(file)}}})
    with pytest.raises(WorkloadError, match=r"trace\.csv:3"):
        lower(scenario)
    skipped = lower(scenario.with_({"workload.trace.on_bad_row": "skip"}))
    assert any("skipped 1" in warning for warning in skipped.warnings)


def test_the_plan_holds_plain_finite_values(base: Scenario) -> None:
    def check(value: Any) -> None:
        if isinstance(value, dict):
            for item in value.values():
                check(item)
        elif isinstance(value, list):
            for item in value:
                check(item)
        else:
            assert value is None or type(value) in (bool, int, float, str)
            assert not isinstance(value, float) or math.isfinite(value)

    for model, gpu, tp in (
        ("deepseek-v3", "h200", 8),
        ("gpt-oss-120b", "h100", 2),
        ("gemma-3-27b", "b200", 1),
    ):
        engine: dict[str, Any] = {"tensor_parallel_size": tp, "max_model_len": 4096}
        if model != "deepseek-v3":
            engine["disable_hybrid_kv_cache_manager"] = True
        check(lower(base.with_({"model": model, "hardware": gpu, "engine": engine})).plan)


def test_importing_frontier_stays_light() -> None:
    heavy = "polars pydantic yaml rich numpy"
    code = f"import sys, frontier; print([m for m in '{heavy}'.split() if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
