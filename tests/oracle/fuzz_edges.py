"""Corners that `fuzz_gen` leaves out, as variations of its co-located cases.

Each case gets one of them: rows out of order, later turns that repeat an earlier prompt and its output,
shared streams entered at an offset, a pool that some requests can never fit, a step limit, a clock at rest.
"""

import fuzz_gen

KINDS = ("shuffled", "turns", "offsets", "small_pool", "step_limit", "still_clock")


def supported(config):
    """Tell whether a case needs no disaggregation."""
    return config.get("mode") != "pd"


def case(seed, k):
    """Return (kind, config, trace lines) of case `k`; the config may be one that `supported` refuses."""
    config, (header, *lines) = fuzz_gen.case(seed, k)
    kind = KINDS[k % len(KINDS)]
    r = fuzz_gen.Random(seed * 7_000_003 + k)
    rows = [line.split(",") for line in lines]
    if kind == "shuffled":
        for i in range(len(rows) - 1, 0, -1):
            j = r.integer(0, i)
            rows[i], rows[j] = rows[j], rows[i]
    elif kind == "turns":
        turns(r, rows, config["max_model_len"])
    elif kind == "offsets":
        for row in rows:
            shared, *unique = row[2].split("|")
            if shared.startswith("t"):
                offset = r.choice([0, 7, config["block_size"], 2 * config["block_size"]])
                row[2] = "|".join([f"{shared}@{offset}", *unique])
    elif kind == "small_pool":
        config["num_blocks"] = 2 + config["num_blocks"] // r.integer(3, 6)
    elif kind == "step_limit":
        config["max_steps"] = r.integer(1, 60)
    elif kind == "still_clock":
        config["clock"] = dict.fromkeys("abcde", 0)
    return kind, config, [header, *(",".join(row) for row in rows)]


def turns(r, rows, max_model_len):
    """Let about half of the requests continue an earlier one: its prompt, its output, and some more."""
    for j in range(1, len(rows)):
        rid, _, prompt, output, _ = rows[r.integer(0, j - 1)]
        longer = f"{prompt}|o:{rid}:{output}|{rows[j][2]}"
        if r.percent(50) and length(longer) + 2 < max_model_len:
            rows[j][2] = longer


def length(prompt):
    return sum(int(segment.rsplit(":", 1)[1]) for segment in prompt.split("|"))
