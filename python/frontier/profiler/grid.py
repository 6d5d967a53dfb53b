"""Sizes that shapes are crossed with. The lists are axes: they are refined by halving, ends first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

FAMILIES: Final = ("launch", "copy", "gemm", "decode", "prefill", "moe", "elementwise", "mixed")
"""All families, in the order in which ties of progress are broken."""

_TARGETS: Final = {
    "launch": 14,
    "copy": 60,
    "gemm": 750,
    "decode": 1500,
    "prefill": 1500,
    "moe": 1500,
    "elementwise": 900,
    "mixed": 400,
}


@dataclass(frozen=True)
class Grid:
    """The sizes of every family, and how many points are wanted.

    Attributes:
        targets: points wanted per family and type of arithmetic, skipped ones included.
        coarse_share: part of the wanted points that come in coarse-to-fine order; the predictor's uncertainty
            chooses the rest.
        gemm_rows: rows of a matrix product; odd ones among them show how the last wave of tiles fills.
        head_rows: most rows of a product with an output as wide as a vocabulary.
        query: new tokens per request of a prefill.
        prefix: tokens per request that are in the KV cache already.
        prefill_requests: requests of an even prefill batch.
        uneven_draws: prefill batches of unequal requests, per attention shape.
        prefill_tokens: most new tokens of a batch.
        context_tokens: most tokens of a batch with those in the KV cache.
        batch: requests of an even decode batch.
        context: their tokens.
        skew_batch: requests of a decode batch of two modes.
        short: context of the short ones.
        long: context of the long ones.
        long_share: share of the long ones; at least one is long.
        mixed_query: the prefill chunk of a mixed batch.
        mixed_prefix: what it has in the cache.
        mixed_batch: decoding requests beside it.
        mixed_context: their context.
        moe_rows: tokens of a mixture-of-experts layer.
        imbalance: how unevenly experts are loaded; see `frontier.profiler.loads.expert_loads`.
        draws: loads drawn per power law.
        token_rows: rows of memory-bound operators that have one per token.
        sequence_rows: rows of those that have one per request.
        copy_bytes: sizes of copies.
        launches: lengths of chains of launches.
    """

    targets: Mapping[str, int] = field(default_factory=lambda: dict(_TARGETS))
    coarse_share: float = 0.6
    gemm_rows: tuple[int, ...] = (
        *(1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 128, 144, 192, 256, 272, 384, 512, 544, 768),
        *(1024, 1280, 1536, 2048, 3072, 4096, 6144, 8192, 16384),
    )
    head_rows: int = 2048
    query: tuple[int, ...] = (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
    prefix: tuple[int, ...] = (0, 512, 2048, 8192, 32768)
    prefill_requests: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    uneven_draws: int = 40
    prefill_tokens: int = 32768
    context_tokens: int = 2**22
    batch: tuple[int, ...] = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
    context: tuple[int, ...] = (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
    skew_batch: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256, 512)
    short: tuple[int, ...] = (64, 256, 1024)
    long: tuple[int, ...] = (2048, 8192, 32768)
    long_share: tuple[float, ...] = (0.0, 0.1, 0.5)
    mixed_query: tuple[int, ...] = (64, 256, 512, 1024, 2048, 4096, 8192)
    mixed_prefix: tuple[int, ...] = (0, 4096)
    mixed_batch: tuple[int, ...] = (1, 8, 32, 64, 128, 256)
    mixed_context: tuple[int, ...] = (256, 1024, 4096, 16384)
    moe_rows: tuple[int, ...] = (
        *(1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096),
        *(6144, 8192, 16384),
    )
    imbalance: tuple[float, ...] = (-1.0, 1.2, 0.0, 1.01, 0.6)
    draws: int = 2
    token_rows: tuple[int, ...] = (1, 4, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
    sequence_rows: tuple[int, ...] = (1, 4, 16, 32, 64, 128, 256, 512, 1024)
    copy_bytes: tuple[int, ...] = tuple(2**power for power in range(12, 31))
    launches: tuple[int, ...] = (1, 2, 5, 10, 50, 200, 1000)
