"""Draft layers of speculative decoding: caches that enlarge every block, and weights beside the target's."""

from __future__ import annotations

from dataclasses import dataclass

from frontier.errors import ConfigError, Issue, show_value
from frontier.models.draft import DraftProgram
from frontier.models.kv import KvLayer, kv_layers
from frontier.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class DraftLayers:
    """What drafting adds to one rank.

    Attributes:
        layers: caches of the draft's attention layers (EAGLE head 1, MTP 1, a draft model all its layers).
        weight_bytes: the draft's weights on one rank; embedding and LM head that are shared with the target
            are not among them.
        num_speculative_tokens: tokens drafted per step.
    """

    layers: tuple[KvLayer, ...]
    weight_bytes: int = 0
    num_speculative_tokens: int = 1


def draft_layers(program: DraftProgram) -> DraftLayers:
    """Return what a draft program adds to one rank of the last stage."""
    return DraftLayers(program.kv_layers, program.weight_bytes, program.num_speculative_tokens)


def draft_head(
    spec: ModelSpec,
    *,
    tensor_parallel_size: int,
    kv_cache_dtype: str = "auto",
    layers: int = 1,
    weight_bytes: int = 0,
    num_speculative_tokens: int = 1,
) -> DraftLayers:
    """Return a head whose `layers` layers cache as the target's full-attention layers do (EAGLE, MTP).

    Raises:
        ConfigError: less than one layer, or an unknown `kv_cache_dtype`.
    """
    if layers < 1:
        message = f"was {show_value(layers)}; a draft has at least one layer"
        raise ConfigError(Issue("engine.speculative.layers", layers, message))
    caches = kv_layers(spec, tensor_parallel_size=tensor_parallel_size, kv_cache_dtype=kv_cache_dtype)
    full = next((cache for cache in caches if cache.window is None and cache.kind != "indexer"), caches[0])
    indexers = tuple(KvLayer(c.kind, layers, c.bytes_per_token) for c in caches if c.kind == "indexer")
    head = KvLayer(full.kind, layers, full.bytes_per_token, full.window)
    return DraftLayers((head, *indexers), weight_bytes, num_speculative_tokens)
