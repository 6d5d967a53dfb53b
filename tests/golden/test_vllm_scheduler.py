"""The scheduler decides as the real vLLM scheduler does: golden logs, and fuzz against a restatement."""

import collections
import functools
import hashlib
import itertools
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import fuzz_edges
import fuzz_gen
import fuzz_versions
import golden_archive
import pytest
import ref_sched
import replay
from differences import first_difference

ARCHIVE = Path(__file__).with_name("vllm_scheduler.tar.xz")
VERSIONS_ARCHIVE = Path(__file__).with_name("vllm_versions.tar.xz")
CASES = golden_archive.cases(ARCHIVE)
VERSION_CASES = golden_archive.cases_of_versions(VERSIONS_ARCHIVE, ARCHIVE)
PD_VERSIONS = ("0.22", "0.24", "0.26", "0.28", "0.30", "0.31", "0.32")
FUZZ_SEED, FUZZ_CASES, PD_FUZZ_CASES, VERSION_FUZZ_CASES, EDGE_CASES, CHUNKS = 3, 500, 200, 500, 120, 10


def restated_log(config, trace):
    """Return the log that the restatement writes."""
    records = []
    summary = ref_sched.run(config, ref_sched.parse_trace(trace), records.append)
    return [ref_sched.dump(record) for record in [*records, {"summary": summary}]]


@functools.cache
def fuzz_cases():
    """Return the first `FUZZ_CASES` cases without disaggregation."""
    cases = (fuzz_gen.case(FUZZ_SEED, k) for k in itertools.count())
    wanted = (case for case in cases if fuzz_edges.supported(case[0]))
    return list(itertools.islice(wanted, FUZZ_CASES))


@functools.cache
def pd_cases():
    """Return the first `PD_FUZZ_CASES` disaggregated cases, each under one of the releases."""
    cases = (fuzz_gen.case(FUZZ_SEED, k) for k in itertools.count())
    wanted = (case for case in cases if not fuzz_edges.supported(case[0]))
    versions = itertools.cycle(PD_VERSIONS)
    return [
        (config | {"vllm": next(versions)}, trace)
        for config, trace in itertools.islice(wanted, PD_FUZZ_CASES)
    ]


def by_engine(log):
    """Return the records by engine, transfers apart: within an instant, engines have no order."""
    records = collections.defaultdict(list)
    for record in map(json.loads, log):
        records[record.get("eng", "summary"), "xfer" in record].append(record)
    return records


@functools.cache
def edge_cases():
    cases = (fuzz_edges.case(FUZZ_SEED, k) for k in itertools.count())
    wanted = (case for case in cases if fuzz_edges.supported(case[1]))
    return list(itertools.islice(wanted, EDGE_CASES))


@pytest.mark.parametrize("name", CASES)
def test_the_restatement_reproduces_the_golden_log(name):
    case = CASES[name]
    assert first_difference(restated_log(case.config, case.trace), case.log) is None


@pytest.mark.parametrize("name", CASES)
def test_our_log_equals_the_golden_log(name):
    case = CASES[name]
    assert first_difference(replay.replay(case.config, case.trace), case.log) is None


@pytest.mark.parametrize("name", VERSION_CASES)
def test_our_log_equals_that_of_the_version(name):
    case = VERSION_CASES[name]
    assert first_difference(replay.replay(case.config, case.trace), case.log) is None


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_fuzz_over_versions_agrees_with_the_restatement(chunk):
    for k in range(chunk, VERSION_FUZZ_CASES, CHUNKS):
        config, trace = fuzz_versions.case(FUZZ_SEED, k)
        difference = first_difference(replay.replay(config, trace), restated_log(config, trace))
        assert difference is None, f"seed {FUZZ_SEED}, case {k}, vLLM {config['vllm']}: {difference}"


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_fuzz_agrees_with_the_restatement(chunk):
    for config, trace in fuzz_cases()[chunk::CHUNKS]:
        difference = first_difference(replay.replay(config, trace), restated_log(config, trace))
        assert difference is None, f"seed {FUZZ_SEED}, case {config['name']}: {difference}"


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_fuzz_of_disaggregation_agrees_with_the_restatement(chunk):
    for config, trace in pd_cases()[chunk::CHUNKS]:
        ours, theirs = by_engine(replay.replay(config, trace)), by_engine(restated_log(config, trace))
        assert ours == theirs, f"seed {FUZZ_SEED}, case {config['name']}, vLLM {config['vllm']}"


@pytest.mark.parametrize("kind", fuzz_edges.KINDS)
def test_edge_fuzz_agrees_with_the_restatement(kind):
    for config, trace in [case[1:] for case in edge_cases() if case[0] == kind]:
        difference = first_difference(replay.replay(config, trace), restated_log(config, trace))
        assert difference is None, f"seed {FUZZ_SEED}, case {config['name']}, {kind}: {difference}"


def test_golden_cases_are_all_there():
    assert len(CASES) == 46
    assert sum(config.config.get("mode") == "pd" for config in CASES.values()) == 7
    by_version = Counter(name.split("@")[1] for name in VERSION_CASES)
    assert by_version == {"0.11.2": 22, "0.15.1": 4, "0.22.0": 44, "0.26.0": 10, "0.30.0": 9}


def test_the_generator_draws_the_cases_it_always_drew():
    drawn = json.dumps([fuzz_gen.case(1, k) for k in range(300)]).encode()
    assert hashlib.sha256(drawn).hexdigest()[:16] == "4165a8e2cc17fb71"


def test_replay_from_the_command_line(tmp_path):
    golden_archive.unpack(ARCHIVE, tmp_path)
    command = [
        sys.executable,
        replay.__file__,
        "23_prefix_full_hit.json",
        "23_prefix_full_hit.csv",
        "out.jsonl",
    ]
    subprocess.run(command, cwd=tmp_path, check=True)
    *ours, summary = (tmp_path / "out.jsonl").read_text().splitlines()
    *golden, last = CASES["23_prefix_full_hit"].log
    assert ours == golden
    assert json.loads(summary) == {"summary": json.loads(last)["summary"]}


@pytest.mark.parametrize("change", [{"mode": "afd"}, {"vllm": "0.10"}, {"vllm": "0.33"}, {"vllm": "1.0"}])
def test_features_that_are_not_simulated_yet_are_refused(change):
    case = CASES["01_base_poisson"]
    with pytest.raises(replay.UnsupportedError):
        replay.replay(case.config | change, case.trace)


def test_the_command_line_says_what_it_cannot_replay(tmp_path):
    golden_archive.unpack(ARCHIVE, tmp_path)
    config = json.loads((tmp_path / "50_pd_base.json").read_text()) | {"mode": "afd"}
    (tmp_path / "50_pd_base.json").write_text(json.dumps(config))
    command = [sys.executable, replay.__file__, "50_pd_base.json", "50_pd_base.csv", "out.jsonl"]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "`mode` 'afd'" in done.stderr
    assert not (tmp_path / "out.jsonl").exists()


def test_disaggregation_is_replayed_from_the_command_line(tmp_path):
    golden_archive.unpack(ARCHIVE, tmp_path)
    command = [sys.executable, replay.__file__, "50_pd_base.json", "50_pd_base.csv", "out.jsonl"]
    subprocess.run(command, cwd=tmp_path, check=True)
    *ours, _ = (tmp_path / "out.jsonl").read_text().splitlines()
    assert ours == CASES["50_pd_base"].log[:-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_num_seq": 4}, "did you mean 'max_num_seqs'"),
        ({"clock": {"a": 1, "b": 1, "c": 1}}, "`clock` lacks d"),
        ({"vllm": "0.9.2"}, "rules of vLLM 0.9.2"),
        ({"spec": {"method": "ngram", "k": 3, "seed": 1}}, "`spec` lacks accept_permille"),
        ({"spec": {"method": "ngram", "K": 3}}, "`spec` has the unknown key 'K'"),
    ],
)
def test_replay_refuses_wrong_configurations(change, message):
    case = CASES["01_base_poisson"]
    with pytest.raises(replay.ReplayError, match=message):
        replay.replay(case.config | change, case.trace)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["r0,0,u0:7,1,0", "r0,5,u1:7,1,0"], "line 3: request_id 'r0' stands in an earlier line"),
        (["r0,0,u0,1,0"], "line 2: prompt: segment 'u0' must read"),
        (["r0,0,u0:0,1,0"], "line 2: the prompt 'u0:0' is empty"),
        (["r0,0,u0:7,0,0"], "line 2: output_len was 0, must be in 1 "),
        (["r0,-5,u0:7,1,0"], "line 2: arrival_ns was -5"),
        (["r0,soon,u0:7,1,0"], "line 2: arrival_ns was 'soon'"),
        (["r0,0,u0:7@x,1,0"], "line 2: prompt: start of segment 'u0:7@x' was 'x'"),
    ],
)
def test_replay_refuses_wrong_traces(rows, message):
    with pytest.raises(replay.ReplayError, match=message):
        replay.read_trace([fuzz_gen.HEADER, *rows])
