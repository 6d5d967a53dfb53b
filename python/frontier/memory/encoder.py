"""The memory of one GPU of an encoder: a vision tower, the activations of a step, the encoder cache."""

from __future__ import annotations

import math
from dataclasses import replace

from frontier.errors import Issue
from frontier.hardware.spec import GpuSpec
from frontier.memory.plan import MemoryPlan, gib
from frontier.memory.versions import rules_of
from frontier.memory.vllm import COMMUNICATION_BYTES, LATE_BYTES
from frontier.models.spec import ModelSpec
from frontier.models.vision_program import tower_row_bytes

_ITEMSIZE = 2


def plan_encoder_memory(
    spec: ModelSpec,
    gpu: GpuSpec,
    *,
    tensor_parallel_size: int,
    weights_bytes: int,
    tokens: int,
    largest: int,
    gpu_memory_utilization: float | None,
    version: str,
) -> MemoryPlan:
    """Plan the memory of one GPU; a plan that does not fit says so in its `issues`.

    The encoder cache has a place for every embedding of a step's budget (vLLM: `encoder_cache_size` is the
    larger of `max_num_batched_tokens` and the largest item), on every rank. A block of the plan is one
    embedding, `merge` encoder tokens; one more is the null block of the scheduler. Activations are estimated
    from the widest part of a layer, as for language models; no log of an encoder was there to check them.

    Args:
        spec: a model with a vision tower.
        gpu: the GPU.
        tensor_parallel_size: GPUs of the encoder.
        weights_bytes: of the tower, on this GPU.
        tokens: encoder tokens of the largest step.
        largest: of the largest item.
        gpu_memory_utilization: share of the memory that may be used; None is the version's default.
        version: of vLLM.
    """
    tower = spec.vision
    assert tower is not None
    rules = rules_of(version)
    share = rules.default_gpu_memory_utilization if gpu_memory_utilization is None else gpu_memory_utilization
    embeddings = math.ceil(tokens / tower.merge)
    plan = MemoryPlan(
        model=spec.name,
        gpu=gpu.name,
        version=rules.version,
        tensor_parallel_size=tensor_parallel_size,
        total_bytes=gpu.memory_bytes,
        requested_bytes=math.ceil(gpu.memory_bytes * share),
        weights_bytes=weights_bytes,
        rotary_bytes=0,
        padding_bytes=0,
        activation_bytes=tokens * tower_row_bytes(tower, tensor_parallel_size),
        late_bytes=LATE_BYTES,
        communication_bytes=COMMUNICATION_BYTES if tensor_parallel_size > 1 else 0,
        graph_bytes=0,
        available_bytes=0,
        block_size=tower.merge,
        bytes_per_block=0,
        num_gpu_blocks=embeddings + 1,
        max_model_len=largest,
        longest_request_blocks=math.ceil(largest / tower.merge),
        encoder_cache_bytes=embeddings * tower.embedding_width * _ITEMSIZE,
    )
    left = plan.requested_bytes - plan.needed_bytes
    issues = []
    if left < 0:
        message = (
            f"has {gib(plan.requested_bytes)} to use, but {gib(plan.needed_bytes)} are needed for the vision"
            f" tower ({gib(weights_bytes)}), a step of {tokens} encoder tokens"
            f" ({gib(plan.activation_bytes)}) and its embeddings ({gib(plan.encoder_cache_bytes)}); mend with"
            " a smaller max_num_batched_tokens, more GPUs (tensor_parallel_size), or a larger GPU"
        )
        issues.append(Issue("hardware.gpu", gpu.name, message))
    return replace(plan, available_bytes=left, issues=tuple(issues))
