"""Frames, attribution, and what is printed."""

import io
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest
from fifo import MS, Ask, S, facts, fifo, run

from frontier.errors import ConfigError, FrontierError
from frontier.results import ATTRIBUTION_CAUSES, Objectives, Result, RunFacts
from frontier.results.columns import TRANSFER_CAUSES
from frontier.results.layout import format_seconds

ASKS = [Ask(0, 5), Ask(40 * MS, 1, reject=2), Ask(50 * MS, 1, replica=1), Ask(S, 400)]


def cut() -> Result:
    return run(ASKS, replicas=2, stop_ns=2 * S, interval_ns=S // 2, wide_steps=True)


def test_requests_frame() -> None:
    frame = cut().requests
    assert frame["status"].to_list() == ["finished", "rejected", "finished", "unfinished"]
    assert frame["status"].dtype == pl.Enum(["finished", "rejected", "unfinished", "failed"])
    assert frame["reject_reason"].to_list() == [None, "exceeds_kv_cache", None, None]
    assert frame["replica"].to_list() == [0, None, 1, 0]
    assert frame["session"].to_list() == [None] * 4
    assert frame["arrival_s"].to_list() == [0.0, 0.04, 0.05, 1.0]
    assert frame["finished_ns"].to_list() == [140 * MS, None, 150 * MS, None]
    assert frame["ttft_s"].to_list() == [0.1, None, 0.1, 0.1]
    assert frame["tpot_s"].to_list() == [0.01, None, None, None]
    assert frame["e2el_s"].to_list() == [0.14, None, 0.1, None]
    assert frame["max_itl_s"].to_list() == [0.01, None, None, 0.01]
    assert frame["e2el_decode_s"].to_list() == [0.04, None, 0.0, None]
    causes = {f"{kind}_{cause}_s" for kind in ("ttft", "e2el") for cause in ATTRIBUTION_CAUSES}
    assert causes - set(frame.columns) == {
        f"{kind}_{cause}_s" for kind in ("ttft", "e2el") for cause in (*TRANSFER_CAUSES, "lost", "encode")
    }
    assert not {"cluster", "source_cluster", "attempts"} & set(frame.columns)


def test_steps_and_timeline_frames() -> None:
    result = cut()
    steps = result.steps
    assert steps.filter(pl.col("replica") == 1).rows(named=True)[0] | {"start_s": 0.05} == steps.row(
        -1, named=True
    )
    assert steps.row(-1, named=True)["step"] == 0
    assert steps["duration_s"][:2].to_list() == [0.1, 0.01]
    timeline = result.timeline
    assert timeline["time_s"].to_list() == [0.5, 0.5, 1.0, 1.0, 1.5, 1.5, 2.0, 2.0]
    assert timeline["kv_use"].max() == 0.1
    assert timeline["busy_s"].to_list()[-2:] == [pytest.approx(1.14), pytest.approx(0.1)]
    assert result.timeline is timeline


def test_steps_that_were_not_recorded_say_how_to_get_them() -> None:
    with pytest.raises(FrontierError, match=r"set output.steps to true .*--set output.steps=true"):
        _ = run(ASKS[:1]).steps


def queue() -> Result:
    """100 requests at once, one token each: request i waits 100 i ms."""
    return run([Ask(0, 1)] * 100)


def test_attribution_adds_up() -> None:
    result = queue()
    ttft = result.attribution("ttft")
    assert ttft.num_requests == 100
    assert sum(ttft.causes_ns.values()) == ttft.total_ns == 100 * sum(range(1, 101)) * MS
    assert ttft.causes_s["queue"] == pytest.approx(4.95)
    assert ttft.causes_s["prefill"] == pytest.approx(0.1)
    assert ttft.mean_s == pytest.approx(5.05)
    assert ttft.shares["queue"] == pytest.approx(4.95 / 5.05)
    assert result.summary().e2el_attribution_s == result.attribution("e2el").causes_s


@pytest.mark.parametrize(
    ("q", "ranks"), [(0, range(3)), (50, range(48, 52)), (99, range(96, 100)), (100, range(97, 100))]
)
def test_attribution_around_a_percentile(q: float, ranks: range) -> None:
    around = queue().attribution("ttft", q)
    assert around.num_requests == len(ranks)
    assert around.causes_ns["queue"] == sum(ranks) * 100 * MS
    assert f"around p{q}" in str(around)


def test_attribution_around_a_percentile_of_few() -> None:
    result = run([Ask(0, 1)] * 3)
    assert [result.attribution("ttft", q).causes_s["queue"] for q in (0, 40, 99)] == [0.0, 0.1, 0.2]


def test_both_names_of_end_to_end_latency_are_taken() -> None:
    result = queue()
    assert result.attribution("e2e") == result.attribution("e2el")
    assert result.attribution("e2e").kind == result.attribution("e2e").to_dict()["kind"] == "e2el"
    # Frames and summaries know one name only.
    names = [*result.requests.columns, *result.summary()]
    assert [name for name in names if "e2e" in name and "e2el" not in name] == []


def test_the_scenario_is_a_copy() -> None:
    result = run(ASKS[:1], facts(scenario={"engine": {"max_num_seqs": 8}}))
    result.scenario["engine"]["max_num_seqs"] = 9
    assert result.scenario == {"engine": {"max_num_seqs": 8}}


def test_attribution_of_a_window() -> None:
    result = run([Ask(0, 1), Ask(0, 1), Ask(S, 1)])
    assert result.attribution("e2el", end=0.5).causes_s["queue"] == pytest.approx(0.05)
    assert result.attribution("e2el", warmup=0.5).num_requests == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tfft",), "did you mean 'ttft'"),
        (("ttft", 101), "q: was 101"),
        (("e2el", float("nan")), "q: was nan"),
        ((None,), r"kind: was None.*ttft, e2el"),
    ],
)
def test_bad_attributions_are_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        queue().attribution(*arguments)  # type: ignore[arg-type]


def test_text_shows_every_section_and_the_label() -> None:
    text = str(
        run(ASKS[:1] * 60, facts(objectives=Objectives(ttft_s=1.0), warnings=("check this",))).summary()
    )
    for part in (
        "step time: roofline",
        "TTFT",
        "p99",
        "Goodput",
        "KV use",
        "MFU",
        "per million",
        "saturation:",
    ):
        assert part in text
    assert "warning: check this" in text
    assert "mean TTFT goes to queue" in text
    assert max(map(len, text.splitlines())) <= 110


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (9.9999999e-3, "10.00 ms"),
        (0.99999999, "1.000 s"),
        (0.99994, "999.9 ms"),
        (99.99999, "100.0 s"),
        (9.9999e-4, "1.000 ms"),
        (1234.5, "1,234 s"),
        (0.0, "0 s"),
        (5e-9, "0.005 µs"),
        (None, "-"),
    ],
)
def test_times_have_four_digits_on_either_side_of_a_power_of_ten(seconds: float | None, shown: str) -> None:
    assert format_seconds(seconds) == shown


def test_every_form_names_the_step_time() -> None:
    raw = fifo([Ask(0, 3)] * 3, step_time="linear")
    result = Result(raw, facts(step_time="linear"))
    summary = result.summary()
    forms = [str(summary), repr(summary), summary._repr_html_(), repr(result), result._repr_html_()]
    forms += [str(result.attribution()), result.attribution()._repr_html_(), rich_text(summary)]
    assert all("linear" in form for form in forms)
    assert all(
        form["step_time"] == "linear"
        for form in (summary.to_dict(), summary.to_vllm_bench(), result.attribution().to_dict())
    )


def rich_text(renderable: object, width: int = 80) -> str:
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(renderable)
    return out.getvalue()


def test_rich_form_has_all_cells() -> None:
    summary = run([Ask(0, 5)] * 60, facts(warnings=("[bold]not markup[/bold]",))).summary()
    text = rich_text(summary)
    assert "…" not in text
    assert "[bold]not markup[/bold]" in text
    assert "p50" in text


class Balance(HTMLParser):
    """Checks that tags close in order, and collects what is not allowed in a notebook cell."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.bad: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.bad += [tag] * (tag in ("script", "link", "img", "iframe"))
        self.bad += [name for name, _ in attrs if name in ("src", "href") or name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_is_balanced_escaped_and_self_contained() -> None:
    hostile = "<script>alert('x')</script> & \"co\""
    result = run([Ask(0, 5)] * 60, facts(warnings=(hostile,), scenario={"model": hostile}))
    page = Balance()
    page.feed(result._repr_html_())
    page.close()
    assert page.open == []
    assert page.bad == []
    assert hostile in page.text
    assert "<script>" not in result._repr_html_()
    widths = [
        float(width) for width in re.findall(r"width:([\d.]+)%", result.attribution("e2el")._repr_html_())
    ]
    assert sum(widths) == pytest.approx(100.0, abs=0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpus_total": 0}, "gpus_total: was 0, must be a whole number of at least 1"),
        ({"gpus_total": 2.0}, "gpus_total: was 2.0"),
        ({"step_time": "rooflines"}, "step_time: .*did you mean 'roofline'"),
        ({"gpu_price_per_hour_usd": -1.0}, "gpu_price_per_hour_usd: was -1.0"),
        ({"peak_flops_per_s": 0.0}, "peak_flops_per_s: was 0.0, must be above 0 or null"),
        ({"memory_bandwidth_bytes_per_s": float("inf")}, "memory_bandwidth_bytes_per_s: was inf"),
        ({"max_model_len": True}, "max_model_len: was True"),
        ({"trace_rows_read": -1}, "trace_rows_read: was -1, must be a whole number of at least 0 or null"),
        ({"trace_rows_skipped": 0.5}, "trace_rows_skipped: was 0.5"),
        (
            {"trace_rows_read": 3, "trace_rows_skipped": 4},
            r"trace_rows_skipped: was 4, must be at most trace_rows_read \(3\)",
        ),
        ({"trace_rows_skipped": 4}, "at most trace_rows_read"),
    ],
)
def test_bad_facts_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        facts(**changes)


def test_bad_objectives_are_refused_together() -> None:
    with pytest.raises(ConfigError) as caught:
        Objectives(ttft_s=0.0, e2e_s=float("nan"))
    assert [issue.path for issue in caught.value.issues] == ["objectives.ttft_s", "objectives.e2e_s"]


def test_facts_survive_a_round_trip() -> None:
    full = facts(
        objectives=Objectives(ttft_s=0.2, itl_s=0.05),
        warmup="10%",
        trace_rows_read=7,
        trace_rows_skipped=2,
        scenario={"a": [1]},
        warnings=["w"],
    )
    assert RunFacts.from_dict(full.to_dict()) == full
    for change, message in (
        ({"gpu": 3}, "gpu: is not a known field"),
        ({"objectives": {"ttft": 1.0}}, "objectives.ttft: .*did you mean 'ttft_s'"),
        ({"objectives": 3}, "objectives: was 3, must be an object"),
    ):
        with pytest.raises(ConfigError, match=message):
            RunFacts.from_dict(full.to_dict() | change)
    with pytest.raises(ConfigError, match="gpus_total: is missing"):
        RunFacts.from_dict({"step_time": "linear"})


def test_a_summary_needs_neither_polars_nor_rich() -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from fifo import Ask, run\n"
        "str(run([Ask(0, 3)]).summary())\n"
        "print([name for name in ('polars', 'rich', 'pydantic') if name in sys.modules])"
    )
    paths = [path for path in sys.path if path]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_percentile_rank_rule_is_that_of_numpy() -> None:
    latencies = queue().requests["ttft_s"].to_numpy()
    assert queue().summary().p90_ttft_s == pytest.approx(np.percentile(latencies, 90))
