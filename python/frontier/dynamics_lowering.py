"""The front door and the changes of a scenario as the plan has them.

The schema: `rust/frontier-core/src/plan/dynamics.rs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from frontier.config import Scenario
    from frontier.config.dynamics import Autoscale, ChangeEvent
    from frontier.config.views import ClusterView

RESERVES_COUNT = (
    "replicas that are not in service count as GPUs all the time: cost and energy are upper bounds, figures"
    " per GPU lower bounds"
)


def service_plan(scenario: Scenario, views: Sequence[ClusterView]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the plan's `admission` and `dynamics`, where there are any, and what a reader should know."""
    plan: dict[str, Any] = {}
    if scenario.admission is not None:
        plan["admission"] = scenario.admission.to_plan()
    dynamics = scenario.dynamics
    if dynamics is not None:
        numbers = {view.name: number for number, view in enumerate(views)}
        plan["dynamics"] = {
            "lost_requests": dynamics.lost_requests,
            "events": [_event(event, numbers) for event in dynamics.events],
            "autoscale": [_autoscale(scaler, numbers, views) for scaler in dynamics.autoscale],
        }
    clusters = [view.scenario.cluster for view in views]
    reserves = any(each.in_service is not None and each.in_service < each.replicas for each in clusters)
    scales = dynamics is not None and bool(dynamics.autoscale)
    return plan, (RESERVES_COUNT,) if reserves or scales else ()


def _number(name: str | None, numbers: Mapping[str, int]) -> int:
    return 0 if name is None else numbers[name]


def _event(event: ChangeEvent, numbers: Mapping[str, int]) -> dict[str, Any]:
    change: dict[str, Any] = {"kind": event.kind}
    if event.fail is not None:
        change["down_ns"] = event.fail.down
    elif event.restart is not None:
        change["down_ns"] = event.restart.down
    elif event.switch_role is not None:
        change |= {"to": numbers[event.switch_role.to], "delay_ns": event.switch_role.delay}
    else:
        change_of = event.slow or event.degrade_links
        assert change_of is not None
        change |= {"factor": change_of.factor, "for_ns": change_of.duration}
    return {
        "at_ns": event.at,
        "cluster": _number(event.cluster, numbers),
        "replica": event.replica,
        "change": change,
    }


def _autoscale(scaler: Autoscale, numbers: Mapping[str, int], views: Sequence[ClusterView]) -> dict[str, Any]:
    number = _number(scaler.cluster, numbers)
    most = scaler.max_replicas
    return {
        "cluster": number,
        "min_replicas": scaler.min_replicas,
        "max_replicas": views[number].scenario.cluster.replicas if most is None else most,
        "interval_ns": scaler.interval,
        "metric": scaler.metric,
        "up_above": scaler.up_above,
        "down_below": scaler.down_below,
        "provision_ns": scaler.provision,
        "cooldown_ns": scaler.provision if scaler.cooldown is None else scaler.cooldown,
    }
