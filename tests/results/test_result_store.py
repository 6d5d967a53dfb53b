"""Saved results read back exactly, and damage is noticed."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fifo import MS, Ask, S, facts, fifo

from frontier.errors import ConfigError, FrontierError
from frontier.results import Objectives, Result, RunFacts

ASKS = [Ask(0, 5), Ask(40 * MS, 1, reject=2), Ask(50 * MS, 1, replica=1), Ask(S, 400)]


def a_result(wide_steps: bool = True, log: str | None = None) -> Result:
    raw = fifo(ASKS, replicas=3, stop_ns=2 * S, wide_steps=wide_steps, interval_ns=S // 3)
    raw["timeline"]["flops"] = raw["timeline"]["flops"] + 1 / 3
    raw["decision_log"] = log
    run_facts = facts(
        objectives=Objectives(ttft_s=1 / 3),
        warmup="5%",
        scenario={"name": "Größe", "rate": 0.1},
        warnings=("w",),
        notes=("gemm: kernels of sglang stand in", "n"),
    )
    return Result(raw, run_facts)


@pytest.mark.parametrize("wide_steps", [True, False])
@pytest.mark.parametrize("log", [None, '{"step": 1}\n{"step": 2}\r\n', ""])
def test_round_trip_is_exact(tmp_path: Path, wide_steps: bool, log: str | None) -> None:
    result = a_result(wide_steps, log)
    saved = result.save(tmp_path / "run")
    assert saved == tmp_path / "run"
    again = Result.load(saved)
    for table in ("requests", "steps", "token_runs", "timeline"):
        before, after = getattr(result.columns, table), getattr(again.columns, table)
        assert list(before) == list(after)
        for name, values in before.items():
            assert values.dtype == after[name].dtype
            assert np.array_equal(values, after[name]), name
    assert np.array_equal(result.columns.replica_offsets, again.columns.replica_offsets)
    assert (again.totals, again.facts, again.decision_log) == (result.totals, result.facts, log)
    assert again.summary() == result.summary()
    assert again.columns.timeline["peak_used_blocks"].max() == 10
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_empty_result_round_trips(tmp_path: Path) -> None:
    result = Result(fifo([]), facts())
    assert Result.load(result.save(tmp_path / "run")).summary() == result.summary()


def test_the_document_names_versions_and_step_time(tmp_path: Path) -> None:
    a_result().save(tmp_path / "run")
    document = json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))
    assert (document["format"], document["schema_version"], document["step_time"]) == (
        "frontier-result",
        6,
        "roofline",
    )
    assert document["frontier_version"]
    assert document["facts"]["scenario"]["name"] == "Größe"


def test_overwriting_must_be_asked_for(tmp_path: Path) -> None:
    place = tmp_path / "run"
    a_result(wide_steps=True).save(place)
    with pytest.raises(FrontierError, match="a result is there already; pass overwrite=True"):
        a_result().save(place)
    a_result(wide_steps=False).save(place, overwrite=True)
    assert not Result.load(place).columns.steps_recorded
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_is_no_result_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("years")
    (tmp_path / "file").write_text("x")
    for name in ("work", "file"):
        with pytest.raises(FrontierError, match="exists and is no saved result"):
            a_result().save(tmp_path / name, overwrite=True)
    assert (tmp_path / "work" / "thesis.txt").read_text() == "years"
    (tmp_path / "empty").mkdir()
    a_result().save(tmp_path / "empty")
    with pytest.raises(FrontierError, match=r"the directory .*missing does not exist"):
        a_result().save(tmp_path / "missing" / "run")


def test_a_failed_save_leaves_nothing_and_keeps_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "run"
    a_result().save(place)
    bad = Result(fifo(ASKS, replicas=2, stop_ns=2 * S), facts(scenario={"model": object()}))
    with pytest.raises(FrontierError, match="no plain JSON value"):
        bad.save(place, overwrite=True)
    nan = Result(fifo(ASKS, replicas=2, stop_ns=2 * S), facts(scenario={"rate": float("nan")}))
    with pytest.raises(FrontierError, match="no plain JSON value"):
        nan.save(place, overwrite=True)
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if Path(target) == place and not path.name.endswith(".old"):
            raise OSError("disk full")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="disk full"):
        a_result(wide_steps=False).save(place, overwrite=True)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert Result.load(place).columns.steps_recorded


def edit(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def apply(place: Path) -> None:
        document = json.loads((place / "result.json").read_text("utf-8"))
        change(document)
        (place / "result.json").write_text(json.dumps(document))

    return apply


def flip(name: str) -> Callable[[Path], None]:
    def apply(place: Path) -> None:
        content = bytearray((place / name).read_bytes())
        content[len(content) // 2] ^= 1
        (place / name).write_bytes(content)

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda place: (place / "result.json").unlink(), "is no saved result: it lacks result.json"),
        (lambda place: (place / "result.json").write_text("{"), "result.json is damaged: Expecting"),
        (lambda place: (place / "result.json").write_bytes(b"\xff"), "result.json is damaged"),
        (lambda place: (place / "result.json").write_text("[1]"), "its format is not 'frontier-result'"),
        (edit(lambda d: d.update(format="other")), "its format is not 'frontier-result'"),
        (
            edit(lambda d: d.update(schema_version=1)),
            r"schema version 1, this version of frontier reads 6 \(it was",
        ),
        (edit(lambda d: d.pop("totals")), "result.json is damaged: KeyError: 'totals'"),
        (edit(lambda d: d.update(replica_offsets="x")), "result.json is damaged: ValueError"),
        (edit(lambda d: d.update(replica_offsets=[-1])), "result.json is damaged: OverflowError"),
        (edit(lambda d: d["files"].pop("requests.parquet")), "result.json is damaged: KeyError"),
        (
            edit(lambda d: d["files"]["steps.parquet"].update(rows=3)),
            "steps.parquet is damaged: its columns or rows",
        ),
        (edit(lambda d: d["facts"].update(gpus_total=0)), r"result.json: facts: gpus_total: was 0"),
        (lambda place: (place / "timeline.parquet").unlink(), "timeline.parquet is missing"),
        (flip("requests.parquet"), "requests.parquet is damaged: its SHA-256 differs"),
        (flip("decision_log.jsonl"), "decision_log.jsonl is damaged"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    place = a_result(log="{}\n").save(tmp_path / "run")
    damage(place)
    with pytest.raises(FrontierError, match=message):
        Result.load(place)


def test_loading_nothing(tmp_path: Path) -> None:
    with pytest.raises(FrontierError, match="is no saved result: it is not a directory"):
        Result.load(tmp_path / "nowhere")
    place = a_result().save(tmp_path / "run")
    edit(lambda d: d["facts"].update(colour="red"))(place)
    with pytest.raises(ConfigError, match="colour: is not a known field"):
        Result.load(place)


def test_notes_are_kept(tmp_path: Path) -> None:
    result = a_result()
    assert Result.load(result.save(tmp_path / "run")).facts.notes == ("gemm: kernels of sglang stand in", "n")
    plain = result.facts.to_dict()
    del plain["notes"]  # results of before there were any
    assert RunFacts.from_dict(plain).notes == ()
