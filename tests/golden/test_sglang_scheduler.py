"""The scheduler decides as the real SGLang scheduler does: golden logs, and fuzz against a restatement."""

import json
import subprocess
import sys
from pathlib import Path

import fuzz_sgl
import golden_archive
import pytest
import ref_sgl
import replay
import replay_sglang
from differences import first_difference

from frontier import _frontier
from frontier.errors import LivelockError

ARCHIVE = Path(__file__).with_name("sglang_scheduler.tar.xz")
CASES = golden_archive.cases(ARCHIVE)
FUZZ_SEED, FUZZ_CASES, WILD_CASES, CHUNKS = 5, 150, 60, 6

# Cases of `fuzz_sgl` on which the engine fails, found by trying; (seed, k) and what becomes of it.
FAILURES = {
    (102, 2): "hang",
    (102, 46): "hang",
    (102, 283): "out of memory",
    (102, 745): "out of memory",
}


def restated(config, trace):
    """Return the log that the restatement writes, and how the engine fails in it."""
    records, failure = [], None
    try:
        summary = ref_sgl.run(config, ref_sgl.parse_trace(trace), records.append)
        records.append({"summary": summary})
    except ref_sgl.Refused as refused:
        failure = str(refused)
    return [ref_sgl.dump(record) for record in records], failure


def difference(config, trace):
    ours = replay_sglang.replayed(config, trace)
    theirs, failure = restated(config, trace)
    if (ours.failure is None) != (failure is None):
        return f"we end with {ours.failure!r}, the restatement with {failure!r}"
    return first_difference(ours.lines, theirs)


@pytest.mark.parametrize("name", CASES)
def test_the_restatement_reproduces_the_golden_log(name):
    case = CASES[name]
    assert first_difference(restated(case.config, case.trace)[0], case.log) is None


@pytest.mark.parametrize("name", CASES)
def test_our_log_equals_the_golden_log(name):
    case = CASES[name]
    assert first_difference(replay.replay(case.config, case.trace), case.log) is None


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_fuzz_agrees_with_the_restatement(chunk):
    for k in range(chunk, FUZZ_CASES, CHUNKS):
        found = difference(*fuzz_sgl.drawn(FUZZ_SEED, k))
        assert found is None, f"seed {FUZZ_SEED}, case {k}: {found}"


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_wild_fuzz_agrees_with_the_restatement(chunk):
    for k in range(chunk, WILD_CASES, CHUNKS):
        found = difference(*fuzz_sgl.drawn(FUZZ_SEED, k, wild=True))
        assert found is None, f"seed {FUZZ_SEED}, wild case {k}: {found}"


@pytest.mark.parametrize("case", FAILURES, ids=str)
def test_failures_of_the_engine_are_named(case):
    config, trace = fuzz_sgl.drawn(*case, wild=True)
    assert difference(config, trace) is None
    assert f"the engine fails ({FAILURES[case]})" in replay_sglang.replayed(config, trace).failure


def test_a_chunk_of_negative_length_crashes_the_engine_without_a_radix_cache():
    config = {"max_total_tokens": 98, "chunked_prefill_size": 5, "mixed_chunk": True}
    trace = fuzz_sgl.lines([[0, "u0:37", 40, 0], [6_560_000, "u1:31", 13, 0]])
    assert difference(config, trace) is None
    assert replay_sglang.replayed(config, trace).failure is None
    config["disable_radix_cache"] = True
    assert difference(config, trace) is None
    assert "the engine fails (negative chunk)" in replay_sglang.replayed(config, trace).failure


PREEMPTING = {
    "max_running_requests": 1,
    "enable_priority": True,
    "low_values_first": True,
    "priority_preemption_threshold": 0,
    "clock": {"a": 1000, "b": 0, "c": 0, "d": 0, "e": 0},
}


def test_victims_of_a_refused_candidate_are_lost():
    config = {"max_total_tokens": 100, **PREEMPTING}
    trace = fuzz_sgl.lines([[0, "u0:20", 20, 5], [2500, "u1:87", 10, 0]])
    assert difference(config, trace) is None
    requests = json.loads(replay_sglang.replayed(config, trace).lines[-1])["summary"]["requests"]
    assert [row["fin"] is None for row in requests.values()] == [True, False]


def test_a_finished_request_that_is_preempted_yields_a_token_more():
    for mode in ({}, {"overlap": True}, {"mixed_chunk": True}, {"mixed_chunk": True, "overlap": True}):
        config = {"max_total_tokens": 400, **PREEMPTING, **mode}
        trace = fuzz_sgl.lines([[0, "u0:20", 3, 5], [2500, "u1:30", 10, 0]])
        assert difference(config, trace) is None, mode
        requests = json.loads(replay_sglang.replayed(config, trace).lines[-1])["summary"]["requests"]
        if not mode:
            assert requests["r0"]["ntok"] == 4


def test_a_step_limit_ends_the_log_where_the_restatement_ends():
    for name in ("s01_fcfs_poisson", "s17_overlap_poisson", "s04_chunk_512_mixed"):
        case = CASES[name]
        for limit in (1, 2, 7):
            assert difference(case.config | {"max_steps": limit}, case.trace) is None, (name, limit)


def test_golden_cases_are_all_there():
    assert len(CASES) == 18


def test_replay_from_the_command_line(tmp_path):
    golden_archive.unpack(ARCHIVE, tmp_path)
    name = "s22_same_step_prefix"
    command = [sys.executable, replay.__file__, f"{name}.json", f"{name}.csv", "out.jsonl"]
    subprocess.run(command, cwd=tmp_path, check=True)
    *ours, summary = (tmp_path / "out.jsonl").read_text().splitlines()
    *golden, last = CASES[name].log
    assert ours == golden
    assert json.loads(summary) == {"summary": json.loads(last)["summary"]}


def test_the_command_line_names_failures_and_wrong_keys(tmp_path):
    (case,) = [case for case, name in FAILURES.items() if name == "hang"][:1]
    config, trace = fuzz_sgl.drawn(*case, wild=True)
    (tmp_path / "t.csv").write_text("\n".join(trace))
    command = [sys.executable, replay.__file__, "c.json", "t.csv", "out.jsonl"]

    def run(config):
        (tmp_path / "c.json").write_text(json.dumps(config))
        return subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)

    done = run(config)
    assert (done.returncode, "the engine fails (hang)" in done.stderr) == (0, True)
    assert (tmp_path / "out.jsonl").read_text().splitlines() == restated(config, trace)[0]
    wrong = run(config | {"mixed_chunks": True})
    assert wrong.returncode == 1
    assert "did you mean 'mixed_chunk'?" in wrong.stderr


def test_requests_that_displace_each_other_forever_are_a_livelock():
    config, trace = fuzz_sgl.drawn(11, 1867, wild=True)
    plan = replay_sglang.plan(config)
    plan["limits"] = {"max_steps": None, "refuse_oversized": True, "livelock_steps": 400}
    requests = sorted(replay.read_trace(trace), key=lambda request: request.arrival_ns)
    with pytest.raises(LivelockError, match="raise priority_scheduling_preemption_threshold"):
        _frontier.simulate(json.dumps(plan), _frontier.Trace(**replay.columns(requests)))
