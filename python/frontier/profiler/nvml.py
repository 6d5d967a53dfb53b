"""Clocks, power limit and driver from NVIDIA's management library, where there is one."""

from __future__ import annotations

import ctypes
from typing import Final

_CLOCK_SM: Final = 1
_CLOCK_MEMORY: Final = 2


class Nvml:
    """One GPU as `libnvidia-ml` sees it. Whatever cannot be read is None: it never ends a profile."""

    def __init__(self, pci_bus_id: str) -> None:
        """Look up the GPU at a PCI address such as `00000000:3B:00.0`."""
        self._library: ctypes.CDLL | None = None
        self._handle = ctypes.c_void_p()
        try:
            library = ctypes.CDLL("libnvidia-ml.so.1")
            if library.nvmlInit_v2() != 0:
                return
            address = ctypes.c_char_p(pci_bus_id.encode())
            if library.nvmlDeviceGetHandleByPciBusId_v2(address, ctypes.byref(self._handle)) == 0:
                self._library = library
        except (OSError, AttributeError):
            return

    def clock_mhz(self) -> float | None:
        """Return the current clock of the multiprocessors."""
        return self._number("nvmlDeviceGetClockInfo", _CLOCK_SM)

    def state(self) -> dict[str, str]:
        """Return clocks, their limits and the power limit as text; empty where they cannot be read."""
        read = {
            "sm_clock_mhz": self.clock_mhz(),
            "sm_clock_most_mhz": self._number("nvmlDeviceGetMaxClockInfo", _CLOCK_SM),
            "memory_clock_mhz": self._number("nvmlDeviceGetClockInfo", _CLOCK_MEMORY),
            "power_limit_mw": self._number("nvmlDeviceGetEnforcedPowerLimit"),
        }
        return {name: f"{value:g}" for name, value in read.items() if value is not None}

    def driver(self) -> str | None:
        """Return the driver's version."""
        if self._library is None:
            return None
        text = ctypes.create_string_buffer(80)
        if self._library.nvmlSystemGetDriverVersion(text, len(text)) != 0:
            return None
        return text.value.decode(errors="replace")

    def _number(self, function: str, *arguments: int) -> float | None:
        if self._library is None:
            return None
        value = ctypes.c_uint()
        try:
            code = getattr(self._library, function)(self._handle, *arguments, ctypes.byref(value))
        except AttributeError:
            return None
        return float(value.value) if code == 0 else None
