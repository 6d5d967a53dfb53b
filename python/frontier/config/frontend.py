"""The API servers in front of an engine: what lies between a client and the engine's queue.

Stages of `vllm serve` (0.11 to 0.32): an API server is one event loop that accepts a request, applies the
chat template, tokenises, and hands it to the engine; after each step it detokenises and streams what its
requests got. It does one thing at a time. Costs depend on the host and the tokenizer, so none are assumed:
left out, they are 0.
For orientation: tokenising 256 K tokens takes vLLM a few hundred ms (1 to 2 us per token, vllm-project/vllm
pull request 10635); short chat prompts were measured at about 10 us per token, template included
(tenstorrent/tt-inference-server issue 2173); a measured TTFT of 49 ms had 2.7 ms of ingress, 2.0 ms of
response and 5.2 ms at the client (ai-dynamo/aisimulate issue 288).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BeforeValidator, Field

from frontier.config.base import Section
from frontier.config.fields import Duration, Flag, parse_whole
from frontier.errors import Issue
from frontier.units import format_duration

if TYPE_CHECKING:
    from frontier.config.engine import Engine

MAX_API_SERVERS: Final = 4096
MAX_COST_NS: Final = 3_600_000_000_000
_COSTS: Final = (
    *("network", "per_request", "per_prompt_token"),
    *("per_message", "per_output", "per_output_token"),
)


class Frontend(Section):
    """API servers of each replica. They delay delivery, never steps."""

    api_server_count: Annotated[int, Field(ge=1, le=MAX_API_SERVERS), BeforeValidator(parse_whole)] = 1
    """API servers of a replica (`--api-server-count`); the one that is free first accepts a request."""
    separate_detokenizer: Flag = False
    """Output is processed beside input, by a process of its own (SGLang), not in turn with it (vLLM)."""
    network: Duration = 0
    """From the client to the API server, and the same back."""
    per_request: Duration = 0
    """Accepting a request: HTTP, validation, chat template, the message to the engine."""
    per_prompt_token: Duration = 0
    """Tokenising, per token of the prompt."""
    per_message: Duration = 0
    """Handling the outputs of a step, once per API server with requests in it."""
    per_output: Duration = 0
    """Detokenising and streaming, per request and step."""
    per_output_token: Duration = 0
    """The same per token."""

    def to_plan(self) -> dict[str, Any]:
        """Return the plan's form."""
        return {
            "api_servers": self.api_server_count,
            "separate_detokenizer": self.separate_detokenizer,
            **{f"{name}_ns": getattr(self, name) for name in _COSTS},
        }


def frontend_issues(engine: Engine) -> list[Issue]:
    """Return the settings of API servers that have no effect, or that no plan takes."""
    section = engine.frontend
    if section is None:
        return []
    issues = []
    for name in _COSTS:
        cost = getattr(section, name)
        if cost > MAX_COST_NS:
            shown = format_duration(cost)
            message = f"was {shown}, must be at most {format_duration(MAX_COST_NS)}"
            issues.append(Issue(f"engine.frontend.{name}", shown, message))
    working = [name for name in _COSTS if name != "network" and getattr(section, name)]
    if not working and not section.network:
        message = "has no costs, so it would change nothing; set one of " + ", ".join(_COSTS)
        issues.append(Issue("engine.frontend", section.model_dump(), message))
    elif not working and section.api_server_count > 1:
        message = "has no effect on servers that take no time; set one of the costs per request or output"
        issues.append(Issue("engine.frontend.api_server_count", section.api_server_count, message))
    if section.separate_detokenizer and not any(name.startswith(("per_m", "per_o")) for name in working):
        message = "was true without effect: output takes no time; set per_message or per_output"
        issues.append(Issue("engine.frontend.separate_detokenizer", True, message))
    return issues
