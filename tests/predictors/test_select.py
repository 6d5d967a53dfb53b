"""Which predictor prices an operator."""

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pytest

from frontier.predictors.select import Wanted, choose, is_transferred, pack_dtypes, version_order, wants_skew


@dataclass(frozen=True)
class Info:
    operator: str = "gemm"
    gpu: str = "h100"
    backend: str = "vllm"
    version: str = "0.24.0"
    kernel: str = "a"
    measurement: str = "cuda_graph"
    dtype: str = "bf16"
    detail: dict[str, Any] = field(default_factory=dict)
    rows: int = 1000
    features: tuple[str, ...] = ()
    ranges: tuple[tuple[float, float], ...] = ()


GEMM = Wanted(operator="gemm", gpu="h100", backend="vllm", dtype="bf16")


def test_the_own_gpu_goes_before_backend_version_and_rows():
    candidates = [
        Info(gpu="generic", backend="generic", rows=9_000),
        Info(backend="sglang", version="9.9", rows=5_000),
        Info(version="0.14.0"),
        Info(version="0.24.0", measurement="event"),
        Info(version="0.24.0", rows=10),
        Info(version="0.24.0", rows=20),
        Info(gpu="h200", rows=90_000),
    ]
    order = []
    left = list(range(len(candidates)))
    while left:
        found = choose(GEMM, [candidates[i] for i in left])
        if found is None:
            break
        order.append(left.pop(found.index))
    assert order == [5, 4, 2, 1, 3, 0]
    assert left == [6]  # another GPU's predictor is nobody's


def test_the_choice_does_not_depend_on_the_order_of_candidates():
    candidates = [Info(kernel=kernel, rows=rows) for kernel, rows in (("b", 5), ("a", 5), ("c", 4))]
    for turned in (candidates, candidates[::-1]):
        found = choose(GEMM, turned)
        assert found is not None
        assert turned[found.index].kernel == "a"


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [(None, "0.24.0"), ("0.32", "0.24.0"), ("0.19", "0.19.1"), ("0.20", "0.19.1"), ("0.1", "0.14.0")],
)
def test_the_newest_version_that_is_not_newer_else_the_nearest(asked, chosen):
    candidates = [Info(version=version) for version in ("0.14.0", "0.24.0", "0.19.1")]
    wanted = Wanted(operator="gemm", gpu="h100", backend="vllm", dtype="bf16", version=asked)
    found = choose(wanted, candidates)
    assert found is not None
    assert candidates[found.index].version == chosen
    assert bool(found.why) == (asked in ("0.32", "0.20", "0.1"))


@pytest.mark.parametrize(
    ("engine", "asked", "chosen"),
    [
        ("0.19", None, "0.19.1"),  # its own kernels were measured
        ("0.20", None, "0.24.0"),  # they were not: the latest, not the nearest
        ("0.2", None, "0.24.0"),  # 0.24 is no patch of 0.2
        ("0.19", "0.14", "0.14.0"),  # what is asked for goes first
    ],
)
def test_the_engine_s_own_version_where_none_is_asked(engine, asked, chosen):
    candidates = [
        Info(version="0.14.0"),
        Info(version="0.24.0", rows=90_000),
        Info(version="0.19.1", measurement="kernel", rows=10),
        Info(version="0.19.0", backend="sglang"),
    ]
    wanted = replace(GEMM, version=asked, engine_version=engine)
    found = choose(wanted, candidates)
    assert found is not None
    assert (candidates[found.index].version, candidates[found.index].backend) == (chosen, "vllm")
    launched = [Info(version="0.24.0"), Info(version="0.19.1", measurement="event")]
    found = choose(wanted, launched)
    assert found is not None
    assert found.index == 0  # a launch says little of the kernel, whatever its version


def test_what_is_given_up_is_said():
    found = choose(GEMM, [Info(gpu="generic", backend="generic")])
    assert found is not None
    assert found.unmeasured
    assert found.why == ("gemm: not measured on h100, predicted from other GPUs",)
    found = choose(GEMM, [Info(backend="sglang", measurement="event")])
    assert found is not None
    assert not found.unmeasured
    assert [text.split(": ")[1] for text in found.why] == [
        "kernels of sglang 0.24.0 stand in for vllm's",
        "timed with its launch, which a graph hides",
    ]


@pytest.mark.parametrize(
    ("dtype", "weight_bytes", "block_scaled", "first"),
    [
        ("bf16", 2.0, False, "bf16"),
        ("fp16", 2.0, False, "fp16"),
        ("fp8", 1.0, False, "fp8"),
        ("fp8", 1.0, True, "fp8_block"),
        ("fp8", 0.53125, False, "mxfp4"),
        ("bf16", 0.53125, False, "mxfp4"),
        ("bf16", 0.515625, False, "int4"),
        ("bf16", 1.0, False, "int8"),
        ("fp4", 0.5625, False, "nvfp4"),
    ],
)
def test_weights_and_arithmetic_make_the_number_type(dtype, weight_bytes, block_scaled, first):
    wanted = Wanted(
        operator="fused_moe",
        gpu="h100",
        backend="vllm",
        dtype=dtype,
        weight_bytes=weight_bytes,
        block_scaled=block_scaled,
    )
    assert pack_dtypes(wanted)[0] == first


def test_narrow_weights_never_take_a_16_bit_predictor():
    wanted = Wanted(operator="fused_moe", gpu="h100", backend="vllm", dtype="bf16", weight_bytes=0.53)
    assert choose(wanted, [Info(operator="fused_moe")]) is None


@pytest.mark.parametrize(
    ("dtype", "weight_bytes", "stored_as", "names"),
    [
        ("bf16", 0.51953125, "int4_group_zero", ("int4", "mxfp4")),
        ("bf16", 0.53125, "int4_group", ("int4", "mxfp4")),
        ("bf16", 0.53125, "mxfp4", ("mxfp4", "int4")),
        ("bf16", 0.5625, "nvfp4", ("nvfp4 in bf16",)),
        ("bf16", 1.0, "fp8_tensor", ("fp8_tensor in bf16",)),
        ("fp8", 1.03125, "mxfp8", ("mxfp8 in fp8",)),
    ],
)
def test_widened_weights_are_never_priced_as_what_they_are_not(dtype, weight_bytes, stored_as, names):
    wanted = Wanted(
        operator="gemm",
        gpu="h100",
        backend="vllm",
        dtype=dtype,
        weight_bytes=weight_bytes,
        stored_as=stored_as,
    )
    assert pack_dtypes(wanted) == names
    measured = [Info(dtype=name) for name in ("bf16", "fp8", "fp8_block", "nvfp4", "int8")]
    assert choose(wanted, measured) is None


def _attention(**facts: Any) -> Wanted:
    given = {"qk_dim": 128, "v_dim": 128, "heads": 32, "kv_heads": 8, "kv_cache_dtype": "bf16", **facts}
    return Wanted(
        operator="decode_attention", gpu="h100", backend=given.pop("backend", "vllm"), dtype="bf16", **given
    )


def test_attention_kernels_are_told_apart():
    def info(kernel: str, **detail: Any) -> Info:
        backend = "trtllm" if "wide" in kernel or kernel == "flow" else "vllm"
        return Info(
            operator="decode_attention",
            kernel=kernel,
            backend=backend,
            detail={"kv_cache_dtype": "bf16", **detail},
        )

    candidates = [
        info("fa3"),
        info("fa3", kv_cache_dtype="fp8"),
        info("fa4.large_heads"),
        info("mla", mla="absorbed"),
        info("flow"),
        info("flow.wide_groups"),
    ]
    for facts, index in (
        ({}, 0),
        ({"kv_cache_dtype": "fp8"}, 1),
        ({"kv_cache_dtype": "fp16"}, 0),
        ({"qk_dim": 512, "v_dim": 512}, 2),
        ({"qk_dim": 576, "v_dim": 512, "kv_heads": 1}, 3),
        ({"backend": "trtllm"}, 4),
        ({"backend": "trtllm", "heads": 64, "kv_heads": 1}, 5),
    ):
        found = choose(_attention(**facts), candidates)
        assert found is not None
        assert found.index == index, facts


def test_collectives_match_ranks_and_nodes_and_no_bridges():
    def info(**detail: Any) -> Info:
        return Info(operator="all_reduce", dtype="fp16", detail=detail)

    candidates = [
        info(ranks=2, nodes=1, topology="pairwise_nvlink"),
        info(ranks=2, nodes=1, topology="dgx"),
        info(ranks=4, nodes=1),
    ]
    wanted = Wanted(operator="all_reduce", gpu="h100", backend="vllm", ranks=2, nodes=1)
    found = choose(wanted, candidates)
    assert found is not None
    assert found.index == 1
    assert (
        choose(Wanted(operator="all_reduce", gpu="h100", backend="vllm", ranks=8, nodes=1), candidates)
        is None
    )


def test_batched_products_are_other_kernels():
    candidates = [Info(detail={"batched": "mla heads"}, rows=9_999), Info()]
    found = choose(GEMM, candidates)
    assert found is not None
    assert found.index == 1
    many = choose(Wanted(operator="gemm", gpu="h100", backend="vllm", dtype="bf16", batched=True), candidates)
    assert many is not None
    assert many.index == 0


def test_dynamic_quantisation_is_the_default():
    candidates = [
        Info(operator="quant_fp8", dtype="fp8", kernel=f"{how}_quant") for how in ("static", "dynamic")
    ]
    wanted = Wanted(operator="quant_fp8", gpu="h100", backend="vllm", dtype="fp8")
    found = choose(wanted, candidates)
    assert found is not None
    assert found.index == 1


def test_a_predictor_that_saw_unequal_lengths_needs_no_correction():
    assert wants_skew(Info(operator="decode_attention"))
    assert not wants_skew(Info(operator="decode_attention", detail={"knows_unequal_lengths": 1}))


def test_versions_sort_by_number():
    versions = ["0.5.9", "0.5.10", "0.5.10.post1", "1.3.0rc11", "1.3.0rc20", "1.3.0"]
    keys = [version_order(version) for version in versions]
    assert all(earlier < later for earlier, later in pairwise(keys))


def _exchange(kernel: str, nodes: tuple[float, float] = (1.0, 1.0), **facts: Any) -> Info:
    given = {"measurement": "kernel", "dtype": "fp8", **facts}
    return Info(
        operator="moe_dispatch",
        kernel=kernel,
        features=("rows", "nodes"),
        ranges=((1.0, 256.0), nodes),
        **given,
    )


EXCHANGES = [
    _exchange("deepep_ll"),
    _exchange("deepep_ht", rows=9_999),
    _exchange("deepep_v2_generation", rows=99_999, version="9.9"),
    _exchange("deepep_ll", (1.0, 8.0), backend="sglang", version="0.5.6"),
    _exchange("deepep_ll", backend="sglang", version="0.5.12"),
    _exchange("deepep_normal", (1.0, 4.0), backend="sglang"),
]


@pytest.mark.parametrize(
    ("all2all", "backend", "nodes", "index", "why"),
    [
        ("deepep_low_latency", "vllm", 1, 0, []),
        ("deepep_high_throughput", "vllm", 1, 1, []),
        ("deepep_low_latency", "sglang", 1, 4, []),
        ("deepep_high_throughput", "sglang", 2, 5, []),
        (
            *("deepep_low_latency", "vllm", 2, 3),
            ["kernels of sglang 0.5.6 stand in for vllm's", "not measured on 2 nodes"],
        ),
        ("deepep_low_latency", "sglang", 8, 3, ["sglang 0.5.6 taken: sglang 0.5.12 was not measured on 8"]),
        ("deepep_high_throughput", "vllm", 8, 1, ["measured on 1 nodes, asked 8"]),
    ],
)
def test_exchanges_match_how_tokens_travel_and_the_number_of_nodes(all2all, backend, nodes, index, why):
    wanted = Wanted(
        operator="moe_dispatch", gpu="h100", backend=backend, ranks=8 * nodes, nodes=nodes, all2all=all2all
    )
    found = choose(wanted, EXCHANGES)
    assert found is not None
    assert found.index == index
    assert len(found.why) == len(why)
    assert all(text in told for text, told in zip(why, found.why, strict=True))


def test_an_exchange_of_another_kind_has_no_predictor():
    wanted = Wanted(
        operator="moe_dispatch", gpu="h100", backend="vllm", all2all="deepep_low_latency", nodes=1
    )
    assert choose(wanted, [EXCHANGES[1], EXCHANGES[2]]) is None
    assert choose(wanted, EXCHANGES) is not None


def test_what_stands_in_for_heavy_operators_is_doubtful_for_light_ones_noted():
    for operator, doubtful in (("gemm", True), ("rms_norm", False)):
        wanted = Wanted(operator=operator, gpu="h100", backend="vllm", dtype="bf16")
        found = choose(wanted, [Info(operator=operator, backend="vidur", version="1")])
        assert found is not None
        assert found.why == (f"{operator}: kernels of vidur 1 stand in for vllm's",)
        assert found.doubts == (("kernels of vidur 1 stand in for vllm's",) if doubtful else ())


def test_nccl_stands_in_for_sums_alone():
    for operator, told in (("all_reduce", 1), ("all_gather", 0)):
        wanted = Wanted(operator=operator, gpu="h100", backend="vllm", ranks=2, nodes=1)
        found = choose(wanted, [Info(operator=operator, backend="nccl", detail={"ranks": 2, "nodes": 1})])
        assert found is not None
        assert len(found.why) == told


def test_the_kernel_of_several_that_suit_is_named():
    moe = Wanted(operator="fused_moe", gpu="h100", backend="vllm", dtype="bf16")
    mla = _attention(qk_dim=576, v_dim=512, kv_heads=1)
    detail = {"kv_cache_dtype": "bf16", "mla": "absorbed"}
    for wanted, facts in ((moe, {}), (mla, {"detail": detail})):
        kernels = [
            Info(operator=wanted.operator, kernel=name, rows=rows, **facts)
            for name, rows in (("few", 5), ("many", 50), ("some", 7))
        ]
        found = choose(
            wanted, [*kernels, Info(operator=wanted.operator, version="0.1", kernel="old", **facts)]
        )
        assert found is not None
        [why] = found.why
        assert why.endswith(": kernel many taken, with the most measurements; others: few, some")
        assert found.doubts == ()
        alone = choose(wanted, kernels[:1])
        assert alone is not None
        assert alone.why == ()


def test_what_was_learned_on_other_gpus_is_transferred():
    def info(gpu: str) -> Info:
        detail = {"transferred_from": ["rtx-4090", "rtx-pro-6000"]}
        return Info(operator="decode_skew", gpu=gpu, backend="generic", detail=detail)

    assert is_transferred(info("h100"))
    assert not is_transferred(info("rtx-4090"))
    assert not is_transferred(Info())
