"""CPU time and memory of the main job, as a whole process: user + system, median of several runs.

    python benches/main_job.py [--runs 5] [SCENARIO]

Prints one line per run and the median, then what the time is made of: import, lowering, simulation, summary.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

STAGES = """
import time, sys
t0 = time.process_time()
import frontier
from frontier.config import load
from frontier.lowering import lower
from frontier import simulation, _frontier
t1 = time.process_time()
scenario = load(sys.argv[1])
lowered = lower(scenario)
trace = lowered.trace
t2 = time.process_time()
raw = _frontier.simulate(lowered.plan_json, trace, lowered.predictors)
t3 = time.process_time()
result = frontier.Result(raw, simulation.run_facts(scenario, lowered))
str(result.summary())
t4 = time.process_time()
steps, tokens = result.totals["num_steps"], int(result.columns.requests["generated_tokens"].sum())
print(f"import {t1 - t0:.3f} s, lower {t2 - t1:.3f} s, simulate {t3 - t2:.3f} s, summary {t4 - t3:.3f} s")
rate = tokens / (t3 - t2) / 1e6
print(f"{steps:,} steps at {(t3 - t2) / steps * 1e9:.0f} ns, {tokens:,} tokens, {rate:.2f} M per CPU-second")
"""


def run_once(command: list[str]) -> tuple[float, float, float]:
    """Return CPU seconds, wall seconds and peak MiB of one process."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {os.waitstatus_to_exitcode(status)}")
    peak = usage.ru_maxrss / (1024 if sys.platform != "darwin" else 1024 * 1024)
    return usage.ru_utime + usage.ru_stime, time.perf_counter() - begin, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenario", nargs="?", default="azure-2023-conv")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    command = [sys.executable, "-m", "frontier", "run", options.scenario, "--no-progress"]
    run_once(command)  # warm the file cache
    runs = [run_once(command) for _ in range(options.runs)]
    for cpu, wall, peak in runs:
        print(f"cpu {cpu:.2f} s, wall {wall:.2f} s, peak {peak:.0f} MiB")
    print(f"median cpu {statistics.median(cpu for cpu, _, _ in runs):.2f} s of {options.runs} runs")
    subprocess.run([sys.executable, "-c", STAGES, options.scenario], check=True)


if __name__ == "__main__":
    main()
