"""`frontier models`, `frontier gpus`, `frontier schema`."""

import json

import pytest

import frontier
from frontier.models import parameter_counts


@pytest.mark.parametrize(
    ("command", "names"), [("models", frontier.model_names), ("gpus", frontier.gpu_names)]
)
def test_lists_every_preset_within_80_columns(cli, command, names):
    result = cli(command)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    rows = lines[1 : lines.index("")]
    assert [row.split()[0] for row in rows] == names()
    assert len({len(row) for row in [lines[0], *rows]}) == 1  # the last column is right-aligned
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in result.stdout


def test_a_model_in_the_table(cli):
    [row] = [line for line in cli("models").stdout.splitlines() if line.startswith("llama-3.1-8b ")]
    assert row.split() == ["llama-3.1-8b", "GQA", "8.03", "B", "8.03", "B", "32", "128", "KiB", "131,072"]


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        ("llama-2-7b", "MHA"),
        ("mistral-7b-v0.1", "GQA sliding"),
        ("gpt-oss-20b", "GQA+sliding"),
        ("deepseek-v3", "MLA"),
        ("deepseek-v3.2", "MLA sparse"),
        ("step-3", "MFA"),
    ],
)
def test_names_of_attention(cli, name, attention):
    [row] = [line for line in cli("models").stdout.splitlines() if line.startswith(f"{name} ")]
    assert row.removeprefix(name).strip().startswith(f"{attention} ")


def test_models_as_json(cli):
    listed = json.loads(cli("models", "--json").stdout)
    assert [facts["name"] for facts in listed] == frontier.model_names()
    one = json.loads(cli("models", "qwen3-30b-a3b", "--json").stdout)
    assert one in listed
    counts = parameter_counts(frontier.load_model("qwen3-30b-a3b"))
    assert (one["parameters"]["total"], one["parameters"]["active"]) == (counts.total, counts.active)
    assert sum(layer["count"] for layer in one["layers"]) == one["num_layers"] == 48
    assert one["kv_bytes_per_token"] == 48 * 4 * 128 * 2 * 2


def test_a_model_from_a_file(cli, tmp_path):
    config = {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "vocab_size": 1000,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    result = cli("models", path)
    assert result.exit_code == 0
    assert "2 x MQA, dense, width 512" in result.stdout
    config |= {"num_key_value_heads": 3}
    path.write_text(json.dumps(config))
    refused = cli("models", path)
    assert refused.exit_code == 3
    assert "num_key_value_heads" in refused.stderr


def test_every_preset_has_details_within_80_columns(cli):
    for command, names in (("models", frontier.model_names()), ("gpus", frontier.gpu_names())):
        for name in names:
            result = cli(command, name)
            assert result.exit_code == 0
            assert max(map(len, result.stdout.splitlines())) <= 80, (command, name)


def test_gpus_as_json(cli):
    listed = json.loads(cli("gpus", "--json").stdout)
    [h100] = [facts for facts in listed if facts["name"] == "h100"]
    assert h100 == json.loads(cli("gpus", "H100", "--json").stdout)
    spec = frontier.load_gpu("h100")
    assert h100["memory_bytes"] == spec.memory_bytes
    assert h100["peak_flops_per_s"]["fp8"] == spec.peak_flops_per_s.fp8


@pytest.mark.parametrize(
    ("command", "wrong", "nearest"), [("models", "llama-3.1-8", "llama-3.1-8b"), ("gpus", "h10", "h100")]
)
def test_unknown_names_suggest_the_nearest(cli, command, wrong, nearest):
    result = cli(command, wrong)
    assert result.exit_code == 3
    assert f"did you mean '{nearest}'?" in result.stderr
    error = json.loads(cli(command, wrong, "--json").stderr)["error"]
    assert error["issues"][0]["nearest"] == nearest


def test_schema_to_stdout_and_to_a_file(cli, tmp_path):
    schema = json.loads(cli("schema").stdout)
    assert {"model", "hardware", "workload"} <= set(schema["required"])
    target = tmp_path / "scenario.schema.json"
    result = cli("schema", "--out", target)
    assert (result.exit_code, result.stdout) == (0, "")
    assert json.loads(target.read_text("utf-8")) == schema
    refused = cli("schema", "--out", tmp_path / "absent" / "file.json")
    assert refused.exit_code == 1
    assert "cannot write" in refused.stderr


def test_a_gpu_has_cache_and_power(cli):
    lines = cli("gpus", "h100").stdout.splitlines()
    assert any(line.split() == ["cache", "50", "MiB"] for line in lines)
    [power] = [line for line in lines if line.startswith("power")]
    assert "700 W at most, 70 W idle, assumed" in power
