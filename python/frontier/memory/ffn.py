"""The memory of one GPU of FFN ranks, which hold weights and micro-batches on their way, and no KV cache."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from frontier.errors import Issue
from frontier.hardware.spec import GpuSpec
from frontier.memory.graphs import GraphCapture, capture_bytes
from frontier.memory.plan import MemoryPlan, gib
from frontier.memory.versions import rules_of
from frontier.memory.vllm import COMMUNICATION_BYTES, LATE_BYTES
from frontier.models.sharding import expert_width_per_rank
from frontier.models.spec import MixtureOfExperts, ModelSpec

_ITEMSIZE = 2


@dataclass(frozen=True, slots=True)
class MicroBatches:
    """What FFN ranks hold of a step at once.

    Attributes:
        count: micro-batches under way.
        tokens: of one, of all attention ranks.
        destinations: FFN ranks that a token goes to on average, of `ranks`.
        ranks: FFN ranks.
        bytes_per_element: of what comes and what goes back, per element of a hidden state.
    """

    count: int
    tokens: int
    destinations: float
    ranks: int
    bytes_per_element: float


def plan_ffn_memory(
    spec: ModelSpec,
    gpu: GpuSpec,
    *,
    tensor_parallel_size: int,
    weights_bytes: int,
    gpu_memory_utilization: float | None,
    version: str,
    batches: MicroBatches | None = None,
    graphs: GraphCapture | None = None,
) -> MemoryPlan:
    """Plan the memory of one GPU; a plan that does not fit says so in its `issues`.

    Estimated beside the weights: what every micro-batch brings and takes back, the workspace of the expert
    kernel for one (as vLLM's: `top_k` rows for each token that a rank gets), graphs, and what
    `frontier.memory.vllm` takes for allocations outside. No log of an FFN rank was there to fit any of it.

    Args:
        spec: the model.
        gpu: the GPU.
        tensor_parallel_size: GPUs of one FFN rank.
        weights_bytes: of this GPU.
        gpu_memory_utilization: share of the memory that may be used; None is the version's default.
        version: of vLLM.
        batches: the largest step; None for the weights alone.
        graphs: what is captured.
    """
    rules = rules_of(version)
    share = rules.default_gpu_memory_utilization if gpu_memory_utilization is None else gpu_memory_utilization
    taken = 0
    if graphs is not None:
        taken = capture_bytes(spec, graphs, tensor_parallel_size=tensor_parallel_size)
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
        activation_bytes=0 if batches is None else _activations(spec, tensor_parallel_size, batches),
        late_bytes=LATE_BYTES,
        communication_bytes=COMMUNICATION_BYTES if tensor_parallel_size > 1 else 0,
        graph_bytes=taken,
        available_bytes=0,
        block_size=0,
        bytes_per_block=0,
        num_gpu_blocks=0,
        max_model_len=0,
    )
    left = plan.requested_bytes - plan.needed_bytes
    issues = []
    if left < 0:
        message = (
            f"has {gib(plan.requested_bytes)} to use, but {gib(plan.needed_bytes)} are needed for weights"
            f" ({gib(weights_bytes)}), micro-batches and graphs of FFN ranks; mend with more ranks"
            " (data_parallel_size), more GPUs for each (tensor_parallel_size), or a larger GPU"
        )
        issues.append(Issue("hardware.gpu", gpu.name, message))
    return replace(plan, available_bytes=left, issues=tuple(issues))


def _activations(spec: ModelSpec, tensor_parallel_size: int, batches: MicroBatches) -> int:
    received = batches.tokens * batches.destinations / batches.ranks
    under_way = batches.count * received * spec.hidden_size * batches.bytes_per_element
    most = 0.0
    for group in spec.layers:
        ffn = group.feed_forward
        if isinstance(ffn, MixtureOfExperts):
            width = expert_width_per_rank(spec, ffn, tensor_parallel_size)
            rows = received * ffn.top_k
            most = max(most, rows * (max(width, spec.hidden_size) + max(2 * width, spec.hidden_size)))
        else:
            width = -(-ffn.intermediate_size // tensor_parallel_size)
            most = max(most, batches.tokens * 3.0 * width)
    return math.ceil(under_way + most * _ITEMSIZE)
