"""A damaged pack is refused, or what was damaged did not matter: never other predictions, never a crash."""

import copy
import hashlib
import json
import struct

import numpy as np
import pytest
from small_packs import info, manifest, small_pack, table_tensors, tree_tensors

from frontier import _frontier
from frontier.errors import PackError
from frontier.training.pack_writer import pack_bytes

PACK = small_pack()
HEADER_END = 8 + struct.unpack("<Q", PACK[:8])[0]
HEADER = json.loads(PACK[8:HEADER_END])
DATA = PACK[HEADER_END:]
ROWS = np.array([[a, b] for a in (0, 1, 1.5, 2, 9) for b in (4, 5, 6)], np.float32)
BYTES = np.geomspace(1, 1e6, 50)


def _load(data: bytes) -> list[_frontier.Predictor]:
    pack = _frontier.Pack(np.frombuffer(data, np.uint8))
    return [pack.load(index) for index in range(len(pack))]


def _answers(data: bytes) -> list[bytes]:
    trees, table = _load(data)
    margins = [trees.margin(ROWS), trees.compiled_margin(ROWS, {}), trees.compiled_margin(ROWS, {0: 1.5})]
    facts = _frontier.Pack(np.frombuffer(data, np.uint8)).manifest_json.encode()
    return [*(margin.tobytes() for margin in margins), table.seconds(BYTES).tobytes(), facts]


INTACT = _answers(PACK)


def _is_refused(data: bytes) -> bool:
    """Return whether a damaged pack is refused; if not, it must answer as the intact one."""
    try:
        answers = _answers(data)
    except PackError:
        return True
    assert answers == INTACT
    return False


def test_the_intact_pack_loads() -> None:
    trees, table = _load(PACK)
    assert trees.margin(ROWS[:2]).tolist() == [17.5, 17.5]
    assert table.seconds(np.array([1024.0, 2048.0])) == pytest.approx([8e-6, 8e-6 * 2**0.5], rel=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_flipped_bits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    refused = 0
    for _ in range(250):
        data = bytearray(PACK)
        for at in rng.integers(0, len(data), rng.integers(1, 4)):
            data[at] ^= 1 << rng.integers(8)
        refused += _is_refused(bytes(data))
    assert refused > 200


def test_flipped_bits_of_the_tensors_never_pass() -> None:
    for at in range(HEADER_END, len(PACK)):
        data = bytearray(PACK)
        data[at] ^= 1 << (at % 8)
        with pytest.raises(PackError, match="do not have the checksum"):
            _load(bytes(data))


def test_cut_and_extended_files() -> None:
    boundaries = {0, 1, 7, 8, 9, HEADER_END - 1, HEADER_END, HEADER_END + 1, len(PACK) - 1}
    for name, entry in HEADER.items():
        if name != "__metadata__":
            boundaries |= {HEADER_END + offset for offset in entry["data_offsets"]}
    for end in sorted(boundaries - {len(PACK)}) + list(range(10, HEADER_END, 97)):
        with pytest.raises(PackError):
            _load(PACK[:end])
    for extra in (b"\0", PACK):
        with pytest.raises(PackError, match="but tensors end after"):
            _load(PACK + extra)


@pytest.mark.parametrize("length", [0, 1, HEADER_END - 9, HEADER_END, len(PACK), 2**31, 2**63, 2**64 - 1])
def test_header_lengths_that_are_wrong(length: int) -> None:
    with pytest.raises(PackError, match=r"header|tensors end after"):
        _load(struct.pack("<Q", length) + PACK[8:])


def _with_header(header: dict[str, object] | str, data: bytes = DATA) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_headers_with_other_tensors() -> None:
    names = [name for name in HEADER if name != "__metadata__"]
    values = (0, 1, 3, 2**31, 2**32, 2**63, 2**64 - 1, -1, 1e300, "4", None, [])
    for name in names:
        for dtype in ("F64", "BF16", "I8", "BOOL", "f32", "F32", "U32", "U8", "F16", "U64", 3, None):
            header = copy.deepcopy(HEADER)
            same = header[name]["dtype"] == dtype
            header[name]["dtype"] = dtype
            # Of the same width and not told apart by length: without elements, or when it is loaded.
            assert _is_refused(_with_header(header)) != same
        for value in values:
            for place in range(2):
                header = copy.deepcopy(HEADER)
                same = header[name]["data_offsets"][place] == value
                header[name]["data_offsets"][place] = value
                assert _is_refused(_with_header(header)) != same
            for shape in ([value], [value, 1], [], value):
                header = copy.deepcopy(HEADER)
                same = header[name]["shape"] == shape
                header[name]["shape"] = shape
                assert _is_refused(_with_header(header)) != same
        for change in ({"extra": 1}, {"dtype": None}, {"shape": None}, {"data_offsets": None}):
            header = copy.deepcopy(HEADER)
            header[name] |= change
            assert _is_refused(_with_header(header))
        header = copy.deepcopy(HEADER)
        del header[name]
        assert _is_refused(_with_header(header))
        text = json.dumps(HEADER)
        twice = text[:-1] + f", {json.dumps(name)}: {json.dumps(HEADER[name])}}}"
        with pytest.raises(PackError, match="is given twice"):
            _load(_with_header(twice))
    # Two tensors in the same place, and a tensor that is another's.
    header = copy.deepcopy(HEADER)
    header["0.more"] = header["0.nodes"]
    assert _is_refused(_with_header(header))
    header = copy.deepcopy(HEADER)
    header["0.leaves"], header["1.x"] = header["1.x"], header["0.leaves"]
    assert _is_refused(_with_header(header))


def test_metadata_that_is_wrong() -> None:
    for key, value in (("format", "pickle"), ("format_version", "2"), ("manifest", "{}"), ("manifest", 3)):
        header = copy.deepcopy(HEADER)
        header["__metadata__"][key] = value
        assert _is_refused(_with_header(header))
    for key in HEADER["__metadata__"]:
        header = copy.deepcopy(HEADER)
        del header["__metadata__"][key]
        assert _is_refused(_with_header(header))
    for text in ("", "null", "[]", "{", "{}", "{}{}", '"' * 20, "[" * 100_000, '{"a":' * 100_000, "\0" * 9):
        assert _is_refused(_with_header(text))
    assert not _is_refused(_with_header(json.dumps(HEADER, indent=3) + "\n \t"))


def _changed_manifest(change: dict[str, object]) -> bytes:
    """Return a pack with entries of its first predictor changed, and the checksums put right."""
    header = copy.deepcopy(HEADER)
    document = json.loads(header["__metadata__"]["manifest"])
    document["predictors"][0] |= change
    text = json.dumps(document)
    header["__metadata__"] |= {
        "manifest": text,
        "manifest_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    return _with_header(header)


def test_manifests_with_wrong_values() -> None:
    wrong = (None, True, -1, 0.5, 1e300, "", "nonsense", [], [[]], [1], [[1, 2, 3]], {}, {"a": 1}, "[" * 50)
    entry = info("trees")
    # Facts that no prediction depends on take any value of their type.
    free = {"backend", "version", "kernel", "detail", "accuracy", "rows_dropped", "shapes", "cold"}
    free |= {"calibration", "residual_quantiles", "sources", "base_score"}
    for key in entry:
        for value in wrong:
            if value == entry[key]:
                continue
            try:
                loaded = _load(_changed_manifest({key: value}))
            except PackError:
                continue
            assert key in free, f"{key} = {value!r}"
            expected = 17.5 if key != "base_score" else 17.0 + value
            assert loaded[0].margin(ROWS[:1]) == expected
    with pytest.raises(PackError, match="unknown field"):
        _load(_changed_manifest({"colour": 1}))


def _refuses_tensors(changes: dict[str, object], entry: dict[str, object] | None = None) -> str:
    """Return the message for a pack whose tensors are wrong, but not their checksum."""
    entry = entry or info("trees")
    original = tree_tensors() if entry["form"] == "trees" else table_tensors()
    tensors = {name: np.asarray(changes.get(name, values), values.dtype) for name, values in original.items()}
    with pytest.raises(PackError) as caught:
        _load(pack_bytes(manifest(entry), [tensors]))
    return str(caught.value)


def test_trees_that_are_none() -> None:
    nan, inf, most = np.nan, np.inf, 2**32 - 1
    cases = [
        ({"nodes": []}, "tree_starts: must begin with 0 and end with 0"),
        ({"nodes": [255] * 11}, "is complete after 1 bytes of 7"),
        ({"nodes": [0, 0] * 5 + [0]}, "ends within a node"),
        ({"nodes": [0, 0, 255] * 4}, "tree_starts: must begin with 0 and end with 12"),
        ({"nodes": [0, 0, 255, 9, 0, 255, 255, 0, 1, 255, 255]}, "feature 9, there are 2"),
        ({"nodes": [0, 0, 255, 254, 0, 255, 255, 0, 1, 255, 255]}, "feature 254, there are 2"),
        ({"nodes": [0, 7, 255, 1, 0, 255, 255, 0, 1, 255, 255]}, "threshold 7 of feature 0"),
        (
            {"nodes": [0, 0] * 200 + [255] * 201, "tree_starts": [0, 601], "leaves": [0] * 201},
            "deeper than 16",
        ),
        ({"tree_starts": []}, "tree_starts: must begin"),
        ({"tree_starts": [0]}, "tree_starts: must begin"),
        ({"tree_starts": [0, most, 11]}, "tree_starts[2]: falls"),
        ({"tree_starts": [0, 7, 7, 11]}, "tree 1 (bytes 7..7): ends before"),
        ({"tree_starts": [0, 9, 11]}, "is complete after 7 bytes of 9"),
        ({"tree_starts": [7, 0, 11]}, "tree_starts: must begin"),
        ({"leaves": [1, 2, 4, 16, nan]}, "leaves[4]: was NaN"),
        ({"leaves": [1, 2, 4, -inf, 5]}, "leaves[3]: was -inf"),
        ({"leaves": [1, 2, 4, 16]}, "has more leaves than"),
        ({"leaves": [1, 2, 4, 16, 32, 64]}, "6 values, but the trees have 5 leaves"),
        ({"thresholds": [1, nan, 5]}, "those of feature 0 are not strictly ascending"),
        ({"thresholds": [1, 2, nan]}, "those of feature 1 are not strictly ascending"),
        ({"thresholds": [2, 1, 5]}, "those of feature 0 are not strictly ascending"),
        ({"thresholds": [-0.0, 0.0, 5]}, "those of feature 0 are not strictly ascending"),
        ({"thresholds": [1, 2]}, "threshold_offsets: must begin with 0 and end with 2"),
        ({"threshold_offsets": [0, most, 3]}, "threshold_offsets[2]: falls"),
        ({"threshold_offsets": [0, 3]}, "threshold_offsets: 2 values for 2 features"),
        ({"threshold_offsets": [0, 1, 3]}, "threshold 1 of feature 0, which has 1"),
        (
            {"thresholds": np.arange(300), "threshold_offsets": [0, 299, 300]},
            "thresholds: 299 of feature 0, at most 255",
        ),
        ({"static_shapes": [9, 3]}, "static_shapes[1]: must ascend"),
        ({"static_shapes": [3, 3]}, "static_shapes[1]: must ascend"),
    ]
    for changes, expected in cases:
        assert expected in _refuses_tensors(changes), changes


def test_infinite_thresholds_are_allowed() -> None:
    tensors = tree_tensors() | {"thresholds": np.array([-np.inf, np.inf, 5], np.float32)}
    predictor = _load(pack_bytes(manifest(info("trees")), [tensors]))[0]
    rows = np.array([[-np.inf, 0], [0, 0], [np.inf, 0]], np.float32)
    assert predictor.margin(rows).tolist() == [18.5, 18.5, 34.5]
    assert predictor.compiled_margin(rows, {}).tolist() == [18.5, 18.5, 34.5]


def test_tables_that_are_none() -> None:
    cases = [
        ({"x": [1024], "seconds": [1]}, "1 and 1 values, must be as many, and at least 2"),
        ({"x": [1024, 2048, 4096]}, "3 and 2 values"),
        ({"x": [0, 2048]}, "x[0]: was 0"),
        ({"x": [2048, 2048]}, "x[1]: was 2048, must be greater than 2048"),
        ({"x": [1024, np.inf]}, "x[1]: was inf"),
        ({"seconds": [0, 1]}, "seconds[0]: was 0"),
        ({"seconds": [1, np.nan]}, "seconds[1]: was NaN"),
    ]
    for changes, expected in cases:
        assert expected in _refuses_tensors(changes, info("table")), changes


@pytest.mark.parametrize("seed", range(6))
def test_random_tensors_with_right_checksums(seed: int) -> None:
    """Structure alone stands between these and a walk, so whatever loads must answer the same both ways."""
    rng = np.random.default_rng(seed)
    entry = info("trees")
    loaded = 0
    for _ in range(150):
        tensors = tree_tensors()
        for _ in range(rng.integers(1, 3)):
            name = rng.choice(sorted(tensors))
            values = tensors[name].copy()
            if not len(values):
                continue
            raw = values.view(np.uint8)
            raw[rng.integers(len(raw))] = rng.choice([0, 1, 2, 127, 254, 255, rng.integers(256)])
            tensors[name] = values[: rng.integers(len(values))] if rng.random() < 0.1 else values
        try:
            predictor = _load(pack_bytes(manifest(entry), [tensors]))[0]
        except PackError:
            continue
        loaded += 1
        assert predictor.margin(ROWS).tobytes() == predictor.compiled_margin(ROWS, {}).tobytes()
    assert 0 < loaded < 140


def test_arrays_that_are_no_bytes_are_refused() -> None:
    data = np.frombuffer(PACK, np.uint8)
    for wrong in (data.astype(np.int8), data.reshape(1, -1), PACK, None):
        with pytest.raises(TypeError):
            _frontier.Pack(wrong)
    with pytest.raises((ValueError, TypeError)):
        _frontier.Pack(np.repeat(data, 2)[::2])
    pack = _frontier.Pack(data)
    for index in (2, 2**40):
        with pytest.raises(PackError, match=f"predictor {index}: there are 2"):
            pack.load(index)
    with pytest.raises(OverflowError):
        pack.load(-1)
    with pytest.raises(ValueError, match="is no table"):
        pack.load(0).seconds(BYTES)
    with pytest.raises(ValueError, match="is a table"):
        pack.load(1).margin(ROWS)


def test_bytes_that_change_after_opening_are_noticed() -> None:
    data = np.frombuffer(PACK, np.uint8).copy()
    pack = _frontier.Pack(data)
    data[-1] ^= 1
    with pytest.raises(PackError, match="do not have the checksum"):
        [pack.load(index) for index in range(2)]
