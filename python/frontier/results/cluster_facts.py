"""What metrics must know of the GPUs of one cluster, where clusters of a run differ."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from frontier.errors import ConfigError, Issue, show_value

WORDS = ("name", "gpus", "model")
"""Facts that are not amounts which may be unknown."""


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """Facts of one cluster that the columns of its run do not carry.

    Attributes:
        name: name of the cluster.
        gpus: GPUs of all its replicas together.
        gpu_price_per_hour_usd: list price of one GPU for an hour, None if unknown.
        peak_flops_per_s: dense peak of one GPU at the compute dtype, None if unknown.
        memory_bandwidth_bytes_per_s: HBM bandwidth of one GPU, None if unknown.
        idle_power_w: what one GPU draws without work, None if unknown.
        peak_power_w: what it draws at full use, None if unknown.
        max_model_len: longest prompt + output of the engine; a request that reaches it ends early.
        model: name by which requests ask for the model that it serves, None where all clusters serve one.
    """

    name: str
    gpus: int
    gpu_price_per_hour_usd: float | None = None
    peak_flops_per_s: float | None = None
    memory_bandwidth_bytes_per_s: float | None = None
    idle_power_w: float | None = None
    peak_power_w: float | None = None
    max_model_len: int | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        """Refuse what no cluster has.

        Raises:
            ConfigError: a value is out of range.
        """
        issues = []
        if not isinstance(self.name, str) or not self.name:
            issues.append(Issue("name", self.name, f"was {show_value(self.name)}, must be a word"))
        if not isinstance(self.gpus, int) or isinstance(self.gpus, bool) or self.gpus < 1:
            message = f"was {show_value(self.gpus)}, must be a whole number of at least 1"
            issues.append(Issue("gpus", self.gpus, message))
        issues += [
            Issue(each.name, value, f"was {show_value(value)}, must be a number of 0 or more, or null")
            for each in fields(self)
            if each.name not in WORDS and not _is_amount(value := getattr(self, each.name))
        ]
        if self.model is not None and (not isinstance(self.model, str) or not self.model):
            message = f"was {show_value(self.model)}, must be a word or null"
            issues.append(Issue("model", self.model, message))
        idle, peak = self.idle_power_w, self.peak_power_w
        if not issues and idle is not None and peak is not None and idle > peak:
            message = f"was {idle:g}, must be at most peak_power_w ({peak:g})"
            issues.append(Issue("idle_power_w", idle, message))
        if issues:
            raise ConfigError(issues, source="facts of a cluster")

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain values (`from_dict` reads them back)."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: object) -> ClusterFacts:
        """Read what `to_dict` wrote.

        Raises:
            ConfigError: a field is unknown, missing or out of range.
        """
        names = [each.name for each in fields(cls)]
        if not isinstance(plain, Mapping) or not {"name", "gpus"} <= set(plain) <= set(names):
            message = f"was {show_value(plain)}, must have name and gpus, and may have {', '.join(names[2:])}"
            raise ConfigError(Issue("clusters", plain, message), source="run facts")
        return cls(**plain)


def _is_amount(value: object) -> bool:
    if value is None:
        return True
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value >= 0  # type: ignore[arg-type, operator]
