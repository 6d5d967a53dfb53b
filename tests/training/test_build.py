"""From measurements to packs: what is in them, and that building again changes nothing."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import made_up
import numpy as np
import pytest

from frontier.errors import ConfigError
from frontier.hardware import load_gpu
from frontier.predictors import open_pack
from frontier.training.identity import Identity
from frontier.training.recipe import default_recipe, load_recipe, newest

pytest.importorskip("xgboost", reason="needs the extra `train`")

from frontier.training import fingerprint
from frontier.training.build import Builder, read_source
from frontier.training.inputs import inputs_of
from frontier.training.settings import settings_for


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("training")
    made_up.recipe(path)
    return path


@pytest.fixture(scope="module")
def source(folder: Path) -> Path:
    return made_up.write(folder / "measured")


@pytest.fixture(scope="module")
def packs(folder: Path, source: Path) -> Path:
    out = folder / "packs"
    builder = Builder({"profiler": source}, out, jobs=2)
    for recipe in load_recipe(folder / "recipe.yaml"):
        builder.build(recipe)
    return out


def test_one_pack_per_gpu_and_a_generic_one(packs):
    assert sorted(path.name for path in packs.glob("*.safetensors")) == [
        "b200.safetensors",
        "generic.safetensors",
        "h100.safetensors",
    ]
    pack = open_pack(packs / "h100.safetensors")
    assert pack.gpu == "h100"
    assert pack.licences == ("Apache-2.0",)
    assert [(info.operator, info.form) for info in pack.predictors] == [
        ("all_reduce", "table"),
        ("decode_attention", "trees"),
        ("gemm", "trees"),
    ]
    table, decode, gemm = pack.predictors
    assert table.detail == {"ranks": 4, "nodes": 1}
    assert decode.detail["kv_cache_dtype"] == "bf16"
    assert len(decode.features) - 7 <= 6  # what changes from step to step
    assert gemm.rows == len(made_up.PRODUCTS) * len(made_up.ROWS)
    assert gemm.accuracy["splits"]["random"]["median"] < 0.05
    assert all(low <= high for low, high in gemm.ranges)
    generic = open_pack(packs / "generic.safetensors")
    assert {info.operator for info in generic.predictors} == {"gemm", "decode_attention"}
    assert all(info.detail["pooled_over"] == ["b200", "h100"] for info in generic.predictors)


def test_what_is_shipped_predicts_what_was_measured(packs, source):
    pack = open_pack(packs / "h100.safetensors")
    found = {each.identity.operator: each for each in read_source("profiler", source, ["h100"])}
    for index, info in enumerate(pack.predictors):
        measured = found[info.operator]
        predictor = pack.load(index)
        if info.form == "table":
            times = predictor.seconds(measured.columns["bytes"])
        else:
            inputs = inputs_of(measured)
            costs, bound = inputs.costs, info.bound
            base = np.maximum(costs.compute_s * bound.compute_scale, costs.memory_s * bound.memory_scale)
            margin = predictor.margin(inputs.chosen(info.features)).astype(float)
            times = (base + bound.launch_s) * np.exp(margin)
        assert np.median(np.abs(times / measured.seconds - 1)) < 0.02, info.operator


def test_building_again_leaves_the_pack_and_says_so(packs, folder, source):
    recipe = load_recipe(folder / "recipe.yaml")[0]
    path = packs / "h100.safetensors"
    before = path.stat().st_mtime_ns
    built = Builder({"profiler": source}, packs).build(recipe)
    assert built is not None
    assert not built.fresh
    assert path.stat().st_mtime_ns == before


def test_the_same_inputs_give_the_same_bytes(packs, folder, source, tmp_path):
    recipe = load_recipe(folder / "recipe.yaml")[0]
    built = Builder({"profiler": source}, tmp_path, jobs=1).build(recipe)
    assert built is not None
    assert built.fresh
    assert built.path.read_bytes() == (packs / "h100.safetensors").read_bytes()


def test_a_damaged_pack_is_built_again(packs, folder, source, tmp_path):
    recipe = load_recipe(folder / "recipe.yaml")[1]
    builder = Builder({"profiler": source}, tmp_path)
    first = builder.build(recipe)
    assert first is not None
    whole = first.path.read_bytes()
    first.path.write_bytes(whole[:-1])
    again = builder.build(recipe)
    assert again is not None
    assert again.fresh
    assert again.path.read_bytes() == whole


def test_an_interrupted_build_leaves_no_file(folder, source, tmp_path):
    recipe = load_recipe(folder / "recipe.yaml")[0]

    def interrupt(name: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Builder({"profiler": source}, tmp_path).build(recipe, interrupt)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_samples_that_are_absent_or_of_another_pack_are_made(packs, folder, source, tmp_path):
    recipe = load_recipe(folder / "recipe.yaml")[0]
    shutil.copytree(packs, tmp_path / "packs")
    builder = Builder({"profiler": source}, tmp_path / "packs", samples=tmp_path / "samples")
    built = builder.build(recipe)
    assert built is not None
    assert built.fresh
    assert built.path.read_bytes() == (packs / "h100.safetensors").read_bytes()
    path = tmp_path / "samples" / "h100.npz"
    with np.load(path) as arrays:
        assert str(arrays["sha256"]) == built.report["sha256"]
        kept = dict(arrays)
    again = builder.build(recipe)
    assert again is not None
    assert not again.fresh
    np.savez_compressed(path, **{**kept, "sha256": np.array("0" * 64)})
    third = builder.build(recipe)
    assert third is not None
    assert third.fresh


def test_a_pack_without_sweeps_says_so(packs):
    for name in ("h100", "generic"):
        told = " ".join(open_pack(packs / f"{name}.safetensors").warnings)
        assert "built without sweeps of unequal lengths" in told
        assert "built without sweeps of mixed batches" in told


@pytest.mark.parametrize("change", ["preset", "inputs", "code", "settings"])
def test_whatever_decides_what_is_learned_makes_a_pack_stale(folder, source, monkeypatch, change):
    recipe = load_recipe(folder / "recipe.yaml")[0]
    found = newest(read_source("profiler", source, ["h100"]))
    before = fingerprint.fingerprint_of(recipe, found, None)
    assert fingerprint.fingerprint_of(recipe, found, None) == before
    if change == "preset":
        spec = load_gpu("h100")
        slower = replace(spec, memory_bandwidth_bytes_per_s=spec.memory_bandwidth_bytes_per_s / 2)
        monkeypatch.setattr(fingerprint, "load_gpu", lambda _: slower)
    elif change == "inputs":

        def renamed(measurements):
            inputs = inputs_of(measurements)
            return replace(inputs, names=("another", *inputs.names[1:]))

        monkeypatch.setattr(fingerprint, "inputs_of", renamed)
    elif change == "code":
        monkeypatch.setattr(fingerprint, "digest_of_sources", lambda: "other")
    else:
        monkeypatch.setattr(
            fingerprint, "settings_for", lambda *words: replace(settings_for(*words), trees=1)
        )
    assert fingerprint.fingerprint_of(recipe, found, None) != before


def test_the_code_of_readers_is_part_of_the_trainer(tmp_path):
    (tmp_path / "sources").mkdir()
    digests = set()
    for name, text in (("a.py", "1"), ("a.py", "2"), ("sources/b.py", "1"), ("sources/b.py", "2")):
        (tmp_path / name).write_text(text)
        fingerprint.digest_of_sources.cache_clear()
        digests.add(fingerprint.digest_of_sources(tmp_path))
    fingerprint.digest_of_sources.cache_clear()
    assert len(digests) == 4


def test_a_pack_without_measurements_is_none(folder, source, tmp_path):
    rope = load_recipe(folder / "recipe.yaml")[3]
    assert rope.optional
    assert Builder({"profiler": source}, tmp_path).build(rope) is None


def test_reports_lie_beside_the_packs(packs):
    report = json.loads((packs / "accuracy" / "h100.json").read_text())
    assert report["bytes"] == (packs / "h100.safetensors").stat().st_size
    assert {family["operator"] for family in report["families"]} == {"all_reduce", "decode_attention", "gemm"}
    assert [bar["bar"] for bar in report["bars"]] == ["attention", "linear"]
    assert [bar["repeats"] for bar in report["bars"]] == [None, None]


def test_newest_versions_replace_older_ones(source):
    found = read_source("profiler", source, ["h100"])
    old = [replace(each, identity=replace(each.identity, version="0.9.0")) for each in found]
    kept = newest([*found, *old])
    assert {each.identity.version for each in kept} == {"0.24.0"}
    assert len(kept) == len(found)


def test_measurements_of_one_identity_are_put_together(source):
    found = read_source("profiler", source, ["h100"])
    kept = newest([*found, *found])
    assert [len(each) for each in kept] == [2 * len(each) for each in newest(found)]


def test_measurements_of_two_gpus_do_not_replace_each_other(source):
    found = read_source("profiler", source, ["h100", "b200"])
    assert len(newest(found)) == len(found)


@pytest.mark.parametrize(
    ("text", "path", "nearest"),
    [
        ("packs: {h100: {source: [vidur]}}", "packs.h100", "sources"),
        ("packs: {h100: {sources: [vidr]}}", "packs.h100.sources", "vidur"),
        ("packs: {h100: {sources: [vidur], only: [{operatr: gemm}]}}", "packs.h100.only", "operator"),
        ("packs: []", "packs", None),
    ],
)
def test_a_recipe_that_is_wrong_is_refused(tmp_path, text, path, nearest):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_recipe(file)
    assert error.value.issues[0].path == path
    assert error.value.issues[0].nearest == nearest


def test_the_recipe_of_the_repository_reads():
    recipes = {recipe.name: recipe for recipe in load_recipe(default_recipe())}
    assert not recipes["h100"].optional
    assert recipes["h100-trtllm"].optional
    assert {"h100", "h200", "h800", "a800", "generic"} <= set(recipes)


@pytest.mark.parametrize(
    ("backend", "measurement", "learned"),
    [
        ("vidur", "kernel", False),
        ("vidur", "event", False),
        ("frontier-profiler", "event", False),
        ("frontier-profiler", "kernel", True),
        ("vllm", "cuda_graph", True),
    ],
)
def test_no_pack_learns_cache_writes_that_no_engine_runs(backend, measurement, learned):
    for recipe in load_recipe(default_recipe()):
        if not recipe.only:
            found = Identity("h800", backend, "1", "x", measurement, "kv_write", "bf16")
            assert recipe.takes(found) is learned, recipe.name
