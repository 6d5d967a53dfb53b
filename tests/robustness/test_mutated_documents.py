"""Scenario files with wrong or damaged text: refused with file and line, or read as what they still say."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from damaged_text import damaged
from mutated_scenario_bases import BASES, TRACE_TEXT
from mutated_scenario_cases import with_trace
from mutation_outcome import Flaw, check_run, check_words, outcome_of
from yaml_text import write_yaml

import frontier
from frontier.errors import ConfigError, FrontierError
from frontier.results import Result

pytestmark = pytest.mark.timeout(60)

PARTS = 5

GOOD = """\
# A scenario in which every line is looked at.
model: llama-3.1-8b
hardware: h100
engine:
  num_gpu_blocks_override: 128
  max_model_len: 1000
  step_time:
    linear: {per_step: 2ms, per_decode_token: 10us}
workload:
  synthetic:
    arrivals:
      poisson: {rate: 40/s}
    num_requests: 12
    prompt_tokens: 100
    output_tokens: 8
seed: 5
"""

BAD_TEXTS: list[tuple[str, bytes, str, int | None]] = [
    ("empty", b"", "empty", None),
    ("blank", b" \n\n \n", "empty", None),
    ("only comments", b"# nothing\n# else\n", "empty", None),
    ("only a byte-order mark", b"\xef\xbb\xbf", "empty", None),
    ("only a document mark", b"---\n", "the document is", None),
    ("a null", b"null\n", "single value", None),
    ("a text", b"llama-3.1-8b\n", "single value", None),
    ("a list", b"- model: x\n", "a list", None),
    ("an empty mapping", b"{}\n", "is required", None),
    ("two documents", GOOD.encode() + b"---\n" + GOOD.encode(), "not valid YAML", 17),
    ("a section twice", GOOD.encode() + b"engine: {}\n", "is given twice, first on line 4", 17),
    ("a section twice the same", GOOD.encode() + b"seed: 5\n", "is given twice, first on line 16", 17),
    ("a field twice", GOOD.replace("  max_model_len", "  max_model_len: 5\n  max_model_len").encode(),
    "given twice", 7),
    ("a flow field twice", GOOD.replace("10us}", "10us, per_step: 1ms}").encode(), "is given twice", 8),
    ("a quoted field twice", GOOD.encode() + b"'seed': 6\n", "is given twice", 17),
    ("a tab", GOOD.replace("  max_model_len", "\tmax_model_len").encode(), "not valid YAML", 6),
    ("an open bracket", GOOD.replace("10us}", "10us").encode(), "not valid YAML", 9),
    ("an open quote", GOOD.replace("40/s", '"40/s').encode(), "not valid YAML", None),
    ("a colon too many", GOOD.replace("seed: 5", "seed: 5: 6").encode(), "not valid YAML", 16),
    ("a wrong indent", GOOD.replace("  max_model_len", "   max_model_len").encode(), "not valid YAML", 6),
    ("no colon", GOOD.replace("seed: 5", "seed 5").encode(), "not valid YAML", 17),
    ("a key that is a number", GOOD.encode() + b"5: x\n", "not text", 17),
    ("a key that is a flag", GOOD.replace("  max_model_len:", "  true:").encode(), "not text", 6),
    ("a key that is a list", GOOD.encode() + b"? [a, b]\n: x\n", "not text", 17),
    ("a key that is null", GOOD.encode() + b"~: x\n", "not text", 17),
    ("a Python object", GOOD.replace("5\n", "!!python/object/apply:os.getcwd []\n").encode(),
    "not valid YAML", None),
    ("an unknown tag", GOOD.replace("seed: 5", "seed: !seed 5").encode(), "not valid YAML", 16),
    ("a binary", GOOD.replace("seed: 5", "seed: !!binary aGk=").encode(), "seed", 16),
    ("a set", GOOD.replace("seed: 5", "seed: !!set {a, b}").encode(), "seed", 16),
    ("a time stamp", GOOD.replace("seed: 5", "seed: !!timestamp 2024-05-10").encode(), "seed", 16),
    ("an unknown alias", GOOD.replace("seed: 5", "seed: *five").encode(), "not valid YAML", 16),
    ("an alias in itself", GOOD.replace("seed: 5", "seed: &x [*x]").encode(), "contains itself", 16),
    ("a merge of nothing", GOOD.replace("seed: 5", "<<: 5").encode(), "not valid YAML", 16),
    ("a long number", GOOD.replace("seed: 5", "seed: " + "9" * 5000).encode(), "5000 digits", 16),
    ("a number with an exponent", GOOD.replace("seed: 5", "seed: 1e400").encode(), "must be finite", 16),
    ("not a number", GOOD.replace("seed: 5", "seed: .nan").encode(), "must be finite", 16),
    ("no value", GOOD.replace("seed: 5", "seed:").encode(), "seed", 16),
    ("deep brackets", GOOD.replace("seed: 5", "seed: " + "[" * 5000).encode(), "nested too deeply", None),
    ("deep mappings", GOOD.replace("seed: 5", "seed: " + "{a: " * 3000 + "1" + "}" * 3000).encode(),
    "nested too", None),
    ("a control character", GOOD.replace("h100", "h1\x0000").encode(), "is not YAML", None),
    ("an escape", GOOD.replace("h100", "h1\x1b[31m00").encode(), "is not YAML", None),
    ("Latin-1", b"# caf\xe9\n" + GOOD.encode(), "is not UTF-8", None),
    ("UTF-16", GOOD.encode("utf-16"), "is not UTF-8", None),
    ("a cut character", GOOD.encode() + "name: naïve".encode()[:-3], "is not UTF-8", None),
    ("bytes of Parquet", b"PAR1\x15\x04\x15\xff\xfe\x00PAR1", "is not", None),
    ("bytes of gzip", b"\x1f\x8b\x08\x00\x00\x00\x00\x00", "is not", None),
    ("a lone surrogate", GOOD.encode() + b'name: "\\ud800"\n', "name", 17),
    ("JSON with a trailing comma", b'{"model": "llama-3.1-8b",, }', "not valid YAML", 1),
    ("a trace", TRACE_TEXT.encode(), "single value", None),
]  # fmt: skip
SAME_TEXTS: list[tuple[str, bytes]] = [
    ("a byte-order mark", b"\xef\xbb\xbf" + GOOD.encode()),
    ("Windows line ends", GOOD.replace("\n", "\r\n").encode()),
    ("old Mac line ends", GOOD.replace("\n", "\r").encode()),
    ("no line end", GOOD.rstrip().encode()),
    ("document marks", b"---\n" + GOOD.encode() + b"...\n"),
    ("blank lines and comments", GOOD.replace("\n", "  # a comment\n\n").encode()),
    ("quotes", GOOD.replace("h100", '"h100"').replace("40/s", "'40/s'").encode()),
    ("an anchor", GOOD.replace("seed: 5", "seed: &five 5").encode()),
    ("a merge", GOOD.replace("per_step: 2ms", "<<: {per_step: 2ms}").encode()),
    ("JSON", json.dumps(yaml.safe_load(GOOD)).encode()),
]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """Write bytes to a scenario file and simulate it."""

    def run_bytes(data: bytes) -> Result | FrontierError:
        path = tmp_path / "scenario.yaml"
        path.write_bytes(data)
        outcome = outcome_of(lambda: frontier.simulate(path))
        if isinstance(outcome, Result):
            check_run(outcome)
        else:
            check_words(outcome)
            if (
                isinstance(outcome, ConfigError)
                and outcome.source is not None
                and str(path) not in str(outcome)
            ):
                raise Flaw(f"the file is not named: {outcome}")
        return outcome

    return run_bytes


@pytest.mark.parametrize(
    ("data", "words", "line"), [pytest.param(*rest, id=name) for name, *rest in BAD_TEXTS]
)
def test_bad_texts_are_refused(run: Any, data: bytes, words: str, line: int | None) -> None:
    error = run(data)
    assert isinstance(error, ConfigError)
    assert words in str(error)
    assert "scenario.yaml" in str(error)
    if line is not None:
        assert line in [issue.line for issue in error.issues], str(error)


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in SAME_TEXTS])
def test_the_same_text_written_differently(run: Any, data: bytes) -> None:
    assert run(data).digest == run(GOOD.encode()).digest


@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_texts(run: Any, part: int, tmp_path: Path) -> None:
    """Bytes are lost, doubled or changed anywhere; whatever still is a scenario runs."""
    trace = tmp_path / "requests.csv"
    trace.write_text(TRACE_TEXT, "utf-8")
    good = [write_yaml(with_trace(plain, str(trace))).encode() for plain in BASES.values()]
    good.append(GOOD.encode())
    flaws = []
    for number in range(40):
        rng = random.Random(f"text {part} {number}")
        data = damaged(good[number % len(good)], rng)
        try:
            run(data)
        except Flaw as flaw:
            flaws.append(f"part {part} number {number}: {flaw}")
    assert not flaws, "\n".join(flaws)
