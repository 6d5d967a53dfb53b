"""The peak of vLLM's profile run: `max_num_batched_tokens` tokens through the model, then logits and sampler.

vLLM measures it at start; the formulas here stand in for it: each term is a tensor that is alive
then. Encoders of multimodal models are not in them.
"""

from __future__ import annotations

from dataclasses import dataclass

from frontier.hardware.spec import GpuSpec
from frontier.models.layout import Layout
from frontier.models.sharding import expert_width_per_rank, kv_heads_per_rank
from frontier.models.spec import (
    DenseFeedForward,
    GroupedQueryAttention,
    LayerGroup,
    MixtureOfExperts,
    ModelSpec,
    MultiHeadLatentAttention,
)

_MIB = 2**20
_ITEMSIZE = 2
_RESIDUAL_ROWS = 2
"""Hidden-size rows alive in a layer: the residual and its normed copy."""
_LOGIT_BYTES = 18
"""Per logit of the sampler: in 16 and in 32 bits (2 + 4), a sorted copy with 64-bit indices for top-k and
top-p (4 + 8)."""
_MAX_LATENT_WORKSPACE_TOKENS = 64 * 1024


@dataclass(frozen=True, slots=True)
class Batch:
    """What is profiled: the engine's limits, in tokens and requests."""

    max_num_batched_tokens: int
    max_num_seqs: int
    max_model_len: int
    block_size: int

    @property
    def rows(self) -> int:
        """Requests of the profile run, and so rows of logits."""
        return min(self.max_num_seqs, self.max_num_batched_tokens)


@dataclass(frozen=True, slots=True)
class ProfilePeak:
    """The peak of the profile run in bytes, by cause.

    Attributes:
        layer: the widest layer over all tokens.
        sampler: logits and sampler over all requests; 0 where the stage has no LM head.
        expert_workspace: kept by the fused expert kernels once allocated, so it adds to either.
        library_workspace: of cuBLAS, likewise.
    """

    layer: int
    sampler: int
    expert_workspace: int
    library_workspace: int

    @property
    def total(self) -> int:
        """The larger of layer and sampler, and what is kept."""
        return max(self.layer, self.sampler) + self.expert_workspace + self.library_workspace


def profile_peak(
    spec: ModelSpec,
    gpu: GpuSpec,
    batch: Batch,
    *,
    layout: Layout,
    sends_hidden_states: bool = False,
    has_head: bool = True,
) -> ProfilePeak:
    """Return the peak of one rank.

    `layer` = tokens x 2 bytes x (2 hidden + the larger of attention and feed-forward part); stages of a
    pipeline have two more hidden rows (the tensors they pass on). Latent attention tries the expansion of a
    cached prefix. `sampler` = requests x vocabulary x 18 bytes + the hidden states of
    all tokens and twice those of the sampled ones. Every tensor-parallel rank holds
    the whole vocabulary.
    """
    tp, tokens = layout.tensor_parallel_size, batch.max_num_batched_tokens
    widest = max(_row_width(spec, group, tp) for group in spec.layers)
    rows = _RESIDUAL_ROWS + (2 if sends_hidden_states else 0)
    layer = tokens * (rows * spec.hidden_size + widest) * _ITEMSIZE + _latent_workspace(spec, batch, tp)
    sampler = 0
    if has_head:
        sampler = batch.rows * spec.vocab_size * _LOGIT_BYTES
        sampler += (tokens + 2 * batch.rows) * spec.hidden_size * _ITEMSIZE
    capability = gpu.compute_capability or ""
    return ProfilePeak(
        layer=layer,
        sampler=sampler,
        expert_workspace=max(
            _expert_workspace(spec, group, tokens, layout, capability) for group in spec.layers
        ),
        library_workspace=(32 if capability.startswith(("9.", "10.")) else 8) * _MIB,
    )


def row_bytes(spec: ModelSpec, tensor_parallel_size: int) -> int:
    """Return the bytes that one token takes in the widest layer."""
    widest = max(_row_width(spec, group, tensor_parallel_size) for group in spec.layers)
    return (_RESIDUAL_ROWS * spec.hidden_size + widest) * _ITEMSIZE


def _row_width(spec: ModelSpec, group: LayerGroup, tp: int) -> int:
    """Return the elements per token of a layer's larger part, expert workspaces apart."""
    attention, ffn = group.attention, group.feed_forward
    heads = attention.num_heads // tp
    if isinstance(attention, MultiHeadLatentAttention):
        query = heads * (attention.nope_dim + attention.rope_dim)
        compressed = (attention.query_rank or 0) + attention.kv_rank + attention.rope_dim
        attended = query + compressed + heads * attention.value_dim
    else:
        attended = _attention_width(attention, heads, tp)
    if isinstance(ffn, DenseFeedForward):
        return max(attended, 3 * ffn.intermediate_size // tp)
    return max(attended, spec.hidden_size + 3 * ffn.shared_intermediate_size // tp)


def _attention_width(attention: GroupedQueryAttention, heads: int, tp: int) -> int:
    kv_heads = kv_heads_per_rank(attention.num_kv_heads, tp)
    return (2 * heads + 2 * kv_heads) * attention.head_dim + (attention.query_rank or 0)


def _expert_workspace(
    spec: ModelSpec, group: LayerGroup, tokens: int, layout: Layout, capability: str
) -> int:
    """Return the two workspaces of the fused expert kernel, of tokens x top_k rows each.

    The tokens are those of all data-parallel ranks where these are gathered.

    One holds the rows that experts read and write, the other gate and up (wider of the two).
    """
    ffn = group.feed_forward
    if not isinstance(ffn, MixtureOfExperts):
        return 0
    width = expert_width_per_rank(spec, ffn, layout.expert_tensor_parallel_size)
    per_row = max(width, spec.hidden_size) + max(2 * width, spec.hidden_size)
    gathered = tokens if layout.is_deepep else tokens * layout.data_parallel_size
    return gathered * ffn.top_k * per_row * _ITEMSIZE


def _latent_workspace(spec: ModelSpec, batch: Batch, tp: int) -> int:
    """Return the transient expansion of a cached prefix that latent attention tries while profiling."""
    widths = [
        a.num_heads // tp * (a.nope_dim + a.value_dim)
        for a in (group.attention for group in spec.layers)
        if isinstance(a, MultiHeadLatentAttention) and a.indexer is None
    ]
    tokens = max(8 * batch.max_model_len, 4 * batch.max_num_seqs * batch.block_size)
    return min(tokens, _MAX_LATENT_WORKSPACE_TOKENS) * max(widths, default=0) * _ITEMSIZE
