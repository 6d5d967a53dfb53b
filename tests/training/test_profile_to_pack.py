"""From `frontier profile` to a pack: what the profiler writes, the trainer reads."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("xgboost", reason="needs the extra `train`")
sys.path.append(str(Path(__file__).parents[1] / "profiler"))

from fake_device import SMALL, FakeDevice

from frontier.predictors import open_pack
from frontier.profiler.session import profile
from frontier.profiler.store import Notes
from frontier.training.build import Builder, read_source
from frontier.training.measurements import concat
from frontier.training.recipe import load_recipe, newest

SETTINGS = replace(SMALL, gpu="h100", families=("launch", "copy", "gemm", "decode"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profiled")
    wide = replace(SETTINGS, grid=replace(SETTINGS.grid, targets=dict.fromkeys(SETTINGS.grid.targets, 90)))
    for name, seed in (("first", 0), ("second", 1)):
        profile(FakeDevice(), path / name, replace(wide, seed=seed), notes=Notes("2026-01-31", "CC0-1.0"))
    return path


@pytest.fixture(scope="module")
def pack(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    text = folder / "recipe.yaml"
    text.write_text("packs: {h100: {sources: [profiler]}}")
    (recipe,) = load_recipe(text)
    built = Builder({"profiler": folder}, tmp_path_factory.mktemp("packs")).build(recipe)
    assert built is not None
    return open_pack(built.path)


def test_only_operators_are_read(folder):
    assert (folder / "first" / "copy.parquet").is_file()
    assert {each.identity.operator for each in read_source("profiler", folder, None)} == {
        "gemm",
        "decode_attention",
    }


def test_a_profile_becomes_a_pack(pack):
    assert [(info.operator, info.backend) for info in pack.predictors] == [
        ("decode_attention", "torch"),
        ("gemm", "torch"),
    ]
    assert pack.licences == ("CC0-1.0",)
    assert [info.measurement for info in pack.predictors] == ["cuda_graph"] * 2


def test_two_profiles_of_one_gpu_are_both_learned_from(folder, pack):
    found = read_source("profiler", folder, ["h100"])
    rows = {info.operator: info.rows for info in pack.predictors}
    for operator, count in rows.items():
        parts = [each for each in found if each.identity.operator == operator]
        assert len(parts) == 2
        assert count == len(concat(parts)) > len(parts[0])
    assert len(newest(found)) == 2


def test_decodes_that_hold_unequal_lengths_are_known_to(pack):
    decode = pack.predictors[0]
    assert decode.detail["knows_unequal_lengths"] == 1
    assert {"kv_max_ratio", "kv_variation"} <= set(decode.features)


def test_decodes_that_were_measured_cold_need_no_correction(folder):
    decodes = [
        each
        for each in read_source("profiler", folder, ["h100"])
        if each.identity.operator == "decode_attention"
    ]
    assert all("warm_l2" not in each.marks for each in decodes)
