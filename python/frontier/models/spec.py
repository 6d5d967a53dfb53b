"""What a decoder-only transformer is made of, in the words of vLLM: the facts that cost time or memory.

A `ModelSpec` is a stack of layers; a layer is an attention kind and a feed-forward kind, and equal layers are
counted once (`layers`). Shapes are those of the whole model; sharding over tensor-parallel ranks belongs to
`frontier.models.program`. Weights are counted there as well, so that there is one truth for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ModelDtype = Literal["bfloat16", "float16", "float32"]


@dataclass(frozen=True, slots=True)
class GroupedQueryAttention:
    """Multi-head (all KV heads), grouped-query or multi-query (one KV head) attention.

    Attributes:
        num_heads: query heads.
        num_kv_heads: key and value heads; divides `num_heads`.
        head_dim: width of a query, key and value head.
        rotary_dim: leading part of a head that the rotary embedding turns.
        window: keys a query sees at most, itself included; None for full attention.
        qkv_bias: the Q, K and V projections have biases.
        output_bias: the output projection has a bias.
        qk_norm: RMS norm of queries and keys, per head (one weight of `head_dim` for all heads) or over the
            whole projection (a weight of heads x `head_dim`).
        sinks: one learned attention sink per head (gpt-oss).
        query_rank: width of a shared latent from which all query heads are expanded (multi-matrix
            factorization attention of Step-3, arXiv:2507.19427); None where queries come from the input.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_dim: int
    window: int | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: Literal["per_head", "full"] | None = None
    sinks: bool = False
    query_rank: int | None = None

    @property
    def kind(self) -> str:
        """Name of the kind: `full`, `sliding` or `mfa`."""
        if self.query_rank is not None:
            return "mfa"
        return "full" if self.window is None else "sliding"


@dataclass(frozen=True, slots=True)
class SparseIndexer:
    """The lightning indexer of DeepSeek sparse attention (DeepSeek-V3.2-Exp, `inference/model.py`).

    Scores every key with `num_heads` small heads and keeps `top_k` keys for the attention proper. A layer
    whose `shared` is true reuses the choice of the layer before it and has neither weights nor key cache
    (GLM-5.2).
    """

    num_heads: int
    head_dim: int
    top_k: int
    shared: bool = False


@dataclass(frozen=True, slots=True)
class MultiHeadLatentAttention:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): one compressed KV vector for all heads.

    Attributes:
        num_heads: query heads.
        query_rank: width of the compressed query (`q_lora_rank`); None where queries are projected directly.
        kv_rank: width of the compressed key-value vector (`kv_lora_rank`).
        nope_dim: part of a query head without position (`qk_nope_head_dim`).
        rope_dim: part with rotary position, one key for all heads (`qk_rope_head_dim`).
        value_dim: width of a value head (`v_head_dim`).
        bias: the compressing and output projections have biases.
        indexer: sparse selection of keys, if the layer has one.
    """

    num_heads: int
    query_rank: int | None
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    bias: bool = False
    indexer: SparseIndexer | None = None

    @property
    def kind(self) -> str:
        """Name of the kind: `mla` or `mla_sparse`."""
        return "mla" if self.indexer is None else "mla_sparse"


Attention = GroupedQueryAttention | MultiHeadLatentAttention


@dataclass(frozen=True, slots=True)
class DenseFeedForward:
    """A gated feed-forward layer: up and gate projections, activation, down projection."""

    intermediate_size: int
    bias: bool = False

    @property
    def kind(self) -> str:
        """Name of the kind: `dense`."""
        return "dense"


@dataclass(frozen=True, slots=True)
class MixtureOfExperts:
    """Routed experts, each a gated feed-forward layer, and shared experts that every token visits.

    Attributes:
        num_experts: routed experts.
        top_k: routed experts per token.
        intermediate_size: width of a routed expert.
        shared_intermediate_size: width of all shared experts together; 0 for none.
        shared_gate: the shared experts' output is scaled by a learned gate (Qwen2-MoE).
        expert_bias: routed experts have biases (gpt-oss).
        router_bias: the router has a bias that is added to its logits (gpt-oss).
        correction_bias: the router has a load-balancing bias per expert, kept in 32 bits (DeepSeek-V3).
    """

    num_experts: int
    top_k: int
    intermediate_size: int
    shared_intermediate_size: int = 0
    shared_gate: bool = False
    expert_bias: bool = False
    router_bias: bool = False
    correction_bias: bool = False

    @property
    def kind(self) -> str:
        """Name of the kind: `moe`."""
        return "moe"


FeedForward = DenseFeedForward | MixtureOfExperts


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Equal layers: how many, and of which attention and feed-forward kind.

    `norms` is the number of hidden-size RMS norms of one layer: 2 (before attention and before feed-forward)
    or 4 (after both as well, Gemma).
    """

    count: int
    attention: Attention
    feed_forward: FeedForward
    norms: int = 2

    @property
    def kind(self) -> str:
        """Both kinds, as in `full+dense`."""
        return f"{self.attention.kind}+{self.feed_forward.kind}"


QuantizationMethod = Literal[
    "fp8_block",
    "fp8_tensor",
    "fp8_channel",
    "int8_channel",
    "int8_group",
    "int4_group",
    "int4_group_zero",
    "mxfp4",
    "mxfp8",
    "nvfp4",
]
Arithmetic = Literal["fp8", "int8", "fp4"]

_ARITHMETIC: dict[str, Arithmetic] = {
    "fp8_block": "fp8",
    "fp8_tensor": "fp8",
    "fp8_channel": "fp8",
    "mxfp8": "fp8",
    "int8_channel": "int8",
    "nvfp4": "fp4",
}


@dataclass(frozen=True, slots=True)
class Quantization:
    """How the weights of linear layers are stored, and in what they are multiplied.

    Attributes:
        method: how weights are stored (`frontier.models.weights.Storage` has the bits).
        block: rows x columns of weights that share a scale; 0 is the whole extent.
        weight_only: activations stay in 16 bits, and so does the arithmetic: kernels widen weights as they
            read them (Marlin). Always so for 4- and 8-bit integers in groups and for mxfp4.
        static: activation scales come with the checkpoint; otherwise they are found per token (per group of
            `block[1]` features in `fp8_block`, of 32 in `mxfp8`, of 16 in `nvfp4`).
        experts_only: routed experts alone are quantised.
        plain: parts that stay in 16 bits beside those that always do: components (`attention`, `dense_ffn`,
            `shared_experts`, `routed_experts`) or modules (`o_proj`).
        kv_cache: the type that the checkpoint declares for the KV cache.
        name: vLLM's name of the scheme (`--quantization`).
        online: the engine converts a 16-bit checkpoint as it loads.
    """

    method: QuantizationMethod
    block: tuple[int, int]
    weight_only: bool = False
    static: bool = False
    experts_only: bool = False
    plain: frozenset[str] = frozenset()
    kv_cache: Literal["fp8"] | None = None
    name: str = ""
    online: bool = False

    @property
    def arithmetic(self) -> Arithmetic | None:
        """Number type of the products; None for that of plain weights."""
        return None if self.weight_only else _ARITHMETIC.get(self.method)

    def covers(self, component: str, module: str) -> bool:
        """Return whether a module (its last name, as in `o_proj`) of a component is quantised."""
        if self.experts_only and component != "routed_experts":
            return False
        return component not in self.plain and module not in self.plain


@dataclass(frozen=True, slots=True)
class VisionTower:
    """A vision transformer and what brings its output to the language model's width, in whole-model sizes.

    Its tokens are patches. Attention is bidirectional, with as many key heads as query heads.

    Attributes:
        num_layers: transformer layers.
        hidden_size: width of a patch's state.
        num_heads: attention heads; divides `hidden_size`.
        intermediate_size: width of the feed-forward part.
        gated: it has a gate (SwiGLU); otherwise it is two products with an activation between them.
        rms_norm: norms are RMS norms; otherwise layer norms, which have a bias.
        patch_elements: numbers that make a patch: channels x frames x rows x columns.
        patch_bias: their projection has a bias.
        positions: rows of a table of learned positions; 0 without one.
        interpolated: a patch's position is a mean of four of its rows.
        rotary: queries and keys are turned.
        block_tokens: patches that see each other (a window, or an image of fixed size); None for all patches
            of a request.
        full_layers: layers that all patches of a request see each other in, in spite of `block_tokens`.
        final_norm: a norm follows the last layer.
        merge: patches that become one embedding of the language model.
        pooled: their mean is projected by one matrix; otherwise they are joined and go through two products.
        deepstack: layers whose output is merged, too, for layers of the language model (Qwen3-VL); each adds
            to the embeddings that are handed on.
        out_hidden_size: width of an embedding: that of the language model.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    gated: bool
    rms_norm: bool
    patch_elements: int
    patch_bias: bool
    positions: int
    interpolated: bool
    rotary: bool
    block_tokens: int | None
    full_layers: int
    final_norm: bool
    merge: int
    pooled: bool
    deepstack: int
    out_hidden_size: int

    @property
    def embedding_width(self) -> int:
        """Numbers that the language model gets for each embedding."""
        return self.out_hidden_size * (1 + self.deepstack)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A decoder-only text model, or the language part of a model that also sees.

    Attributes:
        name: preset name, or what the description was read from.
        model_type: `model_type` of the Hugging Face configuration.
        hidden_size: width of the residual stream.
        vocab_size: rows of the embedding.
        max_model_len: longest context in tokens that the configuration allows, by vLLM's rule.
        tie_word_embeddings: the LM head is the embedding.
        dtype: type of the weights that are not quantised.
        layers: groups of equal layers in order of first appearance.
        layer_pattern: for each layer, the index of its group.
        quantization: how the checkpoint stores its linear layers; None for plain `dtype`.
        source: where the description comes from.
        num_nextn_predict_layers: multi-token prediction layers that come with the checkpoint, not among
            `layers`.
        draft_vocab_size: tokens that a draft head can name, where these are fewer than the vocabulary
            (EAGLE-3).
        vision: what encodes images before the prompt, if anything.
    """

    name: str
    model_type: str
    hidden_size: int
    vocab_size: int
    max_model_len: int
    tie_word_embeddings: bool
    dtype: ModelDtype
    layers: tuple[LayerGroup, ...]
    layer_pattern: tuple[int, ...]
    quantization: Quantization | None = None
    source: str | None = None
    num_nextn_predict_layers: int = 0
    draft_vocab_size: int | None = None
    vision: VisionTower | None = None

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.layer_pattern)

    @property
    def is_moe(self) -> bool:
        """Whether any layer has routed experts."""
        return any(isinstance(group.feed_forward, MixtureOfExperts) for group in self.layers)


def group_layers(layers: list[LayerGroup]) -> tuple[tuple[LayerGroup, ...], tuple[int, ...]]:
    """Merge equal layers, given one by one with count 1; return the groups and each layer's group."""
    counts: dict[LayerGroup, int] = {}
    for layer in layers:
        counts[layer] = counts.get(layer, 0) + 1
    index = {layer: i for i, layer in enumerate(counts)}
    groups = tuple(
        LayerGroup(count=n, attention=layer.attention, feed_forward=layer.feed_forward, norms=layer.norms)
        for layer, n in counts.items()
    )
    return groups, tuple(index[layer] for layer in layers)
