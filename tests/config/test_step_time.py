"""The choice of step times: learned by default, with packs, a backend, a version and calibration."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from frontier.config import Scenario, load
from frontier.config.step_time import PREDICTED_OPERATORS
from frontier.errors import ConfigError, Issue
from frontier.models.operators import Attention, Operator

AT = "engine.step_time.learned"


def learned(**fields: Any) -> dict[str, Any]:
    return {"step_time": {"learned": fields}}


def test_learned_is_the_default(base: Scenario) -> None:
    assert base.engine.step_time.chosen == "learned"
    assert base.to_dict()["engine"]["step_time"] == {"learned": {"backend": "auto"}}
    assert Scenario.from_dict({**base.to_dict(), "engine": {"step_time": "learned"}}) == base


def test_all_fields_are_read_and_written_back(base: Scenario, tmp_path: Path) -> None:
    (tmp_path / "mine.pack").write_bytes(b"")
    fields = {
        "packs": [tmp_path / "mine.pack"],
        "backend": "sglang",
        "version": "0.5",
        "calibration": {"gemm": 1.1},
    }
    scenario = Scenario.from_dict({**base.to_dict(), "engine": learned(**fields)})
    plain = scenario.to_dict()["engine"]["step_time"]["learned"]
    assert plain == {**fields, "packs": [str(tmp_path / "mine.pack")]}
    assert Scenario.from_dict(scenario.to_dict()) == scenario
    assert hash(Scenario.from_dict(scenario.to_dict())) == hash(scenario)


def test_relative_packs_start_from_the_scenarios_directory(base: Scenario, tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"")
    document = base.with_({"engine.step_time.learned.backend": "vllm"}).to_yaml()
    document = document.replace("backend: vllm", "backend: vllm\n      packs: [mine]")
    (tmp_path / "scenario.yaml").write_text(document, "utf-8")
    found = load(tmp_path / "scenario.yaml").engine.step_time.learned
    assert found is not None
    assert found.packs == (str(tmp_path.resolve() / "mine"),)


def test_calibration_is_set_by_its_path(base: Scenario) -> None:
    found = base.with_({f"{AT}.calibration.gemm": 1.1, f"{AT}.calibration.decode_attention": 0.9})
    assert found.engine.step_time.learned is not None
    assert found.engine.step_time.learned.calibration == {"decode_attention": 0.9, "gemm": 1.1}


@pytest.mark.parametrize(
    ("fields", "path", "message"),
    [
        ({"packs": []}, "packs", "is an empty list; leave it out"),
        ({"packs": "x"}, "packs", "was 'x', must be a list"),
        ({"packs": ["/nowhere/x"]}, "packs.0", "was '/nowhere/x', no such file"),
        ({"packs": ["/"]}, "packs.0", "was '/', is a directory, must be a file"),
        ({"packs": [5]}, "packs.0", "was 5, must be text"),
        ({"packs": [" "]}, "packs.0", "must not be empty"),
        ({"backend": "vlm"}, "backend", "was 'vlm'; did you mean 'vllm'?"),
        ({"version": 0.24}, "version", "was 0.24, must be a version as text, such as '0.24'"),
        ({"version": "newest"}, "version", "was 'newest', must be a version as text"),
        ({"pack": ["x"]}, "pack", "is not a known field; did you mean 'packs'?"),
        ({"calibration": {}}, "calibration", "was {}, must be a mapping of operators to factors"),
        ({"calibration": [1]}, "calibration", "was [1], must be a mapping"),
        (
            {"calibration": {"gem": 1}},
            "calibration.gem",
            "is not an operator with predictors; did you mean 'gemm'?",
        ),
        ({"calibration": {"x": 1}}, "calibration.x", "(allowed: gemm, prefill_attention"),
        ({"calibration": {"gemm": 0}}, "calibration.gemm", "was 0, must be a factor from 0.01 to 100"),
        ({"calibration": {"gemm": 101}}, "calibration.gemm", "was 101, must be a factor"),
        ({"calibration": {"gemm": "fast"}}, "calibration.gemm", "was 'fast'"),
        ({"calibration": {"gemm": float("nan")}}, "calibration.gemm", "was nan"),
    ],
)
def test_bad_choices_are_named(
    problems: Callable[..., dict[str, Issue]], fields: dict[str, Any], path: str, message: str
) -> None:
    found = problems(engine=learned(**fields))
    assert set(found) == {f"{AT}.{path}"}
    assert message in str(found[f"{AT}.{path}"])


def test_a_pack_is_given_once(problems: Callable[..., dict[str, Issue]], tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    found = problems(engine=learned(packs=[str(tmp_path / "a")] * 2))
    assert f"was '{tmp_path / 'a'}', is there twice" in str(found[f"{AT}.packs.1"])


def test_several_calibrations_are_one_report(base: Scenario) -> None:
    with pytest.raises(ConfigError) as caught:
        base.with_({f"{AT}.calibration": {"gemm": 1}, f"{AT}.backend": "x", f"{AT}.version": ""})
    assert {issue.path for issue in caught.value.issues} == {f"{AT}.backend", f"{AT}.version"}


@pytest.mark.parametrize(
    ("model", "hardware", "engine"),
    [
        ("llama-3.1-8b", "h100", {"tensor_parallel_size": 2}),
        ("deepseek-v3", "h200", {"tensor_parallel_size": 8}),
    ],
)
def test_operators_that_programs_name_can_be_calibrated(
    base: Scenario, model: str, hardware: str, engine: dict[str, Any]
) -> None:
    def families(operator: Operator) -> set[str]:
        return set(operator.predictor_families.values()) - (
            {"decode_skew"} if isinstance(operator, Attention) else set()
        )

    program = (
        Scenario.from_dict({**base.to_dict(), "model": model, "hardware": hardware, "engine": engine})
        .resolve()
        .program
    )
    named = set().union(*map(families, program))
    assert named <= set(PREDICTED_OPERATORS)
    assert {"gemm", "decode_attention", "all_reduce", "rms_norm"} <= named
