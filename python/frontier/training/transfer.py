"""What sweeps of two GPUs teach about all others: unequal lengths and mixed batches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from frontier.training import holdout
from frontier.training.bounds import fitted_bound
from frontier.training.fit import Fit
from frontier.training.identity import Identity
from frontier.training.inputs import inputs_of
from frontier.training.measurements import Measurements
from frontier.training.predictor import Trained, train
from frontier.training.settings import settings_for
from frontier.training.skew import (
    MixedShare,
    SkewRows,
    decode_rows,
    generic_skew,
    mixed_share,
    skew_rows,
)


@dataclass(frozen=True)
class Transfer:
    """Corrections learned where unequal and mixed batches were measured.

    Attributes:
        skew: factor for GPUs with uniform batches alone.
        own: decode predictors of the measured GPUs, which know unequal lengths, by identity.
        shares: mixed share of each measured GPU.
        generic_share: for the others: the median over GPUs.
        crossed: each GPU's mixed batches with the share of the others.
    """

    skew: Trained | None
    own: dict[Identity, Trained]
    shares: dict[str, MixedShare]
    generic_share: float | None
    crossed: dict[str, MixedShare]

    def detail(self, gpu: str) -> dict[str, Any]:
        """Return what the decode predictors of a GPU say of mixed batches."""
        if gpu in self.shares:
            return {"mixed_share": _allowed(self.shares[gpu].share)}
        if self.generic_share is None:
            return {}
        return {"mixed_share": _allowed(self.generic_share), "mixed_share_from": sorted(self.shares)}


def _allowed(share: float) -> float:
    """Return a share as plans take it: at most the whole of the shorter part."""
    return min(max(share, 0.0), 1.0)


def learn(found: Iterable[Measurements]) -> Transfer:
    """Learn from sweeps (operators `decode_skew` and `mixed`) and the uniform tables beside them."""
    by_gpu: dict[str, dict[str, Measurements]] = {}
    for measurements in found:
        by_gpu.setdefault(measurements.identity.gpu, {})[measurements.identity.operator] = measurements
    own: dict[Identity, Trained] = {}
    parts: dict[str, SkewRows] = {}
    fits: dict[str, tuple[Measurements, Fit, Fit]] = {}
    for gpu, tables in sorted(by_gpu.items()):
        if not {"decode_attention", "decode_skew"} <= set(tables):
            continue
        uniform_table, sweep = tables["decode_attention"], tables["decode_skew"]
        parts[gpu] = skew_rows(sweep, _whole(decode_rows(uniform_table, sweep, skewed=False)))
        everything = decode_rows(uniform_table, sweep, skewed=True)
        own[everything.identity] = train(everything, skewed=True, detail={"knows_unequal_lengths": 1})
        if {"mixed", "prefill_attention"} <= set(tables):
            decode = _whole(everything, skewed=True)
            fits[gpu] = (tables["mixed"], _whole(tables["prefill_attention"]), decode)
    shares = {gpu: mixed_share(*each) for gpu, each in fits.items()}
    crossed = {
        gpu: mixed_share(*each, given=float(np.median([s.share for other, s in shares.items() if other != gpu])))
        for gpu, each in fits.items()
        if len(shares) > 1
    }
    return Transfer(
        generic_skew(parts) if len(parts) > 1 else None,
        own,
        shares,
        float(np.median([share.share for share in shares.values()])) if shares else None,
        crossed,
    )


def _whole(measurements: Measurements, *, skewed: bool = False) -> Fit:
    settings = settings_for(measurements.identity, len(measurements), skewed=skewed)
    return holdout.fit_all(inputs_of(measurements), measurements.seconds, fitted_bound, settings)
