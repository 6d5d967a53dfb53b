"""Simulate large-language-model serving before renting the GPUs.

    import frontier

    scenario = frontier.load("scenario.yaml")          # or frontier.Scenario.from_dict({...})
    result = frontier.simulate(scenario)
    print(result.summary())

Everything public is named here and imported on first use, so that `import frontier` stays cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from frontier.config import Scenario, load
    from frontier.errors import (
        ConfigError,
        DeadlockError,
        FrontierError,
        InvariantError,
        Issue,
        LivelockError,
        SimulationError,
        WorkloadError,
    )
    from frontier.hardware import GpuSpec, gpu_names, load_gpu
    from frontier.models import ModelSpec, load_model, model_names
    from frontier.results import Result, Summary
    from frontier.simulation import Progress, build_info, simulate, simulate_many
    from frontier.workloads import load_trace

_HOME_OF = {
    "ConfigError": "errors",
    "DeadlockError": "errors",
    "FrontierError": "errors",
    "GpuSpec": "hardware",
    "InvariantError": "errors",
    "Issue": "errors",
    "LivelockError": "errors",
    "ModelSpec": "models",
    "Progress": "simulation",
    "Result": "results",
    "Scenario": "config",
    "SimulationError": "errors",
    "Summary": "results",
    "WorkloadError": "errors",
    "build_info": "simulation",
    "gpu_names": "hardware",
    "load": "config",
    "load_gpu": "hardware",
    "load_model": "models",
    "load_trace": "workloads",
    "model_names": "models",
    "simulate": "simulation",
    "simulate_many": "simulation",
}

__all__ = [
    "ConfigError",
    "DeadlockError",
    "FrontierError",
    "GpuSpec",
    "InvariantError",
    "Issue",
    "LivelockError",
    "ModelSpec",
    "Progress",
    "Result",
    "Scenario",
    "SimulationError",
    "Summary",
    "WorkloadError",
    "build_info",
    "gpu_names",
    "load",
    "load_gpu",
    "load_model",
    "load_trace",
    "model_names",
    "simulate",
    "simulate_many",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        if name == "__version__":
            return importlib.import_module("frontier._frontier").__version__
        raise AttributeError(f"module 'frontier' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"frontier.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
