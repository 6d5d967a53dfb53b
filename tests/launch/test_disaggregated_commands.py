"""Commands of prefill and decode clusters."""

import json
import shlex

import pytest

from frontier import load
from frontier.errors import ConfigError
from frontier.launch import from_command


def commands(text: str) -> dict[str, list[str]]:
    """Return the words of each command by the name of its cluster."""
    found = {}
    for part in text.split("# cluster ")[1:]:
        about, _, command = part.partition("\n")
        found[about.partition(":")[0]] = shlex.split(command.replace("\\\n", " "))
    return found


def test_each_cluster_has_a_command_that_hands_kv_over() -> None:
    scenario = load("pdd-llama-70b")
    found = commands(scenario.to_vllm())
    assert list(found) == ["prefill", "decode"]
    for name, role in (("prefill", "kv_producer"), ("decode", "kv_consumer")):
        words = found[name]
        settings = json.loads(words[words.index("--kv-transfer-config") + 1])
        assert settings == {"kv_connector": "NixlConnector", "kv_role": role}
        words = [word for word in words if word != "--kv-transfer-config" and "NixlConnector" not in word]
        launched = from_command(shlex.join(words), hardware="h100", workload={"trace": "azure-2023-conv"})
        assert launched.scenario.engine == scenario.view(name).engine


def test_each_server_of_sglang_has_a_command() -> None:
    engine = {"name": "sglang", "version": "0.5.3", "tensor_parallel_size": 4}
    reserved = {"num_reserved_decode_tokens": 64, "chunked_prefill_size": 4096}
    scenario = load("pdd-llama-70b").with_(
        {
            "engine": engine | {"sglang": reserved},
            "clusters": [
                {"role": "prefill", "engine": {"sglang": {"schedule_policy": "lpm"}}},
                {"role": "decode", "engine": {"tensor_parallel_size": 8}},
            ],
            "disaggregation": {"kv_transfer": {"latency": "20us"}},
        }
    )
    found = commands(scenario.to_sglang())
    common = ["python", "-m", "sglang.launch_server", "--model-path", "meta-llama/Llama-3.1-70B"]
    prefill, decode = found["prefill"], found["decode"]
    assert prefill[:5] == decode[:5] == common
    assert prefill[prefill.index("--disaggregation-mode") + 1] == "prefill"
    assert prefill[prefill.index("--disaggregation-decode-tp") + 1] == "8"
    assert decode[decode.index("--disaggregation-mode") + 1] == "decode"
    assert decode[decode.index("--num-reserved-decode-tokens") + 1] == "64"
    assert "--num-reserved-decode-tokens" not in prefill
    assert "--disaggregation-decode-tp" not in decode
    assert prefill[prefill.index("--schedule-policy") + 1] == "lpm"
    for words in (prefill, decode):
        assert words[words.index("--chunked-prefill-size") + 1] == "4096"


def test_what_no_command_can_say_is_refused() -> None:
    scenario = load("pdd-llama-70b")
    pushed = scenario.with_({"disaggregation.kv_transfer.mode": "push"})
    with pytest.raises(ConfigError, match=r"kv_transfer\.mode: was 'push', .*\(allowed: pull\)"):
        pushed.to_vllm()
    with pytest.raises(ConfigError, match="clusters: are prefill, decode: Dynamo's manifest"):
        scenario.to_dynamo()
    with pytest.raises(ConfigError, match=r"engine\.name: was 'vllm', must be sglang"):
        scenario.to_sglang()


def test_pools_of_whole_engines_have_no_connector() -> None:
    whole = load("chat-poisson").with_({"clusters": [{"role": "colocated", "name": "a", "replicas": 2}]})
    text = whole.to_vllm()
    assert text.startswith("# cluster a: 2 x this, each on 1 x h100\nvllm serve")
    assert "--kv-transfer-config" not in text
