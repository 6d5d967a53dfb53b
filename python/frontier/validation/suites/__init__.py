"""The suites, one module each."""

from __future__ import annotations

from typing import Final

from frontier.errors import ConfigError, Issue, nearest_name
from frontier.validation.case import Suite
from frontier.validation.suites.afd_papers import AFD_PAPERS
from frontier.validation.suites.gptoss_h200 import GPTOSS_H200
from frontier.validation.suites.h200_e2e import H200_E2E
from frontier.validation.suites.inferencex_slo import INFERENCEX_SLO
from frontier.validation.suites.open_loop_h100 import OPEN_LOOP_H100
from frontier.validation.suites.pdd_h200 import PDD_H200
from frontier.validation.suites.silicon_disagg import SILICON_DISAGG
from frontier.validation.suites.static_batch import STATIC_BATCH
from frontier.validation.suites.trtllm_throughput import TRTLLM_THROUGHPUT
from frontier.validation.suites.vllm_replay import VLLM_REPLAY
from frontier.validation.suites.wide_ep import WIDE_EP

_ALL: Final = (
    VLLM_REPLAY, OPEN_LOOP_H100, GPTOSS_H200, INFERENCEX_SLO, STATIC_BATCH, TRTLLM_THROUGHPUT,
    H200_E2E, PDD_H200, SILICON_DISAGG, AFD_PAPERS, WIDE_EP,
)  # fmt: skip
SUITES: Final[dict[str, Suite]] = {each.name: each for each in _ALL}
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
