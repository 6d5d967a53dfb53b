"""Scenarios: one strict document that describes a simulation, from YAML or Python.

`load` reads a file, `Scenario.from_yaml` and `Scenario.from_dict` take text and plain values,
`Scenario.with_` makes changed copies, `Scenario.resolve` tells what follows from one, `json_schema` publishes
the form.
"""

from frontier.config.files import apply_set, load
from frontier.config.resolve import Resolved
from frontier.config.scenario import Scenario, json_schema

__all__ = ["Resolved", "Scenario", "apply_set", "json_schema", "load"]
