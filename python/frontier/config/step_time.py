"""How long a step takes: learned predictors, a roofline, or constants of the user's own."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from frontier import units
from frontier.config.base import Choice, Section
from frontier.config.fields import Duration, Text, parse_text
from frontier.errors import nearest_name, show_value

PREDICTED_OPERATORS: Final = (
    "gemm",
    "prefill_attention",
    "decode_attention",
    "mixed_attention",
    "fused_moe",
    "rms_norm",
    "rope",
    "activation",
    "kv_write",
    "embedding",
    "quant_fp8",
    "moe_gating",
    "moe_permute",
    "sampler",
    "all_reduce",
    "all_gather",
    "reduce_scatter",
    "all_to_all",
    "send_recv",
    "moe_dispatch",
    "moe_combine",
)
"""Operators whose learned predictors take a factor of the user's own (`decode_skew` is itself a factor)."""

MAX_CALIBRATION: Final = 100.0
"""Factors beyond this, or below its inverse, are taken for mistakes."""


def parse_calibration(value: object) -> dict[str, float]:
    """Read factors by operator."""
    if not isinstance(value, dict) or not value:
        form = "a mapping of operators to factors, such as {gemm: 1.05}"
        raise ValueError(f"was {show_value(value)}, must be {form}")
    return {
        name: _factor(name, factor) for name, factor in sorted(value.items(), key=lambda item: str(item[0]))
    }


def _factor(name: object, value: object) -> float:
    def refuse(message: str) -> PydanticCustomError:
        return PydanticCustomError("section", "{message}", {"message": message, "below": (str(name),)})

    if name not in PREDICTED_OPERATORS:
        nearest = nearest_name(name, PREDICTED_OPERATORS)
        hint = f"; did you mean '{nearest}'?" if nearest else f" (allowed: {', '.join(PREDICTED_OPERATORS)})"
        raise refuse(f"is not an operator with predictors{hint}")
    try:
        factor = units.parse_number(value)
    except ValueError as error:
        raise refuse(str(error)) from None
    if not 1 / MAX_CALIBRATION <= factor <= MAX_CALIBRATION:
        raise refuse(
            f"was {show_value(value)}, must be a factor from {1 / MAX_CALIBRATION:g} to {MAX_CALIBRATION:g}"
        )
    return factor


_CALIBRATION_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "minProperties": 1,
    "propertyNames": {"enum": list(PREDICTED_OPERATORS)},
    "additionalProperties": {"type": "number", "minimum": 1 / MAX_CALIBRATION, "maximum": MAX_CALIBRATION},
}


_VERSION_SCHEMA: Final[dict[str, Any]] = {"type": "string", "pattern": r"^v?[0-9]"}


def parse_backend_version(value: object) -> str:
    """Read a version as its publisher writes it."""
    if not isinstance(value, str) or not re.match(r"v?[0-9]", value):
        raise ValueError(f"was {show_value(value)}, must be a version as text, such as '0.24'")
    return parse_text(value).removeprefix("v")


def parse_pack(value: object) -> str:
    """Read the path of a pack."""
    return parse_text(os.fspath(value) if isinstance(value, os.PathLike) else value)


def parse_packs(value: object) -> object:
    """Refuse a list of packs that names none."""
    if isinstance(value, list | tuple) and not value:
        raise ValueError("is an empty list; leave it out to use the packs that come with frontier")
    return value


Packs = Annotated[
    tuple[Annotated[str, BeforeValidator(parse_pack)], ...],
    BeforeValidator(parse_packs),
    WithJsonSchema({"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1}),
]


class RooflineStepTime(Section):
    """Step time from the model's operators, each bounded by compute, memory or network."""


class LearnedStepTime(Section):
    """Step time from the model's operators, each by a predictor that was trained on measured times.

    Operators without one are bounded as in a roofline; results say how much of the time that is.
    """

    packs: Packs | None = None
    """Files of predictors (`frontier train` writes them), in order of preference; left out, those that come
    with frontier for the GPU."""
    backend: Literal["auto", "vllm", "sglang", "trtllm"] = "auto"
    """Whose kernels: `auto` is the engine's own, and the next best where they were not measured."""
    version: (
        Annotated[str, BeforeValidator(parse_backend_version), WithJsonSchema(_VERSION_SCHEMA)] | None
    ) = None
    """Version of that backend whose kernels are meant, or the nearest that was measured; left out, the
    engine's own where that was measured, else the latest that was."""
    calibration: (
        Annotated[dict[str, float], BeforeValidator(parse_calibration), WithJsonSchema(_CALIBRATION_SCHEMA)]
        | None
    ) = None
    """Factors on predicted times, by operator: your own measured time / frontier's."""


class LinearStepTime(Section):
    """Step time linear in the counts of the batch, with constants of your own."""

    per_step: Duration = 0
    """Per step."""
    per_prefill_token: Duration = 0
    """Per scheduled token of an unfinished prompt."""
    per_decode_token: Duration = 0
    """Per decode token."""
    per_seq: Duration = 0
    """Per scheduled request."""
    per_kv_token: Duration = 0
    """Per token of context after the step, summed over requests."""


class TablesStepTime(Section):
    """Step time read from tables of your own: operators by tokens, attention by two keys."""

    shorthand: ClassVar[str | None] = "path"

    path: Text
    """A JSON file with `tokens_s` (seconds by scheduled tokens, from 1), `decode` and `prefill` (each with
    the columns `first`, `second` and `time_s`), `kv_granularity` and `prefill_batching_factor`; all layers
    summed. Decodes are keyed by requests and mean context, prefills by tokens before the chunk and the root
    of the sum of squared chunks. A batch whose cell is not there ends the run."""


class StepTime(Choice):
    """How long a step takes."""

    learned: LearnedStepTime | None = None
    """Predicted from measured operator times."""
    roofline: RooflineStepTime | None = None
    """Computed from the model and the GPU alone: a transparent bound."""
    linear: LinearStepTime | None = None
    """Your own constants."""
    tables: TablesStepTime | None = None
    """Your own tables."""

    @property
    def knows_operators(self) -> bool:
        """Whether times are made operator by operator, from the model and the GPU."""
        return self.linear is None and self.tables is None
