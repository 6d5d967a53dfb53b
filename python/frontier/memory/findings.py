"""What a memory plan must say: where it departs from vLLM, and why vLLM would refuse to start."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass, replace

from frontier.errors import Issue
from frontier.memory.plan import MemoryPlan, gib
from frontier.models.kv import KvLayer, hybrid_num_blocks


@dataclass(frozen=True, slots=True)
class Findings:
    """What is known beside the plan.

    Attributes:
        layers: caches of the rank.
        computed_blocks: blocks that memory is left for, whatever was given instead.
        hybrid_ratio: of the version (`VllmRules.hybrid_ratio`).
        request_blocks: returns the blocks that a request of so many tokens holds at most.
        given_length: the user's `max_model_len`, None for the model's own.
        smallest_fitting: returns the smallest number of ranks that fits; None not to look for one.
    """

    layers: list[KvLayer]
    computed_blocks: int
    hybrid_ratio: float
    request_blocks: Callable[[int], int]
    given_length: int | None
    smallest_fitting: Callable[[], int | None] | None


def with_findings(plan: MemoryPlan, findings: Findings) -> MemoryPlan:
    """Return the plan with its warnings and issues."""
    warnings = [*_hybrid_warnings(plan, findings), *_override_warnings(plan, findings.computed_blocks)]
    return replace(plan, warnings=tuple(warnings), issues=tuple(_issues(plan, findings)))


def _hybrid_warnings(plan: MemoryPlan, findings: Findings) -> list[str]:
    sliding = sum(layer.count for layer in findings.layers if layer.window is not None)
    total = sum(layer.count for layer in findings.layers)
    if not sliding or plan.kv_group_windows:
        return []
    text = (
        f"{sliding} of {total} layers have sliding windows; KV capacity is that of vLLM with"
        f" --disable-hybrid-kv-cache-manager: {plan.num_gpu_blocks:,} blocks"
    )
    blocks = hybrid_num_blocks(
        findings.layers,
        available_bytes=plan.available_bytes,
        block_size=plan.block_size,
        hybrid_ratio=findings.hybrid_ratio,
    )
    if blocks is not None and plan.num_gpu_blocks_override is None:
        text += f"; with the manager on it would be {blocks:,} blocks, shared by groups of layers"
    return [text]


def _override_warnings(plan: MemoryPlan, computed: int) -> list[str]:
    override = plan.num_gpu_blocks_override
    if override is None or override <= computed:
        return []
    return [
        f"num_gpu_blocks_override is {override:,}, more than the {computed:,} blocks that memory is left for"
    ]


def _issues(plan: MemoryPlan, findings: Findings) -> list[Issue]:
    """Return vLLM's reasons not to start, with ways to mend them."""
    needed = plan.longest_request_blocks
    own = findings.given_length is None
    written = f"the model's own {plan.max_model_len}" if own else f"{plan.max_model_len}"
    override = plan.num_gpu_blocks_override
    if override is not None:
        return _override_issues(plan, override, needed, written)
    if plan.num_gpu_blocks >= needed:
        return []
    longest = bisect.bisect_right(
        range(1, plan.max_model_len + 1), plan.num_gpu_blocks, key=findings.request_blocks
    )
    remedies = [f"max_model_len {longest} or less"] if longest else []
    ranks = findings.smallest_fitting() if findings.smallest_fitting is not None else None
    if ranks is not None and ranks > plan.tensor_parallel_size:
        remedies.append(f"tensor_parallel_size {ranks} or more")
    fixed = plan.needed_bytes
    if longest == 0:
        message = (
            f"{plan.gpu} leaves no memory for the KV cache: {gib(fixed)} are needed for weights, "
            f"activations and graphs, {gib(plan.requested_bytes)} are usable; mend with "
            + (" or ".join(remedies) or "a larger GPU, or a smaller or quantised model")
        )
        return [Issue("hardware.gpu", plan.gpu, message)]
    message = (
        f"{'is' if own else 'was'} {written}, but the KV cache holds {longest} tokens and vLLM refuses to "
        f"start unless one longest request fits ({gib(needed * plan.bytes_per_block)} needed, "
        f"{gib(plan.available_bytes)} left)"
    )
    return [Issue("engine.max_model_len", findings.given_length, message, tuple(remedies))]


def _override_issues(plan: MemoryPlan, override: int, needed: int, written: str) -> list[Issue]:
    path = "engine.num_gpu_blocks_override"
    issues = []
    if override < needed:
        message = f"was {override}, but one request of max_model_len ({written}) takes {needed} blocks"
        issues.append(Issue(path, override, message, (f"{needed} or more",)))
    room = max(plan.total_bytes - plan.weights_bytes, 0) // plan.bytes_per_block
    if override > room:
        message = f"was {override}, but beside the weights {plan.gpu} has room for {room} blocks"
        issues.append(Issue(path, override, message, (f"{room} or less",) if room else ()))
    return issues
