"""The example scenarios that come with the package. Imports nothing outside the standard library."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from frontier.errors import ConfigError, Issue, nearest_name

_FOLDER: Final = Path(__file__).parent / "examples"


def examples() -> dict[str, str]:
    """Return the names of the built-in scenarios, sorted, each with one line that says what it is.

    `frontier.load(name)` reads one, `frontier examples NAME` prints its YAML.
    """
    return {path.stem: _headline(path) for path in sorted(_FOLDER.glob("*.yaml"), key=lambda path: path.stem)}


def example_path(name: str) -> Path:
    """Return the file of a built-in scenario.

    Raises:
        ConfigError: there is none of this name.
    """
    path = find_example(name)
    if path is None:
        names = tuple(examples())
        message = f"was '{name}', is no built-in example"
        raise ConfigError(Issue("", name, message, names, nearest_name(name, names)))
    return path


def find_example(name: str) -> Path | None:
    """Return the file of a built-in scenario, None where there is none of this name."""
    return next((path for path in _FOLDER.glob("*.yaml") if path.stem == name), None)


def _headline(path: Path) -> str:
    """Return the first line of an example, a comment that says what it is."""
    with path.open(encoding="utf-8") as file:
        return file.readline().lstrip("# ").rstrip()
