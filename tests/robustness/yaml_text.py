"""YAML text of plain values, and the lines of its keys, without the package's own reader and writer."""

from typing import Any

import yaml
from mutation_outcome import Path


class _Dumper(yaml.SafeDumper):
    """Quotes every string, so that YAML 1.1 and 1.2 read the same."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
)


def write_yaml(plain: Any) -> str:
    """Return the document as text, one key per line."""
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**9)


def lines_of(text: str) -> dict[Path, int]:
    """Return the 1-based line of every key and list entry."""
    lines: dict[Path, int] = {}
    _walk(yaml.compose(text, Loader=yaml.SafeLoader), (), lines)
    return lines


def _walk(node: yaml.Node | None, at: Path, lines: dict[Path, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        children = [(key.value, key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = [(str(index), value, value) for index, value in enumerate(node.value)]
    else:
        return
    for name, mark, value in children:
        lines[(*at, name)] = mark.start_mark.line + 1
        _walk(value, (*at, name), lines)
