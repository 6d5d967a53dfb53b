from collections.abc import Callable
from typing import Any

import pytest

from frontier.config import Scenario
from frontier.errors import ConfigError, Issue

SYNTHETIC: dict[str, Any] = {
    "synthetic": {
        "arrivals": {"poisson": {"rate": "12/s"}},
        "num_requests": 100,
        "prompt_tokens": 512,
        "output_tokens": 128,
    }
}
BASE: dict[str, Any] = {"model": "llama-3.1-8b", "hardware": "h100", "workload": SYNTHETIC}


@pytest.fixture(scope="session")
def base() -> Scenario:
    return Scenario.from_dict(BASE)


@pytest.fixture
def problems() -> Callable[..., dict[str, Issue]]:
    """Make a scenario that must be refused; return its issues by path."""

    def make(**sections: Any) -> dict[str, Issue]:
        with pytest.raises(ConfigError) as error:
            Scenario.from_dict({**BASE, **sections})
        issues = error.value.issues
        assert issues
        for issue in issues:
            assert str(issue) in str(error.value)
        return {issue.path: issue for issue in issues}

    return make
