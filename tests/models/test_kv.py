"""Bytes of KV cache per token and layer."""

import pytest

from frontier.models import kv_layers, load_model

# preset, ranks, dtype, (kind, layers, bytes per token, window) of each cache
CACHES = [
    ("llama-3.1-8b", 1, "auto", [("full", 32, 4096, None)]),
    ("llama-3.1-8b", 8, "auto", [("full", 32, 512, None)]),
    ("llama-3.1-8b", 16, "auto", [("full", 32, 512, None)]),
    ("llama-3.1-8b", 1, "fp8", [("full", 32, 2048, None)]),
    ("gpt-oss-120b", 1, "auto", [("sliding", 18, 2048, 128), ("full", 18, 2048, None)]),
    ("gemma-3-27b", 2, "auto", [("sliding", 52, 4096, 1024), ("full", 10, 4096, None)]),
    ("deepseek-v3", 8, "auto", [("mla", 61, 1152, None)]),
    ("deepseek-v3", 8, "fp8_e4m3", [("mla", 61, 576, None)]),
    ("deepseek-v3.2", 8, "auto", [("mla_sparse", 61, 1152, None), ("indexer", 61, 132, None)]),
    ("deepseek-v3.2", 8, "fp8", [("mla_sparse", 61, 656, None), ("indexer", 61, 132, None)]),
    ("glm-5.2", 8, "fp8_ds_mla", [("mla_sparse", 78, 656, None), ("indexer", 21, 132, None)]),
    ("step-3", 8, "auto", [("mfa", 61, 1024, None)]),
]


@pytest.mark.parametrize(("preset", "ranks", "dtype", "expected"), CACHES)
def test_bytes_per_token(
    preset: str, ranks: int, dtype: str, expected: list[tuple[str, int, int, int | None]]
) -> None:
    layers = kv_layers(load_model(preset), tensor_parallel_size=ranks, kv_cache_dtype=dtype)
    merged: dict[tuple[str, int, int | None], int] = {}
    for layer in layers:
        key = (layer.kind, layer.bytes_per_token, layer.window)
        merged[key] = merged.get(key, 0) + layer.count
    assert sorted((k, n, b, w) for (k, b, w), n in merged.items()) == sorted(expected)
