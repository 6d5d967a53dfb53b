"""What the command lines of engines may say: names, types, defaults and choices of flags, by version.

Read off each version's own parser (`data/engine_flags.json.xz`, made by `tools/make_engine_flags.py`). Only
names, types, defaults and choices are kept, all of them facts of vLLM and SGLang (Apache-2.0).
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

from frontier.errors import ConfigError, Issue, nearest_name, show_value

ENGINES: Final = ("vllm", "sglang")


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag of one version.

    Attributes:
        name: with its dashes; the positional model of `vllm serve` is `model_tag`.
        kind: the parser's type: `flag`, `bool`, `int`, `optional int`, `json or key.path`, ...
        default: the parser's default; None where the engine decides later.
        choices: the values allowed, None where the set is open.
        aliases: other names, the `--no-` form of a boolean among them.
        takes_many: it takes all values up to the next flag.
    """

    name: str
    kind: str
    default: Any
    choices: tuple[Any, ...] | None
    aliases: tuple[str, ...]
    takes_many: bool

    @property
    def is_switch(self) -> bool:
        """Whether the flag stands without a value."""
        return self.kind in ("flag", "bool") or self.kind.startswith("Deprecated")


@cache
def _document() -> dict[str, Any]:
    packed = resources.files("frontier.launch").joinpath("data").joinpath("engine_flags.json.xz").read_bytes()
    document: dict[str, Any] = json.loads(lzma.decompress(packed))
    return document


def flag_versions(engine: str) -> tuple[str, ...]:
    """Return the versions of an engine whose flags are known, oldest first, with their patch numbers."""
    return tuple(_document()[engine]["versions"])


def known_version(engine: str, version: str) -> str:
    """Return the version whose flags hold for `version`: vLLM's by minor number, SGLang's exactly.

    Raises:
        ConfigError: no such version is known.
    """
    versions = flag_versions(engine)
    wanted = version.removeprefix("v")
    if engine == "vllm":
        minor = ".".join(wanted.split(".")[:2])
        match = [known for known in versions if ".".join(known.split(".")[:2]) == minor]
    else:
        match = [known for known in versions if known == wanted]
    if not match:
        message = f"was {show_value(version)}, a version of {engine} whose flags are not known"
        raise ConfigError(Issue("version", version, message, versions, nearest_name(version, versions)))
    return match[0]


@cache
def flags_of(engine: str, version: str) -> Mapping[str, Flag]:
    """Return the flags of a version by every name they go by.

    Raises:
        ConfigError: the flags of that version are not known.
    """
    document = _document()[engine]
    index = document["versions"].index(known_version(engine, version))
    table: dict[str, Flag] = {}
    for name, spans in document["flags"].items():
        for first, last, facts in spans:
            if first <= index <= last:
                flag = Flag(
                    name=name,
                    kind=facts["type"],
                    default=facts["default"],
                    choices=tuple(facts["choices"]) if facts.get("choices") else None,
                    aliases=tuple(facts.get("aliases", ())),
                    takes_many=facts.get("nargs") in ("+", "*"),
                )
                table[name] = flag
                table.update(dict.fromkeys(flag.aliases, flag))
    return table
