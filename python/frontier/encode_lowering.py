"""Encode clusters made ready to run: the images of a trace, known when it is loaded, and calibrations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from frontier.config.clusters import is_given
from frontier.config.encode import ENCODE, encoder_budget
from frontier.config.engine import Engine
from frontier.errors import ConfigError, Issue

if TYPE_CHECKING:
    from frontier.config import Scenario
    from frontier.config.views import ClusterView
    from frontier.workloads import LoadedTrace


def suit_encoders(
    scenario: Scenario, clusters: Sequence[tuple[ClusterView, dict[str, Any]]], columns: LoadedTrace
) -> None:
    """Check the images of a trace, and give encoders the budget and the cache that the largest one needs.

    The memory that this takes was planned for `max_num_batched_tokens` alone.

    Args:
        scenario: whose trace it is.
        clusters: its clusters with their parts of the plan, which may be changed.
        columns: the trace.

    Raises:
        ConfigError: images without a cluster that encodes or the other way round, or more embeddings than the
            prompt has tokens.
    """
    encoders = [(view, plan) for view, plan in clusters if view.role == ENCODE]
    tokens = columns.encoder_tokens
    largest = 0 if tokens is None else int(tokens.max())
    if not encoders:
        if largest and not scenario.is_part:
            message = "has encoder_tokens, which need a cluster with the role encode"
            raise ConfigError(Issue("workload.trace", None, message))
        return
    if tokens is None or largest == 0:
        message = "has no encoder_tokens, so that no request has anything to encode"
        raise ConfigError(Issue("workload.trace.columns.encoder_tokens", None, message))
    for view, plan in encoders:
        tower = view.facts.model.vision
        assert tower is not None
        short = np.flatnonzero(-(-tokens.astype(np.int64) // tower.merge) > columns.prompt_tokens)
        if len(short):
            row = int(short[0])
            message = (
                f"was {int(tokens[row])} in row {row + 1}, of which the model makes"
                f" {math.ceil(int(tokens[row]) / tower.merge)} of the prompt's tokens, but it has"
                f" {int(columns.prompt_tokens[row])}"
            )
            raise ConfigError(Issue("workload.trace.columns.encoder_tokens", int(tokens[row]), message))
        scheduler = plan["scheduler"]
        budget = encoder_budget(scheduler["max_num_batched_tokens"], largest)
        plan["scheduler"] = scheduler | {
            "max_model_len": largest + 1,
            "max_num_batched_tokens": budget,
            "num_blocks": max(scheduler["num_blocks"], math.ceil(budget / tower.merge) + 1),
        }


def engine_of_tower(view: ClusterView) -> Engine:
    """Return a cluster's engine; of one that encodes, with common calibrations that suit its tower."""
    engine = view.scenario.engine
    learned = engine.step_time.learned
    if view.role != ENCODE or learned is None or not learned.calibration:
        return engine
    if view.own is not None and is_given(view.own.engine, Engine, "step_time"):
        return engine
    families = {family for each in view.facts.program for family in each.predictor_families.values()}
    kept = {family: factor for family, factor in learned.calibration.items() if family in families}
    learned = learned.model_copy(update={"calibration": kept or None})
    return engine.model_copy(update={"step_time": engine.step_time.model_copy(update={"learned": learned})})
