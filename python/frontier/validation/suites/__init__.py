"""The suites, one module each."""

from __future__ import annotations

from typing import Final

from frontier.errors import ConfigError, Issue, nearest_name
from frontier.validation.case import Suite
from frontier.validation.suites.vllm_replay import VLLM_REPLAY

SUITES: Final[dict[str, Suite]] = {each.name: each for each in (VLLM_REPLAY,)}
"""All suites by name."""


def suite(name: str) -> Suite:
    """Return a suite.

    Raises:
        ConfigError: there is none of this name.
    """
    if name in SUITES:
        return SUITES[name]
    message = f"was '{name}', is no suite"
    raise ConfigError(Issue("suite", name, message, tuple(SUITES), nearest=nearest_name(name, SUITES)))
