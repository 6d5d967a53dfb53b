"""Compare measured runs with prefill and decode apart with simulated ones.

    python benches/pdd_measured.py DATA [--group c3|dstack|silicon|control] [--set PATH=VALUE] [--json FILE]

DATA is the folder `measured` of the reference data. What each run was, and what is assumed where it was not
published, is in `pdd_points.py`. Errors are simulated / measured - 1. Provenance is the share of GPU time
that is measured, interpolated, extrapolated and unmeasured (`frontier.results.trust`), in percent: where the
last two are large, an error says more about luck than about operators.
"""

import argparse
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pdd_points import (
    C1,
    C3,
    UPSTREAM_FIT,
    Left,
    Point,
    control_points,
    dstack_points,
    llama_scenario,
    rows_of,
    silicon_points,
)

import frontier
from frontier.results.trust import PROVENANCES

METRICS = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "output_tok_s": "tokens/s"}
GROUPS = {"dstack": dstack_points, "silicon": silicon_points, "control": control_points}
MS = 1e6


def simulate(scenario: dict[str, Any]) -> frontier.Result:
    return frontier.simulate(frontier.Scenario.from_dict(scenario))


def set_in(scenario: dict[str, Any], path: str, value: str) -> None:
    """Set a field of a scenario, given as a dotted path."""
    *above, last = path.split(".")
    for name in above:
        scenario = scenario.setdefault(name, {})
    scenario[last] = value


def request_times(result: frontier.Result) -> dict[str, np.ndarray]:
    """Return by request: end of the prompt and of the transfer, first and last token, in ms after arrival."""
    requests, transfers = result.columns.requests, result.columns.transfers
    arrival = requests["arrival_ns"]
    found = {
        "first": (requests["first_token_ns"] - arrival) / MS,
        "last": (requests["finished_ns"] - arrival) / MS,
        "output": requests["generated_tokens"].astype(float),
    }
    for name in ("ready", "end"):
        at = requests["first_token_ns"].copy()
        at[transfers["request"]] = transfers[f"{name}_ns"]
        found[name] = (at - arrival) / MS
    return found


def little(point: Point, ttft_ms: float, tpot_ms: float) -> float:
    """Return the tokens per second of a closed loop with these latencies."""
    request_s = (ttft_ms + tpot_ms * (point.output_tokens - 1)) / 1e3
    return point.concurrency * point.output_tokens / request_s


def means(point: Point, result: frontier.Result) -> dict[str, float]:
    """Return the simulated metrics of a point.

    Where the prefill side's token is the first, TTFT ends with the transfer; TPOT is that of the decode side
    in either case.
    """
    times = request_times(result)
    several = times["output"] > 1
    ttft = float(times["end" if point.first_token == "prefill" else "first"].mean())
    tpot = float(((times["last"] - times["first"])[several] / (times["output"][several] - 1)).mean())
    return {
        "ttft_ms": ttft,
        "tpot_ms": tpot,
        "output_tok_s": result.summary().output_throughput
        if "output_tok_s" in point.measured
        else little(point, ttft, tpot),
    }


def ranks(values: Sequence[float]) -> np.ndarray:
    """Return ranks, those of equal values their mean."""
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]


def spearman(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Return the rank correlation of two samples, None where it is not defined."""
    if len(one) < 3 or len(set(one)) == 1 or len(set(other)) == 1:
        return None
    return float(np.corrcoef(ranks(one), ranks(other))[0, 1])


def shares(result: frontier.Result) -> str:
    return "/".join(str(round(100 * result.trust.shares[name])) for name in PROVENANCES)


# --- c3 -----------------------------------------------------------------------------------------------------


LLAMA_RUNS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "c1, one GPU (control)": (C1, None),
    "c3, KV over NVLink as the data sheet has it": (C3, {"mode": "buffer"}),
    "c3, KV by the constants upstream fitted to c3": (C3, UPSTREAM_FIT),
}


def llama_figures(
    table: Path, transfer: dict[str, Any] | None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], str]:
    """Return latencies of c1 or c3 in ms, by request: measured, simulated; and what the latter rest on.

    Of c3, TTFT is to the end of the prompt on the prefill side, as it was measured; `gap_ms` is from there to
    the first token of the decode side.
    """
    rows = rows_of(table)
    result = simulate(llama_scenario(table, transfer))
    times = request_times(result)
    decoded = times["output"] - 1
    ours = {
        "ttft_ms": times["ready"],
        "tpot_ms": (times["last"] - times["first"]) / decoded,
        "e2e_ms": times["last"],
    }
    theirs = {key: np.array([float(row[key]) for row in rows]) for key in ours}
    if transfer is not None:
        ours["gap_ms"] = times["first"] - times["ready"]
        theirs["gap_ms"] = theirs["e2e_ms"] - theirs["ttft_ms"] - theirs["tpot_ms"] * decoded
    return theirs, ours, shares(result)


def compare_requests(data: Path) -> None:
    """Compare c3 request by request, and c1, the same engine on one GPU, as a control."""
    print("Llama-2-7B on H200, vLLM, 100 requests of 2,048 + 256 tokens, 2/s; ms. In c3, TTFT is to the end")
    print("of the prompt on the prefill side; gap is from there to the first token of the decode side.")
    heads = f"{'median':>8}{'p90':>8}{'p99':>8}{'MAPE':>7}{'r':>6}"
    print(f"{'':46}{'measured':>9}{'simulated':>10}{'error':>8}{heads}")
    for name, (file, transfer) in LLAMA_RUNS.items():
        theirs, ours, provenance = llama_figures(data / "h200_e2e" / file, transfer)
        print(f"{name} (provenance {provenance})")
        for key, simulated in ours.items():
            measured = theirs[key]
            errors = [np.percentile(simulated, p) / np.percentile(measured, p) - 1 for p in (50, 90, 99)]
            print(
                f"    {key:42}{measured.mean():9.2f}{simulated.mean():10.2f}"
                f"{simulated.mean() / measured.mean() - 1:+8.1%}"
                + "".join(f"{error:+8.1%}" for error in errors)
                + f"{np.abs(simulated / measured - 1).mean():7.1%}"
                + f"{np.corrcoef(simulated, measured)[0, 1]:6.2f}"
            )


# --- dstack and silicon -------------------------------------------------------------------------------------


def run_points(points: Iterable[Point | Left]) -> tuple[list[dict[str, Any]], list[Left]]:
    """Simulate points, print a line for each; return them and what was left out."""
    done: list[dict[str, Any]] = []
    left: list[Left] = []
    group = None
    for point in points:
        if isinstance(point, Left):
            left.append(point)
            continue
        if point.group != group:
            group = point.group
            print(f"\n{group}: TTFT, TPOT (ms), output tokens/s: measured, simulated, error; provenance")
        try:
            result = simulate(point.scenario)
        except frontier.ConfigError as error:
            left.append(Left(point.group, point.name, f"refused: {error}"))
            continue
        simulated = means(point, result)
        measured = dict(point.measured)
        measured.setdefault("output_tok_s", little(point, measured["ttft_ms"], measured["tpot_ms"]))
        cells = [
            f"{measured[key]:10,.{digits}f}{simulated[key]:10,.{digits}f}"
            f"{simulated[key] / measured[key] - 1:+8.0%}"
            for key, digits in zip(METRICS, (0, 1, 0), strict=True)
        ]
        print(f"{point.name:76}" + "".join(cells) + f"  {shares(result)}", flush=True)
        done.append(
            {"point": point, "measured": measured, "simulated": simulated, "trust": result.trust.shares}
        )
    return done, left


def statistics_of(done: list[dict[str, Any]]) -> None:
    """Print what the errors of each group come to, and whether configurations are ranked as measured."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in done:
        groups.setdefault(one["point"].group, []).append(one)
    heads = f"{'mean':>7}{'median':>8}{'p90':>7}{'bias':>8}{'Spearman':>9}"
    print(f"\nabsolute errors{'':21}{'points':>7}  {'metric':9}{heads}")
    for group, members in groups.items():
        for key, title in METRICS.items():
            pairs = [(one["measured"][key], one["simulated"][key]) for one in members]
            if key == "output_tok_s":  # what a choice between configurations is made by
                pairs = [
                    (a / one["point"].gpus, b / one["point"].gpus)
                    for (a, b), one in zip(pairs, members, strict=True)
                ]
            errors = [ours / theirs - 1 for theirs, ours in pairs]
            absolute = np.abs(errors)
            rank = spearman([a for a, _ in pairs], [b for _, b in pairs])
            print(
                f"{group:36}{len(members):7}  {title:9}{absolute.mean():7.0%}{np.median(absolute):8.0%}"
                f"{np.percentile(absolute, 90):7.0%}{np.mean(errors):+8.0%}"
                + (f"{rank:9.2f}" if rank is not None else " " * 9)
            )
        _same_load(members)


def _same_load(members: list[dict[str, Any]]) -> None:
    """Print how well deployments are ranked that were put under the same load."""
    loads: dict[str, list[dict[str, Any]]] = {}
    for one in members:
        loads.setdefault(one["point"].workload, []).append(one)
    found = []
    best = comparable = 0
    for same in loads.values():
        theirs, ours = (
            [one[side]["output_tok_s"] / one["point"].gpus for one in same]
            for side in ("measured", "simulated")
        )
        rank = spearman(theirs, ours)
        if rank is not None:
            found.append(rank)
            comparable += 1
            best += int(np.argmax(theirs) == np.argmax(ours))
    if found:
        print(
            f"{'':43}  tokens/s per GPU over deployments under one load: mean Spearman"
            f" {statistics.mean(found):.2f} of {comparable} loads, the best one found in {best}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--group", choices=("c3", *GROUPS), help="one group; left out, all")
    parser.add_argument("--set", metavar="PATH=VALUE", help="another setting in all scenarios of points")
    parser.add_argument("--json", type=Path, help="write the points here too")
    given = parser.parse_args()
    if given.group in (None, "c3"):
        compare_requests(given.data)
    points: list[Point | Left] = []
    for name, made in GROUPS.items():
        if given.group in (None, name):
            points += made(given.data)
    points.sort(key=lambda point: (point.group, point.name))
    if given.set is not None:
        path, _, value = given.set.partition("=")
        for point in points:
            if isinstance(point, Point):
                set_in(point.scenario, path, value)
    done, left = run_points(points)
    if done:
        statistics_of(done)
    reasons: dict[str, list[str]] = {}
    for one in left:
        reasons.setdefault(one.reason, []).append(one.name)
    for reason, names in reasons.items():
        print(f"\nleft out, {len(names)}: {reason}")
        for name in names[:3]:
            print(f"    {name}")
        if len(names) > 3:
            print(f"    and {len(names) - 3} more")
    if given.json is not None:
        rows = [
            {"group": one["point"].group, "name": one["point"].name}
            | {key: one[key] for key in ("measured", "simulated", "trust")}
            for one in done
        ]
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
