"""`frontier check`: validation and the explanation of memory."""

import json

import pytest

import frontier

LINK = "disaggregation.kv_transfer.bandwidth"
SMALL_GPU = ("--set", "model=llama-3.1-8b", "--set", "hardware.gpu=rtx-4090")


def test_explains_limits_and_memory(cli, small):
    result = cli("check", small)
    assert result.exit_code == 0
    assert result.stderr == ""
    text = result.stdout
    resolved = frontier.load(small).resolve()
    for name in ("max_model_len", "max_num_batched_tokens", "max_num_seqs"):
        [line] = [line for line in text.splitlines() if line.startswith(f"{name} ")]
        assert line.split()[-1] == f"{getattr(resolved, name):,}"
    assert resolved.memory.explain().splitlines()[2] in text  # weights
    assert f"{resolved.num_blocks:,}" in text
    assert text.endswith(f"{small} is valid\n")
    assert max(len(line) for line in text.splitlines() if str(small) not in line) <= 80


def test_json_holds_memory_and_limits(cli, small):
    document = json.loads(cli("check", small, "--set", "cluster.replicas=3", "--json").stdout)
    resolved = frontier.load(small).resolve()
    assert document["fits"] is True
    assert document["memory"]["weights_bytes"] == resolved.memory.weights_bytes
    assert document["memory"]["kv_cache_tokens"] == resolved.memory.kv_cache_tokens
    assert document["engine"]["num_gpu_blocks"] == resolved.num_blocks
    assert document["cluster"] == {"replicas": 3, "in_service": 3, "gpus_per_replica": 1, "gpus_total": 3}
    assert document["requests"] == 60
    assert document["step_time"] == "roofline"


def test_explains_what_does_not_fit(cli, small):
    result = cli("check", small, "--set", "model=llama-3.1-70b")
    assert result.exit_code == 4
    assert "weights" in result.stdout
    assert "llama-3.1-70b" in result.stdout
    assert result.stderr.startswith("error: ")
    assert "tensor_parallel_size 2 or more" in result.stderr


def test_explains_a_context_that_does_not_fit(cli, small):
    result = cli("check", small, *SMALL_GPU, "--set", "engine.max_model_len=131072", "--json")
    assert result.exit_code == 4
    document = json.loads(result.stdout)
    assert document["fits"] is False
    assert 0 < document["memory"]["kv_cache_tokens"] < 131072
    assert [issue["path"] for issue in document["issues"]] == ["engine.max_model_len"]
    assert json.loads(result.stderr)["error"]["issues"] == document["issues"]


def test_longest_context_of_auto_fits(cli, small):
    result = cli("check", small, *SMALL_GPU, "--set", "engine.max_model_len=auto", "--json")
    document = json.loads(result.stdout)
    assert 2 < document["engine"]["max_model_len"] < 131072


def test_auto_does_not_help_where_the_weights_do_not_fit(cli, small):
    arguments = ("--set", "model=llama-3.1-70b", "--set", "engine.max_model_len=auto")
    assert cli("check", small, *arguments).exit_code == 4


def test_memory_is_explained_for_models_and_gpus_from_files(cli, small):
    (small.parent / "tiny.yaml").write_text(
        "{name: tiny, num_sms: 10, memory: 1GiB, memory_bandwidth: 100GB/s, pcie_bandwidth: 8GB/s,"
        " peak: {bf16: 10TFLOPS, fp32: 1TFLOPS}}"
    )
    small.write_text(small.read_text("utf-8").replace("hardware: h100", "hardware: tiny.yaml"))
    result = cli("check", small)
    assert result.exit_code == 4
    assert "tiny" in result.stdout


def test_warnings_are_shown(cli, small):
    result = cli("check", small, "--set", "workload.synthetic.prompt_tokens=5000")
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    assert "warning: workload.synthetic: every request has at least 5005 tokens" in text


def test_reads_the_trace(cli, small):
    trace = small.parent / "trace.csv"
    trace.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,10,3\n-1,20,4\n")
    arguments = ("check", small, "--set", f"workload.trace.path={trace}")
    result = cli(*arguments)
    assert result.exit_code == 3
    assert f"{trace}:3" in result.stderr
    skipping = cli(*arguments, "--set", "workload.trace.on_bad_row=skip", "--json")
    assert json.loads(skipping.stdout)["requests"] == 1


@pytest.mark.parametrize(
    "change", ["model=gpt5", "hardware.gpu=h1000", "engine.version=0.1", "nothing=1", "engine", "seed=-1"]
)
def test_invalid_scenarios_are_no_memory_problem(cli, small, change):
    result = cli("check", small, "--set", change)
    assert result.exit_code == 3
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")


def test_each_cluster_is_explained(cli):
    result = cli("check", "pdd-llama-70b")
    assert result.exit_code == 0
    text = result.stdout
    scenario = frontier.load("pdd-llama-70b")
    assert "KV transfer  pull by request, over the network, 5MiB per block" in text
    assert text.index("cluster prefill") < text.index("cluster decode")
    for view in scenario.views():
        assert f"{view.facts.num_blocks:,}" in text
    text = cli("check", "pdd-llama-70b", "--set", f"{LINK}=160GB/s").stdout
    assert "KV transfer  pull by request, 160GB/s each, 5MiB per block" in text
    assert f"warning: {LINK}" in text


def test_json_of_several_clusters(cli):
    document = json.loads(cli("check", "pdd-qwen3-235b", "--json").stdout)
    assert document["fits"] is True
    assert document["gpus_total"] == 32
    names = [(each["name"], each["role"], each["weight"]) for each in document["clusters"]]
    assert names == [("prefill", "prefill", 2.0), ("decode", "decode", 2.0)]
    scenario = frontier.load("pdd-qwen3-235b")
    for each, view in zip(document["clusters"], scenario.views(), strict=True):
        assert each["engine"]["num_gpu_blocks"] == view.facts.num_blocks
        assert each["cluster"] == {"replicas": 2, "in_service": 2, "gpus_per_replica": 8, "gpus_total": 16}
    assert document["scenario"] == scenario.to_dict()


def test_several_models_are_named_with_their_clusters(cli):
    text = cli("check", "two-models").stdout
    assert "models       llama-3.1-8b, llama-3.1-70b" in text
    assert "KV transfer  llama-3.1-70b: pull by request, over the network" in text
    assert text.count("model                   llama-3.1-70b\n") == 2
    clusters = json.loads(cli("check", "two-models", "--json").stdout)["clusters"]
    assert [each["model"] for each in clusters] == ["llama-3.1-8b", "llama-3.1-70b", "llama-3.1-70b"]
    served = cli(
        "check",
        "two-models",
        "--set",
        "clusters.small.served_model_name=s",
        "--set",
        "workload.synthetic.models={s: 1, llama-3.1-70b: 1}",
    )
    assert "llama-3.1-8b, served as s" in served.stdout
