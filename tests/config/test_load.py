"""Reading files: what does not fit, what is set besides, and built-in examples by name."""

import pickle
from pathlib import Path

import pytest

from frontier.builtin_examples import examples
from frontier.config import Scenario, load
from frontier.errors import ConfigError, DoesNotFitError
from frontier.memory import MemoryPlan


@pytest.fixture
def file(base: Scenario, tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(base.to_yaml(defaults=False))
    return path


def test_what_does_not_fit_has_its_memory_plan(base: Scenario, file: Path) -> None:
    changes = {"model": "llama-3.1-70b"}
    with pytest.raises(DoesNotFitError) as made:
        base.with_(changes)
    with pytest.raises(DoesNotFitError) as loaded:
        load(file, overrides=["model=llama-3.1-70b"])
    for error in (made.value, loaded.value, pickle.loads(pickle.dumps(loaded.value))):
        assert isinstance(error.memory, MemoryPlan)
        assert error.memory.model == "llama-3.1-70b"
        assert error.memory.weights_bytes > error.memory.requested_bytes
        assert [issue.message for issue in error.issues] == [issue.message for issue in error.memory.issues]
    assert loaded.value.source == str(file)
    assert base.with_({**changes, "engine.tensor_parallel_size": 4}).resolve().memory.fits


@pytest.mark.parametrize("change", [{"seed": -1}, {"sed": 1}, {"engine": {"block_size": 8}}])
def test_other_problems_are_not_of_the_memory(base: Scenario, change: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as error:
        Scenario.from_dict({**base.to_dict(), "model": "llama-3.1-70b", **change})
    assert not isinstance(error.value, DoesNotFitError)


def test_a_length_that_nobody_wrote_is_the_models(base: Scenario) -> None:
    with pytest.raises(DoesNotFitError) as error:
        base.with_({"hardware": "rtx-4090"})
    [issue] = error.value.issues
    assert issue.message.startswith("is the model's own 131072, but the KV cache holds ")
    assert issue.value is None
    with pytest.raises(DoesNotFitError) as error:
        base.with_({"hardware": "rtx-4090", "engine.max_model_len": 131072})
    [issue] = error.value.issues
    assert issue.message.startswith("was 131072, but the KV cache holds ")


def test_all_values_set_and_the_file_are_reported_together(file: Path) -> None:
    file.write_text(file.read_text("utf-8") + "objectives: {ttft: 5}\n")
    overrides = ["engine", "seed=[1", "engine.max_num_seq=4", "seed.x=1", "cluster.replicas=0", "sed=1"]
    with pytest.raises(ConfigError) as error:
        load(file, overrides=overrides)
    assert error.value.source == str(file)
    assert str(error.value).startswith(f"{file}: ")
    issues = error.value.issues
    assert sorted(issue.path for issue in issues) == [
        "",
        "cluster.replicas",
        "engine.max_num_seq",
        "objectives.ttft",
        "sed",
        "seed",
        "seed.x",
    ]
    lines = {issue.path: issue.line for issue in issues}
    assert lines["objectives.ttft"] == len(file.read_text("utf-8").splitlines())
    assert lines["cluster.replicas"] is None


def test_a_value_set_has_no_line_of_what_is_around_it(file: Path) -> None:
    file.write_text(file.read_text("utf-8") + "engine:\n  max_num_seqs: 5\n  block_size: 0\n")
    with pytest.raises(ConfigError) as error:
        load(file, overrides=["engine.max_num_seqs=0"])
    lines = {issue.path: issue.line for issue in error.value.issues}
    assert lines["engine.max_num_seqs"] is None
    assert lines["engine.block_size"] == len(file.read_text("utf-8").splitlines())


@pytest.mark.parametrize("name", sorted(examples()))
def test_examples_are_loaded_by_name(name: str) -> None:
    assert load(name).name == name
    assert examples()[name]


def test_a_name_that_is_neither_suggests_an_example(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        load("chat-poison")
    assert error.value.issues[0].nearest == "chat-poisson"
    file.rename(tmp_path / "chat-poisson")
    assert load("./chat-poisson").name is None
    assert load(Path("chat-poisson")).name is None
    (tmp_path / "chat-poisson").rename(tmp_path / "plainly")
    assert load("plainly").name is None
