"""Our margins are XGBoost's, bit for bit: random boosters, and rows at, beside and far from thresholds."""

import numpy as np
import pytest
from small_packs import info, manifest

from frontier import _frontier
from frontier.errors import ConfigError
from frontier.training.export import ensemble_tensors
from frontier.training.pack_writer import pack_bytes

xgboost = pytest.importorskip("xgboost", reason="xgboost is not installed (frontier-sim[train])")

SPECIAL = np.array(
    [0.0, -0.0, np.inf, -np.inf, 1e-45, -1e-45, 1e-39, 3.4028235e38, -3.4028235e38, 2**24 + 2, 1.0],
    np.float32,
)


def _columns(rng: np.random.Generator, rows: int, features: int) -> np.ndarray:
    laws = (
        lambda: rng.normal(size=rows),
        lambda: rng.integers(0, 9, rows),
        lambda: 2.0 ** rng.integers(0, 30, rows),
        lambda: rng.lognormal(20, 20, rows),
        lambda: rng.uniform(-1, 1, rows) * 1e-38,
        lambda: rng.integers(2**24 - 40, 2**24 + 40, rows),
        lambda: np.zeros(rows),
    )
    columns = [laws[rng.integers(len(laws))]() for _ in range(features)]
    return np.clip(np.stack(columns, axis=1), -3e38, 3e38).astype(np.float32)


def _booster(seed: int, **changes: object) -> tuple[object, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows, features = int(rng.integers(50, 1200)), int(rng.integers(1, 13))
    x = _columns(rng, rows, features)
    ranks = np.argsort(np.argsort(x, axis=0, kind="stable"), axis=0, kind="stable") / rows
    target = ranks @ rng.normal(size=features) + 0.3 * np.sin(9 * ranks[:, 0]) + rng.normal(size=rows) / 10
    parameters = {
        "tree_method": "hist",
        "max_bin": int(rng.choice([4, 16, 64, 256])),
        "max_depth": int(rng.integers(1, 11)),
        "eta": float(rng.choice([0.05, 0.3, 1.0])),
        "objective": str(rng.choice(["reg:squarederror", "reg:absoluteerror", "reg:pseudohubererror"])),
        "min_child_weight": 0.0,
        "nthread": 1,
        "seed": seed,
        **changes,
    }
    data = xgboost.DMatrix(x, label=target)
    return xgboost.train(parameters, data, int(rng.integers(1, 30))), x


def _predictor(tensors: dict[str, np.ndarray], features: int, base_score: float) -> _frontier.Predictor:
    entry = info(
        "trees",
        features=[f"f{i}" for i in range(features)],
        ranges=[[0.0, 1.0]] * features,
        base_score=base_score,
    )
    tensors = {**tensors, "static_shapes": np.empty(0, np.uint64)}
    return _frontier.Pack(np.frombuffer(pack_bytes(manifest(entry), [tensors]), np.uint8)).load(0)


def _queries(seed: int, tensors: dict[str, np.ndarray], x: np.ndarray, rows: int = 1500) -> np.ndarray:
    """Rows whose values are thresholds, one step beside them, special values, or those of training."""
    rng = np.random.default_rng(seed)
    columns = []
    for feature in range(x.shape[1]):
        start, end = tensors["threshold_offsets"][feature : feature + 2]
        at = tensors["thresholds"][start:end]
        with np.errstate(over="ignore", under="ignore"):
            near = [np.nextafter(at, np.float32(side)) for side in (-np.inf, np.inf)]
        pool = np.concatenate([at, *near, SPECIAL, x[:20, feature]])
        columns.append(rng.choice(pool.astype(np.float32), rows))
    return np.stack(columns, axis=1)


def _bits(values: np.ndarray) -> np.ndarray:
    assert values.dtype == np.float32
    return values.view(np.uint32)


@pytest.mark.parametrize("seed", range(40))
def test_margins_have_the_bits_of_xgboost(seed: int) -> None:
    booster, x = _booster(seed)
    leaves = ("f16", "f32")[seed % 2]
    tensors, stored, base_score = ensemble_tensors(booster, leaves=leaves)
    predictor = _predictor(tensors, x.shape[1], base_score)
    for rows in (x, _queries(seed, tensors, x)):
        expected = _bits(stored.inplace_predict(rows, predict_type="margin"))
        assert np.array_equal(_bits(predictor.margin(rows)), expected)
        assert np.array_equal(_bits(predictor.compiled_margin(rows, {})), expected)
    finite = xgboost.DMatrix(x)
    assert np.array_equal(_bits(predictor.margin(x)), _bits(stored.predict(finite, output_margin=True)))


@pytest.mark.parametrize("seed", range(100, 116))
def test_fixed_features_change_no_bit(seed: int) -> None:
    booster, x = _booster(seed)
    tensors, _, base_score = ensemble_tensors(booster, leaves="f16")
    predictor = _predictor(tensors, x.shape[1], base_score)
    rng = np.random.default_rng(seed)
    rows = _queries(seed, tensors, x, 300)
    for _ in range(8):
        chosen = np.flatnonzero(rng.random(x.shape[1]) < rng.random())
        fixed = {int(feature): float(rows[rng.integers(len(rows)), feature]) for feature in chosen}
        full = rows.copy()
        for feature, value in fixed.items():
            full[:, feature] = value
        expected = predictor.margin(full)
        assert np.array_equal(_bits(predictor.compiled_margin(rows, fixed)), _bits(expected))
        ratios = predictor.ratio(rows, fixed)
        np.testing.assert_allclose(ratios, np.exp(expected.astype(np.float64)), rtol=1e-15)
        # Whatever was asked before, a row has one answer.
        order = rng.permutation(len(rows))
        assert np.array_equal(predictor.ratio(rows[order], fixed), ratios[order])


def test_rounded_leaves_are_those_of_the_returned_booster() -> None:
    booster, x = _booster(5, max_depth=6)
    exact, same, _ = ensemble_tensors(booster, leaves="f32")
    rounded, other, _ = ensemble_tensors(booster, leaves="f16")
    assert exact["leaves"].dtype == np.float32
    assert rounded["leaves"].dtype == np.float16
    assert np.array_equal(exact["leaves"].astype(np.float16), rounded["leaves"])
    assert np.array_equal(same.inplace_predict(x), booster.inplace_predict(x))
    difference = np.abs(other.inplace_predict(x) - booster.inplace_predict(x))
    assert 0 < difference.max() < 0.01


def test_what_is_no_row_of_features_is_refused() -> None:
    booster, x = _booster(3)
    tensors, _, base_score = ensemble_tensors(booster, leaves="f16")
    width = x.shape[1]
    predictor = _predictor(tensors, width, base_score)
    rows = x[:4].copy()
    rows[2, 0] = np.nan
    calls = (predictor.margin, lambda a: predictor.compiled_margin(a, {}), lambda a: predictor.ratio(a, {}))
    for call in calls:
        with pytest.raises(ValueError, match=r"x\[2, 0\]: was NaN"):
            call(rows)
        with pytest.raises(ValueError, match=f"x: has {width + 1} columns, must have {width}"):
            call(np.zeros((2, width + 1), np.float32))
        with pytest.raises(TypeError):
            call(np.zeros(width, np.float32))
        with pytest.raises(TypeError):
            call(np.zeros((2, width)))
        assert call(np.zeros((0, width), np.float32)).shape == (0,)
    with pytest.raises(ValueError, match=r"fixed\[0\]: was NaN"):
        predictor.compiled_margin(x, {0: float("nan")})
    with pytest.raises(ValueError, match=f"fixed: was feature {width}, there are {width}"):
        predictor.compiled_margin(x, {width: 1.0})
    strided = np.repeat(x, 2, axis=0)[::2]
    assert np.array_equal(predictor.margin(strided), predictor.margin(x))


def _train(x: np.ndarray, y: np.ndarray, rounds: int = 3, **parameters: object) -> object:
    names = [f"col{index}" for index in range(x.shape[1])]
    data = xgboost.DMatrix(x, label=y, feature_names=names)
    return xgboost.train({"nthread": 1, **parameters}, data, rounds)


def test_boosters_that_have_no_tensors_are_refused_by_name() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, 2)).astype(np.float32)
    y = np.sin(40 * x[:, 1])
    many = _train(x, y, tree_method="exact", max_depth=12)
    with pytest.raises(ConfigError, match=r"col1: has \d+ distinct thresholds, may have 255"):
        ensemble_tensors(many, leaves="f16")
    with pytest.raises(ConfigError, match="objective: was binary:logistic"):
        ensemble_tensors(_train(x, y > 0, objective="binary:logistic"), leaves="f16")
    with pytest.raises(ConfigError, match="booster: was gblinear, must be gbtree"):
        ensemble_tensors(_train(x, y, booster="gblinear"), leaves="f16")
    with pytest.raises(ConfigError, match="num_target: was 2, there must be one output"):
        ensemble_tensors(_train(x, np.stack([y, -y], axis=1)), leaves="f16")
    # Doubling values: each split takes off the largest that is left.
    chain = np.arange(60, dtype=np.float32).reshape(-1, 1)
    doubling = {
        "tree_method": "hist",
        "max_depth": 30,
        "min_child_weight": 0,
        "reg_lambda": 0,
        "base_score": 0,
    }
    deep = _train(chain, 2.0 ** chain[:, 0], 1, **doubling)
    with pytest.raises(ConfigError, match="tree 0: was deeper than 16, must be at most 16 deep"):
        ensemble_tensors(deep, leaves="f32")
    with pytest.raises(ConfigError, match=r"leaves: was .*must be finite as f16"):
        ensemble_tensors(_train(x, 1e9 * y, max_bin=16, max_depth=3), leaves="f16")
    with pytest.raises(ConfigError, match="leaves: was 'f8', must be"):
        ensemble_tensors(many, leaves="f8")
    category = xgboost.DMatrix(
        rng.integers(0, 5, (200, 1)).astype(np.float32),
        label=rng.normal(size=200),
        feature_types=["c"],
        feature_names=["kind"],
        enable_categorical=True,
    )
    split = xgboost.train({"tree_method": "hist", "nthread": 1, "max_cat_to_onehot": 1}, category, 2)
    with pytest.raises(ConfigError, match="kind: was categorical, must be numerical"):
        ensemble_tensors(split, leaves="f16")
