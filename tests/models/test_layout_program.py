"""Programs of whole layouts: shapes, rows and ranks in closed form, as vLLM 0.32 launches them."""

import pytest

from frontier.models import Layout, load_model, model_names, operator_program, pipeline_stages
from frontier.models.operators import (
    Attention,
    Collective,
    Communication,
    Elementwise,
    FusedMoe,
    Gemm,
    MoeExchange,
    Operator,
)


def named(program: list[Operator], name: str) -> Operator:
    (operator,) = [op for op in program if op.name == name]
    return operator


def collectives(program: list[Operator]) -> list[tuple[str, int, str, float, int, int]]:
    """Return name, count, rows, bytes per row, ranks and nodes of each collective."""
    return [
        (op.name, op.count, op.rows, op.bytes_per_row, op.ranks, op.nodes)
        for op in program
        if isinstance(op, Collective)
    ]


def rows_of(program: list[Operator]) -> dict[str, str]:
    return {op.name: op.rows for op in program if isinstance(op, Gemm | FusedMoe | Elementwise)}


def test_qwen_at_tp4_dp2_ep8() -> None:
    spec = load_model("qwen3-30b-a3b")  # 48 layers of 2048, 128 experts of 768, 8 of them per token
    program = operator_program(spec, layout=Layout(4, 1, 2, enable_expert_parallel=True, gpus_per_node=4))
    assert [op.name for op in program] == [
        "embedding",
        "all_reduce.embedding",
        "fused_add_rms_norm",
        "qkv_proj",
        "qk_norm",
        "rotary_embedding",
        "kv_cache_write",
        "attention",
        "o_proj",
        "all_reduce.attention",
        "router.gate",
        "router.topk",
        "all_gather.dispatch",
        "experts",
        "reduce_scatter.combine",
        "all_gather.feed_forward",
        "lm_head",
        "all_gather.logits",
        "sampler",
    ]
    hidden = 2048 * 2
    assert collectives(program) == [
        ("all_reduce.embedding", 1, "tokens", hidden, 4, 1),
        ("all_reduce.attention", 48, "tokens", hidden, 4, 1),
        ("all_gather.dispatch", 48, "all_tokens", hidden + 8 * 8, 8, 2),  # and 8 chosen experts
        ("reduce_scatter.combine", 48, "all_tokens", hidden, 8, 2),
        ("all_gather.feed_forward", 48, "tokens", hidden, 4, 1),
        ("all_gather.logits", 1, "seqs", 151936 * 2, 4, 1),
    ]
    rows = rows_of(program)
    assert {name for name, kind in rows.items() if kind == "sharded_tokens"} == {"router.gate", "router.topk"}
    assert {name for name, kind in rows.items() if kind == "all_tokens"} == {"experts"}
    experts, gate = named(program, "experts"), named(program, "router.gate")
    assert isinstance(experts, FusedMoe)
    assert isinstance(gate, Gemm)
    assert (experts.num_experts, experts.expert_ranks, experts.intermediate) == (128, 8, 768)
    assert experts.weight_elements == 48 * 3 * 2048 * 768 * 128 // 8
    assert (gate.k, gate.n, gate.model_share) == (2048, 128, 1.0)
    qkv = named(program, "qkv_proj")
    assert isinstance(qkv, Gemm)
    assert (qkv.n, qkv.count) == ((32 // 4 + 2) * 128, 48)


def test_qwen_cut_over_data_and_tensor_parallel_ranks() -> None:
    """Without expert parallelism the batches are gathered whole and summed over tensor parallel ranks."""
    program = operator_program(load_model("qwen3-30b-a3b"), layout=Layout(2, 1, 4))
    hidden = 2048 * 2
    assert collectives(program) == [
        ("all_reduce.embedding", 1, "tokens", hidden, 2, 1),
        ("all_reduce.attention", 48, "tokens", hidden, 2, 1),
        ("all_gather.dispatch", 48, "all_tokens", hidden + 64, 4, 1),
        ("reduce_scatter.combine", 48, "all_tokens", hidden, 4, 1),
        ("all_reduce.feed_forward", 48, "tokens", hidden, 2, 1),
        ("all_gather.logits", 1, "seqs", 151936 * 2, 2, 1),
    ]
    experts, gate = named(program, "experts"), named(program, "router.gate")
    assert isinstance(experts, FusedMoe)
    assert isinstance(gate, Gemm)
    assert (experts.expert_ranks, experts.intermediate, experts.rows) == (1, 768 // 8, "all_tokens")
    assert (gate.rows, gate.model_share) == ("tokens", 0.5)


def test_whole_experts_without_data_parallelism_move_no_tokens() -> None:
    spec = load_model("qwen3-30b-a3b")
    whole = operator_program(spec, layout=Layout(8, enable_expert_parallel=True))
    cut = operator_program(spec, layout=Layout(8))
    assert collectives(whole) == collectives(cut)
    experts = named(whole, "experts")
    assert isinstance(experts, FusedMoe)
    assert (experts.expert_ranks, experts.intermediate, experts.rows) == (8, 768, "tokens")
    assert [op for op in whole if op.name != "experts"] == [op for op in cut if op.name != "experts"]


def test_models_that_do_not_share_out_tokens_gather_whole_batches() -> None:
    layout = Layout(4, 1, 2, enable_expert_parallel=True)
    program = operator_program(load_model("glm-4.5-air"), layout=layout)
    rows = set(rows_of(program).values())
    assert rows == {"tokens", "seqs", "all_tokens"}
    dispatch, combine = named(program, "all_gather.dispatch"), named(program, "reduce_scatter.combine")
    assert isinstance(dispatch, Collective)
    assert isinstance(combine, Collective)
    assert (dispatch.ranks, combine.ranks) == (2, 2)
    assert named(program, "all_reduce.feed_forward").count == 46
    shared = named(program, "shared_experts.gate_up_proj")
    assert isinstance(shared, Gemm)
    assert shared.n == 2 * 1408 // 4


def test_deepseek_at_tp8_is_cut_throughout() -> None:
    program = operator_program(load_model("deepseek-v3"), layout=Layout(8))
    hidden = 7168 * 2
    assert collectives(program) == [
        ("all_reduce.embedding", 1, "tokens", hidden, 8, 1),
        ("all_reduce.attention", 61, "tokens", hidden, 8, 1),
        ("all_reduce.feed_forward", 61, "tokens", hidden, 8, 1),
        ("all_gather.logits", 1, "seqs", 129280 * 2, 8, 1),
    ]
    experts, shared = named(program, "experts"), named(program, "shared_experts.gate_up_proj")
    assert isinstance(experts, FusedMoe)
    assert isinstance(shared, Gemm)
    assert (experts.count, experts.expert_ranks, experts.intermediate) == (58, 1, 2048 // 8)
    assert shared.n == 2 * 2048 // 8


def test_deepseek_at_dp8_ep8() -> None:
    """Attention is whole on each rank; tokens are gathered in fp8 with their scales and choices."""
    program = operator_program(load_model("deepseek-v3"), layout=Layout(1, 1, 8, enable_expert_parallel=True))
    assert collectives(program) == [
        ("all_gather.dispatch", 58, "all_tokens", 7168 + 7168 / 128 * 4 + 8 * 8, 8, 1),
        ("reduce_scatter.combine", 58, "all_tokens", 7168 * 2, 8, 1),
    ]
    experts, attention = named(program, "experts"), named(program, "attention.decode")
    assert isinstance(experts, FusedMoe)
    assert isinstance(attention, Attention)
    assert (experts.num_experts, experts.expert_ranks, experts.intermediate) == (256, 8, 2048)
    assert (experts.rows, experts.model_share, attention.heads) == ("all_tokens", 1.0, 128)
    shared, gate = named(program, "shared_experts.gate_up_proj"), named(program, "router.gate")
    assert isinstance(shared, Gemm)
    assert isinstance(gate, Gemm)
    assert (shared.n, shared.rows, gate.rows) == (2 * 2048, "tokens", "tokens")


def test_deepseek_hands_shares_of_tokens_from_layer_to_layer() -> None:
    """vllm/model_executor/models/deepseek_v2.py: from the sum after attention on in layers with experts."""
    layout = Layout(8, 1, 2, True, "deepep_high_throughput", gpus_per_node=8)
    program = operator_program(load_model("deepseek-v3"), layout=layout)
    hidden = 7168 * 2
    assert collectives(program) == [
        ("all_reduce.embedding", 1, "tokens", hidden, 8, 1),
        ("all_reduce.attention", 3, "tokens", hidden, 8, 1),  # the first three layers are dense
        ("all_reduce.feed_forward", 3, "tokens", hidden, 8, 1),
        ("reduce_scatter.attention", 58, "tokens", hidden, 8, 1),
        ("all_gather.attention_input", 57, "tokens", hidden, 8, 1),
        ("all_gather.residual", 1, "tokens", 2 * hidden, 8, 1),
        ("all_gather.logits", 1, "seqs", 129280 * 2, 8, 1),
    ]
    norms = {op.rows: op.count for op in program if isinstance(op, Elementwise) and "add_rms" in op.name}
    assert norms == {"tokens": 2 * 3 + 1 + 1, "sharded_tokens": 58 + 57}
    exchanges = [op for op in program if isinstance(op, MoeExchange)]
    assert [(op.ranks, op.nodes, op.rows) for op in exchanges] == [(16, 2, "sharded_tokens")] * 2
    shared = named(program, "shared_experts.down_proj")
    assert isinstance(shared, Gemm)
    assert (shared.k, shared.rows, shared.model_share) == (2048, "sharded_tokens", 1.0)


def test_deepseek_v32_shares_out_dense_layers_too() -> None:
    """vllm/models/deepseek_v32/nvidia/model.py: dense layers are whole on every rank."""
    program = operator_program(
        load_model("deepseek-v3.2"), layout=Layout(8, 1, 2, enable_expert_parallel=True)
    )
    names = {name: count for name, count, *_ in collectives(program)}
    assert names == {
        "all_reduce.embedding": 1,
        "all_gather.attention_input": 61,
        "reduce_scatter.attention": 61,
        "all_gather.dispatch": 58,
        "reduce_scatter.combine": 58,
        "all_gather.final": 1,
        "all_gather.logits": 1,
    }
    dense = named(program, "gate_up_proj")
    assert isinstance(dense, Gemm)
    assert (dense.n, dense.rows, dense.count) == (2 * 18432, "sharded_tokens", 3)
    norms = {op.rows: op.count for op in program if isinstance(op, Elementwise) and "add_rms" in op.name}
    assert norms == {"sharded_tokens": 2 * 61 + 1}


def test_stages_hand_on_hidden_states_and_residual() -> None:
    spec = load_model("llama-3.1-70b")
    stages = pipeline_stages(spec, Layout(4, 3, gpus_per_node=4))
    assert [named(stage, "qkv_proj").count for stage in stages] == [27, 27, 26]
    hidden = 8192 * 2
    sent = ("send_recv.hidden_states", 2, "tokens", hidden / 4, 2, 2)
    gathered = ("all_gather.hidden_states", 2, "tokens", hidden, 4, 1)
    assert [sent in collectives(stage) for stage in stages] == [True, True, False]
    assert [gathered in collectives(stage) for stage in stages] == [False, True, True]
    assert stages[1][0].name == "all_gather.hidden_states"
    assert stages[1][-1].name == "send_recv.hidden_states"
    has = [{"embedding", "lm_head", "sampler"} & {op.name for op in stage} for stage in stages]
    assert has == [{"embedding"}, set(), {"lm_head", "sampler"}]
    assert [named(stage, "fused_add_rms_norm").count for stage in stages] == [54, 54, 53]


def test_stages_of_one_rank_send_whole_rows() -> None:
    first, last = pipeline_stages(load_model("llama-3.1-8b"), Layout(1, 2))
    assert collectives(first) == [("send_recv.hidden_states", 2, "tokens", 4096 * 2, 2, 1)]
    assert collectives(last) == []


def test_stages_follow_the_order_of_layers() -> None:
    """DeepSeek-V3 has its three dense layers in front."""
    first, last = pipeline_stages(load_model("deepseek-v3"), Layout(8, 2))
    assert (named(first, "gate_up_proj").count, named(first, "experts").count) == (3, 28)
    assert named(last, "experts").count == 30
    assert "gate_up_proj" not in {op.name for op in last}


def test_one_stage_is_the_program() -> None:
    spec = load_model("gpt-oss-20b")
    layout = Layout(4, 1, 2)
    assert pipeline_stages(spec, layout) == [operator_program(spec, layout=layout)]


def test_a_tied_embedding_is_kept_by_the_first_and_the_last_stage() -> None:
    spec = load_model("qwen3-4b")
    table = spec.vocab_size * spec.hidden_size
    first, last = pipeline_stages(spec, Layout(1, 2))
    head = named(last, "lm_head")
    assert (named(first, "embedding").weight_elements, head.weight_elements) == (table, 0)
    assert head.weight_bytes == table * 2
    (whole,) = pipeline_stages(spec, Layout())
    assert named(whole, "lm_head").weight_bytes == 0


@pytest.mark.parametrize("preset", model_names())
def test_stages_run_together_what_one_stage_runs(preset: str) -> None:
    spec = load_model(preset)
    counts: dict[str, int] = {}

    def add(program: list[Operator], sign: int) -> None:
        for op in program:
            if not isinstance(op, Communication) and op.name != "lm_head":
                key = repr(op.to_plan() | {"count": 0})
                counts[key] = counts.get(key, 0) + sign * op.count

    add(operator_program(spec, layout=Layout()), 1)
    for stage in pipeline_stages(spec, Layout(1, 3)):
        add(stage, -1)
    assert set(counts.values()) == {0}
