"""The operator program: its JSON is the plan's, its work and weights the model's, cut as vLLM cuts them."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from frontier.errors import ConfigError
from frontier.models import (
    Layout,
    load_model,
    model_names,
    operator_program,
    parameter_counts,
    pipeline_stages,
    required_dtypes,
)
from frontier.models.operators import (
    Attention,
    Collective,
    CollectiveKind,
    Elementwise,
    ExchangePhase,
    FusedMoe,
    Gemm,
    MoeExchange,
    Operator,
    Phase,
    Rows,
)
from frontier.models.program import sampled_greedily

RUST = Path(__file__).parents[2] / "rust" / "frontier-core" / "src" / "plan" / "step_time" / "operators.rs"


def body_of(kind: str, name: str) -> str:
    """Return what the plan's definition of a type has between its braces."""
    body = re.search(rf"pub {kind} {name} \{{\n(.*?)\n\}}", RUST.read_text(), re.DOTALL)
    assert body is not None, name
    return body.group(1)


def snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def plan_fields() -> dict[str, set[str]]:
    """Return the fields of each variant of the plan's `OperatorSpec`, read from its definition."""
    variants = re.findall(r"^    (\w+)\((\w+)\),", body_of("enum", "OperatorSpec"), re.MULTILINE)
    return {
        snake(variant): set(re.findall(r"^    pub (\w+):", body_of("struct", spec), re.MULTILINE))
        for variant, spec in variants
    }


def variants_of(enum: str) -> set[str]:
    return {snake(name) for name in re.findall(r"^    (\w+),", body_of("enum", enum), re.MULTILINE)}


def named(program: list[Operator], name: str) -> Operator:
    (operator,) = [op for op in program if op.name == name]
    return operator


def program_of(preset: str, ranks: int = 1, kv_cache_dtype: str = "auto") -> list[Operator]:
    return operator_program(load_model(preset), tensor_parallel_size=ranks, kv_cache_dtype=kv_cache_dtype)


SPREAD = Layout(2, 2, 2, enable_expert_parallel=True)
EXCHANGED = Layout(1, 1, 8, enable_expert_parallel=True, all2all_backend="deepep_low_latency")


def test_words_are_exactly_the_plans() -> None:
    assert set(get_args(Rows)) == variants_of("Rows")
    assert set(get_args(Phase)) == variants_of("AttentionPhase")
    assert set(get_args(CollectiveKind)) == variants_of("CollectiveKind")
    assert set(get_args(ExchangePhase)) == variants_of("ExchangePhase")


def test_operators_are_exactly_the_plans() -> None:
    fields = plan_fields()
    assert len(fields) == 6
    seen = set()
    for preset in model_names():
        program = program_of(preset) + program_of(preset, 2)
        spec = load_model(preset)
        if spec.is_moe:
            program += [op for stage in pipeline_stages(spec, SPREAD) for op in stage]
            program += operator_program(spec, layout=EXCHANGED)
        for operator in program:
            plan = operator.to_plan()
            seen.add(plan["op"])
            # Attention of language models is causal, and says nothing of it.
            assert set(plan) - {"op"} == fields[plan["op"]] - {"span"}
            assert json.loads(json.dumps(plan)) == plan
            for key, value in plan.items():
                if key in {
                    "count",
                    "k",
                    "n",
                    "batch",
                    "num_experts",
                    "top_k",
                    "expert_ranks",
                    "hidden",
                    "intermediate",
                    "heads",
                    "kv_heads",
                    "qk_dim",
                    "v_dim",
                    "ranks",
                    "nodes",
                }:
                    assert isinstance(value, int)
                    assert 1 <= value < 2**32, (preset, plan)
            assert plan.get("ranks", 1) % plan.get("nodes", 1) == 0
            assert plan.get("num_experts", 1) % plan.get("expert_ranks", 1) == 0
            if isinstance(operator, Attention):
                assert operator.heads % operator.kv_heads == 0
    assert seen == set(fields)


@pytest.mark.parametrize("preset", model_names())
def test_equal_operators_are_merged(preset: str) -> None:
    plans = [
        {key: value for key, value in op.to_plan().items() if key != "count"} for op in program_of(preset)
    ]
    weights = [op.weights for op in program_of(preset)]
    keys = [json.dumps(plan) + repr(owned) for plan, owned in zip(plans, weights, strict=True)]
    assert len(keys) == len(set(keys))


def matrix_elements(program: list[Operator]) -> int:
    """Return the weight elements that the products of a program multiply with."""
    total = 0
    for op in program:
        if isinstance(op, Gemm):
            total += op.count * op.k * op.n * op.batch
        elif isinstance(op, FusedMoe):
            held = op.num_experts // op.expert_ranks
            total += op.count * 3 * op.hidden * op.intermediate * held
    return total


@pytest.mark.parametrize(
    "preset", ["llama-3.1-8b", "qwen3-30b-a3b", "mixtral-8x7b", "step-3", "deepseek-v2", "glm-5"]
)
def test_products_cover_every_matrix_once(preset: str) -> None:
    spec = load_model(preset)
    counts = parameter_counts(spec)
    vectors = sum(
        op.count * sum(t.elements for t in op.weights if t.columns == 1) for op in program_of(preset)
    )
    assert matrix_elements(program_of(preset)) == counts.total - counts.by_component["embedding"] - vectors


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_ranks_divide_the_work_of_a_dense_model(ranks: int) -> None:
    assert ranks * matrix_elements(program_of("llama-3.1-70b", ranks)) == matrix_elements(
        program_of("llama-3.1-70b")
    )


def test_llama_program_is_in_order() -> None:
    names = [op.name for op in program_of("llama-3.1-8b", 2)]
    assert names == [
        "embedding",
        "all_reduce.embedding",
        "fused_add_rms_norm",
        "qkv_proj",
        "rotary_embedding",
        "kv_cache_write",
        "attention",
        "o_proj",
        "all_reduce.attention",
        "gate_up_proj",
        "activation",
        "down_proj",
        "all_reduce.feed_forward",
        "lm_head",
        "all_gather.logits",
        "sampler",
    ]


def test_greedy_requests_read_their_logits_once() -> None:
    spec = load_model("llama-3.1-8b")
    (random,) = pipeline_stages(spec, Layout.on_one_node(1))
    (greedy,) = sampled_greedily(spec, [random])
    changed = [(old, new) for old, new in zip(random, greedy, strict=True) if old != new]
    assert [old.name for old, _ in changed] == ["sampler"]
    ((old, new),) = changed
    assert isinstance(old, Elementwise)
    assert isinstance(new, Elementwise)
    assert (old.bytes_per_row, new.bytes_per_row) == (42 * 128_256, 4 * 128_256)


def test_llama_shapes_on_four_ranks() -> None:
    program = program_of("llama-3.1-70b", 4)
    qkv, down = named(program, "qkv_proj"), named(program, "down_proj")
    assert isinstance(qkv, Gemm)
    assert isinstance(down, Gemm)
    assert (qkv.count, qkv.k, qkv.n) == (80, 8192, (64 + 2 * 8) * 128 // 4)
    assert (down.k, down.n) == (28672 // 4, 8192)
    attention = named(program, "attention")
    assert isinstance(attention, Attention)
    assert (attention.heads, attention.kv_heads, attention.phase) == (16, 2, "both")
    assert attention.kv_bytes_per_token == 2 * 2 * 128 * 2
    head = named(program, "lm_head").to_plan()
    assert (head["rows"], head["n"]) == ("seqs", 128256 // 4)
    norms = named(program, "fused_add_rms_norm")
    assert norms.count == 2 * 80 + 1
    reduced = named(program, "all_reduce.attention")
    assert isinstance(reduced, Collective)
    assert (reduced.count, reduced.bytes_per_row) == (80, 8192 * 2)
    assert (reduced.kind, reduced.ranks, reduced.nodes) == ("all_reduce", 4, 1)


def test_one_rank_has_no_collectives() -> None:
    assert not [op for op in program_of("mixtral-8x7b") if isinstance(op, Collective)]


def test_more_ranks_than_kv_heads_replicate_them() -> None:
    program = program_of("qwen3-30b-a3b", 8)  # 4 KV heads
    attention, qkv = named(program, "attention"), named(program, "qkv_proj")
    assert isinstance(attention, Attention)
    assert isinstance(qkv, Gemm)
    assert attention.kv_bytes_per_token == 1 * 2 * 128 * 2
    assert qkv.n == (32 // 8 + 2) * 128


def test_sliding_and_full_layers_differ_in_attention_alone() -> None:
    program = program_of("gemma-3-27b")
    sliding, full = named(program, "attention_sliding"), named(program, "attention")
    assert isinstance(sliding, Attention)
    assert isinstance(full, Attention)
    assert (sliding.count, sliding.window, full.count, full.window) == (52, 1024, 10, None)
    assert named(program, "qkv_proj").count == 62
    assert named(program, "rms_norm").count == 2 * 62


def test_experts_are_cut_by_width_and_visited_by_all() -> None:
    program = program_of("mixtral-8x7b", 4)
    experts = named(program, "experts")
    assert isinstance(experts, FusedMoe)
    assert (experts.num_experts, experts.top_k, experts.expert_ranks) == (8, 2, 1)
    assert (experts.hidden, experts.intermediate, experts.gated) == (4096, 14336 // 4, True)
    assert (experts.rows, experts.imbalance, experts.activation_bytes) == ("tokens", 0.0, 2.0)
    assert [(t.rows, t.columns, t.copies) for t in experts.weights] == [
        (14336 // 4, 4096, 8),
        (14336 // 4, 4096, 8),
        (4096, 14336 // 4, 8),
    ]
    router = named(program, "router.gate")
    assert isinstance(router, Gemm)
    assert router.n == 8


def test_latent_attention_has_two_phases() -> None:
    program = program_of("deepseek-v3", 8)
    prefill, decode = named(program, "attention.prefill"), named(program, "attention.decode")
    assert isinstance(prefill, Attention)
    assert isinstance(decode, Attention)
    assert (prefill.phase, prefill.heads, prefill.qk_dim, prefill.v_dim) == ("prefill", 16, 192, 128)
    assert prefill.kv_bytes_per_token == 16 * (192 + 128) * 2
    assert (prefill.kv_heads, decode.kv_heads) == (16, 1)
    assert (decode.phase, decode.heads, decode.qk_dim, decode.v_dim) == ("decode", 16, 576, 512)
    assert decode.kv_bytes_per_token == 576 * 2
    shared = named(program, "fused_qkv_a_proj")
    assert isinstance(shared, Gemm)
    assert shared.n == 1536 + 512 + 64


def test_sparse_attention_is_absorbed_and_bounded_by_its_choice() -> None:
    program = program_of("deepseek-v3.2", 8, "fp8")
    attention, scores = named(program, "attention_sparse"), named(program, "indexer.scores")
    assert isinstance(attention, Attention)
    assert isinstance(scores, Attention)
    assert (attention.phase, attention.window, attention.kv_bytes_per_token) == ("both", 2048, 656)
    assert (scores.heads, scores.qk_dim, scores.window, scores.kv_bytes_per_token) == (64, 128, None, 132)
    absorb, up = named(program, "q_absorb"), named(program, "v_up")
    assert isinstance(absorb, Gemm)
    assert isinstance(up, Gemm)
    assert (absorb.batch, absorb.k, absorb.n) == (16, 128, 512)
    assert (up.batch, up.k, up.n) == (16, 512, 128)


def test_layers_that_share_an_indexer_run_none() -> None:
    program = program_of("glm-5.2")
    assert named(program, "indexer.scores").count == 21
    assert named(program, "attention_sparse").count == 78


def test_multi_matrix_factorization_expands_queries_on_each_rank() -> None:
    program = program_of("step-3", 8)
    qkv, wq, attention = (named(program, name) for name in ("qkv_proj", "wq", "attention"))
    assert isinstance(qkv, Gemm)
    assert isinstance(wq, Gemm)
    assert isinstance(attention, Attention)
    assert qkv.n == 2048 + 2 * 256
    assert (wq.k, wq.n) == (2048, 64 * 256 // 8)
    assert attention.kv_bytes_per_token == 2 * 256 * 2


# preset, published bytes of all tensors, bytes that are no weights of this model, source
CHECKPOINT_BYTES = [
    ("llama-3.1-8b", 16_060_522_496, 0, "model.safetensors.index.json of meta-llama/Llama-3.1-8B"),
    ("qwen3-235b-a22b", 470_187_269_120, 0, "model.safetensors.index.json of Qwen/Qwen3-235B-A22B"),
    ("gpt-oss-20b", 13_761_264_768, 0, "model.safetensors.index.json of openai/gpt-oss-20b"),
    ("gpt-oss-120b", 65_248_815_744, 0, "model.safetensors.index.json of openai/gpt-oss-120b"),
    (
        "kimi-k2",
        1_029_173_256_720,
        3_416 * 2,
        "index of moonshotai/Kimi-K2-Instruct; 3,416 rotary buffer elements",
    ),
]


@pytest.mark.parametrize(("preset", "published", "other", "source"), CHECKPOINT_BYTES)
def test_weight_bytes_equal_the_published_checkpoint(
    preset: str, published: int, other: int, source: str
) -> None:
    program = program_of(preset)
    derived = sum(op.count * sum(t.bytes for t in op.weights if t.derived) for op in program)
    assert sum(op.weight_bytes for op in program) - derived == published - other, source


# model, scales, source: parameters of the fp8 checkpoint minus those of the 16-bit one
SCALES = [
    ("minimax-m2", 228_703_644_928 - 228_689_764_864, "MiniMaxAI/MiniMax-M2.5 and MiniMax-M2"),
    ("qwen3-30b-a3b", 30_533_947_392 - 30_532_122_624, "Qwen/Qwen3-30B-A3B-Instruct-2507-FP8"),
    ("qwen3-235b-a22b", 235_107_904_512 - 235_093_634_560, "Qwen/Qwen3-235B-A22B-Instruct-2507-FP8"),
]


@pytest.mark.parametrize(("preset", "scales", "source"), SCALES)
def test_fp8_scales_equal_the_published_difference(preset: str, scales: int, source: str) -> None:
    folder = Path(load_model.__code__.co_filename).parent / "presets"
    config: dict[str, Any] = json.loads((folder / f"{preset}.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    program = operator_program(load_model(config), tensor_parallel_size=1)
    assert sum(op.weight_scales for op in program) == scales, source


def test_fp8_multiplies_in_fp8_after_quantising_its_input() -> None:
    program = program_of("deepseek-v3", 8)
    experts = named(program, "experts")
    assert isinstance(experts, FusedMoe)
    assert (experts.dtype, experts.weight_bytes_per_element) == ("fp8", pytest.approx(1 + 4 / 128**2))
    assert experts.activation_bytes == 2.0  # it quantises inside
    assert [op for op in program if op.name == "quant_fp8" and isinstance(op, Elementwise)]
    assert required_dtypes(program) == ["fp8", "bf16"]
    assert required_dtypes(program_of("llama-3.1-8b")) == ["bf16"]


def test_mxfp4_streams_four_bits_and_multiplies_in_sixteen() -> None:
    experts = named(program_of("gpt-oss-120b"), "experts")
    assert isinstance(experts, FusedMoe)
    assert (experts.dtype, experts.weight_bytes_per_element) == ("bf16", 4.25 / 8)
    whole_groups = named(program_of("gpt-oss-120b", 8), "experts")
    assert isinstance(whole_groups, FusedMoe)
    assert whole_groups.intermediate == 384  # 90 groups of 32 over 8 ranks, rounded up to 12


@pytest.mark.parametrize(
    ("preset", "ranks", "words"),
    [
        ("llama-3.1-8b", 3, "32 attention heads are not divisible by 3"),
        ("llama-3.1-8b", 0, "from 1 to 64"),
        ("qwen2.5-7b", 8, "28 attention heads"),
        ("llama-3.1-405b", 12, "8 KV heads can neither be divided among nor replicated evenly over 12"),
        ("minimax-m2", 8, "192 expert features per rank are no whole number of fp8 blocks of 128"),
        ("qwen3-14b", 16, "40 attention heads"),
    ],
)
def test_indivisible_sizes_are_refused_by_name(preset: str, ranks: int, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        program_of(preset, ranks)
    assert words in str(caught.value)
    assert all(issue.path == "engine.tensor_parallel_size" for issue in caught.value.issues)


def test_unknown_types_are_refused() -> None:
    spec = load_model("llama-3.1-8b")
    with pytest.raises(ConfigError, match="did you mean 'bfloat16'"):
        operator_program(spec, tensor_parallel_size=1, weight_dtype="bfloat")
    with pytest.raises(ConfigError, match="did you mean 'fp8_e4m3'"):
        operator_program(spec, tensor_parallel_size=1, kv_cache_dtype="fp8_e4m")
    with pytest.raises(ConfigError, match="fp8_ds_mla"):
        operator_program(spec, tensor_parallel_size=1, kv_cache_dtype="fp8_ds_mla")


def test_wider_weights_take_more_bytes() -> None:
    spec = load_model("llama-3.1-8b")
    program = operator_program(spec, tensor_parallel_size=1, weight_dtype="float32")
    assert sum(op.weight_bytes for op in program) == 4 * parameter_counts(spec).total


FAMILIES = {
    "gemm",
    "prefill_attention",
    "decode_attention",
    "decode_skew",
    "mixed_attention",
    "fused_moe",
    "rms_norm",
    "rope",
    "activation",
    "kv_write",
    "embedding",
    "quant_fp8",
    "moe_gating",
    "sampler",
    "all_reduce",
    "all_gather",
    "reduce_scatter",
    "send_recv",
    "moe_dispatch",
    "moe_combine",
}
"""Operators that packs have predictors for, but those that no program has."""


def test_families_are_those_of_the_packs() -> None:
    seen = set()
    for preset in ("llama-3.1-8b", "qwen3-30b-a3b", "deepseek-v3", "deepseek-v3.2"):
        spec = load_model(preset)
        program = program_of(preset)
        if spec.is_moe:
            program += [op for stage in pipeline_stages(spec, SPREAD) for op in stage]
            program += operator_program(spec, layout=EXCHANGED)
        for op in program:
            families = op.predictor_families
            slots = {"prefill", "decode", "skew", "mixed"} if isinstance(op, Attention) else {"predictor"}
            assert set(families) <= slots
            seen |= set(families.values())
    assert seen == FAMILIES


def test_operators_without_a_family_have_no_predictor() -> None:
    program = program_of("deepseek-v3.2", 8, "fp8")
    for name in ("attention_sparse", "indexer.scores", "indexer.prepare", "shared_experts.add"):
        assert named(program, name).predictor_families == {}
    latent = program_of("deepseek-v3")
    assert set(named(latent, "attention.prefill").predictor_families) == {"prefill"}
    assert set(named(latent, "attention.decode").predictor_families) == {"decode", "skew"}


def test_predictors_go_into_their_slots() -> None:
    program = program_of("mixtral-8x7b")
    reference = {"index": 3, "unmeasured": False, "calibration": 1.0}
    for op in program:
        slot = "decode" if isinstance(op, Attention) else "predictor"
        plan, bare = op.to_plan({slot: reference}), op.to_plan()
        if isinstance(op, Attention):
            assert plan["predictors"] == {"prefill": None, "decode": reference, "skew": None, "mixed": None}
            assert bare["predictors"] == {"prefill": None, "decode": None, "skew": None, "mixed": None}
            assert plan["mixed_decode_factor"] is None
            assert replace(op, mixed_decode_factor=1.5).to_plan()["mixed_decode_factor"] == 1.5
        else:
            assert (plan["predictor"], bare["predictor"]) == (reference, None)


def test_a_program_is_of_one_layout_without_stages() -> None:
    spec = load_model("llama-3.1-8b")
    by_layout = operator_program(spec, layout=Layout(2))
    assert by_layout == operator_program(spec, tensor_parallel_size=2)
    with pytest.raises(ValueError, match="either layout or tensor_parallel_size"):
        operator_program(spec)
    with pytest.raises(ValueError, match="either layout or tensor_parallel_size"):
        operator_program(spec, layout=Layout(2), tensor_parallel_size=2)
    with pytest.raises(ValueError, match="pipeline_stages"):
        operator_program(spec, layout=Layout(1, 2))


def test_exchanges_are_operators_too() -> None:
    program = operator_program(load_model("deepseek-v3"), layout=EXCHANGED)
    out, back = named(program, "moe_dispatch"), named(program, "moe_combine")
    assert isinstance(out, MoeExchange)
    assert isinstance(back, MoeExchange)
    assert (out.phase, out.rows, out.bytes_per_element) == ("dispatch", "tokens", 1.0)
    assert (back.phase, back.rows, back.bytes_per_element) == ("combine", "tokens", 2.0)
    assert (out.hidden, out.top_k, out.num_experts, out.ranks, out.nodes) == (7168, 8, 256, 8, 1)
    assert (out.count, back.count) == (58, 58)
