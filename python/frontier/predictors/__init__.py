"""Packs of learned operator predictors: what they hold, and where it came from.

    pack = frontier.predictors.open_pack("profiles/h100.safetensors")
    for info in pack.predictors:
        print(info.operator, info.kernel, info.dtype, info.rows)

A pack is one safetensors file per GPU. It holds numbers and names, never code, and everything that it
claims is checked before it is used.

**Format, version 1.** `__metadata__` has `format` ("frontier-pack"), `format_version` ("1"), `manifest` (a
JSON text: `PackFile` and `PredictorInfo` say what is in it) and `manifest_sha256`. Tensors have one
dimension, little-endian elements, and names of the form `<number of the predictor>.<tensor>`:

- trees: `thresholds` F32, the distinct thresholds of each feature ascending (at most 255), features one after
  another; `threshold_offsets` U32, where those of each begin, and the end; `nodes` U8, all trees in
  pre-order, an internal node being two bytes (feature, rank of its threshold; the left child follows), a leaf
  the byte 255; `tree_starts` U32, where each tree begins in `nodes`, and the end; `leaves` F16 or F32 in
  order of appearance. A row goes left where `x[feature] < threshold`. The margin is a float32 sum of leaves
  in the order of trees, begun with `base_score`.
- table: `x` F32, bytes ascending; `seconds` F32.
- both: `static_shapes` U64, the shapes that were measured, as ascending hashes
  (`frontier.training.export.static_shape_hash`).

A predictor's `sha256` covers its tensors in the order of names: each name without its number, then its bytes.
"""

from __future__ import annotations

from frontier.predictors.pack_file import (
    BoundParameters,
    Cold,
    PackFile,
    PredictorInfo,
    Source,
    open_pack,
)

__all__ = ["BoundParameters", "Cold", "PackFile", "PredictorInfo", "Source", "open_pack"]
