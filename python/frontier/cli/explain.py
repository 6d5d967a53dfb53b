"""`frontier explain`: what a prefill step and a decode step cost, operator by operator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from frontier.cli import output
from frontier.cli.options import json_option, scenario_argument, set_option

if TYPE_CHECKING:
    from frontier.afd_stations import Stations
    from frontier.explanation import Explanation, OperatorCost, StepCost

_COLUMNS = ("operator", "count", "time", "share", "bound by", "bound", "ratio", "provenance", "predictor")


@click.command(short_help="Explain what a step costs, operator by operator.")
@scenario_argument
@set_option
@click.option("--prefill", type=int, metavar="N", help="Tokens of the prompt that the prefill step computes.")
@click.option("--decode", type=int, metavar="BATCH", help="Requests of the decode step.")
@click.option("--context", type=int, metavar="N", help="Tokens of each of them after the step.")
@click.option("--cluster", metavar="NAME", help="One cluster of several; left out, each in turn.")
@json_option
def explain(
    *,
    scenario: str,
    cluster: str | None,
    overrides: tuple[str, ...],
    prefill: int | None,
    decode: int | None,
    context: int | None,
    as_json: bool,
) -> None:
    """Explain what a prefill step and a decode step of SCENARIO cost, without simulating it.

    For each operator: its time and share, what bounds it, its bound, their ratio, what the time rests on
    (measured, interpolated, extrapolated, unmeasured) and which predictor says so. Left out, the steps are
    typical of the scenario: its mean prompt, and about as many requests as it keeps in flight.
    """
    from frontier.config import load  # noqa: PLC0415 - slow to import
    from frontier.explanation import explain as explanation_of  # noqa: PLC0415 - slow to import

    chosen = load(scenario, overrides=overrides)
    names = [view.name for view in chosen.views() if view.has_requests] if cluster is None else [cluster]
    found = {
        name: explanation_of(chosen, prefill=prefill, decode=decode, context=context, cluster=name)
        for name in names
    }
    if as_json:
        (first, *others) = (each.to_dict() for each in found.values())
        several = {"clusters": dict(zip(names, (first, *others), strict=True))}
        output.print_json(several if others else first)
        return
    for name, each in found.items():
        if len(found) > 1:
            output.print_text(f"cluster {name}")
        _print(each)
        if len(found) > 1:
            click.echo()


def _print(found: Explanation) -> None:
    gpus = f"{found.gpus_per_replica} x {found.gpu}" if found.gpus_per_replica > 1 else found.gpu
    output.print_text(f"{found.model} on {gpus} (step time: {found.step_time})")
    numbers = {used["id"]: f"[{index}]" for index, used in enumerate(found.predictors, 1)}
    for step in (found.prefill, found.decode):
        click.echo()
        _print_step(step, numbers)
    if numbers:
        click.echo("\npredictors")
        for identity, number in numbers.items():
            output.print_text(f"  {number} {identity}")
    if found.notes:
        click.echo()
    for note in found.notes:
        output.print_text(f"note: {note}")


def _print_step(step: StepCost, numbers: dict[str, str]) -> None:
    from frontier.results.layout import format_seconds  # noqa: PLC0415 - imports numpy
    from frontier.results.trust import line  # noqa: PLC0415 - imports numpy

    output.print_text(f"{step.what}: {format_seconds(step.total_s)}")
    if not step.operators:
        return
    several = len(step.stages_s) > 1
    names: tuple[str, ...] = ("stage", *_COLUMNS) if several else _COLUMNS
    rows = [_row(each, numbers) for each in step.operators if each.seconds > 0]
    if several:
        stages = [str(each.stage) for each in step.operators if each.seconds > 0]
        rows = [(stage, *row) for stage, row in zip(stages, rows, strict=True)]
    if not numbers:
        names, rows = names[:-1], [row[:-1] for row in rows]
    output.print_table(names, rows, left=2 if several else 1)
    if step.stations is not None:
        output.print_text(_stations(step.stations))
    output.print_text(_launched(step))
    if step.draft_s > 0:
        output.print_text(f"drafting for the next step takes {format_seconds(step.draft_s)} of it")
    host = f"; it waits for the host for {format_seconds(step.host_s)}" if step.host_s > 0 else ""
    output.print_text(f"{line(step.shares, of=f'GPU {format_seconds(step.gpu_s)}')}{host}")


def _stations(found: Stations) -> str:
    from frontier.results.layout import format_seconds  # noqa: PLC0415 - imports numpy

    names = ("attention_s", "a2f_s", "ffn_s", "f2a_s")
    words = ("attention", "to the FFN", "FFN", "back")
    each = ", ".join(
        f"{word} {format_seconds(getattr(found, name))}" for word, name in zip(words, names, strict=True)
    )
    return (
        f"a micro-batch in a layer: {each}; {found.micro_batches} of them ({found.least_micro_batches} hide"
        f" transfers) in {found.layers} layers take {format_seconds(found.iteration_s)} by the closed form,"
        f" bound by {found.bound}"
    )


def _launched(step: StepCost) -> str:
    from frontier.results.layout import format_seconds  # noqa: PLC0415 - imports numpy

    how = {
        "full": f"one CUDA graph of {step.padded_tokens:,} rows",
        "piecewise": f"piecewise CUDA graphs of {step.padded_tokens:,} rows",
        "eager": f"no CUDA graph, {step.padded_tokens:,} rows",
    }[step.graph]
    padding = f" for {step.tokens:,} tokens ({step.padding:.1%} padding)" if step.padding > 0 else ""
    return f"{how}{padding}; launches take the host {format_seconds(step.launch_s)}"


def _row(operator: OperatorCost, numbers: dict[str, str]) -> tuple[str, ...]:
    from frontier.results.layout import format_seconds  # noqa: PLC0415 - imports numpy

    return (
        operator.operator,
        str(operator.count),
        format_seconds(operator.seconds),
        f"{operator.share:.1%}",
        operator.bound,
        format_seconds(operator.bound_s),
        "-" if operator.ratio is None else f"{operator.ratio:.2f}",
        operator.provenance,
        " ".join(numbers[identity] for identity in operator.predictors) or "-",
    )
