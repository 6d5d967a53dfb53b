"""Clusters of several models: which belong together, what they are called, and what is wrong with them."""

import json
from pathlib import Path
from typing import Any

import pytest
from role_clusters import DECODE, PREFILL, WORKLOAD

from frontier.config import Scenario
from frontier.errors import ConfigError, Issue, WorkloadError
from frontier.lowering import lower
from frontier.simulation import run_facts

SMALL: dict[str, Any] = {"role": "colocated", "name": "small"}
QWEN: dict[str, Any] = {"role": "colocated", "name": "qwen", "model": "qwen3-8b"}
PAIR: list[dict[str, Any]] = [{**each, "model": "qwen3-8b"} for each in (PREFILL, DECODE)]
HALVES = {"llama-3.1-8b": 0.5, "qwen3-8b": 0.5}
LINK: dict[str, Any] = {"kv_transfer": {"bandwidth": "50GB/s"}}


def plain(*clusters: dict[str, Any], models: Any = None, **sections: Any) -> dict[str, Any]:
    """Return a scenario whose own model is Llama-3.1-8B."""
    synthetic = {**WORKLOAD["synthetic"], "models": HALVES if models is None else models or None}
    return {
        "model": "llama-3.1-8b",
        "hardware": "h100",
        "clusters": list(clusters),
        "workload": {"synthetic": synthetic},
        **sections,
    }


def scenario(*clusters: dict[str, Any], **options: Any) -> Scenario:
    return Scenario.from_dict(plain(*clusters, **options))


def problems(*clusters: dict[str, Any], **options: Any) -> dict[str, Issue]:
    """Return the issues by path of a scenario that must be refused."""
    with pytest.raises(ConfigError) as error:
        scenario(*clusters, **options)
    return {issue.path: issue for issue in error.value.issues}


def test_each_cluster_has_the_model_that_it_serves() -> None:
    both = scenario(SMALL, *PAIR, disaggregation=LINK)
    assert [view.facts.model.name for view in both.views()] == ["llama-3.1-8b", "qwen3-8b", "qwen3-8b"]
    assert [view.served_model for view in both.views()] == ["llama-3.1-8b", "qwen3-8b", "qwen3-8b"]
    decode = both.view("decode").scenario
    assert decode.model == "qwen3-8b"
    assert decode.workload.synthetic is not None
    assert decode.workload.synthetic.models is None, "on its own, nobody has to ask for it"
    plan = lower(both).plan
    assert [[leg["clusters"] for leg in path["legs"]] for path in plan["paths"]] == [[[0]], [[1], [2]]]
    assert plan["workload"]["models"] == [0.5, 0.5]
    facts = run_facts(both, lower(both))
    assert facts.models == ("llama-3.1-8b", "qwen3-8b")
    assert [each.peak_flops_per_s for each in facts.clusters] == [
        view.facts.peak_flops_per_s for view in both.views()
    ]


def test_names_of_one_preset_are_one_model() -> None:
    hub = {"role": "colocated", "name": "hub", "model": "Qwen/Qwen3-8B"}
    both = scenario(SMALL, QWEN, hub)
    assert [view.served_model for view in both.views()] == ["llama-3.1-8b", "qwen3-8b", "qwen3-8b"]
    (_, path) = lower(both).plan["paths"]
    assert path["legs"][0]["clusters"] == [1, 2]
    one = {**SMALL, "model": "meta-llama/Llama-3.1-8B"}
    assert [view.served_model for view in scenario(one, models={}).views()] == [None]


def test_one_model_may_be_served_under_two_names() -> None:
    fast = {**SMALL, "name": "fast", "served_model_name": "fast"}
    both = scenario(SMALL, fast, models={"llama-3.1-8b": 1, "fast": 3})
    assert lower(both).plan["workload"]["models"] == [1, 3]
    assert [view.served_model for view in both.views()] == ["llama-3.1-8b", "fast"]


def test_shares_are_relative_and_may_be_percentages() -> None:
    both = scenario(SMALL, QWEN, models={"qwen3-8b": "30%", "llama-3.1-8b": "70%"})
    assert lower(both).plan["workload"]["models"] == [0.7, 0.3], "in the order of the clusters"
    assert Scenario.from_yaml(both.to_yaml()) == both
    other = both.with_({"workload.synthetic.models": {"qwen3-8b": 1, "llama-3.1-8b": 3}})
    assert lower(other).plan["workload"]["models"] == [3, 1]


def test_a_path_and_an_inline_model_need_names(tmp_path: Path) -> None:
    shorter = {"config": "llama-3.1-8b", "num_hidden_layers": 16}
    issues = problems(SMALL, {**QWEN, "model": shorter})
    assert "is required: several models" in issues["clusters.1.served_model_name"].message
    inline = {**QWEN, "model": shorter, "served_model_name": "qwen3-8b"}
    assert scenario(SMALL, inline).view("qwen").facts.model.num_layers == 16

    from importlib import resources

    text = (resources.files("frontier.models") / "presets" / "qwen3-8b.json").read_text("utf-8")
    (tmp_path / "config.json").write_text(
        json.dumps({key: value for key, value in json.loads(text).items() if not key.startswith("_names")})
    )
    document = plain(SMALL, {**QWEN, "model": "./config.json", "served_model_name": "own"})
    document["workload"]["synthetic"]["models"] = {"llama-3.1-8b": 1, "own": 1}
    found = Scenario.from_dict(document, base_dir=tmp_path)
    assert found.view("qwen").model == str(tmp_path / "config.json")
    del document["clusters"][1]["served_model_name"]
    with pytest.raises(ConfigError, match="served_model_name: is required"):
        Scenario.from_dict(document, base_dir=tmp_path)


@pytest.mark.parametrize(
    ("clusters", "path", "message"),
    [
        (
            [SMALL, {**QWEN, "served_model_name": "llama-3.1-8b"}],
            "clusters.1.model",
            "'small' serves another",
        ),
        (
            [{**SMALL, "served_model_name": "qwen3-8b"}, QWEN],
            "clusters.1.model",
            "under the name 'qwen3-8b'",
        ),
        ([{**SMALL, "model": "qwen3-0.6b"}, QWEN], "model", "has no effect: every cluster names another"),
        ([{**SMALL, "served_model_name": "x"}], "clusters.0.served_model_name", "all clusters serve one"),
        ([SMALL, PAIR[0]], "clusters", "that serve 'qwen3-8b' (prefill) have the roles prefill"),
        ([SMALL, {**PAIR[1], "role": "prefill"}], "clusters", "have the roles prefill"),
        ([SMALL, {**QWEN, "weight": 2}], "clusters.1.weight", "no other cluster of 'qwen3-8b' is colocated"),
        ([SMALL, {**QWEN, "model": "qwen3-8"}], "clusters.1.model", "neither a preset nor"),
        ([SMALL, {**QWEN, "model": "llama-3.1-405b"}], "clusters.1.hardware.gpu", "no memory"),
    ],
)
def test_what_is_wrong_names_the_model_and_its_clusters(
    clusters: list[dict[str, Any]], path: str, message: str
) -> None:
    clusters = [dict(each) for each in clusters]
    if "405b" in str(clusters):
        clusters[1]["hardware"] = {"gpu": "h100"}
    assert message in problems(*clusters)[path].message


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({}, "is required: clusters serve llama-3.1-8b, qwen3-8b"),
        ({"llama-3.1-8b": 1}, "has no share for qwen3-8b"),
        ({"llama-3.1-8b": 1, "qwen3-8": 1}, "has 'qwen3-8', which no cluster serves"),
        ({"llama-3.1-8b": 1, "qwen3-8b": 0}, "was 0 for 'qwen3-8b', must be greater than 0"),
        ({"llama-3.1-8b": 1, "qwen3-8b": "x"}, "was 'x'"),
        (["llama-3.1-8b", "qwen3-8b"], "must be a mapping such as"),
    ],
)
def test_shares_are_of_the_models_that_are_served(models: Any, message: str) -> None:
    issue = problems(SMALL, QWEN, models=models)["workload.synthetic.models"]
    assert message in issue.message


def test_with_one_model_nobody_asks_for_it() -> None:
    assert "has no effect" in problems(SMALL)["workload.synthetic.models"].message
    document = plain() | {"clusters": None}
    with pytest.raises(ConfigError, match=r"synthetic\.models: .* has no effect: one model"):
        Scenario.from_dict(document)
    trace = {"trace": {"path": "azure-2023-conv", "columns": {"model": "TIMESTAMP"}}}
    with pytest.raises(ConfigError, match=r"columns\.model: was 'TIMESTAMP', has no effect: one model"):
        Scenario.from_dict(document | {"workload": trace})


def test_a_trace_names_models_that_are_served(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    columns = {"arrival": "t", "prompt_tokens": "p", "output_tokens": "o"}

    def traced(rows: str, **options: Any) -> Scenario:
        path.write_text(rows)
        workload = {"trace": {"path": str(path), "columns": columns, **options}}
        return scenario(SMALL, QWEN, workload=workload)

    named = "t,p,o,model\n0,1,1,qwen3-8b\n1,1,1,llama-3.1-8b\n"
    assert lower(traced(named)).columns.model.tolist() == [1, 0]  # type: ignore[union-attr]
    wrong = named + "2,1,1,qwen3-8\n"
    with pytest.raises(WorkloadError, match="was 'qwen3-8', must be one of llama-3") as error:
        lower(traced(wrong))
    assert (error.value.line, error.value.column) == (4, "model")
    skipped = lower(traced(wrong, on_bad_row="skip"))
    assert any("1 x model: not served" in warning for warning in skipped.warnings)
    with pytest.raises(WorkloadError, match="has no column that names the model") as error:
        lower(traced("t,p,o\n0,1,1\n"))
    assert "columns={'model': ...}" in str(error.value)


def test_handing_kv_over_is_checked_within_a_model() -> None:
    """Two pairs may differ in release and layout, each from the other."""
    llama = [{**PREFILL, "name": "p"}, {**DECODE, "name": "d"}]
    old = [{**each, "engine": {"version": "0.19", "tensor_parallel_size": 2}} for each in PAIR]
    both = scenario(*llama, *old, disaggregation=LINK)
    first, second = (path["legs"][1]["receives"]["bytes_per_block"] for path in lower(both).plan["paths"])
    assert (first, second) == (16 * 32 * 2 * 8 * 128 * 2, 16 * 36 * 2 * 8 * 128 * 2)
    mixed = [old[0], {**PAIR[1], "engine": {"version": "0.32", "tensor_parallel_size": 2}}]
    issues = problems(*llama, *mixed, disaggregation=LINK)
    assert "but cluster 'prefill' has 0.19" in issues["clusters.3.engine.version"].message


def test_only_clusters_that_hand_kv_over_lie_in_the_network() -> None:
    lowered = lower(scenario(SMALL, *PAIR))
    assert [cluster["placement"] is not None for cluster in lowered.plan["clusters"]] == [False, True, True]
    assert lowered.plan["network"] is not None
    colocated = problems(SMALL, QWEN, network={})
    assert "has no effect without prefill and decode" in colocated["network"].message
    degraded = {"events": [{"at": "1s", "cluster": "small", "degrade_links": {"factor": 0.5}}]}
    issues = problems(SMALL, *PAIR, dynamics=degraded)
    assert "needs links that transfers share" in issues["dynamics.events.0.degrade_links"].message


def test_fields_for_disaggregated_programs_need_one() -> None:
    issues = problems(SMALL, QWEN, disaggregation={**LINK, "balance": {"colocated": "least_loaded"}})
    assert "without prefill and decode" in issues["disaggregation.kv_transfer"].message
    message = "has no effect with one colocated cluster of each model"
    assert message in issues["disaggregation.balance.colocated"].message


def test_attention_and_ffn_clusters_belong_together_by_model() -> None:
    def unit(model: str, name: str) -> list[dict[str, Any]]:
        roles = {"prefill": {}, "attention": {"data_parallel_size": 2}, "ffn": {"data_parallel_size": 4}}
        return [
            {"role": role, "name": f"{role}-{name}", "model": model, "engine": engine}
            for role, engine in roles.items()
        ]

    one, other = unit("qwen3-30b-a3b", "qwen"), unit("deepseek-v2-lite", "deepseek")
    # The first ffn cluster is not that of the first attention cluster.
    clusters = [other[2], *one, *other[:2], {**SMALL, "hardware": {"gpu": "h200"}}]
    shares = {"llama-3.1-8b": 1, "qwen3-30b-a3b": 1, "deepseek-v2-lite": 1}
    both = scenario(*clusters, models=shares, disaggregation=LINK)
    units = {view.name: view.unit.name for view in both.views() if view.unit is not None}
    assert units == {"attention-qwen": "ffn-qwen", "attention-deepseek": "ffn-deepseek"}
    paths = lower(both).plan["paths"]
    names = [view.name for view in both.views() if view.has_requests]
    assert [[names[leg["clusters"][0]] for leg in path["legs"]] for path in paths] == [
        ["prefill-deepseek", "attention-deepseek"],
        ["prefill-qwen", "attention-qwen"],
        ["small"],
    ]


def test_a_replica_takes_its_gpus_to_the_other_model() -> None:
    target = {**QWEN, "replicas": 2, "in_service": 1}
    switch = {"events": [{"at": "1s", "cluster": "small", "switch_role": {"to": "qwen", "delay": "1s"}}]}
    two = {**SMALL, "replicas": 2}
    assert lower(scenario(two, target, dynamics=switch)).plan["dynamics"]["events"][0]["change"]["to"] == 1
    for own in ({"hardware": {"gpu": "h200"}}, {"engine": {"tensor_parallel_size": 2}}):
        issue = problems(two, {**target, **own}, dynamics=switch)["dynamics.events.0.switch_role.to"]
        assert "a replica takes its GPUs along" in issue.message


def test_commands_say_the_name_that_was_given() -> None:
    both = scenario(SMALL, {**QWEN, "served_model_name": "q"}, models={"llama-3.1-8b": 1, "q": 1})
    small, qwen = both.to_vllm().split("# cluster qwen")
    assert "vllm serve meta-llama/Llama-3.1-8B" in small
    assert "--served-model-name" not in small
    assert "vllm serve Qwen/Qwen3-8B" in qwen
    assert "--served-model-name q" in qwen
