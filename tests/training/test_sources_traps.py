"""Each trap on rows made to spring it, beside rows that must not."""

from dataclasses import replace

import numpy as np
import pytest
from test_splits import DECODE, attention, gemm

from frontier.hardware import load_gpu
from frontier.training import traps
from frontier.training.identity import Identity
from frontier.training.measurements import Measurements


def moe(backend: str, rows, seconds, *, ep=1, tp=1) -> Measurements:
    identity = Identity("h100", backend, "1", "fused", "cuda_graph", "fused_moe", "bf16")
    columns = {
        "rows": rows,
        "hidden": 2048,
        "inter": 768,
        "experts": 128,
        "top_k": 8,
        "moe_tp": tp,
        "moe_ep": ep,
        "weight_bytes": 2,
        "activation_bytes": 2,
        "gated": 1,
        "imbalance": -1,
    }
    return Measurements.of(identity, columns, seconds, "qwen3")


def test_kv_bytes_stop_at_the_window() -> None:
    found = attention(DECODE, [[(2, 1, 1000)], [(1, 1, 100), (1, 1, 10)]], [1e-5, 1e-5])
    assert traps.kv_bytes(found).tolist() == [2 * 1000 * 4096, 110 * 4096]
    columns = {**found.columns, "window": np.array([128.0, 128.0])}
    cut = Measurements.of(found.identity, columns, found.seconds, "m")
    assert traps.kv_bytes(cut).tolist() == [2 * 129 * 4096, 110 * 4096]


def test_attention_flops_count_causal_pairs_and_the_prefix() -> None:
    found = attention(DECODE, [[(1, 4, 4)], [(3, 2, 10)]], [1e-5, 1e-5])
    pairs = np.array([1 + 2 + 3 + 4, 3 * (9 + 10)])
    assert traps.attention_flops(found).tolist() == (2 * 32 * 256 * pairs).tolist()


class TestWarmL2:
    def cliff(self, extra: float) -> Measurements:
        """Decode of contexts around L2: cold is 3e-13 s a byte, what fits in L2 is `extra` a byte cheaper."""
        cache = load_gpu("h100").l2_bytes
        batches, seconds = [], []
        for count in (1, 2, 4, 8, 16, 32):
            for share in (0.25, 0.5, 0.75, 1.5, 2.0, 3.0, 4.0, 8.0):
                context = round(share * cache / 4096 / count)
                size = context * count * 4096
                batches.append([(count, 1, context)])
                seconds.append(1e-5 + 3e-13 * size - (extra * size if share < 1 else 0))
        return attention(DECODE, batches, seconds)

    def test_rows_that_fit_in_l2_are_marked_and_stay(self) -> None:
        found = traps.mark_warm_l2(self.cliff(2e-13))
        assert found.marks["warm_l2"].sum() == 18
        assert len(found) == 48

    def test_the_cliff_gives_the_seconds_a_byte(self) -> None:
        found = traps.cold_correction(self.cliff(2e-13))
        assert found is not None
        assert found.s_per_byte == pytest.approx(2e-13, rel=1e-3)
        assert (found.series, found.rows, found.l2_bytes) == (6, 18, load_gpu("h100").l2_bytes)

    def test_without_a_cliff_there_is_nothing_to_correct(self) -> None:
        assert traps.cold_correction(self.cliff(-1e-13)) is None

    def test_a_few_series_are_no_evidence(self) -> None:
        found = self.cliff(2e-13)
        assert traps.cold_correction(found.take(found.columns["count"] <= 2)) is None


def test_expert_parallel_rows_stay_for_trtllm_alone() -> None:
    assert len(traps.drop_foreign_expert_parallel(moe("trtllm", [1, 1], [1e-5, 1e-5], ep=[1, 8]))) == 2
    found = traps.drop_foreign_expert_parallel(moe("vllm", [1, 1], [1e-5, 1e-5], ep=[1, 8]))
    assert found.columns["moe_ep"].tolist() == [1]
    assert sum(found.dropped.values()) == 1


class TestAutotuner:
    def test_a_row_slower_than_larger_batches_goes(self) -> None:
        found = traps.drop_autotuner_misfires(
            moe("trtllm", [1, 2, 4, 8, 16], [10e-6, 40e-6, 12e-6, 13e-6, 30e-6])
        )
        assert found.columns["rows"].tolist() == [1, 4, 8, 16]
        assert found.dropped == {"autotuner misfires": 1}

    def test_two_in_a_row_are_both_found(self) -> None:
        found = traps.drop_autotuner_misfires(moe("trtllm", [1, 2, 4, 8], [10e-6, 60e-6, 70e-6, 13e-6]))
        assert found.columns["rows"].tolist() == [1, 8]

    def test_other_sites_and_slow_repeats_mislead_nobody(self) -> None:
        found = moe("trtllm", [1, 2, 2, 1, 2], [30e-6, 31e-6, 50e-6, 10e-6, 11e-6], tp=[1, 1, 1, 2, 2])
        assert len(traps.drop_autotuner_misfires(found)) == 5


def test_a_batch_of_aliased_caches_is_no_batch() -> None:
    found = traps.drop_aliased_kv(
        attention(DECODE, [[(1, 1, 9)], [(2, 1, 9)], [(1, 1, 5), (1, 1, 9)]], [1e-5] * 3)
    )
    assert len(found) == 1
    assert sum(found.dropped.values()) == 2


def test_large_heads_and_wide_groups_are_other_kernels() -> None:
    assert traps.separate_large_heads(DECODE, 256) == DECODE
    assert traps.separate_large_heads(DECODE, 512).kernel == "fa3.large_heads"
    trtllm = Identity("h100", "trtllm", "1", "flow", "cuda_graph", "decode_attention", "bf16")
    assert traps.separate_wide_groups(trtllm, 48, 1).kernel == "flow.wide_groups"
    assert traps.separate_wide_groups(trtllm, 94, 2) == trtllm
    assert traps.separate_wide_groups(DECODE, 96, 1) == DECODE


class TestContradictions:
    def test_two_instruments_are_told_apart_from_noise(self) -> None:
        rows, seconds = [1, 1, 2, 2, 3, 3, 4], [10, 13, 20, 26, 30, 30.1, 40]
        found = traps.drop_contradictory_repeats(gemm(rows, np.array(seconds) * 1e-6))
        assert found.columns["rows"].tolist() == [3, 3, 4]

    def test_one_outlier_among_good_repeats_stays(self) -> None:
        rows, seconds = [1, 1, 2, 2, 3, 3], [10, 13, 20, 20.1, 30, 30.1]
        assert len(traps.drop_contradictory_repeats(gemm(rows, np.array(seconds) * 1e-6))) == 6


class TestQuantised:
    def test_the_step_is_found(self) -> None:
        steps = np.arange(3, 60)
        assert traps.timing_quantum(steps * 1e-6) == 1e-6
        assert traps.timing_quantum(steps * 0.5e-6) == 0.5e-6
        assert traps.timing_quantum(steps * 0.37e-6) == 0

    def test_rows_where_the_step_matters_are_marked(self) -> None:
        found = traps.mark_quantised(gemm(np.arange(3, 60), np.arange(3, 60) * 1e-6))
        assert found.columns["rows"][found.marks["quantised"]].max() == 16
        assert found.warnings == ("times were recorded in steps of 1 us",)


def test_copies_are_found_by_content_and_the_first_is_the_original() -> None:
    kept, copies = traps.drop_duplicate_contents({"a800": "x", "a100": "x", "h100": "y"})
    assert kept == {"a100": "x", "h100": "y"}
    assert copies == {"a800": "a100"}


class TestImpossible:
    def test_faster_than_the_peak(self) -> None:
        flops = 2 * 8192 * 4096 * 4096
        found = traps.mark_impossible(gemm([8192, 8192], [flops / 0.9e15, flops / 1.1e15]))
        assert found.marks["impossible"].tolist() == [False, True]
        assert "50.0%" in found.warnings[0]

    def test_faster_than_dram_unless_l2_may_hold_it(self) -> None:
        found = attention(DECODE, [[(64, 1, 4096)], [(1, 1, 8192)]], [1e-4, 6e-6])
        assert traps.mark_impossible(found).marks["impossible"].tolist() == [True, False]

    def test_a_table_of_many_is_dropped_whole_and_a_few_alone(self) -> None:
        flops = 2 * 8192 * 4096 * 4096
        slow, fast = flops / 0.5e15, flops / 2e15
        some = traps.drop_impossible(traps.mark_impossible(gemm(np.full(200, 8192), [slow] * 199 + [fast])))
        many = traps.drop_impossible(
            traps.mark_impossible(gemm(np.full(200, 8192), [slow] * 100 + [fast] * 100))
        )
        assert (len(some), len(many)) == (199, 0)
        assert sum(many.dropped.values()) == 200


def test_summed_iterations_are_undone() -> None:
    assert traps.undo_summed_iterations(np.array([3e-6, 6e-6]), 3).tolist() == pytest.approx([1e-6, 2e-6])


@pytest.mark.parametrize(
    ("gpu", "dtype", "rate"),
    [("h100", "fp8", 1978.9e12), ("h100", "int4", 989.4e12), ("h100", "bf16", 989.4e12)],
)
def test_peaks(gpu: str, dtype: str, rate: float) -> None:
    assert traps.peak_flops(gpu, dtype) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("backend", "facts", "fastest", "event"),
    [
        ("vllm", {"mla": "absorbed"}, 100e-6, True),
        ("vllm", {"mla": "absorbed"}, 12e-6, False),
        ("sglang", {"mla": "absorbed"}, 100e-6, False),
        ("vllm", {}, 100e-6, False),
    ],
)
def test_mla_tables_that_hold_launches_are_events(backend, facts, fastest, event) -> None:
    identity = replace(DECODE, backend=backend, detail=tuple(facts.items()))
    found = attention(identity, [[(1, 1, 64)], [(64, 1, 4096)]], [fastest, 1e-3])
    told = traps.relabel_launch_bound_mla(found)
    assert told.identity == (replace(identity, measurement="event") if event else identity)
    assert any("include the launch: none is below 100 us" in text for text in told.warnings) is event
    assert len(told) == len(found)
