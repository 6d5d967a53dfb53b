"""Every problem of a scenario is named with its path, value, what is allowed and the nearest valid name."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from frontier.config import Scenario
from frontier.config.trace import MAX_REQUESTS
from frontier.errors import ConfigError, Issue

Problems = Callable[..., dict[str, Issue]]


def synthetic(**changes: Any) -> dict[str, Any]:
    section: dict[str, Any] = {"arrivals": "burst", "num_requests": 5, "prompt_tokens": 5, "output_tokens": 5}
    section |= changes
    return {"synthetic": {key: value for key, value in section.items() if value is not None}}


SECTIONS: list[tuple[dict[str, Any], str, str]] = [
    ({"engine": {"max_num_seqs": 0}}, "engine.max_num_seqs", "was 0, must be at least 1"),
    ({"engine": {"max_num_seqs": 2.5}}, "engine.max_num_seqs", "must be a whole number"),
    ({"engine": {"max_num_seqs": True}}, "engine.max_num_seqs", "was True, must be"),
    ({"engine": {"max_num_seqs": "many"}}, "engine.max_num_seqs", "was 'many', must be a whole number"),
    ({"engine": {"max_num_seqs": math.nan}}, "engine.max_num_seqs", "was nan, must be finite"),
    ({"engine": {"max_num_seqs": 10**12}}, "engine.max_num_seqs", "must be at most"),
    ({"engine": {"max_num_batched_tokens": "8q"}}, "engine.max_num_batched_tokens", "unit 'q' is unknown"),
    ({"engine": {"max_model_len": "long"}}, "engine.max_model_len", "must be 'auto' or a number of tokens"),
    ({"engine": {"max_model_len": 1}}, "engine.max_model_len", "from 2 to"),
    ({"engine": {"gpu_memory_utilization": 0}}, "engine.gpu_memory_utilization", "must be greater than 0"),
    ({"engine": {"gpu_memory_utilization": "110%"}}, "engine.gpu_memory_utilization", "at most 1 (100%)"),
    ({"engine": {"watermark": 1}}, "engine.watermark", "must be less than 1"),
    ({"engine": {"enable_prefix_caching": "yes"}}, "engine.enable_prefix_caching", "must be true or false"),
    ({"engine": {"name": "trtllm"}}, "engine.name", "this engine is not modelled (allowed: vllm, sglang)"),
    ({"engine": {"version": "0.10"}}, "engine.version", "is not modelled (allowed: 0.11 to 0.32"),
    ({"engine": {"version": 0.3}}, "engine.version", "was 0.3, a version"),
    ({"engine": {"version": 0.3}}, "engine.version", "write '0.30' in quotes"),
    ({"engine": {"version": True}}, "engine.version", "must be a version such as '0.32'"),
    ({"engine": {"pipeline_parallel_size": 0}}, "engine.pipeline_parallel_size", "was 0, must be at least 1"),
    ({"engine": {"cpu_offload_gb": 4}}, "engine.cpu_offload_gb", "is not modelled yet"),
    ({"engine": {"speculative_config": {}}}, "engine.speculative_config", "did you mean 'speculative'?"),
    ({"engine": {"cpu_overhead": {"per_step": 1}}}, "engine.cpu_overhead.per_step", "a time needs a unit"),
    ({"engine": {"step_time": "linear"}}, "engine.step_time.linear", "all constants are 0"),
    (
        {"engine": {"step_time": {}}},
        "engine.step_time",
        "must have exactly one of: learned, roofline, linear",
    ),
    ({"engine": {"step_time": 5}}, "engine.step_time", "was 5, must be one of: learned, roofline, linear"),
    ({"engine": []}, "engine", "was [], must be a mapping with fields such as 'name'"),
    ({"cluster": {"replicas": 10**6}}, "cluster.replicas", "must be at most 16384"),
    ({"cluster": {"router": {"max_imbalance": 3}}}, "cluster.router.max_imbalance", "only with prefix_aware"),
    ({"cluster": {"router": "session_sticky"}}, "cluster.router.policy", "needs workload.synthetic.sessions"),
    ({"hardware": {"gpu": "h100", "price_per_hour": -1}}, "hardware.price_per_hour", "must not be negative"),
    ({"hardware": {"gpu": 5}}, "hardware.gpu", "must be a preset name, a path or an inline mapping"),
    ({"hardware": {"gpu": {}}}, "hardware.gpu", "was an empty mapping"),
    ({"hardware": {"gpu": {"name": "x"}}}, "hardware.gpu.num_sms", "is missing"),
    ({"hardware": {}}, "hardware.gpu", "is required and was not given"),
    ({"model": {"model_type": "llama"}}, "model.hidden_size", "is missing"),
    ({"model": {"config": "llama-3.1-8b", "hidden_size": -5}}, "model.hidden_size", "was -5"),
    ({"model": ""}, "model", "must not be empty"),
    ({"model": {"rope_theta": math.nan}}, "model.rope_theta", "was nan, must be finite"),
    ({"model": {"a": [{1: 2}]}}, "model.a.0", "has the key 1, keys must be text"),
    ({"model": {"a": {1, 2}}}, "model.a", "must be made of plain values"),
    (
        {"hardware": {"gpu": {"peak": {"bf16": math.inf}}}},
        "hardware.gpu.peak.bf16",
        "was inf, must be finite",
    ),
    ({"model": "no/such/config.json"}, "model", "neither a preset nor a config.json"),
    ({"objectives": {"ttft": "0s"}}, "objectives.ttft", "must be longer than 0"),
    ({"objectives": {"ttft": 0.5}}, "objectives.ttft", "a time needs a unit"),
    ({"objectives": {"ttft": "-5ms"}}, "objectives.ttft", "must not be negative"),
    ({"objectives": {"window": {"warmup": "100%"}}}, "objectives.window.warmup", "less than the whole run"),
    (
        {"objectives": {"window": {"warmup": "60%", "cooldown": "40%"}}},
        "objectives.window",
        "take 100% of the run",
    ),
    ({"seed": -1}, "seed", "must not be negative"),
    ({"seed": 2**64}, "seed", "must be at most 18446744073709551615"),
    ({"seed": "1"}, "seed", "must be a whole number"),
    ({"name": ""}, "name", "must not be empty"),
    ({"output": {"timeline_interval": "1us"}}, "output.timeline_interval", "must be at least 1ms"),
    ({"workload": {}}, "workload", "must have exactly one of: {trace: ...}, {synthetic: ...}"),
    ({"workload": "trace"}, "workload", "was 'trace', must be one of: {trace: ...}, {synthetic: ...}"),
    ({"workload": synthetic(num_requests=None)}, "workload.synthetic", "needs num_requests or duration"),
    (
        {"workload": synthetic(num_requests=None, duration="1s")},
        "workload.synthetic",
        "burst arrivals need num_requests",
    ),
    (
        {"workload": synthetic(num_requests=10**9)},
        "workload.synthetic.num_requests",
        f"at most {MAX_REQUESTS}",
    ),
    ({"workload": synthetic(duration=5)}, "workload.synthetic.duration", "a time needs a unit"),
    ({"workload": synthetic(max_priority=2**31)}, "workload.synthetic.max_priority", "must be at most"),
    ({"workload": synthetic(sessions=0)}, "workload.synthetic.sessions", "must be at least 1"),
    (
        {"workload": synthetic(arrivals="poisson")},
        "workload.synthetic.arrivals",
        "was 'poisson', must be one",
    ),
    (
        {"workload": synthetic(arrivals={"poisson": {"rate": 0}})},
        "workload.synthetic.arrivals.poisson.rate",
        "must be at least 1e-09",
    ),
    (
        {"workload": synthetic(arrivals={"poisson": {"rate": math.inf}})},
        "workload.synthetic.arrivals.poisson.rate",
        "was inf, must be finite",
    ),
    (
        {"workload": synthetic(arrivals={"gamma": {"rate": 1, "cv": 0}})},
        "workload.synthetic.arrivals.gamma.cv",
        "was 0, must be at least 0.0001",
    ),
    (
        {"workload": synthetic(arrivals={"piecewise": {"segments": []}})},
        "workload.synthetic.arrivals.piecewise.segments",
        "has 0 entries, must have at least 1",
    ),
    (
        {"workload": synthetic(arrivals={"piecewise": {"segments": [{"duration": "1s", "rate": 0}]}})},
        "workload.synthetic.arrivals.piecewise",
        "all rates are 0",
    ),
    (
        {"workload": synthetic(arrivals={"piecewise": {"segments": [{"duration": "1s", "rat": 1}]}})},
        "workload.synthetic.arrivals.piecewise.segments.0.rat",
        "is not a known field",
    ),
    (
        {
            "workload": synthetic(
                arrivals={
                    "piecewise": {"segments": [{"duration": "1s", "rate": 1}, {"duration": "1s", "rate": 0}]}
                }
            )
        },
        "workload.synthetic",
        "0 for ever",
    ),
    ({"workload": synthetic(prompt_tokens=0)}, "workload.synthetic.prompt_tokens.fixed", "at least 1"),
    ({"workload": synthetic(prompt_tokens=-1)}, "workload.synthetic.prompt_tokens.fixed", "must not be neg"),
    ({"workload": synthetic(prompt_tokens=2**32)}, "workload.synthetic.prompt_tokens.fixed", "at most"),
    ({"workload": synthetic(prompt_tokens=2**32 - 5)}, "workload.synthetic", "must have at most 4294967295"),
    ({"workload": synthetic(prompt_tokens="uniform")}, "workload.synthetic.prompt_tokens", "must be one of"),
    (
        {"workload": synthetic(prompt_tokens={"uniform": {"min": 9, "max": 3}})},
        "workload.synthetic.prompt_tokens.uniform",
        "min 9 is over max 3",
    ),
    (
        {"workload": synthetic(prompt_tokens={"lognormal": {"mean": 9, "cv": 0.1, "max": 3}})},
        "workload.synthetic.prompt_tokens.lognormal",
        "lies in 1 ... 3; widen the range",
    ),
    (
        {"workload": synthetic(prompt_tokens={"range_ratio": {"mean": 9, "ratio": 1}})},
        "workload.synthetic.prompt_tokens.range_ratio.ratio",
        "must be less than 1",
    ),
    (
        {"workload": synthetic(prompt_tokens={"histogram": {"edges": [1, 2], "weights": [1, 1]}})},
        "workload.synthetic.prompt_tokens.histogram",
        "has 2 edges and 2 weights",
    ),
    (
        {"workload": synthetic(prompt_tokens={"histogram": {"edges": [2, 1], "weights": [1]}})},
        "workload.synthetic.prompt_tokens.histogram",
        "edges must increase",
    ),
    (
        {"workload": synthetic(prompt_tokens={"histogram": {"edges": [1, 2], "weights": [0]}})},
        "workload.synthetic.prompt_tokens.histogram",
        "all weights are 0",
    ),
    (
        {"workload": synthetic(prompt_tokens={"histogram": {"edges": [1, math.nan], "weights": [1]}})},
        "workload.synthetic.prompt_tokens.histogram.edges.1",
        "was nan, must be finite",
    ),
]


@pytest.mark.parametrize(
    ("sections", "path", "words"), SECTIONS, ids=[f"{p}-{w[:20]}" for _, p, w in SECTIONS]
)
def test_a_problem_is_named(problems: Problems, sections: dict[str, Any], path: str, words: str) -> None:
    found = problems(**sections)
    assert path in found, found
    assert words in str(found[path])


@pytest.mark.parametrize(
    ("sections", "path", "nearest"),
    [
        ({"engine": {"max_num_seq": 4}}, "engine.max_num_seq", "max_num_seqs"),
        ({"engine": {"max-num-seqs": 4}}, "engine.max-num-seqs", "max_num_seqs"),
        ({"engine": {"dtype": "bfloat61"}}, "engine.dtype", "bfloat16"),
        ({"hardwre": "h100"}, "hardwre", "hardware"),
        ({"max_num_seqs": 4}, "max_num_seqs", "engine.max_num_seqs"),
        ({"replicas": 4}, "replicas", "cluster.replicas"),
        ({"cluster": {"router": "round-robin"}}, "cluster.router.policy", "round_robin"),
        ({"model": "llama-3.1-8"}, "model", "llama-3.1-8b"),
        ({"hardware": "h10"}, "hardware.gpu", "h100"),
        ({"workload": {"syntetic": {}}}, "workload.syntetic", "synthetic"),
    ],
)
def test_the_nearest_name_is_suggested(
    problems: Problems, sections: dict[str, Any], path: str, nearest: str
) -> None:
    assert problems(**sections)[path].nearest == nearest


def test_allowed_names_are_listed(problems: Problems) -> None:
    found = problems(engine={"dtype": "int4"}, cluster={"replica": 1})
    assert found["engine.dtype"].allowed == ("auto", "bfloat16", "float16", "half")
    assert found["cluster.replica"].allowed == ("replicas", "in_service", "router")


def test_all_problems_are_reported_at_once(problems: Problems) -> None:
    found = problems(
        model="llama-9",
        hardware={"gpu": "h101", "price": 3},
        engine={"max_num_seqs": 64, "max_num_batched_tokens": 32, "block_siz": 16, "watermark": 2},
        cluster={"replicas": 0, "router": {"policy": "random", "max_imbalance": 2}},
        workload={"synthetic": {"arrivals": {"poisson": {}}, "prompt_tokens": "x", "num_requests": 1}},
        objectives={"ttft": 1, "window": {"warmup": "90%", "cooldown": "20%"}},
        seed="x",
        sed=1,
    )
    assert set(found) == {
        "model",
        "hardware.gpu",
        "hardware.price",
        "engine.block_siz",
        "engine.watermark",
        "engine.max_num_batched_tokens",  # less than max_num_seqs: needs neither model nor GPU
        "cluster.replicas",
        "cluster.router.max_imbalance",
        "workload.synthetic.arrivals.poisson.rate",
        "workload.synthetic.prompt_tokens",
        "workload.synthetic.output_tokens",
        "objectives.ttft",
        "objectives.window",
        "seed",
        "sed",
    }


def test_memory_is_checked_though_the_workload_is_broken(problems: Problems) -> None:
    found = problems(model="llama-3.1-70b", workload={"synthetic": 5})
    assert "leaves no memory for the KV cache" in found["hardware.gpu"].message
    assert "workload.synthetic" in found


def test_a_misspelt_field_is_not_blamed_twice(problems: Problems) -> None:
    """With the longest context unknown, nothing is said about whether it fits."""
    found = problems(hardware="rtx-4090", engine={"max_model_length": 1000})
    assert list(found) == ["engine.max_model_length"]


def test_values_are_kept_as_they_were_written(problems: Problems) -> None:
    found = problems(engine={"max_num_batched_tokens": "0k"}, objectives={"ttft": "-5 ms"})
    assert found["engine.max_num_batched_tokens"].value == "0k"
    assert "was '0k'" in found["engine.max_num_batched_tokens"].message
    assert found["objectives.ttft"].value == "-5 ms"


def test_trace_paths_are_checked(problems: Problems, tmp_path: Path) -> None:
    pytest.importorskip("frontier.workloads")
    found = problems(workload={"trace": {"path": str(tmp_path / "none.csv")}})
    assert "no such file" in found["workload.trace.path"].message
    found = problems(workload={"trace": {"path": str(tmp_path)}})
    assert "is a directory" in found["workload.trace.path"].message
    assert problems(workload={"trace": "azure-2023-con"})["workload.trace.path"].nearest == "azure-2023-conv"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"start": "5s", "end": "5s"}, "end must be later than start"),
        ({"time_scale": 2, "rate_scale": 2}, "both scale the arrivals"),
        ({"rate_scale": 2, "arrivals": "burst"}, "rate_scale has no effect with arrivals"),
    ],
)
def test_trace_options_that_contradict(problems: Problems, changes: dict[str, Any], words: str) -> None:
    found = problems(workload={"trace": {"path": "azure-2023-conv", **changes}})
    assert words in found["workload.trace"].message


def test_nesting_and_size_do_not_hang(problems: Problems) -> None:
    deep: Any = 1
    for _ in range(200):
        deep = {"config": deep}
    problems(model=deep)
    problems(engine={"max_num_seqs": "9" * 10**6})
    problems(engine={f"field_{i}": i for i in range(2000)})


def test_a_value_within_itself_does_not_hang(problems: Problems) -> None:
    loop: dict[str, Any] = {"model_type": "llama"}
    loop["loop"] = loop
    assert "is nested more than 20 deep" in problems(model=loop)["model"].message


def test_pydantic_never_shows_through() -> None:
    with pytest.raises(ConfigError):
        Scenario(model="llama-3.1-8b")
    with pytest.raises(ConfigError):
        Scenario()
