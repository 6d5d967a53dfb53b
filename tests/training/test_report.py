"""The accuracy document."""

import json

import pytest

from frontier.errors import ConfigError
from frontier.training.bars import BARS, bar_of, reason, verdict
from frontier.training.report import load_reports, markdown

CEILING = "ceiling of 300 trees: see profiles/README.md"
GOOD = {"median": 0.01, "p95": 0.05, "within_6": 0.97, "within_10": 0.99}


def report(**changes):
    found = {**GOOD, "rows": 10_000, "tested": 2_000, "bytes": 50_000, "predictors": 1, **changes}
    figures = {name: found[name] for name in (*GOOD, "rows")}
    return {
        "pack": "h100",
        "gpu": "h100",
        "optional": False,
        "bytes": 60_000,
        "compressed_bytes": 30_000,
        "families": [{"backend": "vllm", "operator": "gemm", "measurement": "cuda_graph", **found}],
        "bars": [{"backend": "vllm", "bar": "linear", "event": False, **found}],
        "predictors": [
            {
                "backend": "vllm",
                "version": "0.24.0",
                "kernel": "linear|a",
                "measurement": "cuda_graph",
                "operator": "gemm",
                "dtype": "bf16",
                "detail": {"scheme": "x"},
                "rows": 10_000,
                "bytes": 50_000,
                "accuracy": {
                    "splits": {"random": figures, "rows": figures},
                    "repeats": {"median": 0.004, "p95": 0.021},
                },
            }
        ],
    }


def test_a_family_that_meets_its_bar():
    bar = bar_of("gemm")
    assert bar is not None
    assert verdict(bar, GOOD) == "met"


@pytest.mark.parametrize(
    ("operator", "change", "said"),
    [
        ("gemm", {"p95": 0.0641}, "p95 6.4 > 6.4"),
        ("gemm", {"median": 0.04}, "p50 4.0 > 3.3"),
        ("decode_attention", {"within_10": 0.94}, "94.0 within 10 %, asked > 94.0"),
        ("fused_moe", {"within_6": 0.9, "p95": 0.06}, "p95 6.0 > 5.3; 90.0 within 6 %, asked > 95.0"),
    ],
)
def test_what_is_missed_is_named(operator, change, said):
    bar = bar_of(operator)
    assert bar is not None
    assert verdict(bar, {**GOOD, **change}) == said


@pytest.mark.parametrize(
    ("change", "floor", "said"),
    [
        ({}, {"p95": 0.2}, ""),
        ({"p95": 0.2}, None, CEILING),
        ({"p95": 0.2}, {}, CEILING),
        ({"p95": 0.2}, {"p95": 0.17}, "repeats themselves: p95 17.0"),
        ({"within_10": 0.9}, {"within_10": 0.92}, "repeats themselves: 92.0 within 10 %"),
        ({"within_10": 0.9, "p95": 0.2}, {"p95": 0.15}, "repeats themselves: p95 15.0"),
        ({"p95": 0.2, "backend": "generic"}, None, "as other generations predict it"),
    ],
)
def test_why_a_bar_is_missed_is_said_from_repeats(change, floor, said):
    bar = bar_of("decode_attention")
    assert bar is not None
    repeats = None if floor is None else {**GOOD, **floor}
    assert reason(bar, {"backend": "vllm", **GOOD, **change, "repeats": repeats}) == said


def test_repeats_stand_beside_the_errors():
    text = markdown([report(p95=0.09, repeats={**GOOD, "p95": 0.08})])
    assert "| 1.0 / 8.0; 97.0, 99.0 | p95 9.0 > 6.4 | repeats themselves: p95 8.0 |" in text


def test_operators_without_a_bar():
    assert bar_of("rope") is None
    assert {bar_of(name) for bar in BARS for name in bar.operators} == set(BARS)


def test_the_document_has_every_table_and_no_broken_row():
    text = markdown([report(p95=0.09)])
    assert (
        f"| h100 | vllm | linear | 2,000 | 1.0 | 9.0 | 97.0 | 99.0 |  | p95 9.0 > 6.4 | {CEILING} |" in text
    )
    assert "| h100 | vllm | linear | 1 |  | 1.0 / 9.0 (1) |  |  |" in text
    assert "CARRIED_OVER" in text
    assert "linear/a bf16 scheme=x" in text
    assert "0.4 / 2.1" in text
    assert "| all of the package | 1 | 60 | 30 |" in text
    widths = {}
    for line in text.splitlines():
        if line.startswith("|"):
            widths.setdefault(line.count("|"), []).append(line)
    rows = [line for lines in widths.values() for line in lines]
    heads = [line for line in rows if set(line) <= set("| -")]
    assert len(heads) == 5
    for head in heads:
        assert head.count("|") in widths


def test_optional_packs_do_not_count_into_the_package():
    optional = {**report(), "optional": True, "pack": "h100-trtllm"}
    assert "| all of the package | 1 | 60 | 30 |" in markdown([report(), optional])


def test_reports_are_read_in_order(tmp_path):
    with pytest.raises(ConfigError, match="holds no accuracy reports"):
        load_reports(tmp_path)
    folder = tmp_path / "accuracy"
    folder.mkdir()
    for name, gpu, optional in (
        ("a-trtllm", "a", True),
        ("generic", "generic", False),
        ("h100", "h100", False),
    ):
        found = {**report(), "pack": name, "gpu": gpu, "optional": optional}
        (folder / f"{name}.json").write_text(json.dumps(found))
    assert [each["pack"] for each in load_reports(tmp_path)] == ["h100", "generic", "a-trtllm"]
