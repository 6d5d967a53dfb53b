"""Operators of one feed-forward layer on one rank, dense or with experts, as vLLM launches them."""

from __future__ import annotations

from frontier.models.operators import GroupedGemm, Operator, Storage, WeightTensor
from frontier.models.rank import Rank
from frontier.models.sharding import expert_width_per_rank
from frontier.models.spec import FeedForward, MixtureOfExperts

_FP32 = Storage("plain", 4)
_ROUTED = "routed_experts"


def feed_forward_operators(rank: Rank, ffn: FeedForward, count: int) -> list[Operator]:
    """Return the operators of `count` equal feed-forward layers, to the sum over ranks."""
    if isinstance(ffn, MixtureOfExperts):
        operators = [*_router(rank, ffn, count), *_routed_experts(rank, ffn, count)]
        operators += _shared_experts(rank, ffn, count)
    else:
        width = rank.shard(ffn.intermediate_size)
        operators = _gated("", rank, "dense_ffn", width, count, bias=ffn.bias)
    return operators + rank.all_reduce("feed_forward", count, rank.spec.hidden_size * rank.itemsize)


def _gated(prefix: str, rank: Rank, component: str, width: int, count: int, *, bias: bool) -> list[Operator]:
    """Return gate and up projection in one product, activation, down projection."""
    hidden = rank.spec.hidden_size
    outputs = [(f"{prefix}gate_proj", width), (f"{prefix}up_proj", width)]
    down = [(f"{prefix}down_proj", hidden)]
    return [
        *rank.linear(f"{prefix}gate_up_proj", count, component, hidden, outputs, bias=bias),
        rank.elementwise(f"{prefix}activation", count, component, 3 * width),
        *rank.linear(f"{prefix}down_proj", count, component, width, down, bias=bias),
    ]


def _router(rank: Rank, moe: MixtureOfExperts, count: int) -> list[Operator]:
    """Return the router, which every rank computes whole in 16 bits, and the choice of experts."""
    extra = [rank.vector("gate.bias", moe.num_experts)] if moe.router_bias else []
    if moe.correction_bias:
        extra.append(rank.vector("gate.e_score_correction_bias", moe.num_experts, storage=_FP32))
    outputs = [("gate", moe.num_experts)]
    chosen = 8.0 * moe.top_k  # a 32-bit expert number and a 32-bit weight each
    return [
        *rank.linear(
            "router.gate", count, "router", rank.spec.hidden_size, outputs, quantised=False, weights=extra
        ),
        rank.elementwise("router.topk", count, "router", moe.num_experts, extra_bytes=chosen),
    ]


def _routed_experts(rank: Rank, moe: MixtureOfExperts, count: int) -> list[Operator]:
    hidden = rank.spec.hidden_size
    width = expert_width_per_rank(rank.spec, moe, rank.tensor_parallel_size)
    operators: list[Operator] = []
    if rank.is_fp8:
        operators.append(rank.quantise(count, hidden))
    gate_up = [("experts.gate_proj", width), ("experts.up_proj", width)]
    operators.append(_grouped(rank, moe, "experts.gate_up_proj", count=count, k=hidden, outputs=gate_up))
    operators.append(rank.elementwise("experts.activation", count, _ROUTED, 3 * width * moe.top_k))
    if rank.is_fp8:
        operators.append(rank.quantise(count, width, per_token=moe.top_k))
    down = [("experts.down_proj", hidden)]
    operators.append(_grouped(rank, moe, "experts.down_proj", count=count, k=width, outputs=down))
    operators.append(rank.elementwise("experts.combine", count, _ROUTED, (moe.top_k + 1) * hidden))
    return operators


def _grouped(
    rank: Rank, moe: MixtureOfExperts, name: str, *, count: int, k: int, outputs: list[tuple[str, int]]
) -> GroupedGemm:
    """Return one product of the routed experts; mxfp4 weights are multiplied in 16 bits."""
    storage = rank.expert_storage
    experts = moe.num_experts
    tensors = [WeightTensor(f"{tensor}.weight", n, k, storage, copies=experts) for tensor, n in outputs]
    biases = (
        [WeightTensor(f"{tensor}.bias", n, 1, rank.plain, copies=experts) for tensor, n in outputs]
        if moe.expert_bias
        else []
    )
    n = sum(features for _, features in outputs)
    in_fp8 = storage.kind == "fp8_block"
    return GroupedGemm(
        name=name,
        count=count,
        component=_ROUTED,
        weights=(*tensors, *biases),
        active_share=(moe.top_k, experts),
        experts=experts,
        top_k=float(moe.top_k),
        k=k,
        n=n,
        dtype="fp8" if in_fp8 else rank.plan_dtype,
        weight_bytes_per_element=sum(tensor.bytes for tensor in tensors) / (experts * k * n),
        activation_bytes=(k + n * rank.itemsize) / (k + n) if in_fp8 else float(rank.itemsize),
    )


def _shared_experts(rank: Rank, moe: MixtureOfExperts, count: int) -> list[Operator]:
    """Return the shared experts and the sum of their output with the routed ones'."""
    if not moe.shared_intermediate_size:
        return []
    hidden, component = rank.spec.hidden_size, "shared_experts"
    width = rank.shard(moe.shared_intermediate_size)
    operators = _gated("shared_experts.", rank, component, width, count, bias=False)
    if moe.shared_gate:
        outputs = [("shared_expert_gate", 1)]
        operators += rank.linear("shared_expert_gate", count, component, hidden, outputs, quantised=False)
        operators.append(rank.elementwise("shared_experts.scale", count, component, 2 * hidden + 1))
    operators.append(rank.elementwise("shared_experts.add", count, component, 3 * hidden))
    return operators
