"""Operators of one attention layer on one rank, as vLLM launches them.

Left out because the plan cannot say it: choosing the top keys of sparse attention from its scores, and the
re-expansion of a cached prefix in latent attention.
"""

from __future__ import annotations

from frontier.models.context_parallel import exchange_queries, gather_keys, merge_outputs
from frontier.models.kv import attention_kv_bytes, indexer_kv_bytes, latent_kv_bytes
from frontier.models.operators import Attention, Gemm, Operator
from frontier.models.rank import Rank
from frontier.models.sharding import kv_heads_per_rank
from frontier.models.spec import GroupedQueryAttention, MultiHeadLatentAttention, SparseIndexer
from frontier.models.weights import WeightTensor

_COMPONENT = "attention"
_SLOT_BYTES = 8
"""Bytes of a token's slot number in the paged cache."""


def attention_operators(
    rank: Rank, attention: GroupedQueryAttention | MultiHeadLatentAttention, count: int
) -> list[Operator]:
    """Return the operators of `count` equal attention layers, from input to output projection.

    Its output is yet to be summed over tensor parallel ranks.
    """
    if isinstance(attention, MultiHeadLatentAttention):
        operators = _latent_operators(rank, attention, count)
        width, bias = rank.shard(attention.num_heads) * attention.value_dim, attention.bias
    else:
        operators = _grouped_query_operators(rank, attention, count)
        width = rank.shard(attention.num_heads) * attention.head_dim
        bias = attention.output_bias
    hidden = rank.spec.hidden_size
    return operators + rank.linear("o_proj", count, _COMPONENT, width, [("o_proj", hidden)], bias=bias)


def _grouped_query_operators(rank: Rank, attention: GroupedQueryAttention, count: int) -> list[Operator]:
    heads = rank.shard(attention.num_heads)
    kv_heads = kv_heads_per_rank(attention.num_kv_heads, rank.tensor_parallel_size)
    dim = attention.head_dim
    operators = _projections(rank, attention, count, heads, kv_heads)
    operators += _qk_norm(rank, attention, count, heads, kv_heads)
    if attention.rotary_dim:
        touched = 2 * (heads + kv_heads) * attention.rotary_dim
        operators.append(rank.elementwise("rotary_embedding", count, _COMPONENT, touched))
    kv_bytes = attention_kv_bytes(attention, rank.tensor_parallel_size, rank.kv_dtype)
    operators.append(
        rank.elementwise(
            "kv_cache_write", count, _COMPONENT, 2 * kv_heads * dim, extra_bytes=kv_bytes + _SLOT_BYTES
        )
    )
    operators += gather_keys(rank, kv_bytes, count)
    operators += exchange_queries(rank, heads, dim, count, latent=False)
    sinks = (rank.vector("sinks", heads),) if attention.sinks else ()
    operators += _query_quantisation(rank, count, heads * dim)
    operators.append(
        Attention(
            name="attention" if attention.window is None else "attention_sliding",
            count=count,
            component=_COMPONENT,
            weights=sinks,
            heads=heads,
            kv_heads=kv_heads,
            qk_dim=dim,
            v_dim=dim,
            kv_bytes_per_token=kv_bytes / rank.layout.decode_context_parallel_size,
            window=attention.window,
            dtype=rank.attention_dtype,
            activation_bytes=float(rank.itemsize),
        )
    )
    return operators + merge_outputs(rank, heads, dim, count, latent=False)


def _query_quantisation(rank: Rank, count: int, features: int) -> list[Operator]:
    """Return the quantisation of queries with a static scale, where attention computes in fp8.

    Keys and values are quantised as the cache is written, in the kernel that writes it (vLLM:
    `reshape_and_cache`); queries before (`query_quant` in `vllm/model_executor/layers/attention`).
    """
    if rank.attention_dtype != "fp8":
        return []
    return [rank.elementwise("query_quant", count, "quantisation", features, extra_bytes=features)]


def _projections(
    rank: Rank, attention: GroupedQueryAttention, count: int, heads: int, kv_heads: int
) -> list[Operator]:
    """Return the query, key and value projections; with factorized queries in two steps."""
    hidden, dim = rank.spec.hidden_size, attention.head_dim
    kv = [("k_proj", kv_heads * dim), ("v_proj", kv_heads * dim)]
    if attention.query_rank is None:
        outputs = [("q_proj", heads * dim), *kv]
        return rank.linear("qkv_proj", count, _COMPONENT, hidden, outputs, bias=attention.qkv_bias)
    latent = attention.query_rank
    norm = rank.vector("inter_norm.weight", latent)
    return [
        *rank.linear(
            "qkv_proj", count, _COMPONENT, hidden, [("q_proj", latent), *kv], bias=attention.qkv_bias
        ),
        rank.elementwise("query_norm", count, _COMPONENT, 2 * latent, weights=(norm,)),
        *rank.linear("wq", count, _COMPONENT, latent, [("wq", heads * dim)]),
    ]


def _qk_norm(
    rank: Rank, attention: GroupedQueryAttention, count: int, heads: int, kv_heads: int
) -> list[Operator]:
    """Return the norm of queries and keys; over whole projections its variance is summed over ranks."""
    if attention.qk_norm is None:
        return []
    dim = attention.head_dim
    whole = attention.qk_norm == "full"
    weights = (
        rank.vector("q_norm.weight", heads * dim if whole else dim),
        rank.vector("k_norm.weight", kv_heads * dim if whole else dim),
    )
    norm = rank.elementwise("qk_norm", count, _COMPONENT, 2 * (heads + kv_heads) * dim, weights=weights)
    return [norm, *rank.all_reduce("qk_norm", count, 8.0)] if whole else [norm]


def _latent_operators(rank: Rank, attention: MultiHeadLatentAttention, count: int) -> list[Operator]:
    heads = rank.shard(attention.num_heads)
    operators = _latent_projections(rank, attention, count, heads)
    rope = 2 * (heads + 1) * attention.rope_dim
    operators.append(rank.elementwise("rotary_embedding", count, _COMPONENT, rope))
    kv_bytes = latent_kv_bytes(attention, rank.kv_dtype)
    written = attention.kv_rank + attention.rope_dim
    operators.append(
        rank.elementwise("kv_cache_write", count, _COMPONENT, written, extra_bytes=kv_bytes + _SLOT_BYTES)
    )
    if attention.indexer is None:
        operators += gather_keys(rank, kv_bytes, count)
        operators += exchange_queries(rank, heads, written, count, latent=True)
        return operators + _dense_latent_attention(rank, attention, count, heads, kv_bytes)
    if not attention.indexer.shared:
        operators += _indexer(rank, attention, attention.indexer, count)
    return operators + _sparse_latent_attention(
        rank, attention, attention.indexer, count=count, heads=heads, kv_bytes=kv_bytes
    )


def _latent_projections(
    rank: Rank, attention: MultiHeadLatentAttention, count: int, heads: int
) -> list[Operator]:
    """Return the compressing projections, which every rank computes whole, and the expansion of queries."""
    hidden = rank.spec.hidden_size
    query_width = heads * (attention.nope_dim + attention.rope_dim)
    kv_a = ("kv_a_proj_with_mqa", attention.kv_rank + attention.rope_dim)
    kv_norm = rank.vector("kv_a_layernorm.weight", attention.kv_rank)
    if attention.query_rank is None:
        return [
            *rank.linear("q_proj", count, _COMPONENT, hidden, [("q_proj", query_width)]),
            *rank.linear("kv_a_proj", count, _COMPONENT, hidden, [kv_a], bias=attention.bias),
            rank.elementwise("latent_norm", count, _COMPONENT, 2 * attention.kv_rank, weights=(kv_norm,)),
        ]
    latent = attention.query_rank
    q_norm = rank.vector("q_a_layernorm.weight", latent)
    normed = 2 * (latent + attention.kv_rank)
    outputs = [("q_a_proj", latent), kv_a]
    return [
        *rank.linear("fused_qkv_a_proj", count, _COMPONENT, hidden, outputs, bias=attention.bias),
        rank.elementwise("latent_norm", count, _COMPONENT, normed, weights=(q_norm, kv_norm)),
        *rank.linear("q_b_proj", count, _COMPONENT, latent, [("q_b_proj", query_width)]),
    ]


def _dequantised(rank: Rank, name: str, rows: int, columns: int) -> tuple[WeightTensor, ...]:
    """Return the plain copy that vLLM makes of a quantised `kv_b_proj` for the absorbed form."""
    quantised = rank.quantization_of(_COMPONENT, "kv_b_proj") is not None
    return (WeightTensor(name, rows, columns, rank.plain, derived=True),) if quantised else ()


def _dense_latent_attention(
    rank: Rank, attention: MultiHeadLatentAttention, count: int, heads: int, kv_bytes: int
) -> list[Operator]:
    """Return attention over expanded heads for prompts and over the latent cache for decoding.

    `kv_b_proj` expands the latent vector of every prompt token. A decode token meets the same weights one
    head at a time instead, on its query and its output (the absorbed form): the same floating-point
    operations and weight bytes, so the two halves of `kv_b_proj` run over all tokens and count for both.
    """
    rows_k, rows_v = heads * attention.nope_dim, heads * attention.value_dim
    rank_dim, query = attention.kv_rank, attention.nope_dim + attention.rope_dim
    copies_k = _dequantised(rank, "w_uk", rows_k, rank_dim)
    copies_v = _dequantised(rank, "w_uv", rows_v, rank_dim)
    return [
        *rank.linear("kv_b_proj.k", count, _COMPONENT, rank_dim, [("kv_b_proj.k", rows_k)], weights=copies_k),
        *rank.linear("kv_b_proj.v", count, _COMPONENT, rank_dim, [("kv_b_proj.v", rows_v)], weights=copies_v),
        Attention(
            name="attention.prefill",
            count=count,
            component=_COMPONENT,
            phase="prefill",
            heads=heads,
            kv_heads=heads,
            qk_dim=query,
            v_dim=attention.value_dim,
            kv_bytes_per_token=float(heads * (query + attention.value_dim) * rank.itemsize),
            dtype=rank.plan_dtype,
            activation_bytes=float(rank.itemsize),
        ),
        *_query_quantisation(rank, count, heads * (rank_dim + attention.rope_dim)),
        _latent_attention(rank, attention, count, heads, kv_bytes, phase_decode=True, window=None),
        *merge_outputs(rank, heads, attention.kv_rank, count, latent=True),
    ]


def _latent_attention(
    rank: Rank,
    attention: MultiHeadLatentAttention,
    count: int,
    heads: int,
    kv_bytes: int,
    *,
    phase_decode: bool,
    window: int | None,
) -> Attention:
    """Return multi-query attention over the latent cache: keys of rank + rope, values of rank."""
    return Attention(
        name="attention.decode" if phase_decode else "attention_sparse",
        count=count,
        component=_COMPONENT,
        phase="decode" if phase_decode else "both",
        heads=heads,
        kv_heads=1,
        qk_dim=attention.kv_rank + attention.rope_dim,
        v_dim=attention.kv_rank,
        kv_bytes_per_token=kv_bytes / rank.layout.context_shards,
        window=window,
        dtype=rank.attention_dtype,
        activation_bytes=float(rank.itemsize),
        family="attention" if phase_decode else "sparse_attention",
    )


def _sparse_latent_attention(
    rank: Rank,
    attention: MultiHeadLatentAttention,
    indexer: SparseIndexer,
    *,
    count: int,
    heads: int,
    kv_bytes: int,
) -> list[Operator]:
    """Return the absorbed form over the chosen keys, which vLLM's sparse backends use for all tokens.

    A query sees at most `top_k` keys: the same bound as a window of that size.
    """
    nope, latent, value = attention.nope_dim, attention.kv_rank, attention.value_dim
    return [
        _absorbed(rank, "q_absorb", "w_uk", count=count, heads=heads, k=nope, n=latent, up=False),
        _latent_attention(rank, attention, count, heads, kv_bytes, phase_decode=False, window=indexer.top_k),
        _absorbed(rank, "v_up", "w_uv", count=count, heads=heads, k=latent, n=value, up=True),
    ]


def _absorbed(rank: Rank, name: str, copy: str, *, count: int, heads: int, k: int, n: int, up: bool) -> Gemm:
    """Return one half of `kv_b_proj` applied head by head, in plain arithmetic.

    The half is stored as heads x per-head features by latent width; `up` says which of k and n is the latent
    one.
    """
    rows, columns = (heads * n, k) if up else (heads * k, n)
    storage = rank.storage_of(rank.quantization_of(_COMPONENT, "kv_b_proj"))
    owned = WeightTensor(f"kv_b_proj.{name}.weight", rows, columns, storage)
    return Gemm(
        name=name,
        count=count,
        component=_COMPONENT,
        weights=(owned, *_dequantised(rank, copy, rows, columns)),
        k=k,
        n=n,
        batch=heads,
        dtype=rank.plan_dtype,
        weight_bytes_per_element=float(rank.itemsize),
        activation_bytes=float(rank.itemsize),
    )


def _indexer(
    rank: Rank, attention: MultiHeadLatentAttention, indexer: SparseIndexer, count: int
) -> list[Operator]:
    """Return the indexer, which every rank computes whole; a score is a weighted sum over its heads."""
    hidden, width = rank.spec.hidden_size, indexer.num_heads * indexer.head_dim
    key_bytes = indexer_kv_bytes(indexer.head_dim)
    norm = (rank.vector("k_norm.weight", indexer.head_dim), rank.vector("k_norm.bias", indexer.head_dim))
    prepared = 2 * indexer.head_dim + width
    return [
        *rank.linear("indexer.wq_b", count, _COMPONENT, attention.query_rank or 1, [("wq_b", width)]),
        *rank.linear("indexer.wk", count, _COMPONENT, hidden, [("wk", indexer.head_dim)]),
        *rank.linear(
            "indexer.weights_proj",
            count,
            _COMPONENT,
            hidden,
            [("weights_proj", indexer.num_heads)],
            quantised=False,
        ),
        rank.elementwise(
            "indexer.prepare",
            count,
            _COMPONENT,
            prepared,
            weights=norm,
            extra_bytes=width + key_bytes + _SLOT_BYTES,
        ),
        Attention(
            name="indexer.scores",
            count=count,
            component=_COMPONENT,
            heads=indexer.num_heads,
            kv_heads=1,
            qk_dim=indexer.head_dim,
            v_dim=1,
            kv_bytes_per_token=float(key_bytes),
            dtype="fp8",
            activation_bytes=1.0,
            family="indexer",
        ),
    ]
