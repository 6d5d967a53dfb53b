"""Quantised weights: bits, arithmetic, quantisation work, against closed forms and published sizes."""

import json
from pathlib import Path
from typing import Any

import pytest

from frontier.config.quantization import QUANTIZATION_NAMES, attends_in_fp8, quantized_model
from frontier.errors import ConfigError
from frontier.hardware import load_gpu
from frontier.models import Layout, ModelSpec, load_model, model_names, operator_program
from frontier.models.draft import draft_program
from frontier.models.operators import Attention, Elementwise, FusedMoe, Gemm, Operator
from frontier.models.spec import Quantization

W4A16 = {
    "quant_method": "compressed-tensors",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 4,
                "type": "int",
                "strategy": "group",
                "group_size": 128,
                "symmetric": True,
            },
            "input_activations": None,
        }
    },
    "ignore": ["lm_head"],
}
NVFP4 = {
    "quant_method": "modelopt",
    "quant_algo": "NVFP4",
    "kv_cache_quant_algo": "FP8",
    "ignore": ["lm_head"],
}


def scheme(weights: dict[str, Any], inputs: dict[str, Any] | None) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {"quant_method": "compressed-tensors", "config_groups": {"g": group}, "ignore": ["lm_head"]}


INT8 = scheme(
    {"num_bits": 8, "type": "int", "strategy": "channel"},
    {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True},
)
FP8_DYNAMIC = scheme(
    {"num_bits": 8, "type": "float", "strategy": "channel"},
    {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
)


def with_checkpoint(preset: str, quantization: dict[str, Any]) -> ModelSpec:
    folder = Path(load_model.__code__.co_filename).parent / "presets"
    config: dict[str, Any] = json.loads((folder / f"{preset}.json").read_text())
    return load_model({**config, "quantization_config": quantization})


def online(preset: str, name: str, gpu: str = "h100", version: str = "0.32") -> ModelSpec:
    spec, issues = quantized_model(load_model(preset), name, version=version, gpu=load_gpu(gpu))
    assert not issues, issues
    return spec


def weight_bytes(spec: ModelSpec, ranks: int = 1) -> int:
    """Return the bytes of a checkpoint: what is derived when it loads is not in it."""
    program = operator_program(spec, tensor_parallel_size=ranks)
    return sum(op.count * sum(t.bytes for t in op.weights if not t.derived) for op in program)


def named(program: list[Operator], name: str) -> Any:
    return next(op for op in program if op.name == name)


# Llama: elements of the linear layers of all layers, and of all else (embedding, LM head, norms)
def linear_elements(hidden: int, kv: int, wide: int, layers: int) -> int:
    return layers * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * wide)


LLAMA_8B = linear_elements(4096, 1024, 14336, 32)
LLAMA_70B = linear_elements(8192, 1024, 28672, 80)


def test_llama_8b_in_fp8_takes_a_byte_per_weight_and_a_scale_per_matrix() -> None:
    rest = 2 * (8_030_261_248 - LLAMA_8B)
    assert weight_bytes(online("llama-3.1-8b", "fp8_per_tensor")) == LLAMA_8B + rest + 4 * 7 * 32
    channels = 32 * (4096 + 2 * 1024 + 4096 + 2 * 14336 + 4096)
    assert weight_bytes(online("llama-3.1-8b", "fp8_per_channel")) == LLAMA_8B + rest + 4 * channels
    blocks = LLAMA_8B // 128**2
    assert weight_bytes(online("llama-3.1-8b", "fp8_per_block")) == LLAMA_8B + rest + 4 * blocks


def test_llama_70b_in_four_bits_takes_four_and_an_eighth() -> None:
    spec = with_checkpoint("llama-3.1-70b", W4A16)
    rest = 2 * (70_553_706_496 - LLAMA_70B)
    assert weight_bytes(spec) == LLAMA_70B * (4 * 128 + 16) // 128 // 8 + rest
    awq = with_checkpoint("llama-3.1-70b", {"quant_method": "awq", "bits": 4, "group_size": 128})
    assert weight_bytes(awq) == LLAMA_70B * (4 * 128 + 20) // 128 // 8 + rest
    # neuralmagic/Meta-Llama-3.1-70B-Instruct-quantized.w4a16 and hugging-quants' AWQ are 39.8 GB each
    assert weight_bytes(awq) == pytest.approx(39.8e9, rel=0.01)


def test_nvfp4_takes_four_and_a_half_bits_and_a_scale_per_matrix() -> None:
    spec = with_checkpoint("llama-3.1-8b", NVFP4)
    rest = 2 * (8_030_261_248 - LLAMA_8B)
    assert weight_bytes(spec) == LLAMA_8B * 9 // 16 + rest + 4 * 7 * 32


def test_gpt_oss_120b_takes_what_its_model_card_says() -> None:
    assert weight_bytes(load_model("gpt-oss-120b")) / 2**30 == pytest.approx(60.8, abs=0.05)


def test_deepseek_v3_with_its_prediction_layer_takes_what_the_hub_says() -> None:
    """688.6 GB of safetensors (deepseek-ai/DeepSeek-V3), two copies of embedding and head among them."""
    spec = load_model("deepseek-v3")
    layer = draft_program("mtp", 1, spec, Layout())
    drafted = sum(op.count * sum(t.bytes for t in op.weights if not t.derived) for op in layer.first_pass)
    copies = 2 * 129_280 * 7168 * 2
    assert weight_bytes(spec) + drafted + copies == pytest.approx(688.6e9, rel=0.001)


@pytest.mark.parametrize("name", QUANTIZATION_NAMES)
@pytest.mark.parametrize("preset", ["llama-3.1-8b", "qwen3-30b-a3b", "gemma-3-27b", "mixtral-8x7b"])
def test_a_quantised_model_never_holds_more(preset: str, name: str) -> None:
    plain = load_model(preset)
    for version in ("0.25", "0.32"):
        spec, issues = quantized_model(plain, name, version=version, gpu=load_gpu("b200"))
        if issues:
            assert spec is plain
            continue
        for ranks in (1, 2):
            program = operator_program(spec, tensor_parallel_size=ranks)
            before = operator_program(plain, tensor_parallel_size=ranks)
            assert sum(op.weight_bytes for op in program) < sum(op.weight_bytes for op in before)
            assert sum(op.weight_elements for op in program) == sum(op.weight_elements for op in before)
            assert sum(op.weight_scales for op in program) > 0


def test_head_embedding_norms_and_router_stay_in_sixteen_bits() -> None:
    program = operator_program(online("qwen3-30b-a3b", "fp8_per_block"), tensor_parallel_size=1)
    for operator in program:
        plain = operator.component in ("embedding", "lm_head", "norm", "router")
        kinds = {tensor.storage.kind for tensor in operator.weights if ".weight" in tensor.name}
        if operator.weights and (plain or isinstance(operator, Elementwise)):
            assert kinds == {"plain"}, operator.name
    assert named(program, "experts").weights[0].storage.kind == "fp8_block"


def quantise_operators(spec: ModelSpec) -> dict[str, int]:
    program = operator_program(spec, tensor_parallel_size=1)
    found: dict[str, int] = {}
    for operator in program:
        if operator.component == "quantisation":
            found[operator.name] = found.get(operator.name, 0) + operator.count
    return found


def test_what_quantises_activations() -> None:
    """Per group before each product; per token beside norms and activations only after attention."""
    assert quantise_operators(online("llama-3.1-8b", "fp8_per_block")) == {"quant_fp8": 4 * 32}
    assert quantise_operators(online("llama-3.1-8b", "fp8_per_tensor")) == {"quant_fp8": 32}
    assert quantise_operators(with_checkpoint("llama-3.1-8b", INT8)) == {"quant_int8": 4 * 32}
    assert quantise_operators(with_checkpoint("llama-3.1-8b", NVFP4)) == {"quant_fp4": 4 * 32}
    assert quantise_operators(with_checkpoint("llama-3.1-8b", W4A16)) == {}
    block = [
        op
        for op in operator_program(online("llama-3.1-8b", "fp8_per_block"), tensor_parallel_size=1)
        if op.component == "quantisation" and isinstance(op, Elementwise)
    ]
    read_and_written = {op.bytes_per_row for op in block}
    assert read_and_written == {3 * k + 4 * k // 128 for k in (4096, 14336)}


@pytest.mark.parametrize(
    ("spec", "dtype", "bits"),
    [
        (online("llama-3.1-8b", "fp8_per_tensor"), "fp8", 8),
        (online("llama-3.1-8b", "fp8_per_tensor", "a100-80gb"), "bf16", 8),
        (online("llama-3.1-8b", "fp8_per_block", "l40s"), "fp8", 8),
        (online("llama-3.1-8b", "mxfp8", "b200"), "fp8", 8.25),
        (with_checkpoint("llama-3.1-8b", INT8), "int8", 8),
        (with_checkpoint("llama-3.1-8b", FP8_DYNAMIC), "fp8", 8),
        (with_checkpoint("llama-3.1-8b", W4A16), "bf16", 4.125),
        (with_checkpoint("llama-3.1-8b", NVFP4), "fp4", 4.5),
    ],
)
def test_arithmetic_and_bits_of_products(spec: ModelSpec, dtype: str, bits: float) -> None:
    program = operator_program(spec, tensor_parallel_size=1)
    gemm = named(program, "gate_up_proj")
    assert isinstance(gemm, Gemm)
    assert gemm.dtype == dtype
    assert gemm.weight_bytes_per_element * 8 == pytest.approx(bits, rel=2e-3)
    inputs = {"fp8": 1.0, "int8": 1.0, "fp4": 0.5}.get(dtype, 2.0)
    assert gemm.activation_bytes == (gemm.k * inputs + gemm.n * 2) / (gemm.k + gemm.n)
    assert (named(program, "lm_head").dtype, named(program, "lm_head").weight_bytes_per_element) == (
        "bf16",
        2.0,
    )


def on_gpu(spec: ModelSpec, gpu: str, name: str | None = None, version: str = "0.32") -> Quantization | None:
    found, issues = quantized_model(spec, name, version=version, gpu=load_gpu(gpu))
    return None if issues else found.quantization


def test_without_units_for_it_weights_are_widened_or_the_engine_does_not_start() -> None:
    nvfp4, int8 = with_checkpoint("llama-3.1-8b", NVFP4), with_checkpoint("llama-3.1-8b", INT8)
    hopper, blackwell = on_gpu(nvfp4, "h100"), on_gpu(nvfp4, "b200")
    assert hopper is not None
    assert blackwell is not None
    assert (hopper.arithmetic, blackwell.arithmetic) == (None, "fp4")
    _, issues = quantized_model(int8, None, version="0.32", gpu=load_gpu("b200"))
    assert "no kernel on b200" in issues[0].message
    assert on_gpu(int8, "h100") is not None
    deepseek = on_gpu(load_model("deepseek-v3"), "a100-80gb")
    assert deepseek is not None
    assert deepseek.weight_only
    _, issues = quantized_model(load_model("llama-3.1-8b"), "mxfp8", version="0.32", gpu=load_gpu("h100"))
    assert "needs compute capability 10.0" in issues[0].message


@pytest.mark.parametrize(
    ("preset", "name", "version", "words"),
    [
        ("llama-3.1-8b", "fp8", "0.31", "does not convert a 16-bit checkpoint"),
        ("llama-3.1-8b", "fp8_per_block", "0.19", "does not convert a 16-bit checkpoint"),
        ("llama-3.1-8b", "awq", "0.32", "is not quantised"),
        ("llama-3.1-8b", "experts_int8", "0.32", "has none"),
        ("llama-3.1-8b", "gguf", "0.32", "a scheme of vLLM that is not modelled"),
        ("llama-3.1-8b", "fp8_per_tenser", "0.32", "did you mean 'fp8_per_tensor'"),
        ("deepseek-v3", "awq", "0.32", "is quantised as fp8"),
    ],
)
def test_names_that_do_not_suit_are_refused(preset: str, name: str, version: str, words: str) -> None:
    _, issues = quantized_model(load_model(preset), name, version=version, gpu=None)
    (issue,) = issues
    assert issue.path == "engine.quantization"
    assert words in str(issue)


def test_fp8_converts_until_0_30_and_names_of_the_checkpoint_change_nothing() -> None:
    assert online("llama-3.1-8b", "fp8", version="0.30") != load_model("llama-3.1-8b")
    assert online("deepseek-v3", "fp8") == load_model("deepseek-v3")
    awq = with_checkpoint("llama-3.1-8b", {"quant_method": "awq", "bits": 4})
    assert on_gpu(awq, "h100", "awq_marlin") == awq.quantization


def test_the_cache_follows_what_the_checkpoint_declares_from_the_version_on() -> None:
    declared = with_checkpoint("llama-3.1-8b", NVFP4)
    for version, kept in (("0.13", None), ("0.14", "fp8")):
        found = on_gpu(declared, "b200", version=version)
        assert found is not None
        assert found.kv_cache == kept
    program = operator_program(declared, tensor_parallel_size=1)
    assert named(program, "attention").kv_bytes_per_token == 2 * 8 * 128
    fixed = operator_program(declared, tensor_parallel_size=1, kv_cache_dtype="bfloat16")
    assert named(fixed, "attention").kv_bytes_per_token == 2 * 2 * 8 * 128


def test_attention_over_an_fp8_cache_quantises_queries_where_it_computes_in_fp8() -> None:
    assert attends_in_fp8(load_gpu("h100"), "fp8")
    assert attends_in_fp8(load_gpu("b200"), "fp8")
    assert not attends_in_fp8(load_gpu("h100"), "bfloat16")
    assert not attends_in_fp8(load_gpu("l40s"), "fp8")
    spec = load_model("llama-3.1-8b")
    for wanted in (True, False):
        program = operator_program(spec, tensor_parallel_size=1, kv_cache_dtype="fp8", fp8_attention=wanted)
        attention = named(program, "attention")
        assert isinstance(attention, Attention)
        assert attention.dtype == ("fp8" if wanted else "bf16")
        queries = [op.count for op in program if op.component == "quantisation"]
        assert queries == ([32] if wanted else [])


def test_experts_alone() -> None:
    program = operator_program(online("qwen3-30b-a3b", "experts_int8"), tensor_parallel_size=1)
    experts = named(program, "experts")
    assert isinstance(experts, FusedMoe)
    assert (experts.dtype, experts.weights[0].storage.kind) == ("bf16", "int8_channel")
    assert {t.storage.kind for op in program if op.component == "attention" for t in op.weights} == {"plain"}


def test_exceptions_of_a_checkpoint() -> None:
    config = {**NVFP4, "ignore": [f"model.layers.{i}.self_attn*" for i in range(32)] + ["lm_head"]}
    program = operator_program(with_checkpoint("llama-3.1-8b", config), tensor_parallel_size=1)
    assert (named(program, "qkv_proj").dtype, named(program, "gate_up_proj").dtype) == ("bf16", "fp4")
    for odd in (
        ["model.layers.3.self_attn"],
        ["model.layers.0.mlp.down_proj"],
        ["re:.*(q|k)_proj"],
        ["q_proj"],
    ):
        with pytest.raises(ConfigError, match="quantised in part this way is not modelled"):
            with_checkpoint("llama-3.1-8b", {**NVFP4, "ignore": odd})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "gptq", "bits": 3}, "4, or 8 with symmetry"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"x": {}}}, "changes the scheme of single modules"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "not modelled"),
        ({**NVFP4, "kv_cache_quant_algo": "NVFP4"}, "kv_cache_quant_algo"),
        ({**W4A16, "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse"),
        (scheme({"num_bits": 4, "type": "int", "strategy": "group"}, {"num_bits": 8}), "not modelled"),
    ],
)
def test_schemes_that_are_not_modelled_are_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        with_checkpoint("llama-3.1-8b", config)


def test_ranks_hold_whole_groups() -> None:
    with pytest.raises(ConfigError, match="no whole number of groups of 128"):
        operator_program(with_checkpoint("qwen2.5-72b", W4A16), tensor_parallel_size=8)
    operator_program(with_checkpoint("llama-3.1-70b", W4A16), tensor_parallel_size=8)


def test_presets_are_as_their_checkpoints_declare() -> None:
    kinds = {name: load_model(name).quantization for name in model_names()}
    found = {name: kind.method for name, kind in kinds.items() if kind is not None}
    assert found["deepseek-v3"] == "fp8_block"
    assert found["gpt-oss-20b"] == "mxfp4"
    assert "llama-3.1-8b" not in found
