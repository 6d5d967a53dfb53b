"""Nanoseconds per evaluation of one predictor, ours against XGBoost and compiled C, in one process.

    pip install '.[train]' && maturin develop --release && python benches/predictor.py

Every way answers for the same rows, and all answers are compared bit for bit first. Each figure is the least
CPU time of several windows, taken in turn so that a busy machine disturbs all alike. Calls of ours take many
rows at once, as the C loop does. A call first copies its rows and takes out the free features (the line with
four trees of one split is mostly that), and resolves the fixed ones (the last line, once per call).
`cargo bench --bench predictor` has the memo without them.

C is what ahead-of-time compilers of trees emit: nested comparisons, built with `cc -O2`.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xgboost

from frontier import _frontier
from frontier.training.export import ensemble_tensors
from frontier.training.pack_writer import pack_bytes

MODELS = ((25, 8), (16, 10), (25, 10), (200, 6))
FEATURES = 8
FIXED = 4
"""The first features are static shapes with few values, as in training data: a plan fixes them."""
TRAINING_ROWS = 20_000
ROWS = 20_000
WINDOWS = 9
SINGLE_ROWS = 100


def main() -> None:
    """Print the table."""
    print(
        f"{FEATURES} features, 64 bins, {TRAINING_ROWS} rows of training; "
        f"CPU ns per evaluation, least of {WINDOWS} windows"
    )
    for trees, depth in MODELS:
        booster, x = _train(trees, depth)
        print(f"\n{trees} x {depth}")
        for name, ns in _measure(booster, x):
            print(f"  {name:<52}{ns:>12,.1f}")


def _train(trees: int, depth: int) -> tuple[xgboost.Booster, np.ndarray]:
    rng = np.random.default_rng(7)
    static = 2.0 ** rng.integers(8, 16, (TRAINING_ROWS, FIXED))
    free = 2.0 ** rng.uniform(0, 14, (TRAINING_ROWS, FEATURES - FIXED))
    x = np.concatenate([static, free], axis=1).astype(np.float32)
    logs = np.log2(x)
    y = np.sin(logs @ rng.normal(size=(FEATURES, 4)) / 6).sum(axis=1) + rng.normal(size=TRAINING_ROWS) / 20
    parameters = {"tree_method": "hist", "max_bin": 64, "max_depth": depth, "eta": 0.2, "min_child_weight": 3}
    booster = xgboost.train({**parameters, "nthread": 1}, xgboost.DMatrix(x, label=y), trees)
    booster.set_param({"nthread": 1})
    return booster, x


def _measure(booster: xgboost.Booster, x: np.ndarray) -> list[tuple[str, float]]:
    tensors, booster, base_score = ensemble_tensors(booster, leaves="f16")
    booster.set_param({"nthread": 1})
    predictor = _predictor(tensors, base_score)
    rng = np.random.default_rng(11)
    rows = x[rng.permutation(len(x))[:ROWS]].copy()
    rows[:, FIXED:] *= rng.uniform(0.9, 1.1, (ROWS, FEATURES - FIXED)).astype(np.float32)
    fixed = {feature: float(rows[0, feature]) for feature in range(FIXED)}
    rows[:, :FIXED] = rows[0, :FIXED]
    same = np.repeat(rows[:1], 10 * ROWS, axis=0)
    near = rows[rng.integers(0, 512, 10 * ROWS)]
    with tempfile.TemporaryDirectory() as folder:
        library = _compile(booster, base_score, Path(folder))
        out = np.empty(ROWS, np.float32)
        pointers = (rows.ctypes.data, out.ctypes.data)
        expected = booster.inplace_predict(rows, predict_type="margin")
        library.predict_many(*pointers, ROWS)
        for answer in (out, predictor.margin(rows), predictor.compiled_margin(rows, fixed)):
            assert np.array_equal(answer.view(np.uint32), expected.view(np.uint32))
        single = [rows[index : index + 1] for index in range(SINGLE_ROWS)]
        addresses = [row.ctypes.data for row in single]
        constant = _predictor(_stumps(), base_score)
        ways: dict[str, tuple[Callable[[], object], int]] = {
            "XGBoost, one row: inplace_predict": (
                lambda: [booster.inplace_predict(row, predict_type="margin") for row in single],
                SINGLE_ROWS,
            ),
            "XGBoost, one row: predict(DMatrix)": (
                lambda: [
                    booster.predict(xgboost.DMatrix(row, nthread=1), output_margin=True) for row in single
                ],
                SINGLE_ROWS,
            ),
            "XGBoost, all rows at once: inplace_predict": (
                lambda: booster.inplace_predict(rows, predict_type="margin"),
                ROWS,
            ),
            "C, one row, called from Python": (
                lambda: [library.predict(address) for address in addresses],
                SINGLE_ROWS,
            ),
            "C, in a loop in C": (lambda: library.predict_many(*pointers, ROWS), ROWS),
            "ours, node walk": (lambda: predictor.margin(rows), ROWS),
            "ours, compiled, nothing fixed": (lambda: predictor.compiled_margin(rows, {}), ROWS),
            f"ours, compiled, {FIXED} of {FEATURES} features fixed": (
                lambda: predictor.compiled_margin(rows, fixed),
                ROWS,
            ),
            "ours, memo, nothing but misses": (lambda: predictor.ratio(rows, fixed), ROWS),
            "ours, memo, another of 512 cells each time": (lambda: predictor.ratio(near, fixed), len(near)),
            "ours, memo, the same cell each time": (lambda: predictor.ratio(same, fixed), len(same)),
            "ours, four trees of one split: mostly the copy": (
                lambda: constant.compiled_margin(same, fixed),
                len(same),
            ),
            "ours, partial evaluation, once per plan": (
                lambda: predictor.compiled_margin(rows[:0], fixed),
                1,
            ),
        }
        least = dict.fromkeys(ways, float("inf"))
        for _ in range(WINDOWS):
            for name, (run, count) in ways.items():
                start = time.process_time()
                run()
                least[name] = min(least[name], (time.process_time() - start) / count * 1e9)
    return list(least.items())


def _stumps() -> dict[str, np.ndarray]:
    """Return a tree per free feature that reads it once: next to nothing to evaluate."""
    return {
        "thresholds": np.ones(FEATURES, np.float32),
        "threshold_offsets": np.arange(FEATURES + 1, dtype=np.uint32),
        "nodes": np.array([b for f in range(FIXED, FEATURES) for b in (f, 0, 255, 255)], np.uint8),
        "tree_starts": np.arange(FEATURES - FIXED + 1, dtype=np.uint32) * 4,
        "leaves": np.zeros(2 * (FEATURES - FIXED), np.float32),
    }


def _predictor(tensors: dict[str, np.ndarray], base_score: float) -> _frontier.Predictor:
    entry = {
        "backend": "bench",
        "version": "0",
        "kernel": "bench",
        "measurement": "kernel",
        "operator": "gemm",
        "dtype": "bf16",
        "detail": {},
        "form": "trees",
        "features": [f"f{index}" for index in range(FEATURES)],
        "ranges": [[0.0, 1.0]] * FEATURES,
        "bound": {"launch_s": 0.0, "compute_scale": 1.0, "memory_scale": 1.0, "network_scale": 1.0},
        "cold": None,
        "calibration": 1.0,
        "base_score": base_score,
        "residual_quantiles": [],
        "shapes": "",
        "accuracy": {},
        "rows": TRAINING_ROWS,
        "rows_dropped": {},
        "sources": [],
    }
    manifest = {"gpu": "h100", "created_by": {}, "licences": [], "notices": [], "warnings": []}
    tensors = {**tensors, "static_shapes": np.empty(0, np.uint64)}
    data = pack_bytes({**manifest, "predictors": [entry]}, [tensors])
    return _frontier.Pack(np.frombuffer(data, np.uint8)).load(0)


def _compile(booster: xgboost.Booster, base_score: float, folder: Path) -> ctypes.CDLL:
    """Return the trees as a shared library of nested comparisons."""
    document = json.loads(booster.save_raw("json"))
    trees = document["learner"]["gradient_booster"]["model"]["trees"]
    functions = [
        f"static float tree{number}(const float *x) {{ {_branch(tree, 0)} }}"
        for number, tree in enumerate(trees)
    ]
    calls = " ".join(f"sum += tree{number}(x);" for number in range(len(trees)))
    functions += [
        f"float predict(const float *x) {{ float sum = {base_score!r}f; {calls} return sum; }}",
        "void predict_many(const float *x, float *out, long n)"
        f"{{ for (long i = 0; i < n; i++) out[i] = predict(x + {FEATURES} * i); }}",
    ]
    source, library = folder / "trees.c", folder / "trees.so"
    source.write_text("\n".join(functions))
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.predict.argtypes, loaded.predict.restype = [ctypes.c_void_p], ctypes.c_float
    loaded.predict_many.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long]
    loaded.predict_many.restype = None
    return loaded


def _branch(tree: dict[str, list[int]], node: int) -> str:
    left, value = tree["left_children"][node], float(np.float32(tree["split_conditions"][node]))
    if left == -1:
        return f"return {value!r}f;"
    right = tree["right_children"][node]
    test = f"x[{tree['split_indices'][node]}] < {value!r}f"
    return f"if ({test}) {{ {_branch(tree, left)} }} else {{ {_branch(tree, right)} }}"


if __name__ == "__main__":
    main()
