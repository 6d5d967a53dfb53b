"""The section on experts: what it refuses, what it reads, what it does to a run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import frontier
from frontier.config import Scenario
from frontier.errors import ConfigError, Issue
from frontier.expert_counts import load_expert_counts
from frontier.lowering import lower

Problems = Callable[..., dict[str, Issue]]
QWEN: dict[str, Any] = {"model": "qwen3-30b-a3b"}

REFUSED = [
    ("llama-3.1-8b", {}, "", "has no experts"),
    ("qwen3-30b-a3b", {"enable_dbo": True}, "enable_dbo", "needs DeepEP"),
    ("qwen3-30b-a3b", {"dbo_decode_token_threshold": 9}, "dbo_decode_token_threshold", "without enable_dbo"),
    ("qwen3-30b-a3b", {"routing": "balanced", "sampling": "draw"}, "sampling", "even without chance"),
    ("qwen3-30b-a3b", {"drift": {"step_interval": 9}}, "drift", "no expert is more popular"),
    ("qwen3-30b-a3b", {"eplb": {}}, "eplb", "without expert parallelism"),
    (
        "qwen3-30b-a3b",
        {"expert_placement_strategy": "round_robin"},
        "expert_placement_strategy",
        "has no effect",
    ),
    ("qwen3-30b-a3b", {"all2all_backend": "deepep_low_latency"}, "all2all_backend", "has no effect without"),
    (
        "qwen3-30b-a3b",
        {"routing": {"bimodal": {"hot_experts": 4, "hot_share": 0.6}}},
        "routing.bimodal.hot_share",
        "at most 50.0% of the visits",
    ),
    (
        "qwen3-30b-a3b",
        {"routing": {"bimodal": {"hot_experts": 128, "hot_share": 0.6}}},
        "routing.bimodal.hot_experts",
        "less than the 128 experts",
    ),
    (
        "qwen3-30b-a3b",
        {"shared_experts_stream_token_threshold": 64},
        "shared_experts_stream_token_threshold",
        "has no shared experts",
    ),
    ("qwen3-30b-a3b", {"routing": {"trace": "./no.csv"}}, "routing.trace.path", "no such file"),
]


@pytest.mark.parametrize(("model", "section", "field", "words"), REFUSED)
def test_what_has_no_effect_or_meaning_is_refused(
    problems: Problems, model: str, section: dict[str, Any], field: str, words: str
) -> None:
    found = problems(model=model, engine={"moe": section})
    assert words in found[f"engine.moe.{field}".rstrip(".")].message


def test_releases_that_move_experts_one_way_take_no_choice(problems: Problems) -> None:
    engine = {"data_parallel_size": 2, "enable_expert_parallel": True, "moe": {"eplb": {"use_async": False}}}
    found = problems(model="qwen3-30b-a3b", engine={**engine, "version": "0.11"})
    assert "has no such setting" in found["engine.moe.eplb.use_async"].message


def test_a_linear_step_time_knows_no_experts(problems: Problems) -> None:
    engine = {"moe": {}, "step_time": {"linear": {"per_step": "1ms"}}}
    assert "linear step time" in problems(**QWEN, engine=engine)["engine.moe"].message


def counts(layers: int = 48) -> np.ndarray[Any, Any]:
    return np.arange(1, layers * 128 + 1, dtype=np.float64).reshape(layers, 128)


def test_three_forms_of_counts_are_read_alike(tmp_path: Path) -> None:
    table = np.stack([counts(), counts() + 1])
    rows = [
        f"{w},{layer},{expert},{table[w, layer, expert]:g}"
        for w in range(2)
        for layer in range(48)
        for expert in range(128)
    ]
    (tmp_path / "counts.csv").write_text("window,layer,expert,count\n" + "\n".join(rows))
    (tmp_path / "counts.json").write_text(json.dumps({"counts": table.tolist()}))
    np.savez(tmp_path / "counts.npz", counts=table)
    for suffix in ("csv", "json", "npz"):
        path = str(tmp_path / f"counts.{suffix}")
        assert load_expert_counts(path, num_experts=128, top_k=8, num_layers=48) == table.tolist()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("layer,expert,count\n0,0,1\n", "counts are of 1 experts, the model has 128"),
        ("layer,expert\n0,0\n", "cannot be read as expert counts"),
        ("layer,expert,count\n0,127,1\n", "at least 8 experts that were visited"),
        ("layer,expert,count\n1,127,1\n", "of 2 layers, the model has 48"),
        ("layer,expert,count\n0,127,-1\n", "must be finite and not negative"),
        ("layer,expert,count\n-1,127,1\n", "start at 0"),
    ],
)
def test_counts_that_do_not_suit_are_refused(base: Scenario, tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "counts.csv"
    path.write_text(text)
    scenario = base.with_({**QWEN, "engine.moe.routing.trace.path": str(path)})
    with pytest.raises(ConfigError, match=words) as caught:
        lower(scenario)
    assert caught.value.issues[0].path == "engine.moe.routing.trace.path"


def test_windows_say_how_long_they_last(base: Scenario, tmp_path: Path) -> None:
    path = str(tmp_path / "counts.npz")
    np.savez(path, counts=np.stack([counts(1), counts(1)[:, ::-1]]))
    scenario = base.with_({**QWEN, "engine.moe.routing.trace.path": path})
    with pytest.raises(ConfigError, match="2 windows"):
        lower(scenario)
    moved = scenario.with_({"engine.moe.drift.step_interval": 50})
    assert lower(moved).plan["clusters"][0]["step_time"]["moe"]["drift"] == {"step_interval": 50, "shift": 0}
    with pytest.raises(ConfigError, match="windows of the counts say"):
        lower(moved.with_({"engine.moe.drift.shift": 2}))


def test_paths_start_at_the_document(tmp_path: Path, base: Scenario) -> None:
    np.savez(tmp_path / "counts.npz", counts=counts(1))
    plain = base.to_dict() | QWEN
    plain["engine"] = {"moe": {"routing": {"trace": "counts.npz"}}}
    read = Scenario.from_dict(plain, base_dir=tmp_path)
    assert read.engine.moe.routing.trace.path == str(tmp_path / "counts.npz")


def run(base: Scenario, **section: Any) -> Any:
    changes = {"engine.step_time": "roofline", "workload.synthetic.num_requests": 40}
    return frontier.simulate(base.with_({**QWEN, **changes, "engine.moe": section}))


def test_equal_seeds_draw_equal_steps(base: Scenario) -> None:
    power_law = {"routing": {"power_law": {"exponent": 1}}}
    one = run(base, **power_law)
    assert one.digest == run(base, **power_law).digest
    mean = run(base, **power_law, sampling="mean")
    assert mean.digest != one.digest
    drifting = run(base, **power_law, drift={"step_interval": 10, "shift": 5})
    assert drifting.digest not in (one.digest, mean.digest)
    assert run(base, routing="balanced").digest != run(base, routing="uniform").digest
