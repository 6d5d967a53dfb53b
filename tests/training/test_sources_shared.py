"""Readers on the public data: rows of each identity, what traps drop or mark, times that can be true."""

from pathlib import Path

import numpy as np
import pytest

from frontier.hardware import load_gpu
from frontier.training import traps
from frontier.training.identity import COLLECTIVES
from frontier.training.measurements import Measurements, Skipped
from frontier.training.sources import aiconfigurator, llmservingsim, vidur

Read = tuple[list[Measurements], list[Skipped]]


def folder(shared: Path, name: str) -> Path:
    path = shared / "data" / "operators" / name
    if not path.is_dir():
        pytest.skip(f"no operator data at {path}")
    return path


@pytest.fixture(scope="module")
def aic(shared: Path) -> Read:
    skipped: list[Skipped] = []
    root = folder(shared, "aiconfigurator")
    return list(aiconfigurator.read(root, ["h100"], skipped=skipped)), skipped


@pytest.fixture(scope="module")
def frontier(shared: Path) -> Read:
    skipped: list[Skipped] = []
    return list(vidur.read(folder(shared, "frontier"), skipped=skipped)), skipped


@pytest.fixture(scope="module")
def serving(shared: Path) -> Read:
    skipped: list[Skipped] = []
    return list(llmservingsim.read(folder(shared, "llmservingsim"), skipped=skipped)), skipped


def select(found: Read, **wanted: str) -> list[Measurements]:
    return [
        part
        for part in found[0]
        if all(getattr(part.identity, name) == value for name, value in wanted.items())
    ]


def raw(parts: list[Measurements]) -> int:
    """Return the rows read, whether kept or dropped."""
    return sum(len(part) + sum(part.dropped.values()) for part in parts)


class TestAiconfigurator:
    @pytest.mark.parametrize(
        ("backend", "dtype", "rows"),
        [
            ("trtllm", "bf16", 35_700),
            ("trtllm", "fp8", 35_700),
            ("vllm", "fp8_block", 35_704),
            ("sglang", "bf16", 35_742),
        ],
    )
    def test_products(self, aic: Read, backend: str, dtype: str, rows: int) -> None:
        parts = [
            part
            for part in select(aic, operator="gemm", backend=backend, dtype=dtype)
            if "batched" not in part.identity.facts
        ]
        assert sum(map(len, parts)) == rows
        eager = backend == "vllm" and dtype == "fp8_block"
        assert {part.identity.measurement for part in parts} == {"event" if eager else "cuda_graph"}

    @pytest.mark.parametrize(
        ("backend", "operator", "rows"),
        [
            ("trtllm", "prefill_attention", 75_840),
            ("trtllm", "decode_attention", 52_033),
            ("sglang", "decode_attention", 40_468),
            ("vllm", "decode_attention", 62_166),
        ],
    )
    def test_attention(self, aic: Read, backend: str, operator: str, rows: int) -> None:
        parts = [
            part
            for part in select(aic, operator=operator, backend=backend)
            if "mla" not in part.identity.facts
        ]
        assert raw(parts) == rows

    def test_narrow_groups_of_trtllm(self, aic: Read) -> None:
        parts = select(aic, operator="decode_attention", backend="trtllm", kernel="torch_flow")
        assert sum(map(len, parts)) == 46_817
        ratio = [(part.columns["heads"] / part.columns["kv_heads"]).max() for part in parts]
        assert max(ratio) < 48

    def test_experts_of_one_rank_alone(self, aic: Read) -> None:
        parts = select(aic, operator="fused_moe")
        for part in parts:
            if part.identity.backend != "trtllm":
                assert (part.columns["moe_ep"] == 1).all()
        vllm = select(aic, operator="fused_moe", backend="vllm")
        assert sum(len(part) + part.dropped.get("autotuner misfires", 0) for part in vllm) == 22_889

    def test_misfires_are_half_a_percent_of_trtllm(self, aic: Read) -> None:
        parts = select(aic, operator="fused_moe", backend="trtllm")
        misfires = sum(part.dropped.get("autotuner misfires", 0) for part in parts)
        assert misfires == 573
        assert misfires / raw(parts) == pytest.approx(0.0045, abs=2e-4)

    def test_no_eight_nodes_of_normal_deepep(self, aic: Read) -> None:
        for kernel, nodes in (("deepep_normal", 4), ("deepep_ll", 8)):
            parts = select(aic, kernel=kernel)
            assert max(part.columns["nodes"].max() for part in parts) == nodes
        dropped = [sum(part.dropped.values()) for part in select(aic, kernel="deepep_normal")]
        assert sum(dropped) == 2 * 138

    def test_low_latency_dispatch_is_close_to_deepseeks(self, aic: Read) -> None:
        # 128 tokens over 16, 32 and 64 ranks: 118, 155 and 173 us on DeepSeek's H800.
        (part,) = select(aic, kernel="deepep_ll", operator="moe_dispatch", version="0.5.6.post2")
        columns = part.columns
        for ep, theirs in ((16, 118e-6), (32, 155e-6), (64, 173e-6)):
            row = (columns["rows"] == 128) & (columns["ep"] == ep)
            assert np.median(part.seconds[row]) == pytest.approx(theirs, rel=0.2)

    def test_eager_all_reduces_are_slower_than_graphs(self, aic: Read) -> None:
        eager, graph = (
            select(aic, operator="all_reduce", backend="sglang", version="0.5.14", measurement=how)[0]
            for how in ("event", "cuda_graph")
        )
        assert (eager.key == graph.key).all()
        assert np.median(eager.seconds / graph.seconds) > 1.5

    def test_the_cold_cliff(self, aic: Read) -> None:
        (part,) = select(aic, operator="decode_attention", kernel="vllm_flash_attn_fa3")[:1]
        found = traps.cold_correction(part)
        assert found is not None
        # No more than reading the byte from DRAM takes in full, no less than a third of it.
        assert 1e-13 < found.s_per_byte < 1 / 3.0e12
        assert found.rows > 500
        warm = part.marks["warm_l2"]
        assert (traps.kv_bytes(part)[warm] < load_gpu("h100").l2_bytes).all()
        assert 0.5 < warm.mean() < 0.9

    def test_a_table_faster_than_its_memory_is_gone(self, shared: Path) -> None:
        tables = ["generation_attention_perf"]
        root = folder(shared, "aiconfigurator")
        found = {
            part.identity.kernel: part
            for part in aiconfigurator.read(root, ["a100-80gb"], tables=tables)
            if part.identity.backend == "trtllm"
        }
        assert (len(found["torch_flow"]), len(found["torch_flow.wide_groups"])) == (0, 652)
        assert found["torch_flow"].dropped == {"table with impossible times": 4_374}

    def test_sglangs_context_mla_is_absorbed(self, aic: Read) -> None:
        rates = {}
        for backend in ("sglang", "trtllm"):
            part = next(
                part
                for part in select(aic, operator="prefill_attention", backend=backend)
                if "mla" in part.identity.facts
            )
            long = part.columns["context"] == 16_384
            rates[backend] = np.median((traps.attention_flops(part) / part.seconds)[long])
        # As absorbed both run at some 600 TFLOP/s; taken for the other, SGLang would run at 190.
        assert rates["sglang"] == pytest.approx(rates["trtllm"], rel=0.15)

    def test_module_tables_have_a_reason(self, aic: Read) -> None:
        notes = {note.file.split("/")[1]: note for note in aic[1]}
        assert notes["mla_context_module_perf.parquet"].rows == 7_752
        assert all(note.why for note in aic[1])


class TestVidur:
    def test_h800_attention(self, frontier: Read, shared: Path) -> None:
        kept = select(frontier, gpu="h800")
        prefill = next(part for part in kept if part.identity.operator == "prefill_attention")
        decode = next(part for part in kept if part.identity.operator == "decode_attention")
        assert (len(prefill), raw([decode])) == (7_096, 3_280)
        assert decode.columns["count"].max() == 1
        everything = list(vidur.read(folder(shared, "frontier"), ["h800"], keep_suspect=True))
        whole = next(part for part in everything if part.identity.operator == "decode_attention")
        assert len(whole) == 3_280
        # What the profiler's shared cache does: hundreds of rows beyond the memory's bandwidth.
        assert whole.marks["impossible"].sum() > 500

    def test_h800_products(self, frontier: Read) -> None:
        parts = select(frontier, gpu="h800", operator="gemm")
        assert {part.identity.measurement: len(part) for part in parts} == {
            "event": 4 * 1_804,
            "kernel": 4 * 1_804,
        }
        event, kernel = sorted(parts, key=lambda part: part.identity.measurement)
        event, kernel = (part.take(np.argsort(part.key, kind="stable")) for part in (event, kernel))
        assert (event.key == kernel.key).all()
        assert 3 < (event.seconds / kernel.seconds).max() < 5

    def test_an_h800_reads_its_weights_at_the_rate_of_its_memory(self, frontier: Read) -> None:
        (part,) = select(frontier, gpu="h800", operator="gemm", measurement="kernel")
        columns = part.columns
        rows = (columns["rows"] == 1) & (columns["k"] * columns["n"] > 2e8)
        rate = (columns["k"] * columns["n"])[rows] / part.seconds[rows]
        assert 0.85 < np.median(rate) / load_gpu("h800").memory_bandwidth_bytes_per_s < 1.0

    def test_impossible_tables_are_gone(self, frontier: Read) -> None:
        parts = select(frontier, gpu="a100-80gb", backend="flashinfer")
        assert [len(part) for part in parts] == [0, 0]
        assert raw(parts) == 8_294

    def test_contradictory_prefills(self, frontier: Read) -> None:
        (part,) = select(frontier, gpu="a800", operator="prefill_attention", measurement="event")
        assert part.dropped["repeats that contradict each other"] == 214
        assert part.repeat_floor().p95 < 0.05

    def test_llama_2_on_an_a800(self, frontier: Read) -> None:
        parts = select(frontier, gpu="a800", backend="flashinfer", measurement="kernel")
        assert raw(parts) == 10_972

    def test_copies(self, frontier: Read) -> None:
        copies = {
            note.file.removesuffix(".parquet"): note.rows for note in frontier[1] if "copy of" in note.why
        }
        assert copies == {
            "compute__h100__qwen2_moe_example__mlp": 134,
            "network__a800_dgx__all_reduce": 6_958,
            "network__a800_dgx__send_recv": 1_988,
            "network__a800_pairwise_nvlink__send_recv": 1_988,
            "network__h100_pairwise_nvlink__send_recv": 1_988,
        }
        (part,) = select(frontier, gpu="a800", operator="all_reduce")
        assert len(part) == 9_237

    def test_whole_microseconds(self, frontier: Read) -> None:
        (part,) = select(frontier, gpu="h100", operator="rms_norm")
        assert part.marks["quantised"].mean() == pytest.approx(0.2, abs=0.05)
        assert any("steps of 0.5 us" in text for text in part.warnings)

    def test_repeats_of_products_agree(self, frontier: Read) -> None:
        (part,) = select(frontier, gpu="a100-80gb", operator="gemm")
        floor = part.repeat_floor()
        assert floor.groups > 5_000
        assert floor.median < 0.02


class TestLlmServingSim:
    def test_skewed_batches(self, serving: Read) -> None:
        (part,) = select(serving, gpu="rtx-4090", operator="decode_skew")
        assert raw([part]) == 3 * 327
        mixed = select(serving, operator="mixed_attention")
        assert raw(mixed) == 3 * (12_682 + 4 * 12_682 + 2 * 12_692) + 8_448 + 6 * 18_960

    def test_the_two_tables_agree_once_iterations_are_undone(self, serving: Read) -> None:
        for part in select(serving, operator="mixed_attention"):
            floor = part.repeat_floor()
            assert floor.groups > 2_000
            assert floor.p95 < 0.03

    def test_the_mean_of_three_roles_is_one_measurement(self, serving: Read) -> None:
        (part,) = select(serving, gpu="rtx-4090", operator="decode_skew")
        pairs = part.marks["pair"]
        mean, most, skew = (part.seconds[part.marks["skew_role"] == role] for role in (0, 1, 2))
        assert len(set(pairs)) == len(mean) == len(most) == len(skew) == 327
        assert 0.9 < np.median(skew / mean) < 1.2

    def test_what_is_left_alone(self, serving: Read) -> None:
        assert len(serving[1]) == 24
        assert all(note.file.startswith("v0__") for note in serving[1])


@pytest.mark.parametrize("name", ["aic", "frontier", "serving"])
def test_times_can_be_true(name: str, request: pytest.FixtureRequest) -> None:
    """Seconds are seconds: hardly any product is above 1.05 of the peak, no link above twice its rate."""
    for part in request.getfixturevalue(name)[0]:
        identity, columns = part.identity, part.columns
        if not len(part):
            continue
        assert part.seconds.min() > 1e-7
        assert part.seconds.max() < 2
        assert part.marks["impossible"].mean() < 0.01
        if identity.operator in COLLECTIVES:
            spec = load_gpu(identity.gpu)
            link = spec.nvlink_bandwidth_bytes_per_s or spec.pcie_bandwidth_bytes_per_s
            assert (columns["bytes"] / part.seconds).max() < 2.1 * link


@pytest.mark.parametrize("name", ["aic", "frontier", "serving"])
def test_each_identity_comes_once_with_its_sources(name: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(name)[0]
    identities = [part.identity for part in found]
    assert len(identities) == len(set(identities))
    assert all(part.sources and all(len(source.sha256) == 64 for source in part.sources) for part in found)
