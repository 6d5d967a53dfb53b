"""The example scenarios that come with the package, and how SCENARIO is found."""

import json

import pytest

import frontier
from frontier.builtin_examples import example_path

NAMES = (
    "afd-qwen3-235b",
    "azure-2023-conv",
    "azure-sglang",
    "chat-poisson",
    "epd-qwen2.5-vl",
    "offline-batch",
    "pdd-llama-70b",
    "pdd-qwen3-235b",
    "two-models",
)


def test_lists_the_examples(cli):
    lines = cli("examples").stdout.splitlines()
    assert tuple(line.split()[0] for line in lines) == NAMES
    assert max(map(len, lines)) <= 80


def test_examples_as_json(cli):
    listed = json.loads(cli("examples", "--json").stdout)
    assert tuple(each["name"] for each in listed) == NAMES
    one = json.loads(cli("examples", "chat-poisson", "--json").stdout)
    assert one["yaml"] == cli("examples", "chat-poisson").stdout
    assert {"name": one["name"], "description": one["description"]} in listed
    error = json.loads(cli("examples", "chat-poison", "--json").stderr)["error"]
    assert (error["exit_code"], error["issues"][0]["nearest"]) == (3, "chat-poisson")


@pytest.mark.parametrize("name", NAMES)
def test_printed_example_is_a_scenario_of_the_same_meaning(cli, name, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(cli("examples", name).stdout, "utf-8")
    printed = json.loads(cli("check", path, "--json").stdout)
    assert printed == json.loads(cli("check", name, "--json").stdout)
    assert printed["scenario"]["name"] == name
    # Packs of predictors are no part of a checkout that has not trained any.
    warnings = [warning for warning in printed["warnings"] if "no pack of predictors" not in warning]
    told = [warning for warning in warnings if "timed with its launch" not in warning]
    assert told == [] or name == "offline-batch"  # sliding windows


def test_the_main_job_is_the_whole_trace(cli):
    document = json.loads(cli("check", "azure-2023-conv", "--json").stdout)
    assert document["requests"] == 19_366
    assert document["cluster"]["gpus_total"] == 8
    assert document["scenario"]["objectives"]["ttft"] == "500ms"


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("azure-2023-conv", "workload.trace.num_requests"),
        ("chat-poisson", "workload.synthetic.num_requests"),
        ("offline-batch", "workload.synthetic.num_requests"),
        ("afd-qwen3-235b", "workload.synthetic.num_requests"),
        ("epd-qwen2.5-vl", "workload.synthetic.num_requests"),
        ("pdd-llama-70b", "workload.synthetic.num_requests"),
        ("pdd-qwen3-235b", "workload.synthetic.num_requests"),
        ("two-models", "workload.synthetic.num_requests"),
    ],
)
def test_examples_run(cli, name, field):
    result = cli("run", name, "--set", f"{field}=100", "--warmup", "0s", "--cooldown", "0s", "--json")
    assert result.exit_code == 0
    summary = json.loads(result.stdout)["summary"]
    assert (summary["completed"], summary["rejected"]) == (100, 0)


@pytest.mark.parametrize("command", ["run", "check", "examples"])
def test_unknown_example_suggests_the_nearest(cli, command):
    result = cli(command, "chat-poison")
    assert result.exit_code == 3
    assert "did you mean 'chat-poisson'?" in result.stderr
    assert "offline-batch" in cli(command, "nothing-like-it").stderr


def test_missing_file_suggests_a_neighbour(cli, small):
    result = cli("run", small.with_name("smal.yaml"))
    assert result.exit_code == 3
    assert "no such file; did you mean 'small.yaml'?" in result.stderr


def test_a_path_is_a_file_even_if_an_example_has_its_name(cli, small, monkeypatch):
    monkeypatch.chdir(small.parent)
    small.rename(small.with_name("chat-poisson"))
    by_path = json.loads(cli("check", "./chat-poisson", "--json").stdout)
    assert by_path["scenario"]["name"] == "small"
    by_name = json.loads(cli("check", "chat-poisson", "--json").stdout)
    assert by_name["scenario"]["name"] == "chat-poisson"


def test_examples_name_only_presets():
    for name in NAMES:
        scenario = frontier.load(example_path(name))
        assert scenario.model in frontier.model_names()
        assert scenario.hardware.gpu in frontier.gpu_names()
