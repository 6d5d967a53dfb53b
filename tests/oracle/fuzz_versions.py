"""Variations of `fuzz_gen`'s cases over versions, pipeline stages and runners, with drafts or without.

What `fuzz_gen` would disaggregate is co-located here, and stages come with drafts, too.
"""

import fuzz_gen

FIRST, LAST = 11, 32


def case(seed, k):
    """Return (config, trace lines) of case `k`."""
    config, lines = fuzz_gen.case(seed, k)
    config.pop("mode", None)
    config.pop("pd", None)
    r = fuzz_gen.Random(seed * 5_000_011 + k)
    config["vllm"] = f"0.{r.integer(FIRST, LAST)}" if r.percent(70) else f"0.{LAST}"
    if r.percent(30):
        config["pipeline_parallel_size"] = r.choice([2, 3, 4])
    if r.percent(30):
        config["v2_runner"] = False
    return config, lines
