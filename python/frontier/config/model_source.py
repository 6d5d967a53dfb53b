"""The model section: a preset name, a path, or a mapping that may build on either."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from frontier.config.base import BASE_KEY
from frontier.config.document import read_text
from frontier.errors import ConfigError, Issue, nearest_name, show_value
from frontier.models import ModelSpec, load_model, model_names


def load_model_section(source: str | Mapping[str, Any]) -> ModelSpec:
    """Load the model of a scenario.

    A mapping holds the keys of a Hugging Face config.json. Its key `config` names a preset or a path whose
    keys the others replace: `{config: llama-3.1-8b, num_hidden_layers: 16}`.

    Raises:
        ConfigError: the model cannot be loaded; paths of issues begin with `model`.
    """
    try:
        if isinstance(source, Mapping) and BASE_KEY in source:
            return _load_changed(source)
        return load_model(source)
    except ConfigError as error:
        raise ConfigError([_under_model(issue, source, error.source) for issue in error.issues]) from None


class _Watched(dict[str, Any]):
    """A configuration that knows which of its keys were asked for."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.asked: set[object] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked.add(key)
        return super().__contains__(key)


def _load_changed(source: Mapping[str, Any]) -> ModelSpec:
    """Load a configuration with keys replaced; a replacement that nothing asks for is refused."""
    try:
        base = _base(source[BASE_KEY])
    except ConfigError as error:
        raise ConfigError(
            [_under_base(issue, source[BASE_KEY], error.source) for issue in error.issues]
        ) from None
    changes = {key: value for key, value in source.items() if key != BASE_KEY}
    config = _Watched({**base, **changes})
    spec = load_model(config)
    names = sorted({str(key) for key in config.asked} | set(base))
    issues = [
        Issue(
            key,
            value,
            f"has no effect on a {spec.model_type} model; remove it",
            nearest=nearest_name(key, names),
        )
        for key, value in changes.items()
        if key not in config.asked
    ]
    if issues:
        raise ConfigError(issues)
    return spec


def _under_base(issue: Issue, source: object, origin: str | None) -> Issue:
    """Return an issue of the configuration that others build on."""
    if issue.path in ("", "model", BASE_KEY):
        where = f"{origin} " if origin and not issue.path else ""
        return Issue(BASE_KEY, source, f"{where}{issue.message}", issue.allowed, issue.nearest)
    return Issue(BASE_KEY, source, f"{issue.path} of {origin}: {issue.message}", issue.allowed, issue.nearest)


def _base(source: object) -> dict[str, Any]:
    if isinstance(source, Mapping):
        return dict(source)
    if not isinstance(source, str):
        raise ConfigError(
            Issue(BASE_KEY, source, f"was {show_value(source)}, must be a preset name or a path")
        )
    name = load_model(source).name  # resolves aliases, and reports what is wrong with a path
    if name in model_names() and not Path(source).exists():
        text = resources.files("frontier.models").joinpath("presets", f"{name}.json").read_text("utf-8")
    else:
        path = Path(source)
        text = read_text(path / "config.json" if path.is_dir() else path, what="model configuration")
    base: dict[str, Any] = json.loads(text)
    return base


def _under_model(issue: Issue, source: object, origin: str | None) -> Issue:
    """Return an issue of the model reader with its place in the scenario."""
    if issue.path in ("", "model"):
        where = f"{origin} " if origin and not issue.path else ""
        return Issue("model", source, f"{where}{issue.message}", issue.allowed, issue.nearest)
    if isinstance(source, Mapping):
        return Issue(f"model.{issue.path}", issue.value, issue.message, issue.allowed, issue.nearest)
    return Issue("model", source, f"{issue.path} of {origin}: {issue.message}", issue.allowed, issue.nearest)
