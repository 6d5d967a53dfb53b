"""What step times rest on: shares, the worst operators, warnings, and all forms of a result."""

import json
from pathlib import Path
from typing import Any

import pytest
from fifo import Ask, facts, fifo

from frontier.errors import FrontierError, InvariantError
from frontier.results import OperatorTrust, Result, Trust
from frontier.results.trust import DOUBTFUL_SHARE, line

FAR = {"feature": "kv_max", "value": 131072.0, "low": 2.0, "high": 65536.0, "distance": 2.0}
NEAR = dict.fromkeys(FAR)


def row(operator: str, *seconds: float, **excursion: Any) -> dict[str, Any]:
    names = ("measured_s", "interpolated_s", "extrapolated_s", "unmeasured_s")
    return {"operator": operator, **dict(zip(names, seconds, strict=True)), **NEAR, **excursion}


ROWS = [
    row("qkv_proj", 6.0, 1.0, 0.0, 0.0),
    row("attention (decode)", 1.0, 0.5, 1.0, 0.0, **FAR),
    row("rms_norm", 0.0, 0.0, 0.0, 0.5),
]


def learned(rows: list[dict[str, Any]], **changes: Any) -> Result:
    raw = fifo([Ask(0, 5)] * 200, step_time="learned")
    raw["clusters"][0]["trust"] = rows
    return Result(raw, facts(step_time="learned", **changes))


def test_shares_are_of_all_gpu_time() -> None:
    trust = Trust.from_raw(ROWS)
    assert trust.shares == {"measured": 0.7, "interpolated": 0.15, "extrapolated": 0.1, "unmeasured": 0.05}
    assert trust.outside_share == pytest.approx(0.15)
    assert trust.total_s == 10.0


def test_the_worst_operators_come_first_and_say_why() -> None:
    first, second = Trust.from_raw(ROWS).worst()
    assert (first.operator, first.share, first.unmeasured) == ("attention (decode)", 0.1, False)
    assert str(first) == "attention (decode): 10.0% of GPU time, kv_max 131,072, measured 2 to 65,536"
    assert str(second) == "rms_norm: 5.0% of GPU time, not measured on this GPU"
    assert len(Trust.from_raw(ROWS).worst(1)) == 1


def test_operators_of_one_name_in_several_stages_are_one() -> None:
    further = {**FAR, "value": 262144.0, "distance": 4.0}
    trust = Trust.from_raw(
        [row("o_proj", 1.0, 0.0, 1.0, 0.0, **FAR), row("o_proj", 0.0, 2.0, 1.0, 0.0, **further)]
    )
    assert trust.operators == (OperatorTrust("o_proj", 1.0, 2.0, 2.0, 0.0, **further),)
    assert trust.frame.rows(named=True) == [
        {"operator": "o_proj", "share": 1.0, "measured_s": 1.0, "interpolated_s": 2.0}
        | {"extrapolated_s": 2.0, "unmeasured_s": 0.0, **further}
    ]


def test_nothing_timed_has_no_shares() -> None:
    for rows in ([], [row("o_proj", 0.0, 0.0, 0.0, 0.0)]):
        trust = Trust.from_raw(rows)
        assert (trust.shares, trust.outside_share, trust.worst(), trust.warning()) == ({}, 0.0, [], None)
        assert str(trust) == "no operator was timed"
        assert trust.frame.height == len(rows)


@pytest.mark.parametrize(
    ("outside_s", "warns"), [(0.99 * DOUBTFUL_SHARE, False), (1.01 * DOUBTFUL_SHARE, True)]
)
@pytest.mark.parametrize("step_time", ["learned", "roofline"])
def test_learned_results_warn_beyond_a_tenth(outside_s: float, warns: bool, step_time: str) -> None:
    raw = fifo([Ask(0, 5)] * 200, step_time=step_time)
    raw["clusters"][0]["trust"] = [row("o_proj", 1.0 - outside_s, 0.0, outside_s, 0.0, **FAR)]
    warnings = Result(raw, facts(step_time=step_time)).summary().warnings
    found = [warning for warning in warnings if "of GPU time is extrapolated" in warning]
    assert bool(found) == (warns and step_time == "learned")
    assert all("most of it: o_proj: 10.1% of GPU time, kv_max 131,072" in warning for warning in found)


def test_every_form_of_a_result_tells() -> None:
    result = learned(ROWS)
    words = "GPU time: 70% measured, 15% interpolated, 10% extrapolated, 5% unmeasured"
    summary = result.summary()
    assert words in str(summary)
    assert words in summary._repr_html_()
    assert words in str(result.trust)
    assert repr(result.trust) == f"Trust({words})"
    assert summary.to_dict()["gpu_time_by_provenance"] == result.trust.shares
    assert json.loads(json.dumps(result.trust.to_dict()))["worst"][0]["feature"] == "kv_max"


def test_linear_results_have_no_such_line() -> None:
    raw = fifo([Ask(0, 5)] * 200, step_time="linear")
    summary = Result(raw, facts(step_time="linear")).summary()
    assert summary.gpu_time_by_provenance is None
    assert "GPU time" not in str(summary)


def test_small_shares_are_not_rounded_away() -> None:
    assert line({"measured": 0.9999, "unmeasured": 0.0001}) == "GPU time: 100% measured, < 1% unmeasured"
    assert line({}) == line(None) == ""


def test_trust_and_predictors_survive_saving(tmp_path: Path) -> None:
    used = ({"id": "h100/vllm", "sha256": "ab"},)
    result = learned(ROWS, predictors=used)
    again = Result.load(result.save(tmp_path / "run"))
    assert again.trust == result.trust
    assert again.facts == result.facts
    assert again.facts.predictors == used


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, "trust was None, must be a list"),
        ("abc", "must be a list"),
        ([{}], "must have operator, measured_s"),
        ([row("a", -1.0, 0.0, 0.0, 0.0)], "trust of a: measured_s was -1.0, must be 0 or more"),
        ([row("a", float("nan"), 0.0, 0.0, 0.0)], "measured_s was nan"),
        ([row("a", 1.0, 0.0, 0.0, "x")], "unmeasured_s was 'x'"),
        ([row("a", 1.0, 0.0, 0.0, 0.0, value=1.0)], "half an excursion"),
    ],
)
def test_bad_rows_are_refused(rows: Any, message: str) -> None:
    raw = fifo([Ask(0, 5)])
    raw["clusters"][0]["trust"] = rows
    with pytest.raises(InvariantError, match=message):
        Result(raw, facts())


def test_a_damaged_document_is_named(tmp_path: Path) -> None:
    place = learned(ROWS).save(tmp_path / "run")
    document = json.loads((place / "result.json").read_text("utf-8"))
    del document["clusters"]
    (place / "result.json").write_text(json.dumps(document))
    with pytest.raises(FrontierError, match=r"result\.json is damaged: KeyError: 'clusters'"):
        Result.load(place)
