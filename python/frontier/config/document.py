"""Scenario documents: strict YAML in, readable YAML out.

The reader follows YAML 1.2's core schema where YAML 1.1 surprises: `no`, `on` and `off` are strings, `010` is
ten, `1e3` is a number, `12:30` and dates are strings. Duplicate keys, several documents in one file, keys
that are not strings, files beyond a few MiB and aliases that multiply beyond reason are refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import yaml

from frontier.errors import ConfigError, Issue, nearest_name

MAX_FILE_BYTES: Final = 4 * 2**20
"""Largest scenario file; traces are separate files."""

MAX_NODES: Final = 200_000
"""Most values in a document once its aliases are written out."""

_MAX_DEPTH: Final = 100
"""Deepest nesting that is read; scenarios have less than ten levels."""


class _Loader(yaml.SafeLoader):
    """A safe loader whose plain scalars follow YAML 1.2, and that does not descend without end."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own field

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        # Python's own limit would do, but only after exhausting the stack for everything that runs meanwhile.
        if self._depth > _MAX_DEPTH:
            raise RecursionError
        self._depth += 1
        try:
            node: yaml.Node | None = super().compose_node(parent, index)
        finally:
            self._depth -= 1
        return node


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), list(_first))


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node)).replace("_", "")
    if len(text) > 400:
        raise yaml.MarkedYAMLError(problem=f"a number of {len(text)} digits", problem_mark=node.start_mark)
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text, base)


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node)).replace("_", "").lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


def parse_document(text: str, *, source: str | None = None) -> tuple[dict[str, Any], dict[str, int]]:
    """Read a YAML mapping; return it and the line (1-based) of each dotted path.

    Raises:
        ConfigError: the text is no YAML, is empty or no mapping, repeats a key, or is unreasonably large.
    """
    node = _compose(text, source)
    if node is None:
        raise _error("the document is empty; a scenario needs at least model, hardware and workload", source)
    if not isinstance(node, yaml.MappingNode):
        kind = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        raise _error(f"the document is {kind}, must be a mapping with sections such as 'model'", source)
    lines: dict[str, int] = {}
    issues: list[Issue] = []
    _survey(node, "", lines, issues)
    if issues:
        raise ConfigError(issues, source=source)
    return _construct(node, source), lines


def parse_value(text: str) -> Any:
    """Read one YAML value, as on the right of `--set path=value`.

    Raises:
        ConfigError: the text is no YAML value.
    """
    node = _compose(text, None)
    if node is None:
        return None
    issues: list[Issue] = []
    _survey(node, "", {}, issues)
    if issues:
        raise ConfigError(issues)
    return _construct(node, None)


def read_text(path: Path, *, what: str) -> str:
    """Read a UTF-8 text file of at most `MAX_FILE_BYTES`.

    `what` names the kind of file in errors ("scenario").

    Raises:
        ConfigError: the file is absent, a directory, unreadable, too large or not UTF-8.
    """
    source = str(path)
    try:
        if path.is_dir():
            raise _error(f"is a directory, must be a {what} file", source)
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        nearest = _nearest_sibling(path)
        raise ConfigError(Issue("", source, "no such file", nearest=nearest), source=source) from None
    except OSError as error:
        raise _error(f"cannot be read: {error.strerror or error}", source) from None
    if len(raw) > MAX_FILE_BYTES:
        raise _error(f"is larger than {MAX_FILE_BYTES // 2**20} MiB, too large for a {what}", source)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _error(f"is not UTF-8 text (byte {error.start}), so no {what}", source) from None


def dump_document(plain: dict[str, Any]) -> str:
    """Write plain values as YAML: keys in the order given, lists of single values on one line."""
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    """Writes plain scalars by the reader's rules, so that what is written reads back the same."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_float(dumper: _Dumper, value: float) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:float", repr(value))


def _represent_list(dumper: _Dumper, value: list[Any]) -> yaml.SequenceNode:
    flat = not any(isinstance(item, dict | list) for item in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=flat)


_Dumper.add_representer(float, _represent_float)
_Dumper.add_representer(list, _represent_list)


def _compose(text: str, source: str | None) -> yaml.Node | None:
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        node: yaml.Node | None = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, source) from None
    except yaml.YAMLError as error:
        raise _error(f"is not YAML: {' '.join(str(error).split())[:200]}", source) from None
    except RecursionError:
        raise _error("is nested too deeply", source) from None
    finally:
        if loader is not None:
            loader.dispose()
    if node is not None:
        _check_size(node, source)
    return node


def _construct(node: yaml.Node, source: str | None) -> Any:
    loader = _Loader("")
    try:
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, source) from None
    except RecursionError:
        raise _error("is nested too deeply", source) from None
    finally:
        loader.dispose()


def _check_size(root: yaml.Node, source: str | None) -> None:
    """Refuse aliases that contain themselves or multiply the document beyond `MAX_NODES`."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()
    stack: list[tuple[yaml.Node, bool]] = [(root, False)]
    while stack:
        node, children_done = stack.pop()
        key = id(node)
        children = _children(node)
        if children_done:
            sizes[key] = 1 + sum(sizes[id(child)] for child in children)
            open_nodes.discard(key)
            if sizes[key] > MAX_NODES:
                raise _error(f"has more than {MAX_NODES} values once its aliases are written out", source)
        elif key in open_nodes:
            raise _error("an alias contains itself", source, line=node.start_mark.line + 1)
        elif key not in sizes:
            open_nodes.add(key)
            stack.append((node, True))
            stack.extend((child, False) for child in children if id(child) not in sizes)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _survey(node: yaml.Node, path: str, lines: dict[str, int], issues: list[Issue]) -> None:
    """Note the line of every path; report keys that repeat or are not strings."""
    pairs: list[tuple[str, yaml.Node, int]] = []
    if isinstance(node, yaml.SequenceNode):
        pairs = [(str(index), child, child.start_mark.line + 1) for index, child in enumerate(node.value)]
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, child in node.value:
            line = key.start_mark.line + 1
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                written = str(key.value) if isinstance(key, yaml.ScalarNode) else "a collection"
                issues.append(
                    Issue(path, written, f"key {written} is not text; write it in quotes", line=line)
                )
                continue
            if key.value in seen:
                message = f"is given twice, first on line {seen[key.value]}; keep one"
                issues.append(Issue(f"{path}{key.value}", key.value, message, line=line))
            seen.setdefault(key.value, line)
            pairs.append((key.value, child, line))
    for name, child, line in pairs:
        lines[f"{path}{name}"] = line
        _survey(child, f"{path}{name}.", lines, issues)


def _nearest_sibling(path: Path) -> str | None:
    try:
        names = [entry.name for entry in path.parent.iterdir()][:1000]
    except OSError:
        return None
    return nearest_name(path.name, names)


def _syntax_error(error: yaml.MarkedYAMLError, source: str | None) -> ConfigError:
    mark = error.problem_mark or error.context_mark
    place = f" at column {mark.column + 1}" if mark else ""
    problem = error.problem or error.context or "cannot be read"
    return _error(f"is not valid YAML{place}: {problem}", source, line=mark.line + 1 if mark else None)


def _error(message: str, source: str | None, *, line: int | None = None) -> ConfigError:
    return ConfigError(Issue("", source, message, line=line), source=source)
