"""The products, elementwise kernels and experts in Vidur's and Frontier's profiles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from frontier.training import traps
from frontier.training.identity import Identity
from frontier.training.measurements import Measurements, Source, concat

_WITH_NORMS = "projection timed together with the norms of queries and keys"


class Profile(NamedTuple):
    """One file: what was profiled, how, and its rows with times as `<operator>_ms`."""

    gpu: str
    backend: str
    version: str
    measurement: str
    model: str
    frame: pl.DataFrame
    source: Source

    def identity(self, operator: str, dtype: str, kernel: str) -> Identity:
        """Return the identity of one kernel of this file."""
        return Identity(self.gpu, self.backend, self.version, kernel, self.measurement, operator, dtype)

    def finished(
        self,
        identity: Identity,
        columns: Mapping[str, Any],
        milliseconds: pl.Series,
        model: Any,
        dropped: Mapping[str, int] | None = None,
    ) -> Measurements:
        """Return measurements of this file; zero counts of dropped rows are left out."""
        counted = {why: rows for why, rows in (dropped or {}).items() if rows}
        seconds = milliseconds.cast(pl.Float64) * 1e-3
        return Measurements.of(identity, columns, seconds, model, dropped=counted, sources=[self.source])


def linear(profile: Profile) -> Iterator[Measurements]:
    """Yield the products of the linear layers as one identity, then each kind of elementwise kernel."""
    shape = profile.frame.row(0, named=True)
    signature = shape.get("quant_signature") or "none"
    quantised = "method=fp8" in signature
    dtype, weight = ("fp8", 1.0) if quantised else ("bf16", 2.0)
    identity = profile.identity("gemm", dtype, "fp8_linear" if quantised else "torch_linear")
    parts = []
    for column, k, n, split in _products(profile.frame, shape):
        rows = _timed(profile.frame, column)
        if not len(rows):
            continue
        tp = rows["num_tensor_parallel_workers"]
        depth, width = (k / tp, n + 0 * tp) if split == "k" else (k + 0 * tp, n / tp)
        if split == "kv":
            # Key and value heads are copied where there are more ranks than heads.
            heads, kv_heads, size = shape["n_head"], shape["n_kv_head"], k // shape["n_head"]
            depth, width = k + 0 * tp, (heads / tp + 2 * (kv_heads / tp).clip(1)) * size
        columns = {
            "rows": rows["num_tokens"],
            "k": depth,
            "n": width,
            "batch": 1,
            "weight_bytes": weight,
            "activation_bytes": weight,
        }
        # What is held out together is a whole model.
        parts.append(profile.finished(identity, columns, rows[column], profile.model))
    if parts:
        whole = concat(parts)
        if shape.get("use_qk_norm"):
            lost = len(_timed(profile.frame, "attn_pre_proj_ms"))
            whole = replace(whole, dropped={**whole.dropped, _WITH_NORMS: lost})
        yield whole
    yield from _elementwise(profile, shape)


def _products(frame: pl.DataFrame, shape: Mapping[str, Any]) -> list[tuple[str, int, int, str]]:
    """Return (column, k, n, what tensor parallelism divides) of each product that is in the file."""
    hidden = shape["n_embd"]
    inter = shape.get("padded_n_expanded_embd") or shape["n_expanded_embd"]
    products = [
        ("mlp_up_proj_ms", hidden, (2 if shape["use_gated_mlp"] else 1) * inter, "n"),
        ("mlp_down_proj_ms", inter, hidden, "k"),
        ("lm_head_linear_ms", hidden, shape["vocab_size"], "n"),
        ("mtp_fusion_proj_ms", 2 * hidden, hidden, "n"),
    ]
    # Where queries and keys are normed, heads are wider than hidden / heads, and the first projection was
    # timed together with the norms.
    if not shape.get("use_qk_norm"):
        products += [
            ("attn_pre_proj_ms", hidden, 0, "kv"),
            ("attn_post_proj_ms", hidden, hidden, "k"),
        ]
    return [product for product in products if product[0] in frame.columns]


def _elementwise(profile: Profile, shape: Mapping[str, Any]) -> Iterator[Measurements]:
    hidden, heads = shape["n_embd"], shape["n_head"]
    inter = shape["n_expanded_embd"]
    size = hidden // heads
    norms = "add_ms" in profile.frame.columns
    # Bytes of a row in 16 bits. Without an addition of its own, the second norm adds the residual as well.
    kinds: list[tuple[str, str, str, float, bool]] = [
        ("input_layernorm_ms", "rms_norm", "rms_norm", 4.0 * hidden, False),
        (
            "post_attention_layernorm_ms",
            "rms_norm",
            "rms_norm" if norms else "fused_add_rms_norm",
            (4.0 if norms else 8.0) * hidden,
            False,
        ),
        ("mlp_act_ms", "activation", "activation", (6.0 if shape["use_gated_mlp"] else 4.0) * inter, True),
    ]
    if not shape.get("use_qk_norm"):
        kinds.append(("attn_rope_ms", "rope", "rope", 4.0 * size * (heads + shape["n_kv_head"]), True))
    found: dict[Identity, list[Measurements]] = {}
    for column, operator, kernel, width, split in kinds:
        rows = _timed(profile.frame, column)
        if len(rows):
            bytes_per_row = width / (rows["num_tensor_parallel_workers"] if split else 1)
            columns = {"rows": rows["num_tokens"], "bytes_per_row": bytes_per_row}
            identity = profile.identity(operator, "bf16", kernel)
            part = profile.finished(identity, columns, rows[column], profile.model)
            found.setdefault(identity, []).append(part)
    rows = _timed(profile.frame, "emb_ms")
    if len(rows):
        # Split over ranks, the embedding also masks what other ranks hold.
        whole = rows.filter(pl.col("num_tensor_parallel_workers") == 1)
        columns = {"rows": whole["num_tokens"], "bytes_per_row": 4.0 * hidden}
        identity = profile.identity("embedding", "bf16", "embedding")
        dropped = {"embedding split over ranks": len(rows) - len(whole)}
        if len(whole):
            found[identity] = [profile.finished(identity, columns, whole["emb_ms"], profile.model, dropped)]
    for parts in found.values():
        yield concat(parts)


def moe(profile: Profile) -> Iterator[Measurements]:
    """Yield the experts' fused product, the router's product, its top-k, and the shuffle of tokens.

    Logits at random (`logit_topk`) are a uniform random load (imbalance 0), rounds of equal shares
    (`round_robin_uniform`) a balanced one (-1). What the file says of each load becomes marks.
    """
    frame = profile.frame
    if "routing_assignment_policy" not in frame.columns:
        frame = frame.with_columns(routing_assignment_policy=pl.lit("logit_topk"))
    if "moe_grouped_gemm_backend" not in frame.columns:
        frame = frame.with_columns(moe_grouped_gemm_backend=pl.lit(None, dtype=pl.String))
    frame = frame.with_columns(pl.col("moe_grouped_gemm_backend").fill_null("grouped_gemm"))
    shape = frame.row(0, named=True)
    hidden, experts, top_k = shape["hidden_dim"], shape["num_experts"], shape["router_topk"]
    for (kernel,), rows in frame.group_by("moe_grouped_gemm_backend", maintain_order=True):
        timed = _timed(rows, "moe_grouped_gemm_ms")
        routed = timed["total_routed_tokens"] > 0 if "total_routed_tokens" in timed.columns else None
        kept = timed if routed is None else timed.filter(routed)
        columns = {
            "rows": kept["num_tokens"],
            "hidden": hidden,
            "inter": shape["expert_hidden_dim"],
            "experts": experts,
            "top_k": top_k,
            "moe_tp": kept["num_tensor_parallel_workers"],
            "moe_ep": kept["expert_parallel_size"],
            "weight_bytes": 2,
            "activation_bytes": 2,
            "gated": float(shape["use_gated"]),
            "imbalance": np.where(kept["routing_assignment_policy"] == "logit_topk", 0.0, -1.0),
        }
        found = profile.finished(
            profile.identity("fused_moe", "bf16", str(kernel)),
            columns,
            kept["moe_grouped_gemm_ms"],
            f"h{hidden}i{shape['expert_hidden_dim']}k{top_k}e{experts}",
            {"no token reached this rank": len(timed) - len(kept)},
        )
        for name in ("load_imbalance_cv", "max_load_ratio", "expert_utilization", "total_routed_tokens"):
            if name in kept.columns:
                found = found.marked(name, kept[name].to_numpy())
        yield traps.drop_autotuner_misfires(found)
    yield from _routing(profile, frame, hidden, experts, top_k)


def _routing(
    profile: Profile, frame: pl.DataFrame, hidden: int, experts: int, top_k: int
) -> Iterator[Measurements]:
    rows = _timed(frame, "moe_gating_linear_ms")
    if len(rows):
        columns = {
            "rows": rows["num_tokens"],
            "k": hidden,
            "n": experts,
            "batch": 1,
            "weight_bytes": 2,
            "activation_bytes": 2,
        }
        identity = profile.identity("gemm", "bf16", "router_linear")
        yield profile.finished(identity, columns, rows["moe_gating_linear_ms"], profile.model)
    # Bytes: the logits in 32 bits and a weight and an index for each choice; of a shuffle, the choices'
    # indices where the fused kernel gathers rows itself, else the rows, read and written.
    for column, operator, kernel, width in (
        ("moe_gating_routing_topk_ms", "moe_gating", "topk", 4.0 * experts + 8.0 * top_k),
        ("moe_shuffling_ms", "moe_permute", "vllm_fused", 8.0 * top_k),
        ("moe_shuffling_ms", "moe_permute", "grouped_gemm", 4.0 * top_k * hidden),
    ):
        rows = _timed(frame, column)
        if operator == "moe_permute":
            rows = rows.filter(pl.col("moe_grouped_gemm_backend") == kernel)
        if len(rows):
            columns = {"rows": rows["num_tokens"], "bytes_per_row": width}
            identity = profile.identity(operator, "bf16", kernel)
            yield profile.finished(identity, columns, rows[column], profile.model)


def _timed(frame: pl.DataFrame, column: str) -> pl.DataFrame:
    """Return the rows that have a time in `column`, none where there is no such column."""
    if column not in frame.columns:
        return frame.clear()
    return frame.filter(pl.col(column).cast(pl.Float64).fill_null(0) > 0)
