"""Each table of aiconfigurator in canonical columns, its inputs understood as its collectors mean them.

Facts were read from the collectors (ai-dynamo/aiconfigurator at 095f58a5) and checked against the values:

- `latency` is milliseconds, in `moe_a2a_perf` microseconds; `message_size` counts elements, and for
  nccl-tests it is the larger of the two buffers (what is received by all_gather, sent by reduce_scatter).
- GEMM of 8 and 4 bits is the engine's linear layer and includes quantising the activations. vLLM's
  `fp8_block` products are timed eagerly (`use_cuda_graph=False`; none is below 55 us on an H100): `event`.
- `computescale_perf` is not a time: it is dynamic minus static quantisation, cut off at 0. With
  `scale_matrix_perf`, the static one, it gives back the dynamic one, except where it was cut off.
- MLA: `num_heads` are those of one rank (`tp_size` only says which model they came from: num_heads * tp_size
  is 64 or 128). Generation is absorbed: one latent head of 512 + 64 values, read once for keys and values;
  TensorRT-LLM's rows include the rotary embedding and the write of the new token. Context is not absorbed
  (keys 192, values 128 wide, one of each per head), except SGLang's, which is, apart from `trtllm_mla`: on
  an H100 it takes 3.3 times as long (128 heads, 16k tokens: 62 against 18.6 ms; 1088 / 320 = 3.4).
- Power-law rows of fused MoE are the mean over five unseeded draws of the loads of each expert: E weights
  from the density x^-alpha on [1, 0.8 T] ([0.01, 2] where T * top_k <= E) by inverse CDF, scaled to
  T * top_k, rounded half to even, at most T each; what is over or missing is handed to the least loaded
  (taken from the most loaded) expert of each rank in turn; then the most loaded rank becomes rank 0, whose
  experts are the ones computed where `moe_ep_size` > 1, on all T tokens of the group. Balanced: token i
  takes experts i + j * ceil(E / top_k), modulo E.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl

from frontier.training import traps
from frontier.training.identity import Fact, Identity
from frontier.training.measurements import Measurements
from frontier.training.sources import aiconfigurator_exchange as exchange
from frontier.training.sources.aiconfigurator_rows import (
    MS,
    SCHEMES,
    Table,
    finished,
    identity_of,
    site_names,
)

_CACHE_BYTES = {"bfloat16": 2.0, "float16": 2.0, "fp8": 1.0}
# Experts without a gate (Nemotron-H, squared ReLU), by hidden, inter, top_k, experts: TensorRT-LLM's rows say
# so by their kernel, those of the other backends do not.
_NOT_GATED = {
    (1024, 2688, 22, 512),
    (2048, 5120, 22, 512),
    (2688, 1856, 6, 128),
    (4096, 2688, 22, 512),
    (8192, 5120, 22, 512),
}
_MODULE = "a whole module, products and attention in one time"
NOT_USED = {
    "dsa_context_module_perf": _MODULE,
    "dsa_generation_module_perf": _MODULE,
    "dsv4_csa_context_module_perf": _MODULE,
    "dsv4_csa_generation_module_perf": _MODULE,
    "dsv4_csa_topk_calib_perf": _MODULE,
    "dsv4_hca_attn_module_perf": _MODULE,
    "dsv4_hca_context_module_perf": _MODULE,
    "dsv4_hca_generation_module_perf": _MODULE,
    "dsv4_megamoe_module_perf": _MODULE,
    "dsv4_paged_mqa_logits_module_perf": _MODULE,
    "encoder_attention_perf": "attention without a causal mask, which no operator of the simulator has",
    "gdn_perf": "linear attention, which no operator of the simulator has",
    "glm5_dsa_attn_module_perf": _MODULE,
    "glm5_mqa_logits_module_perf": _MODULE,
    "glm5_topk_module_perf": _MODULE,
    "kda_perf": "linear attention, which no operator of the simulator has",
    "mamba2_perf": "state-space layers, which no operator of the simulator has",
    "mhc_module_perf": _MODULE,
    "mla_context_module_perf": _MODULE,
    "mla_generation_module_perf": _MODULE,
    "msa_context_module_perf": _MODULE,
    "msa_generation_module_perf": _MODULE,
    "oneccl_perf": "Intel GPUs, of which there is no preset",
    "wideep_context_mla_perf": _MODULE,
    "wideep_context_mlp_perf": "18 rows of one shape, a whole feed-forward block",
    "wideep_context_moe_perf": "tokens are those after an exchange that is not described",
    "wideep_generation_mla_perf": _MODULE,
    "wideep_generation_mlp_perf": "18 rows of one shape, a whole feed-forward block",
    "wideep_generation_moe_perf": "tokens are those after an exchange that is not described",
    "wideep_moe_perf": "copies of experts (slots) have no canonical column",
}


def gemm(table: Table) -> Iterator[Measurements]:
    """Yield dense products, one identity per scheme and kernel."""
    for (name, kernel), rows in table.frame.group_by("gemm_dtype", "kernel_source", maintain_order=True):
        scheme = SCHEMES[str(name)]
        eager = table.backend == "vllm" and name == "fp8_block"
        identity = identity_of(
            table,
            str(kernel),
            "gemm",
            scheme.dtype,
            {"scheme": str(name)} if name not in ("bfloat16", scheme.dtype) else {},
            measurement="event" if eager else "cuda_graph",
        )
        columns = {
            "rows": rows["m"],
            "k": rows["k"],
            "n": rows["n"],
            "batch": 1,
            "weight_bytes": scheme.weight_bytes,
            "activation_bytes": scheme.activation_bytes,
        }
        yield finished(table, identity, columns, rows["latency"] * MS, site_names("k{}n{}", rows, "k", "n"))


def mla_bmm(table: Table) -> Iterator[Measurements]:
    """Yield MLA's products of each head with its share of the up-projection, as batched products."""
    for (name, kernel), rows in table.frame.group_by("bmm_dtype", "kernel_source", maintain_order=True):
        # Blackwell's engines dequantise these weights when they load them.
        scheme = SCHEMES["bfloat16" if str(kernel).endswith("dequant_bf16") else str(name)]
        before = rows["op_name"] == "mla_gen_pre"
        columns = {
            "rows": rows["num_tokens"],
            "k": np.where(before, 128, 512),
            "n": np.where(before, 512, 128),
            "batch": rows["num_heads"],
            "weight_bytes": scheme.weight_bytes,
            "activation_bytes": scheme.activation_bytes,
        }
        identity = identity_of(table, str(kernel), "gemm", scheme.dtype, {"batched": "mla heads"})
        site = site_names("{}h{}", rows, "op_name", "num_heads")
        yield finished(table, identity, columns, rows["latency"] * MS, site)


def attention(table: Table, *, decode: bool) -> Iterator[Measurements]:
    """Yield attention over uniform batches; large heads and wide groups are identities of their own."""
    frame = table.frame
    if "window_size" not in frame.columns:
        frame = frame.with_columns(window_size=pl.lit(0))
    # Older collections know no windows: no column, or no value where they were put together with newer ones.
    frame = frame.with_columns(pl.col("window_size").fill_null(0))
    operator = "decode_attention" if decode else "prefill_attention"
    heads, groups = pl.col("num_heads"), pl.col("num_key_value_heads")
    frame = frame.with_columns(
        large=pl.col("head_dim") > 256,
        wide=(heads >= 48 * groups) & (pl.lit(decode and table.backend == "trtllm")),
    )
    keys = ("attn_dtype", "kv_cache_dtype", "kernel_source", "large", "wide")
    for (dtype, cache, kernel, *_), rows in frame.group_by(*keys, maintain_order=True):
        scheme = SCHEMES[str(dtype)]
        first = rows.row(0, named=True)
        identity = identity_of(table, str(kernel), operator, scheme.dtype, {"kv_cache_dtype": _cache(cache)})
        identity = traps.separate_large_heads(identity, first["head_dim"])
        identity = traps.separate_wide_groups(identity, first["num_heads"], first["num_key_value_heads"])
        width = _CACHE_BYTES[str(cache)]
        columns = {
            "heads": rows["num_heads"],
            "kv_heads": rows["num_key_value_heads"],
            "qk_dim": rows["head_dim"],
            "v_dim": rows["head_dim"],
            "kv_bytes_per_token": 2 * rows["num_key_value_heads"] * rows["head_dim"] * width,
            "activation_bytes": scheme.activation_bytes,
            "window": rows["window_size"],
        }
        yield from _attention_rows(table, identity, columns, rows)


def mla(table: Table, *, decode: bool) -> Iterator[Measurements]:
    """Yield MLA's attention kernels: absorbed in generation, not absorbed in context except SGLang's."""
    operator = "decode_attention" if decode else "prefill_attention"
    for (cache, kernel), rows in table.frame.group_by("kv_cache_dtype", "kernel_source", maintain_order=True):
        absorbed = decode or (table.backend == "sglang" and kernel != "trtllm_mla")
        facts: dict[str, Fact] = {
            "kv_cache_dtype": _cache(cache),
            "mla": "absorbed" if absorbed else "not absorbed",
        }
        if decode and table.backend == "trtllm":
            facts["includes"] = "rope, kv_write"
        identity = identity_of(table, str(kernel), operator, "bf16", facts)
        # Not absorbed, keys and values were just projected, in 16 bits, and are no cache.
        wide = 576 * _CACHE_BYTES[str(cache)] if absorbed else rows["num_heads"] * (192 + 128) * 2.0
        columns = {
            "heads": rows["num_heads"],
            "kv_heads": 1 if absorbed else rows["num_heads"],
            "qk_dim": 576 if absorbed else 192,
            "v_dim": 512 if absorbed else 128,
            "kv_bytes_per_token": wide,
            "activation_bytes": 2,
            "window": 0,
        }
        for found in _attention_rows(table, identity, columns, rows):
            yield traps.relabel_launch_bound_mla(found)


def fused_moe(table: Table) -> Iterator[Measurements]:
    """Yield the fused operator of the routed experts."""
    for (name, kernel), rows in table.frame.group_by("moe_dtype", "kernel_source", maintain_order=True):
        scheme = SCHEMES[str(name)]
        shape = ("hidden_size", "inter_size", "topk", "num_experts")
        gated = [row not in _NOT_GATED for row in rows.select(shape).iter_rows()]
        law = rows["distribution"].str.strip_prefix("power_law_")
        columns = {
            "rows": rows["num_tokens"],
            "hidden": rows["hidden_size"],
            "inter": rows["inter_size"],
            "experts": rows["num_experts"],
            "top_k": rows["topk"],
            "moe_tp": rows["moe_tp_size"],
            "moe_ep": rows["moe_ep_size"],
            "weight_bytes": scheme.weight_bytes,
            "activation_bytes": scheme.activation_bytes,
            "gated": np.where("nongated" in str(kernel), 0, gated),
            "imbalance": law.replace({"balanced": "-1"}).cast(pl.Float64),
        }
        facts = {"scheme": str(name)} if name not in ("bfloat16", scheme.dtype) else {}
        identity = identity_of(table, str(kernel), "fused_moe", scheme.dtype, facts)
        site = site_names("h{}i{}k{}e{}", rows, *shape)
        found = finished(table, identity, columns, rows["latency"] * MS, site)
        found = traps.drop_foreign_expert_parallel(found)
        if len(found):
            yield traps.drop_autotuner_misfires(found)


def quant_fp8(table: Table) -> Iterator[Measurements]:
    """Yield fp8 quantisation of activations: static, and dynamic as static plus their difference."""
    if table.other is None:
        return
    both = table.frame.join(table.other, on=["m", "k"], suffix="_static", validate="1:1")
    clipped = both["latency"] <= 0
    dynamic = both.filter(~clipped)
    for rows, kernel, seconds, dropped in (
        (both, "static", both["latency_static"], 0),
        (dynamic, "dynamic", dynamic["latency"] + dynamic["latency_static"], int(clipped.sum())),
    ):
        identity = identity_of(table, f"{kernel}_quant", "quant_fp8", "fp8", {})
        columns = {"rows": rows["m"], "bytes_per_row": 3.0 * rows["k"]}
        reason = {"dynamic minus static was cut off at 0": dropped} if dropped else {}
        yield finished(table, identity, columns, seconds * MS, site_names("k{}", rows, "k"), dropped=reason)


def _attention_rows(
    table: Table, identity: Identity, columns: Mapping[str, Any], rows: pl.DataFrame
) -> Iterator[Measurements]:
    prefill = identity.operator == "prefill_attention"
    # One new token is a decode, by the meaning of the columns; prefills of one token are no use besides.
    kept = rows["isl"].to_numpy() > 1 if prefill else np.ones(len(rows), dtype=bool)
    if not kept.any():
        return
    ragged = {
        "offsets": np.arange(int(kept.sum()) + 1),
        "count": rows["batch_size"].to_numpy()[kept],
        "query": rows["isl"].to_numpy()[kept],
        "context": (rows["isl"] + rows["step"]).to_numpy()[kept],
    }
    scalar = {
        name: np.broadcast_to(np.asarray(values, dtype=np.float64), len(rows))[kept]
        for name, values in columns.items()
    }
    site = np.array(
        [
            f"h{int(h)}kv{int(kv)}d{int(qk)}v{int(v)}"
            for h, kv, qk, v in zip(
                *(scalar[n] for n in ("heads", "kv_heads", "qk_dim", "v_dim")), strict=True
            )
        ],
        dtype=object,
    )
    dropped = {"prefill of a single token": int((~kept).sum())} if not kept.all() else {}
    seconds = rows["latency"].to_numpy()[kept] * MS
    found = finished(table, identity, {**scalar, **ragged}, seconds, site, dropped=dropped)
    yield found if prefill else traps.mark_warm_l2(found)


def _cache(dtype: object) -> str:
    return SCHEMES[str(dtype)].dtype


TABLES: dict[str, Callable[[Table], Iterator[Measurements]]] = {
    "gemm_perf": gemm,
    "mla_bmm_perf": mla_bmm,
    "context_attention_perf": lambda table: attention(table, decode=False),
    "generation_attention_perf": lambda table: attention(table, decode=True),
    "context_mla_perf": lambda table: mla(table, decode=False),
    "generation_mla_perf": lambda table: mla(table, decode=True),
    "moe_perf": fused_moe,
    "computescale_perf": quant_fp8,
    "nccl_perf": exchange.nccl,
    "custom_allreduce_perf": exchange.custom_allreduce,
    "wideep_deepep_normal_perf": lambda table: exchange.deepep(table, normal=True),
    "wideep_deepep_ll_perf": lambda table: exchange.deepep(table, normal=False),
    "moe_a2a_perf": exchange.moe_a2a,
    "trtllm_alltoall_perf": exchange.trtllm_alltoall,
}
