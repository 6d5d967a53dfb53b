"""A pack of two trees and a table, small enough to be damaged everywhere."""

import numpy as np

from frontier.training.pack_writer import pack_bytes


def tree_tensors() -> dict[str, np.ndarray]:
    """Two trees over two features: thresholds 1 and 2 of the first, 5 of the second."""
    return {
        "thresholds": np.array([1, 2, 5], np.float32),
        "threshold_offsets": np.array([0, 2, 3], np.uint32),
        "nodes": np.array([0, 0, 255, 1, 0, 255, 255, 0, 1, 255, 255], np.uint8),
        "tree_starts": np.array([0, 7, 11], np.uint32),
        "leaves": np.array([1, 2, 4, 16, 32], np.float16),
        "static_shapes": np.array([3, 9], np.uint64),
    }


def table_tensors() -> dict[str, np.ndarray]:
    return {
        "x": np.array([1024, 4096], np.float32),
        "seconds": np.array([8e-6, 16e-6], np.float32),
        "static_shapes": np.empty(0, np.uint64),
    }


def info(form: str, **changes: object) -> dict[str, object]:
    trees = form == "trees"
    return {
        "backend": "vllm",
        "version": "0.24.0",
        "kernel": "torch",
        "measurement": "cuda_graph",
        "operator": "gemm" if trees else "all_reduce",
        "dtype": "bf16",
        "detail": {"ranks": 8},
        "form": form,
        "features": ["rows", "waves"] if trees else ["bytes"],
        "ranges": [[0.0, 3.0], [1.0, 9.0]] if trees else [[1024.0, 4096.0]],
        "bound": {"launch_s": 1e-6, "compute_scale": 1.0, "memory_scale": 1.1, "network_scale": 1.0},
        "cold": None,
        "calibration": 1.0,
        "base_score": 0.5 if trees else 0.0,
        "residual_quantiles": [[0.1, -0.1], [0.9, 0.2]],
        "shapes": "k,n" if trees else "",
        "accuracy": {"median": 0.02},
        "rows": 12,
        "rows_dropped": {"no time": 1},
        "sources": [{"name": "a", "licence": "b", "file": "c", "sha256": "d", "version": "e"}],
        **changes,
    }


def manifest(*infos: dict[str, object]) -> dict[str, object]:
    return {
        "gpu": "h100",
        "created_by": {"frontier": "0.1.0"},
        "licences": ["Apache-2.0"],
        "notices": [],
        "warnings": [],
        "predictors": list(infos),
    }


def small_pack() -> bytes:
    return pack_bytes(manifest(info("trees"), info("table")), [tree_tensors(), table_tensors()])
