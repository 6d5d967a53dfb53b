"""Weight tensors: how many elements and bytes of GPU memory they take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from frontier.models.spec import QuantizationMethod

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


WeightKind = Literal["plain"] | QuantizationMethod
"""How an array of weights is kept."""

_BITS: dict[WeightKind, tuple[int, int, int]] = {
    # bits of an element, of the scale (and zero point) of a block, of what a whole tensor has beside
    "fp8_block": (8, 32, 0),
    "fp8_tensor": (8, 32, 0),
    "fp8_channel": (8, 32, 0),
    "int8_channel": (8, 32, 0),
    "int8_group": (8, 16, 0),
    "int4_group": (4, 16, 0),
    "int4_group_zero": (4, 20, 0),
    "mxfp4": (4, 8, 0),
    "mxfp8": (8, 8, 0),
    "nvfp4": (4, 8, 32),
}
"""As vLLM keeps them on the GPU (`create_weights` in `vllm/model_executor/layers/quantization`). Scales of
activations (one number per layer, where they are static) and the permutation of act-order are left out."""


@dataclass(frozen=True, slots=True)
class Storage:
    """How the elements of a weight are kept.

    `plain` elements take `itemsize` bytes. All others take 4 or 8 bits, and every block of them (rows x
    columns; 0 is the whole extent) has a scale: 32 bits in `fp8_*` and `int8_channel`; 16 in `int8_group` and
    `int4_group`, with 4 bits of zero point in `int4_group_zero`; 8 bits per 32 along a row in `mxfp4` and
    `mxfp8`, and per 16 in `nvfp4`, whose tensors have 32 bits of scale beside.
    """

    kind: WeightKind
    itemsize: int = 2
    block: tuple[int, int] = (1, 1)

    def tensor_bytes(self, rows: int, columns: int) -> int:
        """Return the bytes of a tensor, scales included."""
        if self.kind == "plain":
            return rows * columns * self.itemsize
        element, scale, beside = _BITS[self.kind]
        scales = math.ceil(self.scales(rows, columns) * scale / 8)
        return math.ceil(rows * columns * element / 8) + scales + beside // 8

    def scales(self, rows: int, columns: int) -> int:
        """Return the number of scales of a tensor's blocks."""
        if self.kind == "plain":
            return 0
        return math.ceil(rows / (self.block[0] or rows)) * math.ceil(columns / (self.block[1] or columns))


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
