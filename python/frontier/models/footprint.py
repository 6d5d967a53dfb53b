"""What a rank needs besides weights and KV cache, estimated: activations, the sampler, CUDA graphs.

vLLM measures these in a profile run at start; the formulas here stand in for it and are to be fitted on logs.
"""

from __future__ import annotations

from frontier.models.sharding import expert_width_per_rank, kv_heads_per_rank
from frontier.models.spec import DenseFeedForward, LayerGroup, ModelSpec, MultiHeadLatentAttention

_ITEMSIZE = 2
_LOGIT_BYTES = 18
"""Peak bytes per logit of the sampler's profile run: 16-bit and 32-bit logits (2 + 4), a sorted copy with
64-bit indices for top-k and top-p (4 + 8)."""
_GRAPH_BYTES_PER_LAYER = 192 * 2**10
"""Bytes of one captured graph per layer. An estimate: 51 sizes in two modes of 32 layers take 0.6 GiB."""
_MAX_LATENT_WORKSPACE_TOKENS = 64 * 1024


def activation_bytes(
    spec: ModelSpec,
    *,
    tensor_parallel_size: int,
    block_size: int,
    max_num_batched_tokens: int,
    max_num_seqs: int,
    max_model_len: int,
) -> int:
    """Estimate the peak of vLLM's profile run: the largest layer over all tokens, or logits and sampler.

    A layer holds the residual and its normed copy besides the larger of its attention part (projections and
    output) and feed-forward part (dense: gate, up and their product; experts: the two workspaces of
    tokens x top_k rows of vLLM's fused kernel). Every rank holds the logits of `max_num_seqs` rows over the
    whole vocabulary. Latent attention adds the workspace in which a cached prefix is expanded.
    """
    tp = tensor_parallel_size
    widest = max(_row_width(spec, group, tp) for group in spec.layers)
    layer = max_num_batched_tokens * (2 * spec.hidden_size + widest) * _ITEMSIZE
    logits = min(max_num_seqs, max_num_batched_tokens) * spec.vocab_size * _LOGIT_BYTES
    workspace_tokens = min(
        max(8 * max_model_len, 4 * max_num_seqs * block_size), _MAX_LATENT_WORKSPACE_TOKENS
    )
    return max(layer, logits) + workspace_tokens * _latent_workspace_width(spec, tp) * _ITEMSIZE


def capture_sizes(max_num_seqs: int, max_num_batched_tokens: int, *, cap: int) -> list[int]:
    """Return the token counts for which vLLM 0.32 captures CUDA graphs (without speculative decoding)."""
    limit = min(max_num_seqs * 2, cap, max_num_batched_tokens)
    sizes = {1, 2, 4, *range(8, 256, 8), *range(256, limit + 1, 16), max_num_batched_tokens, max_num_seqs}
    return sorted(size for size in sizes if size <= limit)


def graph_bytes(
    spec: ModelSpec, *, max_num_seqs: int, max_num_batched_tokens: int, wide: bool = False
) -> int:
    """Estimate the memory of CUDA graphs: every capture size, in piecewise and full mode, per layer.

    `wide` is for data-centre Blackwell (10.x), where vLLM captures up to 1024 tokens instead of 512; for
    gpt-oss it does so everywhere.
    """
    cap = 1024 if wide or spec.model_type == "gpt_oss" else 512
    sizes = capture_sizes(max_num_seqs, max_num_batched_tokens, cap=cap)
    return 2 * len(sizes) * spec.num_layers * _GRAPH_BYTES_PER_LAYER


def _row_width(spec: ModelSpec, group: LayerGroup, tp: int) -> int:
    """Return the elements per token of a layer's larger part."""
    attention, ffn, hidden = group.attention, group.feed_forward, spec.hidden_size
    heads = attention.num_heads // tp
    if isinstance(attention, MultiHeadLatentAttention):
        query = heads * (attention.nope_dim + attention.rope_dim)
        compressed = (attention.query_rank or 0) + attention.kv_rank + attention.rope_dim
        attended = query + compressed + heads * attention.value_dim
    else:
        kv_heads = kv_heads_per_rank(attention.num_kv_heads, tp)
        attended = (2 * heads + 2 * kv_heads) * attention.head_dim + (attention.query_rank or 0)
    if isinstance(ffn, DenseFeedForward):
        return max(attended, 3 * ffn.intermediate_size // tp)
    width = expert_width_per_rank(spec, ffn, tp)
    routed = ffn.top_k * (max(2 * width, hidden) + max(width, hidden))
    return max(attended, routed + hidden + 3 * ffn.shared_intermediate_size // tp)


def _latent_workspace_width(spec: ModelSpec, tp: int) -> int:
    """Return the elements per token of the workspace in which latent attention expands cached prefixes."""
    widths = [
        a.kv_rank + a.rope_dim + a.num_heads // tp * (a.nope_dim + a.value_dim)
        for a in (group.attention for group in spec.layers)
        if isinstance(a, MultiHeadLatentAttention) and a.indexer is None
    ]
    return max(widths, default=0)
