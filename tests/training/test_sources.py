"""Readers on a few rows in each documented layout, written here."""

import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from frontier.errors import ConfigError
from frontier.predictors.select import version_order
from frontier.training.measurements import Measurements, Skipped
from frontier.training.sources import aiconfigurator, llmservingsim, profiler, vidur

GEMM_ROWS = {
    "op_name": ["gemm"] * 3,
    "kernel_source": ["torch", "torch", "deepgemm"],
    "gemm_dtype": ["bfloat16", "bfloat16", "fp8_block"],
    "m": [1, 128, 128],
    "n": [4096, 4096, 4096],
    "k": [8192, 8192, 8192],
    "latency": [0.03, 0.05, 0.2],
}
DECODE_ROWS = {
    "kernel_source": ["flow"] * 3,
    "batch_size": [2, 2, 4],
    "isl": [1, 1, 1],
    "num_heads": [32, 96, 8],
    "num_key_value_heads": [8, 1, 8],
    "head_dim": [128, 128, 512],
    "attn_dtype": ["bfloat16"] * 3,
    "kv_cache_dtype": ["fp8"] * 3,
    "step": [1023, 1023, 7],
    "latency": [0.02, 0.3, 0.01],
}
MOE_ROWS = {
    "kernel_source": ["fused"] * 4,
    "moe_dtype": ["w4a16_mxfp4"] * 4,
    "num_tokens": [1, 16, 16, 16],
    "hidden_size": [2048, 2048, 2048, 2688],
    "inter_size": [768, 768, 768, 1856],
    "topk": [8, 8, 8, 6],
    "num_experts": [128] * 4,
    "moe_tp_size": [1] * 4,
    "moe_ep_size": [1, 1, 4, 1],
    "distribution": ["balanced", "power_law_1.2", "balanced", "power_law_1.01"],
    "latency": [0.05, 0.1, 0.06, 0.1],
}


def write(path: Path, rows: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows).write_parquet(path)
    return path


def by_operator(found: list[Measurements]) -> dict[str, list[Measurements]]:
    grouped: dict[str, list[Measurements]] = {}
    for part in found:
        grouped.setdefault(part.identity.operator, []).append(part)
    return grouped


class TestAiconfigurator:
    def condensed(
        self, root: Path, table: str, rows: dict, backend: str = "vllm", system: str = "h100_sxm"
    ) -> Path:
        count = len(rows["latency"] if "latency" in rows else rows["node_num"])
        origin = {"src_backend": [backend] * count, "src_version": ["0.24.0"] * count}
        write(root / system / f"{table}.parquet", origin | rows)
        return root

    def package(self, root: Path, table: str, rows: dict, backend: str, version: str) -> Path:
        origin = {"framework": ["X"] * len(rows["latency"]), "version": [version] * len(rows["latency"])}
        write(root / "h100_sxm" / "family" / backend / version / f"{table}.parquet", origin | rows)
        return root

    def test_both_layouts_give_the_same_rows(self, tmp_path: Path) -> None:
        condensed = list(aiconfigurator.read(self.condensed(tmp_path / "a", "gemm_perf", GEMM_ROWS)))
        package = list(
            aiconfigurator.read(self.package(tmp_path / "b", "gemm_perf", GEMM_ROWS, "vllm", "0.24.0"))
        )
        assert [part.identity for part in condensed] == [part.identity for part in package]
        assert [part.key.tolist() for part in condensed] == [part.key.tolist() for part in package]
        assert condensed[0].seconds.tolist() == pytest.approx([30e-6, 50e-6])
        assert condensed[0].sources[0].licence == "Apache-2.0"
        assert len(condensed[0].sources[0].sha256) == 64

    def test_eager_block_products_of_vllm_are_events(self, tmp_path: Path) -> None:
        plain, block = aiconfigurator.read(self.condensed(tmp_path, "gemm_perf", GEMM_ROWS))
        assert (plain.identity.measurement, block.identity.measurement) == ("cuda_graph", "event")
        assert (block.identity.dtype, block.columns["weight_bytes"][0]) == ("fp8_block", 1)
        other = list(aiconfigurator.read(self.condensed(tmp_path / "s", "gemm_perf", GEMM_ROWS, "sglang")))
        assert other[1].identity.measurement == "cuda_graph"

    def test_the_newest_complete_version_is_read(self, tmp_path: Path) -> None:
        many = {name: values * 4 for name, values in GEMM_ROWS.items()}
        for version, rows in (
            ("1.2.0", many),
            ("1.3.0rc9", many),
            ("1.3.0rc20", many),
            ("1.3.0rc23", GEMM_ROWS),
        ):
            self.package(tmp_path, "gemm_perf", rows, "trtllm", version)
        skipped: list[Skipped] = []
        found = list(aiconfigurator.read(tmp_path, skipped=skipped))
        assert {part.identity.version for part in found} == {"1.3.0rc20"}
        assert [note.why for note in skipped] == ["not the newest version"] * 3
        every = aiconfigurator.read(tmp_path, every_version=True)
        assert {part.identity.version for part in every} == {"1.2.0", "1.3.0rc9", "1.3.0rc20", "1.3.0rc23"}

    def test_versions_sort_by_their_numbers(self) -> None:
        ordered = ["0.5.9", "0.5.10rc2", "0.5.10", "0.5.10.post1", "0.6"]
        assert sorted({*ordered}, key=version_order) == ordered

    def test_decode_counts_the_new_token_and_separates_kernels(self, tmp_path: Path) -> None:
        found = list(
            aiconfigurator.read(self.condensed(tmp_path, "generation_attention_perf", DECODE_ROWS, "trtllm"))
        )
        kernels = {part.identity.kernel: part for part in found}
        assert set(kernels) == {"flow", "flow.wide_groups", "flow.large_heads"}
        plain = kernels["flow"]
        assert plain.identity.facts == {"kv_cache_dtype": "fp8"}
        assert plain.columns["context"].tolist() == [1024]
        assert plain.columns["kv_bytes_per_token"].tolist() == [2 * 8 * 128]
        assert plain.marks["warm_l2"].tolist() == [True]
        assert plain.columns["window"].tolist() == [0]

    def test_prefills_of_one_token_are_no_prefills(self, tmp_path: Path) -> None:
        rows = DECODE_ROWS | {"isl": [1, 128, 256], "step": [0, 0, 0], "head_dim": [128] * 3}
        (found,) = aiconfigurator.read(self.condensed(tmp_path, "context_attention_perf", rows))
        assert found.columns["query"].tolist() == found.columns["context"].tolist() == [128, 256]
        assert found.dropped == {"prefill of a single token": 1}

    def test_mla_is_absorbed_in_generation_and_in_sglangs_context(self, tmp_path: Path) -> None:
        rows = {
            "kernel_source": ["default"],
            "mla_dtype": ["bfloat16"],
            "kv_cache_dtype": ["bfloat16"],
            "num_heads": [16],
            "batch_size": [1],
            "isl": [4096],
            "tp_size": [8],
            "step": [0],
            "latency": [1.0],
        }
        shapes = {}
        for backend in ("trtllm", "sglang"):
            (found,) = aiconfigurator.read(
                self.condensed(tmp_path / backend, "context_mla_perf", rows, backend)
            )
            shapes[backend] = [found.columns[name][0] for name in ("heads", "kv_heads", "qk_dim", "v_dim")]
        assert shapes == {"trtllm": [16, 16, 192, 128], "sglang": [16, 1, 576, 512]}
        decode = rows | {"isl": [1], "step": [4095]}
        (found,) = aiconfigurator.read(
            self.condensed(tmp_path / "g", "generation_mla_perf", decode, "trtllm")
        )
        assert found.columns["kv_bytes_per_token"].tolist() == [1152]
        assert found.identity.facts["includes"] == "rope, kv_write"

    @pytest.mark.parametrize("table", ["context_mla_perf", "generation_mla_perf"])
    @pytest.mark.parametrize(
        ("backend", "milliseconds", "measurement"),
        [("vllm", 0.1, "event"), ("vllm", 0.012, "cuda_graph"), ("sglang", 0.1, "cuda_graph")],
    )
    def test_mla_that_was_timed_with_its_launch_is_an_event(
        self, tmp_path: Path, table: str, backend: str, milliseconds: float, measurement: str
    ) -> None:
        rows = {
            "kernel_source": ["x"] * 2,
            "mla_dtype": ["bfloat16"] * 2,
            "kv_cache_dtype": ["bfloat16"] * 2,
            "num_heads": [16] * 2,
            "batch_size": [1] * 2,
            "isl": [64, 64] if table == "context_mla_perf" else [1, 1],
            "tp_size": [8] * 2,
            "step": [0, 64],
            "latency": [milliseconds, 1.0],
        }
        (found,) = aiconfigurator.read(self.condensed(tmp_path, table, rows, backend))
        assert found.identity.measurement == measurement
        assert any("include the launch" in text for text in found.warnings) is (measurement == "event")

    def test_experts(self, tmp_path: Path) -> None:
        (found,) = aiconfigurator.read(self.condensed(tmp_path, "moe_perf", MOE_ROWS))
        assert found.columns["imbalance"].tolist() == [-1, 1.2, 1.01]
        assert found.columns["gated"].tolist() == [1, 1, 0]
        assert found.columns["weight_bytes"].tolist() == [0.53125] * 3
        assert found.identity.facts == {"scheme": "w4a16_mxfp4"}
        assert list(found.dropped.values()) == [1]

    def test_dynamic_quantisation_is_put_together_again(self, tmp_path: Path) -> None:
        rows = {"kernel_source": ["q"] * 2, "m": [1, 8], "k": [64, 64], "quant_dtype": ["fp8"] * 2}
        self.condensed(tmp_path, "scale_matrix_perf", rows | {"latency": [0.002, 0.003]})
        self.condensed(tmp_path, "computescale_perf", rows | {"latency": [0.0, 0.001]})
        static, dynamic = aiconfigurator.read(tmp_path)
        assert static.seconds.tolist() == pytest.approx([2e-6, 3e-6])
        assert dynamic.seconds.tolist() == pytest.approx([4e-6])
        assert dynamic.columns["bytes_per_row"].tolist() == [192]
        assert dynamic.dropped == {"dynamic minus static was cut off at 0": 1}

    def test_messages_are_counted_in_elements(self, tmp_path: Path) -> None:
        rows = {
            "op_name": ["alltoall", "all_reduce"],
            "nccl_dtype": ["half", "int8"],
            "num_gpus": [8, 2],
            "message_size": [1024, 1024],
            "latency": [0.02, 0.01],
        }
        found = by_operator(list(aiconfigurator.read(self.condensed(tmp_path, "nccl_perf", rows, "nccl"))))
        assert found["all_to_all"][0].columns["bytes"].tolist() == [2048]
        assert found["all_reduce"][0].columns["bytes"].tolist() == [1024]

    def test_eager_and_graph_all_reduces_are_apart(self, tmp_path: Path) -> None:
        rows = {
            "kernel_source": ["vLLM_custom_eager", "vLLM_custom_graph"],
            "allreduce_dtype": ["bfloat16"] * 2,
            "num_gpus": [2, 2],
            "message_size": [128, 128],
            "latency": [0.02, 0.005],
        }
        found = list(aiconfigurator.read(self.condensed(tmp_path, "custom_allreduce_perf", rows)))
        assert [part.identity.measurement for part in found] == ["event", "cuda_graph"]
        assert found[0].columns["bytes"].tolist() == [256]

    def test_deepep_is_in_microseconds_and_eight_nodes_go(self, tmp_path: Path) -> None:
        rows = {
            "node_num": [1, 4, 8],
            "hidden_size": [7168] * 3,
            "num_token": [128] * 3,
            "num_topk": [8] * 3,
            "num_experts": [256] * 3,
            "dispatch_sms": [20] * 3,
            "dispatch_transmit_us": [50.0, 100.0, 900.0],
            "dispatch_notify_us": [5.0, 10.0, 20.0],
            "combine_sms": [20] * 3,
            "combine_transmit_us": [60.0, 110.0, 900.0],
            "combine_notify_us": [1.0, 1.0, 1.0],
        }
        root = self.condensed(tmp_path, "wideep_deepep_normal_perf", rows, "sglang")
        found = by_operator(list(aiconfigurator.read(root)))
        assert found["moe_dispatch"][0].seconds.tolist() == pytest.approx([55e-6, 110e-6])
        assert found["moe_dispatch"][0].columns["ep"].tolist() == [8, 32]
        assert found["moe_combine"][0].columns["bytes_per_element"].tolist() == [2, 2]
        assert list(found["moe_combine"][0].dropped.values()) == [1]

    def test_module_tables_are_noted_with_a_reason(self, tmp_path: Path) -> None:
        self.condensed(tmp_path, "mla_context_module_perf", {"latency": [1.0, 2.0]})
        skipped: list[Skipped] = []
        assert list(aiconfigurator.read(tmp_path, skipped=skipped)) == []
        assert [(note.file, note.rows) for note in skipped] == [
            ("h100_sxm/mla_context_module_perf.parquet", 2)
        ]

    def test_without_a_root_the_installed_package_is_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "aiconfigurator_core", None)
        with pytest.raises(ConfigError, match="pip install aiconfigurator-core"):
            list(aiconfigurator.read())
        monkeypatch.delitem(sys.modules, "aiconfigurator_core")
        self.package(
            tmp_path / "aiconfigurator_core" / "systems" / "data", "gemm_perf", GEMM_ROWS, "vllm", "0.24.0"
        )
        (tmp_path / "aiconfigurator_core" / "__init__.py").touch()
        monkeypatch.syspath_prepend(tmp_path)
        assert [len(part) for part in aiconfigurator.read()] == [2, 1]
        monkeypatch.delitem(sys.modules, "aiconfigurator_core", raising=False)

    def test_names_that_are_not_known_are_refused(self, tmp_path: Path) -> None:
        root = self.condensed(tmp_path, "gemm_perf", GEMM_ROWS)
        with pytest.raises(ConfigError, match=r"gpus.*h1000"):
            list(aiconfigurator.read(root, ["h1000"]))
        with pytest.raises(ConfigError, match="holds no tables"):
            list(aiconfigurator.read(tmp_path / "nothing"))
        assert list(aiconfigurator.read(root, ["h200"])) == []


LINEAR_ROWS = {
    "n_head": [64] * 2,
    "n_kv_head": [8] * 2,
    "n_embd": [8192] * 2,
    "n_expanded_embd": [28672] * 2,
    "vocab_size": [32000] * 2,
    "use_gated_mlp": [True] * 2,
    "num_tokens": [16, 16],
    "num_tensor_parallel_workers": [1, 8],
}


class TestVidur:
    times = ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj", "mlp_act", "emb", "add")

    def test_both_layouts_give_the_same_rows(self, tmp_path: Path) -> None:
        condensed = LINEAR_ROWS | {f"{name}_ms": [0.1, 0.05] for name in self.times}
        write(tmp_path / "a" / "compute__a100__meta-llama__Llama-2-70b-hf__mlp.parquet", condensed)
        original = LINEAR_ROWS | {f"time_stats.{name}.median": [0.1, 0.05] for name in self.times}
        original |= {f"time_stats.{name}.std": [0.0, 0.0] for name in self.times}
        path = tmp_path / "b" / "compute" / "a100" / "meta-llama" / "Llama-2-70b-hf" / "mlp.csv"
        path.parent.mkdir(parents=True)
        pl.DataFrame(original).write_csv(path)
        one, two = list(vidur.read(tmp_path / "a")), list(vidur.read(tmp_path / "b"))
        assert [part.identity for part in one] == [part.identity for part in two]
        assert [part.key.tolist() for part in one] == [part.key.tolist() for part in two]

    def test_products_have_the_shapes_of_one_rank(self, tmp_path: Path) -> None:
        rows = LINEAR_ROWS | {f"{name}_ms": [0.1, 0.05] for name in self.times}
        write(tmp_path / "compute__a100__m__mlp.parquet", rows)
        found = by_operator(list(vidur.read(tmp_path)))
        (gemm,) = found["gemm"]
        assert gemm.identity.measurement == "kernel"
        assert sorted(zip(gemm.columns["k"], gemm.columns["n"], strict=True)) == [
            (1024, 8192),
            (3584, 8192),
            (8192, 1280),
            (8192, 7168),
            (8192, 8192),
            (8192, 10240),
            (8192, 57344),
            (28672, 8192),
        ]
        assert found["activation"][0].columns["bytes_per_row"].tolist() == [6 * 28672, 6 * 28672 / 8]
        assert found["embedding"][0].dropped == {"embedding split over ranks": 1}

    def attention(self, batches: list[int], decode_ms: list[float], measurement: str | None) -> dict:
        count = len(batches)
        rows = {
            "n_embd": [4096] * count,
            "n_q_head": [32] * count,
            "n_kv_head": [8] * count,
            "num_tensor_parallel_workers": [2] * count,
            "batch_size": batches,
            "prefill_chunk_size": [0] * (count - 1) + [64],
            "kv_cache_size": [1000] * count,
            "is_prefill": [False] * (count - 1) + [True],
            "attn_decode_ms": [*decode_ms, 0.0],
            "attn_prefill_ms": [0.0] * (count - 1) + [0.05],
        }
        return rows | ({"measurement_type": [measurement] * count} if measurement else {})

    def test_attention(self, tmp_path: Path) -> None:
        rows = self.attention([1, 4, 1], [0.01, 0.02], None)
        write(tmp_path / "compute__a800__m__attention.parquet", rows)
        found = by_operator(list(vidur.read(tmp_path)))
        decode, prefill = found["decode_attention"][0], found["prefill_attention"][0]
        assert decode.columns["context"].tolist() == [1001, 1001]
        assert decode.columns["kv_bytes_per_token"].tolist() == [4 * 128 * 4] * 2
        assert (prefill.columns["query"].tolist(), prefill.columns["context"].tolist()) == ([64], [1064])

    def test_batches_of_frontiers_profiler_share_a_cache(self, tmp_path: Path) -> None:
        rows = self.attention([1, 4, 1], [0.01, 0.02], "CUDA_EVENT")
        write(tmp_path / "compute__h800__m__attention.parquet", rows)
        found = by_operator(list(vidur.read(tmp_path)))["decode_attention"][0]
        assert (len(found), found.identity.measurement) == (1, "event")
        kept = by_operator(list(vidur.read(tmp_path, keep_suspect=True)))["decode_attention"][0]
        assert len(kept) == 2

    def test_copies_under_another_name_are_left_out(self, tmp_path: Path) -> None:
        rows = {
            "all_reduce_ms": [0.01, 0.02],
            "num_workers": [2, 16],
            "size": [2048, 4096],
            "collective": ["all_reduce"] * 2,
            "devices_per_node": [2, 8],
        }
        for machine in ("a100_dgx", "a800_dgx"):
            write(tmp_path / f"network__{machine}__all_reduce.parquet", rows)
        skipped: list[Skipped] = []
        (found,) = vidur.read(tmp_path, skipped=skipped)
        assert found.identity.gpu == "a100-80gb"
        assert found.columns["nodes"].tolist() == [1, 2]
        assert [note.why for note in skipped] == ["a copy of network__a100_dgx__all_reduce"]


class TestLlmServingSim:
    stem = "RTX4090__meta-llama__Llama-3.1-8B__bf16__tp1__"

    def test_attention_is_split_by_what_is_in_the_batch(self, tmp_path: Path) -> None:
        rows = {
            "prefill_chunk": [0, 64, 64],
            "kv_prefill": [0, 128, 128],
            "n_decode": [4, 0, 4],
            "kv_decode": [99, 0, 99],
            "time_us": [10.0, 20.0, 30.0],
        }
        write(tmp_path / f"{self.stem}attention.parquet", rows)
        found = by_operator(list(llmservingsim.read(tmp_path)))
        assert found["decode_attention"][0].columns["context"].tolist() == [100]
        assert found["prefill_attention"][0].columns["context"].tolist() == [192]
        mixed = found["mixed_attention"][0]
        assert mixed.columns["count"].tolist() == [1, 4]
        assert mixed.columns["query"].tolist() == [64, 1]
        assert mixed.columns["context"].tolist() == [192, 100]
        assert mixed.seconds.tolist() == pytest.approx([30e-6])

    def test_a_skewed_batch_is_three_rows_of_a_third_of_the_time(self, tmp_path: Path) -> None:
        rows = {
            "regime": ["pure"],
            "n": [4],
            "nb": [1],
            "pc": [0],
            "kp": [0],
            "kvs": [512],
            "kv_big": [2048],
            "kv_mean": [896],
            "t_mean_us": [75.0],
            "t_max_us": [120.0],
            "t_skew_us": [78.0],
        }
        write(tmp_path / f"{self.stem}skew.parquet", rows)
        (found,) = llmservingsim.read(tmp_path)
        assert found.identity.operator == "decode_skew"
        assert found.marks["skew_role"].tolist() == [0, 1, 2]
        assert len(set(found.marks["pair"])) == 1
        assert found.seconds.tolist() == pytest.approx([25e-6, 40e-6, 26e-6])
        assert found.columns["offsets"].tolist() == [0, 1, 2, 4]
        assert found.columns["count"].tolist() == [4, 4, 1, 3]
        assert found.columns["context"].tolist() == [897, 2049, 2049, 513]

    def test_the_repositorys_layout_and_copied_rows(self, tmp_path: Path) -> None:
        for tp in (1, 2):
            path = tmp_path / "RTXPRO6000" / "Qwen" / "Qwen3-32B" / "bf16" / f"tp{tp}" / "dense.csv"
            path.parent.mkdir(parents=True)
            rows = {"layer": ["final_layernorm", "down_proj"], "tokens": [8, 8], "time_us": [2.5, 40.0 / tp]}
            pl.DataFrame(rows).write_csv(path)
        found = by_operator(list(llmservingsim.read(tmp_path)))
        assert sorted(found["gemm"][0].columns["k"]) == [12800, 25600]
        assert found["rms_norm"][0].dropped == {"copied from the folder of another degree": 1}

    def test_the_first_profiler_is_left_alone_with_a_reason(self, tmp_path: Path) -> None:
        write(tmp_path / "v0__H100__meta-llama__Llama-3.1-70B__tp4__attention.parquet", {"a": [1, 2]})
        write(tmp_path / f"{self.stem}dense.parquet", {"layer": ["o_proj"], "tokens": [1], "time_us": [38.0]})
        skipped: list[Skipped] = []
        assert len(list(llmservingsim.read(tmp_path, skipped=skipped))) == 1
        assert [(note.rows, note.why) for note in skipped] == [(2, llmservingsim.V0)]


MANIFEST = {
    "format": "frontier-profile",
    "format_version": 1,
    "gpu": "h200",
    "backend": "vllm",
    "version": "0.24.0",
    "measurement": "cuda_graph",
    "versions": {"torch": "2.9", "cuda": "13.0"},
    "date": "2026-11-20",
    "licence": "Apache-2.0",
}


class TestProfiler:
    def run(self, root: Path, manifest: dict | None = None) -> Path:
        root.mkdir(parents=True, exist_ok=True)
        files = {
            name: {"operator": name.partition(".")[0], "trains": True}
            for name in ("decode_attention.parquet", "all_reduce.parquet")
        }
        content = {"files": files, **(MANIFEST if manifest is None else manifest)}
        (root / "manifest.json").write_text(json.dumps(content))
        return root

    def listed(self, *names: str, **facts: object) -> dict:
        """Return a manifest that lists these files."""
        files = {name: {"operator": name.partition(".")[0], "trains": True, **facts} for name in names}
        return MANIFEST | {"files": files}

    def test_ragged_batches_are_list_columns(self, tmp_path: Path) -> None:
        rows = {
            "heads": [32, 32],
            "kv_heads": [8, 8],
            "qk_dim": [128, 128],
            "v_dim": [128, 128],
            "kv_bytes_per_token": [4096, 4096],
            "activation_bytes": [2, 2],
            "window": [0, 0],
            "count": [[4], [1, 3]],
            "query": [[1], [1, 1]],
            "context": [[1024], [9000, 100]],
            "seconds": [1e-5, 2e-5],
            "seconds_spread": [1e-7, 0.0],
            "dtype": ["bf16"] * 2,
            "kernel": ["fa3"] * 2,
            "kv_cache_dtype": ["bf16"] * 2,
        }
        one = self.listed("decode_attention.parquet")
        write(self.run(tmp_path / "one", one) / "decode_attention.parquet", rows)
        (found,) = profiler.read(tmp_path)
        assert found.columns["offsets"].tolist() == [0, 1, 3]
        assert found.columns["context"].tolist() == [1024, 9000, 100]
        assert found.marks["seconds_spread"].tolist() == [1e-7, 0.0]
        assert found.marks["warm_l2"].tolist() == [True, True]
        assert found.model.tolist() == ["heads=32 kv_heads=8 qk_dim=128 v_dim=128"] * 2
        assert found.identity.facts == {"kv_cache_dtype": "bf16"}

    def table(self) -> dict:
        return {
            "bytes": [1024, 2048],
            "ranks": [2, 2],
            "nodes": [1, 1],
            "seconds": [1e-5, 1e-5],
            "seconds_spread": [0.0, 0.0],
            "dtype": ["bf16"] * 2,
            "kernel": ["custom", "nccl"],
        }

    def test_csv_and_one_identity_for_each_kernel(self, tmp_path: Path) -> None:
        pl.DataFrame(self.table()).write_csv(
            self.run(tmp_path, self.listed("all_reduce.csv")) / "all_reduce.csv"
        )
        found = list(profiler.read(tmp_path, ["h200"]))
        assert [part.identity.kernel for part in found] == ["custom", "nccl"]
        assert found[0].sources[0].version == "2026-11-20"
        assert list(profiler.read(tmp_path, ["h100"])) == []

    @pytest.mark.parametrize(
        "change",
        [
            {"gpu": "h9000"},
            {"licence": ""},
            {"format_version": 2},
            {"format": "frontier-measurements"},
            {"versions": {"cuda": 13}},
            {"files": ["all_reduce.parquet"]},
            {"files": {"../all_reduce.parquet": {"operator": "all_reduce", "trains": True}}},
        ],
    )
    def test_a_manifest_that_is_wrong_is_refused_by_name(self, tmp_path: Path, change: dict) -> None:
        write(self.run(tmp_path, MANIFEST | change) / "all_reduce.parquet", self.table())
        with pytest.raises(ConfigError, match=f"manifest.{next(iter(change))}"):
            list(profiler.read(tmp_path))

    def test_a_table_that_is_wrong_is_refused(self, tmp_path: Path) -> None:
        table = self.table()
        del table["seconds_spread"]
        write(self.run(tmp_path, self.listed("all_reduce.parquet")) / "all_reduce.parquet", table)
        with pytest.raises(ConfigError, match="seconds_spread"):
            list(profiler.read(tmp_path))
        self.run(tmp_path, self.listed("all_reduce.parquet", operator="conv"))
        with pytest.raises(ConfigError, match="'conv', no operator"):
            list(profiler.read(tmp_path))
        self.run(tmp_path, self.listed("all_reduce.parquet", sha256="0" * 64))
        with pytest.raises(ConfigError, match="the manifest says 0000"):
            list(profiler.read(tmp_path))
        self.run(tmp_path, self.listed("all_gather.parquet"))
        with pytest.raises(ConfigError, match="is absent"):
            list(profiler.read(tmp_path))

    def test_only_tables_that_the_manifest_gives_for_training_are_read(self, tmp_path: Path) -> None:
        manifest = self.listed("all_reduce.parquet")
        manifest["files"]["copy.parquet"] = {"operator": "copy", "trains": False}
        write(self.run(tmp_path, manifest) / "all_reduce.parquet", self.table())
        for other in ("copy", "skipped", "gemm"):
            (tmp_path / f"{other}.parquet").write_bytes(b"no table of the trainer")
        assert {part.identity.operator for part in profiler.read(tmp_path)} == {"all_reduce"}

    def test_a_folder_without_runs_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"manifest\.json"):
            list(profiler.read(tmp_path))


def test_every_reader_yields_times_in_seconds(tmp_path: Path) -> None:
    rows = {"layer": ["o_proj"], "tokens": [2048], "time_us": [419.0]}
    write(tmp_path / "RTX4090__meta-llama__Llama-3.1-8B__bf16__tp1__dense.parquet", rows)
    (found,) = llmservingsim.read(tmp_path)
    flops = 2 * np.prod([found.columns[name] for name in ("rows", "k", "n")])
    assert flops / found.seconds[0] == pytest.approx(164e12, rel=0.01)
