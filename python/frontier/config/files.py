"""Scenarios from files and built-in examples, with values set besides."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from frontier.builtin_examples import examples, find_example
from frontier.config.document import parse_document, read_text
from frontier.config.locate import anchor_paths
from frontier.config.paths import changed, split_assignments
from frontier.config.scenario import Scenario, made
from frontier.errors import ConfigError, Issue, nearest_name, show_value

_SUFFIXES: Final = (".yaml", ".yml", ".json")


def load(path: str | os.PathLike[str], *, overrides: Iterable[str] = ()) -> Scenario:
    """Read a scenario file, or a built-in example by its name (`frontier.examples()`).

    Relative paths in a file start from its directory. A file that has the name of an example is written
    `./name`.

    Args:
        path: a YAML file, or the name of an example.
        overrides: `path=value` texts, as of the command line's `--set`, applied before validation; relative
            paths in them start from the current directory.

    Raises:
        ConfigError: with every problem found, each with its line in the file.
    """
    file, source = _scenario_file(path), os.fspath(path)
    plain, places = parse_document(read_text(file, what="scenario"), source=source)
    lines: dict[str, int | None] = {**places}
    changes, wrong = split_assignments(overrides)
    plain = anchor_paths(plain, file.resolve().parent)
    if changes:
        plain, misplaced = changed(plain, changes, Scenario)
        wrong += misplaced
        written = {path for path, _ in changes}
        below = tuple(f"{path}." for path in written)
        lines = {at: line for at, line in lines.items() if not at.startswith(below)} | dict.fromkeys(written)
    return made(lambda: Scenario.from_dict(plain, source=source, lines=lines), wrong, source)


def apply_set(plain: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Return a copy of a scenario's plain mapping with `path=value` texts applied, values read as YAML.

    Raises:
        ConfigError: a text is malformed or its path leads to no field; all such texts together.
    """
    changes, wrong = split_assignments(assignments)
    result, misplaced = changed(plain, changes, Scenario)
    if wrong or misplaced:
        raise ConfigError([*wrong, *misplaced])
    return result


def _scenario_file(path: str | os.PathLike[str]) -> Path:
    """Return the file that is meant: an example's, if a bare text names one, else the path itself."""
    file = Path(path)
    if not isinstance(path, str) or file.name != path or file.suffix in _SUFFIXES:
        return file
    example = find_example(path)
    if example is not None:
        return example
    try:
        found = file.exists()
    except OSError:  # a name too long for the file system, say
        found = False
    if found:
        return file
    names = tuple(examples())
    message = f"was {show_value(path)}, is neither a file nor a built-in example"
    raise ConfigError(Issue("", path, message, names, nearest_name(path, names)))
