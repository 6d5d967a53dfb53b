"""GPU and model files with wrong or damaged text are refused by name and file."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from damaged_text import damaged
from mutated_scenario_bases import BASES
from mutation_outcome import Flaw, check_run, check_words, outcome_of

import frontier
from frontier.errors import ConfigError
from frontier.results import Result

pytestmark = pytest.mark.timeout(60)

PARTS = 5

GPU = b"""\
name: mine
num_sms: 132
memory: 80GiB
memory_bandwidth: 3.35TB/s
peak: {fp32: 67TFLOPS, bf16: 989TFLOPS}
pcie_bandwidth: 64GB/s
"""
_MODEL = {
    "model_type": "qwen3_moe", "hidden_size": 256, "intermediate_size": 512, "moe_intermediate_size": 64,
    "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32,
    "num_experts": 8, "num_experts_per_tok": 2, "decoder_sparse_step": 1, "mlp_only_layers": [0],
    "vocab_size": 1000, "max_position_embeddings": 4096,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}  # fmt: skip
MODEL = json.dumps(_MODEL, indent=1).encode()

BAD_GPUS: list[tuple[str, bytes, str]] = [
    ("empty", b"", "mapping"),
    ("a list", b"- 5\n", "mapping"),
    ("a key twice", GPU + b"num_sms: 5\n", "num_sms"),
    ("an unknown key", GPU + b"memory_size: 5GB\n", "memory_size"),
    ("a key missing", GPU.replace(b"num_sms: 132\n", b""), "num_sms"),
    ("a wrong unit", GPU.replace(b"3.35TB/s", b"3.35TB"), "memory_bandwidth"),
    ("bits for bytes of memory", GPU.replace(b"80GiB", b"80Gib"), "memory"),
    ("a negative size", GPU.replace(b"80GiB", b"-80GiB"), "memory"),
    ("not a number", GPU.replace(b"132", b".nan"), "num_sms"),
    ("a number that overflows", GPU.replace(b"132", b"1e400"), "num_sms"),
    ("a long number", GPU.replace(b"132", b"9" * 5000), "YAML"),
    ("an unknown type", GPU.replace(b"bf16", b"bf17"), "bf17"),
    ("a key that is no text", GPU + b"5: 6\n", "5"),
    ("an open bracket", GPU.replace(b"989TFLOPS}", b"989TFLOPS"), "line"),
    ("not UTF-8", GPU.replace(b"mine", b"\xe9\xff"), "YAML"),
    ("a null byte", GPU.replace(b"mine", b"mi\x00ne"), "YAML"),
    ("an alias in itself", GPU + b"source: &x [*x]\n", "source"),
]
BAD_MODELS: list[tuple[str, bytes, str]] = [
    ("empty", b"", "JSON"),
    ("a list", b"[]", "object"),
    ("a number", b"5", "object"),
    ("cut off", MODEL[:200], "JSON"),
    ("no type", MODEL.replace(b"model_type", b"modeltype"), "model_type"),
    ("a type that is a list", MODEL.replace(b'"qwen3_moe"', b'["qwen3_moe"]'), "model_type"),
    ("a type that is a mapping", MODEL.replace(b'"qwen3_moe"', b"{}"), "model_type"),
    ("no experts", MODEL.replace(b'"num_experts": 8', b'"num_experts": 0'), "num_experts"),
    ("more experts per token than there are", MODEL.replace(b'_per_tok": 2', b'_per_tok": 9'), "num_experts"),
    ("not a number", MODEL.replace(b"256", b"NaN"), "hidden_size"),
    ("an infinite layer", MODEL.replace(b"\n  0\n", b"\n  Infinity\n"), "mlp_only_layers"),
    ("a layer that is no number", MODEL.replace(b"\n  0\n", b"\n  NaN\n"), "mlp_only_layers"),
    ("a negative layer", MODEL.replace(b"\n  0\n", b"\n  -1\n"), "mlp_only_layers"),
    ("a long number", MODEL.replace(b"256", b"9" * 5000), "JSON"),
    ("a wrong factor", MODEL.replace(b"2.0", b"-2.0"), "factor"),
    ("a tiny factor", MODEL.replace(b"2.0", b"1e-300"), "factor"),
    ("an infinite factor", MODEL.replace(b"2.0", b"1e999"), "factor"),
    ("an unknown quantisation", MODEL.replace(b'"fp8"', b'"fp9"'), "quant"),
    ("blocks that are no list", MODEL.replace(b"128,\n   128", b'"x"'), "quant"),
    ("not UTF-8", MODEL.replace(b"linear", b"\xff\xfe"), "read"),
    ("deep brackets", b'{"a": ' + b"[" * 100_000, "read"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "words"), [pytest.param(*rest, id=name) for name, *rest in BAD_GPUS])
def test_bad_gpu_files_are_refused(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "gpu.yaml"
    path.write_bytes(data)
    error = outcome_of(lambda: frontier.simulate(with_parts(hardware=str(path))))
    assert isinstance(error, ConfigError)
    check_words(error)
    assert words in str(error)
    assert "gpu.yaml" in str(error)
    assert {issue.path for issue in error.issues} == {"hardware.gpu"}


@pytest.mark.parametrize(("data", "words"), [pytest.param(*rest, id=name) for name, *rest in BAD_MODELS])
def test_bad_model_files_are_refused(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(data)
    error = outcome_of(lambda: frontier.simulate(with_parts(model=str(path))))
    assert isinstance(error, ConfigError)
    check_words(error)
    assert words in str(error)
    assert "config.json" in str(error)
    assert {issue.path for issue in error.issues} == {"model"}


@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_gpu_and_model_files(tmp_path: Path, part: int) -> None:
    flaws = []
    for number in range(40):
        rng = random.Random(f"part {part} {number}")
        name, section, good = (("gpu.yaml", "hardware", GPU), ("config.json", "model", MODEL))[number % 2]
        path = tmp_path / name
        path.write_bytes(damaged(good, rng))
        try:
            outcome = outcome_of(
                lambda section=section, path=path: frontier.simulate(with_parts(**{section: str(path)}))
            )
            if isinstance(outcome, Result):
                check_run(outcome)
            else:
                check_words(outcome)
        except Flaw as flaw:
            flaws.append(f"part {part} number {number}: {flaw}")
    assert not flaws, "\n".join(flaws)


def with_parts(**sections: Any) -> dict[str, Any]:
    """Return a scenario with sections replaced, that runs on any GPU and model."""
    return {**BASES["closed loop"], "engine": {"step_time": {"linear": {"per_step": "2ms"}}}, **sections}


def test_the_good_files_run(tmp_path: Path) -> None:
    (tmp_path / "gpu.yaml").write_bytes(GPU)
    (tmp_path / "config.json").write_bytes(MODEL)
    for parts in ({"hardware": str(tmp_path / "gpu.yaml")}, {"model": str(tmp_path)}):
        check_run(frontier.simulate(with_parts(**parts)), 24)
