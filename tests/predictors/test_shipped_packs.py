"""The packs that come with frontier: whole, small enough, and the ones that the accuracy reports are of."""

import hashlib
import json
import zlib
from pathlib import Path

import pytest

import frontier
from frontier.hardware import gpu_names
from frontier.predictors import open_pack

PROFILES = Path(frontier.__file__).parent / "profiles"
PACKS = sorted(path for path in PROFILES.glob("*.safetensors") if not path.stem.endswith("-trtllm"))
REPORTS = Path(__file__).parents[2] / "profiles" / "accuracy"
LIMIT_BYTES = 7_000_000
MEASURED = {
    *("a100-80gb", "a800", "b200", "gb200", "h100", "h200", "h800", "l40s", "rtx-4090", "rtx-pro-6000"),
    "generic",
}


def names(paths):
    return [path.stem for path in paths]


def test_a_pack_for_every_gpu_that_was_measured():
    assert set(names(PACKS)) <= {*gpu_names(), "generic"}
    assert set(names(PACKS)) >= MEASURED, f"{PROFILES} lacks packs"


@pytest.mark.parametrize("path", PACKS, ids=names(PACKS))
def test_every_predictor_loads(path):
    pack = open_pack(path)
    assert pack.gpu == path.stem
    assert pack.notices
    assert set(pack.licences) <= {"Apache-2.0", "MIT"}
    for index, info in enumerate(pack.predictors):
        pack.load(index)
        assert info.sources, info
        assert len(info.residual_quantiles) >= 21


@pytest.mark.parametrize("path", PACKS, ids=names(PACKS))
@pytest.mark.skipif(not REPORTS.is_dir(), reason="accuracy reports are part of the repository alone")
def test_the_report_is_of_this_pack(path):
    report = json.loads((REPORTS / f"{path.stem}.json").read_text())
    assert report["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(report["predictors"]) == len(open_pack(path).predictors)


def test_all_together_fit_into_the_package():
    assert sum(len(zlib.compress(path.read_bytes(), 6)) for path in PACKS) < LIMIT_BYTES


@pytest.mark.parametrize("path", PACKS, ids=names(PACKS))
def test_decodes_depend_on_few_features_that_change(path):
    """Times are kept while no changing feature crosses a threshold; heads never change."""
    fixed = {"heads", "kv_heads", "heads_per_kv_head", "qk_dim", "v_dim", "kv_bytes_per_token", "window"}
    for info in open_pack(path).predictors:
        most = {"decode_attention": 6, "prefill_attention": 8}.get(info.operator)
        if most is not None:
            assert len(set(info.features) - fixed) <= most


@pytest.mark.parametrize("path", PACKS, ids=names(PACKS))
def test_cache_writes_are_of_kernels(path):
    """Early tables copied token by token in Python; the recipe leaves them out."""
    for info in open_pack(path).predictors:
        if info.operator == "kv_write":
            assert (info.backend, info.measurement) == ("frontier-profiler", "kernel")
