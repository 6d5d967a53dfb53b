"""Speculative decoding: who drafts, how many tokens, and how many of them are accepted.

Names follow vLLM's `speculative_config` (`vllm/config/speculative.py`). No text is simulated, so acceptance
is given as data: rates measured on a real engine, or a trace of counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator, WithJsonSchema, field_validator

from frontier.config.async_scheduling import allows_async
from frontier.config.base import Choice, Section
from frontier.config.fields import U32_MAX, Duration, Reference, Share, parse_whole
from frontier.config.locate import why_no_file
from frontier.config.versions import METHODS_FROM
from frontier.errors import ConfigError, Issue, show_value
from frontier.vllm_versions import minor_of

if TYPE_CHECKING:
    from frontier.config.engine import Engine

MAX_DRAFTS: Final = 1024
LOOKUP_METHODS: Final = ("ngram", "ngram_gpu", "suffix")
"""Methods that look drafts up and may find none."""
NGRAM_METHODS: Final = ("ngram", "ngram_gpu")
MODEL_METHODS: Final = ("draft_model", "eagle", "eagle3")
"""Methods whose drafter is a model or a head with a configuration of its own."""
DEFAULT_PROMPT_LOOKUP: Final = 5

Rows = tuple[tuple[int, ...], ...]


def parse_rows(value: object) -> Rows:
    """Read accepted counts: one list for all requests, or one per request."""
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(
            f"was {show_value(value)}, must be a list of accepted counts, or a list of such lists"
        )
    rows = value if isinstance(value[0], list | tuple) else [value]
    return tuple(_parse_row(row, index) for index, row in enumerate(rows))


def _parse_row(row: object, index: int) -> tuple[int, ...]:
    if not isinstance(row, list | tuple) or not row:
        raise ValueError(f"has {show_value(row)} as row {index}, must be a list of accepted counts")
    for count in row:
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MAX_DRAFTS:
            raise ValueError(
                f"has {show_value(count)} in row {index}, must be whole numbers from 0 to {MAX_DRAFTS}"
            )
    return tuple(row)


def parse_acceptance_trace(value: object) -> str | Rows:
    """Read a path, or accepted counts."""
    if isinstance(value, str) and value.strip():
        return value
    return parse_rows(value)


def write_acceptance_trace(value: str | Rows | None) -> str | list[list[int]] | None:
    """Write a path, or lists of accepted counts."""
    return value if value is None or isinstance(value, str) else [list(row) for row in value]


_COUNTS: Final[dict[str, Any]] = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "integer", "minimum": 0, "maximum": MAX_DRAFTS},
}


class Acceptance(Choice):
    """How many drafts of a step are accepted."""

    shorthand: ClassVar[str | None] = "rate"

    rate: Share | None = None
    """Each draft is accepted with this probability if all before it were."""
    per_position: Annotated[tuple[Share, ...], Field(min_length=1, max_length=MAX_DRAFTS)] | None = None
    """Entry i is the share of steps in which draft i was accepted, as vLLM's metrics report it; one entry per
    draft, none higher than the one before."""
    trace: (
        Annotated[
            str | Rows,
            PlainValidator(parse_acceptance_trace),
            PlainSerializer(write_acceptance_trace),
            WithJsonSchema(
                {
                    "anyOf": [
                        {"type": "string", "minLength": 1},
                        _COUNTS,
                        {"type": "array", "minItems": 1, "items": _COUNTS},
                    ]
                }
            ),
        ]
        | None
    ) = None
    """Accepted drafts step by step: a list for all requests, or one list per request, which start over when
    they end; or the path of a JSON file with one of the two. Request i takes list i modulo their number."""

    @field_validator("per_position")
    @classmethod
    def _not_rising(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        for index, (before, after) in enumerate(zip(value or (), (value or ())[1:], strict=False)):
            if after > before:
                raise ValueError(
                    f"rises from {before:g} to {after:g} at entry {index + 1}; a draft counts as accepted"
                    " only with all before it, so entries do not rise"
                )
        return value


class Speculative(Section):
    """Speculative decoding, under vLLM's names."""

    method: Literal["ngram", "ngram_gpu", "suffix", "draft_model", "medusa", "eagle", "eagle3", "mtp"]
    """Who drafts."""
    num_speculative_tokens: Annotated[int, Field(ge=1, le=MAX_DRAFTS), BeforeValidator(parse_whole)]
    """Drafts per request and step."""
    model: Reference | None = None
    """The draft model (draft_model), whose vocabulary must be the target's, or the head (eagle, eagle3), as
    the scenario's `model`. A head left out is shaped as the target's last layer, in 16 bits; targets with
    experts need one."""
    acceptance: Acceptance
    """How many drafts are accepted."""
    match_rate: Share | None = None
    """Share of the steps in which a lookup finds drafts (ngram, ngram_gpu and suffix, which need it)."""
    prompt_lookup_min: Annotated[int, Field(ge=1, le=U32_MAX), BeforeValidator(parse_whole)] | None = None
    """Fewest tokens that a lookup must match (ngram, ngram_gpu): a shorter request has no drafts. Left out,
    prompt_lookup_max."""
    prompt_lookup_max: Annotated[int, Field(ge=1, le=U32_MAX), BeforeValidator(parse_whole)] | None = None
    """Most tokens that a lookup matches; stands for prompt_lookup_min where that is left out. Left out, 5."""

    cpu_per_step: Duration | None = None
    """Host time of drafting per step, between sampling and the next step; nothing hides it. Left out, 1 ns
    per token of context for ngram and none for the others; suffix needs it."""

    @property
    def lookup_range(self) -> tuple[int, int]:
        """Fewest and most tokens that a lookup matches, with vLLM's defaults."""
        return self.least_lookup, self.prompt_lookup_max or self.least_lookup

    @property
    def least_lookup(self) -> int:
        """Tokens that a lookup must match, with vLLM's defaults."""
        return self.prompt_lookup_min or self.prompt_lookup_max or DEFAULT_PROMPT_LOOKUP


def speculative_issues(engine: Engine, known: Callable[..., bool]) -> list[Issue]:
    """Return what is wrong with speculative decoding in a version, needing no model."""
    at, given = "engine.speculative", engine.speculative
    if given is None or not known(at):
        return []
    method = given.method
    issues = []

    def refuse(field: str, value: object, message: str) -> None:
        issues.append(Issue(f"{at}.{field}", value, message))

    if known("engine.version"):
        first, version = METHODS_FROM.get(method, 0), engine.version
        if minor_of(version) < first:
            message = f"was {method!r}, but vLLM {version} has no such method (from 0.{first} on)"
            refuse("method", method, message)
        elif (
            engine.async_scheduling
            and known("engine.async_scheduling")
            and not allows_async(minor_of(version), method)
        ):
            message = f"was true, but vLLM {version} schedules {method} synchronously; remove it"
            issues.append(Issue("engine.async_scheduling", True, message))
    if method == "draft_model" and given.model is None:
        refuse("model", None, "is missing: draft_model needs the model that drafts")
    if method not in MODEL_METHODS and given.model is not None:
        message = f"has no effect with {method}, only with {', '.join(MODEL_METHODS)}; remove it"
        refuse("model", given.model, message)
    if method in LOOKUP_METHODS and given.match_rate is None:
        refuse("match_rate", None, f"is missing: {method} needs the share of steps in which it finds drafts")
    if method not in LOOKUP_METHODS and given.match_rate is not None:
        message = f"has no effect with {method}, only with {', '.join(LOOKUP_METHODS)}; remove it"
        refuse("match_rate", given.match_rate, message)
    for field in ("prompt_lookup_min", "prompt_lookup_max"):
        value = getattr(given, field)
        if value is not None and method not in NGRAM_METHODS:
            refuse(
                field, value, f"has no effect with {method}, only with {', '.join(NGRAM_METHODS)}; remove it"
            )
    least, most = given.prompt_lookup_min, given.prompt_lookup_max
    if least is not None and most is not None and least > most:
        refuse("prompt_lookup_min", least, f"was {least}, must be at most prompt_lookup_max ({most})")
    return issues + _acceptance_issues(given)


def _acceptance_issues(given: Speculative) -> list[Issue]:
    at, drafts = "engine.speculative.acceptance", given.num_speculative_tokens
    rates, trace = given.acceptance.per_position, given.acceptance.trace
    if rates is not None and len(rates) != drafts:
        message = f"has {len(rates)} entries, must have one per draft (num_speculative_tokens is {drafts})"
        return [Issue(f"{at}.per_position", rates, message)]
    if isinstance(trace, str):
        why = why_no_file(Path(trace).expanduser())
        return [Issue(f"{at}.trace", trace, f"was {show_value(trace)}, {why}")] if why else []
    most = max((count for row in trace or () for count in row), default=0)
    if most > drafts:
        message = f"has {most}, must be at most num_speculative_tokens ({drafts})"
        return [Issue(f"{at}.trace", most, message)]
    return []


def speculative_plan(engine: Engine, *, seed: int, replication: int) -> dict[str, Any] | None:
    """Return the plan's speculative decoding.

    Raises:
        ConfigError: the file of an acceptance trace is damaged.
    """
    given = engine.speculative
    if given is None:
        return None
    draft_length: dict[str, Any] = {"kind": "full"}
    if given.match_rate is not None:
        least = (
            given.least_lookup + 1 if given.method in NGRAM_METHODS else 0
        )  # the match lies before the end
        draft_length = {"kind": "match", "rate": given.match_rate, "min_context_tokens": least}
    return {
        "method": given.method,
        "num_speculative_tokens": given.num_speculative_tokens,
        "draft_length": draft_length,
        "acceptance": _acceptance_plan(given),
        "seed": seed,
        "replication": replication,
    }


def _acceptance_plan(given: Speculative) -> dict[str, Any]:
    acceptance = given.acceptance
    if acceptance.rate is not None:
        return {"kind": "rate", "rate": acceptance.rate}
    if acceptance.per_position is not None:
        return {"kind": "per_position", "rates": list(acceptance.per_position)}
    assert acceptance.trace is not None
    rows = acceptance.trace
    if isinstance(rows, str):
        rows = _read_rows(rows, given.num_speculative_tokens)
    return {"kind": "trace", "rows": [list(row) for row in rows]}


def _read_rows(path: str, drafts: int) -> Rows:
    at = "engine.speculative.acceptance.trace"
    try:
        rows = parse_rows(json.loads(Path(path).expanduser().read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise ConfigError(Issue(at, path, f"of {show_value(path)} {error}")) from None
    most = max(count for row in rows for count in row)
    if most > drafts:
        message = f"of {show_value(path)} has {most}, must be at most num_speculative_tokens ({drafts})"
        raise ConfigError(Issue(at, path, message))
    return rows


def mean_tokens_per_step(given: Speculative) -> float:
    """Return the tokens that a decoding request gets per step: one, and its accepted drafts on average."""
    acceptance = given.acceptance
    if acceptance.rate is not None:
        accepted = sum(acceptance.rate**count for count in range(1, given.num_speculative_tokens + 1))
    elif acceptance.per_position is not None:
        accepted = sum(acceptance.per_position)
    else:
        rows = _acceptance_plan(given)["rows"]
        accepted = sum(sum(row) / len(row) for row in rows) / len(rows)
    return 1.0 + accepted * (1.0 if given.match_rate is None else given.match_rate)
