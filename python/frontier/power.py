"""Power and energy of GPUs: idle power, and what activity adds to it.

P = idle + (peak - idle) * utilisation, so a stretch of time takes idle * GPU seconds + (peak - idle) * active
seconds, where a GPU is active while its compute, its memory or its network is busy at the sustained rate.
Fan, Weber and Barroso ("Power provisioning for a warehouse-sized computer", ISCA 2007) describe servers by
such a line. `peak` is the thermal design power: decoding, which waits for memory, draws less, so figures of
decode-heavy work lean high.

Nothing here was measured: the peak is that of the data sheet (`GpuSpec.power_source`), idle power an assumed
share of it unless given (`frontier.hardware.spec`), and what is made of them is labelled as unmeasured.
"""

from __future__ import annotations

from dataclasses import dataclass

from frontier.errors import ConfigError, Issue, show_value


@dataclass(frozen=True, slots=True)
class GpuPower:
    """What one GPU draws in W: `idle_w` without work, `peak_w` at full use."""

    idle_w: float
    peak_w: float

    def __post_init__(self) -> None:
        """Refuse what no GPU draws.

        Raises:
            ConfigError: idle power below 0, or above the peak.
        """
        if not 0 <= self.idle_w <= self.peak_w < float("inf"):
            peak = show_value(self.peak_w)
            message = f"was {show_value(self.idle_w)}, must lie between 0 and the peak ({peak} W)"
            raise ConfigError(Issue("idle_power_w", self.idle_w, message))

    def mean_w(self, utilisation: float) -> float:
        """Return the power of one GPU that is active for the share `utilisation` of the time, in W."""
        return self.idle_w + (self.peak_w - self.idle_w) * utilisation

    def energy_j(self, gpu_seconds: float, active_s: float) -> float:
        """Return the energy of `gpu_seconds` of GPU time in which GPUs were active for `active_s`, in J."""
        return self.idle_w * gpu_seconds + (self.peak_w - self.idle_w) * active_s


def power_of(idle_w: float | None, peak_w: float | None) -> GpuPower | None:
    """Return the power of a GPU, None where one of the two figures is missing."""
    return None if idle_w is None or peak_w is None else GpuPower(idle_w, peak_w)
