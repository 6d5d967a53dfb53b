"""`frontier explain`: steps operator by operator, before any simulation."""

import json

import fake_packs
import pytest

import frontier
from frontier.errors import ConfigError
from frontier.typical_steps import mean_tokens


def test_it_prints_two_steps(cli, small):
    result = cli("explain", small)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "qwen3-0.6b on h100 (step time: roofline)"
    assert "prefill of 100 tokens: " in result.stdout
    assert "decode of 1 requests with 102 tokens of context each: " in result.stdout
    header = next(line for line in lines if line.startswith("operator"))
    assert header.split() == [
        "operator",
        "count",
        "time",
        "share",
        "bound",
        "by",
        "bound",
        "ratio",
        "provenance",
    ]
    assert sum(line.startswith("qkv_proj ") for line in lines) == 2
    assert "100% unmeasured" in result.stdout


def test_json_adds_up(cli, small):
    document = json.loads(cli("explain", small, "--json").stdout)
    assert (document["step_time"], document["predictors"]) == ("roofline", [])
    for step in document["steps"]:
        operators = step["operators"]
        assert sum(each["seconds"] for each in operators) == pytest.approx(step["gpu_s"])
        assert sum(each["share"] for each in operators) == pytest.approx(1.0)
        assert step["total_s"] == pytest.approx(step["gpu_s"] + step["host_s"], abs=2e-9)
        assert {each["bound"] for each in operators} <= {"compute", "memory", "network", "launch"}
        assert all(each["ratio"] == pytest.approx(1.0) for each in operators)
        assert step["shares"]["unmeasured"] == 1.0
        assert all(each["provenance"] == "unmeasured" and not each["predictors"] for each in operators)


def test_batches_may_be_given(cli, small):
    given = ("--prefill", 4096, "--decode", 8, "--context", 1000)
    prefill, decode = json.loads(cli("explain", small, "--json", *given).stdout)["steps"]
    assert (prefill["requests"], prefill["query_tokens"], prefill["context_tokens"]) == (1, 4096, 4096)
    assert (decode["requests"], decode["query_tokens"], decode["context_tokens"]) == (8, 1, 1000)
    products = {each["operator"]: each["bound"] for each in prefill["operators"]}
    assert products["gate_up_proj"] == "compute"
    products = {each["operator"]: each["bound"] for each in decode["operators"]}
    assert products["gate_up_proj"] == "memory"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--prefill", 5000, "prefill: was 5000, must be a whole number from 1 to 4096"),
        ("--decode", 0, "decode: was 0, must be a whole number from 1 to"),
        ("--context", 4097, "context: was 4097, must be a whole number from 1 to 4096"),
    ],
)
def test_steps_beyond_the_limits_are_refused(cli, small, option, value, message):
    result = cli("explain", small, option, value)
    assert result.exit_code == 3
    assert message in result.stderr


def test_all_bad_arguments_are_named(small):
    with pytest.raises(ConfigError, match="2 problems"):
        frontier.explain(small, prefill=0, decode=-1)


def test_linear_step_times_have_totals_alone(cli, small):
    result = cli("explain", small, "--set", "engine.step_time.linear.per_step=5ms")
    assert result.exit_code == 0
    assert "prefill of 100 tokens: 5.000 ms" in result.stdout
    assert "operator " not in result.stdout
    assert "only the totals are known" in result.stdout


def test_frames_have_a_row_per_operator(small):
    explanation = frontier.explain(small)
    for step in (explanation.prefill, explanation.decode):
        assert step.frame.height == len(step.operators)
        assert step.frame["seconds"].sum() == pytest.approx(step.gpu_s)


def test_the_step_that_is_explained_is_the_one_that_runs(small):
    scenario = frontier.load(small).with_({"output.steps": True, "engine.async_scheduling": False})
    simulated = frontier.simulate(scenario).steps.row(0, named=True)
    assert (simulated["prefill_tokens"], simulated["decode_tokens"]) == (100, 0)
    assert frontier.explain(scenario).prefill.total_s == pytest.approx(simulated["duration_s"], abs=1e-12)


@pytest.mark.parametrize(
    ("changes", "requests"),
    [
        ({"arrivals": {"closed_loop": {"concurrency": 24}}, "num_requests": 5000}, 24),
        ({"arrivals": "burst", "num_requests": 40}, 40),
        ({"arrivals": {"poisson": {"rate": "0.01/s"}}, "num_requests": 40}, 1),
    ],
)
def test_a_typical_batch_follows_from_the_arrivals(small, changes, requests):
    plain = frontier.load(small).to_dict()
    plain["workload"]["synthetic"].update(changes)
    assert frontier.explain(plain).decode.requests == requests


def test_a_typical_batch_keeps_up_with_the_arrivals(small):
    plain = frontier.load(small).to_dict()
    plain["workload"]["synthetic"].update(arrivals={"poisson": {"rate": "200/s"}}, output_tokens=100)
    step = frontier.explain(plain).decode
    half = frontier.explain(plain, decode=step.requests // 2).decode
    assert step.requests / step.total_s >= 200 * 100 > half.requests / half.total_s


@pytest.mark.parametrize(
    ("length", "mean"),
    [
        (7, 7.0),
        ({"uniform": {"min": 2, "max": 5}}, 3.5),
        ({"lognormal": {"mean": 50, "cv": 0.5, "max": 1000}}, 50.0),
        ({"zipf": {"exponent": 1, "min": 3, "max": 4}}, (3 * 2 + 4) / 3),
        ({"histogram": {"edges": [0, 10, 30], "weights": [1, 3]}}, (5 + 60) / 4),
    ],
)
def test_means_of_lengths(length, mean):
    from frontier.config.lengths import Length

    assert mean_tokens(Length.model_validate(length)) == pytest.approx(mean)


def test_learned_steps_name_their_predictors(cli, small, tmp_path):
    pack = fake_packs.write(tmp_path / "h100.safetensors", fake_packs.dense_model())
    packs = ("--set", f"engine.step_time.learned.packs=[{pack.as_posix()}]")
    result = cli("explain", small, *packs)
    assert result.exit_code == 0
    assert "(step time: learned)" in result.stdout
    assert "100% interpolated" in result.stdout
    assert "/fake_rms_norm/cuda_graph/rms_norm/bf16" in result.stdout
    document = json.loads(cli("explain", small, "--json", *packs).stdout)
    for step in document["steps"]:
        attention = next(each for each in step["operators"] if each["operator"] == "attention")
        assert [f"/{step['kind']}_attention/" in identity for identity in attention["predictors"]] == [True]
        assert all(len(each["predictors"]) == 1 for each in step["operators"])
    named = {
        identity
        for step in document["steps"]
        for each in step["operators"]
        for identity in each["predictors"]
    }
    assert named == {used["id"] for used in document["predictors"]}


def test_what_a_step_lacks_is_noted(cli, small, tmp_path):
    pack = fake_packs.write(tmp_path / "h100.safetensors", [fake_packs.tree("gemm", 2.0)])
    result = cli("explain", small, "--set", f"engine.step_time.learned.packs=[{pack.as_posix()}]")
    assert "note: no predictor, priced by their bound: embedding, " in result.stdout
    down = next(line for line in result.stdout.splitlines() if line.startswith("down_proj"))
    assert down.split()[-2:] == ["interpolated", "[1]"]
    norm = next(line for line in result.stdout.splitlines() if line.startswith("qk_norm"))
    assert norm.split()[-2:] == ["unmeasured", "-"]


def test_a_damaged_pack_is_an_input_that_is_not_valid(cli, small, tmp_path):
    pack = tmp_path / "h100.safetensors"
    pack.write_bytes(b"nothing")
    packs = ("--set", f"engine.step_time.learned.packs=[{pack.as_posix()}]")
    assert cli("explain", small, *packs).exit_code == 3
    error = json.loads(cli("run", small, "--json", *packs).stderr)["error"]
    assert (error["type"], error["exit_code"], error["source"]) == ("PackError", 3, str(pack))


def test_each_cluster_has_its_steps(cli):
    text = cli("explain", "pdd-llama-70b", "--decode", "8").stdout
    assert text.index("cluster prefill") < text.index("cluster decode")
    document = json.loads(cli("explain", "pdd-llama-70b", "--decode", "8", "--json").stdout)
    assert list(document["clusters"]) == ["prefill", "decode"]
    one = json.loads(cli("explain", "pdd-llama-70b", "--decode", "8", "--cluster", "decode", "--json").stdout)
    assert one == document["clusters"]["decode"]
    wrong = cli("explain", "pdd-llama-70b", "--cluster", "decod")
    assert wrong.exit_code != 0
    assert "did you mean 'decode'" in wrong.stderr


def test_each_cluster_is_explained_with_its_own_model(cli):
    document = json.loads(cli("explain", "two-models", "--json").stdout)["clusters"]
    assert {name: each["model"] for name, each in document.items()} == {
        "small": "llama-3.1-8b",
        "prefill": "llama-3.1-70b",
        "decode": "llama-3.1-70b",
    }
