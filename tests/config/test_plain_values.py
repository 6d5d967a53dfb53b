"""What callers have at hand in place of plain values: scalars of numpy, paths; and scenarios as values."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frontier.config import Scenario
from frontier.config.plain import plain_values
from frontier.errors import ConfigError

GPU = "name: mine\nnum_sms: 100\nmemory: 80GiB\nmemory_bandwidth: 2TB/s\npcie_bandwidth: 64GB/s\n"


def synthetic(**changes: Any) -> dict[str, Any]:
    section = {"arrivals": "burst", "num_requests": 5, "prompt_tokens": 5, "output_tokens": 5}
    return {"synthetic": section | changes}


def test_scalars_of_numpy_are_numbers(base: Scenario) -> None:
    plain = {
        "model": {"config": "llama-3.1-8b", "num_hidden_layers": np.int32(16)},
        "hardware": {"gpu": "h100", "price_per_hour": np.float64(2.5)},
        "engine": {"max_num_seqs": np.int64(64), "enable_prefix_caching": np.bool_(False)},
        "cluster": {"replicas": np.array(3)},
        "workload": synthetic(arrivals={"poisson": {"rate": np.float32(0.5)}}, prompt_tokens=np.uint8(7)),
    }
    numbers = json.loads(json.dumps(plain, default=lambda value: value.item()))
    scenario = Scenario.from_dict(plain)
    assert scenario == Scenario.from_dict(numbers) == Scenario(**plain)
    assert Scenario.from_yaml(scenario.to_yaml()) == scenario
    changes = {"engine.max_num_seqs": np.int64(32), "workload.synthetic.num_requests": np.uint16(9)}
    swept = base.with_(changes)
    assert swept == base.with_({"engine.max_num_seqs": 32, "workload.synthetic.num_requests": 9})
    assert type(swept.engine.max_num_seqs) is int


def test_bad_scalars_of_numpy_are_shown_as_numbers() -> None:
    with pytest.raises(ConfigError, match=r"engine\.max_num_seqs: was 0, must be at least 1"):
        Scenario.from_dict(
            {"model": "llama-3.1-8b", "hardware": "h100", "engine": {"max_num_seqs": np.int64(0)}}
        )


def test_values_within_themselves_end() -> None:
    loop: list[Any] = [np.int64(1)]
    loop += [loop, {"loop": loop}]
    copied = plain_values(loop)
    assert copied[0] == 1
    assert copied[1] is copied
    assert copied[2]["loop"] is copied


def test_paths_may_be_path_objects(base: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpu.yaml").write_text(f"{GPU}peak: {{bf16: 500TFLOPS}}\n")
    (tmp_path / "rows").write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0,5,5\n")
    (tmp_path / "model").mkdir()
    preset = Path(str(Path(__file__).parents[2] / "python/frontier/models/presets/llama-3.1-8b.json"))
    if not preset.exists():
        pytest.skip("the presets are not beside the tests: they run from an installed wheel")
    (tmp_path / "model" / "config.json").write_text(preset.read_text("utf-8"))
    plain = {"model": Path("model"), "hardware": Path("gpu.yaml"), "workload": {"trace": Path("rows")}}
    scenario = Scenario.from_dict(plain, base_dir=tmp_path)
    assert scenario.model == str(tmp_path / "model")
    assert scenario.hardware.gpu == str(tmp_path / "gpu.yaml")
    assert scenario.workload.trace is not None
    assert scenario.workload.trace.path == str(tmp_path / "rows")
    monkeypatch.chdir(tmp_path)
    changes = {"model": Path("model"), "hardware.gpu": Path("gpu.yaml"), "workload.trace.path": Path("rows")}
    assert base.with_(changes).resolve().gpu.name == "mine"
    assert Scenario(**plain).model == "./model"


def test_equal_scenarios_have_equal_hashes(base: Scenario) -> None:
    gpu = {
        "name": "g",
        "num_sms": 9,
        "memory": "90GiB",
        "memory_bandwidth": "1TB/s",
        "pcie_bandwidth": "1GB/s",
    }
    scenario = base.with_({"hardware.gpu": {**gpu, "peak": {"bf16": "1TFLOPS"}}})
    same = Scenario.from_dict(scenario.to_dict())
    turned = scenario.with_({"hardware.gpu": {"peak": {"bf16": "1TFLOPS"}, **gpu}})
    assert scenario == same == turned
    assert hash(scenario) == hash(same) == hash(turned)
    assert len({scenario, same, turned, base, base.with_({"seed": 1})}) == 3


def test_validation_of_pydantic_raises_config_errors(base: Scenario) -> None:
    assert Scenario.model_validate(base) is base
    assert Scenario.model_validate(base.to_dict()) == base
    assert Scenario.model_validate_json(base.model_dump_json(exclude_none=True)) == base
    assert Scenario.model_validate_json(base.model_dump_json(exclude_none=True).encode()) == base
    for value in ({**base.to_dict(), "seed": -1}, 5, None):
        with pytest.raises(ConfigError):
            Scenario.model_validate(value)
    for text in ("{", '{"seed": -1}', b"\xff"):
        with pytest.raises(ConfigError):
            Scenario.model_validate_json(text)
