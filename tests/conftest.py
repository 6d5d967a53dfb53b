"""Fixtures and settings of the whole suite."""

import os
import sys
from pathlib import Path

import hypothesis
import pytest

TESTS = Path(__file__).parent

# The oracles and the golden archives are scripts as well as modules, so they import each other by bare name;
# tests of many rooms need packs.
sys.path[:0] = [str(TESTS / name) for name in ("oracle", "oracle/peers", "golden", "predictors", "kv_tiers")]

hypothesis.settings.register_profile("frontier", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("frontier")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of reference data that is too large or not licensed for the repository.

    It lies at `$FRONTIER_SHARED`, else at `../shared` beside the checkout; tests that need it are skipped
    where it is absent.
    """
    path = Path(os.environ.get("FRONTIER_SHARED", TESTS.parent.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"no reference data at {path} (set FRONTIER_SHARED)")
    return path
