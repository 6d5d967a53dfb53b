"""Bounds, ensembles and hold-out figures on made-up measurements whose answer is known."""

import numpy as np
import pytest

from frontier import _frontier
from frontier.training import holdout
from frontier.training.bounds import SCALES, Bound, Costs, data_sheet_bound, fitted_bound
from frontier.training.identity import Identity
from frontier.training.inputs import arithmetic_dtype, inputs_of
from frontier.training.measurements import Measurements
from frontier.training.settings import DECODE_FEATURES, PREFILL_FEATURES, SHAPES, settings_for

pytest.importorskip("xgboost", reason="needs the extra `train`")

ROWS = [2**i for i in range(13)]
SHAPES_KN = [(1024 * k, 512 * n) for k in (1, 2, 4, 7) for n in (2, 3, 8, 15)]


def costs(rows: int = 300) -> Costs:
    rng = np.random.default_rng(1)
    compute, memory = np.exp(rng.uniform(-14, -5, (2, rows)))
    return Costs(compute, memory, np.zeros(rows), np.full(rows, 2e-6))


def gemm(factor: float = 1.0) -> Measurements:
    """Products that take `factor` times their bound, and a wobble that depends on the shape alone."""
    identity = Identity("h100", "vllm", "1.0", "linear", "cuda_graph", "gemm", "bf16")
    points = [(m, k, n) for k, n in SHAPES_KN for m in ROWS]
    m, k, n = (np.array(column, float) for column in zip(*points, strict=True))
    columns = {"rows": m, "k": k, "n": n, "batch": 1, "weight_bytes": 2, "activation_bytes": 2}
    names = [f"k{a:g}n{b:g}" for a, b in zip(k, n, strict=True)]
    bare = Measurements.of(identity, columns, np.ones(len(m)), names)
    bound = Bound(6e-6, 1.3, 1.3).seconds(inputs_of(bare).costs)
    return Measurements.of(identity, columns, factor * bound * (1 + 0.2 * np.sin(k / 1024)), names)


def test_the_bound_is_found_again():
    found = costs()
    seconds = Bound(7e-6, 1.4, 1.4, 1.4).seconds(found)
    fitted = fitted_bound(found, seconds)
    assert fitted.launch_s == pytest.approx(7e-6, rel=0.03)
    assert fitted.compute_scale == fitted.memory_scale == pytest.approx(1.4, rel=0.03)


def test_outliers_do_not_move_the_bound():
    found = costs()
    seconds = Bound(7e-6, 1.4, 1.4, 1.4).seconds(found)
    seconds[::20] *= 30
    assert fitted_bound(found, seconds).compute_scale == pytest.approx(1.4, rel=0.1)


def test_times_of_a_launch_alone_leave_a_scale_that_packs_may_hold():
    """Rows that take the same time whatever their size: only the smallest scale is too small to matter."""
    small = costs()
    fitted = fitted_bound(
        Costs(1e3 * small.compute_s, small.memory_s, small.network_s, small.launch_s), np.full(300, 4e-5)
    )
    assert SCALES[0] <= fitted.compute_scale < 10 * SCALES[0]
    assert fitted.launch_s == pytest.approx(4e-5, rel=0.05)


def test_the_data_sheet_bound_scales_nothing():
    assert data_sheet_bound(costs()) == Bound(2e-6, 1.0, 1.0, 1.0)


def test_a_predictor_learns_what_the_bound_lacks_and_carries_it_to_other_sizes():
    measurements = gemm()
    settings = settings_for(measurements.identity, len(measurements))
    found = holdout.evaluate(measurements, inputs_of(measurements), settings)
    assert set(found.splits) == {"random", "models", "rows"}
    assert found.splits["random"]["median"] < 0.02
    # Four times the largest batch that was seen: what the bound knows has not to be learned.
    assert found.splits["rows"]["median"] < 0.05
    np.testing.assert_array_equal(found.measured, measurements.seconds[found.test])


def test_training_twice_gives_the_same_bits():
    measurements = gemm()
    inputs, settings = inputs_of(measurements), settings_for(measurements.identity, 10_000)
    margins = [
        holdout.fit_all(inputs, measurements.seconds, fitted_bound, settings).margin(inputs) for _ in range(2)
    ]
    np.testing.assert_array_equal(*margins)


def test_leaves_lie_on_the_grid():
    import json

    measurements = gemm()
    settings = settings_for(measurements.identity, len(measurements))
    fit = holdout.fit_all(inputs_of(measurements), measurements.seconds, fitted_bound, settings)
    trees = json.loads(fit.booster.save_raw("json"))["learner"]["gradient_booster"]["model"]["trees"]
    assert len(trees) == settings.trees
    for tree in trees:
        nodes = zip(tree["split_conditions"], tree["left_children"], strict=True)
        scaled = 2048 * np.array([value for value, left in nodes if left == -1], np.float32)
        np.testing.assert_array_equal(scaled, np.round(scaled))


def test_figures():
    found = holdout.figures(np.array([1.0, 1.05, 0.92, 1.5]), np.ones(4))
    assert found["rows"] == 4
    assert found["median"] == pytest.approx(0.065)
    assert (found["within_6"], found["within_10"]) == (0.5, 0.75)
    assert found["wape"] == pytest.approx(0.63 / 4)
    assert found["bias"] == pytest.approx(0.025)


def test_residual_quantiles_ascend_inside_0_and_1():
    rng = np.random.default_rng(0)
    found = holdout.residual_quantiles(np.ones(500), np.exp(rng.normal(0, 0.1, 500)))
    quantiles, values = zip(*found, strict=True)
    assert len(found) >= 21
    assert quantiles[0] > 0
    assert quantiles[-1] < 1
    assert list(quantiles) == sorted(set(quantiles))
    assert list(values) == sorted(values)
    assert values[0] == pytest.approx(-0.25, abs=0.08)


@pytest.mark.parametrize(
    ("dtype", "activation_bytes", "gpu", "rate"),
    [
        ("fp8_block", 1.0, "h100", "fp8"),
        ("int4", 2.0, "h100", "bf16"),
        ("mxfp4", 2.0, "h100", "bf16"),
        ("mxfp4", 1.03, "b200", "fp8"),
        ("nvfp4", 0.5625, "b200", "fp4"),
        ("int8", 2.0, "h100", "bf16"),
        ("int8", 1.0, "h100", "int8"),
        ("fp8", 1.0, "a100-80gb", "bf16"),
    ],
)
def test_the_arithmetic_of_schemes(dtype, activation_bytes, gpu, rate):
    identity = Identity(gpu, "vllm", "1", "k", "cuda_graph", "gemm", dtype)
    assert arithmetic_dtype(identity, activation_bytes) == rate


def test_features_and_shapes_are_names_that_the_core_knows():
    for operator, names in (("decode_attention", DECODE_FEATURES), ("prefill_attention", PREFILL_FEATURES)):
        assert set(names) <= set(_frontier.feature_names(operator))
    for operator, names in SHAPES.items():
        assert set(names) <= set(_frontier.feature_names(operator)), operator


def test_dirty_tables_are_fitted_by_absolute_error():
    identity = Identity("h100", "vllm", "1", "k", "cuda_graph", "gemm", "bf16")
    assert settings_for(identity, 5_000).objective == "reg:squarederror"
    assert settings_for(identity, 5_000, repeats_p95=0.3).objective == "reg:absoluteerror"
    assert settings_for(identity, 5_000, repeats_p95=float("nan")).objective == "reg:squarederror"


def test_exchanges_within_a_node_cross_no_network():
    identity = Identity("h100", "vllm", "1", "deepep", "kernel", "moe_dispatch", "fp8")
    columns = {
        "rows": [64, 64, 128],
        "hidden": 4096,
        "top_k": 8,
        "experts": 256,
        "ep": [16, 8, 16],
        "nodes": [2, 1, 2],
        "bytes_per_element": 1,
    }
    found = inputs_of(Measurements.of(identity, columns, np.ones(3), "m"))
    column = found.names.index
    np.testing.assert_array_equal(found.features[:, column("rows")], [64, 64, 128])
    np.testing.assert_array_equal(found.features[:, column("nodes")], [2, 1, 2])
    between = found.features[:, column("bytes_between_nodes")]
    assert between[1] == 0
    assert found.costs.network_s[1] < found.costs.network_s[0] < found.costs.network_s[2]
