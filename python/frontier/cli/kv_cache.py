"""`frontier kv-cache`: hit rates of a trace over cache size, for each eviction policy."""

from __future__ import annotations

import click

from frontier.cli import output
from frontier.cli.options import json_option


@click.command("kv-cache", short_help="Show what prefix caches of each size would find in a trace.")
@click.argument("trace")
@click.option(
    "--policy",
    "policies",
    metavar="NAME",
    multiple=True,
    help="lru, lfu, arc, ttl or belady (an oracle); may be repeated. All of them if left out.",
)
@click.option(
    "--capacity",
    "capacities",
    metavar="BLOCKS",
    multiple=True,
    help="A cache size in blocks, as 50k; may be repeated. Up to all distinct blocks if left out.",
)
@click.option(
    "--block-size", metavar="TOKENS", type=int, help="Tokens per block; left out, the trace's, or 16."
)
@click.option(
    "--ttl", metavar="TIME", default="10min", show_default=True, help="Time to live for policy ttl."
)
@json_option
def kv_cache(
    trace: str,
    *,
    policies: tuple[str, ...],
    capacities: tuple[str, ...],
    block_size: int | None,
    ttl: str,
    as_json: bool,
) -> None:
    """Replay the prompts of TRACE, a file or a built-in trace, through prefix caches.

    Each request looks up the blocks of its prompt; what counts is the leading run that is found. No engine
    runs: the figures are what a cache of this size could give at most under the policy.
    """
    from frontier import kv_study, units  # noqa: PLC0415
    from frontier.errors import ConfigError, Issue  # noqa: PLC0415
    from frontier.workloads import load_trace  # noqa: PLC0415 - imports numpy

    def parse(name: str, text: str, read: object) -> int:
        try:
            return int(read(text))  # type: ignore[operator]
        except ValueError as error:
            raise ConfigError(Issue(name, text, str(error))) from None

    curve = kv_study.hit_curve(
        load_trace(trace),
        capacities=[parse("--capacity", text, units.parse_count) for text in capacities] or None,
        policies=policies or kv_study.POLICIES,
        block_size=block_size,
        ttl_ns=parse("--ttl", ttl, units.parse_duration_ns),
    )
    if as_json:
        output.print_json(curve.to_dict())
        return
    names = list(dict.fromkeys(point.policy for point in curve.points))
    sizes = list(dict.fromkeys(point.capacity_blocks for point in curve.points))
    output.print_text(
        f"{curve.requests:,} requests, {curve.lookup_blocks:,} block look-ups of {curve.block_size} tokens,"
        f" {curve.distinct_blocks:,} distinct blocks"
    )
    rows = []
    for size in sizes:
        cells = [curve.at(name, size) for name in names]
        rows.append((f"{size:,}", *(f"{100 * cell.hit_rate:.1f} %" for cell in cells)))
    output.print_table(("blocks", *names), rows, left=0)
    largest = curve.at(names[0], sizes[-1])
    output.print_text(
        f"with {largest.capacity_blocks:,} blocks, {names[0]} finds {largest.hit_blocks:,} of"
        f" {largest.lookup_blocks:,}"
    )
