"""Packs as files: what is written is read back, by us and by the reference library."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from small_packs import info, manifest, small_pack, table_tensors, tree_tensors

from frontier import PackError
from frontier.errors import ConfigError
from frontier.predictors import BoundParameters, Cold, Source, open_pack
from frontier.training.export import static_shape_hash, write_pack


def _write(path: Path) -> Path:
    cold = {"l2_bytes": 5e7, "s_per_byte": 1e-13}
    trees = info("trees", operator="decode_attention", cold=cold)
    return write_pack(path, manifest(trees, info("table")), [tree_tensors(), table_tensors()])


def test_a_pack_is_read_back_with_its_facts(tmp_path: Path) -> None:
    pack = open_pack(_write(tmp_path / "h100.safetensors"))
    trees, table = pack.predictors
    assert (pack.gpu, pack.licences, pack.created_by) == ("h100", ("Apache-2.0",), {"frontier": "0.1.0"})
    assert (trees.gpu, trees.operator, trees.kernel, trees.form) == (
        "h100",
        "decode_attention",
        "torch",
        "trees",
    )
    assert trees.bound == BoundParameters(1e-6, 1.0, 1.1, 1.0)
    assert trees.cold == Cold(5e7, 1e-13)
    assert trees.shapes == ("k", "n")
    assert trees.sources == (Source("a", "b", "c", "d", "e"),)
    assert trees.ranges == ((0.0, 3.0), (1.0, 9.0))
    assert trees.residual_quantiles == ((0.1, -0.1), (0.9, 0.2))
    assert (table.cold, table.shapes, table.features) == (None, (), ("bytes",))
    assert pack.load(0).margin(np.array([[1.0, 5.0]], np.float32)).tolist() == [20.5]
    assert pack.load(1).seconds(np.array([4096.0])) == pytest.approx([16e-6], rel=1e-6)


def test_the_same_input_gives_the_same_file(tmp_path: Path) -> None:
    first, second = _write(tmp_path / "a.safetensors"), _write(tmp_path / "b.safetensors")
    assert first.read_bytes() == second.read_bytes()
    _write(first)
    assert first.read_bytes() == second.read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_the_reference_library_reads_it(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors", reason="safetensors is not installed")
    with safetensors.safe_open(_write(tmp_path / "h100.safetensors"), framework="numpy") as file:
        assert file.metadata()["format"] == "frontier-pack"
        for index, tensors in enumerate((tree_tensors(), table_tensors())):
            for name, values in tensors.items():
                read = file.get_tensor(f"{index}.{name}")
                assert read.dtype == values.dtype
                assert np.array_equal(read, values)


def test_what_would_not_load_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "h100.safetensors"
    _write(path)
    before = path.read_bytes()
    wrong = tree_tensors() | {"leaves": np.zeros(4, np.float16)}
    with pytest.raises(PackError, match="has more leaves than"):
        write_pack(path, manifest(info("trees")), [wrong])
    with pytest.raises(PackError, match="dtype: was 'bf17'"):
        write_pack(path, manifest(info("trees", dtype="bf17")), [tree_tensors()])
    with pytest.raises(ConfigError, match="predictors: are 1, but there are tensors of 0"):
        write_pack(path, manifest(info("trees")), [])
    with pytest.raises(ConfigError, match="manifest: cannot be written as JSON"):
        write_pack(path, manifest(info("trees", calibration=float("nan"))), [tree_tensors()])
    with pytest.raises(ConfigError, match=r"0\.leaves: was 1-dimensional float64"):
        write_pack(path, manifest(info("trees")), [tree_tensors() | {"leaves": np.zeros(5)}])
    with pytest.raises(ConfigError, match=r"0\.leaves: was 2-dimensional float32"):
        write_pack(path, manifest(info("trees")), [tree_tensors() | {"leaves": np.zeros((5, 1), np.float32)}])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_errors_name_the_file(tmp_path: Path) -> None:
    missing, empty, damaged = (tmp_path / name for name in ("missing", "empty", "damaged"))
    empty.write_bytes(b"")
    damaged.write_bytes(small_pack()[:-1] + b"\0")
    for path, message in (
        (missing, "cannot be read"),
        (tmp_path, "cannot be read"),
        (empty, "file: 0 bytes, too short"),
    ):
        with pytest.raises(PackError, match=message) as caught:
            open_pack(path)
        assert caught.value.file == str(path)
        assert str(path) in str(caught.value)
    pack = open_pack(damaged)
    with pytest.raises(PackError, match="do not have the checksum") as caught:
        [pack.load(index) for index in range(2)]
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.file, copy.message, str(copy)) == (str(damaged), caught.value.message, str(caught.value))
    for index in (-1, 2):
        with pytest.raises(PackError, match=f"predictor {index}: there are 2, numbered from 0"):
            pack.load(index)


def test_static_shapes_have_the_hash_of_the_core() -> None:
    # The core's own test has the same values.
    assert static_shape_hash([]) == 0xCBF29CE484222325
    assert static_shape_hash([0.0]) == 0xA8C7F832281A39C5
    assert static_shape_hash([1.0, 2.0]) != static_shape_hash([2.0, 1.0])
