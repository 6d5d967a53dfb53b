"""From the operators of a model to those of a plan, each with the learned predictors that price it.

Which predictor suits an operator is chosen in `frontier.predictors.select`; here its answers become the
plan's references and the list of predictors that goes beside the plan. Packs are opened, and predictors loaded,
once per process: the scenarios of a sweep share them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from frontier import _frontier
    from frontier.config.engine import Engine
    from frontier.hardware import GpuSpec
    from frontier.models import Operator


@dataclass(frozen=True, slots=True)
class Attached:
    """The operators of a plan, and the predictors that they refer to.

    Attributes:
        stages: the plan's operators, one list per pipeline stage.
        predictors: by index, as the simulator takes them; shared with other scenarios, never changed.
        identities: `id` and `sha256` of each of them, in the same order.
        notes: what a reader of the results should know of the choice.
    """

    stages: list[list[dict[str, Any]]]
    predictors: tuple[_frontier.Predictor, ...] = ()
    identities: tuple[dict[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def attach(stages: Sequence[Sequence[Operator]], gpu: GpuSpec, engine: Engine) -> Attached:
    """Return the plan's operators of all pipeline stages with the predictors that the engine's step time asks for."""
    return Attached([[operator.to_plan() for operator in stage] for stage in stages])
