"""Made-up measurements in the layout of `frontier profile`, of an H100 and of a GPU of another generation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl

ROWS = [2**i for i in range(12)]
PRODUCTS = [(1024 * k, 512 * n) for k in (1, 2, 4, 7) for n in (2, 3, 8, 15)]

RECIPE = """
leave_out:
  - {backend: torch, operator: rope}
packs:
  h100: {sources: [profiler]}
  b200: {sources: [profiler]}
  generic: {sources: [profiler]}
  h100-rope: {gpu: h100, optional: true, sources: [profiler], only: [{operator: rope}]}
"""


def write(root: Path) -> Path:
    """Write one run per GPU below `root` and return it."""
    for gpu, speed in (("h100", 1.0), ("b200", 2.0)):
        folder = root / gpu
        folder.mkdir(parents=True)
        manifest = {
            "format": "frontier-profile",
            "format_version": 1,
            "gpu": gpu,
            "backend": "vllm",
            "version": "0.24.0",
            "measurement": "cuda_graph",
            "versions": {"torch": "2.8.0", "cuda": "12.8", "driver": None},
            "date": "2025-08-01",
            "licence": "Apache-2.0",
            "files": {
                name: {"operator": name.partition(".")[0], "trains": True}
                for name in ("gemm.csv", "all_reduce.csv", "decode_attention.parquet")
            },
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))
        _gemm(speed).write_csv(folder / "gemm.csv")
        _all_reduce(speed).write_csv(folder / "all_reduce.csv")
        _decode(speed).write_parquet(folder / "decode_attention.parquet")
    return root


def recipe(folder: Path) -> Path:
    """Write the recipe and return its path."""
    path = folder / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def _gemm(speed: float) -> pl.DataFrame:
    rows = [(m, k, n) for k, n in PRODUCTS for m in ROWS]
    seconds = [
        (5e-6 + max(2.0 * m * k * n / 700e12, 2.0 * (k * n + m * (k + n)) / 3e12) * (1 + 0.1 * np.sin(k)))
        / speed
        for m, k, n in rows
    ]
    m, k, n = zip(*rows, strict=True)
    return _table(
        {"rows": m, "k": k, "n": n, "batch": 1, "weight_bytes": 2, "activation_bytes": 2},
        seconds,
        "bf16",
        "linear",
    )


def _all_reduce(speed: float) -> pl.DataFrame:
    sizes = [2**i for i in range(10, 26)]
    seconds = [(8e-6 + size / 200e9) / speed for size in sizes]
    return _table({"bytes": sizes, "ranks": 4, "nodes": 1}, seconds, "bf16", "custom")


def _decode(speed: float) -> pl.DataFrame:
    rows = [
        (b, c, h)
        for b in (1, 4, 16, 64, 256)
        for c in (64, 512, 2048, 8192, 16384, 65536)
        for h in (8, 16, 32, 64)
    ]
    batch, context, heads = (list(column) for column in zip(*rows, strict=True))
    seconds = [(4e-6 + b * c * 8 * 512 / 2.8e12) / speed for b, c, _ in rows]
    frame = _table(
        {
            "heads": heads,
            "kv_heads": 8,
            "qk_dim": 128,
            "v_dim": 128,
            "kv_bytes_per_token": 4096,
            "activation_bytes": 2,
            "window": 0,
        },
        seconds,
        "bf16",
        "flash",
    )
    lists = {"count": batch, "query": [1] * len(rows), "context": context}
    return frame.with_columns(
        pl.lit("bf16").alias("kv_cache_dtype"),
        *(
            pl.Series(name, [[value] for value in values], pl.List(pl.UInt32))
            for name, values in lists.items()
        ),
    )


def _table(columns: dict[str, object], seconds: list[float], dtype: str, kernel: str) -> pl.DataFrame:
    size = len(seconds)
    full = {
        name: list(values) if isinstance(values, list | tuple) else [values] * size
        for name, values in columns.items()
    }
    return pl.DataFrame(
        {
            **full,
            "seconds": seconds,
            "seconds_spread": [0.0] * size,
            "dtype": [dtype] * size,
            "kernel": [kernel] * size,
        }
    )
