"""Reader of the profiles of Vidur and of Frontier (both MIT), which share one layout.

Layouts: `compute/<gpu>/<model>/<file>.csv` and `network/<machine>/<file>.csv` with columns
`time_stats.<operator>.median` and `.std` in milliseconds; or a condensed copy with the path in the name,
`compute__<gpu>__<model>__<file>.parquet`, and columns `<operator>_ms`, `<operator>_std_ms`.

How it was measured: Vidur's profilers read kernel times from profiler traces (`record_function` for products,
`kineto` for attention and collectives), in whole microseconds: `kernel`. Files that say so in
`measurement_type` are `kernel` (KERNEL_ONLY) or `event` (CUDA_EVENT); a pairwise table is of two GPUs bridged
by NVLink without a switch. Attention is FlashInfer's, on uniform batches.
"""

from __future__ import annotations

import fnmatch
import hashlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from frontier.errors import ConfigError, Issue
from frontier.training import traps
from frontier.training.identity import Identity
from frontier.training.measurements import Measurements, Skipped, Source, concat
from frontier.training.sources import vidur_linear
from frontier.training.sources.vidur_linear import Profile

LICENCE = "MIT"
VERSION = "a4b22df"
GPUS = {
    "a100": "a100-80gb",
    "a800": "a800",
    "h100": "h100",
    "h800": "h800",
    "rtx_pro_6000": "rtx-pro-6000",
}
_TOY = "a toy: at most 64 tokens or 128 of context"
_MIXED = "mixed batches: their times carry some 70 us of host work"
# By the pattern of the whole name; the first that fits is given as the reason.
NOT_USED = {
    "compute__a40__*": "no preset of this GPU",
    "network__a40*": "no preset of this GPU",
    "compute__rtx_pro_6000__*": "at most 37 rows a file",
    "*__attention_combined*": _MIXED,
    "*__attention_mixed*": _MIXED,
    "*__attention_true_mixed*": _MIXED,
    "compute__h800__*tiny*": _TOY,
    "compute__h800__Phi-tiny*": _TOY,
    "compute__h800__llama2_7b_dense_example*": _TOY,
    "compute__h800__step-moe-noquant-small*": _TOY,
    "*__qwen3-next-80b-a3b-instruct-reduced*": _TOY,
}
# Sizes of heads that are not hidden / heads, and are no column: models' own configurations.
_HEAD_DIMS = {"qwen3-a3b-30b": 128}


WARNINGS = {
    "compute__h100__qwen2_moe_example__attention": (
        "reads the KV cache at 1.73 TB/s at most, half of what an H100 does and what an A800 does in this "
        "collection: perhaps another GPU"
    ),
}


def read(
    root: Path,
    gpus: Iterable[str] | None = None,
    *,
    keep_suspect: bool = False,
    skipped: list[Skipped] | None = None,
) -> Iterator[Measurements]:
    """Yield the measurements under `root`, a folder of either layout, one identity at a time.

    Args:
        root: Frontier's or Vidur's `data/profiling`, or a condensed copy.
        gpus: names of presets to read; None for all.
        keep_suspect: keep decode batches that share one KV cache and times that the hardware cannot reach
            (these are marked `impossible`).
        skipped: is given what was left alone, if a list.

    Raises:
        ConfigError: nothing to read under `root`, or a GPU that is not known.
    """
    wanted = tuple(GPUS.values()) if gpus is None else tuple(gpus)
    if unknown := [name for name in wanted if name not in GPUS.values()]:
        raise ConfigError(Issue("gpus", unknown[0], f"{unknown[0]!r} is not known", tuple(GPUS.values())))
    notes = skipped if skipped is not None else []
    files = _files(Path(root))
    if not files:
        raise ConfigError(Issue("root", str(root), f"holds no profiles of Vidur or Frontier: {root}"))
    chosen = {}
    for name, path in files.items():
        why = next((why for pattern, why in NOT_USED.items() if fnmatch.fnmatch(name, pattern)), None)
        if why is None and GPUS.get(_machine(name)) is None:
            why = "no preset of this GPU"
        if why is not None:
            notes.append(Skipped(path.name, len(_frame(path)), why))
        else:
            chosen[name] = path
    frames = {name: _frame(path) for name, path in chosen.items()}
    originals, copies = traps.drop_duplicate_contents(
        {name: _contents(name, frame) for name, frame in frames.items()}
    )
    notes += [
        Skipped(chosen[name].name, len(frames[name]), f"a copy of {original}")
        for name, original in copies.items()
    ]
    parts: dict[Identity, list[Measurements]] = {}
    for name in sorted(originals):
        if GPUS[_machine(name)] in wanted:
            for found in _parts(name, chosen[name], frames[name], keep_suspect):
                checked = traps.mark_impossible(traps.mark_quantised(found))
                kept = checked if keep_suspect else traps.drop_impossible(checked)
                for pattern, text in WARNINGS.items():
                    kept = kept.warned(text) if fnmatch.fnmatch(name, pattern) else kept
                parts.setdefault(kept.identity, []).append(kept)
    for same in parts.values():
        yield concat(same)


def _files(root: Path) -> dict[str, Path]:
    found = {}
    for path in sorted((*root.rglob("compute/**/*.csv"), *root.rglob("network/**/*.csv"))):
        parts = path.relative_to(root).with_suffix("").parts
        start = next(i for i, part in enumerate(parts) if part in ("compute", "network"))
        found["__".join(parts[start:])] = path
    for pattern in ("compute__*.parquet", "network__*.parquet"):
        found |= {path.stem: path for path in sorted(root.glob(pattern))}
    return found


def _machine(name: str) -> str:
    machine = name.split("__")[1]
    return machine if name.startswith("compute") else machine.split("_")[0]


def _frame(path: Path) -> pl.DataFrame:
    """Return a file with its times as `<operator>_ms`, whichever layout it has."""
    frame = pl.read_csv(path, infer_schema_length=None) if path.suffix == ".csv" else pl.read_parquet(path)
    renamed = {
        name: name.removeprefix("time_stats.").removesuffix(".median") + "_ms"
        for name in frame.columns
        if name.startswith("time_stats.") and name.endswith(".median")
    }
    unused = [name for name in frame.columns if name.startswith("time_stats.") and name not in renamed]
    return (
        frame.drop(unused)
        .rename(renamed)
        .with_columns(pl.col(pl.Categorical).cast(pl.String), pl.col(pl.Float32).cast(pl.Float64))
    )


def _contents(name: str, frame: pl.DataFrame) -> str:
    buffer = io.BytesIO()
    frame.write_ipc(buffer, compression="uncompressed")
    # Equal tables of different operators (empty ones, say) are no copies of each other.
    return name.rsplit("__", 1)[-1] + hashlib.sha256(buffer.getvalue()).hexdigest()


def _parts(name: str, path: Path, frame: pl.DataFrame, keep_suspect: bool) -> Iterator[Measurements]:
    gpu = GPUS[_machine(name)]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    source = Source("Frontier / Vidur profiles", LICENCE, path.name, digest, VERSION)
    kind = name.rsplit("__", 1)[-1].removesuffix("_kernel_only")
    model = "/".join(name.split("__")[2:-1])
    stated = frame["measurement_type"].unique().to_list() if "measurement_type" in frame.columns else []
    events = "CUDA_EVENT" in stated
    if len(stated) > 1:
        raise ConfigError(Issue("measurement_type", stated, f"differ within {path.name}"), source=str(path))
    backend = "vidur" if not stated else "frontier-profiler"
    profile = Profile(gpu, backend, VERSION, "event" if events else "kernel", model, frame, source)
    if name.startswith("network__"):
        yield from _network(profile, name.split("__")[1], kind)
    elif kind == "attention":
        yield from _attention(profile, keep_suspect)
    elif kind == "moe":
        yield from vidur_linear.moe(profile)
    elif kind in ("mlp", "linear_op"):
        yield from vidur_linear.linear(profile)


def _head_dim(model: str, frame: pl.DataFrame) -> int:
    named = [size for part, size in _HEAD_DIMS.items() if part in model]
    row = frame.row(0, named=True)
    return named[0] if named else int(row["n_embd"]) // int(row.get("n_q_head") or row["n_head"])


def _attention(profile: Profile, keep_suspect: bool) -> Iterator[Measurements]:
    frame, tp = profile.frame, pl.col("num_tensor_parallel_workers")
    size = _head_dim(profile.model, frame)
    mixed = pl.lit(False)
    for flag in ("is_mixed_batch", "is_true_mixed_batch"):
        if flag in frame.columns:
            mixed = mixed | (pl.col(flag).cast(pl.String).str.to_lowercase() == "true").fill_null(False)
    prefill = pl.col("is_prefill").cast(pl.Boolean)
    frame = frame.with_columns(
        heads=pl.col("n_q_head") // tp,
        kv_heads=(pl.col("n_kv_head") // tp).clip(1),
        mixed=mixed,
        query=pl.when(prefill).then(pl.col("prefill_chunk_size")).otherwise(1),
    )
    for operator, column, rows in (
        ("prefill_attention", "attn_prefill_ms", frame.filter(prefill)),
        ("decode_attention", "attn_decode_ms", frame.filter(~prefill)),
    ):
        useful = rows.filter(~pl.col("mixed") & (pl.col(column) > 0))
        single = (useful["query"] == 1) if operator == "prefill_attention" else pl.Series([False])
        useful = useful.filter(pl.col("query") > 1) if single.any() else useful
        if not len(useful):
            continue
        dropped = {
            _MIXED: int(rows["mixed"].sum()),
            "no time": int((~rows["mixed"] & (rows[column] <= 0)).sum()),
            "prefill of a single token": int(single.sum()),
        }
        columns = {
            "heads": useful["heads"],
            "kv_heads": useful["kv_heads"],
            "qk_dim": size,
            "v_dim": size,
            "kv_bytes_per_token": useful["kv_heads"] * size * 4.0,
            "activation_bytes": 2,
            "window": 0,
            "offsets": np.arange(len(useful) + 1),
            "count": useful["batch_size"],
            "query": useful["query"],
            "context": useful["kv_cache_size"] + useful["query"],
        }
        identity = Identity(
            profile.gpu,
            "flashinfer",
            f"frontier-{profile.version}",
            "flashinfer",
            profile.measurement,
            operator,
            "bf16",
            (("kv_cache_dtype", "bf16"),),
        )
        site = _name("h{}kv{}" + f"d{size}v{size}", useful, "heads", "kv_heads")
        found = profile.finished(identity, columns, useful[column], site, dropped)
        found = traps.drop_contradictory_repeats(found)
        if operator == "decode_attention":
            aliased = profile.backend == "frontier-profiler" and not keep_suspect
            found = traps.mark_warm_l2(traps.drop_aliased_kv(found) if aliased else found)
        yield found
    if "attn_kv_cache_save_ms" in frame.columns:
        written = frame.filter(~pl.col("mixed") & (pl.col("attn_kv_cache_save_ms") > 0))
        yield from _kv_write(profile, written, size)


def _kv_write(profile: Profile, rows: pl.DataFrame, size: int) -> Iterator[Measurements]:
    if not len(rows):
        return
    identity = profile.identity("kv_write", "bf16", "flashinfer")
    # Keys and values of each token, read and written.
    columns = {
        "rows": rows["batch_size"] * rows["query"],
        "bytes_per_row": 2 * rows["kv_heads"] * size * 4.0,
    }
    yield profile.finished(identity, columns, rows["attn_kv_cache_save_ms"], _name("kv{}", rows, "kv_heads"))


def _network(profile: Profile, machine: str, kind: str) -> Iterator[Measurements]:
    rows = profile.frame.filter(pl.col("collective") == kind)
    topology = machine.split("_", 1)[1]
    identity = Identity(
        profile.gpu,
        "nccl",
        f"frontier-{profile.version}",
        "nccl",
        profile.measurement,
        kind,
        "fp16",
        (("topology", topology),),
    )
    columns = {
        "bytes": rows["size"],
        "ranks": rows["num_workers"],
        "nodes": (rows["num_workers"] / rows["devices_per_node"]).ceil(),
    }
    site = _name("n{}per{}", rows, "num_workers", "devices_per_node")
    yield profile.finished(identity, columns, rows[f"{kind}_ms"], site)


def _name(pattern: str, rows: pl.DataFrame, *columns: str) -> Any:
    return rows.select(pl.format(pattern, *columns)).to_series().to_numpy().astype(object)
