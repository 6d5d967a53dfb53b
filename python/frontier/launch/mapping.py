"""What becomes of a flag: a field of the scenario, nothing, or a remark that its effect is not simulated."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from frontier.errors import show_value
from frontier.launch.command_line import Command


@dataclass(frozen=True, slots=True)
class Remark:
    """A flag that changed nothing in the scenario.

    Attributes:
        flag: the flag, or the variable, as written in the command's own terms.
        value: its value.
        reason: why it has no counterpart.
    """

    flag: str
    value: Any
    reason: str

    def __str__(self) -> str:
        """Return one line for people."""
        return f"{self.flag} = {show_value(self.value)}: {self.reason}"


@dataclass(slots=True)
class Mapped:
    """The scenario fields that a command sets, which flag said so, and the flags that set none."""

    fields: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    unsupported: list[Remark] = field(default_factory=list)
    neutral: list[Remark] = field(default_factory=list)

    def unsupport(self, flag: str, value: Any, reason: str) -> None:
        """Note a flag that would change the run, in a way that is not simulated."""
        self.unsupported.append(Remark(flag, value, reason))


Handler = Callable[[Any, Mapped, Command], None]


@dataclass(frozen=True, slots=True)
class Rules:
    """What the flags of an engine mean.

    Attributes:
        fields: flags whose value is the value of a scenario field.
        handlers: flags that take more than that.
        neutral: flags that change nothing that is simulated, by reason.
        unsupported: flags that change the run in ways that are not simulated, by reason; no matter at
            their default.
        environment: variables, by name, as `handlers`.
        neutral_variables: prefixes of variables that change nothing.
    """

    fields: Mapping[str, str]
    handlers: Mapping[str, Handler]
    neutral: Mapping[str, tuple[str, ...]]
    unsupported: Mapping[str, tuple[str, ...]]
    environment: Mapping[str, Handler]
    neutral_variables: tuple[str, ...]

    def classes_of(self, flag: str) -> list[str]:
        """Return the classes that a flag stands in; exactly one where the rules are whole."""
        found = [
            name for name, table in (("field", self.fields), ("handler", self.handlers)) if flag in table
        ]
        for name, table in (("neutral", self.neutral), ("unsupported", self.unsupported)):
            found += [name for flags in table.values() if flag in flags]
        return found

    def apply(self, command: Command) -> Mapped:
        """Map every flag and variable of a command."""
        mapped = Mapped()
        reason_of = {flag: reason for reason, flags in self.neutral.items() for flag in flags}
        refusal_of = {flag: reason for reason, flags in self.unsupported.items() for flag in flags}
        for flag, value in command.values.items():
            before = set(mapped.fields)
            if flag in reason_of:
                mapped.neutral.append(Remark(flag, value, reason_of[flag]))
            elif _is_default(value, command.flags[flag].default):
                mapped.neutral.append(Remark(flag, value, "is the default"))
            elif flag in self.fields:
                mapped.fields[self.fields[flag]] = value
            elif flag in self.handlers:
                self.handlers[flag](value, mapped, command)
            else:
                mapped.unsupport(flag, value, refusal_of.get(flag, "is not mapped"))
            mapped.origin.update(dict.fromkeys(set(mapped.fields) - before, flag))
        for name, text in command.environment.items():
            if name in self.environment:
                self.environment[name](text, mapped, command)
            elif name.startswith(self.neutral_variables):
                mapped.neutral.append(Remark(name, text, "does not change what is simulated"))
            else:
                mapped.unsupport(name, text, "is a variable whose effect is not simulated")
        return mapped


def without_fields(engine: str) -> dict[str, Any]:
    """Return what `data/ENGINE_flags.toml` says of flags and variables that set no field."""
    text = (
        resources.files("frontier.launch")
        .joinpath("data")
        .joinpath(f"{engine}_flags.toml")
        .read_text("utf-8")
    )
    document = tomllib.loads(text)
    tables = {
        name: {reason: tuple(flags.split()) for reason, flags in document[name].items()}
        for name in ("neutral", "unsupported")
    }
    return {**tables, "neutral_variables": tuple(document["neutral_variables"].split())}


def name_model(value: Any, mapped: Mapped, _command: Command) -> None:
    """Take the model that a command names."""
    if value is not None:
        mapped.fields["model"] = value


def only(allowed: Mapping[Any, Any] | tuple[Any, ...], path: str, flag: str, reason: str) -> Handler:
    """Return a handler for a flag of which only some values are simulated.

    Args:
        allowed: the values, or a mapping from them to the values of the field.
        path: the scenario field.
        flag: the flag's name, for remarks.
        reason: what holds for all other values.
    """

    def handle(value: Any, mapped: Mapped, _command: Command) -> None:
        if value in allowed:
            mapped.fields[path] = allowed[value] if isinstance(allowed, Mapping) else value
        else:
            mapped.unsupport(flag, value, reason)

    return handle


def _is_default(value: Any, default: Any) -> bool:
    if isinstance(default, Mapping) and isinstance(value, Mapping):
        return all(key in default and default[key] == inner for key, inner in value.items())
    return bool(value == default)
