"""Weight tensors: how many elements and bytes of GPU memory they take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

COMPONENTS = (
    "embedding",
    "attention",
    "dense_ffn",
    "routed_experts",
    "shared_experts",
    "router",
    "norm",
    "lm_head",
)
"""Names under which parameters are counted."""


@dataclass(frozen=True, slots=True)
class Storage:
    """How the elements of a weight are kept.

    `plain` elements take `itemsize` bytes. `fp8_block` elements take one byte, and every block (rows x
    columns) one 32-bit scale. `mxfp4` elements take half a byte, and every 32 along a row one byte of scale.
    """

    kind: Literal["plain", "fp8_block", "mxfp4"]
    itemsize: int = 2
    block: tuple[int, int] = (1, 1)

    def tensor_bytes(self, rows: int, columns: int) -> int:
        """Return the bytes of a tensor, scales included."""
        if self.kind == "plain":
            return rows * columns * self.itemsize
        if self.kind == "fp8_block":
            return rows * columns + 4 * self.scales(rows, columns)
        return math.ceil(rows * columns / 2) + self.scales(rows, columns)

    def scales(self, rows: int, columns: int) -> int:
        """Return the number of scales of a tensor."""
        if self.kind == "plain":
            return 0
        return math.ceil(rows / self.block[0]) * math.ceil(columns / self.block[1])


@dataclass(frozen=True, slots=True)
class WeightTensor:
    """One weight of one instance of an operator: output features x input features (vectors: features x 1).

    `copies` tensors of this shape exist (experts). `derived` tensors are made from others when the model
    loads: they take memory and are no parameters.
    """

    name: str
    rows: int
    columns: int
    storage: Storage
    copies: int = 1
    derived: bool = False

    @property
    def elements(self) -> int:
        """Parameters; 0 for derived tensors."""
        return 0 if self.derived else self.copies * self.rows * self.columns

    @property
    def bytes(self) -> int:
        """Bytes in GPU memory, scales included."""
        return self.copies * self.storage.tensor_bytes(self.rows, self.columns)

    @property
    def scales(self) -> int:
        """Number of quantisation scales."""
        return 0 if self.derived else self.copies * self.storage.scales(self.rows, self.columns)
