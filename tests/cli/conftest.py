"""The command line run in this process, and a scenario that takes milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from frontier.cli import main

SMALL = """\
name: small
model: qwen3-0.6b
hardware: h100
engine:
  max_model_len: 4096
  step_time: roofline
workload:
  synthetic:
    arrivals: {constant: {rate: 20/s}}
    num_requests: 60
    prompt_tokens: 100
    output_tokens: 5
objectives:
  ttft: 1s
"""


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Return a function that runs `frontier ARGUMENTS...` and never raises but for defects."""
    for variable in ("COLUMNS", "FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(variable, raising=False)

    def run(*arguments: object) -> Result:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Return the file of a small scenario, in a directory of its own."""
    path = tmp_path / "small.yaml"
    path.write_text(SMALL, "utf-8")
    return path
