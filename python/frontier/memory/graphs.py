"""Which CUDA graphs vLLM captures, and an estimate of their memory."""

from __future__ import annotations

from frontier.memory.activation import row_bytes
from frontier.memory.versions import VllmRules
from frontier.models.spec import ModelSpec

_MIB = 2**20
_GRAPH_BYTES_PER_LAYER = 192 * 2**10
"""Bytes that one more captured graph takes per layer: assumed (kernel nodes and their parameters)."""


def capture_sizes(
    max_num_seqs: int,
    max_num_batched_tokens: int,
    *,
    rules: VllmRules,
    model_type: str = "",
    compute_capability: str | None = None,
    num_speculative_tokens: int = 0,
    dense: bool = True,
    interactivity: bool = False,
) -> list[int]:
    """Return the token counts for which a version captures graphs (vllm/config/vllm.py).

    The cap is `max_num_seqs` x (1 + drafts) x 2, at most 512 (1024 on data-centre Blackwell from 0.28), or
    1024 for gpt-oss whatever `max_num_seqs` is; and at most the batched tokens. `dense` tells which model
    runner serves the model from 0.26 to 0.28; the older one rounds sizes up to multiples of 1 + drafts.
    """
    minor, query = rules.minor, 1 + num_speculative_tokens
    most = 1024 if minor >= 28 and (compute_capability or "").startswith("10.") else 512
    cap = min(max_num_seqs * (query if minor > 12 else 1) * 2, most)
    if model_type == "gpt_oss":
        cap = 1024
    cap = min(cap, max_num_batched_tokens)
    ladder = {*range(8, 249, 8), *range(256, cap + 1, 16)}
    small = range(1, min(cap, 32) + 1) if interactivity and minor >= 17 else (1, 2, 4)
    sizes = {*small, *ladder}
    if minor >= 20:
        sizes.add(max_num_batched_tokens)
    if minor >= 29 and num_speculative_tokens:
        sizes |= {requests * query for requests in {*small, *ladder, max_num_seqs}}
    if minor >= 31 and not num_speculative_tokens:
        sizes.add(max_num_seqs)
    second_runner = minor >= 29 or (minor >= 26 and dense)
    if num_speculative_tokens and not second_runner:
        sizes = {-(-size // query) * query for size in sizes}
    return sorted(size for size in sizes if size <= cap)


def graph_bytes(
    spec: ModelSpec,
    sizes: list[int],
    *,
    tensor_parallel_size: int,
    max_num_seqs: int,
    num_speculative_tokens: int,
) -> int:
    """Estimate what vLLM takes off for graphs: the first one, and a constant per further graph.

    Piecewise graphs exist for all `sizes`, full decode graphs up to `max_num_seqs` x (1 + drafts). The
    first holds the activations of the largest size, which later ones share.
    """
    if not sizes:
        return 0
    query = 1 + num_speculative_tokens
    full = sum(query <= size <= max_num_seqs * query for size in sizes)
    first = sizes[-1] * row_bytes(spec, tensor_parallel_size)
    further = max(len(sizes) + full - 1, 0)
    return first + further * max(spec.num_layers * _GRAPH_BYTES_PER_LAYER, _MIB)
