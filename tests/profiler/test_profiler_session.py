"""Whole profiles on a fake device: resumption, budget, coverage, what is kept."""

import hashlib
import itertools
import json
from collections import Counter
from dataclasses import replace

import polars as pl
import pytest
from fake_device import SMALL, FakeDevice

from frontier.errors import ConfigError, FrontierError
from frontier.profiler.device import DeviceLostError
from frontier.profiler.grid import FAMILIES, Grid
from frontier.profiler.points import COLUMNS
from frontier.profiler.queue import Queue
from frontier.profiler.session import plan_for, profile
from frontier.profiler.settings import Settings
from frontier.profiler.store import Notes, schema

NOTES = Notes(date="2026-01-31", licence="CC0-1.0")


def stop_at(round_number, error=KeyboardInterrupt):
    def fault(now):
        if now == round_number:
            raise error

    return fault


def lines(directory, event):
    return [
        content[event]
        for content in map(json.loads, (directory / "journal.jsonl").read_text().splitlines())
        if event in content
    ]


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.glob("*.parquet")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole") / "profile"
    manifest = profile(FakeDevice(), directory, SMALL, notes=NOTES)
    return directory, manifest


def test_a_profile_comes_to_its_end(whole):
    directory, manifest = whole
    assert set(manifest["progress"]) == set(FAMILIES)
    assert all(part["done"] == part["wanted"] > 0 for part in manifest["progress"].values())
    done = lines(directory, "done")
    assert len(set(done)) == len(done) == sum(part["wanted"] for part in manifest["progress"].values())
    assert manifest == json.loads((directory / "manifest.json").read_text())


@pytest.mark.parametrize("stops", [[200], [50, 700, 1], [1, 2, 3, 1500]])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, whole, stops):
    directory = tmp_path / "profile"
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            profile(FakeDevice(fault=stop_at(stop)), directory, SMALL, notes=NOTES)
        assert (directory / "manifest.json").is_file()
    manifest = profile(FakeDevice(), directory, SMALL, notes=NOTES)
    assert manifest == whole[1]
    assert contents(directory) == contents(whole[0])
    assert lines(directory, "done") == lines(whole[0], "done")
    assert len(lines(directory, "interrupted")) == len(stops)


def test_nothing_is_measured_twice(tmp_path):
    directory = tmp_path / "profile"
    first, second, third = FakeDevice(overhead_s=1.0), FakeDevice(), FakeDevice()
    profile(first, directory, SMALL, budget_s=60)
    profile(second, directory, SMALL)
    profile(third, directory, SMALL)
    keys = [point.key for device in (first, second) for point, _ in device.opened]
    assert 0 < len(first.opened) < len(keys) == len(set(keys))
    assert not third.opened


def test_a_crash_loses_the_point_in_flight_alone(tmp_path, whole):
    """The journal is cut at every kind of place where a process can die, and the profile is the same."""
    source = (whole[0] / "journal.jsonl").read_bytes()
    ends = [place + 1 for place, byte in enumerate(source) if byte == ord("\n")]
    for cut in (0, 5, ends[0], ends[0] + 7, ends[301], ends[301] + 1, ends[400] - 1):
        directory = tmp_path / str(cut)
        directory.mkdir()
        (directory / "settings.json").write_bytes((whole[0] / "settings.json").read_bytes())
        (directory / "journal.jsonl").write_bytes(source[:cut])
        device = FakeDevice()
        profile(device, directory, SMALL, notes=NOTES)
        assert contents(directory) == contents(whole[0])
        kept = sum(
            b'"done"' in line for line in source[:cut].splitlines(keepends=True) if line.endswith(b"\n")
        )
        assert len(lines(directory, "done")) == len(lines(whole[0], "done"))
        assert len({point.key for point, _ in device.opened}) <= len(lines(whole[0], "done")) - kept


def test_a_point_that_kills_the_process_twice_is_skipped(tmp_path):
    directory = tmp_path / "profile"
    for _ in range(2):
        with pytest.raises(DeviceLostError, match="gone"):
            profile(FakeDevice(fault=stop_at(1, DeviceLostError("gone"))), directory, SMALL)
    deadly = lines(directory, "begin")
    assert deadly[0] == deadly[1]
    manifest = profile(FakeDevice(), directory, SMALL)
    assert all(part["done"] == part["wanted"] for part in manifest["progress"].values())
    assert lines(directory, "begin").count(deadly[0]) == 2
    skipped = pl.read_parquet(directory / "skipped.parquet")
    assert "the process died twice while this was in flight" in set(skipped["reason"])


def test_ctrl_c_is_no_death(tmp_path):
    directory = tmp_path / "profile"
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            profile(FakeDevice(fault=stop_at(1)), directory, SMALL)
    profile(FakeDevice(), directory, SMALL)
    assert not any("died" in reason for reason in pl.read_parquet(directory / "skipped.parquet")["reason"])


def test_budget_is_kept_but_for_the_last_point(tmp_path):
    device = FakeDevice(overhead_s=1.0)
    begin = device.now()
    profile(device, tmp_path / "profile", SMALL, budget_s=30)
    assert 30 <= device.now() - begin < 32


def test_a_short_budget_covers_every_family_coarsely(tmp_path):
    manifest = profile(FakeDevice(overhead_s=1.0), tmp_path / "profile", SMALL, budget_s=80)
    shares = [part["done"] / part["wanted"] for part in manifest["progress"].values()]
    assert min(shares) > 0.15
    assert max(shares) - min(shares) < 0.15
    sizes = pl.read_parquet(tmp_path / "profile" / "gemm.parquet")["rows"]
    assert {sizes.min(), sizes.max()} == {1, 16384}


def test_progress_is_told(tmp_path):
    seen = []
    profile(FakeDevice(), tmp_path / "profile", SMALL, progress=seen.append)
    assert [progress.done for progress in seen] == list(range(seen[0].wanted))
    assert all(a.elapsed_s <= b.elapsed_s for a, b in itertools.pairwise(seen))


def test_later_points_are_chosen_by_uncertainty(whole):
    """The last points of a family are not simply the next ones of the grid."""
    plan = plan_for(SMALL, SMALL.limits(FakeDevice().facts()))
    gemm = plan.families["gemm"]
    by_key = {point.key: place for place, point in enumerate(gemm.points)}
    places = [by_key[key] for key in lines(whole[0], "done") if key in by_key]
    assert places[: gemm.coarse] == list(range(gemm.coarse))
    assert len(places) == gemm.target
    assert places[gemm.coarse :] != list(range(gemm.coarse, gemm.target))


def test_queue_goes_on_without_any_measurement():
    plan = plan_for(SMALL, SMALL.limits(FakeDevice().facts()))
    queue = Queue(plan, [], seed=0)
    from frontier.profiler.journal import Outcome

    seen = Counter()
    while (point := queue.next()) is not None:
        queue.note(Outcome(point.key, point.family, None, "no"))
        seen[point.family] += 1
    assert seen == {name: family.target for name, family in plan.families.items()}


@pytest.mark.parametrize("operator", list(COLUMNS))
def test_tables_have_the_columns_of_the_trainer(whole, operator):
    path = whole[0] / f"{operator}.parquet"
    if operator in ("rope", "quant_fp8"):  # refused by the fake device; not of bf16
        assert not path.exists()
        return
    table = pl.read_parquet(path)
    assert dict(table.schema) == schema(operator)
    assert table.columns[: len(COLUMNS[operator])] == list(COLUMNS[operator])
    assert table.select(pl.all().is_null().sum()).row(0) == (0,) * table.width
    assert (table["seconds"] > 0).all()
    assert (table["seconds_spread"] >= 0).all()
    assert set(table["kernel"]) == {f"fake_{operator}"}
    assert set(table["dtype"]) == {"bf16"}
    facts = whole[1]["files"][path.name]
    assert facts["rows"] == table.height
    assert facts["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert facts["trains"] is (operator not in ("copy", "launch"))
    if "query" in table.columns:
        assert (table["count"].list.len() == table["context"].list.len()).all()
        pure = table.select((pl.col("query").list.max() == 1).alias("decode"))["decode"]
        assert pure.all() if operator == "decode_attention" else not pure.any()
    if operator == "fused_moe":
        assert (table["expert_loads"].list.sum() == table["rows"] * table["top_k"]).all()
        assert (table["expert_loads"].list.len() == table["experts"]).all()


def test_refused_points_are_kept_with_their_reason(whole):
    skipped = pl.read_parquet(whole[0] / "skipped.parquet")
    refused = skipped.filter(pl.col("reason") == "this device does not turn")
    assert refused.height > 0
    assert refused["point"].str.starts_with("rope bf16: rows").all()
    assert skipped["reason"].str.starts_with("does not fit in memory").any()


def test_manifest_tells_where_it_was_measured(whole):
    manifest = whole[1]
    expected = {
        "gpu": "fake",
        "backend": "torch",
        "version": "2.0",
        "measurement": "cuda_graph",
        "device_name": "Fake GPU",
        "versions": {"torch": "2.0", "driver": "1"},
        "state": {"power_limit_mw": "700000"},
        "date": "2026-01-31",
        "licence": "CC0-1.0",
    }
    assert {name: manifest[name] for name in expected} == expected
    assert manifest["settings"]["seed"] == 0


@pytest.mark.parametrize(
    ("change", "facts", "named"),
    [
        ({"seed": 1}, {}, "seed"),
        ({"models": ("qwen3-0.6b",)}, {}, "models"),
        ({"dtypes": ("fp16",)}, {}, "dtypes"),
        ({"gpu": "other"}, {}, "gpu"),
        ({"grid": Grid(draws=3)}, {}, "grid"),
        ({}, {"version": "2.1"}, "version"),
        ({}, {"measurement": "event"}, "measurement"),
        ({}, {"versions": {"torch": "2.0", "driver": "2"}}, "versions"),
    ],
)
def test_other_settings_are_refused_on_resumption(tmp_path, change, facts, named):
    directory = tmp_path / "profile"
    profile(FakeDevice(overhead_s=1.0), directory, SMALL, budget_s=5)
    before = (directory / "journal.jsonl").read_bytes()
    with pytest.raises(ConfigError) as caught:
        profile(FakeDevice(**facts), directory, replace(SMALL, **change))
    assert [issue.path for issue in caught.value.issues] == [named]
    assert "but the profile was started with" in str(caught.value)
    assert (directory / "journal.jsonl").read_bytes() == before


def test_rates_measured_anew_do_not_change_the_plan(tmp_path, whole):
    directory = tmp_path / "profile"
    profile(FakeDevice(overhead_s=1.0), directory, SMALL, budget_s=50)
    profile(FakeDevice(flops_per_s=3.9e14, bytes_per_s=1e9), directory, SMALL)
    assert lines(directory, "done") == lines(whole[0], "done")


def test_families_can_be_added(tmp_path):
    directory = tmp_path / "profile"
    one = profile(FakeDevice(), directory, replace(SMALL, families=("gemm",)))
    assert list(one["files"]) == ["gemm.parquet"]
    two = profile(FakeDevice(), directory, replace(SMALL, families=("gemm", "moe")))
    assert list(two["files"]) == ["gemm.parquet", "fused_moe.parquet"]
    assert two["files"]["gemm.parquet"] == one["files"]["gemm.parquet"]


def test_two_processes_do_not_share_a_profile(tmp_path):
    pytest.importorskip("fcntl", reason="this platform has no file locks")
    directory = tmp_path / "profile"

    def again(progress):
        if progress.done:
            return
        with pytest.raises(FrontierError, match="another process"):
            profile(FakeDevice(), directory, SMALL)

    profile(FakeDevice(), directory, replace(SMALL, families=("launch",)), progress=again)


def test_other_directories_are_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        profile(FakeDevice(), tmp_path, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("line", ["{", "[]", '{"done":"x","family":"gemm"}', "{}"])
def test_a_damaged_journal_is_refused_by_line(tmp_path, line):
    directory = tmp_path / "profile"
    profile(FakeDevice(overhead_s=1.0), directory, SMALL, budget_s=3)
    journal = directory / "journal.jsonl"
    journal.write_text(line + "\n" + journal.read_text())
    with pytest.raises(FrontierError, match=r"journal.jsonl:1: the journal is damaged"):
        profile(FakeDevice(), directory, SMALL)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "frontier-result"}'])
def test_damaged_settings_are_refused(tmp_path, text):
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(ConfigError, match=r"settings.json"):
        profile(FakeDevice(), tmp_path, SMALL)


def test_all_wrong_settings_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        Settings(gpu="", families=("gem",), dtypes=("int3",), models=(), launch_s=0)
    paths = {issue.path: issue.nearest for issue in caught.value.issues}
    assert paths == {"gpu": None, "families": "gemm", "dtypes": None, "models": None, "launch_s": None}
