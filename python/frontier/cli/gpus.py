"""`frontier gpus`: what is known of each GPU."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from frontier.cli import output
from frontier.cli.options import json_option

if TYPE_CHECKING:
    from frontier.hardware import GpuSpec

_COLUMNS = ("GPU", "memory", "bandwidth", "bf16", "fp8", "fp4", "NVLink", "$/h")


@click.command(short_help="List the GPUs, or one of them in detail.")
@click.argument("name", required=False)
@json_option
def gpus(name: str | None, as_json: bool) -> None:
    """List the GPUs with their memory, bandwidth, dense peak rates, links and list prices.

    NAME shows one of them in detail; it may also be the path of a YAML file.
    """
    from frontier.hardware import gpu_names, load_gpu  # noqa: PLC0415 - reads YAML

    if name is not None:
        spec = load_gpu(name)
        if as_json:
            output.print_json(_facts(spec))
        else:
            output.print_facts(_detail(spec))
        return
    specs = [load_gpu(each) for each in gpu_names()]
    if as_json:
        output.print_json([_facts(spec) for spec in specs])
        return
    output.print_table(_COLUMNS, [_row(spec) for spec in specs])
    output.print_text(
        "\n"
        "bf16, fp8, fp4: dense peak in TFLOPS. NVLink (or Infinity Fabric): per GPU and direction."
        " $/h: list price of one GPU. `frontier gpus NAME` gives the sources."
    )


def _facts(spec: GpuSpec) -> dict[str, Any]:
    """Return all facts of a GPU as plain values, under the names of `GpuSpec`."""
    facts = {each.name: getattr(spec, each.name) for each in fields(spec)}
    return {**facts, "peak_flops_per_s": spec.peak_flops_per_s.to_plan()}


def _row(spec: GpuSpec) -> tuple[str, ...]:
    peak = spec.peak_flops_per_s
    return (
        spec.name,
        f"{spec.memory_bytes / output.GIB:.1f} GiB",
        output.bandwidth(spec.memory_bandwidth_bytes_per_s),
        output.teraflops(peak.bf16),
        output.teraflops(peak.fp8),
        output.teraflops(peak.fp4),
        output.bandwidth(spec.nvlink_bandwidth_bytes_per_s),
        "-" if spec.price_per_hour_usd is None else f"{spec.price_per_hour_usd:.2f}",
    )


def _detail(spec: GpuSpec) -> list[tuple[str, str]]:
    peaks = [
        (f"peak {dtype}", f"{output.teraflops(rate)} TFLOPS, dense")
        for dtype, rate in spec.peak_flops_per_s.to_plan().items()
        if rate is not None
    ]
    price = "not known"
    if spec.price_per_hour_usd is not None:
        price = f"${spec.price_per_hour_usd:.2f} per hour"
        price += f" ({spec.price_source})" if spec.price_source else ""
    links = (
        ("NVLink", spec.nvlink_bandwidth_bytes_per_s, spec.nvlink_latency_ns),
        ("PCIe", spec.pcie_bandwidth_bytes_per_s, spec.pcie_latency_ns),
        ("network", spec.nic_bandwidth_bytes_per_s, spec.nic_latency_ns),
    )
    return [
        ("name", spec.name),
        ("memory", f"{output.size(spec.memory_bytes)}, as the driver reports it"),
        ("bandwidth", output.bandwidth(spec.memory_bandwidth_bytes_per_s)),
        ("cache", f"{spec.l2_bytes / 2**20:g} MiB"),
        ("SMs", f"{spec.num_sms}"),
        *peaks,
        *(
            (kind, f"{output.bandwidth(rate)} per GPU and direction, {latency_ns / 1e3:g} µs per message")
            for kind, rate, latency_ns in links
            if rate is not None
        ),
        ("GPUs per node", f"{spec.gpus_per_node}"),
        ("compute capability", spec.compute_capability or "-"),
        *([("CUDA's name", spec.device_name)] if spec.device_name else []),
        (
            "efficiency",
            f"compute {spec.compute_efficiency:.0%}, memory {spec.memory_efficiency:.0%},"
            f" links {spec.link_efficiency:.0%}",
        ),
        ("kernel launch", f"{spec.kernel_launch_ns / 1e3:g} µs"),
        ("power", _power(spec)),
        ("list price", price),
        ("source", spec.source or "-"),
    ]


def _power(spec: GpuSpec) -> str:
    power = spec.power
    if power is None:
        return "not known"
    idle = f"{power.idle_w:g} W idle" + (", assumed" if spec.idle_power_w is None else "")
    return f"{power.peak_w:g} W at most, {idle}" + (f" ({spec.power_source})" if spec.power_source else "")
