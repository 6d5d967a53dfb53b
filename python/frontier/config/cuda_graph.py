"""CUDA graphs of an engine: which are captured, for how many tokens each.

vLLM 0.11 to 0.32: `vllm/config/compilation.py` (modes), `vllm/config/vllm.py` (sizes),
`vllm/v1/worker/gpu_model_runner.py` (what a mode becomes where the attention backend cannot do it).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal, get_args

from pydantic import BeforeValidator, WithJsonSchema

from frontier.config.base import Section
from frontier.config.fields import Positive, parse_whole
from frontier.errors import Issue, nearest_name, show_value
from frontier.vllm_versions import minor_of

if TYPE_CHECKING:
    from frontier.config.engine import Engine
    from frontier.config.limits import Limits
    from frontier.hardware import GpuSpec
    from frontier.memory.graphs import GraphCapture
    from frontier.models import ModelSpec

Mode = Literal["none", "piecewise", "full", "full_decode_only", "full_and_piecewise"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)
DEFAULT_MODE: Final[Mode] = "full_and_piecewise"

MAX_CAPTURE_TOKENS: Final = 65_536
"""Largest size of a graph that a plan takes."""

Support = Literal["any", "uniform", "one_token", "none"]
"""Batches for which a backend can be part of a full graph: any; those whose requests have equally many
tokens; those with one token per request; none."""
_LEVELS: Final[tuple[Support, ...]] = ("none", "one_token", "uniform", "any")

_SUPPORT: Final[tuple[tuple[str, str, Support], ...]] = (
    # backend, compute capability (as prefix): the first that fits, in vLLM 0.32
    ("FLASH_ATTN", "9.", "any"),
    ("FLASH_ATTN", "", "uniform"),
    ("FLASHINFER", "10.", "uniform"),
    ("FLASHINFER", "", "one_token"),
    ("TRITON_ATTN", "", "any"),
    ("FLASH_ATTN_MLA", "", "uniform"),
    ("TRITON_MLA", "", "uniform"),
    ("FLASHMLA", "", "uniform"),
    ("FLASHMLA_SPARSE", "", "uniform"),
    ("FLASHINFER_MLA", "", "any"),
    ("CUTLASS_MLA", "", "one_token"),
)


def parse_mode(value: object) -> str:
    """Read a mode, in vLLM's capitals or not."""
    name = value.lower() if isinstance(value, str) else value
    if name in MODES:
        return str(name)
    nearest = nearest_name(name, MODES) if isinstance(name, str) else None
    hint = f"; did you mean '{nearest}'?" if nearest else f" (allowed: {', '.join(MODES)})"
    raise ValueError(f"was {show_value(value)}, is not a mode of CUDA graphs{hint}")


def parse_sizes(value: object) -> tuple[int, ...]:
    """Read token counts; order and repetitions do not matter, as in vLLM."""
    if not isinstance(value, list | tuple) or not value:
        form = "a list of token counts, such as [1, 2, 4, 8]; 'mode: none' is an engine without graphs"
        raise ValueError(f"was {show_value(value)}, must be {form}")
    sizes = {parse_whole(size) for size in value}
    wrong = [size for size in sorted(sizes) if not 1 <= size <= MAX_CAPTURE_TOKENS]
    if wrong:
        raise ValueError(f"has {wrong[0]}, must have token counts from 1 to {MAX_CAPTURE_TOKENS}")
    return tuple(sorted(sizes))


_SIZES_SCHEMA: Final = {
    "type": "array",
    "items": {"type": "integer", "minimum": 1, "maximum": MAX_CAPTURE_TOKENS},
    "minItems": 1,
}


class CudaGraph(Section):
    """Captured CUDA graphs. Fields left out follow the engine's version, GPU and attention backend."""

    shorthand: ClassVar[str | None] = "mode"

    mode: Annotated[
        Mode, BeforeValidator(parse_mode), WithJsonSchema({"enum": [*MODES, *map(str.upper, MODES)]})
    ] = DEFAULT_MODE
    """`full` graphs of the whole forward pass, `piecewise` graphs between attention operators;
    `full_and_piecewise`: full for batches that only decode, piecewise for others. What the attention backend
    cannot do is lowered, as vLLM does."""
    capture_sizes: (
        Annotated[tuple[int, ...], BeforeValidator(parse_sizes), WithJsonSchema(_SIZES_SCHEMA)] | None
    ) = None
    """Tokens for which graphs are captured; batches are padded to the next one. Those above
    max_num_batched_tokens are dropped, as vLLM does. Left out, the version's own list."""
    max_capture_size: Positive | None = None
    """Largest of the version's own sizes instead of its rule."""


def full_graph_support(backend: str, compute_capability: str | None, *, version: str) -> Support:
    """Return the batches for which an attention backend can be in a full graph (engine-specific table).

    Read from vLLM 0.32 (`get_cudagraph_support` of `vllm/v1/attention/backends`); Triton's MLA has no full
    graphs up to 0.21, and FlashInfer's MLA is taken to have been uniform before 0.32.
    """
    minor = minor_of(version)
    if backend == "TRITON_MLA" and minor <= 21:
        return "none"
    if backend == "FLASHINFER_MLA" and minor < 32:
        return "uniform"
    capability = compute_capability or "none"
    return next(
        (level for name, prefix, level in _SUPPORT if name == backend and capability.startswith(prefix)),
        "none",
    )


def effective_mode(mode: Mode, support: Support, *, query_tokens: int = 1) -> Mode:
    """Return what a mode becomes with a backend (`_check_and_update_cudagraph_mode`).

    Args:
        mode: the one asked for.
        support: batches for which the backend can be in a full graph.
        query_tokens: tokens of a decoding request in a step, 1 + its drafts.
    """
    level = _LEVELS.index(support)
    if mode == "full" and support != "any":
        mode = "piecewise" if support == "none" else "full_and_piecewise"
    if mode in ("full_decode_only", "full_and_piecewise"):
        needed = "uniform" if query_tokens > 1 else "one_token"
        if level < _LEVELS.index(needed):
            return "piecewise"
    return mode


def graph_capture(
    engine: Engine,
    spec: ModelSpec,
    gpu: GpuSpec,
    limits: Limits,
    *,
    backend: str,
    num_speculative_tokens: int = 0,
) -> GraphCapture:
    """Return the graphs that an engine captures.

    Args:
        engine: the engine section.
        spec: its model.
        gpu: the GPU.
        limits: effective limits of the scheduler.
        backend: vLLM's name of the attention backend.
        num_speculative_tokens: drafts per request and step.
    """
    # keeps `import frontier` light
    from frontier.memory.graphs import GraphCapture, capture_sizes  # noqa: PLC0415
    from frontier.memory.versions import rules_of  # noqa: PLC0415

    section = engine.cuda_graph or CudaGraph()
    query = 1 + num_speculative_tokens
    support = full_graph_support(backend, gpu.compute_capability, version=engine.version)
    mode = effective_mode("none" if engine.enforce_eager else section.mode, support, query_tokens=query)
    if mode == "none":
        return GraphCapture("none", query)
    rules = rules_of(engine.version)
    method = None if engine.speculative is None else engine.speculative.method
    if section.capture_sizes is not None:
        most = limits.max_num_batched_tokens
        sizes = [size for size in section.capture_sizes if size <= most]
    else:
        sizes = capture_sizes(
            limits.max_num_seqs,
            limits.max_num_batched_tokens,
            rules=rules,
            model_type=spec.model_type,
            compute_capability=gpu.compute_capability,
            num_speculative_tokens=num_speculative_tokens,
            method=method,
            dense=not spec.is_moe,
            interactivity=engine.performance_mode == "interactivity",
            max_capture_size=section.max_capture_size,
        )
    second = rules.uses_second_runner(dense=not spec.is_moe, method=method)
    return capture(mode, sizes, query_tokens=query, max_num_seqs=limits.max_num_seqs, rounds_full=second)


def capture(
    mode: Mode, sizes: Sequence[int], *, query_tokens: int, max_num_seqs: int, rounds_full: bool
) -> GraphCapture:
    """Return the graphs of a mode over `sizes`.

    Full decode graphs exist for `query_tokens` <= size <= `max_num_seqs` * `query_tokens`; `rounds_full`
    (the second model runner) rounds only those up to multiples of `query_tokens`, where the first runner has
    rounded all sizes.
    """
    from frontier.memory.graphs import GraphCapture  # noqa: PLC0415

    full = sizes
    if rounds_full:
        full = sorted({-(-size // query_tokens) * query_tokens for size in sizes})
    most = max_num_seqs * query_tokens
    return GraphCapture(
        mode=mode,
        query_tokens=query_tokens,
        full_decode=tuple(size for size in full if query_tokens <= size <= most)
        if mode in ("full_decode_only", "full_and_piecewise")
        else (),
        full=tuple(sizes) if mode == "full" else (),
        piecewise=tuple(sizes) if mode in ("piecewise", "full_and_piecewise", "full") else (),
    )


def cuda_graph_issues(engine: Engine) -> list[Issue]:
    """Return the settings of graphs that have no effect, or that vLLM refuses."""
    section = engine.cuda_graph
    if section is None:
        return []
    issues = []
    if engine.enforce_eager:
        message = "has no effect with enforce_eager, which captures no graphs; remove one of the two"
        issues.append(Issue("engine.cuda_graph", section.model_dump(exclude_none=True), message))
    for field in ("capture_sizes", "max_capture_size"):
        value = getattr(section, field)
        if value is not None and section.mode == "none":
            message = f"was {show_value(value)} without effect: with mode none no graphs are captured"
            issues.append(Issue(f"engine.cuda_graph.{field}", value, message))
    if section.capture_sizes is not None and section.max_capture_size is not None:
        message = "is given beside capture_sizes, whose largest it is; remove one of the two"
        issues.append(Issue("engine.cuda_graph.max_capture_size", section.max_capture_size, message))
    return issues


def capture_size_issues(engine: Engine, limits: Limits | None) -> list[Issue]:
    """Return the issue of sizes of which vLLM would keep none."""
    section = engine.cuda_graph
    if section is None or section.capture_sizes is None or limits is None:
        return []
    least, most = section.capture_sizes[0], limits.max_num_batched_tokens
    if least <= most:
        return []
    message = f"has {least} as its smallest, must have one of at most max_num_batched_tokens ({most})"
    return [Issue("engine.cuda_graph.capture_sizes", list(section.capture_sizes), message)]
