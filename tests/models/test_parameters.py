"""Parameter counts against published figures: exact where a tensor index gives them, else within 0.5 %."""

import pytest

from frontier.models import (
    Layout,
    ModelSpec,
    load_model,
    model_names,
    operator_program,
    parameter_counts,
    pipeline_stages,
)
from frontier.models.operators import Operator
from frontier.models.spec import MixtureOfExperts

HUB = "Hugging Face hub, safetensors metadata of "
KERAS = "KerasHub preset metadata of "

# preset, parameters, where the figure is published
EXACT = [
    ("llama-3.1-8b", 8_030_261_248, HUB + "meta-llama/Llama-3.1-8B"),
    ("llama-3.1-70b", 70_553_706_496, HUB + "meta-llama/Llama-3.1-70B"),
    ("llama-3.3-70b", 70_553_706_496, HUB + "meta-llama/Llama-3.3-70B-Instruct"),
    ("llama-3.1-405b", 405_853_388_800, HUB + "meta-llama/Llama-3.1-405B"),
    ("llama-2-7b", 6_738_415_616, HUB + "meta-llama/Llama-2-7b-hf"),
    ("llama-2-13b", 13_015_864_320, HUB + "meta-llama/Llama-2-13b-hf"),
    ("llama-2-70b", 68_976_648_192, HUB + "meta-llama/Llama-2-70b-hf"),
    ("qwen3-0.6b", 596_049_920, KERAS + "qwen3_0.6b_en"),
    ("qwen3-1.7b", 1_720_574_976, KERAS + "qwen3_1.7b_en"),
    ("qwen3-4b", 4_022_468_096, KERAS + "qwen3_4b_en"),
    ("qwen3-8b", 8_190_735_360, KERAS + "qwen3_8b_en"),
    ("qwen3-14b", 14_768_307_200, KERAS + "qwen3_14b_en"),
    ("qwen3-32b", 32_762_123_264, KERAS + "qwen3_32b_en"),
    ("qwen3-30b-a3b", 30_532_122_624, HUB + "Qwen/Qwen3-30B-A3B"),
    ("qwen3-235b-a22b", 235_093_634_560, HUB + "Qwen/Qwen3-235B-A22B"),
    ("qwen2.5-7b", 7_615_616_512, HUB + "Qwen/Qwen2.5-7B-Instruct"),
    ("qwen2.5-72b", 72_706_203_648, HUB + "Qwen/Qwen2.5-72B-Instruct"),
    ("mistral-7b-v0.1", 7_241_732_096, HUB + "mistralai/Mistral-7B-v0.1"),
    ("mistral-7b-v0.3", 7_248_023_552, HUB + "mistralai/Mistral-7B-v0.3"),
    ("mixtral-8x7b", 46_702_792_704, HUB + "mistralai/Mixtral-8x7B-v0.1"),
    ("deepseek-v2", 235_741_434_880, HUB + "deepseek-ai/DeepSeek-V2"),
    ("deepseek-v2-lite", 15_706_484_224, HUB + "deepseek-ai/DeepSeek-V2-Lite"),
    ("deepseek-v3", 671_026_419_200, HUB + "microsoft/MAI-DS-R1 (the same model without its MTP layer)"),
    ("deepseek-r1", 671_026_419_200, HUB + "microsoft/MAI-DS-R1 (the same model without its MTP layer)"),
    ("kimi-k2", 1_026_408_232_448, HUB + "moonshotai/Kimi-K2-Instruct, without its rotary buffers"),
    ("kimi-k2-0905", 1_026_408_232_448, HUB + "moonshotai/Kimi-K2-Instruct-0905, without its rotary buffers"),
    (
        "glm-4.5-air",
        106_852_251_264,
        HUB + "PrimeIntellect/INTELLECT-3 (the same model without its MTP layer)",
    ),
    ("minimax-m2", 228_689_764_864, HUB + "MiniMaxAI/MiniMax-M2"),
    ("gpt-oss-20b", 20_914_757_184, HUB + "openai/gpt-oss-20b"),
    ("gpt-oss-120b", 116_829_156_672, HUB + "openai/gpt-oss-120b"),
    ("gemma-3-27b", 27_009_002_240, KERAS + "gemma3_27b_text"),
]

# preset, parameters with one MTP layer, copies of the embedding stored with that layer, source
WITH_MTP_LAYER = [
    ("deepseek-v3", 684_489_845_504, 2, HUB + "deepseek-ai/DeepSeek-R1"),
    ("deepseek-v3.2", 685_355_329_792, 2, HUB + "deepseek-ai/DeepSeek-V3.2"),
    ("glm-4.5", 358_337_791_296, 2, HUB + "zai-org/GLM-4.5"),
    ("glm-4.6", 356_785_898_816, 0, HUB + "zai-org/GLM-4.6"),
    ("glm-5", 753_864_139_008, 0, HUB + "zai-org/GLM-5"),
    ("glm-5-fp8", 753_864_139_008, 0, HUB + "zai-org/GLM-5"),
    ("glm-5.2", 753_329_940_480, 0, HUB + "zai-org/GLM-5.2"),
]

# preset, total and active billions on the card, source; active as the card counts it
CARDS = [
    ("step-3", 316, 38, "Step3 model card: total parameters (LLM), activated parameters per token"),
]

# preset, active parameters, share allowed, source
ACTIVE = [
    (
        "deepseek-v3",
        36.7e9 + 0.9e9,
        0.005,
        "DeepSeek-V3 README_WEIGHTS: 36.7B with the head, and 0.9B of embedding",
    ),
    ("qwen3-30b-a3b", 3.3e9, 0.02, "Qwen3-30B-A3B model card"),
    ("qwen3-235b-a22b", 22e9, 0.02, "Qwen3-235B-A22B model card"),
    ("mixtral-8x7b", 12.9e9, 0.005, "Mixtral of Experts, arXiv:2401.04088"),
    ("kimi-k2", 32e9, 0.03, "Kimi-K2 model card, rounded to 32B"),
    ("deepseek-v2", 21e9, 0.02, "DeepSeek-V2, arXiv:2405.04434"),
]


@pytest.mark.parametrize(("preset", "published", "source"), EXACT, ids=[row[0] for row in EXACT])
def test_total_equals_the_published_tensor_index(preset: str, published: int, source: str) -> None:
    assert parameter_counts(load_model(preset)).total == published, source


def mtp_layer_parameters(spec: ModelSpec, embedding_copies: int) -> int:
    """Return the parameters of one multi-token-prediction layer.

    It is a layer of the last kind with its own indexer, a projection of two hidden vectors to one and three
    norms; some checkpoints store copies of the embedding with it.
    """
    kinds = [i for i, group in enumerate(spec.layers) if isinstance(group.feed_forward, MixtureOfExperts)]
    own_indexer = [
        i for i in kinds if not getattr(getattr(spec.layers[i].attention, "indexer", None), "shared", False)
    ]
    group = spec.layers[own_indexer[-1]]
    one = ModelSpec(
        name="one",
        model_type=spec.model_type,
        hidden_size=spec.hidden_size,
        vocab_size=spec.vocab_size,
        max_model_len=1,
        tie_word_embeddings=True,
        dtype="bfloat16",
        layers=(type(group)(1, group.attention, group.feed_forward, group.norms),),
        layer_pattern=(0,),
    )
    hidden, embedding = spec.hidden_size, spec.vocab_size * spec.hidden_size
    layer = parameter_counts(one).total - embedding - hidden
    return layer + 2 * hidden * hidden + 3 * hidden + embedding_copies * embedding


@pytest.mark.parametrize(
    ("preset", "published", "copies", "source"), WITH_MTP_LAYER, ids=[row[0] for row in WITH_MTP_LAYER]
)
def test_total_and_mtp_layer_equal_the_published_tensor_index(
    preset: str, published: int, copies: int, source: str
) -> None:
    spec = load_model(preset)
    assert parameter_counts(spec).total + mtp_layer_parameters(spec, copies) == published, source


@pytest.mark.parametrize(("preset", "total", "active", "source"), CARDS, ids=[row[0] for row in CARDS])
def test_total_is_within_half_a_percent_of_the_model_card(
    preset: str, total: int, active: int, source: str
) -> None:
    counts = parameter_counts(load_model(preset))
    assert counts.total / 1e9 == pytest.approx(total, rel=0.005), source
    without_embedding = counts.active - counts.by_component["embedding"]
    assert without_embedding / 1e9 == pytest.approx(active, abs=0.5), source


@pytest.mark.parametrize(("preset", "published", "share", "source"), ACTIVE, ids=[row[0] for row in ACTIVE])
def test_active_parameters_follow_the_model_card(
    preset: str, published: float, share: float, source: str
) -> None:
    assert parameter_counts(load_model(preset)).active == pytest.approx(published, rel=share), source


def test_gpt_oss_components_follow_the_model_card() -> None:
    # gpt-oss model card, table 1, in billions: MLP 114.71, attention 0.96, embeddings 1.16, active 5.13.
    counts = parameter_counts(load_model("gpt-oss-120b"))
    parts = counts.by_component
    assert (parts["routed_experts"] + parts["router"]) / 1e9 == pytest.approx(114.71, abs=0.01)
    assert parts["attention"] / 1e9 == pytest.approx(0.96, abs=0.01)
    assert (parts["embedding"] + parts["lm_head"]) / 1e9 == pytest.approx(1.16, abs=0.01)
    assert (counts.active - parts["embedding"]) / 1e9 == pytest.approx(5.13, abs=0.01)


def test_components_sum_to_the_total_and_dense_models_are_active_throughout() -> None:
    for preset, _, _ in EXACT:
        counts = parameter_counts(load_model(preset))
        assert sum(counts.by_component.values()) == counts.total
        assert (counts.active < counts.total) == load_model(preset).is_moe


def test_tied_embeddings_are_counted_once() -> None:
    tied = load_model("qwen3-4b")
    untied = ModelSpec(
        **{name: getattr(tied, name) for name in tied.__dataclass_fields__} | {"tie_word_embeddings": False}
    )
    difference = parameter_counts(untied).total - parameter_counts(tied).total
    assert difference == tied.vocab_size * tied.hidden_size


@pytest.mark.parametrize("preset", ["llama-3.1-8b", "mixtral-8x7b", "deepseek-v2", "qwen3-30b-a3b"])
def test_ranks_share_all_weights_but_the_replicated_ones(preset: str) -> None:
    """Weights of all ranks together are the model's plus whole copies of what every rank holds."""
    spec, ranks = load_model(preset), 4
    held = [op for op in operator_program(spec, tensor_parallel_size=ranks) if op.weights]
    whole = {op.name: op for op in operator_program(spec, tensor_parallel_size=1)}
    for op in held:
        factor = ranks * op.weight_elements / whole[op.name].weight_elements
        replicated = op.name in {
            "fused_add_rms_norm",
            "latent_norm",
            "qk_norm",
            "router.gate",
            "fused_qkv_a_proj",
        }
        assert factor == (ranks if replicated else 1), op.name


EVERY_TENSOR_RANK = {
    "fused_add_rms_norm",
    "latent_norm",
    "qk_norm",
    "query_norm",
    "rms_norm",
    "router.gate",
    "fused_qkv_a_proj",
    "kv_a_proj",
    "indexer.wq_b",
    "indexer.wk",
    "indexer.weights_proj",
    "indexer.prepare",
}
"""What every tensor parallel rank holds whole."""

SHARED_OUT = {
    "deepseek_v2": {"shared_experts.gate_up_proj", "shared_experts.down_proj"},
    "deepseek_v3": {"shared_experts.gate_up_proj", "shared_experts.down_proj"},
    "kimi_k2": {"shared_experts.gate_up_proj", "shared_experts.down_proj"},
}
"""What it holds whole besides where tokens are shared out over tensor parallel ranks."""


def elements(programs: list[list[Operator]]) -> dict[str, int]:
    """Return the parameters that one rank of each stage holds together, by operator."""
    held: dict[str, int] = {}
    for program in programs:
        for op in program:
            if op.weight_elements:
                held[op.name] = held.get(op.name, 0) + op.weight_elements
    return held


MIXTURES = ["qwen3-30b-a3b", "deepseek-v3", "deepseek-v2-lite", "kimi-k2", "glm-4.5-air", "gpt-oss-120b"]
LAYOUTS = {
    "dp4": Layout(1, 1, 4),
    "dp4-ep": Layout(1, 1, 4, enable_expert_parallel=True),
    "tp4-ep": Layout(4, enable_expert_parallel=True),
    "tp2-dp4-ep": Layout(2, 1, 4, enable_expert_parallel=True),
    "tp2-pp2-dp2-ep": Layout(2, 2, 2, enable_expert_parallel=True),
    "tp2-pp3": Layout(2, 3),
}


@pytest.mark.parametrize("preset", MIXTURES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_ranks_of_a_layout_hold_the_model_once_but_for_copies(preset: str, name: str) -> None:
    """Data parallel ranks hold copies of all but the routed experts, which lie on all ranks once."""
    spec, layout = load_model(preset), LAYOUTS[name]
    whole = elements([operator_program(spec, tensor_parallel_size=1)])
    held = elements(pipeline_stages(spec, layout))
    assert held.keys() == whole.keys()
    tp, dp = layout.tensor_parallel_size, layout.data_parallel_size
    copied = set(EVERY_TENSOR_RANK)
    if layout.enable_expert_parallel and tp > 1 and dp > 1:
        copied |= SHARED_OUT.get(spec.model_type, set())
    for operator, count in held.items():
        copies = tp * dp * count / whole[operator]
        expected = 1 if operator == "experts" else tp * dp if operator in copied else dp
        padded = operator in {"embedding", "lm_head"}  # to a multiple of 64 rows
        if preset == "gpt-oss-120b":  # every rank has the biases of sums, and cuts experts in groups of 32
            assert copies == pytest.approx(expected, rel=0.03), operator
        else:
            assert copies == pytest.approx(expected, rel=2e-3 if padded else 1e-12), operator


@pytest.mark.parametrize("preset", model_names())
def test_stages_hold_the_model_together(preset: str) -> None:
    spec = load_model(preset)
    for stages in (2, 3):
        held = elements(pipeline_stages(spec, Layout(1, stages)))
        assert held == elements([operator_program(spec, tensor_parallel_size=1)])
        assert sum(held.values()) == parameter_counts(spec).total


@pytest.mark.parametrize("preset", [name for name in model_names() if load_model(name).is_moe])
def test_experts_lie_on_all_ranks_once(preset: str) -> None:
    spec = load_model(preset)
    routed = parameter_counts(spec).by_component["routed_experts"]
    program = operator_program(spec, layout=Layout(1, 1, 8, enable_expert_parallel=True))
    assert 8 * elements([program])["experts"] == routed
