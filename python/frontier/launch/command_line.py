"""Reading a launch command: which engine, which model, and what each flag says."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from frontier.errors import ConfigError, Issue, nearest_name, show_value
from frontier.launch.flag_table import Flag, flags_of

_STARTS: Final[tuple[tuple[tuple[str, ...], str], ...]] = (
    (("vllm", "serve"), "vllm"),
    (("-m", "vllm.entrypoints.openai.api_server"), "vllm"),
    (("-m", "sglang.launch_server"), "sglang"),
    (("sglang", "serve"), "sglang"),
)
"""What a command begins with, after variables and the interpreter."""

_ASSIGNMENT: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_LEVEL: Final = re.compile(r"-O=?(?:(?P<level>\d)|(?P<field>\.\S+))?")
_PYTHON: Final = re.compile(r"(?:.*/)?python[0-9.]*")
_SIZE: Final = re.compile(r"(-?\d+(?:\.\d+)?)([kmgtKMGT]?)")
_DECIMAL: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY: Final = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True, slots=True)
class Command:
    """A launch command, read.

    Attributes:
        engine: `vllm` or `sglang`.
        environment: variables set in front of the command.
        values: what was said, by the flag's own name; a flag with fields
            (`--eplb-config.window_size 100`) has a mapping.
        flags: the flags of the version, by every name.
    """

    engine: str
    environment: Mapping[str, str]
    values: Mapping[str, Any]
    flags: Mapping[str, Flag]


@dataclass(slots=True)
class _Reader:
    engine: str
    flags: Mapping[str, Flag]
    words: list[str]
    at: int = 0
    values: dict[str, Any] = field(default_factory=dict)
    issues: list[Issue] = field(default_factory=list)

    def read(self) -> None:
        while self.at < len(self.words):
            word = self.words[self.at]
            self.at += 1
            if _is_flag(word):
                self._flag(word)
            elif self.engine == "vllm" and "model_tag" not in self.values:
                self.values["model_tag"] = word
            else:
                self.issues.append(
                    Issue("command", word, f"has {show_value(word)}, which belongs to no flag")
                )

    def _flag(self, word: str) -> None:
        if self.engine == "vllm":
            word = self._level(word)
        text, has_value, inline = word.partition("=")
        # `--eplb-config.window_size` sets a field of the flag's JSON object.
        name, _, inner = text.partition(".")
        name = f"--{name[2:].replace('_', '-')}" if name.startswith("--") else name
        flag = self.flags.get(name) or self._abbreviated(name)
        if flag is None:
            allowed = tuple(known for known in self.flags if known.startswith("--"))
            message = f"has the flag {show_value(text)}, which this version of {self.engine} does not have"
            self.issues.append(Issue("command", text, message, (), nearest_name(name, allowed)))
            # Its value, if it has one, says nothing either.
            if not has_value and self.at < len(self.words) and not _is_flag(self.words[self.at]):
                self.at += 1
            return
        if flag.is_switch and not inner:
            given = inline if has_value else None
            self._put(flag, inner, self._switch(flag, name, given))
            return
        words = [inline] if has_value else self._take(flag)
        if not words and flag.kind not in ("str",):
            self.issues.append(Issue("command", text, f"has {text} without a value"))
            return
        try:
            found = [_parse(flag, value, inner) for value in words]
        except ValueError as error:
            self.issues.append(Issue("command", words[0] if words else None, f"has {text} {error}"))
            return
        self._put(flag, inner, found if flag.takes_many else (found[0] if found else ""))

    def _abbreviated(self, name: str) -> Flag | None:
        """Return the one flag that begins so: SGLang's parser takes beginnings, as argparse does."""
        if self.engine != "sglang" or not name.startswith("--"):
            return None
        found = {flag.name: flag for known, flag in self.flags.items() if known.startswith(name)}
        return next(iter(found.values())) if len(found) == 1 else None

    def _level(self, word: str) -> str:
        """Rewrite `-O3` and `-O.field` as vLLM's parser does."""
        match = _LEVEL.fullmatch(word)
        if match is None:
            return word
        if match["level"] is None:
            return f"--compilation-config{match['field'] or ''}"
        known = "--optimization-level" in self.flags
        return (
            f"--optimization-level={match['level']}"
            if known
            else f"--compilation-config.level={match['level']}"
        )

    def _take(self, flag: Flag) -> list[str]:
        first = self.at
        while self.at < len(self.words) and not _is_flag(self.words[self.at]):
            self.at += 1
            if not flag.takes_many:
                break
        return self.words[first : self.at]

    def _switch(self, flag: Flag, name: str, given: str | None) -> bool:
        value = not (name.startswith("--no-") and name in flag.aliases)
        if given is None or given.lower() in ("true", "1"):
            return value
        if given.lower() in ("false", "0"):
            return not value
        self.issues.append(Issue("command", given, f"has {name}={given}, must be true or false"))
        return value

    def _put(self, flag: Flag, inner: str, value: Any) -> None:
        if not inner:
            held = self.values.get(flag.name)
            merged = {**held, **value} if isinstance(held, dict) and isinstance(value, dict) else value
            self.values[flag.name] = merged
            return
        holder = self.values.setdefault(flag.name, {})
        *path, last = inner.split(".")
        for part in path:
            holder = holder.setdefault(part.replace("-", "_"), {})
        holder[last.replace("-", "_")] = value


def read_command(command: str | Sequence[str], version_of: Mapping[str, str]) -> Command:
    """Read a launch command.

    Args:
        command: as typed into a shell (continuation lines allowed), or its words.
        version_of: the version to read it for, by engine.

    Raises:
        ConfigError: the command starts no engine that is known, or has flags or values that the version does
            not take; all are named.
    """
    if isinstance(command, str):
        try:
            words = shlex.split(command.replace("\\\r\n", " ").replace("\\\n", " "), comments=True)
        except ValueError as error:
            raise ConfigError(Issue("command", command, f"cannot be split into words: {error}")) from None
    else:
        words = list(command)
    environment: dict[str, str] = {}
    while words and (words[0] in ("env", "export") or _ASSIGNMENT.match(words[0])):
        name, equals, value = words.pop(0).partition("=")
        if equals:
            environment[name] = value
    if words and _PYTHON.fullmatch(words[0]):
        words.pop(0)
    head = (words[0].rsplit("/", 1)[-1], *words[1:2]) if words else ()
    engine = dict(_STARTS).get(head)
    if engine is None:
        allowed = tuple(" ".join(start) for start, _ in _STARTS)
        message = f"starts with {show_value(' '.join(words[:2]))}, which starts no engine that is known"
        raise ConfigError(Issue("command", " ".join(words[:2]), message, allowed))
    reader = _Reader(engine, flags_of(engine, version_of[engine]), words[2:])
    reader.read()
    if reader.issues:
        raise ConfigError(reader.issues)
    return Command(engine, environment, reader.values, reader.flags)


def _is_flag(word: str) -> bool:
    """Tell a flag from a value; a number may be negative."""
    return word.startswith("-") and len(word) > 1 and not word[1].isdigit()


def _parse(flag: Flag, text: str, inner: str) -> Any:
    if inner:
        return _field_value(text)
    kind = flag.kind
    if kind.startswith("optional "):
        if text in ("None", "null", ""):
            return None
        kind = kind.removeprefix("optional ")
    value = _typed(kind, text)
    if flag.choices is not None and value not in flag.choices:
        allowed = ", ".join(str(choice) for choice in flag.choices)
        raise ValueError(f"{show_value(value)}, must be one of {allowed}")
    return value


def _typed(kind: str, text: str) -> Any:
    if kind in ("human_readable_int", "human_readable_int_or_auto"):
        return _human_readable(text, auto=kind.endswith("auto"))
    if kind in ("int", "float"):
        try:
            return int(text) if kind == "int" else float(text)
        except ValueError:
            raise ValueError(
                f"{show_value(text)}, must be a {'whole ' if kind == 'int' else ''}number"
            ) from None
    if kind in ("json", "json or key.path", "loads", "json_list_type") or kind.startswith(
        "parse_cuda_graph_config"
    ):
        return _json(text)
    if kind == "str or json":
        return _json(text) if text[:1] in "{[" else text
    return text


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{show_value(text)}, which is not JSON: {error.msg} at column {error.colno}"
        ) from None


def _field_value(text: str) -> Any:
    """Read a field of a JSON flag as vLLM does: JSON if it is, else text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {"True": True, "False": False, "None": None}.get(text, text)


def _human_readable(text: str, *, auto: bool) -> int | str:
    """Read `8192`, `8k` (8000) or `8K` (8192), as vLLM's `human_readable_int` does."""
    if auto and text.lower() in ("auto", "-1"):
        return "auto"
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{show_value(text)}, must be a number such as 8192, 8k (8000) or 8K (8192)")
    number, unit = match.groups()
    if unit in _BINARY and "." in number:
        raise ValueError(
            f"{show_value(text)}: a binary unit takes a whole number; write {unit.lower()} for decimals"
        )
    scale = _BINARY.get(unit) or _DECIMAL[unit]
    value = float(number) * scale if "." in number else int(number) * scale
    if value != int(value):
        raise ValueError(f"{show_value(text)}, which is no whole number of tokens")
    return int(value)
