"""Packs whose predictors say something simple: the bound times a factor, by one tree.

Tests of several rooms import it by its bare name.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from frontier.training.pack_writer import static_shape_hash, write_pack

Fake = tuple[dict[str, Any], dict[str, Any]]
"""Entry of the manifest and tensors of a predictor."""

FEATURE = {
    "gemm": "rows",
    "prefill_attention": "query_tokens",
    "decode_attention": "num_seqs",
    "decode_skew": "num_seqs",
    "fused_moe": "rows",
}
"""The one feature of each family's tree; `rows` for the rest."""
SHAPES = {"gemm": "k,n"}
ELEMENTWISE = ("rms_norm", "rope", "activation", "kv_write", "embedding", "sampler")
QUANTILES = [[0.05, -0.1], [0.5, 0.0], [0.95, 0.2]]


def tree(operator: str, factor: float, *, most: float = 1e6, **changes: Any) -> Fake:
    """Return a predictor that says `factor` times the bound, measured up to `most` of its feature."""
    shapes = changes.pop("measured_shapes", ())
    hashes = sorted(static_shape_hash([float(size) for size in shape]) for shape in shapes)
    tensors = {
        "thresholds": np.array([0.5], np.float32),
        "threshold_offsets": np.array([0, 1], np.uint32),
        "nodes": np.array([0, 0, 255, 255], np.uint8),
        "tree_starts": np.array([0, 4], np.uint32),
        "leaves": np.array([0.0, math.log(factor)], np.float32),
        "static_shapes": np.array(hashes, np.uint64),
    }
    entry = _entry(operator, form="trees", features=[FEATURE.get(operator, "rows")], ranges=[[1.0, most]])
    return {**entry, "shapes": SHAPES.get(operator, "") if hashes else "", **changes}, tensors


def table(operator: str, seconds: float, **changes: Any) -> Fake:
    """Return a predictor that says so many seconds, whatever the bytes."""
    tensors = {
        "x": np.array([1.0, 1e9], np.float32),
        "seconds": np.array([seconds, seconds], np.float32),
        "static_shapes": np.empty(0, np.uint64),
    }
    entry = _entry(operator, form="table", features=["bytes"], ranges=[[1.0, 1e9]])
    return {**entry, "detail": {"ranks": 2, "nodes": 1}, **changes}, tensors


def _entry(operator: str, **form: Any) -> dict[str, Any]:
    return {
        "backend": "vllm",
        "version": "0.24.0",
        "kernel": f"fake_{operator}",
        "measurement": "cuda_graph",
        "operator": operator,
        "dtype": "bf16",
        "detail": {"mixed_per_head": 0.5} if operator == "decode_attention" else {},
        "bound": {"launch_s": 1e-6, "compute_scale": 1.0, "memory_scale": 1.0, "network_scale": 1.0},
        "cold": None,
        "calibration": 1.0,
        "base_score": 0.0,
        "residual_quantiles": QUANTILES,
        "shapes": "",
        "accuracy": {"median": 0.02},
        "rows": 100,
        "rows_dropped": {},
        "sources": [{"name": "fake", "licence": "none", "file": "f", "sha256": "0" * 64, "version": "1"}],
        **form,
    }


def write(path: Path, predictors: list[Fake], *, gpu: str = "h100") -> Path:
    """Write a pack of these predictors."""
    manifest = {
        "gpu": gpu,
        "created_by": {"frontier": "0"},
        "licences": ["none"],
        "notices": [],
        "warnings": [],
        "predictors": [entry for entry, _ in predictors],
    }
    return write_pack(path, manifest, [tensors for _, tensors in predictors])


def dense_model(factor: float = 1.5, **changes: Any) -> list[Fake]:
    """Return predictors of all operators that a dense model on one or two GPUs runs."""
    families = ("gemm", "prefill_attention", "decode_attention", *ELEMENTWISE)
    return [*(tree(family, factor, **changes) for family in families), table("all_reduce", 1e-4, **changes)]
