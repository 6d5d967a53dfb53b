"""`frontier train`."""

import json
import sys
from pathlib import Path

import made_up
import pytest
from click.testing import CliRunner, Result

pytest.importorskip("xgboost", reason="needs the extra `train`")

from frontier.cli.group import Cli
from frontier.cli.train import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("train")
    made_up.write(path / "measured")
    made_up.recipe(path)
    return path


def run(folder: Path, *words: str, source: bool = True) -> Result:
    given = ["--source", f"profiler={folder / 'measured'}"] if source else []
    recipe = ["--recipe", str(folder / "recipe.yaml")]
    out = [] if "--out" in words else ["--out", str(folder / "packs")]
    return CliRunner().invoke(Cli(sections={"x": [train]}), ["train", *given, *recipe, *out, *words])


def test_packs_and_report_are_written(folder):
    found = run(folder, "--gpu", "h100", "--report")
    assert found.exit_code == 0, found.output
    assert "h100.safetensors: 3 predictors" in found.stdout
    assert "# Accuracy of the operator predictors" in (folder / "packs" / "ACCURACY.md").read_text()
    again = run(folder, "--gpu", "h100")
    assert "(was there)" in again.stdout


def test_json_is_one_document(folder):
    found = run(folder, "--gpu", "b200", "--json")
    assert found.exit_code == 0, found.output
    (pack,) = json.loads(found.stdout)["packs"]
    assert pack["gpu"] == "b200"
    assert Path(pack["path"]).stat().st_size == pack["bytes"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpu", "h1000"], "the recipe has no pack of 'h1000', but of b200, generic, h100"),
        (["--source", "vidr=x"], "was 'vidr=x', must be one of aiconfigurator=PATH"),
        (["--source", "vidur"], "was 'vidur', must be one of"),
        (["--source", "vidur=/nowhere/at/all"], "does not exist"),
        (["--source", "vidur=installed"], "vidur is no package"),
        (["--jobs", "0"], "0 is not in the range"),
    ],
)
def test_wrong_options_are_refused(folder, words, message):
    found = run(folder, *words)
    assert found.exit_code == 2
    assert message in " ".join(found.stderr.replace("│", " ").split())


def test_a_source_is_needed(folder):
    found = run(folder, source=False)
    assert found.exit_code == 2
    assert "--source" in found.stderr


def test_without_xgboost_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "xgboost", None)
    found = run(folder, "--gpu", "h100", "--out", str(folder / "other"))
    assert found.exit_code == 3
    assert "pip install 'frontier-sim[train]'" in found.stderr


def test_a_source_without_measurements_of_the_gpu_is_an_error(folder, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("packs: {h200: {sources: [profiler]}}")
    found = run(folder, "--recipe", str(recipe))
    assert found.exit_code == 1
    assert "none of the packs wanted has measurements" in found.stderr


def test_without_plotly_the_report_says_what_is_missing(folder, monkeypatch, tmp_path):
    from frontier.training import plots

    monkeypatch.setattr(plots, "available", lambda: False)
    found = run(folder, "--gpu", "h100", "--report", "--out", str(tmp_path))
    assert found.exit_code == 0
    assert "frontier-sim[plot]" in found.stderr
    assert (tmp_path / "ACCURACY.md").exists()
    assert not (tmp_path / "ACCURACY.html").exists()


def test_plots_are_written_where_plotly_is(folder):
    pytest.importorskip("plotly", reason="needs the extra `plot`")
    found = run(folder, "--gpu", "h100", "--report")
    assert found.exit_code == 0, found.output
    page = (folder / "packs" / "ACCURACY.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "h100: gemm, hold-out" in page
