"""Features and costs of measurements, computed by the Rust core that prices operators in a simulation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frontier import _frontier
from frontier.errors import ConfigError
from frontier.hardware import GpuSpec, load_gpu
from frontier.training.bounds import Costs
from frontier.training.identity import EXCHANGES, Identity
from frontier.training.measurements import Measurements

# The arithmetic of weight-only and block-scaled schemes, by the name that a GPU's peak rates have.
_ARITHMETIC = {"fp8_block": "fp8", "int4": "bf16", "nvfp4": "fp4"}


@dataclass(frozen=True)
class Inputs:
    """What a predictor sees of each row: float32 [n, F] features by name, and the terms of the bound."""

    names: tuple[str, ...]
    features: NDArray[np.float32]
    costs: Costs

    def chosen(self, names: tuple[str, ...]) -> NDArray[np.float32]:
        """Return the columns of these features, in this order."""
        return np.ascontiguousarray(self.features[:, [self.names.index(name) for name in names]])


def arithmetic_dtype(identity: Identity, activation_bytes: float) -> str:
    """Return the dtype whose peak rate bounds the operator: 16 bits unless the activations are narrower."""
    if identity.dtype == "mxfp4" or (identity.dtype == "int8" and activation_bytes > 1):
        wanted = "fp8" if identity.dtype == "mxfp4" and activation_bytes < 2 else "bf16"
    else:
        wanted = _ARITHMETIC.get(identity.dtype, identity.dtype)
    peaks = load_gpu(identity.gpu).peak_flops_per_s.to_plan()
    # Older GPUs run 8-bit and 4-bit weights by dequantising them.
    return wanted if peaks.get(wanted) is not None else "bf16"


def inputs_of(measurements: Measurements, *, operator: str | None = None) -> Inputs:
    """Return features and costs of all rows.

    Args:
        measurements: the rows.
        operator: the operator whose features are wanted, that of the identity if None.

    Raises:
        ConfigError: a row that the core refuses; the message names column and row.
    """
    identity = measurements.identity
    spec = load_gpu(identity.gpu)
    wanted = operator or identity.operator
    columns = measurements.columns
    activation = columns.get("activation_bytes")
    narrow = 2.0 if activation is None or not len(activation) else float(activation.max())
    dtype = "bf16" if activation is None else arithmetic_dtype(identity, narrow)
    if wanted not in EXCHANGES:
        return _computed(wanted, spec, dtype, columns, None)
    # What stays within a node crosses no network, whose latency would be counted otherwise.
    nodes = columns["nodes"]
    parts = [
        (rows, _computed(wanted, spec, dtype, {k: v[rows] for k, v in columns.items()}, _links(spec, count)))
        for count in (1, 2)
        if len(rows := np.flatnonzero(nodes == 1 if count == 1 else nodes > 1))
    ]
    order = np.argsort(np.concatenate([rows for rows, _ in parts]), kind="stable")

    def joined(name: str) -> NDArray[np.float64]:
        return np.asarray(np.concatenate([getattr(part.costs, name) for _, part in parts])[order])

    return Inputs(
        parts[0][1].names,
        np.concatenate([part.features for _, part in parts])[order],
        Costs(joined("compute_s"), joined("memory_s"), joined("network_s"), joined("launch_s")),
    )


def _links(spec: GpuSpec, nodes: int) -> str:
    try:
        links = spec.links(spec.gpus_per_node * nodes)
    except ConfigError:
        links = spec.links(spec.gpus_per_node)
    return json.dumps(links.to_plan())


def _computed(operator: str, spec: GpuSpec, dtype: str, columns: dict[str, Any], links: str | None) -> Inputs:
    found = _frontier.operator_features(operator, json.dumps(spec.to_plan()), dtype, columns, links)
    names = ("compute_s", "memory_s", "network_s", "launch_s")
    return Inputs(
        tuple(found["names"]), found["features"], Costs(*(np.asarray(found[name]) for name in names))
    )
