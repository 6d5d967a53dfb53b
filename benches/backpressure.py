"""Back-pressure between a prefill and a decode engine: a run whose decode side is out of KV blocks, drawn.

    python benches/backpressure.py [--out docs/backpressure.svg]

One prefill and one decode engine (1P1D, KV pulled as by vLLM's NIXL) get twice the requests that the decode
side can take: its cache holds six of them, the prefill side's five. The picture shows blocks in use on both
sides, requests that run and wait on the prefill side, and transfers under way and held up, over time. What it
shows is asserted on the same run in `tests/results/test_backpressure.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import frontier

PROMPT_TOKENS, OUTPUT_TOKENS, BLOCK_TOKENS = 512, 60, 16
DECODE_BLOCKS = 220
"""Six requests of 32 blocks, grown to 36, and not seven."""
PREFILL_BLOCKS = 165
"""Five prompts of 32 blocks."""
SCENARIO: dict[str, Any] = {
    "model": "llama-3.1-8b",
    "hardware": "h100",
    "engine": {
        "step_time": {"linear": {"per_step": "5ms", "per_prefill_token": "20us"}},
        "max_model_len": 2048,
        "async_scheduling": False,
        "enable_prefix_caching": False,
    },
    "clusters": [
        # One block of each cache is the null block, which nobody gets.
        {"role": "prefill", "engine": {"num_gpu_blocks_override": PREFILL_BLOCKS + 1}},
        {"role": "decode", "engine": {"num_gpu_blocks_override": DECODE_BLOCKS + 1}},
    ],
    "disaggregation": {"kv_transfer": {"mode": "pull", "bandwidth": "2GB/s", "latency": "50us"}},
    "workload": {
        "synthetic": {
            "arrivals": {"poisson": {"rate": 40}},
            "num_requests": 80,
            "prompt_tokens": PROMPT_TOKENS,
            "output_tokens": OUTPUT_TOKENS,
        }
    },
    "output": {"steps": True, "timeline_interval": "5ms"},
}
"""The decode side ends 20 requests per second: six in 60 steps of 5 ms."""

Series = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Line:
    """A figure over time.

    Attributes:
        label: what it is.
        colour: how it is drawn.
        time_ns: from when on it has each of `value`.
        value: what it counts.
    """

    label: str
    colour: str
    time_ns: Series
    value: Series


@dataclass(frozen=True, slots=True)
class Panel:
    """Figures on one axis.

    Attributes:
        title: what they count.
        lines: the figures.
        limit: a bound to draw, with its name.
    """

    title: str
    lines: tuple[Line, ...]
    limit: tuple[int, str] | None = None


def run(**changes: Any) -> frontier.Result:
    """Simulate the scenario, with other sections."""
    return frontier.simulate(SCENARIO | changes)


def sampled(result: frontier.Result, engine: int, name: str) -> tuple[Series, Series]:
    """Return the moments of the time line and a gauge of an engine (0: prefill, 1: decode)."""
    timeline = result.columns.timeline
    rows = timeline["replica"] == engine
    return timeline["time_ns"][rows].astype(np.int64), timeline[name][rows].astype(np.int64)


def counted(begin_ns: Series, end_ns: Series) -> tuple[Series, Series]:
    """Return how many of the intervals [begin, end) are open, from each moment at which that changes."""
    moments = np.unique(np.concatenate([begin_ns, end_ns]))
    begun = np.searchsorted(np.sort(begin_ns), moments, side="right")
    ended = np.searchsorted(np.sort(end_ns), moments, side="right")
    return moments, (begun - ended).astype(np.int64)


def panels(result: frontier.Result) -> tuple[Panel, ...]:
    """Return what is drawn of a run."""
    transfers = result.columns.transfers
    ready, start, end = (transfers[f"{name}_ns"] for name in ("ready", "start", "end"))

    def gauge(label: str, colour: str, engine: int, name: str) -> Line:
        return Line(label, colour, *sampled(result, engine, name))

    return (
        Panel(
            "KV blocks of the decode engine",
            (gauge("in use", "#1b6ca8", 1, "used_blocks"),),
            (DECODE_BLOCKS, "all"),
        ),
        Panel(
            "Transfers",
            (
                Line("held up", "#c0392b", *counted(ready, start)),
                Line("under way", "#2e8b57", *counted(start, end)),
            ),
        ),
        Panel(
            "KV blocks of the prefill engine",
            (gauge("in use", "#1b6ca8", 0, "used_blocks"),),
            (PREFILL_BLOCKS, "all"),
        ),
        Panel(
            "Requests at the prefill engine",
            (gauge("waiting", "#c0392b", 0, "num_waiting"), gauge("running", "#2e8b57", 0, "num_running")),
        ),
    )


WIDTH, LEFT, RIGHT, TOP, HEIGHT, GAP = 900, 60, 110, 40, 110, 50
_TICKS_S = 0.5


def draw(of: Sequence[Panel]) -> str:
    """Return the panels as SVG, below one another over one axis of time."""
    last_ns = max(int(line.time_ns[-1]) for panel in of for line in panel.lines)
    span = WIDTH - LEFT - RIGHT
    bottom = TOP + len(of) * (HEIGHT + GAP) - GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 45}" font-size="12"'
        ' font-family="sans-serif" fill="#222">',
        f'<rect width="{WIDTH}" height="{bottom + 45}" fill="#fff"/>',
    ]
    for tick in range(int(last_ns / 1e9 / _TICKS_S) + 1):
        x = LEFT + span * tick * _TICKS_S * 1e9 / last_ns
        parts.append(f'<path d="M{x:.1f} {TOP}V{bottom}" stroke="#ddd"/>')
        label = f"{tick * _TICKS_S:g} s"
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{label}</text>')
    for number, panel in enumerate(of):
        top = TOP + number * (HEIGHT + GAP)
        most = max(int(line.value.max()) for line in panel.lines)
        most = max(most, panel.limit[0]) if panel.limit else most

        def level(value: int, base: int = top + HEIGHT, most: int = most) -> str:
            return f"{base - HEIGHT * value / max(most, 1):.1f}"

        parts.append(f'<text x="{LEFT}" y="{top - 8}" font-weight="bold">{panel.title}</text>')
        parts.append(f'<path d="M{LEFT} {top}V{top + HEIGHT}H{LEFT + span}" fill="none" stroke="#222"/>')
        for value in (0, most):
            y = float(level(value)) + 4
            parts.append(f'<text x="{LEFT - 6}" y="{y:.1f}" text-anchor="end">{value}</text>')
        if panel.limit:
            y = level(panel.limit[0])
            parts.append(f'<path d="M{LEFT} {y}H{LEFT + span}" stroke="#888" stroke-dasharray="5 4"/>')
            parts.append(f'<text x="{LEFT + span + 8}" y="{float(y) + 4:.1f}">{panel.limit[1]}</text>')
        for place, line in enumerate(panel.lines):
            points = [f"M{LEFT} {level(0)}"]
            for time, value in zip(line.time_ns.tolist(), line.value.tolist(), strict=True):
                points.append(f"H{LEFT + span * time / last_ns:.1f}V{level(value)}")
            path = "".join(points)
            parts.append(f'<path d="{path}" fill="none" stroke="{line.colour}" stroke-width="1.5"/>')
            y = top + 40 + 18 * place
            parts.append(f'<text x="{LEFT + span + 8}" y="{y}" fill="{line.colour}">{line.label}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/backpressure.svg"))
    options = parser.parse_args()
    result = run()
    options.out.write_text(draw(panels(result)), encoding="utf-8")
    print(f"{options.out}: digest {result.digest}, {result.totals['end_ns'] / 1e9:.2f} s")


if __name__ == "__main__":
    main()
