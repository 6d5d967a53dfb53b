"""What a step with attention and FFN apart goes round: attention, link, FFN and link.

The iteration in one formula, where all micro-batches and layers take equally long (MegaScale-Infer,
arXiv:2504.02263, section 4.1; `rust/frontier-core/src/fidelity/afd/closed_form.rs`): with the slowest station
`X = max(Ta, Te, Tc)` and one round `R = Ta + Te + 2 Tc`, `T = R + (m - 1) X + (L - 1) max(m X, R)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Bound = Literal["attention", "ffn", "link", "latency"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stations:
    """Times of one micro-batch in the mean layer, in seconds.

    Attributes:
        attention_s: attention (Ta).
        ffn_s: the FFN, its slowest rank (Te).
        a2f_s: to the FFN.
        f2a_s: and back.
        micro_batches: that have tokens.
        layers: of the model.
    """

    attention_s: float
    ffn_s: float
    a2f_s: float
    f2a_s: float
    micro_batches: int
    layers: int

    @classmethod
    def of(cls, facts: Mapping[str, Any], step_time: Mapping[str, Any], tokens: int) -> Stations:
        """Return the stations of a step.

        Args:
            facts: what `step_breakdown` says of it.
            step_time: the plan's `AfdSpec`.
            tokens: that an attention rank computes in it.
        """
        classes = len(step_time["classes"])
        layers = sum(run["count"] for run in step_time["layers"])
        parts = min(int(step_time["micro_batches"]), tokens)
        seconds = {"attention": 0.0, "ffn": 0.0, "a2f": 0.0, "f2a": 0.0}
        for row in facts["operators"]:
            if 1 <= row["stage"] <= classes:
                seconds["attention"] += row["seconds"]
            elif row["stage"] > classes + 1:
                seconds[row["name"] if row["name"] in seconds else "ffn"] += row["seconds"]
        each = {f"{name}_s": value / (parts * layers) for name, value in seconds.items()}
        return cls(**each, micro_batches=parts, layers=layers)

    @property
    def transfer_s(self) -> float:
        """The longer way of the two (Tc)."""
        return max(self.a2f_s, self.f2a_s)

    @property
    def least_micro_batches(self) -> int:
        """Fewest that hide transfers, `ceil(2 (1 + Tc / max(Ta, Te)))`."""
        slowest = max(self.attention_s, self.ffn_s)
        return math.ceil(2 * (1 + self.transfer_s / slowest)) if slowest > 0 else 2

    @property
    def round_s(self) -> float:
        """A micro-batch alone in one layer."""
        return self.attention_s + self.ffn_s + self.a2f_s + self.f2a_s

    @property
    def iteration_s(self) -> float:
        """All layers by the formula above; embedding, LM head and hosts are not in it."""
        slowest = max(self.attention_s, self.ffn_s, self.transfer_s)
        again = max(self.micro_batches * slowest, self.round_s)
        return self.round_s + (self.micro_batches - 1) * slowest + (self.layers - 1) * again

    @property
    def bound(self) -> Bound:
        """What sets the pace: the slowest station, or `latency` where too few micro-batches keep it busy."""
        slowest = max(self.attention_s, self.ffn_s)
        if self.micro_batches * max(slowest, self.transfer_s) < self.round_s:
            return "latency"
        if self.transfer_s > slowest:
            return "link"
        return "attention" if self.attention_s >= self.ffn_s else "ffn"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        names = ("attention_s", "ffn_s", "a2f_s", "f2a_s", "micro_batches", "layers", "least_micro_batches")
        return {name: getattr(self, name) for name in (*names, "iteration_s", "bound")}
