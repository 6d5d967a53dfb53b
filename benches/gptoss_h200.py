"""Compare gpt-oss-120b on one H200 (vLLM 0.22.0, closed loop, 1 to 256 clients) with measured runs.

    python benches/gptoss_h200.py POINTS

POINTS is `gptoss120b_h200.csv` of the reference data: means over requests with about 7,200 prompt and 900
output tokens, random lengths. Lengths are drawn uniformly so that means agree; the runs' own were not
published.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

import frontier

METRICS = ("ttft", "tpot", "e2e", "output_tok_s")


def measured(path: Path) -> dict[int, dict[str, float]]:
    """Return means by concurrency, of the runs with the most requests."""
    best: dict[int, dict[str, str]] = {}
    with path.open(newline="") as lines:
        for row in csv.DictReader(lines):
            clients = int(row["load_value"])
            if clients not in best or int(row["n_requests"]) > int(best[clients]["n_requests"]):
                best[clients] = row
    return {
        clients: {
            "ttft": float(row["ttft_ms_mean"]),
            "tpot": float(row["tpot_ms_mean"]),
            "e2e": float(row["e2e_ms_mean"]),
            "output_tok_s": float(row["output_tok_s"]),
            "requests": float(row["n_requests"]),
            "prompt": float(row["isl"]),
            "output": float(row["osl"]),
        }
        for clients, row in sorted(best.items())
    }


def around(mean: float, most: int) -> dict[str, Any]:
    """Return a uniform law with this mean and this largest value."""
    return {"uniform": {"min": max(1, round(2 * mean - most)), "max": most}}


def simulated(clients: int, facts: dict[str, float]) -> tuple[dict[str, float], str]:
    """Return the same means, and what became of the KV cache."""
    scenario = frontier.Scenario.from_dict(
        {
            "model": "gpt-oss-120b",
            "hardware": "h200",
            "engine": {"version": "0.22"},
            "workload": {
                "synthetic": {
                    "arrivals": {"closed_loop": {"concurrency": clients}},
                    "num_requests": int(facts["requests"]),
                    "prompt_tokens": around(facts["prompt"], 8192),
                    "output_tokens": around(facts["output"], 1024),
                }
            },
        }
    )
    result = frontier.simulate(scenario)
    summary = result.summary()
    values = {
        "ttft": summary.mean_ttft_s * 1e3,
        "tpot": summary.mean_tpot_s * 1e3,
        "e2e": summary.mean_e2el_s * 1e3,
        "output_tok_s": summary.output_throughput,
    }
    kv = (
        f"KV mean {summary.mean_kv_use:.0%}, peak {summary.peak_kv_use:.0%},"
        f" {summary.preemptions} preemptions, {scenario.resolve().num_blocks:,} blocks"
    )
    return values, kv


def main() -> None:
    """Print one line per concurrency."""
    parser = argparse.ArgumentParser()
    parser.add_argument("points", type=Path)
    options = parser.parse_args()
    print("clients  metric         measured  simulated   error")
    for clients, facts in measured(options.points).items():
        values, kv = simulated(clients, facts)
        for name in METRICS:
            error = values[name] / facts[name] - 1
            print(f"{clients:>7}  {name:<12}{facts[name]:>11.1f}{values[name]:>11.1f}{error:>8.1%}")
        print(f"         {kv}")


if __name__ == "__main__":
    main()
