"""From a trained XGBoost booster to the tensors of a predictor.

XGBoost computes a margin as a float32 sum over trees in their order, begun with the base score; a row goes
left in a node if its float32 value is below the node's float32 threshold. Both are kept, so the margin of
the tensors is that of the booster, bit for bit. Leaves may be rounded to 16 bits; the booster that is
returned has the same rounded leaves, so that accuracy is measured on what is shipped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from frontier.errors import ConfigError, Issue
from frontier.training.pack_writer import static_shape_hash, write_pack

if TYPE_CHECKING:
    import xgboost

__all__ = ["ensemble_tensors", "static_shape_hash", "write_pack"]

MAX_FEATURES = 254
MAX_THRESHOLDS = 255
MAX_DEPTH = 16
_LEAF = 255
_IDENTITY_LINK = (
    "reg:squarederror",
    "reg:absoluteerror",
    "reg:pseudohubererror",
    "reg:quantileerror",
)
"""Objectives whose margin is the prediction: the base score needs no transformation."""

Tensors = dict[str, NDArray[Any]]


def ensemble_tensors(
    booster: xgboost.Booster, *, leaves: Literal["f16", "f32"]
) -> tuple[Tensors, xgboost.Booster, float]:
    """Return a booster's trees as tensors, the booster with leaves as they are in them, and its base score.

    Args:
        booster: a `gbtree` model of one output with at most 254 features, at most 255 distinct thresholds
            of each (train with `tree_method="hist"` and `max_bin` up to 256), numerical splits alone, and
            trees at most 16 deep. Where it sends missing values does not matter: predictors refuse them.
        leaves: width of leaf values, "f16" or "f32".

    Returns:
        The tensors `thresholds` float32, `threshold_offsets` uint32, `nodes` uint8, `tree_starts` uint32
        and `leaves` float16 or float32 (see `frontier.predictors` for their meaning); a new booster; the
        base score, a float32 value.

    Raises:
        ConfigError: the booster is not such a model; the message names the feature, tree or setting.
    """
    if leaves not in ("f16", "f32"):
        raise ConfigError(Issue("leaves", leaves, f"was {leaves!r}, must be 'f16' or 'f32'", ("f16", "f32")))
    document = json.loads(booster.save_raw("json"))
    learner = document["learner"]
    _check_model(learner)
    base_score = _base_score(learner["learner_model_param"]["base_score"])
    trees = learner["gradient_booster"]["model"]["trees"]
    num_features = int(learner["learner_model_param"]["num_feature"])
    if not 1 <= num_features <= MAX_FEATURES:
        raise _refusal("num_feature", num_features, f"must be 1 to {MAX_FEATURES}")
    names = booster.feature_names or [f"f{index}" for index in range(num_features)]
    thresholds = _thresholds(trees, names)
    nodes, starts, values = bytearray(), [0], []
    for number, tree in enumerate(trees):
        values += _append_tree(nodes, tree, thresholds, f"tree {number}")
        starts.append(len(nodes))
    exact = np.array(values, np.float32)
    with np.errstate(over="ignore"):  # an overflow is refused below
        stored = exact.astype(np.float16) if leaves == "f16" else exact
    if not np.isfinite(stored).all():
        value = float(exact[~np.isfinite(stored)][0])
        raise _refusal("leaves", value, f"must be finite as {leaves}")
    offsets = np.cumsum([0, *(len(column) for column in thresholds)])
    tensors: Tensors = {
        "thresholds": np.concatenate(thresholds),
        "threshold_offsets": offsets.astype(np.uint32),
        "nodes": np.frombuffer(bytes(nodes), np.uint8),
        "tree_starts": np.array(starts, np.uint32),
        "leaves": stored,
    }
    return tensors, _reloaded(document, booster, rounded=leaves == "f16"), base_score


def _refusal(path: str, value: object, message: str) -> ConfigError:
    return ConfigError(Issue(path, value, f"was {value}, {message}"), source="XGBoost model")


def _check_model(learner: Mapping[str, Any]) -> None:
    booster = learner["gradient_booster"]
    if booster["name"] != "gbtree":
        raise _refusal("booster", booster["name"], "must be gbtree")
    objective = learner["objective"]["name"]
    if objective not in _IDENTITY_LINK:
        allowed = ", ".join(_IDENTITY_LINK)
        raise _refusal("objective", objective, f"must be one whose margin is the prediction: {allowed}")
    parameters = learner["learner_model_param"]
    for name, most in (("num_class", 1), ("num_target", 1)):
        if int(parameters.get(name, 0)) > most:
            raise _refusal(name, parameters[name], "there must be one output")
    if not booster["model"]["trees"]:
        raise _refusal("num_trees", 0, "must be at least 1")


def _base_score(text: str) -> float:
    """Return the base score, a number as text, in brackets since XGBoost 3.1."""
    value = np.float32(text.strip("[]"))
    if not np.isfinite(value):
        raise _refusal("base_score", text, "must be finite")
    return float(value)


def _thresholds(trees: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[NDArray[np.float32]]:
    """Return the distinct thresholds of each feature, ascending."""
    found: list[list[float]] = [[] for _ in names]
    for number, tree in enumerate(trees):
        if any(tree["split_type"]):
            split = next(index for index, kind in enumerate(tree["split_type"]) if kind)
            name = names[tree["split_indices"][split]]
            raise _refusal(name, "categorical", f"must be numerical (tree {number})")
        for feature, threshold, left in zip(
            tree["split_indices"], tree["split_conditions"], tree["left_children"], strict=True
        ):
            if left != -1:
                found[feature].append(threshold)
    columns = [np.unique(np.array(values, np.float32)) for values in found]
    for name, column in zip(names, columns, strict=True):
        if len(column) > MAX_THRESHOLDS:
            raise ConfigError(
                Issue(
                    name,
                    len(column),
                    f"has {len(column)} distinct thresholds, may have {MAX_THRESHOLDS}; train with "
                    'tree_method="hist" and a smaller max_bin',
                ),
                source="XGBoost model",
            )
    return columns


def _append_tree(
    nodes: bytearray, tree: Mapping[str, Any], thresholds: Sequence[NDArray[np.float32]], where: str
) -> list[float]:
    """Append a tree in pre-order to `nodes` and return its leaf values in that order."""
    values: list[float] = []
    open_nodes = [(0, 0)]
    while open_nodes:
        node, depth = open_nodes.pop()
        left = tree["left_children"][node]
        if left == -1:
            nodes.append(_LEAF)
            values.append(tree["split_conditions"][node])
            continue
        if depth == MAX_DEPTH:
            raise _refusal(where, f"deeper than {MAX_DEPTH}", f"must be at most {MAX_DEPTH} deep (max_depth)")
        feature = tree["split_indices"][node]
        rank = np.searchsorted(thresholds[feature], np.float32(tree["split_conditions"][node]))
        nodes += bytes((feature, int(rank)))
        # A stack: the left child comes next, the right one after the whole left subtree.
        open_nodes += [(tree["right_children"][node], depth + 1), (left, depth + 1)]
    return values


def _reloaded(document: dict[str, Any], booster: xgboost.Booster, *, rounded: bool) -> xgboost.Booster:
    """Return a new booster from a model's document, with leaves rounded to 16 bits if asked for."""
    import xgboost  # noqa: PLC0415 - slow, and present: somebody made the booster

    if rounded:
        for tree in document["learner"]["gradient_booster"]["model"]["trees"]:
            conditions = tree["split_conditions"]
            for node, left in enumerate(tree["left_children"]):
                if left == -1:
                    conditions[node] = float(np.float16(np.float32(conditions[node])))
    copy = xgboost.Booster()
    copy.load_model(bytearray(json.dumps(document).encode()))
    copy.feature_names = booster.feature_names
    copy.feature_types = booster.feature_types
    return copy
