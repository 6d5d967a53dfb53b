"""CUDA graphs on and off, and padding left out, beside the published range (`benches/cuda_graphs.py`)."""

import sys
from pathlib import Path

import pytest

BENCHES = Path(__file__).parents[1] / "benches"
if not BENCHES.is_dir():
    pytest.skip("benches/ is not beside the tests: they run from an installed wheel", allow_module_level=True)
sys.path.insert(0, str(BENCHES))

from cuda_graphs import GRAPHS, PADDING, changes, within  # noqa: E402


def test_padding_and_graphs_change_throughput_as_published() -> None:
    """Qwen3-30B-A3B on one H800 with batches of 5, which pad to 8; every request 256 + 512 tokens."""
    padding, lost, _ = changes("qwen3-30b-a3b", "h800", 5)
    assert within(padding, PADDING), padding
    assert within(lost, GRAPHS), lost


def test_a_batch_that_fills_its_graph_pays_no_padding() -> None:
    padding, lost, _ = changes("qwen3-30b-a3b", "h800", 8)
    assert padding == 0.0
    assert lost > 0.0
