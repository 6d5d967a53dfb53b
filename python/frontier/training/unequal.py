"""Do features of a batch's distribution predict batches of unequal lengths better than its mean?

For the sweeps that hold such batches (alone or beside a prefill chunk), with the times of the same batch at
its mean and at its maximum: errors of those measured times taken for the skewed ones, and of models that see
more and more of the distribution. All models are trained on the same 80 % of all timings of the sweep, and
tested on the skewed batches of the rest. Timings of one point of the sweep lie on one side, and so do equal
skewed batches, of which a sweep may hold many.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from frontier.training import holdout
from frontier.training.bounds import fitted_bound
from frontier.training.fit import fit_ratio
from frontier.training.holdout import Figures
from frontier.training.inputs import inputs_of
from frontier.training.measurements import Measurements
from frontier.training.settings import HEAD_FEATURES, MIXED_FEATURES, SEED, SKEW_FEATURES, Settings
from frontier.training.sources.llmservingsim import AS_IT_IS, NO_SWEEP, UNIFORM_MAX, UNIFORM_MEAN

_TREES, _DEPTH, _ETA = 25, 10, 0.35


def _feature_sets(operator: str) -> dict[str, tuple[str, ...]]:
    """Return what the compared models see: number and mean of the decodes, or their distribution."""
    if operator == "decode_attention":
        mean: tuple[str, ...] = (*HEAD_FEATURES, "num_seqs", "kv_mean")
        return {"count, mean": mean, _WHOLE: (*mean, "kv_bytes", *SKEW_FEATURES)}
    mean = tuple(name for name in MIXED_FEATURES if not name.startswith("decode."))
    return {"count, mean": (*mean, "decode.num_seqs", "decode.kv_mean"), _WHOLE: MIXED_FEATURES}


_WHOLE = "count, sum, mean, maximum, variation"


def held_out(sweep: Measurements, share: float = 0.2) -> NDArray[np.bool_]:
    """Return which rows of a sweep are not to be trained on: about `share` of the distinct skewed batches.

    The other timings of a skewed batch's point go with it.
    """
    role, pair = sweep.marks["skew_role"], sweep.marks["pair"]
    skewed = np.flatnonzero(role == AS_IT_IS)
    keys, member = np.unique(sweep.key[skewed], return_inverse=True)
    held = np.random.default_rng(SEED).random(len(keys)) < share
    return np.isin(pair, pair[skewed[held[member]]])


def compare(sweep: Measurements) -> dict[str, Figures]:
    """Return the errors on the skewed batches of a sweep, by what stands for their time."""
    sweep = sweep.take(sweep.marks["skew_role"] != NO_SWEEP)
    mixed = sweep.identity.operator == "mixed_attention"
    operator = "mixed_attention" if mixed else "decode_attention"
    role, pair = sweep.marks["skew_role"], sweep.marks["pair"]
    tested = held_out(sweep)
    test = np.flatnonzero(tested & (role == AS_IT_IS))
    seconds = sweep.seconds
    found: dict[str, Figures] = {}
    for name, stand_in in (
        ("measured, all at the mean", UNIFORM_MEAN),
        ("measured, all at the maximum", UNIFORM_MAX),
    ):
        chosen = np.flatnonzero(role == stand_in)
        order = chosen[np.argsort(pair[chosen])]
        if not len(order):
            continue
        at = np.searchsorted(pair[order], pair[test])
        at = np.minimum(at, len(order) - 1)
        same = pair[order[at]] == pair[test]
        found[name] = holdout.figures(seconds[order[at]][same], seconds[test][same])
    inputs = inputs_of(sweep, operator=operator)
    train = np.flatnonzero(~tested)
    bound = fitted_bound(inputs.costs.take(train), seconds[train])
    for name, features in _feature_sets(operator).items():
        settings = Settings(_TREES, _DEPTH, _ETA, features)
        fit = fit_ratio(inputs, seconds, train, bound, settings)
        found[f"learned: {name}"] = holdout.figures(fit.seconds(inputs)[test], seconds[test])
    return found
