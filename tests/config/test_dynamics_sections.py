"""Changes and the front door: what lowers to what, what is refused and where it is said."""

from collections.abc import Callable
from typing import Any

import pytest
from role_clusters import DECODE, LINK, PREFILL, scenario

from frontier.cli.check import document
from frontier.cli.service_facts import service_facts
from frontier.config import Scenario
from frontier.errors import ConfigError, Issue
from frontier.lowering import lower

Problems = Callable[..., dict[str, Issue]]

TWO = {"replicas": 2}
SCALER = {"up_above": 4, "provision": "60s"}


def of_clusters(*clusters: dict[str, Any], **sections: Any) -> dict[str, str]:
    """Return the messages by path of a scenario of clusters that must be refused."""
    with pytest.raises(ConfigError) as error:
        scenario(*clusters, **sections)
    return {issue.path: issue.message for issue in error.value.issues}


def changed(*events: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return {"events": [{"at": "1s", **each} for each in events], **rest}


def test_sections_lower_to_the_plan() -> None:
    both = scenario(
        {**PREFILL, "replicas": 3},
        {**DECODE, "replicas": 4, "in_service": 2},
        admission={"classes": [{"priority": -1, "max_outstanding": 9}, {"timeout": "30s", "max_retries": 2}]},
        dynamics=changed(
            {"cluster": "decode", "replica": 1, "fail": {"down": "30s"}},
            {"cluster": "decode", "fail": {}},
            {"cluster": "prefill", "restart": {"down": "1min"}},
            {"cluster": "prefill", "slow": {"factor": 2, "duration": "10s"}},
            {"cluster": "prefill", "degrade_links": {"factor": "10%"}},
            {"cluster": "prefill", "replica": 2, "switch_role": {"to": "decode", "delay": "20s"}},
            autoscale=[{"cluster": "decode", **SCALER}],
        ),
    )
    plan = lower(both).plan
    second = 10**9
    assert plan["admission"] == {
        "classes": [
            {"priority": -1, "max_outstanding": 9, "timeout_ns": None}
            | {"max_retries": 0, "retry_delay_ns": second // 2},
            {"priority": 2**31 - 1, "max_outstanding": None, "timeout_ns": 30 * second}
            | {"max_retries": 2, "retry_delay_ns": second // 2},
        ]
    }
    assert [cluster.get("in_service") for cluster in plan["clusters"]] == [None, 2]
    dynamics = plan["dynamics"]
    assert dynamics["lost_requests"] == "rerun"
    assert [(each["cluster"], each["replica"], each["change"]) for each in dynamics["events"]] == [
        (1, 1, {"kind": "fail", "down_ns": 30 * second}),
        (1, 0, {"kind": "fail", "down_ns": None}),
        (0, 0, {"kind": "restart", "down_ns": 60 * second}),
        (0, 0, {"kind": "slow", "factor": 2.0, "for_ns": 10 * second}),
        (0, 0, {"kind": "degrade_links", "factor": 0.1, "for_ns": None}),
        (0, 2, {"kind": "switch_role", "to": 1, "delay_ns": 20 * second}),
    ]
    (scaler,) = dynamics["autoscale"]
    assert (scaler["min_replicas"], scaler["max_replicas"], scaler["interval_ns"]) == (1, 4, 15 * second)
    assert scaler["provision_ns"] == scaler["cooldown_ns"] == 60 * second
    assert Scenario.from_yaml(both.to_yaml()) == both
    assert Scenario.from_yaml(both.to_yaml(defaults=False)) == both


def test_a_plan_without_them_is_as_it_was(base: Scenario) -> None:
    plan = lower(base).plan
    assert not {"admission", "dynamics"} & set(plan)
    assert "in_service" not in plan["clusters"][0]


def test_a_single_class_needs_no_list(base: Scenario) -> None:
    flat = base.with_({"admission": {"max_outstanding": 9}})
    assert flat == base.with_({"admission": {"classes": [{"max_outstanding": 9}]}})
    assert flat.with_({"admission.classes.0.max_outstanding": 8}) != flat


@pytest.mark.parametrize(
    ("admission", "path", "message"),
    [
        ({"timeout": "1s", "priority": 1}, "classes.0.priority", "has no effect: the last class has all"),
        ({"classes": []}, "classes", "must have at least 1"),
        ({"classes": [{"timeout": "1s"}] * 2}, "classes.0.priority", "is required of all classes but"),
        (
            {"classes": [{"priority": 2, "timeout": "1s"}, {"priority": 2}, {}]},
            "classes.1.priority",
            "must be above that of the class before it (2)",
        ),
        ({"max_retries": 2}, "classes.0.max_retries", "without max_outstanding or timeout"),
        ({"timeout": "1s", "retry_delay": "1s"}, "classes.0.retry_delay", "was 1s, has no effect"),
        ({"timeout": "1s", "max_retries": 1001}, "classes.0.max_retries", "must be at most 1000"),
        ({"max_retries": 0}, "", "limits nothing"),
        ({"max_outstanding": 0}, "classes.0.max_outstanding", "must be at least 1"),
        (3, "", "must be a mapping with fields such as 'max_outstanding'"),
    ],
)
def test_admission_that_means_nothing_is_refused(
    problems: Problems, admission: Any, path: str, message: str
) -> None:
    found = problems(admission=admission)
    assert message in found[f"admission.{path}".rstrip(".")].message


@pytest.mark.parametrize(
    ("dynamics", "path", "message"),
    [
        ({}, "", "changes nothing"),
        (
            changed({"slow": {"factor": 2}}, lost_requests="fail"),
            "lost_requests",
            "no replica leaves service",
        ),
        (changed({}), "events.0", "says not what happens, must have exactly one of: fail, restart"),
        (changed({"fail": {}, "slow": {"factor": 2}}), "events.0", "has fail and slow at once"),
        (changed({"fail": {}, "cluster": "decode"}), "events.0.cluster", "no cluster has this name"),
        (changed({"fail": {}, "replica": 2}), "events.0.replica", "must be below the 2 replicas of serve"),
        (changed({"slow": {"factor": 1}}), "events.0.slow.factor", "must be greater than 1"),
        (changed({"restart": {}}), "events.0.restart.down", "is required"),
        (changed({"degrade_links": {"factor": 1}}), "events.0.degrade_links.factor", "must be less than 1"),
        (changed({"degrade_links": {"factor": 0}}), "events.0.degrade_links", "needs links that transfers"),
        (
            changed({"switch_role": {"to": "serve", "delay": "1s"}}),
            "events.0.switch_role.to",
            "must be another cluster",
        ),
        ({"autoscale": [SCALER, SCALER]}, "autoscale.1.cluster", "another entry scales"),
        (
            {"autoscale": [{**SCALER, "max_replicas": 3}]},
            "autoscale.0.max_replicas",
            "at most the 2 replicas",
        ),
        ({"autoscale": [{**SCALER, "min_replicas": 3}]}, "autoscale.0.min_replicas", "must be at most 2"),
        ({"autoscale": [{**SCALER, "min_replicas": 2}]}, "autoscale.0.max_replicas", "nothing is scaled"),
        ({"autoscale": [{**SCALER, "down_below": 4}]}, "autoscale.0.up_above", "must be above down_below"),
        ({"autoscale": [{**SCALER, "metric": "kv_use"}]}, "autoscale.0.up_above", "must be below 1"),
        ({"autoscale": [{"up_above": 4}]}, "autoscale.0.provision", "is required"),
    ],
)
def test_changes_that_mean_nothing_are_refused(
    problems: Problems, dynamics: Any, path: str, message: str
) -> None:
    found = problems(cluster=TWO, dynamics=dynamics)
    assert message in found[f"dynamics.{path}".rstrip(".")].message


def test_the_reserve_is_checked(problems: Problems, base: Scenario) -> None:
    assert "at most the 2" in problems(cluster={**TWO, "in_service": 3})["cluster.in_service"].message
    assert "no change" in problems(cluster={**TWO, "in_service": 0})["cluster.in_service"].message
    one = {**TWO, "in_service": 1}
    found = problems(cluster=one, dynamics=changed({"replica": 1, "fail": {}}))
    assert "nothing brings it into service" in found["dynamics.events.0.replica"].message
    three = {"replicas": 4, "in_service": 3}
    found = problems(cluster=three, dynamics={"autoscale": [{**SCALER, "max_replicas": 2}]})
    assert "comes to 3, must be from min_replicas (1)" in found["cluster.in_service"].message
    scaled = {"autoscale": [SCALER], **changed({"replica": 1, "fail": {}})}
    base.with_({"cluster": one, "dynamics": scaled})


def test_a_switch_needs_a_place() -> None:
    switch = {"cluster": "prefill", "switch_role": {"to": "decode", "delay": "1s"}}
    prefill = {**PREFILL, "replicas": 3}
    found = of_clusters(prefill, DECODE, dynamics=changed(switch))
    assert "of which 0 replicas are not in service" in found["dynamics.events.0.switch_role.to"]
    reserve = {**DECODE, "replicas": 2, "in_service": 1}
    found = of_clusters(prefill, reserve, dynamics=changed(switch, {**switch, "replica": 1}))
    assert set(found) == {"dynamics.events.1.switch_role.to"}
    scenario(prefill, {**DECODE, "in_service": 0}, dynamics=changed(switch))
    found = of_clusters(prefill, reserve, dynamics=changed({"cluster": "prefil", "fail": {}}))
    assert "no cluster has this name" in found["dynamics.events.0.cluster"]
    found = of_clusters(prefill, reserve, dynamics=changed({"fail": {}}))
    assert "was not given, and there are 2 clusters" in found["dynamics.events.0.cluster"]


def test_links_of_their_own_cannot_be_degraded() -> None:
    degrade = changed({"cluster": "prefill", "degrade_links": {"factor": 0.5}})
    scenario(PREFILL, DECODE, dynamics=degrade)
    found = of_clusters(PREFILL, DECODE, dynamics=degrade, disaggregation=LINK)
    assert set(found) == {"dynamics.events.0.degrade_links"}


@pytest.mark.parametrize(
    ("engine", "path"),
    [
        ({"name": "sglang", "version": "0.5.3"}, "engine.name"),
        ({"scheduler": "orca"}, "engine.scheduler"),
    ],
)
@pytest.mark.parametrize("section", ["admission", "dynamics"])
def test_who_cannot_lose_requests(problems: Problems, engine: Any, path: str, section: str) -> None:
    value = {"timeout": "1s"} if section == "admission" else changed({"fail": {}})
    found = problems(engine=engine, **{section: value})
    assert f"requests can leave before their end ({section})" in found[path].message


def test_it_is_said_of_the_cluster_whose_engine_it_is() -> None:
    one, other = ({"role": "colocated", "name": name} for name in ("one", "other"))
    found = of_clusters({**one, "engine": {"scheduler": "orca"}}, other, admission={"timeout": "1s"})
    assert set(found) == {"clusters.0.engine.scheduler"}
    assert "requests can leave before their end" in found["clusters.0.engine.scheduler"]


def test_check_tells_what_will_change() -> None:
    both = scenario(
        {**PREFILL, "replicas": 2},
        {**DECODE, "replicas": 2, "in_service": 1},
        admission={"max_outstanding": 200, "timeout": "30s", "max_retries": 2},
        dynamics=changed(
            {"cluster": "decode", "fail": {}, "at": "5s"},
            {"cluster": "prefill", "slow": {"factor": 2}},
            autoscale=[{"cluster": "decode", **SCALER}],
        ),
    )
    assert service_facts(both) == [
        ("admission", "all requests: at most 200 under way, clients wait 30s, and try again 2 times"),
        ("change", "1s: prefill replica 0, slow by 2"),
        ("change", "5s: decode replica 0, fail"),
        ("autoscale", "decode, 1 to all replicas by outstanding (up above 4, down below 0)"),
        ("lost requests", "start over"),
    ]
    shown = document(both, lower(both))
    assert [each["cluster"]["in_service"] for each in shown["clusters"]] == [2, 1]
    assert any("not in service count as GPUs" in warning for warning in shown["warnings"])
