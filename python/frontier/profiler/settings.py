"""What a profile was started with, kept beside its journal so that it is never resumed as something else."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from frontier.errors import ConfigError, Issue, nearest_name
from frontier.profiler.device import DeviceFacts
from frontier.profiler.grid import FAMILIES, Grid
from frontier.profiler.measure import Policy
from frontier.profiler.plan import Limits
from frontier.profiler.shapes import DEFAULT_MODELS, DEFAULT_RANKS

DTYPES: Final = ("bf16", "fp16", "fp8")
FORMAT: Final = "frontier-profile"
VERSION: Final = 1
"""Of the manifest, which `frontier.training.sources.profiler` reads, and of the settings file."""
FILE: Final = "settings.json"

_MAY_DIFFER = ("families",)
"""Families do not influence each other, so that a profile may be extended by more of them."""


@dataclass(frozen=True)
class Settings:
    """What is measured, and how.

    Attributes:
        gpu: name under which packs will know the GPU.
        families: families of operators, as in `frontier.profiler.grid.FAMILIES`.
        models: model presets or files whose shapes are measured.
        ranks: tensor-parallel sizes that they are cut over.
        dtypes: types of arithmetic, of `DTYPES`.
        seed: of all draws.
        launch_s: longest launch that is measured.
        policy: noise control.
        grid: sizes.
    """

    gpu: str
    families: tuple[str, ...] = FAMILIES
    models: tuple[str, ...] = DEFAULT_MODELS
    ranks: tuple[int, ...] = DEFAULT_RANKS
    dtypes: tuple[str, ...] = ("bf16",)
    seed: int = 0
    launch_s: float = 1.0
    policy: Policy = field(default_factory=Policy)
    grid: Grid = field(default_factory=Grid)

    def __post_init__(self) -> None:
        issues = [
            Issue(name, value, f"was {value!r}", allowed, nearest_name(value, allowed))
            for name, values, allowed in (
                ("families", self.families, FAMILIES),
                ("dtypes", self.dtypes, DTYPES),
            )
            for value in values
            if value not in allowed
        ]
        issues += [
            Issue(name, (), "is empty")
            for name in ("families", "models", "ranks", "dtypes")
            if not getattr(self, name)
        ]
        if self.launch_s <= 0:
            issues.append(Issue("launch_s", self.launch_s, f"was {self.launch_s}, must be positive"))
        if not self.gpu:
            issues.append(Issue("gpu", self.gpu, "is empty"))
        if issues:
            raise ConfigError(issues)

    def limits(self, facts: DeviceFacts) -> Limits:
        """Return what a device can hold and do, as the plan takes it: nine tenths of its memory."""
        return Limits(
            memory_bytes=facts.memory_bytes * 9 // 10,
            launch_s=self.launch_s,
            flops_per_s=facts.flops_per_s,
            bytes_per_s=facts.bytes_per_s,
            graphs=facts.graphs,
        )


def settle(directory: Path, settings: Settings, facts: DeviceFacts) -> Limits:
    """Write what a new profile is made with, or check that an old one was made with the same.

    Returns the limits of the plan: those of the first start, since rates are measured and never come out the
    same twice, and the plan must.

    Raises:
        ConfigError: the directory holds a profile made with other settings, on another device or with other
            versions (every difference is listed), or something else.
    """
    path = directory / FILE
    now = _identity(settings, facts)
    if not path.exists():
        if any(directory.iterdir()):
            raise ConfigError(f"{directory} is not empty and holds no profile; choose another directory")
        limits = settings.limits(facts)
        content = {"format": FORMAT, "format_version": VERSION, "settings": now, "limits": asdict(limits)}
        write_json(path, content)
        return limits
    started = _read(path)
    before = started["settings"]
    issues = []
    for name in sorted({*before, *now} - {*_MAY_DIFFER}):
        new, old = now.get(name), before.get(name)
        if new != old:
            message = f"was {_shown(new)}, but the profile was started with {_shown(old)}"
            issues.append(Issue(name, new, message))
    if issues:
        raise ConfigError(issues, source=str(path))
    return Limits(**started["limits"])


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a document so that it appears whole or not at all."""
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n", "utf-8")
    os.replace(draft, path)


def as_json(settings: Settings) -> dict[str, Any]:
    """Return settings as JSON holds them."""
    normal: dict[str, Any] = json.loads(json.dumps(asdict(settings), allow_nan=False))
    return normal


def _identity(settings: Settings, facts: DeviceFacts) -> dict[str, Any]:
    return {
        **as_json(settings),
        "device": facts.kind,
        "device_name": facts.name,
        "backend": facts.backend,
        "version": facts.version,
        "measurement": facts.measurement,
        "versions": dict(facts.versions),
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
        known = content["format"] == FORMAT and content["format_version"] == VERSION
        complete = isinstance(content["settings"], dict) and isinstance(content["limits"], dict)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    if not (known and complete):
        raise ConfigError(f"{path}: is no {FORMAT} of version {VERSION}")
    result: dict[str, Any] = content
    return result


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."
