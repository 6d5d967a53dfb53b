"""Simulations with SGLang engines: what results show, and how the engine's own failures are reported."""

import pytest

import frontier
from frontier.errors import EngineFailureError

TINY = {"per_step": "1ms", "per_prefill_token": "10us", "per_decode_token": "100us"}


def scenario(workload, *, replicas=1, router="round_robin", **settings):
    return {
        "model": "llama-3.1-8b",
        "hardware": "h100",
        "engine": {"name": "sglang", "sglang": settings, "step_time": {"linear": TINY}},
        "cluster": {"replicas": replicas, "router": router},
        "workload": workload,
    }


def synthetic(prompt, output, *, rate="40/s", requests=300, **more):
    arrivals = {"poisson": {"rate": rate}} if rate else "burst"
    lengths = {"prompt_tokens": prompt, "output_tokens": output}
    return {"synthetic": {"arrivals": arrivals, "num_requests": requests, **lengths, **more}}


def trace(tmp_path, rows):
    """Return a workload of rows (arrival in s, prompt, output, priority)."""
    file = tmp_path / "rows.csv"
    file.write_text("at,in,out,level\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    names = {"arrival": "at", "prompt_tokens": "in", "output_tokens": "out", "priority": "level"}
    return {"trace": {"path": str(file), "format": "plain", "columns": names, "time_unit": "s"}}


MIXED_LENGTHS = synthetic({"uniform": {"min": 20, "max": 400}}, {"uniform": {"min": 1, "max": 80}})


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("settings", [{}, {"enable_mixed_chunk": True}, {"disable_radix_cache": True}])
def test_every_request_is_served_and_the_books_are_right(overlap, settings):
    settings = {
        "max_total_tokens": 3000,
        "chunked_prefill_size": 128,
        "schedule_conservativeness": 0.2,
        "disable_overlap_schedule": not overlap,
        **settings,
    }
    result = frontier.simulate(scenario(MIXED_LENGTHS, **settings))
    requests = result.requests
    assert (requests["status"] == "finished").all()
    assert (requests["generated_tokens"] == requests["output_tokens"]).all()
    again = frontier.simulate(scenario(MIXED_LENGTHS, **settings))
    assert again.digest == result.digest


def test_retractions_are_preemptions():
    settings = {"max_total_tokens": 2500, "schedule_conservativeness": 0.05}
    result = frontier.simulate(scenario(synthetic(100, 200, rate=None, requests=40), **settings))
    requests = result.requests
    assert requests["preemptions"].sum() > 0
    assert (requests["status"] == "finished").all()
    assert result.summary()["preemptions"] == requests["preemptions"].sum()


def test_shared_prefixes_hit_the_radix_cache():
    shared = {"count": 4, "tokens": 600, "share": 1.0}
    workload = synthetic(50, 20, shared_prefix=shared)
    result = frontier.simulate(scenario(workload))
    cached = result.requests["cached_tokens"]
    # All but the first requests of each prefix, which may run before it is cached.
    assert (cached >= 600).sum() > 250
    off = frontier.simulate(scenario(workload, disable_radix_cache=True))
    assert off.requests["cached_tokens"].sum() == 0


def test_prefix_aware_routing_looks_into_the_radix_trees():
    workload = synthetic(50, 20, shared_prefix={"count": 8, "tokens": 600, "share": 1.0})
    settings = {"max_total_tokens": 4000}
    hits = {
        policy: frontier.simulate(scenario(workload, replicas=4, router=policy, **settings))
        .requests["cached_tokens"]
        .sum()
        for policy in ("round_robin", "prefix_aware")
    }
    assert hits["prefix_aware"] > 1.2 * hits["round_robin"]


def test_the_server_cuts_outputs_and_refuses_long_prompts(tmp_path):
    rows = [(0, 100, 5000, 0), (1, 993, 5, 0), (2, 994, 5, 0), (3, 2000, 5, 0)]
    result = frontier.simulate(scenario(trace(tmp_path, rows), context_length=1000, max_total_tokens=1500))
    assert result.requests["status"].to_list() == ["finished", "finished", "rejected", "rejected"]
    assert result.requests["generated_tokens"].to_list() == [898, 5, 0, 0]
    assert set(result.requests["reject_reason"].to_list()[2:]) == {"exceeds_max_model_len"}


def test_a_request_that_is_never_admitted_again_is_a_hang(tmp_path):
    rows = [(0, 20, 100, 0), (0.01, 120, 100, 0)]
    settings = {"max_total_tokens": 260, "schedule_conservativeness": 0.05}
    with pytest.raises(EngineFailureError, match=r"\(hang\).*request 1 was retracted.*never fits"):
        frontier.simulate(scenario(trace(tmp_path, rows), **settings))


PRIORITIES = {
    "max_running_requests": 1,
    "enable_priority_scheduling": True,
    "schedule_low_priority_values_first": True,
    "priority_scheduling_preemption_threshold": 0,
    "disable_overlap_schedule": True,
}


def test_victims_of_a_refused_candidate_are_lost_requests(tmp_path):
    workload = trace(tmp_path, [(0, 20, 20, 5), (0.003, 87, 10, 0)])
    with pytest.raises(EngineFailureError, match=r"\(lost requests\).*1 requests \(0\) were preempted"):
        frontier.simulate(scenario(workload, max_total_tokens=100, **PRIORITIES))


def test_preempting_a_finished_request_is_reported(tmp_path):
    # The prefill of request 0 ends at 1.2 ms, its decodes at 2.3 and 3.4 ms.
    workload = trace(tmp_path, [(0, 20, 3, 5), (0.003, 30, 10, 0)])
    with pytest.raises(EngineFailureError, match=r"\(preempting the finished\).*request 0 had finished"):
        frontier.simulate(scenario(workload, max_total_tokens=400, **PRIORITIES))


def test_priorities_preempt(tmp_path):
    workload = trace(tmp_path, [(0, 20, 50, 5), (0.01, 30, 10, 0)])
    requests = frontier.simulate(scenario(workload, max_total_tokens=400, **PRIORITIES)).requests
    assert requests["preemptions"].to_list() == [1, 0]
