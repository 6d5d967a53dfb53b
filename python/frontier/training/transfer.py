"""What sweeps of two GPUs teach about all others: unequal lengths and mixed batches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from frontier.errors import ConfigError, Issue
from frontier.training import holdout
from frontier.training.bounds import fitted_bound
from frontier.training.fit import Fit
from frontier.training.holdout import Figures
from frontier.training.identity import ATTENTION, Identity
from frontier.training.inputs import inputs_of
from frontier.training.measurements import Measurements
from frontier.training.predictor import Trained, train
from frontier.training.settings import settings_for
from frontier.training.skew import (
    KNOWS_UNEQUAL_LENGTHS,
    MixedShare,
    SkewRows,
    decode_rows,
    generic_skew,
    mixed_forms,
    skew_rows,
)
from frontier.training.unequal import compare


@dataclass(frozen=True)
class Transfer:
    """Corrections learned where unequal and mixed batches were measured.

    Attributes:
        skew: factor for GPUs with uniform batches alone.
        own: decode predictors of the measured GPUs, which know unequal lengths, by identity.
        shares: what mixed batches of each measured GPU say.
        per_head: `MixedShare.per_head` for the others, the median over GPUs.
        crossed: each GPU's mixed batches with what the others taught.
        unequal: what the distribution of lengths says beyond its mean, by GPU and operator
            (`unequal.compare`).
    """

    skew: Trained | None
    own: dict[Identity, Trained]
    shares: dict[str, MixedShare]
    per_head: float | None
    crossed: dict[str, MixedShare]
    unequal: dict[str, dict[str, dict[str, Figures]]]

    def detail(self, gpu: str, kernel: str) -> dict[str, Any]:
        """Return what a decode predictor says of batches of prefills and decodes.

        `mixed_per_head` (see `MixedShare`) is carried over to kernels that read keys and values for each
        query head as well; for all others prefills and decodes are assumed to add up.
        """
        if self.per_head is None:
            return {}
        if not reads_for_each_head(kernel):
            return {"mixed_per_head": 0.0, "mixed_assumed": "the sum of both parts"}
        if gpu in self.shares:
            return {"mixed_per_head": round(self.shares[gpu].per_head, 4)}
        return {"mixed_per_head": round(self.per_head, 4), "mixed_from": sorted(self.shares)}


def reads_for_each_head(kernel: str) -> bool:
    """Return whether a kernel reads keys and values for each query head once a prefill is in the batch.

    FlashAttention-2 does, as vLLM calls it (`flash_attn_varlen_func`), and it is what was measured.
    FlashAttention-3 packs the query heads of a KV head into one tile whenever lengths vary
    (`hopper/heuristics.h`, `should_pack_gqa`); others run prefills and decodes as kernels of their own.
    """
    return "fa2" in kernel or kernel == "vllm_flash_attn"


def _typical(shares: list[MixedShare]) -> tuple[float, float]:
    return (
        float(np.median([share.share for share in shares])),
        float(np.median([share.per_head for share in shares])),
    )


def learn(found: Iterable[Measurements]) -> Transfer:
    """Learn from sweeps (`decode_skew` and `mixed_attention`) and the uniform tables beside them.

    Raises:
        ConfigError: a GPU has two identities (kernels, versions, number types) of one of these operators.
    """
    by_gpu: dict[str, dict[str, Measurements]] = {}
    for measurements in found:
        identity = measurements.identity
        if identity.operator not in ATTENTION:
            continue
        known = by_gpu.setdefault(identity.gpu, {}).setdefault(identity.operator, measurements)
        if known is not measurements:
            found_two = f"{known.identity}, {identity}"
            message = f"need one identity per operator and GPU, were {found_two}"
            raise ConfigError(Issue("sweeps", found_two, message))
    own: dict[Identity, Trained] = {}
    parts: dict[str, SkewRows] = {}
    fits: dict[str, tuple[Measurements, Fit, Fit]] = {}
    unequal: dict[str, dict[str, dict[str, Figures]]] = {}
    for gpu, tables in sorted(by_gpu.items()):
        if not {"decode_attention", "decode_skew"} <= set(tables):
            continue
        both = (tables.get(name) for name in ("decode_skew", "mixed_attention"))
        sweeps = [each for each in both if each is not None and "skew_role" in each.marks]
        unequal[gpu] = {each.identity.operator: compare(each) for each in sweeps}
        uniform_table, sweep = tables["decode_attention"], tables["decode_skew"]
        parts[gpu] = skew_rows(sweep)
        everything = decode_rows(uniform_table, sweep)
        own[everything.identity] = train(everything, skewed=True, detail=KNOWS_UNEQUAL_LENGTHS)
        if {"mixed_attention", "prefill_attention"} <= set(tables):
            decode = _whole(everything, skewed=True)
            fits[gpu] = (tables["mixed_attention"], _whole(tables["prefill_attention"]), decode)
    shares = {gpu: mixed_forms(*each) for gpu, each in fits.items()}
    crossed = {}
    for gpu, each in fits.items():
        if others := [share for other, share in shares.items() if other != gpu]:
            crossed[gpu] = mixed_forms(*each, given=_typical(others))
    return Transfer(
        generic_skew(parts) if len(parts) > 1 else None,
        own,
        shares,
        _typical(list(shares.values()))[1] if shares else None,
        crossed,
        unequal,
    )


def _whole(measurements: Measurements, *, skewed: bool = False) -> Fit:
    settings = settings_for(measurements.identity, len(measurements), skewed=skewed)
    return holdout.fit_all(inputs_of(measurements), measurements.seconds, fitted_bound, settings)
