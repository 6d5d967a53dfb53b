"""Draft programs: weights against published heads, operators by pass, and the cost of a step that drafts."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from frontier import _frontier
from frontier.config.quantization import quantized_model
from frontier.errors import ConfigError
from frontier.hardware import load_gpu
from frontier.memory import draft_layers, plan_kv_cache
from frontier.memory.sglang import Speculation, plan_token_pool
from frontier.models import Layout, ModelSpec, load_model, operator_program, pipeline_stages
from frontier.models.draft import DRAFT_METHODS, DraftHostCost, DraftProgram, draft_program
from frontier.models.operators import Operator

TARGET = "llama-3.1-8b"
ONE_GPU = Layout()
H100 = load_gpu("h100")
DECODES = [(1, 1000, False), (1, 3000, False), (1, 500, False)]


def drafting(
    method: str, k: int, target: str = TARGET, layout: Layout = ONE_GPU, **rest: Any
) -> DraftProgram:
    return draft_program(method, k, load_model(target), layout, **rest)


def price(
    stages: Sequence[Sequence[Operator]],
    batch: list[tuple[int, int, bool]],
    draft: dict[str, Any] | None = None,
    drafts: list[int] | None = None,
    layout: Layout = ONE_GPU,
) -> dict[str, Any]:
    step_time = {
        "kind": "operators",
        "gpu": H100.to_plan(),
        "links": H100.links(layout.gpus, layout.nodes).to_plan(),
        "cpu": {"per_step_s": 0.0, "per_seq_s": 0.0, "overlapped": True},
        "layout": layout.to_plan(),
        "stages": [[operator.to_plan() for operator in stage] for stage in stages],
        "draft": draft,
        "residuals": None,
    }
    return _frontier.step_breakdown(json.dumps(step_time), [batch], [], 0, [drafts or []])


def gpu_s(facts: dict[str, Any]) -> float:
    return sum(row["seconds"] for row in facts["operators"])


def test_weights_are_those_of_published_heads() -> None:
    """EAGLE-LLaMA3-Instruct-8B: 0.25 B (its README). EAGLE3-LLaMA3.1-Instruct-8B: 850 MB in 16 bits."""
    assert drafting("eagle", 3).weight_elements / 1e9 == pytest.approx(0.25, abs=0.005)
    head = replace(one_layer(load_model(TARGET)), draft_vocab_size=32_000)
    eagle3 = drafting("eagle3", 3, draft=head)
    assert eagle3.weight_bytes == pytest.approx(850e6, rel=0.01)
    # DeepSeek-R1 on the hub, minus the model without the layer, minus copies of embedding and head
    published = 684_489_845_504 - 671_026_419_200 - 2 * 129_280 * 7168
    assert drafting("mtp", 1, "deepseek-v3").weight_elements == published
    medusa = drafting("medusa", 4)
    assert medusa.weight_elements == 4 * (4096 * 4096 + 128_256 * 4096)
    whole = operator_program(load_model("llama-3.1-8b"), tensor_parallel_size=1)
    same = drafting("draft_model", 3, "llama-3.1-70b", draft=load_model(TARGET))
    assert same.weight_elements == sum(op.weight_elements for op in whole)


def one_layer(spec: ModelSpec) -> ModelSpec:
    return replace(spec, layers=(replace(spec.layers[0], count=1),), layer_pattern=(0,))


def test_eagle_is_the_sum_of_its_passes() -> None:
    """A step of k = 3: the target over 1 + 3 tokens per request, one pass over those, two of one token."""
    target, k = operator_program(load_model(TARGET), tensor_parallel_size=1), 3
    program = drafting("eagle", k)
    batch = [(1 + k, context, False) for _, context, _ in DECODES]
    stage = [*target, *program.verification]
    facts = price([stage], batch, program.to_plan(), [k] * len(batch))
    alone = price([stage], batch, drafts=[k] * len(batch))
    one_row = [op for op in program.first_pass if getattr(op, "rows", "") == "seqs"]
    first = gpu_s(price([program.first_pass], batch))
    # Further passes are priced at the mean context of all: one token on, of passes 1 and 2 of one each.
    following = [(1, context + 1, False) for _, context, _ in batch]
    later = gpu_s(price([program.decode_pass], following))
    assert {op.name for op in one_row} == {"draft.lm_head", "draft.argmax"}
    assert gpu_s(facts) == pytest.approx(gpu_s(alone) + first + (k - 1) * later, rel=1e-12)
    assert facts["draft_ns"] == pytest.approx((first + (k - 1) * later) * 1e9, abs=1)
    assert facts["total_ns"] == pytest.approx(alone["total_ns"] + facts["draft_ns"], abs=2)
    heads = [row for row in facts["operators"] if row["name"].endswith("lm_head")]
    counts = {row["name"]: row["count"] for row in heads}
    assert counts == {"lm_head": 1, "draft.lm_head": 1, "draft_next.lm_head": k - 1}
    lm_head = {row["name"]: row["flops"] / row["count"] for row in heads}
    assert lm_head["lm_head"] == 4 * lm_head["draft.lm_head"] == 4 * lm_head["draft_next.lm_head"]


def test_rows_of_logits_count_drafts() -> None:
    target = operator_program(load_model(TARGET), tensor_parallel_size=1)
    batch = [(4, 1000, False), (4, 2000, False), (1, 10, False)]
    facts = {drafts: price([target], batch, drafts=list(drafts)) for drafts in [(0, 0, 0), (3, 3, 0)]}
    heads = {
        drafts: next(row["flops"] for row in found["operators"] if row["name"] == "lm_head")
        for drafts, found in facts.items()
    }
    assert heads[3, 3, 0] == 3 * heads[0, 0, 0]
    with pytest.raises(Exception, match="drafts fewer than query tokens"):
        price([target], batch, drafts=[4, 0, 0])


def test_shapes_of_the_methods() -> None:
    """How many further passes there are, and how many layers of cache."""
    head = one_layer(load_model(TARGET))
    expected: dict[str, tuple[int, int]] = {
        "eagle": (3, 1),
        "eagle3": (3, 1),
        "medusa": (0, 0),
        "ngram": (0, 0),
    }
    for method, (passes, layers) in expected.items():
        program = drafting(method, 4)
        assert (program.passes, sum(cache.count for cache in program.kv_layers)) == (passes, layers), method
        assert bool(program.decode_pass) == (passes > 0)
        assert program.num_speculative_tokens == 4
    small = drafting("draft_model", 4, draft=replace(head, layers=(replace(head.layers[0], count=2),)))
    assert sum(cache.count for cache in small.kv_layers) == 2
    assert drafting("deepseek_mtp", 1, "deepseek-v3").method == "mtp"
    assert [c.kind for c in drafting("mtp", 1, "deepseek-v3.2").kv_layers] == ["mla_sparse", "indexer"]
    assert drafting("eagle", 1).decode_pass == ()


def test_heads_are_in_sixteen_bits_and_prediction_layers_as_the_target() -> None:
    plain = load_model(TARGET)
    narrow, _ = quantized_model(plain, "fp8_per_tensor", version="0.32", gpu=H100)
    assert draft_program("eagle", 3, narrow, ONE_GPU) == draft_program("eagle", 3, plain, ONE_GPU)
    layer = drafting("mtp", 1, "deepseek-v3")
    kinds = {op.name: {tensor.storage.kind for tensor in op.weights} for op in layer.first_pass}
    assert kinds["draft.experts"] == {"fp8_block"}
    assert kinds["draft.eh_proj"] == {"plain"}


def test_eagle3_combines_layers_once_and_sees_two_vectors() -> None:
    program = drafting("eagle3", 3)
    assert "draft.fc" in {op.name for op in program.first_pass}
    assert "draft_next.fc" not in {op.name for op in program.decode_pass}
    qkv = next(op for op in program.first_pass if op.name == "draft.qkv_proj")
    assert qkv.to_plan()["k"] == 2 * 4096
    fc = next(op for op in program.first_pass if op.name == "draft.fc")
    assert (fc.to_plan()["k"], fc.to_plan()["n"]) == (3 * 4096, 4096)


def test_the_search_for_n_grams_is_paid_by_the_host_per_token_of_context() -> None:
    target = operator_program(load_model(TARGET), tensor_parallel_size=1)
    program = drafting("ngram", 5)
    assert program.first_pass == ()
    plain = price([target], DECODES)
    facts = price([target], DECODES, program.to_plan())
    assert facts["draft_ns"] == facts["total_ns"] - plain["total_ns"] == 1000 + 3000 + 500
    assert facts["cpu_exposed_ns"] - plain["cpu_exposed_ns"] == facts["draft_ns"]
    own = drafting("suffix", 5, host=DraftHostCost(per_step_s=1e-3, per_seq_s=1e-4))
    assert price([target], DECODES, own.to_plan())["draft_ns"] == 1_300_000


def test_the_search_on_the_gpu_reads_whole_rows() -> None:
    rows = drafting("ngram_gpu", 5, prompt_lookup=(3, 5), max_model_len=4096).first_pass
    (search,) = rows
    assert search.count * search.to_plan()["bytes_per_row"] == pytest.approx(4096 * 4 * 3)


@pytest.mark.parametrize("method", ["eagle", "eagle3", "medusa", "mtp"])
def test_ranks_divide_a_draft(method: str) -> None:
    """Sharded over ranks and summed, a draft has the weights of one GPU's; joins are whole on every rank."""
    preset = "glm-4.5-air" if method == "mtp" else TARGET
    one = drafting(method, 3, preset)
    four = drafting(method, 3, preset, Layout(4))
    assert one.weight_elements / 4 < four.weight_elements < one.weight_elements / 2
    names = [op.name for op in four.first_pass if op.name.startswith("draft.all")]
    assert "draft.all_gather.logits" in names
    facts = price(
        [operator_program(load_model(preset), tensor_parallel_size=4)],
        DECODES,
        four.to_plan(),
        layout=Layout(4),
    )
    assert facts["draft_ns"] > 0


def test_a_draft_follows_data_and_expert_parallelism_and_the_last_stage() -> None:
    spread = Layout(tensor_parallel_size=2, data_parallel_size=4, enable_expert_parallel=True)
    program = drafting("mtp", 1, "deepseek-v3", spread)
    experts = next(op for op in program.first_pass if op.name == "draft.experts")
    assert experts.to_plan()["expert_ranks"] == 8
    stages = Layout(pipeline_parallel_size=2)
    piped = drafting("eagle", 2, layout=stages)
    assert any(op.weights for op in piped.first_pass if op.name == "draft.embedding")
    target = pipeline_stages(load_model(TARGET), stages)
    facts = price(target, DECODES, piped.to_plan(), layout=stages)
    rows = [row for row in facts["operators"] if row["name"].startswith("draft")]
    assert {row["stage"] for row in rows} == {1}
    assert facts["stages_s"][1] == pytest.approx(
        sum(row["seconds"] for row in facts["operators"] if row["stage"] == 1)
    )


@pytest.mark.parametrize(
    ("method", "k", "rest", "words"),
    [
        ("eagel", 3, {}, "did you mean 'eagle'"),
        ("eagle", 0, {}, "1 to 128"),
        ("draft_model", 3, {}, "needs a draft"),
        ("mtp", 1, {}, "has no multi-token prediction layer"),
        ("medusa", 3, {"draft": load_model(TARGET)}, "has no effect with method medusa"),
        ("draft_model", 3, {"draft": load_model("qwen3-0.6b")}, "equal vocabularies"),
        ("suffix", 3, {}, "no host time is published"),
    ],
)
def test_what_does_not_suit_is_refused(method: str, k: int, rest: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        drafting(method, k, **rest)


def test_all_methods_are_known() -> None:
    assert set(DRAFT_METHODS) >= {
        "ngram",
        "ngram_gpu",
        "suffix",
        "draft_model",
        "medusa",
        "eagle",
        "eagle3",
        "mtp",
    }


def test_a_draft_takes_weights_and_enlarges_the_block() -> None:
    """As vLLM: with an EAGLE head 40 GiB make 19,859 blocks of Llama-3-8B, without 20,480."""
    layers = draft_layers(drafting("eagle", 3))
    plans = [
        plan_kv_cache(
            load_model(TARGET),
            H100,
            tensor_parallel_size=1,
            block_size=16,
            gpu_memory_utilization=None,
            max_num_batched_tokens=8192,
            max_num_seqs=256,
            max_model_len=8192,
            draft=draft,
            kv_cache_memory_bytes=40 * 2**30,
        )
        for draft in (None, layers)
    ]
    assert [plan.num_gpu_blocks for plan in plans] == [20_480, 19_859]
    assert plans[1].weights_bytes - plans[0].weights_bytes == layers.weight_bytes
    mtp = draft_layers(drafting("mtp", 1, "deepseek-v3", Layout(8)))
    assert [(cache.kind, cache.count, cache.bytes_per_token) for cache in mtp.layers] == [("mla", 1, 1152)]


def test_sglang_takes_the_draft_out_of_the_slack() -> None:
    layers = draft_layers(drafting("eagle", 5))
    with_eagle = plan_token_pool(
        load_model(TARGET), H100, tensor_parallel_size=1, speculation=Speculation("EAGLE"), draft=layers
    )
    without = plan_token_pool(
        load_model(TARGET), H100, tensor_parallel_size=1, speculation=Speculation("EAGLE")
    )
    assert with_eagle.max_total_num_tokens == without.max_total_num_tokens
    assert with_eagle.draft_pool_bytes == with_eagle.max_total_num_tokens * 4096
    assert with_eagle.draft_weights_bytes == layers.weight_bytes
    whole = draft_layers(drafting("draft_model", 3, draft=load_model(TARGET)))
    with pytest.raises(ConfigError, match=r"keeps .* free, but a draft"):
        plan_token_pool(
            load_model(TARGET),
            H100,
            tensor_parallel_size=1,
            speculation=Speculation("STANDALONE"),
            draft=whole,
        )
