"""Several models behind one front door, against the same clusters on their own."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import frontier
from frontier.config import Scenario
from frontier.errors import InvariantError
from frontier.results import Result

LINEAR = {"step_time": {"linear": {"per_step": "10ms", "per_prefill_token": "2us"}}}
SMALL: list[dict[str, Any]] = [{"role": "colocated", "name": "small", "replicas": 2}]
PAIR: list[dict[str, Any]] = [{"role": "prefill", "replicas": 2}, {"role": "decode"}]
UNIT: list[dict[str, Any]] = [
    {"role": "prefill", "name": "moe-prefill"},
    {"role": "attention", "engine": {"data_parallel_size": 2}},
    {"role": "ffn", "engine": {"data_parallel_size": 4}},
]
STAMPS = [f"{stamp}_ns" for stamp in ("arrival", "scheduled", "first_token", "finished")]


def serving(model: str, clusters: list[dict[str, Any]], **fields: Any) -> list[dict[str, Any]]:
    """Return clusters that serve a model."""
    return [{**cluster, "model": model, **fields} for cluster in clusters]


def renamed(clusters: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**cluster, "name": f"other-{cluster.get('name', cluster['role'])}"} for cluster in clusters]


def write_rows(folder: Path, share: float = 0.4) -> dict[str, Path]:
    """Write a trace for models `a` and `b`, and the rows of each of them alone; both begin at once."""
    draws = np.random.default_rng(1)
    count = 200
    arrival_s = np.sort(np.round(draws.exponential(10.0, count), 3))
    arrival_s[:2] = 0.0
    model = np.where(draws.random(count) < share, "a", "b")
    model[:2] = ["b", "a"]
    rows = pl.DataFrame(
        {
            "t": arrival_s,
            "in": draws.integers(1, 1500, count),
            "out": draws.integers(1, 60, count),
            "model": model,
        }
    )
    paths = {"both": folder / "both.csv"}
    rows.write_csv(paths["both"])
    for name in "ab":
        paths[name] = folder / f"{name}.csv"
        rows.filter(pl.col("model") == name).write_csv(paths[name])
    return paths


def scenario(model: str, clusters: list[dict[str, Any]], path: Path, **sections: Any) -> Scenario:
    columns = {"arrival": "t", "prompt_tokens": "in", "output_tokens": "out"}
    return Scenario.from_dict(
        {
            "model": model,
            "hardware": "h100",
            "clusters": clusters,
            "objectives": {"ttft": "100ms"},
            "workload": {"trace": {"path": str(path), "columns": columns}},
            **sections,
        }
    )


@pytest.mark.parametrize(
    ("one", "other", "sections"),
    [
        ((SMALL, "llama-3.1-8b"), (renamed(SMALL), "qwen3-8b"), {"engine": LINEAR}),
        ((SMALL, "llama-3.1-8b"), (PAIR, "qwen3-8b"), {}),
        ((PAIR, "llama-3.1-8b"), (renamed(PAIR), "qwen3-8b"), {"disaggregation": {"direct_below": 200}}),
        ((PAIR, "llama-3.1-8b"), (UNIT, "qwen3-30b-a3b"), {}),
    ],
    ids=["colocated twice", "colocated and a pair", "two pairs", "a pair and a unit"],
)
def test_two_models_fare_as_each_alone(
    tmp_path: Path, one: tuple[Any, str], other: tuple[Any, str], sections: dict[str, Any]
) -> None:
    """Clusters of different models share nothing but the front door and the clock."""
    paths = write_rows(tmp_path)
    named = [
        serving(model, clusters, served_model_name=name)
        for name, (clusters, model) in zip("ab", (one, other), strict=True)
    ]
    both = frontier.simulate(scenario(one[1], [*named[0], *named[1]], paths["both"], **sections))
    requests = both.requests
    assert requests["model"].to_list() == pl.read_csv(paths["both"])["model"].to_list()
    by_model = both.summary().by_model
    for name, (clusters, model) in zip("ab", (one, other), strict=True):
        own = dict(sections)
        if "prefill" not in {cluster["role"] for cluster in clusters}:
            own.pop("disaggregation", None)
        alone = frontier.simulate(scenario(model, clusters, paths[name], **own))
        mine = requests.filter(pl.col("model") == name)
        assert mine[STAMPS].equals(alone.requests[STAMPS])
        assert mine["replica"].to_list() == alone.requests["replica"].to_list()
        summary = alone.summary()
        for figure in ("completed", "total_output_tokens", "p99_ttft_s", "mean_itl_s", "median_e2el_s"):
            assert by_model[name][figure] == summary[figure]
        assert by_model[name]["slo_attainment"] == summary.slo_attainment
    totals = both.summary()
    for figure in ("completed", "output_throughput", "request_throughput", "request_goodput"):
        assert sum(figures[figure] for figures in by_model.values()) == pytest.approx(totals[figure])
    assert totals.cost_per_hour_usd == pytest.approx(
        sum(each.gpus * (each.gpu_price_per_hour_usd or 0) for each in both.facts.clusters)
    )


def two_models(**changes: Any) -> Scenario:
    """Return two models on engines that serve four requests at a time, ten tokens each of 10 ms."""
    plain = {
        "model": "llama-3.1-8b",
        "hardware": "h100",
        "engine": {
            "async_scheduling": False,
            "max_num_seqs": 4,
            "step_time": {"linear": {"per_step": "10ms"}},
        },
        "clusters": [
            {"role": "colocated", "name": "llama", "replicas": 2},
            {"role": "colocated", "name": "qwen", "replicas": 2, "in_service": 1, "model": "qwen3-8b"},
        ],
        "dynamics": {
            "events": [
                {
                    "at": "10s",
                    "cluster": "llama",
                    "replica": 1,
                    "switch_role": {"to": "qwen", "delay": "2s"},
                }
            ]
        },
        "workload": {
            "synthetic": {
                "arrivals": "burst",
                "num_requests": 6000,
                "prompt_tokens": 16,
                "output_tokens": 10,
                "models": {"llama-3.1-8b": 1, "qwen3-8b": 1},
            }
        },
    }
    return Scenario.from_dict(plain).with_(changes)


def test_a_replica_that_switches_takes_its_throughput_to_the_other_model() -> None:
    """Requests wait at their replica, so one more serves those that come after: arrivals are steady."""
    arriving = {"workload.synthetic.arrivals": {"constant": {"rate": 200}}}
    result = frontier.simulate(two_models(**arriving))
    before, after = (result.summary(start=start, end=start + 5).by_model for start in (4, 22))
    # Four requests in ten steps of 10 ms: 40 per second and replica, 400 tokens.
    each = [
        (figures[name]["output_throughput"] / 400)
        for figures in (before, after)
        for name in ("llama-3.1-8b", "qwen3-8b")
    ]
    assert each == pytest.approx([2, 1, 1, 2], rel=0.02)
    replicas = result.requests.filter(pl.col("model") == "qwen3-8b")["replica"].unique().sort()
    assert replicas.to_list() == [0, 1]


def test_models_are_drawn_by_their_shares_and_nothing_else_changes() -> None:
    steady = {"dynamics": None, "clusters.qwen.in_service": None}
    shares = {"workload.synthetic.models": {"llama-3.1-8b": 3, "qwen3-8b": 1}}
    lengths = {"workload.synthetic.prompt_tokens": {"uniform": {"min": 10, "max": 50}}}
    even, three = (
        frontier.simulate(two_models(**steady, **lengths, **changes)).columns.requests
        for changes in ({}, shares)
    )
    for requests, share in ((even, 1 / 2), (three, 1 / 4)):
        count = int((requests["model"] == 1).sum())
        spread = (6000 * share * (1 - share)) ** 0.5
        assert abs(count - 6000 * share) < 4 * spread
    assert (even["prompt_tokens"] == three["prompt_tokens"]).all()
    # A larger share of one model only adds to its requests.
    assert ((three["model"] == 1) <= (even["model"] == 1)).all()


def test_a_saved_result_knows_its_models(tmp_path: Path) -> None:
    result = frontier.simulate(two_models(**{"workload.synthetic.num_requests": 50}))
    loaded = Result.load(result.save(tmp_path / "run"))
    assert loaded.facts.models == ("llama-3.1-8b", "qwen3-8b")
    assert [each.model for each in loaded.facts.clusters] == ["llama-3.1-8b", "qwen3-8b"]
    assert loaded.requests.equals(result.requests)
    assert loaded.summary() == result.summary()


def test_one_model_has_no_column_and_no_figures_of_its_own() -> None:
    alone = two_models(**{"dynamics": None, "clusters": None, "workload.synthetic.models": None})
    result = frontier.simulate(alone.with_({"workload.synthetic.num_requests": 5}))
    assert "model" not in result.requests.columns
    assert result.summary().by_model is None


def test_a_request_on_a_cluster_of_another_model_is_an_error() -> None:
    result = frontier.simulate(two_models(**{"workload.synthetic.num_requests": 50}))
    model = result.columns.requests["model"].copy()
    model[7] = 1 - model[7]
    raw = {
        "totals": result.columns.totals,
        "clusters": [cluster.to_raw() for cluster in result.columns.clusters],
        "requests": {**result.columns.requests, "model": model},
        "steps": {**result.columns.steps, "replica_offsets": result.columns.replica_offsets},
        "token_runs": result.columns.token_runs,
        "timeline": result.columns.timeline,
        "transfers": result.columns.transfers,
    }
    with pytest.raises(InvariantError, match=r"request 7 asked for .* and was served by"):
        Result(raw, result.facts)
    model[7] = 2
    with pytest.raises(InvariantError, match="request 7 asked for model 2 of 2"):
        Result(raw, result.facts)


def test_the_printed_summary_has_both_models() -> None:
    summary = frontier.simulate(two_models(**{"workload.synthetic.num_requests": 50})).summary()
    text = str(summary)
    for name in ("llama-3.1-8b", "qwen3-8b"):
        assert f"TTFT, {name}" in text
        assert f"Output tokens, {name}" in text
        assert f"TTFT, {name}" in summary._repr_html_()
    assert max(map(len, text.splitlines()[:20])) <= 80


def test_what_a_cluster_typically_does_is_that_of_its_model(tmp_path: Path) -> None:
    """`explain` takes mean lengths and load from the rows that are for the cluster's model."""
    rows = [("a", 100, 10), ("b", 900, 300)] * 50
    path = tmp_path / "trace.csv"
    path.write_text("t,in,out,model\n" + "".join(f"{t},{p},{o},{m}\n" for t, (m, p, o) in enumerate(rows)))
    clusters = [
        *serving("llama-3.1-8b", SMALL, served_model_name="a"),
        *serving("qwen3-8b", PAIR, served_model_name="b"),
    ]
    both = scenario("llama-3.1-8b", clusters, path)
    small, decode = (frontier.explain(both, cluster=name) for name in ("small", "decode"))
    assert (small.model, decode.model) == ("llama-3.1-8b", "qwen3-8b")
    assert "100 tokens" in small.prefill.what
    assert "900 tokens" in decode.prefill.what
    assert "105 tokens" in small.decode.what
    assert "1,050 tokens" in decode.decode.what


def test_units_are_explained_and_advised_beside_other_models() -> None:
    """As without the other model, but for the load: half of the requests are for the other."""
    alone = frontier.load("afd-qwen3-235b")
    plain = alone.to_dict()
    plain["clusters"].append(
        {
            "role": "colocated",
            "name": "small",
            "model": "llama-3.1-8b",
            "engine": {"tensor_parallel_size": 1, "data_parallel_size": 1, "enable_expert_parallel": False},
        }
    )
    plain["workload"]["synthetic"]["models"] = {"qwen3-235b-a22b": 1, "llama-3.1-8b": 1}
    both = Scenario.from_dict(plain)
    layouts: dict[str, Any] = {"attention_ranks": (8,), "ffn_ranks": (16,), "micro_batches": (3,)}
    assert frontier.advise_afd(both, **layouts) == frontier.advise_afd(alone, **layouts)
    steps = [frontier.explain(each, cluster="attention", decode=8) for each in (both, alone)]
    assert steps[0].decode == steps[1].decode
    arrivals = alone.workload.synthetic.arrivals  # type: ignore[union-attr]
    assert arrivals.poisson is not None
    half = alone.with_({"workload.synthetic.arrivals.poisson.rate": arrivals.poisson.rate / 2})
    typical = [frontier.explain(each, cluster="attention").decode for each in (both, half)]
    assert typical[0] == typical[1]
