"""What a rank holds once its stage of the model is loaded: weights, rotary tables, padding of experts."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

from frontier.models.layout import Layout
from frontier.models.program import pipeline_stages
from frontier.models.sharding import expert_width_per_rank, pipeline_layers
from frontier.models.spec import (
    LayerGroup,
    MixtureOfExperts,
    ModelSpec,
    MultiHeadLatentAttention,
    group_layers,
)

_ITEMSIZE = 2
_EXPERT_ALIGNMENT = 256
"""Width to a multiple of which mxfp4 kernels pad experts."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a pipeline: its layers as a model of their own, and where it stands.

    Attributes:
        spec: a model of the stage's layers only.
        index: from 0.
        count: stages in all.
    """

    spec: ModelSpec
    index: int
    count: int

    @property
    def is_last(self) -> bool:
        """Whether it has the LM head and the sampler."""
        return self.index == self.count - 1


def cut_stages(spec: ModelSpec, count: int, partition: tuple[int, ...] | None = None) -> list[Stage]:
    """Cut a model into pipeline stages, as vLLM does, or into the layers of `partition`."""
    if count == 1:
        return [Stage(spec, 0, 1)]
    stages, start = [], 0
    for index, size in enumerate(pipeline_layers(spec.num_layers, count, partition)):
        singles = [replace(spec.layers[i], count=1) for i in spec.layer_pattern[start : start + size]]
        groups, pattern = group_layers(singles)
        stages.append(Stage(replace(spec, layers=groups, layer_pattern=pattern), index, count))
        start += size
    return stages


@functools.lru_cache(maxsize=256)
def stage_weight_bytes(spec: ModelSpec, layout: Layout, weight_dtype: str) -> tuple[int, ...]:
    """Return the bytes of one rank's weights in each stage; searches for what fits ask for the same again.

    Raises:
        ConfigError: the model cannot be spread so.
    """
    stages = pipeline_stages(spec, layout, weight_dtype=weight_dtype)
    return tuple(sum(operator.weight_bytes for operator in stage) for stage in stages)


def rotary_bytes(spec: ModelSpec) -> int:
    """Return the tables of sines and cosines, 16 bits per position and rotated dimension; layers share."""
    widths = {_rotary_width(group) for group in spec.layers}
    return sum(spec.max_model_len * width * _ITEMSIZE for width in widths)


@functools.lru_cache(maxsize=256)
def expert_padding_bytes(spec: ModelSpec, layout: Layout, weight_dtype: str) -> tuple[int, ...]:
    """Return what mxfp4 experts grow by in each stage when their width is rounded up to a multiple of 256."""
    found = spec.quantization is not None and spec.quantization.method == "mxfp4"
    widths = {
        expert_width_per_rank(spec, group.feed_forward, layout.expert_tensor_parallel_size)
        for group in spec.layers
        if isinstance(group.feed_forward, MixtureOfExperts)
    }
    if not found or len(widths) != 1:
        return (0,) * layout.pipeline_parallel_size
    width = widths.pop()
    padding = -width % _EXPERT_ALIGNMENT
    sizes = []
    for stage in pipeline_stages(spec, layout, weight_dtype=weight_dtype):
        tensors = ((op.count, tensor) for op in stage for tensor in op.weights)
        experts = sum(count * tensor.bytes for count, tensor in tensors if tensor.storage.kind == "mxfp4")
        sizes.append(experts * padding // width)
    return tuple(sizes)


def _rotary_width(group: LayerGroup) -> int:
    attention = group.attention
    return attention.rope_dim if isinstance(attention, MultiHeadLatentAttention) else attention.rotary_dim
