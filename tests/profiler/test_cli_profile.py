"""`frontier profile` on a fake device."""

import importlib
import io
import json
import subprocess
import sys

import pytest
from click.testing import CliRunner
from fake_device import FakeDevice

from frontier.cli.group import Cli
from frontier.profiler import grid, settings
from frontier.profiler.points import Point
from frontier.profiler.session import Progress

# The package exports the command of that name.
command = importlib.import_module("frontier.cli.profile")

SMALL = ("--models", "qwen3-0.6b", "--tp", "1", "--families", "launch,copy,gemm", "--date", "2026-01-31")


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Return a function that runs `frontier profile ARGUMENTS...` on a device."""
    group = Cli(
        "frontier", sections={"Measure": (command.profile,)}, context_settings={"max_content_width": 100}
    )

    def invoke(*arguments, device=None):
        monkeypatch.setattr(command, "open_device", lambda *_: device or FakeDevice(overhead_s=1.0))
        result = CliRunner().invoke(group, ["profile", "--out", str(tmp_path / "p"), *map(str, arguments)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


def test_names_are_those_of_the_profiler():
    assert command.FAMILIES == grid.FAMILIES
    assert command.DTYPES == settings.DTYPES


def test_prints_what_was_measured_and_goes_on(run, tmp_path):
    first = run(*SMALL, "--budget", "30s")
    assert first.exit_code == 0
    assert "Fake GPU (fake-gpu), torch 2.0, measured by cuda_graph" in first.stdout
    assert "fake_gemm" in first.stdout
    assert max(map(len, first.stdout.splitlines())) <= 80 or str(tmp_path) in first.stdout
    done = json.loads((tmp_path / "p" / "manifest.json").read_text())["progress"]["gemm"]["done"]
    assert f"gemm {done:,} of" in first.stdout
    run(*SMALL, "--budget", "30s")
    again = json.loads((tmp_path / "p" / "manifest.json").read_text())["progress"]["gemm"]["done"]
    assert again > done


def test_json_is_the_manifest(run, tmp_path):
    result = run(*SMALL, "--budget", "10s", "--json", "--licence", "CC0-1.0", "--gpu", "h200")
    manifest = json.loads(result.stdout)
    assert manifest == json.loads((tmp_path / "p" / "manifest.json").read_text())
    assert (manifest["gpu"], manifest["licence"], manifest["date"]) == ("h200", "CC0-1.0", "2026-01-31")


def test_quiet_says_nothing(run):
    result = run(*SMALL, "--budget", "3s", "-q")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_ctrl_c_keeps_what_was_measured(run, tmp_path):
    def fault(rounds):
        if rounds > 100:
            raise KeyboardInterrupt

    result = run(*SMALL, device=FakeDevice(fault=fault))
    assert result.exit_code == 130
    assert "the same command goes on" in result.stderr
    assert (tmp_path / "p" / "gemm.parquet").is_file()


@pytest.mark.parametrize(
    ("name", "kind", "gpu"),
    [
        ("NVIDIA H200", "cuda", "h200"),
        ("NVIDIA H100 80GB HBM3", "cuda", "h100"),
        ("NVIDIA H100 PCIe", "cuda", "h100-pcie"),
        ("NVIDIA A100-SXM4-80GB", "cuda", "a100-80gb"),
        ("NVIDIA GeForce RTX 4090", "cuda", "rtx-4090"),
        ("NVIDIA L4", "cuda", "nvidia-l4"),
        ("x86_64", "cpu", "cpu"),
    ],
)
def test_a_device_finds_its_preset(run, name, kind, gpu):
    result = run(*SMALL, "--budget", "2s", "--json", device=FakeDevice(name=name, kind=kind, overhead_s=1.0))
    assert json.loads(result.stdout)["gpu"] == gpu


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("--budget", "10"), 2, "--budget"),
        (("--budget", "0s"), 2, "longer than 0"),
        (("--tp", "1,x"), 2, "whole numbers"),
        (("--tp", "0"), 2, "positive"),
        (("--date", "yesterday"), 2, "ISO 8601"),
        (("--families", ","), 2, "names nothing"),
        (("--families", "gem"), 3, "did you mean 'gemm'"),
        (("--dtype", "bf16,int3"), 3, "fp16"),
        (("--models", "qwen9"), 3, "qwen9"),
        (("--tp", "3", "--models", "llama-3.1-8b"), 3, "3"),
    ],
)
def test_bad_options_are_refused(run, arguments, code, text):
    result = run(*arguments)
    assert result.exit_code == code
    assert text in result.stderr


def test_conflicting_settings_are_refused(run):
    run(*SMALL, "--budget", "3s")
    result = run(*SMALL, "--seed", "7")
    assert result.exit_code == 3
    assert "seed: was 7, but the profile was started with 0" in result.stderr


def test_the_bar_is_drawn_on_a_terminal_alone(monkeypatch):
    point = Point("elementwise", "rope", "bf16", {"rows": 4, "bytes_per_row": 8.0}, 0.0, 32.0, 64)
    for tty in (True, False):
        terminal = io.StringIO()
        terminal.isatty = lambda tty=tty: tty
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("COLUMNS", "100")
        with command.progress_bar(None, wanted=True) as update:
            assert (update is not None) is tty
            if update is not None:
                update(Progress(point, 3, 12, 2.0))
        assert ("3/12 points, 2 s, rope" in terminal.getvalue()) is tty


def test_help_fits_80_columns(run):
    result = run("--help")
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "\n    frontier profile --out profiles/mine --budget 10min\n" in result.stdout


def test_without_pytorch_the_extra_is_named(tmp_path):
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from frontier.cli.group import Cli\n"
        "from frontier.cli.profile import profile\n"
        "Cli('frontier', sections={'Measure': (profile,)})(sys.argv[1:])\n"
    )
    arguments = ["profile", "--out", str(tmp_path / "p")]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "pip install 'frontier-sim[profile]'" in done.stderr
    assert not (tmp_path / "p").exists()


def test_importing_the_command_imports_nothing_heavy():
    program = (
        "import json, sys\n"
        "import frontier.cli.profile\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert not {"numpy", "polars", "torch", "rich", "pydantic"} & set(json.loads(done.stdout))
