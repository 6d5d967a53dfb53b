"""The workload section: a trace, or arrivals and lengths drawn from distributions."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from frontier.config.arrivals import Arrivals
from frontier.config.base import Choice, Section
from frontier.config.fields import (
    U32_MAX,
    Positive,
    PositiveDuration,
    Share,
    parse_whole,
)
from frontier.config.lengths import Length
from frontier.config.models_served import parse_shares
from frontier.config.trace import MAX_REQUESTS, Trace
from frontier.units import parse_number

_SHARES_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "minProperties": 2,
    "additionalProperties": {"type": ["number", "string"], "exclusiveMinimum": 0},
    "examples": [{"llama-3.1-8b": 0.7, "llama-3.1-70b": 0.3}],
}


class SharedPrefix(Section):
    """Prefixes that requests share."""

    count: Positive
    """Number of distinct prefixes."""
    tokens: Length
    """Length of each."""
    zipf_exponent: Annotated[float, Field(ge=0, le=100), BeforeValidator(parse_number)] = 0.0
    """Popularity of prefix i is proportional to 1 / (i + 1)^exponent; 0 is uniform."""
    share: Share = 1.0
    """Share of requests that begin with a prefix."""


class Encoder(Section):
    """What comes with prompts to be encoded before: an image for a vision tower."""

    tokens: Length
    """Tokens of the tower that a request brings: patches, of one image. Its prompt has to include their
    embeddings, which are fewer (of Qwen2.5-VL, one for four patches)."""
    share: Share = 1.0
    """Share of requests that bring something."""


class Synthetic(Section):
    """Requests drawn from distributions. At least one of num_requests and duration is given."""

    arrivals: Arrivals
    """When requests arrive."""
    num_requests: Annotated[int, Field(ge=1, le=MAX_REQUESTS), BeforeValidator(parse_whole)] | None = None
    """Stop after this many requests."""
    duration: PositiveDuration | None = None
    """Stop before the first arrival later than this."""
    prompt_tokens: Length
    """Prompt lengths, shared prefix not included."""
    output_tokens: Length
    """Output lengths."""
    shared_prefix: SharedPrefix | None = None
    """Prefixes that requests share, if any."""
    encoder: Encoder | None = None
    """Images that requests bring, for clusters that encode; left out, none."""
    sessions: Positive | None = None
    """Number of sessions that requests are drawn into; left out, no sessions."""
    max_priority: Annotated[int, Field(ge=0, le=2**31 - 1), BeforeValidator(parse_whole)] = 0
    """Priorities are drawn from 0 ... this (lower is served first)."""
    models: (
        Annotated[dict[str, float], BeforeValidator(parse_shares), WithJsonSchema(_SHARES_SCHEMA)] | None
    ) = None
    """Share of the requests for each model, relative to the others, where clusters serve several; lengths are
    the same for all of them."""

    @model_validator(mode="after")
    def _ends(self) -> Synthetic:
        arrivals = self.arrivals
        if self.num_requests is None and self.duration is None:
            raise ValueError("needs num_requests or duration, so that the run ends")
        if self.num_requests is None and arrivals.burst is not None:
            raise ValueError("burst arrivals need num_requests: a duration does not end them")
        mean = arrivals.mean_arrivals(self.duration) if self.duration and self.num_requests is None else None
        if mean is not None and mean > MAX_REQUESTS:
            raise ValueError(
                f"{mean:.3g} requests are to be expected in the duration, must be at most {MAX_REQUESTS};"
                " shorten it or give num_requests"
            )
        prefix = self.shared_prefix.tokens.bounds()[1] if self.shared_prefix else 0
        most = prefix + self.prompt_tokens.bounds()[1] + self.output_tokens.bounds()[1]
        if most > U32_MAX:
            raise ValueError(
                f"a request may have {most} tokens of prompt and output, must have at most {U32_MAX}"
            )
        piecewise = arrivals.piecewise
        if self.duration is None and piecewise and not piecewise.repeat and piecewise.segments[-1].rate == 0:
            raise ValueError("the last rate of the piecewise arrivals is 0 for ever; set repeat or duration")
        return self


class Workload(Choice):
    """Where requests come from."""

    trace: Trace | None = None
    """Rows of a recorded trace."""
    synthetic: Synthetic | None = None
    """Requests drawn from distributions."""
