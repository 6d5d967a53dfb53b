"""Parameters of a model, counted from the weights of its operator program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from frontier.models.program import operator_program
from frontier.models.spec import ModelSpec
from frontier.models.weights import COMPONENTS


@dataclass(frozen=True, slots=True)
class ParameterCounts:
    """Parameters without quantisation scales and without prediction (MTP) layers.

    Attributes:
        total: all parameters; a tied LM head counts once.
        active: those that one token meets: all but the routed experts it is not sent to. The embedding table
            counts whole, as in DeepSeek's and Qwen's model cards (gpt-oss's leaves it out).
        by_component: `total` per part: embedding, attention, dense_ffn, routed_experts, shared_experts,
            router, norm, lm_head.
    """

    total: int
    active: int
    by_component: Mapping[str, int]


def parameter_counts(spec: ModelSpec) -> ParameterCounts:
    """Count the parameters of a model, exactly."""
    program = operator_program(spec, tensor_parallel_size=1)
    parts = dict.fromkeys(COMPONENTS, 0)
    for operator in program:
        if operator.weights:
            parts[operator.component] += operator.weight_elements
    active = sum(operator.active_elements for operator in program)
    return ParameterCounts(sum(parts.values()), active, MappingProxyType(parts))
