"""SGLang's own settings under the names of its server arguments (`sglang/srt/server_args.py`, 0.5.3)."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from frontier import units
from frontier.config.base import Section
from frontier.config.fields import U32_MAX, Flag, Number, Positive, Tokens, parse_whole
from frontier.errors import show_value

SGLANG_VERSIONS: Final = ("0.5.3",)
"""Versions of SGLang whose rules are modelled. Rules change with patch numbers: there is no nearest one."""

NO_CHUNKS: Final = -1
"""The `chunked_prefill_size` that computes every prompt in one step."""

DEFAULT_PREEMPTION_THRESHOLD: Final = 10


def parse_chunked_prefill_size(value: object) -> int:
    """Read a number of tokens, or -1."""
    if value == NO_CHUNKS and not isinstance(value, bool):
        return NO_CHUNKS
    tokens = units.parse_count(value)
    if not 1 <= tokens <= U32_MAX:
        raise ValueError(f"was {show_value(value)}, must be -1 (no chunks) or a number of tokens")
    return tokens


def parse_page_size(value: object) -> int:
    """Read the only page size that is modelled."""
    if parse_whole(value) != 1:
        raise ValueError(f"was {show_value(value)}, pages of several tokens are not modelled (allowed: 1)")
    return 1


def parse_mem_fraction_static(value: object) -> float:
    """Read a share between 0 and 1, neither included."""
    share = units.parse_share(value)
    if not 0 < share < 1:
        raise ValueError(f"was {show_value(value)}, must be between 0 and 1")
    return share


_SHARE_SCHEMA: Final[dict[str, Any]] = {
    "anyOf": [
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        {"type": "string", "pattern": r"^\s*[0-9.]+\s*%\s*$"},
    ]
}
_CHUNK_SCHEMA: Final[dict[str, Any]] = {
    "anyOf": [{"const": NO_CHUNKS}, {"type": "integer", "minimum": 1}, {"type": "string"}]
}


class Sglang(Section):
    """Settings of an SGLang engine. Fields left out follow `sglang.launch_server` of the version named."""

    context_length: Tokens | None = None
    """Longest prompt + output; left out, the model's."""
    mem_fraction_static: (
        Annotated[float, BeforeValidator(parse_mem_fraction_static), WithJsonSchema(_SHARE_SCHEMA)] | None
    ) = None
    """Share of the GPU's memory for weights and KV pool; left out, SGLang's formula."""
    max_total_tokens: Tokens | None = None
    """Fewer KV slots than fit in memory."""
    page_size: Annotated[
        int, Field(ge=1, le=1), BeforeValidator(parse_page_size), WithJsonSchema({"const": 1})
    ] = 1
    """Tokens per page of the KV pool."""
    max_running_requests: Positive | None = None
    """Most requests that hold KV; left out, what follows from the pool."""
    chunked_prefill_size: (
        Annotated[int, BeforeValidator(parse_chunked_prefill_size), WithJsonSchema(_CHUNK_SCHEMA)] | None
    ) = None
    """Most prompt tokens of a step; -1 does not split prompts; left out, SGLang's default for the GPU."""
    max_prefill_tokens: Tokens = 16384
    """Prompt tokens after which no further request joins a step."""
    cuda_graph_max_bs: Positive | None = None
    """Largest batch of decodes with a CUDA graph, for which memory is set aside; left out, SGLang's default
    for the GPU."""
    schedule_policy: Literal["fcfs", "lpm", "dfs-weight", "lof"] = "fcfs"
    """Order of the waiting queue: first come first served, longest prefix match, depth first over the radix
    tree, longest output."""
    schedule_conservativeness: Number = 1.0
    """Scales how much of their output running requests are expected to need when others are admitted."""
    disable_radix_cache: Flag = False
    """Keep nothing for requests with the same prefix."""
    radix_eviction_policy: Literal["lru", "lfu"] | None = None
    """Order in which cached content goes; left out, lru, which lfu equals in 0.5.3."""
    enable_mixed_chunk: Flag = False
    """Let running requests decode in the steps that compute prompts."""
    disable_overlap_schedule: Flag = False
    """Schedule a step only when the one before is done."""
    enable_priority_scheduling: Flag = False
    """Serve requests by priority, and preempt running ones for others of higher priority."""
    priority_scheduling_preemption_threshold: (
        Annotated[int, Field(ge=0, le=U32_MAX), BeforeValidator(parse_whole)] | None
    ) = None
    """By how much a priority must exceed that of a running request to preempt it; left out, 10."""
    schedule_low_priority_values_first: Flag = False
    """Lower values are served first, instead of higher ones."""
    num_reserved_decode_tokens: (
        Annotated[int, Field(ge=0, le=U32_MAX), BeforeValidator(parse_whole)] | None
    ) = None
    """KV slots that a decode server keeps for the output of every request that it has or lets in; left out,
    512."""
    disaggregation_decode_polling_interval: Positive | None = None
    """Turns of its loop in which a decode server looks once for requests and KV that came; left out, 1."""
