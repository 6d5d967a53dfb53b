"""Models from facts: any Hugging Face `config.json` of a known type becomes layers, weights and operators.

`load_model` reads a configuration, `parameter_counts` counts its weights, `operator_program` lists what one
forward pass launches on one rank, `pipeline_stages` the same for every stage of a `Layout`, `kv_layers` what
one token leaves in the KV cache.
"""

from frontier.models.kv import KvLayer, kv_layers, resolve_kv_cache_dtype
from frontier.models.layout import Layout
from frontier.models.operators import Operator
from frontier.models.parameters import ParameterCounts, parameter_counts
from frontier.models.program import operator_program, pipeline_stages, required_dtypes
from frontier.models.reader import hub_name, load_model, model_names, preset_name
from frontier.models.sharding import layout_issues, sharding_issues
from frontier.models.spec import LayerGroup, ModelSpec

__all__ = [
    "KvLayer",
    "LayerGroup",
    "Layout",
    "ModelSpec",
    "Operator",
    "ParameterCounts",
    "hub_name",
    "kv_layers",
    "layout_issues",
    "load_model",
    "model_names",
    "operator_program",
    "parameter_counts",
    "pipeline_stages",
    "preset_name",
    "required_dtypes",
    "resolve_kv_cache_dtype",
    "sharding_issues",
]
