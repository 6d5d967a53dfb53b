"""How SGLang 0.5.3 sizes its memory: no profile run, but a reserve by formula (sglang/srt/server_args.py).

The defaults follow from M, the smallest total of the GPUs as nvidia-smi reports it, in MiB. Activations and
CUDA graphs live in the share 1 - `mem_fraction_static`; weights and token pool in the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from frontier.errors import ConfigError, DoesNotFitError, Issue, show_value
from frontier.hardware.spec import GpuSpec
from frontier.memory.draft import DraftLayers
from frontier.memory.plan import gib
from frontier.models.kv import kv_layers
from frontier.models.program import operator_program
from frontier.models.spec import ModelSpec

SpeculativeAlgorithm = Literal["EAGLE", "STANDALONE", "NGRAM"]

_MIB: Final = 2**20
_KI: Final = 1024
_LARGE_RESERVE_MIB: Final = 10 * _KI
_SPECULATIVE_SLOTS: Final = 48
_EAGLE_EXTRA: Final = 100
_SWA_TO_FULL: Final = 0.8
_RUNTIME_BYTES: Final = 1024 * _MIB
"""Memory gone before weights load (CUDA context, NCCL): assumed."""

# M below, in MiB; chunked_prefill_size; cuda_graph_max_bs with fewer than 4 ranks, with 4 or more
_BY_MEMORY: Final[tuple[tuple[float, int, int, int], ...]] = (
    (20 * _KI, 2048, 8, 8),
    (35 * _KI, 2048, 16, 80),
    (60 * _KI, 4096, 32, 160),
    (160 * _KI, 8192, 256, 512),
    (math.inf, 16384, 512, 512),
)


@dataclass(frozen=True, slots=True)
class SglangDefaults:
    """What SGLang assumes for a GPU: tokens of a prefill chunk, and the largest batch with a CUDA graph."""

    chunked_prefill_size: int
    cuda_graph_max_bs: int


def sglang_defaults(memory_mib: int, *, tensor_parallel_size: int = 1) -> SglangDefaults:
    """Return the defaults for GPUs with `memory_mib` MiB (nvidia-smi total).

    Raises:
        ConfigError: no positive size or number of ranks.
    """
    _check({"memory_mib": memory_mib, "tensor_parallel_size": tensor_parallel_size})
    row = next(row for row in _BY_MEMORY if memory_mib < row[0])
    return SglangDefaults(row[1], row[2] if tensor_parallel_size < 4 else row[3])


def mem_fraction_static(
    memory_mib: int,
    *,
    tensor_parallel_size: int = 1,
    pipeline_parallel_size: int = 1,
    attention_data_parallel_size: int = 1,
    speculative: SpeculativeAlgorithm | None = None,
    chunked_prefill_size: int | None = None,
    cuda_graph_max_bs: int | None = None,
) -> float:
    """Return SGLang's default share of the memory for weights and token pool, to three decimals.

    The reserve in MiB is 512 + 1.5 x max(chunk, 2048) + 2 x max batch + 128 x TP x PP; with attention data
    parallelism of n more (3 x max batch x n, half of that again above 300); at least 10,240 above 60 Ki;
    plus 2,048 for EAGLE and 6,144 for STANDALONE drafts. The chunk is that before data-parallel attention
    divides it.

    Raises:
        ConfigError: a size that is not positive, or a reserve that exceeds the memory.
    """
    defaults = sglang_defaults(memory_mib, tensor_parallel_size=tensor_parallel_size)
    chunk = defaults.chunked_prefill_size if chunked_prefill_size is None else chunked_prefill_size
    batch = defaults.cuda_graph_max_bs if cuda_graph_max_bs is None else cuda_graph_max_bs
    ranks = attention_data_parallel_size
    _check(
        {
            "pipeline_parallel_size": pipeline_parallel_size,
            "attention_data_parallel_size": ranks,
            "chunked_prefill_size": chunk,
            "cuda_graph_max_bs": batch,
        }
    )
    reserve = 512 + 1.5 * max(chunk, 2048) + 2 * batch + 128 * tensor_parallel_size * pipeline_parallel_size
    if ranks > 1:
        reserve += (3 if batch <= 300 else 4.5) * batch * ranks
    if memory_mib > 60 * _KI:
        reserve = max(reserve, _LARGE_RESERVE_MIB)
    reserve += {"STANDALONE": 6144, "EAGLE": 2048}.get(speculative or "", 0)
    if reserve >= memory_mib:
        message = f"was {memory_mib} MiB, but SGLang reserves {reserve:.0f} MiB beside weights and token pool"
        raise ConfigError(Issue("memory_mib", memory_mib, message))
    return round((memory_mib - reserve) / memory_mib, 3)


@dataclass(frozen=True, slots=True)
class Speculation:
    """Speculative decoding: the algorithm, and for EAGLE steps, branches per step and tokens verified."""

    algorithm: SpeculativeAlgorithm
    steps: int = 5
    topk: int = 4
    draft_tokens: int = 8


@dataclass(frozen=True, slots=True)
class SglangPlan:
    """SGLang's memory of one rank, step by step. Sizes in bytes.

    Attributes:
        model, gpu: names.
        total_bytes: memory of the GPU.
        free_bytes: what is free after distributed initialisation, before weights (estimated).
        mem_fraction_static: share of it for weights and token pool.
        weights_bytes: of the rank.
        rest_bytes: for the token pool.
        cell_bytes: of one token over all layers (an indexer's keys are not counted).
        max_total_num_tokens: tokens of the pool, whole pages; the shared part of a sliding-window pool.
        swa_tokens: tokens of the sliding-window pool, None where there is none.
        max_running_requests: per data-parallel rank.
        request_slots: rows of the request table.
        max_req_input_len: longest prompt.
        chunked_prefill_size, cuda_graph_max_bs: effective; a chunk of -1 is none.
        context_length: longest prompt + output that the engine takes.
        tensor_parallel_size: ranks of the replica.
        draft_weights_bytes, draft_pool_bytes: of a draft and its own pool of as many tokens, both out of what
            is kept free.
        warnings: what a reader of the results should know.
        issues: why SGLang would not start.
    """

    model: str
    gpu: str
    total_bytes: int
    free_bytes: int
    mem_fraction_static: float
    weights_bytes: int
    rest_bytes: int
    cell_bytes: int
    max_total_num_tokens: int
    swa_tokens: int | None
    max_running_requests: int
    request_slots: int
    max_req_input_len: int
    chunked_prefill_size: int
    cuda_graph_max_bs: int
    context_length: int
    tensor_parallel_size: int
    draft_weights_bytes: int = 0
    draft_pool_bytes: int = 0
    warnings: tuple[str, ...] = ()
    issues: tuple[Issue, ...] = ()

    @property
    def kv_cache_tokens(self) -> int:
        """Tokens that requests may have in the KV cache."""
        return self.max_total_num_tokens

    @property
    def max_concurrency(self) -> float:
        """Requests of the longest length that fit at once."""
        return self.max_total_num_tokens / max(min(self.context_length, self.max_total_num_tokens), 1)

    def explain(self) -> str:
        """Return the computation step by step, each term exact or estimated."""
        kept = self.free_bytes - round(self.free_bytes * self.mem_fraction_static)
        rows = [
            ("GPU memory", gib(self.total_bytes), f"{self.gpu}, as the driver reports it"),
            ("before weights", gib(self.free_bytes), "free then; estimated"),
            ("kept free", gib(-kept), f"exact: 1 - mem_fraction_static {self.mem_fraction_static:.3f}"),
            ("weights", gib(-self.weights_bytes), f"exact: {self.model}"),
            ("token pool", gib(self.rest_bytes), "what is left"),
            ("bytes per token", f"{self.cell_bytes:,}", "exact: all layers of the rank"),
            ("tokens", f"{self.max_total_num_tokens:,}", "max_total_num_tokens"),
        ]
        if self.draft_pool_bytes:
            used = self.draft_weights_bytes + self.draft_pool_bytes
            rows.append(("draft", gib(-used), "weights and pool, out of what is kept free"))
        if self.swa_tokens is not None:
            rows.append(("sliding tokens", f"{self.swa_tokens:,}", "of the sliding-window pool"))
        rows += [
            ("requests", f"{self.max_running_requests:,}", "max_running_requests"),
            ("longest prompt", f"{self.max_req_input_len:,}", "max_req_input_len"),
        ]
        return "\n".join(f"{name:<17}{value:>16}  {note}" for name, value, note in rows)


def plan_token_pool(
    spec: ModelSpec,
    gpu: GpuSpec,
    *,
    tensor_parallel_size: int,
    memory_mib: int | None = None,
    context_len: int | None = None,
    page_size: int = 1,
    fraction: float | None = None,
    max_running_requests: int | None = None,
    data_parallel_size: int = 1,
    speculation: Speculation | None = None,
    draft: DraftLayers | None = None,
    kv_cache_dtype: str = "auto",
    hybrid_swa: bool = False,
    rank_weight_bytes: int | None = None,
    runtime_bytes: int | None = None,
    chunked_prefill_size: int | None = None,
    cuda_graph_max_bs: int | None = None,
    max_total_tokens: int | None = None,
) -> SglangPlan:
    """Compute SGLang 0.5.3's token pool and request limits.

    Args:
        spec: the model.
        gpu: the GPU of every rank.
        tensor_parallel_size: ranks that divide the attention heads.
        memory_mib: nvidia-smi total, which the defaults follow from; None takes the memory the driver
            reports.
        context_len: longest request; None is the model's own.
        page_size: tokens per page, to whole numbers of which the pool is cut.
        fraction: `mem_fraction_static`; None is SGLang's default.
        max_running_requests: the user's value, over all data-parallel ranks.
        data_parallel_size: ranks of data-parallel attention.
        speculation: speculative decoding. EAGLE's pool grows after the division, so the surplus and the
            draft's own pool come out of the share kept free.
        draft: the draft's layers and weights, which are loaded once the pool stands.
        kv_cache_dtype: as the flag.
        hybrid_swa: two pools for sliding-window and full layers (off for gpt-oss and Gemma).
        rank_weight_bytes: weights of the rank; None computes them for tensor parallelism.
        runtime_bytes: memory gone before weights load; None estimates it.
        chunked_prefill_size: the user's value, -1 for no chunks; None is SGLang's default.
        cuda_graph_max_bs: the user's value.
        max_total_tokens: the user's bound on the pool.

    Raises:
        ConfigError: a parameter out of range.
        DoesNotFitError: no memory is left for the pool; it has the plan.
    """
    tp = tensor_parallel_size
    length = spec.max_model_len if context_len is None else context_len
    mib = gpu.memory_bytes // _MIB if memory_mib is None else memory_mib
    _check(
        {
            "context_len": length,
            "page_size": page_size,
            "data_parallel_size": data_parallel_size,
            "max_running_requests": 1 if max_running_requests is None else max_running_requests,
        }
    )
    defaults = sglang_defaults(mib, tensor_parallel_size=tp)
    if fraction is None:
        fraction = mem_fraction_static(
            mib,
            tensor_parallel_size=tp,
            attention_data_parallel_size=data_parallel_size,
            speculative=None if speculation is None else speculation.algorithm,
            # The reserve counts at least 2,048 tokens, also where prompts are not split.
            chunked_prefill_size=None if chunked_prefill_size is None else max(chunked_prefill_size, 1),
            cuda_graph_max_bs=cuda_graph_max_bs,
        )
    if not 0 < fraction < 1:
        message = f"was {show_value(fraction)}; a share between 0 and 1 is needed"
        raise ConfigError(Issue("mem_fraction_static", fraction, message))
    if tp % data_parallel_size:
        message = f"was {data_parallel_size}; it must divide tensor_parallel_size ({tp})"
        raise ConfigError(Issue("data_parallel_size", data_parallel_size, message))
    weights = rank_weight_bytes
    if weights is None and data_parallel_size > 1:
        message = "is needed with data-parallel attention, which replicates attention weights"
        raise ConfigError(Issue("rank_weight_bytes", None, message))
    if weights is None:
        program = operator_program(spec, tensor_parallel_size=tp, weight_dtype="auto")
        weights = sum(operator.weight_bytes for operator in program)
    runtime = _RUNTIME_BYTES if runtime_bytes is None else runtime_bytes
    free = gpu.memory_bytes - runtime
    rest = free - weights - (free - round(free * fraction))
    attention_ranks = max(tp // data_parallel_size, 1)
    found = kv_layers(spec, tensor_parallel_size=attention_ranks, kv_cache_dtype=kv_cache_dtype)
    caches = [cache for cache in found if cache.kind != "indexer"]
    cell = sum(cache.count * cache.bytes_per_token for cache in caches)
    tokens = max(rest, 0) // cell
    issues = () if tokens >= page_size else (_lack(gpu, weights, free),)
    if max_total_tokens is not None:
        tokens = min(tokens, max_total_tokens)
    slots = _request_slots(max_running_requests, tokens, length, data_parallel_size)
    running = _running_requests(max_running_requests, tokens, slots, data_parallel_size, speculation)
    if speculation is not None and speculation.algorithm == "EAGLE":
        per_request = speculation.steps * speculation.topk + speculation.draft_tokens
        tokens += running * per_request + _EAGLE_EXTRA
    sliding = sum(cache.count for cache in caches if cache.window is not None)
    swa = None
    if hybrid_swa and sliding:
        layers = sum(cache.count for cache in caches)
        tokens = int(tokens * layers / (_SWA_TO_FULL * sliding + layers - sliding))
        swa = int(tokens * _SWA_TO_FULL) // page_size * page_size
    tokens = tokens // page_size * page_size
    draft_weights, draft_pool = _draft_bytes(
        draft, tokens, kept=free - round(free * fraction), share=fraction
    )
    plan = SglangPlan(
        model=spec.name,
        gpu=gpu.name,
        total_bytes=gpu.memory_bytes,
        free_bytes=free,
        mem_fraction_static=fraction,
        weights_bytes=weights,
        rest_bytes=rest,
        cell_bytes=cell,
        max_total_num_tokens=tokens,
        swa_tokens=swa,
        max_running_requests=running,
        request_slots=slots,
        max_req_input_len=min(length, tokens) - 6,
        chunked_prefill_size=_chunk(chunked_prefill_size, defaults, data_parallel_size),
        cuda_graph_max_bs=defaults.cuda_graph_max_bs if cuda_graph_max_bs is None else cuda_graph_max_bs,
        context_length=length,
        tensor_parallel_size=tp,
        draft_weights_bytes=draft_weights,
        draft_pool_bytes=draft_pool,
        issues=issues,
    )
    if issues:
        raise DoesNotFitError(issues, memory=plan)
    return plan


def _lack(gpu: GpuSpec, weights: int, free: int) -> Issue:
    free_text = f"{gib(weights)} of weights, {gib(free)} are free before"
    return Issue("hardware.gpu", gpu.name, f"{gpu.name} leaves no memory for the token pool: {free_text}")


def _chunk(given: int | None, defaults: SglangDefaults, ranks: int) -> int:
    """Return the tokens of a chunk on one data-parallel rank, -1 for no chunks."""
    chunk = defaults.chunked_prefill_size if given is None else given
    return chunk if chunk < 0 else chunk // ranks


def _draft_bytes(draft: DraftLayers | None, tokens: int, *, kept: int, share: float) -> tuple[int, int]:
    """Return the bytes of a draft's weights and of its pool of `tokens` tokens.

    Raises:
        ConfigError: they do not fit into what is kept free.
    """
    if draft is None:
        return 0, 0
    pool = tokens * sum(cache.count * cache.bytes_per_token for cache in draft.layers)
    if pool + draft.weight_bytes > kept:
        needs = f"a draft with {gib(draft.weight_bytes)} of weights needs {gib(pool)} for its pool"
        message = f"was {share:.3f}, which keeps {gib(kept)} free, but {needs}"
        raise ConfigError(Issue("mem_fraction_static", share, message))
    return draft.weight_bytes, pool


def _request_slots(given: int | None, tokens: int, length: int, ranks: int) -> int:
    if given is not None:
        return max(given // ranks, 1)
    return min(max(int(tokens / length * 512), 2048), 4096)


def _running_requests(
    given: int | None, tokens: int, slots: int, ranks: int, speculation: Speculation | None
) -> int:
    if given is None and speculation is not None:
        given = _SPECULATIVE_SLOTS
    wanted = tokens // 2 if given is None else max(given // ranks, 1)
    return min(wanted, slots)


def _check(counts: dict[str, object]) -> None:
    issues = [
        Issue(name, value, f"was {show_value(value)}; a whole number >= 1 is needed")
        for name, value in counts.items()
        if isinstance(value, bool) or not isinstance(value, int) or value < 1
    ]
    if issues:
        raise ConfigError(issues)
