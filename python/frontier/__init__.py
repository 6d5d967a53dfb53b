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
    from frontier.afd_advice import advise_afd
    from frontier.builtin_examples import examples
    from frontier.config import Scenario, load
    from frontier.errors import (
        ConfigError,
        DeadlockError,
        DoesNotFitError,
        EngineFailureError,
        FrontierError,
        InvariantError,
        Issue,
        LivelockError,
        PackError,
        SimulationError,
        WorkloadError,
    )
    from frontier.explanation import Explanation, explain
    from frontier.hardware import GpuSpec, gpu_names, load_gpu
    from frontier.launch import Launch, from_command
    from frontier.models import ModelSpec, load_model, model_names
    from frontier.results import Interval, Result, Summary, Trust
    from frontier.simulation import Progress, build_info, simulate, simulate_many
    from frontier.trace_columns import clear_trace_cache
    from frontier.workloads import LoadedTrace, load_trace, trace_from_columns

_HOME_OF = {
    "ConfigError": "errors",
    "DeadlockError": "errors",
    "DoesNotFitError": "errors",
    "EngineFailureError": "errors",
    "Explanation": "explanation",
    "FrontierError": "errors",
    "GpuSpec": "hardware",
    "Interval": "results",
    "Launch": "launch",
    "InvariantError": "errors",
    "Issue": "errors",
    "LivelockError": "errors",
    "LoadedTrace": "workloads",
    "ModelSpec": "models",
    "PackError": "errors",
    "Progress": "simulation",
    "Result": "results",
    "Scenario": "config",
    "SimulationError": "errors",
    "Summary": "results",
    "Trust": "results",
    "WorkloadError": "errors",
    "advise_afd": "afd_advice",
    "build_info": "simulation",
    "clear_trace_cache": "trace_columns",
    "examples": "builtin_examples",
    "explain": "explanation",
    "from_command": "launch",
    "gpu_names": "hardware",
    "load": "config",
    "load_gpu": "hardware",
    "load_model": "models",
    "load_trace": "workloads",
    "model_names": "models",
    "simulate": "simulation",
    "simulate_many": "simulation",
    "trace_from_columns": "workloads",
}

__all__ = [
    "ConfigError",
    "DeadlockError",
    "DoesNotFitError",
    "EngineFailureError",
    "Explanation",
    "FrontierError",
    "GpuSpec",
    "Interval",
    "InvariantError",
    "Issue",
    "Launch",
    "LivelockError",
    "LoadedTrace",
    "ModelSpec",
    "PackError",
    "Progress",
    "Result",
    "Scenario",
    "SimulationError",
    "Summary",
    "Trust",
    "WorkloadError",
    "advise_afd",
    "build_info",
    "clear_trace_cache",
    "examples",
    "explain",
    "from_command",
    "gpu_names",
    "load",
    "load_gpu",
    "load_model",
    "load_trace",
    "model_names",
    "simulate",
    "simulate_many",
    "trace_from_columns",
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
