"""Write the plan of `rust/frontier-core/benches/core.rs`: the main job with lengths drawn from fitted laws.

    python tools/make_bench_plan.py > rust/frontier-core/benches/main_job.json

The rate and the mean and spread of lengths are those of the Azure 2023 conversation trace. `step_times` holds
the step-time models to choose from: a linear clock, and Llama-3.1-8B on H100 by its roofline and by the
learned predictors of the H100's pack, whose numbers there `predictors` lists. Write it anew when that pack
changes.
"""

import json

import numpy as np

import frontier
from frontier.lowering import lower
from frontier.predictors.chooser import shipped_pack
from frontier.predictors.loaded import opened


def main() -> None:
    base = {
        "model": "llama-3.1-8b",
        "hardware": {"gpu": "h100"},
        "cluster": {"replicas": 8},
        "output": {"steps": False},
    }
    replayed = lower(frontier.Scenario.from_dict({**base, "workload": {"trace": "azure-2023-conv"}}))
    trace = frontier.load_trace("azure-2023-conv")
    seconds = (trace.arrival_ns[-1] - trace.arrival_ns[0]) / 1e9
    plan = replayed.plan | {
        "workload": {
            "kind": "synthetic",
            "arrivals": {"kind": "poisson", "rate_per_s": round((len(trace) - 1) / seconds, 3)},
            "num_requests": None,
            "duration_ns": None,
            "prompt_tokens": law(trace.prompt_tokens),
            "output_tokens": law(trace.output_tokens),
            "shared_prefix": None,
            "sessions": None,
            "max_priority": 0,
        }
    }
    linear = {"per_step_ns": 5_000_000, "per_prefill_token_ns": 20_000, "per_decode_token_ns": 0}
    roofline = lower(
        frontier.Scenario.from_dict(
            {
                **base,
                "engine": {"step_time": {"roofline": {}}},
                "workload": {"trace": "azure-2023-conv"},
            }
        )
    )
    plan["step_times"] = {
        "linear_clock": {"kind": "linear", **linear, "per_seq_ns": 10_000, "per_kv_token_ns": 20},
        "roofline": roofline.plan["clusters"][0]["step_time"],
        "learned": plan["clusters"][0].pop("step_time"),
    }
    path = shipped_pack("h100")
    assert path is not None
    assert replayed.attached is not None
    pack = opened(path)
    known = [pack.identity(index) for index in range(len(pack.infos))]
    plan["predictors"] = [known.index(each) for each in replayed.attached.identities]
    print(json.dumps(plan, indent=1, sort_keys=True))


def law(tokens: np.ndarray) -> dict:
    """Return the lognormal law with the mean and the coefficient of variation of `tokens`."""
    mean = float(tokens.mean())
    spread = {"mean": round(mean, 1), "cv": round(float(tokens.std()) / mean, 3)}
    return {"kind": "lognormal", **spread, "min": 1, "max": int(tokens.max())}


if __name__ == "__main__":
    main()
