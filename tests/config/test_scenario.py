import copy
import pickle
from pathlib import Path
from typing import Any

import pytest

import frontier.config
from frontier.config import Scenario, apply_set, load
from frontier.config.fields import Span
from frontier.errors import ConfigError

BASE = {
    "model": "llama-3.1-8b",
    "hardware": "h100",
    "workload": {
        "synthetic": {
            "arrivals": {"poisson": {"rate": 12}},
            "num_requests": 100,
            "prompt_tokens": 512,
            "output_tokens": {"uniform": {"min": 1, "max": "1k"}},
        }
    },
}

FULL = """
name: everything
model: {config: llama-3.1-8b, num_hidden_layers: 16, rope_scaling: null}
hardware: {gpu: h200, price_per_hour: 2.5}
engine:
  version: 0.32.0
  tensor_parallel_size: 2
  dtype: bfloat16
  kv_cache_dtype: fp8
  gpu_memory_utilization: 85%
  block_size: 32
  max_model_len: 8K
  max_num_batched_tokens: 4k
  max_num_scheduled_tokens: 2000
  max_num_seqs: 64
  max_num_active_seqs: 32
  long_prefill_token_threshold: 1000
  long_prefill_token_threshold_adaptive: true
  enable_prefix_caching: false
  scheduling_policy: priority
  scheduler_reserve_full_isl: false
  watermark: 0.01
  async_scheduling: false
  cpu_overhead: {per_step: 2ms, per_seq: 12.5us}
cluster: {replicas: 4, router: power_of_two}
workload:
  synthetic:
    arrivals:
      piecewise:
        segments: [{duration: 1min, rate: 2/s}, {duration: 90s, rate: 30/min}]
        repeat: true
    duration: 1h
    prompt_tokens: {lognormal: {mean: 1000, cv: 1.2, max: 8000}}
    output_tokens: {histogram: {edges: [1, 10, 100.5], weights: [1, 2]}}
    shared_prefix: {count: 3, tokens: {zipf: {exponent: 1.1, max: 500}}, zipf_exponent: 1, share: 50%}
    sessions: 7
    max_priority: 3
objectives: {ttft: 500ms, tpot: 0.05s, itl: 100ms, e2e: 1min, window: {warmup: 10%, cooldown: 30s}}
seed: 18446744073709551615
replication: 3
output: {steps: false, timeline_interval: 250ms}
"""


def test_units_are_stored_canonically() -> None:
    scenario = Scenario.from_yaml(FULL)
    synthetic = scenario.workload.synthetic
    assert synthetic is not None
    assert synthetic.arrivals.piecewise is not None
    engine = scenario.engine
    assert (engine.version, engine.gpu_memory_utilization, engine.max_model_len) == ("0.32", 0.85, 8192)
    assert engine.max_num_batched_tokens == 4000
    assert engine.cpu_overhead is not None
    assert (engine.cpu_overhead.per_step, engine.cpu_overhead.per_seq) == (2_000_000, 12_500)
    assert [segment.rate for segment in synthetic.arrivals.piecewise.segments] == [2.0, 0.5]
    assert synthetic.duration == 3600 * 10**9
    assert scenario.objectives.tpot == 50_000_000
    assert scenario.objectives.window.warmup == Span(None, 0.1)
    assert scenario.objectives.window.cooldown == Span(30 * 10**9, None)
    assert scenario.seed == 2**64 - 1


@pytest.mark.parametrize("text", [FULL, None], ids=["full", "least"])
@pytest.mark.parametrize("defaults", [True, False])
def test_yaml_and_dict_round_trip(text: str | None, defaults: bool) -> None:
    scenario = Scenario.from_yaml(text) if text else Scenario.from_dict(BASE)
    again = Scenario.from_yaml(scenario.to_yaml(defaults=defaults))
    assert again == scenario
    assert again.to_yaml() == scenario.to_yaml()
    assert Scenario.from_dict(scenario.to_dict(defaults=defaults)) == scenario
    assert pickle.loads(pickle.dumps(scenario)) == scenario
    assert copy.deepcopy(scenario) == scenario


def test_yaml_is_written_with_units() -> None:
    text = Scenario.from_yaml(FULL).to_yaml()
    lines = {line.strip() for line in text.splitlines()}
    expected = {
        "per_seq: 12.5us",
        "tpot: 50ms",
        "warmup: 10%",
        "cooldown: 30s",
        "duration: 1h",
        "rate: 0.5/s",
    }
    assert expected | {"timeline_interval: 250ms", "rope_scaling: null"} <= lines


def test_yaml_without_defaults_says_what_was_chosen() -> None:
    plain = Scenario.from_dict(BASE).to_dict(defaults=False)
    assert set(plain) == {"model", "hardware", "workload"}


def test_short_forms_mean_the_long_ones() -> None:
    long = {
        "model": "llama-3.1-8b",
        "hardware": {"gpu": "h100"},
        "cluster": {"router": {"policy": "random"}},
        "engine": {"step_time": {"roofline": {}}},
        "workload": {
            "synthetic": {
                "arrivals": {"burst": {}},
                "num_requests": 5,
                "prompt_tokens": {"fixed": 7},
                "output_tokens": {"fixed": 8000},
            }
        },
    }
    short: dict[str, Any] = copy.deepcopy(long)
    short |= {"hardware": "h100", "cluster": {"router": "random"}, "engine": {"step_time": "roofline"}}
    short["workload"]["synthetic"] |= {"arrivals": "burst", "prompt_tokens": 7, "output_tokens": "8k"}
    assert Scenario.from_dict(short) == Scenario.from_dict(long)


def test_a_scenario_does_not_change(base: Scenario) -> None:
    with pytest.raises(ValueError, match="frozen"):
        base.seed = 5
    with pytest.raises(ValueError, match="frozen"):
        base.cluster.replicas = 5


def test_with_makes_a_validated_copy(base: Scenario) -> None:
    changed = base.with_({"cluster.replicas": 8, "objectives.ttft": "500ms", "hardware.price_per_hour": 1})
    assert (changed.cluster.replicas, changed.objectives.ttft) == (8, 500_000_000)
    assert changed.resolve().gpus_total == 8
    assert changed.resolve().price_per_hour == 1
    assert base.cluster.replicas == 1
    assert changed.with_({"objectives.ttft": None}).objectives.ttft is None
    assert base.with_({}) == base
    assert base.model_copy(update={"seed": 3}).seed == 3
    assert base.model_copy() == base


def test_with_replaces_the_alternative_of_a_choice(base: Scenario) -> None:
    changed = base.with_(
        {"workload.synthetic.arrivals.gamma.rate": 3, "workload.synthetic.arrivals.gamma.cv": 2}
    )
    assert changed.workload.synthetic is not None
    assert changed.workload.synthetic.arrivals.chosen == "gamma"
    linear = base.with_({"engine.step_time.linear.per_step": "10ms"})
    assert linear.engine.step_time.chosen == "linear"


def test_with_reports_all_that_is_wrong(base: Scenario) -> None:
    with pytest.raises(ConfigError) as error:
        base.with_({"cluster.replica": 1, "seed": -1, "seed.x": 2, "engine.max_num_seqs": 0})
    paths = [issue.path for issue in error.value.issues]
    assert paths == ["cluster.replica", "seed.x", "engine.max_num_seqs", "seed"]


def test_with_refuses_two_alternatives_at_once(base: Scenario) -> None:
    arrivals = "workload.synthetic.arrivals"
    with pytest.raises(ConfigError, match="poisson and constant at once"):
        base.with_({f"{arrivals}.constant.rate": 3, f"{arrivals}.poisson.rate": 2})


def test_with_reaches_into_lists_and_models(base: Scenario) -> None:
    segments = [{"duration": "1s", "rate": 1}, {"duration": "2s", "rate": 2}]
    scenario = base.with_({"workload.synthetic.arrivals.piecewise.segments": segments})
    changed = scenario.with_({"workload.synthetic.arrivals.piecewise.segments.1.rate": "5/s"})
    assert changed.workload.synthetic is not None
    assert changed.workload.synthetic.arrivals.piecewise is not None
    assert [s.rate for s in changed.workload.synthetic.arrivals.piecewise.segments] == [1.0, 5.0]
    smaller = base.with_({"model.num_hidden_layers": 16})
    assert smaller.model == {"config": "llama-3.1-8b", "num_hidden_layers": 16}
    assert smaller.resolve().model.num_layers == 16


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("cluster.replica", "replicas"),
        ("clusters.replicas", "cluster"),
        ("max_num_seqs", "engine.max_num_seqs"),
        ("engine.step_time.lnear.per_step", "linear"),
        ("workload.synthetic.arrivals.poisson.rat", "rate"),
    ],
)
def test_with_refuses_unknown_paths(base: Scenario, path: str, nearest: str) -> None:
    with pytest.raises(ConfigError) as error:
        base.with_({path: 1, "seed": -1})
    assert error.value.issues[0].nearest == nearest


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("seed.x", "leads below 'seed', which has no fields"),
        ("hardware.gpu.memory", "leads below 'hardware.gpu', which is 'h100'"),
        ("", "is not a known field"),
        ("cluster.", "is not a known field"),
        ("workload.synthetic.arrivals.piecewise.segments.0.rate", "is not a known field"),
    ],
)
def test_with_refuses_paths_that_lead_nowhere(base: Scenario, path: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        base.with_({path: 1})
    assert words in str(error.value)


def test_set_texts_are_read_as_yaml() -> None:
    plain = {"hardware": "h100"}
    changed = apply_set(
        plain,
        [
            "cluster.replicas=8",
            "hardware.price_per_hour=2.5",
            "objectives={ttft: 500ms}",
            "objectives.itl=10ms",
            "name='8'",
            "engine.enable_prefix_caching=false",
            "workload.trace.path=a=b.csv",
        ],
    )
    assert changed == {
        "hardware": {"gpu": "h100", "price_per_hour": 2.5},
        "cluster": {"replicas": 8},
        "objectives": {"ttft": "500ms", "itl": "10ms"},
        "name": "8",
        "engine": {"enable_prefix_caching": False},
        "workload": {"trace": {"path": "a=b.csv"}},
    }
    assert plain == {"hardware": "h100"}


def test_all_bad_set_texts_are_reported() -> None:
    with pytest.raises(ConfigError) as error:
        apply_set({}, ["cluster.replicas", "=5", "seed=[1", "seed=1"])
    assert len(error.value.issues) == 3
    with pytest.raises(ConfigError) as error:
        apply_set({}, ["cluster.replica=1", "sed=1"])
    assert [issue.nearest for issue in error.value.issues] == ["replicas", "seed"]


def test_load_reads_a_file_and_its_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "scenarios"
    (folder / "my-model").mkdir(parents=True)
    preset = Path(frontier.config.__file__).parents[1] / "models" / "presets" / "llama-3.1-8b.json"
    (folder / "my-model" / "config.json").write_text(preset.read_text("utf-8"))
    gpu = "name: mine\nnum_sms: 100\nmemory: 80GiB\nmemory_bandwidth: 2TB/s\npcie_bandwidth: 64GB/s\n"
    (folder / "gpu.yaml").write_text(gpu + "peak: {bf16: 500TFLOPS}\n")
    (folder / "x.yaml").write_text(
        "model: my-model/config.json\nhardware: gpu.yaml\n"
        "workload: {synthetic: {arrivals: burst, num_requests: 1, prompt_tokens: 1, output_tokens: 1}}\n"
    )
    monkeypatch.chdir(tmp_path)
    scenario = load("scenarios/x.yaml", overrides=["cluster.replicas=3"])
    assert scenario.resolve().gpu.name == "mine"
    assert scenario.cluster.replicas == 3
    assert scenario.model == str(folder / "my-model" / "config.json")
    monkeypatch.chdir("/")
    assert Scenario.from_yaml(scenario.to_yaml()) == scenario
    monkeypatch.chdir(tmp_path)
    by_directory = load(folder / "x.yaml", overrides=["model=scenarios/my-model"])
    assert by_directory.resolve().model.num_layers == 32


def test_hub_names_are_not_taken_for_paths(tmp_path: Path) -> None:
    plain = {**BASE, "model": "meta-llama/Llama-3.1-8B"}
    assert Scenario.from_dict(plain, base_dir=tmp_path).resolve().model.name == "llama-3.1-8b"


def test_errors_of_a_file_name_it_and_the_line(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("model: llama-3.1-8b\nhardware: h100\nengine:\n  block_size: 0\n  max_num_seq: 5\n")
    with pytest.raises(ConfigError) as error:
        load(file)
    lines = {issue.path: issue.line for issue in error.value.issues}
    assert lines == {"engine.block_size": 4, "engine.max_num_seq": 5, "workload": None}
    assert str(file) in str(error.value)
    assert "line 4: engine.block_size: was 0, must be at least 1" in str(error.value)


def test_overrides_mend_a_file_and_lose_its_lines(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("model: nope\nhardware: h100\nworkload: nope\n")
    with pytest.raises(ConfigError) as error:
        load(file, overrides=["model=neither"])
    assert {issue.path: issue.line for issue in error.value.issues} == {"model": None, "workload": 3}


@pytest.mark.parametrize("plain", [None, [], "text", 5, {1: 2}, {"model": {1: 2}}])
def test_from_dict_refuses_what_is_no_mapping_of_text(plain: Any) -> None:
    with pytest.raises(ConfigError):
        Scenario.from_dict(plain)


def test_sections_may_be_objects(base: Scenario) -> None:
    made = Scenario(model=base.model, hardware=base.hardware, workload=base.workload)
    assert made == base
