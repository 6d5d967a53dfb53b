"""What changes while a run goes on: faults, maintenance, replicas that change their role, autoscaling.

Times to load weights and start an engine differ by an order of magnitude with storage, model and image; they
have no default here and must be given.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from frontier import units
from frontier.config.base import Section
from frontier.config.fields import Duration, Number, Positive, PositiveDuration, ShareBelowOne, Text, Whole
from frontier.errors import show_value

MAX_FACTOR: Final = 1e6
MAX_EVENTS: Final = 100_000
HPA_SYNC_PERIOD_NS: Final = 15_000_000_000
"""Kubernetes: `--horizontal-pod-autoscaler-sync-period` of the controller manager."""

LostRequests = Literal["rerun", "fail"]
Metric = Literal["outstanding", "waiting", "kv_use"]


def parse_factor(value: object) -> float:
    """Read how many times as long steps take."""
    factor = units.parse_number(value)
    if not 1 < factor <= MAX_FACTOR:
        raise ValueError(f"was {show_value(value)}, must be greater than 1, at most {MAX_FACTOR:g}")
    return factor


class Fail(Section):
    """The replica is gone at once, with all KV."""

    down: Duration | None = None
    """Time to notice, to replace it and to load weights; it comes back empty. Left out, it never does."""


class Restart(Section):
    """The replica takes no new requests, and restarts when the last one has left."""

    down: Duration
    """Time that the restart takes, weights included."""


class Slow(Section):
    """Steps of the replica take longer."""

    factor: Annotated[float, BeforeValidator(parse_factor)]
    """How many times as long."""
    duration: PositiveDuration | None = None
    """For how long; left out, to the end of the run."""


class DegradeLinks(Section):
    """Links of the replica's GPUs have less bandwidth."""

    factor: ShareBelowOne
    """The share of their bandwidth that is left; at 0 transfers stall."""
    duration: PositiveDuration | None = None
    """For how long; left out, to the end of the run."""


class SwitchRole(Section):
    """The replica takes no new requests and, when the last one has left, is one of another cluster."""

    to: Text
    """Name of the cluster that it joins, of which a replica is not in service."""
    delay: Duration
    """Time to load weights and start there."""


class ChangeEvent(Section):
    """What happens to one replica at one time: exactly one of the changes."""

    at: Duration
    """Simulated time."""
    cluster: Text | None = None
    """Name of the cluster; left out, the only one."""
    replica: Whole = 0
    """The replica in it, counted from 0."""
    fail: Fail | None = None
    """It is gone, with all KV."""
    restart: Restart | None = None
    """It ends what it has, then restarts."""
    slow: Slow | None = None
    """Its steps take longer."""
    degrade_links: DegradeLinks | None = None
    """Its links have less bandwidth."""
    switch_role: SwitchRole | None = None
    """It ends what it has, then joins another cluster."""

    @model_validator(mode="before")
    @classmethod
    def _one_change(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        given = [name for name in KINDS if value.get(name) is not None]
        if len(given) != 1 and not set(value) - set(cls.model_fields):
            found = f"has {' and '.join(given)} at once" if given else "says not what happens"
            message = f"{found}, must have exactly one of: {', '.join(KINDS)} (such as fail: {{}})"
            raise PydanticCustomError("section", "{message}", {"message": message})
        return value

    @property
    def kind(self) -> str:
        """What happens."""
        return next(name for name in KINDS if getattr(self, name) is not None)


KINDS: Final = ("fail", "restart", "slow", "degrade_links", "switch_role")
"""What may happen to a replica."""


class Autoscale(Section):
    """A cluster that grows and shrinks with its load, a replica at a time."""

    cluster: Text | None = None
    """Name of the cluster; left out, the only one."""
    min_replicas: Positive = 1
    """Fewest replicas in service."""
    max_replicas: Positive | None = None
    """Most of them; left out, all replicas of the cluster."""
    interval: PositiveDuration = HPA_SYNC_PERIOD_NS
    """How often the load is looked at; the default is that of Kubernetes' HorizontalPodAutoscaler."""
    metric: Metric = "outstanding"
    """What is looked at: requests under way or waiting per replica in service, or the mean share of their KV
    blocks in use."""
    up_above: Number
    """A replica is added above this."""
    down_below: Number = 0.0
    """A replica is taken out of service, once it is done with its requests, below this; 0 never does."""
    provision: Duration
    """Time to get GPUs, load weights and start."""
    cooldown: Duration | None = None
    """Time after a change in which nothing else is changed; left out, as long as provision."""


class Dynamics(Section):
    """What changes while the run goes on."""

    lost_requests: LostRequests = "rerun"
    """What becomes of requests whose KV is lost: they start over from their prompt, or fail."""
    events: Annotated[tuple[ChangeEvent, ...], Field(max_length=MAX_EVENTS)] = ()
    """What happens when, in any order."""
    autoscale: Annotated[tuple[Autoscale, ...], Field(max_length=64)] = ()
    """Clusters that grow and shrink by themselves."""
