from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontier.config.document import MAX_FILE_BYTES, dump_document, parse_document, parse_value, read_text
from frontier.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("true", True),
        ("010", 10),
        ("0o10", 8),
        ("0x10", 16),
        ("1e3", 1000.0),
        ("1_000", 1000),
        ("12:30:00", "12:30:00"),
        ("2023-11-16", "2023-11-16"),
        (".5", 0.5),
        (".inf", float("inf")),
        ("50ms", "50ms"),
        ("0.32", 0.32),
        ("'8'", "8"),
        ("~", None),
        ("", None),
        ("[1, a]", [1, "a"]),
        ("{a: 1}", {"a": 1}),
    ],
)
def test_plain_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    assert parse_value(text) == value


@pytest.mark.parametrize(
    ("text", "words", "line"),
    [
        ("", "the document is empty", None),
        ("# only a comment\n", "the document is empty", None),
        ("- a\n- b\n", "the document is a list", None),
        ("just text", "the document is a single value", None),
        ("a: 1\nb: 2\na: 3\n", "is given twice, first on line 1", 3),
        ("s:\n  x: 1\n  x: 1\n", "is given twice, first on line 2", 3),
        ("a: [1, 2\nb: 3\n", "is not valid YAML", 2),
        ("a: b: c\n", "is not valid YAML at column 5", 1),
        ("a: 1\n---\nb: 2\n", "is not valid YAML", 2),
        ("1: a\n", "key 1 is not text", 1),
        ("true: a\n", "key true is not text", 1),
        ("? [a]\n: b\n", "key a collection is not text", 1),
        ("a: !!python/object:os.system x\n", "is not valid YAML", 1),
        ("a: &x [*x]\n", "an alias contains itself", 1),
        ("a: *x\n", "undefined alias", 1),
        ("a: " + "9" * 5000 + "\n", "a number of 5000 digits", 1),
        ("a: \x00\n", "is not YAML", None),
        ("a: " + "[" * 20_000, "nested too deeply", None),
    ],
)
def test_bad_documents_are_refused_with_their_line(text: str, words: str, line: int | None) -> None:
    with pytest.raises(ConfigError) as error:
        parse_document(text, source="x.yaml")
    assert words in str(error.value)
    assert "x.yaml" in str(error.value)
    assert error.value.issues[0].line == line


def test_all_repeated_keys_are_reported() -> None:
    with pytest.raises(ConfigError) as error:
        parse_document("a: 1\na: 2\nb: {c: 1, c: 2}\n")
    assert [(issue.path, issue.line) for issue in error.value.issues] == [("a", 2), ("b.c", 3)]


def test_lines_of_paths() -> None:
    _, lines = parse_document("a:\n  b: 1\n  c:\n    - 5\n    - {d: 6}\n")
    assert lines == {"a": 1, "a.b": 2, "a.c": 3, "a.c.0": 4, "a.c.1": 5, "a.c.1.d": 5}


def test_aliases_and_merges_work() -> None:
    plain, _ = parse_document("a: &x {p: 1, q: 2}\nb: *x\nc:\n  <<: *x\n  q: 3\n")
    assert plain == {"a": {"p": 1, "q": 2}, "b": {"p": 1, "q": 2}, "c": {"p": 1, "q": 3}}


def test_aliases_that_multiply_are_refused() -> None:
    text = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for low, high in zip("abcdefgh", "bcdefghi", strict=True):
        text += f"{high}: &{high} [{', '.join([f'*{low}'] * 9)}]\n"
    with pytest.raises(ConfigError, match="once its aliases are written out"):
        parse_document(text)


def test_large_files_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    with path.open("wb") as file:
        file.truncate(10**9)
    with pytest.raises(ConfigError, match=f"larger than {MAX_FILE_BYTES // 2**20} MiB"):
        read_text(path, what="scenario")


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "scenario.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        read_text(tmp_path / "scenario.yaml", what="scenario")
    with pytest.raises(ConfigError, match=r"no such file; did you mean 'scenario.yaml'"):
        read_text(tmp_path / "scenari.yaml", what="scenario")
    with pytest.raises(ConfigError, match="is a directory"):
        read_text(tmp_path, what="scenario")


_text = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Zl", "Zp")))
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_text, inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=50)
@given(st.dictionaries(_text, _values, min_size=1, max_size=5))
def test_what_is_written_reads_back(plain: dict[str, object]) -> None:
    assert parse_document(dump_document(plain))[0] == plain
