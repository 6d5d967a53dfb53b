"""The progress bar, tables and quantities."""

import io

import pytest

import frontier
from frontier.cli import main, output
from frontier.cli.progress import describe, progress_bar
from frontier.simulation import Progress


class Terminal(io.StringIO):
    """A standard stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("progress", "elapsed_s", "expected"),
    [
        (Progress(12.5, 30, 60, 999), 2.0, "12 s simulated, 30/60 requests, 15 req/s"),
        (Progress(3503.6, 19366, None, 1), 0.5, "3,504 s simulated, 19,366 requests, 38,732 req/s"),
    ],
)
def test_description_of_progress(progress, elapsed_s, expected):
    assert describe(progress, elapsed_s) == expected


@pytest.mark.parametrize(
    ("total", "change"),
    [(60, {}), (None, {"workload.synthetic.num_requests": None, "workload.synthetic.duration": "10s"})],
)
def test_bar_on_a_terminal(small, monkeypatch, total, change):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    scenario = frontier.load(small).with_(change)
    with progress_bar(scenario, wanted=True) as update:
        for done in (15, 30, 60):
            update(Progress(done / 10, done, total, done))
    text = stream.getvalue()
    assert "30/60 requests" in text if total else "30 requests" in text
    assert "req/s" in text
    assert "ETA" in text


def test_no_bar_where_it_is_not_wanted_or_seen(small, monkeypatch):
    scenario = frontier.load(small)
    for stream, wanted in ((io.StringIO(), True), (Terminal(), False)):
        monkeypatch.setattr("sys.stderr", stream)
        with progress_bar(scenario, wanted=wanted) as update:
            assert update is None
        assert stream.getvalue() == ""


def test_a_run_on_a_terminal_shows_its_bar(small, monkeypatch, capsys):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with main.make_context("frontier", ["run", str(small)]) as context:
        main.invoke(context)
    assert "60/60 requests" in stream.getvalue()
    assert "60 requests completed" in capsys.readouterr().out


@pytest.mark.parametrize(("no_color", "coloured"), [(None, True), ("1", False)])
def test_no_color_is_respected_on_a_terminal(small, monkeypatch, no_color, coloured):
    stream = Terminal()
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    if no_color is None:
        monkeypatch.delenv("NO_COLOR", raising=False)
    else:
        monkeypatch.setenv("NO_COLOR", no_color)
    for arguments in (["gpus"], ["run", str(small), "--no-progress"]):
        with main.make_context("frontier", arguments) as context:
            main.invoke(context)
    colours = {f"\x1b[{code}m" for code in (31, 32, 33)}
    assert any(colour in stream.getvalue() for colour in colours) == coloured


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (output.parameters(8_030_261_248), "8.03 B"),
        (output.parameters(1_026_470_731_056), "1.03 T"),
        (output.parameters(596_049_920), "596.0 M"),
        (output.parameters(881_664), "881,664"),
        (output.size(131_072), "128 KiB"),
        (output.size(81090 * 2**20), "79.19 GiB"),
        (output.size(-3 * 2**30), "-3 GiB"),
        (output.size(100), "100 B"),
        (output.bandwidth(3.35e12), "3.35 TB/s"),
        (output.bandwidth(450e9), "450 GB/s"),
        (output.bandwidth(None), "-"),
        (output.teraflops(989.4e12), "989"),
        (output.teraflops(None), "-"),
    ],
)
def test_quantities(text, expected):
    assert text == expected


def test_long_values_wrap_under_their_column(capsys):
    output.print_facts([("a", "x"), ("source", "word " * 30)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a       x"
    assert len(lines) == 4
    assert all(line.startswith(" " * 8 + "word") for line in lines[2:])
    assert max(map(len, lines)) <= 80
