"""aiconfigurator's tables of collectives and of the exchanges of mixture-of-experts layers."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from frontier.training import traps
from frontier.training.identity import Fact, Identity
from frontier.training.measurements import Measurements
from frontier.training.sources.aiconfigurator_rows import MS, US, Table, finished, identity_of, site_names

_GPUS_PER_NODE = {"gb200": 4}


def nccl(table: Table) -> Iterator[Measurements]:
    """Yield collectives by nccl-tests: launches back to back, so that launch times overlap."""
    operators = {"alltoall": "all_to_all"}
    for (name, dtype), rows in table.frame.group_by("op_name", "nccl_dtype", maintain_order=True):
        operator = operators.get(str(name), str(name))
        plan, width = {"half": ("fp16", 2), "int8": ("int8", 1)}[str(dtype)]
        identity = identity_of(table, "nccl-tests", operator, plan, {}, measurement="event")
        yield _collective(table, identity, rows, width)


def custom_allreduce(table: Table) -> Iterator[Measurements]:
    """Yield one-shot and two-shot all-reduces of the engines, eager calls apart from graph replays."""
    for (kernel,), rows in table.frame.group_by("kernel_source", maintain_order=True):
        eager = str(kernel).endswith("_eager")
        how = "event" if eager else "cuda_graph"
        identity = identity_of(table, str(kernel), "all_reduce", "bf16", {}, measurement=how)
        yield _collective(table, identity, rows, 2)


def deepep(table: Table, *, normal: bool) -> Iterator[Measurements]:
    """Yield DeepEP's dispatch (fp8) and combine (bf16), tokens of each rank; normal mode by its SM budget."""
    node = _GPUS_PER_NODE.get(table.gpu, 8)
    for phase, dtype, width in (("dispatch", "fp8", 1.0), ("combine", "bf16", 2.0)):
        budgets = (
            table.frame.group_by(f"{phase}_sms", maintain_order=True) if normal else [((0,), table.frame)]
        )
        for (sms,), rows in budgets:
            facts: dict[str, Fact] = {"sms": int(str(sms))} if normal else {}
            kernel = "deepep_normal" if normal else "deepep_ll"
            identity = identity_of(table, kernel, f"moe_{phase}", dtype, facts, measurement="kernel")
            if normal:
                seconds = rows[f"{phase}_transmit_us"] + rows[f"{phase}_notify_us"]
            else:
                seconds = rows[f"{phase}_avg_t_us"]
            columns = {
                "rows": rows["num_token"],
                "hidden": rows["hidden_size"],
                "top_k": rows["num_topk"],
                "experts": rows["num_experts"],
                "ep": rows["node_num"] * node,
                "nodes": rows["node_num"],
                "bytes_per_element": width,
            }
            site = site_names("h{}k{}e{}", rows, "hidden_size", "num_topk", "num_experts")
            found = finished(table, identity, columns, seconds * US, site)
            yield traps.drop_pathological_deepep(found) if normal else found


def moe_a2a(table: Table) -> Iterator[Measurements]:
    """Yield dispatch and combine of the newer exchange table (microseconds)."""
    yield from _exchange(table, table.frame, US)


def trtllm_alltoall(table: Table) -> Iterator[Measurements]:
    """Yield TensorRT-LLM's exchange within an NVLink domain (milliseconds), graphs."""
    low = pl.col("op_name").str.ends_with("_low_precision")
    frame = table.frame.with_columns(
        phase=pl.col("op_name").str.extract(r"^alltoall_([a-z]+)"),
        comm_dtype=pl.when(low).then(pl.lit("fp4")).otherwise(pl.col("moe_dtype")),
        comm_backend=pl.col("kernel_source"),
        ep_size=pl.col("moe_ep_size"),
        node_num=pl.lit(1),
        sms=pl.lit(0),
    )
    yield from _exchange(table, frame, MS, "cuda_graph")


def _exchange(table: Table, frame: pl.DataFrame, unit: float, how: str = "kernel") -> Iterator[Measurements]:
    # "default": DeepEP's own, fp8 out and bf16 back. The dtype of a combine is that of the experts; what
    # travels is bf16, except where it says fp4, a combine of low precision.
    widths = {
        "bfloat16": ("bf16", 2.0),
        "fp8": ("fp8", 1.0),
        "nvfp4": ("nvfp4", 0.5625),
        "fp4": ("nvfp4", 0.5625),
    }
    keys = ("comm_backend", "phase", "comm_dtype", "sms")
    for (backend, phase, dtype, sms), rows in frame.group_by(*keys, maintain_order=True):
        if phase == "prepare":
            continue
        if dtype == "default":
            plan, width = widths["fp8" if phase == "dispatch" else "bfloat16"]
        else:
            plan, width = widths["bfloat16" if phase == "combine" and dtype != "fp4" else str(dtype)]
        facts: dict[str, Fact] = {"comm_dtype": str(dtype), "sms": int(str(sms))}
        identity = identity_of(table, str(backend), f"moe_{phase}", plan, facts, measurement=how)
        columns = {
            "rows": rows["num_tokens"],
            "hidden": rows["hidden_size"],
            "top_k": rows["topk"],
            "experts": rows["num_experts"],
            "ep": rows["ep_size"],
            "nodes": rows["node_num"],
            "bytes_per_element": width,
        }
        site = site_names("h{}k{}e{}", rows, "hidden_size", "topk", "num_experts")
        yield finished(table, identity, columns, rows["latency"] * unit, site)


def _collective(table: Table, identity: Identity, rows: pl.DataFrame, width: int) -> Measurements:
    columns = {"bytes": rows["message_size"] * width, "ranks": rows["num_gpus"], "nodes": 1}
    return finished(table, identity, columns, rows["latency"] * MS, site_names("n{}", rows, "num_gpus"))
