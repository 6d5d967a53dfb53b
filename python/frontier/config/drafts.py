"""What drafting of a scenario computes: the draft model or head, and its program on the last stage.

Which tokens are accepted is in `frontier.config.speculative`; what drafting costs follows from the draft.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from frontier.config.model_source import load_model_section
from frontier.config.quantization import attends_in_fp8, quantized_model
from frontier.config.speculative import MODEL_METHODS
from frontier.errors import ConfigError, Issue, show_value

if TYPE_CHECKING:
    from frontier.config.engine import Engine
    from frontier.hardware import GpuSpec
    from frontier.models import Layout, ModelSpec, Operator
    from frontier.models.draft import DraftHostCost, DraftProgram

AT = "engine.speculative"


def draft_of(
    engine: Engine,
    target: ModelSpec,
    gpu: GpuSpec,
    layout: Layout,
    *,
    max_model_len: int,
    known: Callable[..., bool],
    issues: list[Issue],
) -> DraftProgram | None:
    """Return what drafting computes, None without drafts, or where something is wrong with them.

    Args:
        engine: the engine section.
        target: the model whose tokens are drafted, as the engine holds it.
        gpu: the GPU of every rank.
        layout: how the target is spread.
        max_model_len: tokens of the longest request.
        known: tells whether none of the paths named is broken.
        issues: takes what is wrong.
    """
    given = engine.speculative
    named = any(issue.path.startswith(AT) for issue in issues)
    if given is None or named or not known(AT, "engine.dtype", "engine.kv_cache_dtype", "engine.step_time"):
        return None
    from frontier.models.draft import draft_program  # noqa: PLC0415 - keeps `import frontier` light
    from frontier.models.kv import resolve_kv_cache_dtype  # noqa: PLC0415

    try:
        draft = None if given.model is None else _draft_model(engine, target, gpu)
        program = draft_program(
            given.method,
            given.num_speculative_tokens,
            target,
            layout,
            draft=draft,
            kv_cache_dtype=engine.kv_cache_dtype,
            fp8_attention=attends_in_fp8(gpu, resolve_kv_cache_dtype(target, engine.kv_cache_dtype)),
            prompt_lookup=given.lookup_range,
            max_model_len=max_model_len,
            host=_host(engine),
        )
    except ConfigError as error:
        issues += error.issues
        return None
    if engine.step_time.knows_operators:
        issues += _dtype_issues(engine, gpu, program)
    return program


def stages_with_drafts(
    stages: tuple[tuple[Operator, ...], ...], draft: DraftProgram | None
) -> tuple[tuple[Operator, ...], ...]:
    """Return a step's operators with what verifying drafts adds to the last stage."""
    if draft is None:
        return stages
    return (*stages[:-1], (*stages[-1], *draft.verification))


def draft_cost_issues(engine: Engine, known: Callable[..., bool]) -> list[Issue]:
    """Return what is wrong with the host's time of drafting."""
    given, at = engine.speculative, f"{AT}.cpu_per_step"
    if given is None or not known(at, f"{AT}.method", "engine.step_time"):
        return []
    free, value = not engine.step_time.knows_operators, given.cpu_per_step
    if free and value is not None:
        message = "has no effect with step times of your own, in which drafting takes no time; remove it"
        return [Issue(at, value, message)]
    if not free and value is None and given.method == "suffix":
        message = "is missing: suffix needs the host's time to search, of which no measurement is published"
        return [Issue(at, None, message)]
    return []


def draft_warnings(engine: Engine) -> list[str]:
    """Return what a reader of results with drafts should know."""
    if engine.speculative is None or engine.step_time.knows_operators:
        return []
    return [f"{AT}: drafting takes no time with step times of your own; its memory is counted"]


def draft_model_issues(engine: Engine, target: ModelSpec, known: Callable[..., bool]) -> list[Issue]:
    """Return what is wrong with the draft: it cannot be loaded, or its vocabulary is another."""
    at, given = f"{AT}.model", engine.speculative
    takes = given is not None and given.method in MODEL_METHODS
    if given is None or given.model is None or not takes or not known(at):
        return []
    try:
        draft = load_model_section(given.model)
    except ConfigError as error:
        return [
            Issue(f"{AT}.{issue.path}", issue.value, issue.message, issue.allowed, issue.nearest)
            for issue in error.issues
        ]
    if given.method == "draft_model" and draft.vocab_size != target.vocab_size:
        message = (
            f"was {show_value(given.model)}, whose vocabulary of {draft.vocab_size} tokens is not that of"
            f" {target.name} ({target.vocab_size})"
        )
        return [Issue(at, given.model, message)]
    return []


def _draft_model(engine: Engine, target: ModelSpec, gpu: GpuSpec) -> ModelSpec:
    """Return the draft with the types of the run: the engine's dtype, its own quantisation.

    Raises:
        ConfigError: its checkpoint cannot run on the GPU.
    """
    assert engine.speculative is not None
    source = engine.speculative.model
    assert source is not None
    draft = replace(load_model_section(source), dtype=target.dtype)
    draft, found = quantized_model(draft, None, version=engine.version, gpu=gpu)
    if found:
        raise ConfigError([Issue(f"{AT}.model", source, issue.message) for issue in found])
    return draft


def _host(engine: Engine) -> DraftHostCost | None:
    """Return what the host does; None for the search that is the method's own."""
    from frontier.models.draft import DraftHostCost  # noqa: PLC0415 - keeps `import frontier` light

    given = engine.speculative
    assert given is not None
    if given.cpu_per_step is not None:
        return DraftHostCost(per_step_s=given.cpu_per_step / 1e9)
    # Suffix without it has step times of the user, which do not ask.
    return DraftHostCost() if given.method == "suffix" else None


def _dtype_issues(engine: Engine, gpu: GpuSpec, program: DraftProgram) -> list[Issue]:
    from frontier.models.program import required_dtypes  # noqa: PLC0415 - keeps `import frontier` light

    assert engine.speculative is not None
    dtypes = dict.fromkeys(dtype for operators in program.lists for dtype in required_dtypes(operators))
    given = engine.speculative.model
    path, value = (f"{AT}.method", engine.speculative.method) if given is None else (f"{AT}.model", given)
    return [
        Issue(path, value, f"drafts in {dtype}, for which {gpu.name} has no peak rate")
        for dtype in gpu.unsupported_dtypes(dtypes)
    ]
