"""Known traps of public operator data, one function each: what, evidence, what is done.

Functions take and return `Measurements`; what they leave out is counted in `dropped`, what they only notice
becomes a mark or a warning. Readers call those that apply to their data, in the order of their columns.

Event and kernel timings are never pooled: `measurement` is part of the identity. On an H800 the same
product (64 rows, tensor parallel 8) takes up to four times longer by CUDA events around an eager launch than
by the profiler's kernel times, because the launch is what is measured. Likewise eager calls and graph replays
of one custom all-reduce (2 to 4 times apart in aiconfigurator's `custom_allreduce_perf`, which mixes them
under one key).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from frontier.hardware import load_gpu
from frontier.training.identity import ATTENTION, Identity
from frontier.training.measurements import Array, Measurements


@dataclass(frozen=True)
class ColdCorrection:
    """What a decode attention read from DRAM costs more than one found in L2.

    `s_per_byte` seconds for each byte of KV cache up to `l2_bytes`, as `series` batches of one head
    configuration show it: the median over `rows` measurements below the cliff.
    """

    l2_bytes: float
    s_per_byte: float
    series: int
    rows: int


def l2_bytes(gpu: str) -> float:
    """Return the size of a preset's last-level cache, bytes."""
    return float(load_gpu(gpu).l2_bytes)


def _group_counts(measurements: Measurements) -> NDArray[np.int64]:
    offsets = measurements.columns["offsets"].astype(np.int64)
    return np.asarray(offsets[1:] - offsets[:-1])


def kv_bytes(measurements: Measurements) -> NDArray[np.float64]:
    """Return the KV-cache bytes each attention row reads: a window cuts every context short."""
    columns = measurements.columns
    sizes = _group_counts(measurements)
    window = np.repeat(columns["window"], sizes)
    context = columns["context"].astype(np.float64)
    seen = np.where(window > 0, np.minimum(context, window + columns["query"]), context)
    return np.asarray(measurements.per_row(columns["count"] * seen) * columns["kv_bytes_per_token"])


def attention_flops(measurements: Measurements) -> NDArray[np.float64]:
    """Return the FLOPs of each attention row: causal pairs of query and key, prefix included."""
    columns = measurements.columns
    sizes = _group_counts(measurements)
    query, context = columns["query"].astype(np.float64), columns["context"].astype(np.float64)
    window = np.repeat(columns["window"], sizes)
    pairs = query * (context - query) + query * (query + 1) / 2
    pairs = np.where(window > 0, np.minimum(pairs, query * window), pairs)
    width = columns["heads"] * (columns["qk_dim"] + columns["v_dim"])
    return np.asarray(2 * width * measurements.per_row(columns["count"] * pairs))


def mark_warm_l2(measurements: Measurements) -> Measurements:
    """Mark (`warm_l2`) decode rows whose KV cache fits in L2.

    What: replays of one graph read the same KV cache, so what fits in L2 never comes from DRAM, while in a
    model the layers in between evict it. Evidence: H100, vLLM, 64/8 heads: 19 us at 34 MB, 40 us at 67 MB.
    Done: rows stay; `cold_correction` says what the cold read adds.
    """
    return measurements.marked("warm_l2", kv_bytes(measurements) < l2_bytes(measurements.identity.gpu))


def cold_correction(measurements: Measurements) -> ColdCorrection | None:
    """Estimate what a cold read adds, from the cliff at the size of L2; None where the data show no cliff.

    Along the context, one batch of one head configuration is a straight line where DRAM bounds it (KV of 1.5
    to 12 times L2). The line, extended below the cliff, is the time of a cold read there; its distance from
    the rows between a quarter and 0.8 of L2, per byte, is what they lack.
    """
    columns, cache = measurements.columns, l2_bytes(measurements.identity.gpu)
    if (_group_counts(measurements) != 1).any():
        return None
    size = kv_bytes(measurements) / cache
    useful = (size >= 0.25) & (size <= 12) & (columns["window"] == 0) & (columns["query"] == 1)
    site = np.stack([columns[name] for name in ("heads", "kv_heads", "qk_dim", "count")], axis=1)[useful]
    size, seconds = size[useful], measurements.seconds[useful]
    lacking: list[float] = []
    found = 0
    _, member = np.unique(site, axis=0, return_inverse=True)
    order = np.argsort(member.ravel(), kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(member.ravel()[order])) + 1):
        cold, warm = rows[size[rows] >= 1.5], rows[size[rows] <= 0.8]
        if len(np.unique(size[cold])) < 3 or not len(warm):
            continue
        # Weighted by 1 / t: relative errors count, not those of the longest context alone.
        slope, start = np.polyfit(size[cold], seconds[cold], 1, w=1 / seconds[cold])
        found += 1
        lacking += list((start + slope * size[warm] - seconds[warm]) / (size[warm] * cache))
    if found < 5:
        return None
    extra = float(np.median(lacking))
    return ColdCorrection(cache, extra, found, len(lacking)) if extra > 0 else None


def relabel_launch_bound_mla(measurements: Measurements, floor_s: float = 80e-6) -> Measurements:
    """Call vLLM's MLA attention timed with events where no row, however small, is below 80 us.

    What: the tables are said to hold graph replays, but hold the launch of the whole Python call. Evidence,
    vLLM 0.14, fastest decode and prefill of each table, us: H100 `vllm_flash_attn_mla` 100 and 105,
    `vllm_flashmla` 131 and 119, H200 the same, `vllm_triton_mla` 295 and 241 (A100) and 296 and 248 (L40S);
    SGLang's and TensorRT-LLM's tables of the same sizes and GPUs start at 9 to 18 us. Half of the
    H100's `vllm_flash_attn_mla` decodes, of 2 to 262,144 tokens of context, take 155 to 175 us.
    Done: rows stay, as another identity: `measurement` is "event", and a warning says so.
    """
    identity = measurements.identity
    suspect = identity.backend == "vllm" and identity.measurement == "cuda_graph" and "mla" in identity.facts
    if not suspect or not len(measurements) or measurements.seconds.min() < floor_s:
        return measurements
    relabelled = replace(measurements, identity=replace(identity, measurement="event"))
    least = measurements.seconds.min() * 1e6
    return relabelled.warned(
        f"{len(measurements)} rows labelled as graph replays include the launch: none is below {least:.0f} us"
    )


def drop_foreign_expert_parallel(measurements: Measurements) -> Measurements:
    """Drop vLLM's and SGLang's rows of more than one expert-parallel rank.

    What: only TensorRT-LLM's rows are the work of one rank (the one with the largest load) on all tokens of
    the group. Evidence at 16,384 tokens, DeepSeek-V3: TensorRT-LLM falls from 28.1 ms (1 rank) to 0.80 ms (32
    ranks), as its share does; vLLM 0.24 on an H100 takes 19.1 ms at 1, 25.8 at 2 and still 11.4 at 32, by
    another kernel and with a balanced load slower than a skewed one. Done: dropped.
    """
    if measurements.identity.backend == "trtllm":
        return measurements
    return measurements.take(
        measurements.columns["moe_ep"] == 1, why="expert parallel rows that are not one rank's work"
    )


def drop_autotuner_misfires(measurements: Measurements, factor: float = 1.5) -> Measurements:
    """Drop fused MoE rows slower than `factor` times a larger batch (the next two token counts).

    What: an autotuner that chose badly for one token count. Evidence: TensorRT-LLM, Qwen3-30B, 4 ranks of
    experts, 256 to 384 tokens: 0.59 to 0.89 ms between neighbours of 0.13 and 0.15 ms; 0.45 % of all rows.
    """
    columns = measurements.columns
    others = np.stack([values for name, values in sorted(columns.items()) if name != "rows"], axis=1)
    _, site = np.unique(others, axis=0, return_inverse=True)
    site = site.ravel()
    order = np.lexsort((measurements.seconds, columns["rows"], site))
    points = np.stack([site[order].astype(np.float64), columns["rows"][order]], axis=1)
    first = np.flatnonzero(np.concatenate(([True], (np.diff(points, axis=0) != 0).any(axis=1))))
    # Repeats of one token count are judged by their fastest, so that a slow repeat misleads nobody.
    best, owner = measurements.seconds[order][first], points[first, 0]
    later = np.full(len(first), np.inf)
    for step in (1, 2):
        same = np.zeros(len(first), dtype=bool)
        same[:-step] = owner[:-step] == owner[step:]
        shifted = np.concatenate((best[step:], np.full(step, np.inf)))
        later = np.where(same, np.minimum(later, shifted), later)
    limit = np.empty(len(measurements))
    limit[order] = np.repeat(factor * later, np.diff(np.concatenate((first, [len(order)]))))
    return measurements.take(measurements.seconds <= limit, why="autotuner misfires")


def drop_pathological_deepep(measurements: Measurements) -> Measurements:
    """Drop DeepEP's normal mode over eight nodes.

    Evidence: 64 ranks, 16,384 tokens, dispatch 24.2 ms against 7.0 ms over four nodes; DeepSeek reports
    51 GB/s at 64 ranks, which is 3 times faster. The low-latency rows are sane.
    """
    return measurements.take(
        measurements.columns["nodes"] < 8, why="pathological DeepEP normal rows of 8 nodes"
    )


def separate_large_heads(identity: Identity, qk_dim: int) -> Identity:
    """Return the identity of head sizes above 256: attention runs another kernel there.

    Evidence: SGLang on an H100, contexts from 32k: a pooled model's p95 error is 290 % because of size 512.
    """
    return replace(identity, kernel=f"{identity.kernel}.large_heads") if qk_dim > 256 else identity


def separate_wide_groups(identity: Identity, heads: int, kv_heads: int) -> Identity:
    """Return the identity of TensorRT-LLM's decode with 48 or more query heads to a KV head.

    Evidence: 60 to 160 us for each wave of query heads, where smaller groups cost 5 us: another kernel.
    """
    wide = identity.backend == "trtllm" and identity.operator == "decode_attention" and heads >= 48 * kv_heads
    return replace(identity, kernel=f"{identity.kernel}.wide_groups") if wide else identity


def drop_aliased_kv(measurements: Measurements) -> Measurements:
    """Drop decode batches of several requests where all of them were given the same KV blocks.

    What: Frontier's profiler builds each request's block table as 0, 1, 2, ... (`attention_wrapper.py`,
    `block_table=list(range(num_blocks))`), so a batch reads one request's cache, from L2. Evidence: its H800
    Llama-405B table reads 604 MB in 94 us, 6.4 TB/s of at most 3.35, and 824 of its 832 rows above 100 MB are
    faster than DRAM. Vidur's own tables (A800 Llama-2: 1.8 of 2.04 TB/s) are not affected.
    Done: only batches of one request are kept.
    """
    requests = measurements.per_row(measurements.columns["count"])
    return measurements.take(requests == 1, why="decode batches whose requests share one KV cache")


def drop_contradictory_repeats(measurements: Measurements, tolerance: float = 0.10) -> Measurements:
    """Drop repeated inputs whose times differ by more than `tolerance`, if the typical ones do.

    What: runs of different instruments merged in one file. Evidence: A800, Qwen3-30B prefill: 252 repeats,
    23 % apart in the median. Where repeats agree in the median, a single outlier is noise and stays.
    """
    order = np.lexsort((measurements.seconds, measurements.key))
    keys, times = measurements.key[order], measurements.seconds[order]
    if len(keys) < 2:
        return measurements
    starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
    ends = np.concatenate((starts[1:], [len(keys)]))
    spread = times[ends - 1] / times[starts] - 1
    repeated = ends - starts > 1
    if not repeated.any() or np.median(spread[repeated]) <= tolerance:
        return measurements
    bad = np.empty(len(keys), dtype=bool)
    bad[order] = np.repeat(spread > tolerance, ends - starts)
    return measurements.take(~bad, why="repeats that contradict each other")


def timing_quantum(seconds: NDArray[np.float64]) -> float:
    """Return the step in which times were recorded (1 us or 0.5 us), 0 where they are finer."""
    for step in (1e-6, 0.5e-6):
        steps = seconds / step
        if len(seconds) >= 20 and np.mean(np.abs(steps - np.rint(steps)) < 0.02) > 0.99:
            return step
    return 0.0


def mark_quantised(measurements: Measurements) -> Measurements:
    """Mark (`quantised`) rows for which half a recording step is above 3 % of the time.

    Evidence: Vidur's tables (0.5 us) and Frontier's older ones (1 us), where short kernels take 3 to 20 us.
    Done: rows stay; errors below 3 % mean nothing on them.
    """
    step = timing_quantum(measurements.seconds)
    marked = measurements.marked("quantised", step / 2 / measurements.seconds > 0.03)
    return marked.warned(f"times were recorded in steps of {step * 1e6:g} us") if step else marked


def undo_summed_iterations(seconds: NDArray[np.float64], iterations: int) -> NDArray[np.float64]:
    """Return times per call of a column that adds up its iterations.

    What: LLMServingSim's `skew.csv` sums the samples of its 3 iterations, `attention.csv` holds means.
    Evidence: the same batches (uniform, at `kv_big`) stand in both; the median of 13,000 ratios is 2.99 to
    3.05 for each of seven models and degrees. Ratios within `skew.csv` are not affected.
    """
    return seconds / iterations


def drop_duplicate_contents(files: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Split files (path to content hash) into those to read and copies of others (copy to original).

    Evidence: Frontier's `a800_dgx` network tables are `a100_dgx`'s, its pairwise `send_recv` tables of three
    GPUs and `qwen2_moe_example/mlp` of two are one file each: a copy under another GPU's name measured
    nothing there. The first path in sorted order is the original (a100 before a800 and h100, as the hardware
    behind the numbers suggests).
    """
    originals: dict[str, str] = {}
    copies = {}
    for path in sorted(files):
        original = originals.setdefault(files[path], path)
        if original != path:
            copies[path] = original
    return {path: digest for path, digest in files.items() if path not in copies}, copies


def mark_impossible(measurements: Measurements) -> Measurements:
    """Mark (`impossible`) rows faster than the data sheet allows by more than 5 %, and warn of them.

    Products and attention against the peak rate of their dtype; the KV cache that attention reads against
    the memory bandwidth, for sizes of twice L2 and more, of which L2 may hold its share. Evidence: Frontier's
    A100 `qwen2_moe_example` attention reads at 290 TB/s, more than a hundred times what an A100 can;
    aiconfigurator's A100 decode by TensorRT-LLM 1.0.0 at up to 3.3 of 2.04 TB/s.
    Done: rows stay, marked; `drop_impossible` leaves them out.
    """
    impossible = np.zeros(len(measurements), dtype=bool)
    identity = measurements.identity
    peak = peak_flops(identity.gpu, identity.dtype, measurements)
    spec = load_gpu(identity.gpu)
    limit = 1.05 * measurements.seconds
    if identity.operator in ATTENTION:
        if identity.facts.get("kv_cache_dtype") == "fp8":
            # Kernels may quantise the queries too and multiply in 8 bits, whatever the table calls them.
            peak = peak_flops(identity.gpu, "fp8")
        size = kv_bytes(measurements)
        cache = l2_bytes(identity.gpu)
        from_dram = np.where(size > 2 * cache, size - cache, 0)
        impossible |= from_dram / spec.memory_bandwidth_bytes_per_s > limit
        impossible |= attention_flops(measurements) / peak > limit
    elif identity.operator == "gemm":
        columns = measurements.columns
        flops = 2 * columns["batch"] * columns["rows"] * columns["k"] * columns["n"]
        impossible |= flops / peak > limit
    marked = measurements.marked("impossible", impossible)
    if not impossible.any():
        return marked
    share = impossible.mean()
    return marked.warned(f"{impossible.sum()} rows ({share:.1%}) are faster than the data sheet allows")


def drop_impossible(measurements: Measurements, tolerated: float = 0.01) -> Measurements:
    """Drop rows marked `impossible`; where they are more than `tolerated` of all, drop every row.

    A table with many impossible times measured something else; the rest of it cannot be trusted either.
    """
    impossible = measurements.marks["impossible"]
    if len(impossible) and impossible.mean() > tolerated:
        return measurements.take(np.zeros(len(measurements), dtype=bool), why="table with impossible times")
    return measurements.take(~impossible, why="faster than the data sheet allows")


def peak_flops(gpu: str, dtype: str, measurements: Measurements | None = None) -> float:
    """Return the dense peak rate of `dtype` on a preset; weight-only schemes multiply in 16 bits.

    4-bit floats use the 4-bit units where activations are 4 bits wide, else the 8-bit or 16-bit ones.
    """
    peak = load_gpu(gpu).peak_flops_per_s
    wide = peak.bf16 or peak.fp16 or peak.fp32 or 0.0
    activation: Array | None = (measurements.columns if measurements else {}).get("activation_bytes")
    if dtype not in ("bf16", "fp16", "fp32") and activation is not None and len(activation):
        width = float(activation.max())
        if width > 1:
            return wide
    by_dtype = {
        "fp32": peak.fp32,
        "fp8": peak.fp8,
        "fp8_block": peak.fp8,
        "int8": peak.int8,
        "int4": wide,
        "mxfp4": peak.fp8,
        "nvfp4": peak.fp4,
    }
    return by_dtype.get(dtype) or wide
