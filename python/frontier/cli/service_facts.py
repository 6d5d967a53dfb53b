"""The front door and the changes of a scenario, in the words of `frontier check`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from frontier import units

if TYPE_CHECKING:
    from frontier.config import Scenario
    from frontier.config.admission import AdmissionClass
    from frontier.config.dynamics import Autoscale, ChangeEvent

SHOWN_EVENTS = 8
"""Most changes that are listed one by one."""


def service_facts(scenario: Scenario) -> list[tuple[str, str]]:
    """Return a line for each class of requests at the front door, each change and each autoscaler."""
    facts = []
    if scenario.admission is not None:
        classes = scenario.admission.classes
        rest = "all others" if len(classes) > 1 else "all requests"
        facts += [("admission", _class_words(each, rest)) for each in classes]
    dynamics = scenario.dynamics
    if dynamics is None:
        return facts
    events = sorted(dynamics.events, key=lambda event: event.at)
    facts += [("change", _event_words(event)) for event in events[:SHOWN_EVENTS]]
    if len(events) > SHOWN_EVENTS:
        facts.append(("change", f"and {len(events) - SHOWN_EVENTS:,} more"))
    facts += [("autoscale", _scaler_words(scaler)) for scaler in dynamics.autoscale]
    if events:
        facts.append(("lost requests", "start over" if dynamics.lost_requests == "rerun" else "fail"))
    return facts


def _class_words(each: AdmissionClass, rest: str) -> str:
    who = rest if each.priority is None else f"priority up to {each.priority}"
    parts = []
    if each.max_outstanding is not None:
        parts.append(f"at most {each.max_outstanding:,} under way")
    if each.timeout is not None:
        parts.append(f"clients wait {units.format_duration(each.timeout)}")
    if each.max_retries:
        parts.append(f"and try again {each.max_retries} times")
    return f"{who}: {', '.join(parts) or 'no limit'}"


def _event_words(event: ChangeEvent) -> str:
    name = "" if event.cluster is None else f"{event.cluster} "
    what = event.kind.replace("_", " ")
    if event.slow is not None:
        what += f" by {event.slow.factor:g}"
    elif event.degrade_links is not None:
        what += f" to {event.degrade_links.factor:.0%}"
    elif event.switch_role is not None:
        what += f" to {event.switch_role.to}"
    return f"{units.format_duration(event.at)}: {name}replica {event.replica}, {what}"


def _scaler_words(scaler: Autoscale) -> str:
    name = "" if scaler.cluster is None else f"{scaler.cluster}, "
    most = "all" if scaler.max_replicas is None else f"{scaler.max_replicas:,}"
    return (
        f"{name}{scaler.min_replicas:,} to {most} replicas by {scaler.metric}"
        f" (up above {scaler.up_above:g}, down below {scaler.down_below:g})"
    )
