"""The command line: `frontier run`, `check`, `explain`, `kv-cache`, `examples`, `models`, `gpus`, ...

Every command converts its options, calls the Python API and prints. Figures go to the standard output: as
text, of 80 columns where it is no terminal, or with `--json` as one document. Errors and progress go to the
standard error; with `--json` errors are documents too:
`{"error": {"type", "message", "exit_code", "source", "issues": [...]}}`.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | the simulation ended with an error (deadlock, livelock, engine failure ...) or could not be written |
| 2 | usage: an unknown command or option, or a value that the option does not take |
| 3 | the scenario, trace, model, GPU or pack is not valid; all problems are listed |
| 4 | the configuration is valid but does not fit in the GPU's memory (`run` and `check`) |
| 130 | interrupted (Ctrl-C) |

`frontier --help` imports neither numpy nor polars, pydantic or rich: commands import what they need when they
run.
"""

from __future__ import annotations

import gc
import os

import click

from frontier.cli.advise_afd import advise_afd
from frontier.cli.check import check
from frontier.cli.examples import examples
from frontier.cli.exits import EXIT_CODES
from frontier.cli.explain import explain
from frontier.cli.gpus import gpus
from frontier.cli.group import Cli
from frontier.cli.kv_cache import kv_cache
from frontier.cli.launch import from_command, to_command
from frontier.cli.models import models
from frontier.cli.profile import profile
from frontier.cli.run import run
from frontier.cli.schema import schema
from frontier.cli.train import train
from frontier.cli.validate import validate

__all__ = ["main"]

_EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES.items())


def _print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    import frontier  # noqa: PLC0415 - loads the extension module

    click.echo(f"frontier {frontier.__version__}")
    ctx.exit()


@click.group(
    cls=Cli,
    sections={
        "Simulate": (run, check, explain, advise_afd, kv_cache, examples),
        "Look up": (models, gpus, schema),
        "Launch": (from_command, to_command),
        "Measure": (profile, train, validate),
    },
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def main() -> None:
    """Simulate large-language-model serving before renting the GPUs.

    Start with `frontier run azure-2023-conv`, or `frontier examples` for scenarios to begin from.
    """
    # Nothing here multiplies matrices; numpy's idle BLAS threads would only burn processor time.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Plugins of pydantic are looked for in the metadata of every installed package, and none concerns us.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # A command makes few reference cycles; looking for them during imports takes a fifteenth of the main job.
    gc.set_threshold(100_000)
