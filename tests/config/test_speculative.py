"""Speculative decoding and versions in scenarios: what is refused, and what a version assumes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from frontier.config import Scenario
from frontier.config.async_scheduling import allows_async, async_by_default
from frontier.config.limits import default_batch
from frontier.config.versions import FIELDS_FROM
from frontier.errors import ConfigError, Issue
from frontier.lowering import lower
from frontier.vllm_versions import minor_of

Problems = Callable[..., dict[str, Issue]]
AT = "engine.speculative"
EAGLE: dict[str, Any] = {"method": "eagle", "num_speculative_tokens": 2, "acceptance": 0.7}
NGRAM: dict[str, Any] = {**EAGLE, "method": "ngram", "match_rate": 0.5}
DRAFT: dict[str, Any] = {**EAGLE, "method": "draft_model", "model": "llama-3.1-8b"}
GIVEN: dict[str, Any] = {
    "max_num_scheduled_tokens": 100,
    "performance_mode": "throughput",
    "scheduler_reserve_full_isl": True,
    "watermark": 0.01,
    "max_num_active_seqs": 8,
    "long_prefill_token_threshold_adaptive": True,
}


@pytest.mark.parametrize(
    ("version", "speculative", "path", "words"),
    [
        ("0.14", DRAFT, "method", "has no such method (from 0.15 on)"),
        ("0.17", {**NGRAM, "method": "ngram_gpu"}, "method", "has no such method (from 0.18 on)"),
        ("0.32", {**DRAFT, "model": None}, "model", "is missing"),
        (
            "0.32",
            {**EAGLE, "method": "medusa", "model": "llama-3.1-8b"},
            "model",
            "has no effect with medusa",
        ),
        ("0.32", {**EAGLE, "method": "eagle3", "model": "qwen9"}, "model", "qwen9"),
        ("0.32", {**EAGLE, "method": "mtp"}, "method", "has no multi-token prediction layer"),
        ("0.32", {**NGRAM, "method": "suffix"}, "cpu_per_step", "is missing"),
        ("0.32", {**DRAFT, "model": "qwen3-0.6b"}, "model", "is not that of llama-3.1-8b"),
        ("0.32", {**DRAFT, "model": "qwen9"}, "model", "qwen9"),
        ("0.32", {**NGRAM, "match_rate": None}, "match_rate", "is missing"),
        ("0.32", {**EAGLE, "match_rate": 0.5}, "match_rate", "has no effect with eagle"),
        ("0.32", {**EAGLE, "prompt_lookup_max": 3}, "prompt_lookup_max", "has no effect with eagle"),
        ("0.32", {**NGRAM, "prompt_lookup_min": 4, "prompt_lookup_max": 3}, "prompt_lookup_min", "at most"),
        (
            "0.32",
            {**EAGLE, "acceptance": {"per_position": [0.5]}},
            "acceptance.per_position",
            "one per draft",
        ),
        ("0.32", {**EAGLE, "acceptance": {"per_position": [0.5, 0.6]}}, "acceptance.per_position", "rises"),
        ("0.32", {**EAGLE, "acceptance": {"trace": [1, 3]}}, "acceptance.trace", "at most num_speculative"),
        ("0.32", {**EAGLE, "acceptance": {"trace": "./no.json"}}, "acceptance.trace", "no such file"),
        ("0.32", {**EAGLE, "acceptance": {"trace": [[1], []]}}, "acceptance.trace", "row 1"),
        ("0.32", {**EAGLE, "num_speculative_tokens": 0}, "num_speculative_tokens", "at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused(
    problems: Problems, version: str, speculative: dict[str, Any], path: str, words: str
) -> None:
    found = problems(engine={"version": version, "speculative": speculative})
    assert words in str(found[f"{AT}.{path}"]), found


@pytest.mark.parametrize("field", FIELDS_FROM)
def test_a_setting_that_a_version_lacks_is_refused_by_name(
    base: Scenario, problems: Problems, field: str
) -> None:
    first = FIELDS_FROM[field]
    engine = {"long_prefill_token_threshold": 512, field: GIVEN[field]}
    issue = problems(engine={**engine, "version": f"0.{first - 1}"})[f"engine.{field}"]
    assert f"(from 0.{first} on)" in str(issue)
    lower(base.with_({"engine": {**engine, "version": f"0.{first}"}}))


def test_methods_that_cannot_be_scheduled_ahead_are_scheduled_synchronously(
    base: Scenario, problems: Problems
) -> None:
    def scheduled(engine: dict[str, Any]) -> bool:
        scheduler: dict[str, Any] = lower(base.with_({"engine": engine})).plan["clusters"][0]["scheduler"]
        return bool(scheduler["async_scheduling"])

    assert scheduled({"speculative": EAGLE})
    assert not scheduled({"speculative": NGRAM})
    assert not scheduled({"version": "0.13"})
    assert scheduled({"version": "0.14"})
    assert scheduled({"version": "0.13", "async_scheduling": True})
    assert [scheduled({"version": v, "speculative": DRAFT}) for v in ("0.27", "0.28")] == [False, True]
    assert scheduled({"version": "0.16", "speculative": DRAFT, "async_scheduling": True})
    issue = problems(engine={"speculative": NGRAM, "async_scheduling": True})["engine.async_scheduling"]
    assert "schedules ngram synchronously" in str(issue)


def test_pipelines_are_scheduled_ahead_from_015_on_and_lately_on_the_second_runner_alone() -> None:
    def default(version: str, *, v2_runner: bool) -> bool:
        return async_by_default(minor_of(version), pipeline_parallel_size=2, second_runner=v2_runner)

    assert [default(v, v2_runner=False) for v in ("0.14", "0.15", "0.30", "0.31")] == [
        False,
        True,
        True,
        False,
    ]
    assert default("0.31", v2_runner=True)
    assert not allows_async(32, "medusa")


def test_a_draft_model_costs_slots_of_the_budget_for_good_in_some_versions(base: Scenario) -> None:
    def budget(version: str) -> int | None:
        return (
            base.with_({"engine": {"version": version, "speculative": DRAFT}})
            .resolve()
            .max_num_scheduled_tokens
        )

    # 8192 tokens and 1024 requests by default on an H100
    assert [budget(v) for v in ("0.16", "0.17", "0.27", "0.28")] == [None, 7168, 7168, None]


def test_defaults_follow_version_and_performance_mode(base: Scenario, problems: Problems) -> None:
    assert [default_batch("b200", 178 * 2**30, v) for v in ("0.27", "0.28")] == [(8192, 1024), (16384, 1024)]
    doubled = base.with_({"engine": {"performance_mode": "throughput"}}).resolve()
    assert (doubled.max_num_batched_tokens, doubled.max_num_seqs) == (16384, 2048)
    blocks = [base.with_({"engine.version": v}).resolve().num_blocks for v in ("0.17", "0.32")]
    assert blocks[0] != blocks[1]
    engine = {"version": "0.20", "max_num_batched_tokens": 64, "max_num_seqs": 64, "speculative": DRAFT}
    assert "must exceed max_num_seqs" in str(problems(engine=engine)["engine.max_num_batched_tokens"])


def test_an_acceptance_trace_is_read_from_beside_the_scenario(base: Scenario, tmp_path: Path) -> None:
    (tmp_path / "counts.json").write_text("[[2, 0], [1]]")
    (tmp_path / "bad.json").write_text("[[3]]")
    document = base.to_dict()
    document["engine"] = {"speculative": {**EAGLE, "acceptance": {"trace": "counts.json"}}}
    plan = lower(Scenario.from_dict(document, base_dir=tmp_path)).plan
    assert plan["clusters"][0]["scheduler"]["speculative"]["acceptance"] == {
        "kind": "trace",
        "rows": [[2, 0], [1]],
    }
    document["engine"]["speculative"]["acceptance"]["trace"] = "bad.json"
    with pytest.raises(ConfigError, match="must be at most num_speculative_tokens"):
        lower(Scenario.from_dict(document, base_dir=tmp_path))


def test_a_scenario_with_drafts_survives_being_written(base: Scenario) -> None:
    for acceptance in (0.5, {"per_position": [0.5, 0.25]}, {"trace": [[1, 2], [0]]}):
        scenario = base.with_({"engine.speculative": {**NGRAM, "acceptance": acceptance}})
        assert Scenario.from_dict(json.loads(json.dumps(scenario.to_dict()))) == scenario
