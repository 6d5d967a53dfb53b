"""The recipe: which packs are built, and from which measurements (`frontier/profiles/recipe.yaml`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import frontier
from frontier.errors import ConfigError, Issue, nearest_name
from frontier.predictors.select import version_order
from frontier.training.identity import EXCHANGES, Identity
from frontier.training.measurements import Measurements, concat

SOURCES = ("aiconfigurator", "llmservingsim", "vidur", "profiler")
_FIELDS = ("gpu", "sources", "optional", "only", "leave_out")
_MATCH = ("backend", "kernel", "measurement", "operator", "dtype", "sms")


@dataclass(frozen=True)
class PackRecipe:
    """One pack.

    Attributes:
        name: of the file, without its ending.
        gpu: preset whose measurements go in; "generic" pools all GPUs.
        sources: names of `SOURCES`.
        optional: not part of the package: built when asked for.
        only: if not empty, what an identity has to match (one of them).
        leave_out: what it must not match. A match is a mapping of identity fields to values or lists of them.
    """

    name: str
    gpu: str
    sources: tuple[str, ...]
    optional: bool
    only: tuple[Mapping[str, Any], ...]
    leave_out: tuple[Mapping[str, Any], ...]

    def takes(self, identity: Identity) -> bool:
        """Return whether rows of this identity go into the pack."""
        if self.only and not any(_matches(identity, match) for match in self.only):
            return False
        return not any(_matches(identity, match) for match in self.leave_out)


def _matches(identity: Identity, match: Mapping[str, Any]) -> bool:
    for name, wanted in match.items():
        value = identity.facts.get(name) if name == "sms" else getattr(identity, name)
        if value not in (wanted if isinstance(wanted, list) else [wanted]):
            return False
    return True


def default_recipe() -> Path:
    """Return the recipe that comes with frontier.

    Raises:
        ConfigError: there is none beside the package.
    """
    path = Path(frontier.__file__).parent / "profiles" / "recipe.yaml"
    if path.is_file():
        return path
    raise ConfigError(Issue("recipe", None, "no recipe comes with this installation; name one with --recipe"))


def load_recipe(path: Path) -> tuple[PackRecipe, ...]:
    """Read a recipe.

    Raises:
        ConfigError: it cannot be read, or names a field, source or match that is not known.
    """
    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(Issue("recipe", str(path), f"cannot be read: {error}"), source=str(path)) from error
    packs = document.get("packs") if isinstance(document, dict) else None
    if not isinstance(packs, dict) or not packs:
        raise ConfigError(Issue("packs", packs, "must be a mapping of names to packs"), source=str(path))
    common = document.get("leave_out", [])
    return tuple(_pack(name, entry, common, str(path)) for name, entry in packs.items())


def _pack(name: str, entry: Any, common: list[Any], source: str) -> PackRecipe:
    place = f"packs.{name}"
    if not isinstance(entry, dict):
        raise ConfigError(Issue(place, entry, "must be a mapping", _FIELDS), source=source)
    issues = _unknown(place, entry, _FIELDS)
    sources = entry.get("sources", [])
    for wanted in sources:
        issues += _unknown(f"{place}.sources", [wanted], SOURCES)
    matches = {
        key: [*entry.get(key, []), *(common if key == "leave_out" else [])] for key in ("only", "leave_out")
    }
    for key, found in matches.items():
        for match in found:
            issues += _unknown(f"{place}.{key}", match, _MATCH)
    if not sources:
        issues.append(Issue(f"{place}.sources", sources, "must name at least one source", SOURCES))
    if issues:
        raise ConfigError(issues, source=source)
    return PackRecipe(
        name,
        entry.get("gpu", name),
        tuple(sources),
        bool(entry.get("optional", False)),
        tuple(matches["only"]),
        tuple(matches["leave_out"]),
    )


def _unknown(place: str, given: Iterable[Any], allowed: tuple[str, ...]) -> list[Issue]:
    return [
        Issue(place, name, f"{name!r} is not known", allowed, nearest_name(name, allowed))
        for name in given
        if name not in allowed
    ]


def newest(found: Iterable[Measurements]) -> list[Measurements]:
    """Return the measurements without those that a newer version of the same identity replaces.

    Measurements of one identity, version included, are put together: a GPU may be profiled twice. Exchanges
    keep every version: they differ in nodes and widths, not in quality.
    """
    best: dict[tuple[Any, ...], list[Measurements]] = {}
    for measurements in found:
        identity = measurements.identity
        key: tuple[Any, ...] = (
            identity.gpu,
            identity.backend,
            identity.kernel,
            identity.measurement,
            identity.operator,
            identity.dtype,
            identity.detail,
            identity.version if identity.operator in EXCHANGES else "",
        )
        known = best.get(key)
        # Versions that sort alike ("1.0", "1.0-x") are told apart by their text.
        if known is None or _age(known[0]) < _age(measurements):
            best[key] = [measurements]
        elif known[0].identity == identity:
            known.append(measurements)
    return sorted((concat(parts) for parts in best.values()), key=lambda each: each.identity)


def _age(measurements: Measurements) -> tuple[Any, ...]:
    version = measurements.identity.version
    return version_order(version), version
