"""Random small scheduler configurations and traces for differential tests, equal on every machine.

    fuzz_gen.py DIR N SEED    write N cases as DIR/fNNNN.json (config) and DIR/fNNNN.csv (trace)

Case `k` of a seed depends on (seed, k) alone, so a failing case is its two numbers. `tests/golden/README.md`
describes both formats.
"""

import argparse
import json
from pathlib import Path

MASK = (1 << 64) - 1
HEADER = "request_id,arrival_ns,prompt,output_len,priority"


class Random:
    """A splitmix64 generator."""

    def __init__(self, state):
        self.state = state & MASK

    def u64(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def integer(self, least, most):
        """Draw a whole number from least ..= most."""
        return least + self.u64() % (most - least + 1)

    def choice(self, options):
        return options[self.u64() % len(options)]

    def percent(self, chance):
        """Return true in `chance` of 100 draws."""
        return self.u64() % 100 < chance


def case(seed, k):
    """Return (config, trace lines) of case `k`."""
    r = Random(seed * 1_000_003 + k)
    block_size = r.choice([1, 4, 16, 16, 32])
    max_prompt = r.choice([30, 100, 300])
    max_output = r.choice([5, 30, 80])
    cfg = config(r, k, block_size, max_prompt, max_output)
    return cfg, trace(r, max_prompt, max_output, cfg["max_model_len"])


def config(r, k, block_size, max_prompt, max_output):
    """Draw a configuration; the order of draws is part of what a case is."""
    max_model_len = r.choice([4096, 4096, max_prompt + 8])
    need = -(-(max_prompt + 200 + max_output + 12) // block_size) + 2
    num_blocks = 1 + need + r.integer(0, need * r.choice([0, 1, 2, 6]))
    pd = r.percent(20)
    async_scheduling = r.percent(35)
    budget = r.choice([32, 64, 128, 512, 2048])
    max_num_seqs = min(r.choice([2, 4, 8, 16, 64]), budget)
    chunked = not r.percent(10)
    if not chunked:
        budget = max(budget, 4096)
    cfg = {
        "name": f"f{k:04d}",
        "log_block_ids": True,
        "max_steps": 1500,
        "block_size": block_size,
        "num_blocks": num_blocks,
        "max_model_len": max_model_len,
        "max_num_batched_tokens": budget,
        "max_num_seqs": max_num_seqs,
        "enable_chunked_prefill": chunked,
        "enable_prefix_caching": not r.percent(30),
        "policy": r.choice(["fcfs", "fcfs", "priority"]),
        "scheduler_reserve_full_isl": not r.percent(30),
        "watermark": r.choice([0.0, 0.0, 0.0, 0.02, 0.1]),
        "async_scheduling": async_scheduling,
        "clock": {
            "a": r.integer(0, 5_000_000) + 1,
            "b": r.integer(0, 60_000),
            "c": r.integer(0, 200_000),
            "d": r.integer(0, 300),
            "e": r.integer(0, 60_000),
        },
    }
    if r.percent(25):
        cfg["long_prefill_token_threshold"] = min(r.integer(1, 60), max_model_len)
        cfg["long_prefill_token_threshold_adaptive"] = r.percent(40)
    if r.percent(15):
        cfg["max_num_scheduled_tokens"] = r.integer(max(8, budget // 4), budget)
    if r.percent(15):
        cfg["max_num_active_seqs"] = r.integer(1, max_num_seqs)
    if r.percent(35):
        cfg["spec"] = {
            "method": r.choice(["ngram", "eagle", "draft_model"]),
            "k": r.integer(1, 5),
            "accept_permille": r.integer(0, 1000),
            "seed": k,
            "draft_len": r.choice(["full", "full", "hash"]),
        }
        if budget < 2 * max_num_seqs:
            cfg["max_num_seqs"] = max_num_seqs = max(1, budget // 8)
            cfg.pop("max_num_active_seqs", None)
    if not pd and not cfg.get("spec") and r.percent(20):
        cfg["pipeline_parallel_size"] = r.choice([2, 3, 4])
    if pd:
        cfg["mode"] = "pd"
        cfg["pd"] = {
            "prefill": {"num_blocks": num_blocks + r.integer(0, num_blocks)},
            "decode": {"max_num_seqs": r.integer(1, max_num_seqs)},
            "transfer": {
                "alpha": r.integer(0, 8_000_000),
                "per_block": r.integer(0, 500_000),
                "serial": r.percent(60),
            },
            "proxy_latency": r.choice([0, 0, 1_000_000]),
        }
        if cfg.get("max_num_active_seqs"):
            cfg["pd"]["decode"]["max_num_seqs"] = max_num_seqs
        if cfg.get("spec"):
            cfg["pd"]["prefill"]["spec"] = None
    return cfg


def trace(r, max_prompt, max_output, max_model_len):
    """Draw the lines of a trace: bursts or gaps, unique prompts or shared prefixes, three priorities."""
    num_requests = r.integer(3, 30)
    gap_ms = r.choice([0, 3, 15, 60])
    templates = r.choice([0, 0, 1, 3])
    time, lines = 0, [HEADER]
    for j in range(num_requests):
        time += r.integer(0, 2 * gap_ms) * 1_000_000 if gap_ms else 0
        unique, output = r.integer(1, max_prompt), r.integer(1, max_output)
        total, prompt = unique, f"u{j}:{unique}"
        if templates and r.percent(70):
            template = r.integer(0, templates - 1)
            shared = r.integer(0, 6) * 30 if r.percent(50) else 120
            if r.percent(80):
                total, prompt = shared + unique, f"t{template}:{shared}|u{j}:{unique}"
            else:
                total = max(shared, 1)
                prompt = f"t{template}:{total}"
        if total >= max_model_len:
            prompt = f"u{j}:{min(unique, max_model_len - 2)}"
        lines.append(f"r{j},{time},{prompt},{output},{r.integer(0, 2)}")
    return lines


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    ap.add_argument("dir", metavar="DIR", type=Path)
    ap.add_argument("n", metavar="N", type=int)
    ap.add_argument("seed", metavar="SEED", type=int)
    a = ap.parse_args()
    a.dir.mkdir(parents=True, exist_ok=True)
    for k in range(a.n):
        cfg, lines = case(a.seed, k)
        stem = a.dir / cfg["name"]
        stem.with_suffix(".json").write_text(json.dumps(cfg, indent=1))
        stem.with_suffix(".csv").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
