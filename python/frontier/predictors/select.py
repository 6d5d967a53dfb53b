"""Which of many predictors prices an operator: a pure function of what manifests say.

In order: those of the GPU before pooled ones; kernels before launches timed with events; exchanges measured
on as many nodes as asked; the backend that was asked for before others; the number type that stands for the
operator's arithmetic and weights; the newest version that is not newer than asked, else the nearest (where
none is asked, that of the engine itself, else the newest); graphs before profiled kernels; the kernel with
most rows, which is assumed to be the one that the engine takes for most shapes. What was given up on the way
is said in `why`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

GENERIC = "generic"
BACKENDS = ("vllm", "sglang", "trtllm")
_MEASUREMENTS = ("cuda_graph", "kernel", "event")
ATTENTION = ("prefill_attention", "decode_attention", "mixed_attention")
_EXCHANGES = ("moe_dispatch", "moe_combine")
_EXCHANGE_KERNELS = {
    "deepep_low_latency": ("deepep_ll",),
    "deepep_high_throughput": ("deepep_ht", "deepep_normal"),
}
"""Kernels of each way to exchange tokens. The second version of DeepEP has kernels of its own, which no
engine setting stands for yet."""
_COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv")
_HEAVY = ("gemm", *ATTENTION, "fused_moe", *_EXCHANGES, *_COLLECTIVES)
"""Operators that make most of a step: what stands in for them is worth a warning, for others a note."""


_WIDENED_UNMEASURED = ("fp8_block", "fp8_tensor", "fp8_channel", "nvfp4")
"""Weights that kernels of GPUs without such units widen to 16 bits (Marlin): packs have them only multiplied
as they are."""


class Info(Protocol):
    """The facts of a predictor that decide (`frontier.predictors.PredictorInfo` has them)."""

    @property
    def gpu(self) -> str: ...
    @property
    def backend(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def kernel(self) -> str: ...
    @property
    def measurement(self) -> str: ...
    @property
    def operator(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def detail(self) -> Mapping[str, Any]: ...
    @property
    def features(self) -> Sequence[str]: ...
    @property
    def ranges(self) -> Sequence[tuple[float, float]]: ...
    @property
    def rows(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be priced.

    Attributes:
        operator: the family.
        gpu: name of the preset.
        backend: whose kernels are meant.
        version: its version, None for the engine's own where it was measured, else the newest that was.
        engine_version: of the engine that runs, where its kernels are meant; None where it is not known.
        dtype: of the arithmetic, by its name in plans (fp4 for 4-bit floats); None where there is none.
        weight_bytes: bytes of a weight, scales included: they tell weight-only schemes apart.
        block_scaled: 8-bit floats with a scale for each block of weights.
        stored_as: how quantised weights are kept (`frontier.models.weights.Storage.kind`), None for plain
            ones or where it is not known.
        kv_cache_dtype: of attention, "bf16" (any 16-bit type) or "fp8".
        qk_dim, v_dim, kv_heads, heads: of attention; 0 elsewhere.
        batched: many independent products in one launch.
        ranks, nodes: of collectives and exchanges; 0 elsewhere.
        all2all: of exchanges, how tokens travel, by vLLM's name of it.
    """

    operator: str
    gpu: str
    backend: str
    version: str | None = None
    engine_version: str | None = None
    dtype: str | None = None
    weight_bytes: float = 2.0
    block_scaled: bool = False
    stored_as: str | None = None
    kv_cache_dtype: str | None = None
    qk_dim: int = 0
    v_dim: int = 0
    heads: int = 0
    kv_heads: int = 0
    batched: bool = False
    ranks: int = 0
    nodes: int = 0
    all2all: str | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """The answer: `index` into the candidates, and `why` it is not quite what was asked for, if so.

    `unmeasured`: nothing was measured on this GPU for it. `doubts`: what readers of the results should know
    of that, without the operator's name, so that equal ones can be told together.
    """

    index: int
    unmeasured: bool
    why: tuple[str, ...]
    doubts: tuple[str, ...] = ()


def choose(wanted: Wanted, candidates: Sequence[Info]) -> Chosen | None:
    """Return the predictor that suits best, None if none does. The first of equals wins."""
    dtypes = pack_dtypes(wanted)
    ranked = [
        (_rank(wanted, dtypes, info), index)
        for index, info in enumerate(candidates)
        if info.operator == wanted.operator and _suits(wanted, dtypes, info)
    ]
    if not ranked:
        return None
    best, index = min(ranked)
    info = candidates[index]
    reasons = [
        *_why(wanted, dtypes, info),
        *_why_nodes(wanted, info, candidates[min((_anywhere(key), other) for key, other in ranked)[1]]),
        *_why_kernel(wanted, info, {candidates[i].kernel for key, i in ranked if key[:-2] == best[:-2]}),
    ]
    return Chosen(
        index,
        info.gpu != wanted.gpu,
        why=tuple(f"{wanted.operator}: {text}" for text, _ in reasons),
        doubts=tuple(text for text, doubtful in reasons if doubtful and wanted.operator in _HEAVY),
    )


def wants_skew(decode: Info) -> bool:
    """Return whether a decode predictor needs `decode_skew` beside it: not if it saw unequal lengths."""
    return not decode.detail.get("knows_unequal_lengths")


def includes_quantisation(info: Info) -> bool:
    """Return whether the time of a product is that of the whole linear layer, quantising its input included.

    Public tables of products in 8 and 4 bits are (`frontier.training.sources.aiconfigurator_tables`), and so
    is what was pooled from them; a profile of the user's own device has the product alone.
    """
    narrow = info.operator == "gemm" and info.dtype not in ("bf16", "fp16", "fp32", "int4", "mxfp4")
    return narrow and info.backend in (*BACKENDS, GENERIC)


def is_transferred(info: Info) -> bool:
    """Return whether a predictor was learned on other GPUs alone, whichever pack it is in."""
    origins = info.detail.get("transferred_from")
    return origins is not None and info.gpu not in origins


def pack_dtypes(wanted: Wanted) -> tuple[str, ...]:
    """Return the number types under which packs have the operator, best first; empty where any will do."""
    dtype, width = wanted.dtype, wanted.weight_bytes
    if dtype is None or wanted.operator in (*_COLLECTIVES, *_EXCHANGES):
        return ()
    if wanted.operator not in ("gemm", "fused_moe"):
        return ("bf16", "fp16") if dtype in ("bf16", "fp16") else (dtype,)
    sixteen = dtype in ("bf16", "fp16")
    if wanted.stored_as == "mxfp8" or (sixteen and wanted.stored_as in _WIDENED_UNMEASURED):
        # No pack has such kernels, and what others take says nothing of them: the bound is left.
        return (f"{wanted.stored_as} in {dtype}",)
    if sixteen and wanted.stored_as in ("int4_group", "int4_group_zero"):
        return ("int4", "mxfp4")
    if dtype == "fp8":
        if width < 0.75:
            return ("mxfp4",)
        return ("fp8_block", "fp8") if wanted.block_scaled else ("fp8", "fp8_block")
    if dtype == "fp4":
        return ("nvfp4", "mxfp4")
    if dtype in ("bf16", "fp16"):
        if width < 0.75:
            # One scale for 32 weights makes 0.53 bytes, two bytes for 128 make 0.516.
            return ("mxfp4", "int4") if width > 0.525 else ("int4", "mxfp4")
        if width < 1.5:
            return ("int8",)
        return (dtype, "fp16" if dtype == "bf16" else "bf16")
    return (dtype,)


def _suits(wanted: Wanted, dtypes: tuple[str, ...], info: Info) -> bool:
    detail = info.detail
    if info.gpu not in (wanted.gpu, GENERIC):
        return False
    if dtypes and info.operator != "decode_skew" and not _same_dtype(wanted, dtypes, info):
        return False
    if info.operator == "gemm" and wanted.batched != ("batched" in detail) and info.gpu != GENERIC:
        return False
    if info.operator in _EXCHANGES:
        return info.kernel in _EXCHANGE_KERNELS.get(wanted.all2all or "", ())
    if info.operator in _COLLECTIVES:
        same = detail.get("ranks") == wanted.ranks and detail.get("nodes") == wanted.nodes
        return same and detail.get("topology") != "pairwise_nvlink"
    if info.operator in ATTENTION:
        return _suits_attention(wanted, info)
    return True


def _same_dtype(wanted: Wanted, dtypes: tuple[str, ...], info: Info) -> bool:
    if info.operator in ATTENTION:
        # An 8-bit cache may make the arithmetic 8-bit as well; both are names for the same operator.
        return info.dtype in dtypes or (wanted.kv_cache_dtype == "fp8" and info.dtype in ("fp8", "bf16"))
    return info.dtype in dtypes


def _suits_attention(wanted: Wanted, info: Info) -> bool:
    cache = info.detail.get("kv_cache_dtype")
    if wanted.kv_cache_dtype is not None and cache is not None:
        sixteen = ("bf16", "fp16")
        known, asked = ("16" if name in sixteen else name for name in (cache, wanted.kv_cache_dtype))
        if known != asked:
            return False
    if info.gpu == GENERIC:
        return True
    form = None
    if wanted.qk_dim != wanted.v_dim:
        form = "absorbed" if wanted.kv_heads == 1 else "not absorbed"
    if info.detail.get("mla") != form:
        return False
    wide = wanted.kv_heads > 0 and wanted.heads >= 48 * wanted.kv_heads and form is None
    has_wide = info.backend == "trtllm" and info.operator == "decode_attention"
    if has_wide and wide != info.kernel.endswith(".wide_groups"):
        return False
    large = form is None and wanted.qk_dim > 256
    return large == (".large_heads" in info.kernel)


def _rank(wanted: Wanted, dtypes: tuple[str, ...], info: Info) -> tuple[Any, ...]:
    order = (wanted.backend, *(name for name in BACKENDS if name != wanted.backend))
    return (
        info.gpu != wanted.gpu,
        # A launch of 50 us and more hides the kernel: another backend's graph says more.
        info.measurement == "event",
        not _covers_nodes(wanted, info),
        order.index(info.backend) if info.backend in order else len(order),
        dtypes.index(info.dtype) if info.dtype in dtypes else len(dtypes),
        # Quantisation scales are found at run time by default.
        info.operator == "quant_fp8" and "dynamic" not in info.kernel,
        not _is_engine_version(wanted, info),
        _version_rank(wanted.version if info.backend == wanted.backend else None, info.version),
        _MEASUREMENTS.index(info.measurement),
        -info.rows,
        info.kernel,
    )


_NODES_KEY = 2


def _anywhere(key: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a rank that does not ask on how many nodes an exchange was measured."""
    return (*key[:_NODES_KEY], *key[_NODES_KEY + 1 :])


def _measured_nodes(info: Info) -> tuple[float, float] | None:
    if info.operator not in _EXCHANGES or "nodes" not in info.features:
        return None
    return info.ranges[list(info.features).index("nodes")]


def _covers_nodes(wanted: Wanted, info: Info) -> bool:
    measured = _measured_nodes(info)
    return measured is None or measured[0] <= wanted.nodes <= measured[1]


def _version_rank(asked: str | None, known: str) -> tuple[Any, ...]:
    """Return a key: not newer than asked and newest first, then newer ones and oldest first."""
    order = version_order(known)
    newest_first = tuple((-kind, -number) for kind, number in order)
    if asked is None or order <= version_order(asked) or _is_patch(known, asked):
        return (0, newest_first)
    return (1, order)


def _is_engine_version(wanted: Wanted, info: Info) -> bool:
    """Return whether nobody asks for a version, and these are the kernels of the engine's own."""
    own = wanted.engine_version
    if wanted.version is not None or own is None or info.backend != wanted.backend:
        return False
    return info.version == own or _is_patch(info.version, own)


def _is_patch(known: str, asked: str) -> bool:
    return known.startswith((f"{asked}.", f"{asked}rc", f"{asked}post"))


def version_order(version: str) -> tuple[tuple[int, int], ...]:
    """Return a key by which versions sort: numbers by value, rc before the release, post after it."""
    rank = {"rc": -1, "post": 1}
    found: list[tuple[int, int]] = []
    kind = 0
    for word, number in re.findall(r"([a-z]+)|(\d+)", version):
        if word:
            kind = rank.get(word, 0)
        else:
            found.append((kind, int(number)))
            kind = 0
    return (*found, (0, -1))


_Reason = tuple[str, bool]
"""In which way a predictor is not what was asked for, and whether results should warn of it."""


def _why(wanted: Wanted, dtypes: tuple[str, ...], info: Info) -> Iterable[_Reason]:
    if info.gpu != wanted.gpu:
        yield (
            f"not measured on {wanted.gpu}, predicted from other GPUs",
            False,
        )  # its time counts as unmeasured
    elif info.backend not in (wanted.backend, GENERIC):
        # Engines leave gathers, scatters and sends to NCCL; for sums they have kernels of their own.
        if info.backend != "nccl" or info.operator == "all_reduce":
            yield f"kernels of {info.backend} {info.version} stand in for {wanted.backend}'s", True
    elif (
        wanted.version is not None
        and info.version != wanted.version
        and not _is_patch(info.version, wanted.version)
    ):
        yield f"measured with {info.backend} {info.version}, asked {wanted.version}", False
    if dtypes and info.dtype in dtypes[1:] and {info.dtype, dtypes[0]} != {"bf16", "fp16"}:
        yield f"{info.dtype} stands in for {dtypes[0]}", True
    if info.measurement == "event":
        yield "timed with its launch, which a graph hides", True
    if is_transferred(info):
        yield f"learned on {', '.join(info.detail['transferred_from'])}", False


def _why_nodes(wanted: Wanted, info: Info, otherwise: Info) -> Iterable[_Reason]:
    """Yield what an exchange's number of nodes has to do with it; `otherwise` would do for any number."""
    measured = _measured_nodes(info)
    if measured is None:
        return
    if not _covers_nodes(wanted, info):
        low, high = measured
        span = f"{high:g}" if low == high else f"{low:g} to {high:g}"
        yield f"measured on {span} nodes, asked {wanted.nodes}", True
    elif not _covers_nodes(wanted, otherwise):
        text = (
            f"{info.backend} {info.version} taken: {otherwise.backend} {otherwise.version} was not measured"
        )
        yield f"{text} on {wanted.nodes} nodes", False


def _why_kernel(wanted: Wanted, info: Info, kernels: set[str]) -> Iterable[_Reason]:
    """Yield which of several equally suitable kernels was taken, where an engine chooses by shape."""
    latent = wanted.operator in ATTENTION and wanted.qk_dim != wanted.v_dim
    others = sorted(kernels - {info.kernel})
    if others and (latent or wanted.operator == "fused_moe"):
        yield f"kernel {info.kernel} taken, with the most measurements; others: {', '.join(others)}", False
