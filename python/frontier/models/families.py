"""The model types that are understood: how each one's configuration keys become layers.

Key names and class defaults are those of Hugging Face transformers (`configuration_*.py` of each model type);
for Step-3 those of vLLM (`transformers_utils/configs/step3_vl.py`). A reader takes the `Fields` of a
configuration and returns one `LayerGroup` of count 1 per layer; problems gather in the fields.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from frontier.models.fields import Fields
from frontier.models.spec import (
    DenseFeedForward,
    FeedForward,
    GroupedQueryAttention,
    LayerGroup,
    MixtureOfExperts,
    MultiHeadLatentAttention,
    SparseIndexer,
)

_SLIDING = "sliding_attention"
_FULL = "full_attention"


@dataclass(frozen=True, slots=True)
class Family:
    """How one model type is read, and whether it ties the LM head to the embedding unless told otherwise."""

    layers: Callable[[Fields], list[LayerGroup]]
    tie_by_default: bool = False


def _num_layers(f: Fields) -> int:
    """Read the depth, bounded so that a mistyped number cannot exhaust memory."""
    count = f.whole("num_hidden_layers")
    if count > 10_000:
        f.problem("num_hidden_layers", f"was {count}; at most 10000 layers are accepted", value=count)
        return 1
    return count


def _grouped_query(
    f: Fields,
    *,
    head_dim: int | None = None,
    qkv_bias: bool = False,
    output_bias: bool = False,
    qk_norm: Literal["per_head", "full"] | None = None,
    rotary_share: float = 1.0,
) -> GroupedQueryAttention:
    """Read the common keys of multi-head, grouped-query and multi-query attention.

    `head_dim` is the class default where the key is missing; None stands for hidden_size / heads.
    """
    hidden = f.whole("hidden_size")
    heads = f.whole("num_attention_heads")
    kv_heads = f.whole("num_key_value_heads", default=heads)
    f.must_divide("num_key_value_heads", kv_heads, "num_attention_heads", heads)
    if head_dim is None and not f.has("head_dim"):
        f.must_divide("num_attention_heads", heads, "hidden_size", hidden)
        head_dim = max(hidden // heads, 1)
    width = f.whole("head_dim", default=head_dim)
    return GroupedQueryAttention(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=width,
        rotary_dim=_rotary_dim(f, width, rotary_share),
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        qk_norm=qk_norm,
    )


def _rotary_dim(f: Fields, head_dim: int, default_share: float) -> int:
    if f.has("rotary_dim"):
        return min(f.whole("rotary_dim", minimum=0), head_dim)
    rope = f.config.get("rope_parameters")
    share: Any = rope.get("partial_rotary_factor") if isinstance(rope, dict) else None
    share = f.config.get("partial_rotary_factor") if share is None else share
    if share is None:
        share = default_share
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        f.problem("partial_rotary_factor", f"was {share!r}; a number from 0 to 1 is needed", value=share)
        share = 1.0
    return int(head_dim * share)


def _stack(
    f: Fields,
    attention: Callable[[int], GroupedQueryAttention | MultiHeadLatentAttention],
    feed_forward: Callable[[int], FeedForward],
    *,
    norms: int = 2,
) -> list[LayerGroup]:
    return [LayerGroup(1, attention(i), feed_forward(i), norms) for i in range(_num_layers(f))]


def _windows(f: Fields, pattern: Callable[[int], bool]) -> list[int | None]:
    """Return each layer's window: by `layer_types` if given, else sliding where `pattern` says so."""
    depth = _num_layers(f)
    types = f.per_layer("layer_types", depth, (_FULL, _SLIDING))
    sliding = [t == _SLIDING for t in types] if types is not None else [pattern(i) for i in range(depth)]
    if not any(sliding):
        return [None] * depth
    window = f.whole("sliding_window")
    return [window if s else None for s in sliding]


def _alternating_attention(
    f: Fields, base: GroupedQueryAttention, windows: list[int | None]
) -> Callable[[int], GroupedQueryAttention]:
    return lambda i: replace(base, window=windows[i]) if i < len(windows) else base


def _dense(f: Fields, *, bias: bool = False) -> DenseFeedForward:
    return DenseFeedForward(f.whole("intermediate_size"), bias=bias)


def _experts(f: Fields, num: int, top_k_key: str, **rest: Any) -> dict[str, Any]:
    top_k = f.whole(top_k_key)
    if top_k > num:
        f.problem(top_k_key, f"was {top_k}, more than the {num} experts there are", value=top_k)
    return {"num_experts": num, "top_k": min(top_k, num), **rest}


def _llama(f: Fields) -> list[LayerGroup]:
    bias = f.flag("attention_bias", default=False)
    attention = _grouped_query(f, qkv_bias=bias, output_bias=bias)
    dense = _dense(f, bias=f.flag("mlp_bias", default=False))
    return _stack(f, lambda i: attention, lambda i: dense)


def _mistral(f: Fields) -> list[LayerGroup]:
    everywhere = f.has("sliding_window")
    attention = _alternating_attention(f, _grouped_query(f), _windows(f, lambda i: everywhere))
    dense = _dense(f)
    return _stack(f, attention, lambda i: dense)


def _mixtral(f: Fields) -> list[LayerGroup]:
    everywhere = f.has("sliding_window")
    attention = _alternating_attention(f, _grouped_query(f), _windows(f, lambda i: everywhere))
    size = f.whole("intermediate_size")
    moe = MixtureOfExperts(
        **_experts(f, f.whole("num_local_experts"), "num_experts_per_tok"), intermediate_size=size
    )
    return _stack(f, attention, lambda i: moe)


def _qwen_windows(f: Fields) -> list[int | None]:
    """Return Qwen's windows: with `use_sliding_window` the layers from `max_window_layers` on slide."""
    if not f.flag("use_sliding_window", default=False):
        return [None] * _num_layers(f)
    first = f.whole("max_window_layers", default=28, minimum=0)
    return _windows(f, lambda i: i >= first)


def _qwen_feed_forward(f: Fields, moe: MixtureOfExperts) -> Callable[[int], FeedForward]:
    """Return Qwen's choice: experts on every `decoder_sparse_step`-th layer outside `mlp_only_layers`."""
    step = f.whole("decoder_sparse_step", default=1)
    dense_only = f.layer_set("mlp_only_layers", _num_layers(f)) or set()
    sparse = [i not in dense_only and (i + 1) % step == 0 for i in range(_num_layers(f))]
    dense = None if all(sparse) else _dense(f)
    return lambda i: moe if sparse[i] or dense is None else dense


def _qwen2(f: Fields) -> list[LayerGroup]:
    attention = _alternating_attention(f, _grouped_query(f, qkv_bias=True), _qwen_windows(f))
    dense = _dense(f)
    return _stack(f, attention, lambda i: dense)


def _qwen2_moe(f: Fields) -> list[LayerGroup]:
    base = _grouped_query(f, qkv_bias=f.flag("qkv_bias", default=True))
    moe = MixtureOfExperts(
        **_experts(f, f.whole("num_experts"), "num_experts_per_tok"),
        intermediate_size=f.whole("moe_intermediate_size"),
        shared_intermediate_size=f.whole("shared_expert_intermediate_size"),
        shared_gate=True,
    )
    return _stack(f, _alternating_attention(f, base, _qwen_windows(f)), _qwen_feed_forward(f, moe))


def _qwen3(f: Fields) -> list[LayerGroup]:
    bias = f.flag("attention_bias", default=False)
    base = _grouped_query(f, head_dim=128, qkv_bias=bias, output_bias=bias, qk_norm="per_head")
    dense = _dense(f)
    return _stack(f, _alternating_attention(f, base, _qwen_windows(f)), lambda i: dense)


def _qwen3_moe(f: Fields) -> list[LayerGroup]:
    bias = f.flag("attention_bias", default=False)
    base = _grouped_query(f, qkv_bias=bias, output_bias=bias, qk_norm="per_head")
    moe = MixtureOfExperts(
        **_experts(f, f.whole("num_experts", "num_local_experts"), "num_experts_per_tok"),
        intermediate_size=f.whole("moe_intermediate_size"),
    )
    return _stack(f, _alternating_attention(f, base, _qwen_windows(f)), _qwen_feed_forward(f, moe))


def _gemma2(f: Fields) -> list[LayerGroup]:
    bias = f.flag("attention_bias", default=False)
    base = _grouped_query(f, head_dim=256, qkv_bias=bias, output_bias=bias)
    windows = _windows(f, lambda i: i % 2 == 0)
    dense = _dense(f)
    return _stack(f, _alternating_attention(f, base, windows), lambda i: dense, norms=4)


def _gemma3(f: Fields) -> list[LayerGroup]:
    bias = f.flag("attention_bias", default=False)
    base = _grouped_query(f, head_dim=256, qkv_bias=bias, output_bias=bias, qk_norm="per_head")
    period = f.whole("sliding_window_pattern", "_sliding_window_pattern", default=6)
    windows = _windows(f, lambda i: (i + 1) % period != 0)
    dense = _dense(f)
    return _stack(f, _alternating_attention(f, base, windows), lambda i: dense, norms=4)


def _gpt_oss(f: Fields) -> list[LayerGroup]:
    bias = f.flag("attention_bias", default=True)
    base = replace(_grouped_query(f, head_dim=64, qkv_bias=bias, output_bias=bias), sinks=True)
    windows = _windows(f, lambda i: i % 2 == 0)
    size = f.whole("intermediate_size")
    moe = MixtureOfExperts(
        **_experts(f, f.whole("num_local_experts", "num_experts"), "num_experts_per_tok"),
        intermediate_size=size,
        expert_bias=True,
        router_bias=True,
    )
    return _stack(f, _alternating_attention(f, base, windows), lambda i: moe)


def _minimax_m2(f: Fields) -> list[LayerGroup]:
    qk_norm: Literal["full"] | None = "full" if f.flag("use_qk_norm", default=True) else None
    attention = _grouped_query(f, head_dim=128, qk_norm=qk_norm)
    size = f.whole("intermediate_size")
    moe = MixtureOfExperts(
        **_experts(f, f.whole("num_local_experts"), "num_experts_per_tok"),
        intermediate_size=size,
        shared_intermediate_size=f.whole("shared_intermediate_size", default=0, minimum=0),
        correction_bias=f.flag("use_routing_bias", default=True),
    )
    return _stack(f, lambda i: attention, lambda i: moe)


def _step3(f: Fields) -> list[LayerGroup]:
    heads = f.whole("num_attention_heads")
    if (groups := f.whole("num_attention_groups", default=1)) != 1:
        f.problem("num_attention_groups", f"was {groups}; multi-matrix factorization has 1", value=groups)
    width = f.whole("head_dim")
    attention = GroupedQueryAttention(
        num_heads=heads,
        num_kv_heads=1,
        head_dim=width,
        rotary_dim=width,
        query_rank=f.whole("share_q_dim"),
    )
    moe = MixtureOfExperts(
        **_experts(f, f.whole("moe_num_experts"), "moe_top_k"),
        intermediate_size=f.whole("moe_intermediate_size"),
        shared_intermediate_size=f.whole("share_expert_dim"),
    )
    sparse = f.layer_set("moe_layers_enum", _num_layers(f))
    dense = _dense(f)
    return _stack(
        f, lambda i: attention, lambda i: moe if (i > 0 if sparse is None else i in sparse) else dense
    )


def _deepseek_moe(f: Fields, *, correction_bias: bool) -> MixtureOfExperts:
    size = f.whole("moe_intermediate_size")
    shared = f.whole("n_shared_experts", default=0, minimum=0)
    return MixtureOfExperts(
        **_experts(f, f.whole("n_routed_experts", "num_local_experts", "num_experts"), "num_experts_per_tok"),
        intermediate_size=size,
        shared_intermediate_size=shared * size,
        correction_bias=correction_bias,
    )


def _first_dense(f: Fields, moe: MixtureOfExperts) -> Callable[[int], FeedForward]:
    """Return DeepSeek's choice: `mlp_layer_types`, else dense before `first_k_dense_replace`."""
    depth = _num_layers(f)
    types = f.per_layer("mlp_layer_types", depth, ("dense", "sparse"))
    first = f.whole("first_k_dense_replace", default=0, minimum=0)
    every = f.whole("moe_layer_freq", default=1)
    sparse = (
        [t == "sparse" for t in types]
        if types is not None
        else [i >= first and i % every == 0 for i in range(depth)]
    )
    dense = None if all(sparse) else _dense(f)
    return lambda i: moe if sparse[i] or dense is None else dense


def _latent(f: Fields) -> MultiHeadLatentAttention:
    return MultiHeadLatentAttention(
        num_heads=f.whole("num_attention_heads"),
        query_rank=f.optional_whole("q_lora_rank"),
        kv_rank=f.whole("kv_lora_rank"),
        nope_dim=f.whole("qk_nope_head_dim"),
        rope_dim=f.whole("qk_rope_head_dim"),
        value_dim=f.whole("v_head_dim"),
        bias=f.flag("attention_bias", default=False),
    )


def _deepseek_v2(f: Fields) -> list[LayerGroup]:
    attention = _latent(f)
    methods = ("greedy", "group_limited_greedy", "noaux_tc")
    method = f.text("topk_method", default="greedy", allowed=methods)
    moe = _deepseek_moe(f, correction_bias=method == "noaux_tc")
    return _stack(f, lambda i: attention, _first_dense(f, moe))


def _deepseek_v3(f: Fields) -> list[LayerGroup]:
    attention = _latent(f)
    moe = _deepseek_moe(f, correction_bias=True)
    return _stack(f, lambda i: attention, _first_dense(f, moe))


def _sparse_latent(f: Fields) -> list[LayerGroup]:
    """Read DeepSeek sparse attention: DeepSeek-V3.2 (an indexer in every layer) and the GLM-5 line."""
    base = _latent(f)
    if base.query_rank is None:
        f.problem("q_lora_rank", "is missing; the indexer of sparse attention reads the compressed query")
    indexer = SparseIndexer(f.whole("index_n_heads"), f.whole("index_head_dim"), f.whole("index_topk"))
    shared = _shared_indexers(f)
    moe = _deepseek_moe(f, correction_bias=True)
    return _stack(
        f, lambda i: replace(base, indexer=replace(indexer, shared=shared[i])), _first_dense(f, moe)
    )


def _shared_indexers(f: Fields) -> list[bool]:
    """Return which layers reuse the choice of the layer before (GLM-5.2: `indexer_types`)."""
    depth = _num_layers(f)
    types = f.per_layer("indexer_types", depth, ("full", "shared"))
    if types is not None:
        if types[0] == "shared":
            f.problem("indexer_types", "starts with 'shared', but the first layer has no layer before it")
        return [t == "shared" for t in types]
    if f.has("index_topk_pattern"):
        f.problem("index_topk_pattern", "is not read; give indexer_types, one entry per layer")
    every = f.whole("index_topk_freq", default=1)
    offset = f.whole("index_skip_topk_offset", default=2, minimum=0)
    return [max(i - offset + 1, 0) % every != 0 for i in range(depth)]


def _glm4_moe(f: Fields) -> list[LayerGroup]:
    attention = _grouped_query(
        f,
        qkv_bias=f.flag("attention_bias", default=False),
        qk_norm="per_head" if f.flag("use_qk_norm", default=False) else None,
        rotary_share=0.5,
    )
    moe = _deepseek_moe(f, correction_bias=True)
    return _stack(f, lambda i: attention, _first_dense(f, moe))


FAMILIES: dict[str, Family] = {
    "deepseek_v2": Family(_deepseek_v2),
    "deepseek_v3": Family(_deepseek_v3),
    "deepseek_v32": Family(_sparse_latent),
    "gemma2": Family(_gemma2, tie_by_default=True),
    "gemma3_text": Family(_gemma3, tie_by_default=True),
    "glm4_moe": Family(_glm4_moe),
    "glm4_moe_lite": Family(_deepseek_v3),
    "glm_moe_dsa": Family(_sparse_latent),
    "gpt_oss": Family(_gpt_oss),
    "kimi_k2": Family(_deepseek_v3),
    "llama": Family(_llama),
    "minimax_m2": Family(_minimax_m2),
    "mistral": Family(_mistral),
    "mixtral": Family(_mixtral),
    "phi3": Family(_mistral),
    "qwen2": Family(_qwen2),
    "qwen2_moe": Family(_qwen2_moe),
    "qwen3": Family(_qwen3),
    "qwen3_moe": Family(_qwen3_moe),
    "step3_text": Family(_step3),
}
"""Every model type that is modelled, by its `model_type`."""
