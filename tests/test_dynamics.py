"""Changes and the front door from scenario to result, against the arithmetic of each scenario."""

import random
from typing import Any

import pytest

import frontier
from frontier.config import Scenario
from frontier.results import Result

MS = 1_000_000
STEP_MS = 10
TOKENS = 20


def colocated(**changes: Any) -> Scenario:
    """Return 8 requests at time 0 on two replicas whose steps take 10 ms."""
    plain = {
        "model": "llama-3.1-8b",
        "hardware": "h100",
        "engine": {"async_scheduling": False, "step_time": {"linear": {"per_step": f"{STEP_MS}ms"}}},
        "cluster": {"replicas": 2},
        "workload": {
            "synthetic": {
                "arrivals": "burst",
                "num_requests": 8,
                "prompt_tokens": 100,
                "output_tokens": TOKENS,
            }
        },
    }
    return Scenario.from_dict(plain).with_(changes)


def pair(**changes: Any) -> Scenario:
    """Return 12 requests at 50/s on one prefill and two decode replicas, over links of their own or not."""
    clusters = [{"role": "prefill"}, {"role": "decode", "replicas": 2}]
    synthetic = {
        "arrivals": {"constant": {"rate": 50}},
        "num_requests": 12,
        "prompt_tokens": 1000,
        "output_tokens": TOKENS,
    }
    return colocated(cluster=None, clusters=clusters, workload={"synthetic": synthetic}).with_(changes)


def counts(result: Result) -> tuple[int, int, int]:
    """Return how many requests finished, were rejected, and failed; all must have ended."""
    found = result.summary()
    assert found.unfinished == 0
    return found.completed, found.rejected, found.failed


def event(at_ms: int, replica: int = 0, cluster: str | None = None, **change: Any) -> dict[str, Any]:
    return {"at": f"{at_ms}ms", "replica": replica, "cluster": cluster, **change}


def test_requests_of_a_lost_replica_start_over_on_the_other() -> None:
    result = frontier.simulate(colocated(**{"dynamics.events": [event(55, 1, fail={})]}))
    assert counts(result) == (8, 0, 0)
    frame = result.requests
    assert frame["attempts"].to_list() == [1, 2] * 4
    assert frame["replica"].to_list() == [0] * 8
    lost = [0.055 if attempt == 2 else 0.0 for attempt in frame["attempts"]]
    assert frame["e2el_lost_s"].to_list() == frame["ttft_lost_s"].to_list() == lost
    # The step under way on the other replica ends at 60 ms; the next one has the four prompts.
    assert set(frame.filter(frame["attempts"] == 2)["first_token_ns"]) == {70 * MS}
    found = result.summary()
    assert found.repeated_requests == 4
    assert found.ttft_attribution_s["lost"] == pytest.approx(0.055 / 2)
    # Tokens of the attempts that were lost are not output.
    assert found.total_output_tokens == 8 * TOKENS


def test_or_they_fail_and_miss_their_objectives() -> None:
    changes = {
        "dynamics.events": [event(55, 1, fail={})],
        "dynamics.lost_requests": "fail",
        "objectives.e2e": "1s",
    }
    result = frontier.simulate(colocated(**changes))
    assert counts(result) == (4, 0, 4)
    found = result.summary()
    assert found.failed_by_reason == {"replica_lost": 4}
    assert found.slo_attainment == 0.5
    assert found.request_goodput == pytest.approx(4 / found.duration)
    assert found.repeated_requests is None
    assert "attempts" not in result.requests.columns
    assert found.to_vllm_bench()["failed"] == 4
    assert any("4 of 8 requests failed (replica_lost: 4)" in warning for warning in found.warnings)
    for shown in (str(found), found._repr_html_()):
        assert "Failed" in shown
    # Failed ones were in the system for 55 ms, the others for 20 steps.
    assert found.mean_concurrent_requests == pytest.approx((4 * 55 + 4 * 200) / 200)


def test_without_any_replica_left_requests_fail_and_with_one_to_come_they_wait() -> None:
    alone = colocated(**{"cluster.replicas": 1})
    gone = frontier.simulate(alone.with_({"dynamics.events": [event(55, fail={})]}))
    assert gone.summary().failed_by_reason == {"no_replica": 8}
    back = frontier.simulate(alone.with_({"dynamics.events": [event(55, fail={"down": "1s"})]}))
    assert counts(back) == (8, 0, 0)
    assert set(back.requests["first_token_ns"]) == {(55 + 1000 + STEP_MS) * MS}


def test_a_restart_loses_nothing_and_a_slow_replica_takes_its_time() -> None:
    restart = frontier.simulate(colocated(**{"dynamics.events": [event(55, 1, restart={"down": "1s"})]}))
    plain = frontier.simulate(colocated())
    assert restart.requests["finished_ns"].to_list() == plain.requests["finished_ns"].to_list()
    slow = frontier.simulate(colocated(**{"dynamics.events": [event(0, 1, slow={"factor": 3})]}))
    assert slow.requests["finished_ns"].to_list() == [200 * MS, 600 * MS] * 4


def test_a_lost_decode_replica_costs_attempts_but_no_request() -> None:
    result = frontier.simulate(pair(**{"dynamics.events": [event(155, 1, "decode", fail={})]}))
    assert counts(result) == (12, 0, 0)
    frame, transfers = result.requests, result.transfers
    again = frame.filter(frame["attempts"] > 1)
    assert 0 < len(again) < 12
    for request in again.to_dicts():
        rows = transfers.filter(transfers["request"] == request["request"]).to_dicts()
        # The last transfer with an end is the one that counts.
        last = [row for row in rows if row["end_ns"] is not None][-1]
        assert len(rows) > 1
        assert (last["destination_replica"], request["replica"]) == (0, 0)
        assert last["end_ns"] <= request["first_token_ns"]


def test_degraded_links_stretch_the_transfers_on_them() -> None:
    alone = pair(**{"workload.synthetic.num_requests": 1})
    plain = frontier.simulate(alone)
    degrade = event(0, 0, "prefill", degrade_links={"factor": 0.1})
    worn = frontier.simulate(alone.with_({"dynamics.events": [degrade]}))
    ratio = worn.transfers["flight_s"][0] / plain.transfers["flight_s"][0]
    assert 8 < ratio < 10.01  # latency stays as it is


def test_a_replica_joins_another_cluster() -> None:
    clusters = [{"role": "prefill", "replicas": 2}, {"role": "decode", "replicas": 2, "in_service": 1}]
    switch = event(60, 1, "prefill", switch_role={"to": "decode", "delay": "20ms"})
    result = frontier.simulate(pair(clusters=clusters, **{"dynamics.events": [switch]}))
    assert counts(result) == (12, 0, 0)
    joined = result.requests.filter(result.requests["replica"] == 1)
    assert len(joined) > 0
    assert joined["first_token_ns"].min() > 80 * MS
    late = result.transfers.filter(result.transfers["ready_ns"] > 100 * MS)
    assert set(late["source_replica"]) == {0}
    assert any("not in service count as GPUs all the time" in text for text in result.summary().warnings)


def test_a_cluster_grows_when_its_queue_does() -> None:
    changes = {
        "cluster.replicas": 4,
        "cluster.in_service": 1,
        "cluster.router": "least_outstanding",
        "engine.max_num_seqs": 2,
        "workload.synthetic.arrivals": {"constant": {"rate": 40}},
        "workload.synthetic.num_requests": 200,
    }
    fixed = frontier.simulate(colocated(**changes))
    assert set(fixed.requests["replica"]) == {0}
    scaler = {"up_above": 4, "down_below": 1, "interval": "50ms", "provision": "200ms", "cooldown": "100ms"}
    grown = frontier.simulate(colocated(**changes, **{"dynamics.autoscale": [scaler]}))
    assert counts(grown) == (200, 0, 0)
    assert set(grown.requests["replica"]) == {0, 1, 2, 3}
    early = grown.requests.filter(grown.requests["arrival_s"] < 0.25)
    assert set(early["replica"]) == {0}
    assert grown.summary().p99_ttft_s < fixed.summary().p99_ttft_s
    assert any("upper bounds" in text for text in grown.summary().warnings)


def test_the_front_door_turns_away_what_is_too_much() -> None:
    full = frontier.simulate(colocated(admission={"max_outstanding": 5}))
    assert counts(full) == (5, 3, 0)
    assert full.summary().rejected_by_reason == {"queue_full": 3}
    again = frontier.simulate(colocated(admission={"max_outstanding": 5, "max_retries": 1}))
    assert counts(again) == (8, 0, 0)
    assert again.requests["attempts"].to_list() == [1] * 5 + [2] * 3
    # Half a second later, all others are done.
    assert set(again.requests["first_token_ns"].to_list()[5:]) == {(500 + STEP_MS) * MS}


def test_classes_have_limits_of_their_own() -> None:
    classes = [{"priority": 0, "max_outstanding": 2}, {"max_outstanding": 1}]
    changes = {
        "workload.synthetic.max_priority": 3,
        "workload.synthetic.num_requests": 40,
        "admission": {"classes": classes},
    }
    result = frontier.simulate(colocated(**changes))
    frame = result.requests
    served = frame.filter(frame["status"] == "finished")
    assert served.filter(served["priority"] == 0).height == 2
    assert served.filter(served["priority"] > 0).height == 1


def test_clients_give_up() -> None:
    # 20 tokens take 200 ms on each replica.
    late = frontier.simulate(colocated(admission={"timeout": "150ms"}))
    assert counts(late) == (0, 0, 8)
    assert late.summary().failed_by_reason == {"timed_out": 8}
    assert late.totals["end_ns"] == 150 * MS
    in_time = frontier.simulate(colocated(admission={"timeout": "201ms"}))
    assert counts(in_time) == (8, 0, 0)
    assert in_time.digest == frontier.simulate(colocated()).digest


def test_results_with_lost_requests_are_saved_and_loaded(tmp_path: Any) -> None:
    result = frontier.simulate(pair(**{"dynamics.events": [event(155, 1, "decode", fail={})]}))
    result.save(tmp_path / "run")
    loaded = Result.load(tmp_path / "run")
    assert loaded.requests.equals(result.requests)
    assert loaded.summary() == result.summary()


def drawn(seed: int) -> dict[str, Any]:
    """Return a scenario with changes and a front door drawn from a seed."""
    dice = random.Random(seed)
    mode = dice.choice(["pull", "push", "store", "buffer"])
    transfer: dict[str, Any] = {"mode": mode, "proxy_latency": f"{dice.randrange(3) * 5}ms"}
    if mode == "push":
        transfer["granularity"] = dice.choice(["request", "chunk", "layer"])
    network = mode != "store" and dice.random() < 0.5
    if not network:
        transfer["bandwidth"] = dice.choice(["1GB/s", "50GB/s"])
    replicas = (dice.randint(1, 2), dice.randint(1, 2))
    events = []
    for _ in range(dice.randint(1, 5)):
        side = dice.randrange(2)
        changes = [
            {"fail": {"down": f"{dice.randrange(400)}ms"} if dice.random() < 0.7 else {}},
            {"restart": {"down": f"{dice.randrange(200)}ms"}},
            {"slow": {"factor": dice.randint(2, 6), "duration": "100ms"}},
        ]
        if network:
            changes.append({"degrade_links": {"factor": dice.choice([0, 0.1]), "duration": "200ms"}})
        at, replica = dice.randrange(560), dice.randrange(replicas[side])
        events.append(event(at, replica, ("prefill", "decode")[side], **dice.choice(changes)))
    engine: dict[str, Any] = {
        "async_scheduling": dice.random() < 0.5,
        "step_time": {"linear": {"per_step": "10ms"}},
        "num_gpu_blocks_override": dice.randint(60, 140),
        "max_model_len": 512,
        "max_num_batched_tokens": 256,
        "max_num_seqs": 64,
    }
    if dice.random() < 0.3:
        engine["frontend"] = {"per_request": "1ms", "network": "2ms"}
    if dice.random() < 0.2:
        engine["speculative"] = {"method": "eagle", "num_speculative_tokens": 2, "acceptance": 0.7}
    scenario: dict[str, Any] = {
        "model": "llama-3.1-8b",
        "hardware": "h100",
        "seed": seed,
        "engine": engine,
        "clusters": [
            {"role": role, "replicas": count}
            for role, count in zip(("prefill", "decode"), replicas, strict=True)
        ],
        "disaggregation": {"kv_transfer": transfer},
        "dynamics": {"events": events},
        "workload": {
            "synthetic": {
                "arrivals": {"poisson": {"rate": dice.choice([20, 100])}},
                "num_requests": dice.randint(4, 30),
                "prompt_tokens": {"uniform": {"min": 16, "max": 400}},
                "output_tokens": {"uniform": {"min": 2, "max": 40}},
            }
        },
    }
    if dice.random() < 0.3:
        scenario["disaggregation"]["direct_below"] = 100
    if dice.random() < 0.3 and any({"fail", "restart"} & set(each) for each in events):
        scenario["dynamics"]["lost_requests"] = "fail"
    if dice.random() < 0.4:
        scenario["admission"] = {
            "max_outstanding": dice.randint(3, 9),
            "timeout": f"{200 + 100 * dice.randrange(8)}ms",
        }
        if dice.random() < 0.6:
            scenario["admission"] |= {"max_retries": dice.randint(1, 3), "retry_delay": "50ms"}
    return scenario


def test_no_random_schedule_of_changes_breaks_a_law_of_results() -> None:
    """Every request ends one way, and the checks of results hold."""
    ended = {"repeated": 0, "failed": 0, "rejected": 0}
    for seed in range(60):
        result = frontier.simulate(drawn(seed))
        found = result.summary()
        assert found.completed + found.rejected + found.failed == found.arrived, seed
        ended["repeated"] += found.repeated_requests or 0
        ended["failed"] += found.failed
        ended["rejected"] += found.rejected
    assert min(ended.values()) > 30, ended
