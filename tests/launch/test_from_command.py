"""Launch commands become scenarios, and scenarios commands that mean the same."""

import json
import shlex

import pytest
import yaml

import frontier
from frontier.errors import ConfigError
from frontier.launch import to_dynamo, to_sglang, to_vllm
from frontier.launch.command_line import read_command

GIVEN = {"hardware": "h100", "workload": {"trace": "azure-2023-conv"}}
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def launched(command, **given):
    return frontier.from_command(command, **{**GIVEN, **given})


def values(text, engine="vllm", version="0.32"):
    return dict(read_command(text, {"vllm": version, "sglang": "0.5.3"}).values)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("-tp 2", {"--tensor-parallel-size": 2}),
        ("--tensor_parallel_size=2", {"--tensor-parallel-size": 2}),
        ("--max-num-batched-tokens 8k", {"--max-num-batched-tokens": 8000}),
        ("--max-num-batched-tokens 8K", {"--max-num-batched-tokens": 8192}),
        ("--max-model-len 25.6k", {"--max-model-len": 25600}),
        ("--max-model-len -1", {"--max-model-len": "auto"}),
        ("--no-enable-prefix-caching", {"--enable-prefix-caching": False}),
        ("--enable-prefix-caching=False", {"--enable-prefix-caching": False}),
        ("--cudagraph-capture-sizes 1 2 4 --port 80", {"--cudagraph-capture-sizes": [1, 2, 4], "--port": 80}),
        (
            "--eplb-config.window_size 5 --eplb-config.step_interval=6",
            {"--eplb-config": {"window_size": 5, "step_interval": 6}},
        ),
        ("""-cc '{"cudagraph_mode": "NONE"}'""", {"--compilation-config": {"cudagraph_mode": "NONE"}}),
        ("-O3", {"--optimization-level": "3"}),
        ("-O.cudagraph_mode=NONE", {"--compilation-config": {"cudagraph_mode": "NONE"}}),
    ],
)
def test_values_are_read_as_the_engine_reads_them(arguments, expected):
    assert values(f"vllm serve m {arguments}") == {"model_tag": "m", **expected}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("vllm bench", "starts no engine that is known"),
        ("vllm serve m --max-num-seq 5", "did you mean '--max-num-seqs'"),
        ("vllm serve m --max-num-seqs many", "must be a whole number"),
        ("vllm serve m --max-num-seqs", "without a value"),
        ("vllm serve m --scheduling-policy lifo", "must be one of fcfs, priority"),
        ("vllm serve m --max-model-len 1.5K", "a binary unit takes a whole number"),
        ("vllm serve m --eplb-config {", "is not JSON"),
        ("vllm serve m stray", "'stray', which belongs to no flag"),
        ("vllm serve 'm", "cannot be split"),
    ],
)
def test_what_cannot_be_read_is_named(command, message):
    with pytest.raises(ConfigError, match=message):
        values(command)


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ConfigError) as caught:
        values("vllm serve m --what 1 --max-num-seqs x --port y")
    assert len(caught.value.issues) == 3


def test_flags_set_fields_and_the_rest_is_listed():
    launch = launched(
        f"CUDA_VISIBLE_DEVICES=0,1 vllm serve {LLAMA} -tp 2 --max-num-seqs 128 \\\n "
        "--no-enable-prefix-caching --port 8000 --max-loras 4 --enable-lora --watermark 0.0"
    )
    engine = launch.scenario.engine
    assert (engine.tensor_parallel_size, engine.max_num_seqs, engine.enable_prefix_caching) == (2, 128, False)
    assert launch.scenario.resolve().model.name == "llama-3.1-8b"
    assert [remark.flag for remark in launch.unsupported] == ["--max-loras", "--enable-lora"]
    assert [remark.flag for remark in launch.neutral] == ["--port", "--watermark", "CUDA_VISIBLE_DEVICES"]
    assert "LoRA is not simulated" in launch.summary()


def test_strict_refuses_what_is_not_simulated():
    with pytest.raises(ConfigError, match="LoRA is not simulated"):
        launched(f"vllm serve {LLAMA} --enable-lora", strict=True)


def test_a_field_that_is_refused_names_its_flag():
    with pytest.raises(ConfigError, match=r"engine\.max_num_seqs.*said by --max-num-seqs"):
        launched(f"vllm serve {LLAMA} --max-num-seqs 0")


def test_models_go_by_hub_names_overrides_and_own_files():
    base = launched(f"vllm serve {LLAMA}").scenario.resolve().model
    shorter = launched(f"""vllm serve {LLAMA} --hf-overrides '{{"num_hidden_layers": 16}}'""")
    assert (base.num_layers, shorter.scenario.resolve().model.num_layers) == (32, 16)
    assert launched("vllm serve ours/model", model="qwen3-8b").scenario.resolve().model.name == "qwen3-8b"
    with pytest.raises(ConfigError, match="model"):
        launched("vllm serve nobody/knows-this")
    with pytest.raises(ConfigError, match="names no model"):
        launched("vllm serve --port 1")


def test_the_only_engine_may_be_named():
    v1 = launched(f"VLLM_USE_V1=1 vllm serve {LLAMA}", strict=True)
    assert [remark.flag for remark in v1.neutral] == ["VLLM_USE_V1"]
    v0 = launched(f"VLLM_USE_V1=0 vllm serve {LLAMA}")
    assert "no other engine than V1" in v0.summary()


def test_sglang_converts_to_fp8():
    command = f"python -m sglang.launch_server --model-path {LLAMA} --quantization fp8"
    scenario = launched(command, strict=True).scenario
    assert scenario.engine.quantization == "fp8"
    assert "--quantization fp8" in to_sglang(scenario)


COMMANDS = [
    f"vllm serve {LLAMA}",
    f"vllm serve {LLAMA} -tp 2 --max-num-seqs 64 --max-num-batched-tokens 4096 --no-enable-prefix-caching",
    f"vllm serve {LLAMA} --kv-cache-dtype fp8 --dtype float16 --no-async-scheduling",
    f"""vllm serve {LLAMA} --hf-overrides '{{"num_hidden_layers": 16}}' --scheduling-policy priority""",
]

EXPERTS = "Qwen/Qwen3-30B-A3B"
DEEPER = [
    (f"vllm serve {LLAMA} --kv-offloading-size 20 --enforce-eager --performance-mode throughput", {}),
    (f"vllm serve {LLAMA} -pp 2 --max-cudagraph-capture-size 64 --watermark 0.01", {}),
    (f"""vllm serve {LLAMA} -cc '{{"cudagraph_mode": "FULL_DECODE_ONLY"}}'""", {}),
    (f"VLLM_PP_LAYER_PARTITION=15,17 vllm serve {LLAMA} -pp 2", {}),
    (
        f"vllm serve {EXPERTS} -dp 4 --enable-expert-parallel --enable-eplb "
        "--eplb-config.num_redundant_experts 8 --eplb-config.window_size 200",
        {"moe": {"routing": {"power_law": {"exponent": 0.5}}}},
    ),
    (
        f"""vllm serve {LLAMA} -sc '{{"method": "ngram", "num_speculative_tokens": 3}}'""",
        {"speculative": {"acceptance": 0.6, "match_rate": 0.5}},
    ),
]
SGLANG = (
    f"python3 -m sglang.launch_server --model-path {LLAMA} --tp 2 --schedule-policy lpm "
    "--mem-fraction-static 0.8 --chunked-prefill-size 4096 --disable-cuda-graph"
)


@pytest.mark.parametrize(("command", "engine"), DEEPER)
def test_sections_of_the_engine_are_written_and_read_again(command, engine):
    scenario = launched(command, engine=engine).scenario
    assert launched(scenario.to_vllm(), engine=engine).scenario == scenario


def test_sglang_commands_go_in_and_out():
    launch = launched(SGLANG)
    engine = launch.scenario.engine
    assert (engine.name, engine.version, engine.tensor_parallel_size) == ("sglang", "0.5.3", 2)
    assert (engine.sglang.schedule_policy, engine.enforce_eager) == ("lpm", True)
    assert launched(launch.scenario.to_sglang()).scenario == launch.scenario
    assert "dynamo.sglang" in to_dynamo(launch.scenario)
    replicas = launched(
        f"{SGLANG} --dp-size 4" if "--dp-size" in SGLANG else f"{SGLANG} --data-parallel-size 4"
    )
    assert replicas.scenario.cluster.replicas == 4
    with pytest.raises(ConfigError, match=r"engine\.name"):
        to_vllm(launch.scenario)


def test_balancing_without_experts_to_balance_is_neutral():
    launch = launched(f"vllm serve {LLAMA} --eplb-config.window_size 5")
    assert [remark.flag for remark in launch.neutral] == ["--eplb-config"]


def test_a_policy_that_vllm_lacks_is_refused():
    scenario = launched(f"vllm serve {LLAMA}").scenario.with_({"engine.scheduling_policy": {"sjf": {}}})
    with pytest.raises(ConfigError, match="vLLM does not have"):
        to_vllm(scenario)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_scenario_writes_a_command_that_means_the_same(command):
    scenario = launched(command).scenario
    again = launched(scenario.to_vllm()).scenario
    assert again == scenario


def test_dynamo_gets_the_same_flags():
    scenario = launched(COMMANDS[1], cluster={"replicas": 3, "router": "random"}).scenario
    manifest = yaml.safe_load(to_dynamo(scenario))
    frontend, worker = manifest["spec"]["components"]
    container = worker["podTemplate"]["spec"]["containers"][0]
    assert worker["replicas"] == 3
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "2"
    router = frontend["podTemplate"]["spec"]["containers"][0]["env"]
    assert router == [{"name": "DYN_ROUTER_MODE", "value": "random"}]
    words = shlex.split(to_vllm(scenario).replace("\\\n", " "))
    assert container["args"] == ["--model", LLAMA, *words[3:]]


def test_what_no_command_can_say_is_refused():
    scenario = launched(f"vllm serve {LLAMA}").scenario
    with pytest.raises(ConfigError, match=r"engine\.name"):
        to_sglang(scenario)
    with pytest.raises(ConfigError, match=r"engine\.scheduler: was .*static.*no flag of vllm"):
        to_vllm(scenario.with_({"engine.scheduler": "static"}))
    with pytest.raises(ConfigError, match="inline configuration"):
        to_vllm(scenario.with_({"model": json.loads(json.dumps(_inline()))}))
    with pytest.raises(ConfigError, match="Dynamo's frontend does not have"):
        to_dynamo(scenario.with_({"cluster.router.policy": "power_of_two"}))


def _inline():
    return {
        "model_type": "llama",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "torch_dtype": "bfloat16",
        "architectures": ["LlamaForCausalLM"],
    }
