"""What one token leaves in the KV cache, per kind of layer (vllm/v1/kv_cache_interface.py)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from frontier.errors import ConfigError, Issue, nearest_name, show_value
from frontier.models.sharding import kv_heads_per_rank
from frontier.models.spec import GroupedQueryAttention, ModelSpec, MultiHeadLatentAttention

_PLAIN_BYTES = {"bfloat16": 2, "float16": 2}
_FP8 = ("fp8", "fp8_e4m3", "fp8_e5m2")
_SPARSE_FP8 = "fp8_ds_mla"

KV_CACHE_DTYPES = ("auto", *_PLAIN_BYTES, *_FP8, _SPARSE_FP8)
"""Accepted values of `kv_cache_dtype`."""


@dataclass(frozen=True, slots=True)
class KvLayer:
    """Equal caches: `count` layers that keep `bytes_per_token` bytes each on one rank.

    `kind` is `full`, `sliding`, `mfa`, `mla`, `mla_sparse` or `indexer`; `window` the keys a query sees at
    most, where that bounds what must be kept.
    """

    kind: str
    count: int
    bytes_per_token: int
    window: int | None = None


def resolve_kv_cache_dtype(spec: ModelSpec, kv_cache_dtype: str) -> str:
    """Return the type of the cache's elements: `bfloat16`, `float16`, `fp8` or `fp8_ds_mla`.

    `auto` is what the checkpoint declares for its cache, else the model's 16-bit type, also for checkpoints
    with fp8 weights; 32-bit models are served in bfloat16. With sparse latent attention every fp8 is
    `fp8_ds_mla` (vLLM 0.32).

    Raises:
        ConfigError: an unknown type, or `fp8_ds_mla` for a model without sparse latent attention.
    """
    sparse = any(group.attention.kind == "mla_sparse" for group in spec.layers)
    if kv_cache_dtype == "auto" and spec.quantization is not None and spec.quantization.kv_cache is not None:
        kv_cache_dtype = spec.quantization.kv_cache
    if kv_cache_dtype == "auto":
        return "float16" if spec.dtype == "float16" else "bfloat16"
    if kv_cache_dtype in _PLAIN_BYTES:
        return kv_cache_dtype
    if kv_cache_dtype in _FP8:
        return _SPARSE_FP8 if sparse else "fp8"
    if kv_cache_dtype == _SPARSE_FP8 and sparse:
        return _SPARSE_FP8
    allowed = KV_CACHE_DTYPES if sparse else KV_CACHE_DTYPES[:-1]
    message = f"was {show_value(kv_cache_dtype)}"
    near = nearest_name(kv_cache_dtype, allowed)
    raise ConfigError(Issue("engine.kv_cache_dtype", kv_cache_dtype, message, allowed, near))


def kv_layers(spec: ModelSpec, *, tensor_parallel_size: int, kv_cache_dtype: str = "auto") -> list[KvLayer]:
    """Return the caches of one rank, equal ones merged, in order of first appearance.

    Latent attention keeps one vector for all heads, which tensor parallelism does not divide; more ranks than
    KV heads replicate them.

    Raises:
        ConfigError: an unknown `kv_cache_dtype`.
    """
    dtype = resolve_kv_cache_dtype(spec, kv_cache_dtype)
    found: list[KvLayer] = []
    for group in spec.layers:
        attention = group.attention
        if isinstance(attention, MultiHeadLatentAttention):
            caches = _latent_caches(attention, dtype)
        else:
            caches = [_head_cache(attention, tensor_parallel_size, dtype)]
        found += [replace(cache, count=group.count) for cache in caches]
    return merge_layers(found)


def merge_layers(*lists: Iterable[KvLayer]) -> list[KvLayer]:
    """Return the caches of several lists, equal ones merged, in order of first appearance."""
    counts: dict[KvLayer, int] = {}
    for layers in lists:
        for layer in layers:
            kind = replace(layer, count=1)
            counts[kind] = counts.get(kind, 0) + layer.count
    return [replace(kind, count=count) for kind, count in counts.items()]


def block_bytes(layers: Iterable[KvLayer], block_size: int) -> int:
    """Return the bytes of one block over all `layers`, none of them grouped."""
    return block_size * sum(layer.count * layer.bytes_per_token for layer in layers)


@dataclass(frozen=True, slots=True)
class KvGroups:
    """Groups of layers that share one pool of blocks.

    Attributes:
        windows: sliding window of each group in tokens, None for whole contexts; empty for one group of all
            layers, all of which keep whole contexts.
        bytes_per_token: of one block, per token: the pages of the layers of one group.
    """

    windows: tuple[int | None, ...]
    bytes_per_token: int


def kv_groups(layers: list[KvLayer], *, hybrid_ratio: float = 1.5) -> KvGroups | None:
    """Return the groups that vLLM's hybrid KV cache manager makes (vllm/v1/core/kv_cache_utils.py).

    Layers that all attend to the whole context are one group, whose page is the sum. Otherwise the layers of
    each kind are cut into groups of g, g being the smallest kind's count, or the largest's if that is less
    than `hybrid_ratio` times as many (1.5; 1.25 before vLLM 0.18); all groups share one pool of blocks of g
    pages. A layer with a smaller page gets larger blocks, if the ratio is whole (else None: the layouts of
    later versions that pack unequal pages are not modelled).
    """
    if all(layer.window is None for layer in layers):
        return KvGroups((), block_bytes(layers, 1))
    page = max(layer.bytes_per_token for layer in layers)
    if any(page % layer.bytes_per_token for layer in layers):
        return None
    counts = [layer.count for layer in layers]
    group = max(counts) if max(counts) < hybrid_ratio * min(counts) else min(counts)
    windows = [layer.window for layer in layers for _ in range(-(-layer.count // group))]
    return KvGroups(tuple(windows), page * group)


def hybrid_num_blocks(
    layers: list[KvLayer], *, available_bytes: int, block_size: int, hybrid_ratio: float = 1.5
) -> int | None:
    """Return the blocks of the groups of `kv_groups` in a cache of so many bytes, None as there."""
    groups = kv_groups(layers, hybrid_ratio=hybrid_ratio)
    return None if groups is None else max(available_bytes, 0) // (groups.bytes_per_token * block_size)


def attention_kv_bytes(attention: GroupedQueryAttention, tensor_parallel_size: int, dtype: str) -> int:
    """Return the bytes of keys and values per token of one layer on one rank; `dtype` is resolved."""
    heads = kv_heads_per_rank(attention.num_kv_heads, tensor_parallel_size)
    return heads * 2 * attention.head_dim * _PLAIN_BYTES.get(dtype, 1)


def latent_kv_bytes(attention: MultiHeadLatentAttention, dtype: str) -> int:
    """Return the bytes of the latent vector per token of one layer; `dtype` is resolved.

    `fp8_ds_mla` keeps the latent part in fp8 with a 32-bit scale per 128 and the rotary part in 16 bits
    (DeepSeek-V3.2: 512 + 16 + 128 = 656 bytes).
    """
    if dtype == _SPARSE_FP8:
        return attention.kv_rank + 4 * (-(-attention.kv_rank // 128)) + 2 * attention.rope_dim
    return (attention.kv_rank + attention.rope_dim) * _PLAIN_BYTES.get(dtype, 1)


def indexer_kv_bytes(head_dim: int) -> int:
    """Return the bytes of an indexer key: fp8 with a 32-bit scale per 128."""
    return head_dim + 4 * (-(-head_dim // 128))


def _head_cache(attention: GroupedQueryAttention, tensor_parallel_size: int, dtype: str) -> KvLayer:
    size = attention_kv_bytes(attention, tensor_parallel_size, dtype)
    return KvLayer(attention.kind, 1, size, attention.window)


def _latent_caches(attention: MultiHeadLatentAttention, dtype: str) -> list[KvLayer]:
    caches = [KvLayer(attention.kind, 1, latent_kv_bytes(attention, dtype))]
    indexer = attention.indexer
    if indexer is not None and not indexer.shared:
        caches.append(KvLayer("indexer", 1, indexer_kv_bytes(indexer.head_dim)))
    return caches
