"""Help, version, and what importing the command costs."""

import json
import subprocess
import sys

import pytest

import frontier
from frontier.cli.exits import EXIT_CODES

COMMANDS = ("run", "check", "kv-cache", "examples", "models", "gpus", "schema")


def test_help_lists_commands_in_sections_and_all_exit_codes(cli):
    text = cli("--help").stdout
    positions = [text.index(word) for word in ("Simulate:", "  run ", "Look up:", "  models ", "Exit codes:")]
    assert positions == sorted(positions)
    assert all(f"\n  {name} " in text for name in COMMANDS)
    for code, meaning in EXIT_CODES.items():
        assert f"{code:>3}  {meaning}" in text


def test_module_docstring_has_the_same_exit_codes():
    import frontier.cli

    assert [f"| {code} |" in frontier.cli.__doc__ for code in EXIT_CODES] == [True] * len(EXIT_CODES)
    assert frontier.cli.__doc__.count("\n| ") == len(EXIT_CODES) + 1  # and the header


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_80_columns(cli, command):
    result = cli(*([command] if command else []), "--help")
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "\\b" not in result.stdout


def test_examples_in_help_keep_their_lines(cli):
    assert "\n    frontier run azure-2023-conv\n" in cli("run", "--help").stdout


def test_version(cli):
    assert cli("--version").stdout == f"frontier {frontier.__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["examples"], ["--no-such-option"]])
def test_startup_imports_nothing_heavy(arguments):
    program = (
        "import json, sys\n"
        "from frontier.cli import main\n"
        "try: main(sys.argv[1:], prog_name='frontier')\n"
        "except SystemExit: pass\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], check=True, capture_output=True, text=True
    )
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert "frontier" in loaded
    assert loaded.isdisjoint({"polars", "pydantic", "rich", "numpy", "yaml"})


def test_python_m_frontier_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "frontier", "--version"], check=True, capture_output=True, text=True
    )
    assert done.stdout == f"frontier {frontier.__version__}\n"


def test_unknown_command_is_a_usage_error(cli):
    result = cli("rum")
    assert result.exit_code == 2
    assert "rum" in result.stderr
    assert result.stdout == ""
