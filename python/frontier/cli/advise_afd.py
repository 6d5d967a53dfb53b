"""`frontier advise-afd`: how many attention ranks to how many FFN ranks."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from frontier.cli import output
from frontier.cli.options import json_option, scenario_argument, set_option

if TYPE_CHECKING:
    from frontier.afd_advisor import AfdAdvice, AfdChoice
    from frontier.afd_lowering import AfdLayout


@click.command("advise-afd", short_help="Say how many attention ranks to how many FFN ranks.")
@scenario_argument
@set_option
@click.option("--cluster", metavar="NAME", help="One of several attention clusters.")
@click.option("--attention-ranks", metavar="N,N,...", help="Numbers to try; left out, around its own.")
@click.option("--ffn-ranks", metavar="N,N,...", help="Numbers to try; left out, around its own.")
@click.option("--micro-batches", metavar="N,N,...", help="Numbers to try; left out, 1 to 4.")
@click.option("--context", type=int, metavar="N", help="Tokens of each request; left out, typical ones.")
@click.option("--tpot", metavar="TIME", help="Longest step; left out, objectives.tpot.")
@click.option("--max-gpus", type=int, metavar="N", help="Most GPUs of a unit, both sides.")
@click.option("--top", type=int, default=12, show_default=True, metavar="N", help="Layouts to show.")
@json_option
def advise_afd(
    *,
    scenario: str,
    overrides: tuple[str, ...],
    cluster: str | None,
    attention_ranks: str | None,
    ffn_ranks: str | None,
    micro_batches: str | None,
    context: int | None,
    tpot: str | None,
    max_gpus: int | None,
    top: int,
    as_json: bool,
) -> None:
    """Compare layouts of the attention and FFN ranks of SCENARIO, without simulating it.

    Each gets the largest decode batch that keeps the limit on TPOT; the one with most tokens per second and
    GPU comes first. Where units serve whole requests, steps compute prompts as well, as many as keep up.
    """
    from frontier.afd_advice import advise_afd as advice_of  # noqa: PLC0415 - slow to import
    from frontier.config import load  # noqa: PLC0415 - slow to import

    found = advice_of(
        load(scenario, overrides=overrides),
        cluster=cluster,
        attention_ranks=_numbers("--attention-ranks", attention_ranks),
        ffn_ranks=_numbers("--ffn-ranks", ffn_ranks),
        micro_batches=_numbers("--micro-batches", micro_batches),
        context=context,
        tpot_s=None if tpot is None else _seconds(tpot),
        max_gpus=max_gpus,
    )
    if as_json:
        output.print_json(_document(found))
        return
    rows = [_row(choice) for choice in found.choices[:top]]
    names = ("A x TP", "F x TP", "m", "GPUs", "batch", "step", "Ta", "Te", "Tc", "tok/s/GPU", "tok/USD")
    output.print_table((*names, "bound by"), rows, left=0)
    rest = len(found.choices) - len(rows)
    if rest > 0:
        output.print_text(f"{rest} more keep the limit")
    for layouts, why in (
        (found.infeasible, "take longer than the limit with one request per rank"),
        (found.too_large, "do not fit into the memory of FFN ranks"),
    ):
        if layouts:
            output.print_text(f"{len(layouts)} {why}: {', '.join(dict.fromkeys(map(_name, layouts)))}")
    for note in found.notes:
        output.print_text(f"note: {note}")


def _numbers(option: str, text: str | None) -> list[int] | None:
    from frontier.errors import ConfigError, Issue  # noqa: PLC0415

    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ConfigError(Issue(option, text, f"was '{text}', must be numbers such as 4,8,16"))
    return [int(part) for part in parts]


def _seconds(text: str) -> float:
    from frontier import units  # noqa: PLC0415
    from frontier.errors import ConfigError, Issue  # noqa: PLC0415

    try:
        return units.parse_duration_ns(text) / 1e9
    except ValueError as error:
        raise ConfigError(Issue("--tpot", text, str(error))) from None


def _name(layout: AfdLayout) -> str:
    return f"{layout.attention_ranks}:{layout.ffn_ranks}"


def _row(choice: AfdChoice) -> tuple[str, ...]:
    from frontier.results.layout import format_seconds  # noqa: PLC0415 - imports numpy

    layout = choice.layout
    return (
        f"{layout.attention_ranks} x {layout.attention_tensor_parallel_size}",
        f"{layout.ffn_ranks} x {layout.ffn_tensor_parallel_size}",
        str(layout.micro_batches),
        str(layout.gpus),
        f"{choice.requests_per_rank:,}",
        format_seconds(choice.step_s),
        format_seconds(choice.attention_s),
        format_seconds(choice.ffn_s),
        format_seconds(choice.transfer_s),
        f"{choice.tokens_per_s_per_gpu:,.0f}",
        "-" if choice.tokens_per_usd is None else f"{choice.tokens_per_usd:,.0f}",
        choice.bound,
    )


def _document(found: AfdAdvice) -> dict[str, Any]:
    return {
        "choices": [
            {**asdict(choice), "balance": choice.balance, "hides_transfers": choice.hides_transfers}
            for choice in found.choices
        ],
        "infeasible": [asdict(layout) for layout in found.infeasible],
        "too_large": [asdict(layout) for layout in found.too_large],
        "notes": list(found.notes),
    }
