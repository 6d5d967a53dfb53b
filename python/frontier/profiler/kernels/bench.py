"""What kernels are built with: PyTorch, a place, and which libraries of kernels work there."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from frontier.errors import FrontierError

_DRAWN: Final = 2**20

Run = Callable[[], object]


@dataclass(frozen=True)
class Launches:
    """A point's launches: the kernel's name, and one function per copy of its operands."""

    kernel: str
    runs: Sequence[Run]


@dataclass
class Bench:
    """PyTorch and a device for operands.

    Attributes:
        torch: the module.
        place: device string of PyTorch.
        libraries: functions of kernel libraries that were found to work here, by kernel name.
        grouped_mm: whether PyTorch's grouped product runs on this device.
    """

    torch: Any
    place: str
    libraries: dict[str, Callable[..., Any]] = field(default_factory=dict)
    grouped_mm: bool = False

    def dtype(self, name: str) -> Any:
        """Return PyTorch's type of a plan name."""
        names = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp8": "float8_e4m3fn"}
        return getattr(self.torch, names[name])

    def normal(self, *shape: int, dtype: str, scale: float = 1.0) -> Any:
        """Return normally distributed values: power draw, and with it clocks, depends on the data.

        The first `_DRAWN` values are drawn and then repeated, since drawing takes longer than measuring.
        """
        values = self.torch.empty(shape, device=self.place, dtype=self.dtype(dtype))
        flat = values.view(-1)
        filled = min(flat.numel(), _DRAWN)
        drawn = self.torch.randn(filled, device=self.place, dtype=self.torch.float32)
        flat[:filled] = (drawn * scale).to(values.dtype)
        while filled < flat.numel():
            more = min(filled, flat.numel() - filled)
            flat[filled : filled + more] = flat[:more]
            filled += more
        return values

    def integers(self, values: Sequence[int] | Sequence[Sequence[int]], dtype: str = "int32") -> Any:
        """Return a tensor of whole numbers."""
        return self.torch.tensor(values, device=self.place, dtype=getattr(self.torch, dtype))


def import_torch() -> Any:
    """Return PyTorch.

    Raises:
        FrontierError: it is not installed; names the extra that brings it.
    """
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise FrontierError(
            f"profiling needs PyTorch ({error}): pip install 'frontier-sim[profile]', or install the build "
            "of torch that fits your driver"
        ) from None
