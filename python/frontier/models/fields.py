"""Read typed keys of a Hugging Face configuration, collecting every problem."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from frontier.errors import ConfigError, Issue, nearest_name, show_value

MAX_COUNT = 2**31 - 1
"""Largest whole number accepted for any size or count; far above every real model."""


class Fields:
    """A configuration being read. Problems gather in `issues`; a bad key yields a harmless stand-in."""

    def __init__(self, config: Mapping[str, Any], prefix: str = "") -> None:
        self.config = config
        self.prefix = prefix
        self.issues: list[Issue] = []

    def problem(
        self,
        key: str,
        message: str,
        *,
        value: object = None,
        allowed: tuple[str, ...] = (),
        nearest: str | None = None,
    ) -> None:
        """Note a problem with `key`."""
        path = f"{self.prefix}{key}"
        self.issues.append(Issue(path=path, value=value, message=message, allowed=allowed, nearest=nearest))

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.config.get(key) is not None

    def whole(self, *keys: str, default: int | None = None, minimum: int = 1) -> int:
        """Read a whole number >= `minimum` from the first of `keys` that is there."""
        key = next((k for k in keys if self.has(k)), None)
        if key is None:
            if default is not None:
                return default
            near = nearest_name(keys[0], (str(k) for k in self.config if k not in keys))
            other = f" (or {', '.join(keys[1:])})" if len(keys) > 1 else ""
            self.problem(keys[0], f"is missing{other}; a whole number >= {minimum} is needed", nearest=near)
            return max(minimum, 1)
        value = self.config[key]
        if isinstance(value, bool) or not isinstance(value, int):
            self.problem(key, f"was {show_value(value)}; a whole number >= {minimum} is needed", value=value)
        elif not minimum <= value <= MAX_COUNT:
            self.problem(
                key, f"was {value}; a whole number from {minimum} to {MAX_COUNT} is needed", value=value
            )
        else:
            return value
        return max(minimum, 1)

    def optional_whole(self, key: str, *, minimum: int = 1) -> int | None:
        """Read a whole number, or None where the key is missing or null."""
        return self.whole(key, minimum=minimum) if self.has(key) else None

    def flag(self, key: str, *, default: bool) -> bool:
        """Read true or false."""
        if not self.has(key):
            return default
        value = self.config[key]
        if not isinstance(value, bool):
            self.problem(key, f"was {show_value(value)}; true or false is needed", value=value)
            return default
        return value

    def text(self, key: str, *, default: str, allowed: tuple[str, ...]) -> str:
        """Read one of `allowed`."""
        value = self.config.get(key)
        if value is None:
            return default
        if value not in allowed:
            near = nearest_name(value, allowed)
            message = f"was {show_value(value)}"
            self.problem(key, message, value=value, allowed=allowed, nearest=near)
            return default
        return str(value)

    def must_divide(self, divisor_key: str, divisor: int, key: str, dividend: int) -> None:
        """Note a problem unless `divisor` divides `dividend`, or one of them is a stand-in."""
        broken = {issue.path.removeprefix(self.prefix) for issue in self.issues}
        if dividend % divisor and not {divisor_key, key} & broken:
            message = f"was {divisor}, which does not divide {key} ({dividend})"
            self.problem(divisor_key, message, value=divisor)

    def per_layer(self, key: str, num_layers: int, allowed: tuple[str, ...]) -> list[str] | None:
        """Read a list with one of `allowed` per layer; None where the key is missing.

        A list longer than the stack is cut: checkpoints with prediction layers name those too.
        """
        value = self.config.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) < num_layers:
            got = f"a list of {len(value)}" if isinstance(value, list) else show_value(value)
            message = f"was {got}; one entry for each of the {num_layers} layers is needed"
            self.problem(key, message, value=value)
            return None
        value = value[:num_layers]
        unknown = sorted({str(v) for v in value if v not in allowed})
        for name in unknown:
            self.problem(
                key,
                f"has '{name}', which is not modelled",
                value=name,
                allowed=allowed,
                nearest=nearest_name(name, allowed),
            )
        return None if unknown else [str(v) for v in value]

    def layer_set(self, key: str, num_layers: int) -> set[int] | None:
        """Read indices of layers, from a list or a comma-separated text; None where the key is missing."""
        value = self.config.get(key)
        if value is None:
            return None
        items = value.split(",") if isinstance(value, str) else value
        try:
            indices = {_layer_index(i) for i in items}
        except (TypeError, ValueError):
            self.problem(key, f"was {show_value(value)}; a list of layer indices is needed", value=value)
            return None
        outside = sorted(i for i in indices if i < 0)
        if outside:
            self.problem(key, f"has the layer index {outside[0]}; the first layer is 0", value=value)
        return {i for i in indices if 0 <= i < num_layers}

    def finish(self, source: str) -> None:
        """Raise all problems found so far, if any.

        Raises:
            ConfigError: with every problem noted.
        """
        if self.issues:
            raise ConfigError(self.issues, source=source)


def _layer_index(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"was {show_value(value)}, must be the index of a layer")
    return int(value)
