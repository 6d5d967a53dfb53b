"""`frontier examples`: the scenarios that come with the package."""

from __future__ import annotations

from pathlib import Path

import click

from frontier.errors import ConfigError, Issue, nearest_name

_FOLDER = Path(__file__).parent.parent / "examples"


@click.command(short_help="List example scenarios, or print one to start from.")
@click.argument("name", required=False)
def examples(name: str | None) -> None:
    """List the example scenarios, or print the YAML of NAME to start from.

    \b
      frontier examples chat-poisson > mine.yaml
      frontier run mine.yaml
    """  # noqa: D301 - \b is the character that keeps click from rewrapping
    if name is not None:
        click.echo(example_path(name).read_text("utf-8"), nl=False)
        return
    names = example_names()
    width = max(map(len, names))
    for each in names:
        click.echo(f"{each:<{width}}  {_headline(example_path(each))}")


def example_names() -> tuple[str, ...]:
    """Return the names of the built-in examples, sorted."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def example_path(name: str) -> Path:
    """Return the file of a built-in example.

    Raises:
        ConfigError: there is no such example.
    """
    names = example_names()
    if name not in names:
        message = "is no built-in example"
        raise ConfigError(Issue("", name, f"'{name}' {message}", names, nearest_name(name, names)))
    return _FOLDER / f"{name}.yaml"


def _headline(path: Path) -> str:
    """Return the first line of an example, a comment that says what it is."""
    with path.open(encoding="utf-8") as file:
        return file.readline().lstrip("# ").rstrip()
