"""Reader of LLMServingSim's profiles (MIT): vLLM 0.19 on an RTX 4090 and an RTX PRO 6000.

Layouts: `<GPU>/<model>/<variant>/tp<N>/<table>.csv` as in the repository's `profiler/perf`, or a condensed
copy with the path in the name, `<GPU>__<model>__<variant>__tp<N>__<table>.parquet`. Microseconds.

How it was measured: kernel times of vLLM's layer-wise profiler, eager, one decoder layer, three iterations;
tensor parallelism by a smaller model on one GPU. `kv_*` counts the history, without the new tokens. Attention
includes the write of new keys and values to the cache. A skew row is one decode batch timed three ways: all
requests at the mean, all at the maximum, and as it is (nb at kv_big, n - nb at kvs), with or without a
prefill chunk beside it; its times are totals of three iterations (`traps.undo_summed_iterations`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from frontier.errors import ConfigError, Issue
from frontier.training import traps
from frontier.training.identity import Identity
from frontier.training.measurements import Array, Measurements, Skipped, Source, concat

LICENCE = "MIT"
VERSION = "5daddb2"
ENGINE = "0.19.0"
GPUS = {"RTX4090": "rtx-4090", "RTXPRO6000": "rtx-pro-6000"}
V0 = (
    "first profiler: decode times of two models differ by 1.7 at equal KV bytes, so they do not carry over, "
    "and there are few prefills"
)
_TABLES = ("dense", "per_sequence", "attention", "skew", "moe")
_US = 1e-6
_SKEW_ITERATIONS = 3
UNIFORM_MEAN, UNIFORM_MAX, AS_IT_IS = 0, 1, 2
NO_SWEEP = -1


class Shape(NamedTuple):
    """What a model's tables do not say: its published configuration."""

    hidden: int
    inter: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    experts: int = 0
    expert_inter: int = 0
    top_k: int = 0


MODELS = {
    "meta-llama/Llama-3.1-8B": Shape(4096, 14336, 32, 8, 128, 128256),
    "Qwen/Qwen3-32B": Shape(5120, 25600, 64, 8, 128, 151936),
    "Qwen/Qwen3-30B-A3B-Instruct-2507": Shape(2048, 6144, 32, 4, 128, 151936, 128, 768, 8),
}


class _File(NamedTuple):
    path: Path
    gpu: str
    model: str
    tp: int
    table: str


def read(
    root: Path, gpus: Iterable[str] | None = None, *, skipped: list[Skipped] | None = None
) -> Iterator[Measurements]:
    """Yield the measurements under `root`, one identity at a time, all models and degrees together.

    Marks: `skew_role` (`UNIFORM_MEAN`, `UNIFORM_MAX`, `AS_IT_IS`, `NO_SWEEP` elsewhere) and `pair`, equal in
    the three rows of one skew measurement.

    Raises:
        ConfigError: nothing to read under `root`, a GPU that is not known, or a model without a known shape.
    """
    wanted = tuple(GPUS.values()) if gpus is None else tuple(gpus)
    if unknown := [name for name in wanted if name not in GPUS.values()]:
        raise ConfigError(Issue("gpus", unknown[0], f"{unknown[0]!r} is not known", tuple(GPUS.values())))
    notes = skipped if skipped is not None else []
    files = list(_files(Path(root), notes))
    if not files:
        raise ConfigError(Issue("root", str(root), f"holds no profiles of LLMServingSim: {root}"))
    found: dict[Identity, list[Measurements]] = {}
    for file in files:
        if file.gpu not in wanted:
            continue
        if file.model not in MODELS:
            raise ConfigError(Issue("model", file.model, "has no known shape", tuple(MODELS)))
        for part in _READERS[file.table](file, _frame(file.path)):
            found.setdefault(part.identity, []).append(part)
    for parts in found.values():
        whole = _without_copies(concat(parts))
        yield traps.mark_impossible(whole)


def _files(root: Path, notes: list[Skipped]) -> Iterator[_File]:
    for path in sorted(root.rglob("*")):
        parts: tuple[str, ...] = ()
        if path.suffix == ".csv":
            parts = path.relative_to(root).with_suffix("").parts
        elif path.suffix == ".parquet":
            parts = tuple(path.stem.split("__"))
        if parts and parts[0] == "v0":
            notes.append(Skipped(path.name, len(_frame(path)), V0))
        elif len(parts) >= 5 and parts[0] in GPUS and parts[-1] in _TABLES:
            tp = int(parts[-2].removeprefix("tp"))
            yield _File(path, GPUS[parts[0]], "/".join(parts[1:-3]), tp, parts[-1])


def _frame(path: Path) -> pl.DataFrame:
    frame = pl.read_csv(path) if path.suffix == ".csv" else pl.read_parquet(path)
    return frame.with_columns(pl.col(pl.Categorical).cast(pl.String), pl.col(pl.Float32).cast(pl.Float64))


def _without_copies(measurements: Measurements) -> Measurements:
    """Drop rows equal in inputs and time: layers that no rank splits are copied to all degrees' folders."""
    both = np.stack([measurements.key, measurements.seconds.view(np.uint64)], axis=1)
    _, first = np.unique(both, axis=0, return_index=True)
    return measurements.take(np.sort(first), why="copied from the folder of another degree")


def _dense(file: _File, frame: pl.DataFrame) -> Iterator[Measurements]:
    shape, tp = MODELS[file.model], file.tp
    heads, kv_heads = shape.heads / tp, max(1, shape.kv_heads / tp)
    products = {
        "qkv_proj": (shape.hidden, (heads + 2 * kv_heads) * shape.head_dim),
        "o_proj": (heads * shape.head_dim, shape.hidden),
        "gate_up_proj": (shape.hidden, 2 * shape.inter / tp),
        "down_proj": (shape.inter / tp, shape.hidden),
        "lm_head": (shape.hidden, shape.vocab / tp),
    }
    # Bytes of a row in 16 bits; the last norm adds the residual; the sampler reads 32-bit logits.
    elementwise = {
        "final_layernorm": ("rms_norm", "fused_add_rms_norm", 8.0 * shape.hidden),
        "rotary_emb": ("rope", "rotary_embedding", 4.0 * (heads + kv_heads) * shape.head_dim),
        "act_fn": ("activation", "silu_and_mul", 6.0 * shape.inter / tp),
        "embedding": ("embedding", "embedding", 4.0 * shape.hidden),
        "sampler": ("sampler", "sampler", 4.0 * shape.vocab),
    }
    count = "tokens" if "tokens" in frame.columns else "sequences"
    for (layer,), rows in frame.group_by("layer", maintain_order=True):
        name = str(layer)
        if name in products:
            k, n = products[name]
            columns: dict[str, Any] = {
                "rows": rows[count],
                "k": k,
                "n": n,
                "batch": 1,
                "weight_bytes": 2,
                "activation_bytes": 2,
            }
            identity = _identity(file, "gemm", "torch.nn.functional.linear")
        elif name in elementwise:
            operator, kernel, width = elementwise[name]
            columns = {"rows": rows[count], "bytes_per_row": width}
            identity = _identity(file, operator, kernel)
        else:
            # `layernorm` and `qk_norm` are means over two calls that move different amounts.
            continue
        yield _finished(file, identity, columns, rows["time_us"], file.model)


def _moe(file: _File, frame: pl.DataFrame) -> Iterator[Measurements]:
    shape = MODELS[file.model]
    # As many experts as a balanced load touches: then, and only then, is the load a canonical one.
    touched = np.minimum(shape.experts, frame["tokens"].to_numpy() * shape.top_k)
    rows = frame.filter(pl.Series(frame["activated_experts"].to_numpy() == touched))
    columns = {
        "rows": rows["tokens"],
        "hidden": shape.hidden,
        "inter": shape.expert_inter,
        "experts": shape.experts,
        "top_k": shape.top_k,
        "moe_tp": file.tp,
        "moe_ep": 1,
        "weight_bytes": 2,
        "activation_bytes": 2,
        "gated": 1,
        "imbalance": -1,
    }
    dropped = {"fewer experts touched than a balanced load does": len(frame) - len(rows)}
    identity = _identity(file, "fused_moe", "vllm_fused_moe")
    yield _finished(file, identity, columns, rows["time_us"], file.model, dropped=dropped)


def _attention(file: _File, frame: pl.DataFrame) -> Iterator[Measurements]:
    chunk, decodes = frame["prefill_chunk"].to_numpy(), frame["n_decode"].to_numpy()
    prefix, history = frame["kv_prefill"].to_numpy(), frame["kv_decode"].to_numpy()
    for operator, chosen in (
        ("prefill_attention", (chunk > 1) & (decodes == 0)),
        ("decode_attention", (chunk == 0) & (decodes > 0)),
        ("mixed_attention", (chunk > 1) & (decodes > 0)),
    ):
        rows = np.flatnonzero(chosen)
        if not len(rows):
            continue
        groups = []
        if operator != "decode_attention":
            groups.append((np.ones(len(rows)), chunk[rows], (prefix + chunk)[rows]))
        if operator != "prefill_attention":
            groups.append((decodes[rows], np.ones(len(rows)), history[rows] + 1))
        part = _batches(file, operator, groups, frame["time_us"].to_numpy()[rows])
        if operator == "mixed_attention":
            # These stand beside the sweeps of unequal lengths, of which they are no part.
            part = part.marked("skew_role", np.full(len(part), NO_SWEEP, dtype=np.int8))
            part = part.marked("pair", np.full(len(part), NO_SWEEP, dtype=np.int64))
        yield part


def _skew(file: _File, frame: pl.DataFrame) -> Iterator[Measurements]:
    """Yield each batch as its three timings: `decode_skew`, or beside a chunk `mixed_attention`."""
    for operator, rows in (
        ("decode_skew", frame.filter(pl.col("pc") == 0)),
        ("mixed_attention", frame.filter(pl.col("pc") > 1)),
    ):
        if not len(rows):
            continue
        column = {name: rows[name].to_numpy() for name in rows.columns if name != "regime"}
        one = np.ones(len(rows))
        chunk = [(one, column["pc"], column["kp"] + column["pc"])] if operator == "mixed_attention" else []
        parts = []
        for role, time, groups in (
            (UNIFORM_MEAN, "t_mean_us", [(column["n"], one, column["kv_mean"] + 1)]),
            (UNIFORM_MAX, "t_max_us", [(column["n"], one, column["kv_big"] + 1)]),
            (
                AS_IT_IS,
                "t_skew_us",
                [
                    (column["nb"], one, column["kv_big"] + 1),
                    (column["n"] - column["nb"], one, column["kvs"] + 1),
                ],
            ),
        ):
            total = traps.undo_summed_iterations(column[time], _SKEW_ITERATIONS)
            part = _batches(file, operator, [*chunk, *groups], total)
            part = part.marked("skew_role", np.full(len(part), role, dtype=np.int8))
            name = f"{file.gpu}/{file.model}/{file.tp}/{operator}".encode()
            start = int.from_bytes(hashlib.sha256(name).digest()[:4], "big") << 20
            parts.append(part.marked("pair", start + np.arange(len(part))))
        yield concat(parts)


def _batches(
    file: _File, operator: str, groups: list[tuple[Array, Array, Array]], microseconds: Array
) -> Measurements:
    """Return one row per batch, with a group of requests from each entry of `groups` that has any."""
    shape = MODELS[file.model]
    heads, kv_heads = shape.heads // file.tp, max(1, shape.kv_heads // file.tp)
    count, query, context = (np.stack([group[i] for group in groups], axis=1) for i in range(3))
    present = count > 0
    columns = {
        "heads": heads,
        "kv_heads": kv_heads,
        "qk_dim": shape.head_dim,
        "v_dim": shape.head_dim,
        "kv_bytes_per_token": 4.0 * kv_heads * shape.head_dim,
        "activation_bytes": 2,
        "window": 0,
        "offsets": np.concatenate(([0], np.cumsum(present.sum(axis=1)))),
        "count": count[present],
        "query": query[present],
        "context": context[present],
    }
    facts = (("includes", "kv_write"), ("kv_cache_dtype", "bf16"))
    identity = Identity(file.gpu, "vllm", ENGINE, "vllm_flash_attn", "kernel", operator, "bf16", facts)
    site = f"h{heads}kv{kv_heads}d{shape.head_dim}v{shape.head_dim}"
    return _finished(file, identity, columns, pl.Series(microseconds), site)


def _identity(file: _File, operator: str, kernel: str) -> Identity:
    return Identity(file.gpu, "vllm", ENGINE, kernel, "kernel", operator, "bf16")


def _finished(
    file: _File,
    identity: Identity,
    columns: dict[str, Any],
    microseconds: pl.Series,
    model: str,
    *,
    dropped: dict[str, int] | None = None,
) -> Measurements:
    digest = hashlib.sha256(file.path.read_bytes()).hexdigest()
    source = Source("LLMServingSim profiles", LICENCE, file.path.name, digest, VERSION)
    counted = {why: rows for why, rows in (dropped or {}).items() if rows}
    return Measurements.of(identity, columns, microseconds * _US, model, dropped=counted, sources=[source])


_READERS = {"dense": _dense, "per_sequence": _dense, "attention": _attention, "skew": _skew, "moe": _moe}
