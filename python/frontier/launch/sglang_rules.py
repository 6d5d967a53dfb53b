"""What each flag of SGLang's server (0.5.3) means for a scenario."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from frontier.launch.command_line import Command
from frontier.launch.mapping import Mapped, Rules, only, without_fields

_OWN: Final = (
    "context_length",
    "mem_fraction_static",
    "max_running_requests",
    "max_total_tokens",
    "chunked_prefill_size",
    "max_prefill_tokens",
    "schedule_policy",
    "schedule_conservativeness",
    "page_size",
    "radix_eviction_policy",
    "disable_radix_cache",
    "enable_mixed_chunk",
    "disable_overlap_schedule",
    "enable_priority_scheduling",
    "schedule_low_priority_values_first",
    "priority_scheduling_preemption_threshold",
)
"""Fields of `engine.sglang` under SGLang's own names."""

_FIELDS: Final = {
    **{f"--{name.replace('_', '-')}": f"engine.sglang.{name}" for name in _OWN},
    "--tensor-parallel-size": "engine.tensor_parallel_size",
    "--pipeline-parallel-size": "engine.pipeline_parallel_size",
    "--quantization": "engine.quantization",
    "--cuda-graph-max-bs": "engine.cuda_graph.max_capture_size",
    "--cuda-graph-bs": "engine.cuda_graph.capture_sizes",
    "--speculative-draft-model-path": "engine.speculative.model",
    "--enable-eplb": "engine.moe.eplb.enabled",
    "--ep-num-redundant-experts": "engine.moe.eplb.num_redundant_experts",
}


def _model(value: Any, mapped: Mapped, _command: Command) -> None:
    if value is not None:
        mapped.fields["model"] = value


def _model_override(value: Any, mapped: Mapped, _command: Command) -> None:
    import json  # noqa: PLC0415 - rarely needed

    overrides = json.loads(value) if isinstance(value, str) else value
    if overrides:
        mapped.fields["model_overrides"] = overrides


def _disable_cuda_graph(value: Any, mapped: Mapped, _command: Command) -> None:
    if value:
        mapped.fields["engine.enforce_eager"] = True


def _data_parallel(value: Any, mapped: Mapped, command: Command) -> None:
    """Without DP attention, ranks are whole replicas behind a round-robin router."""
    if command.values.get("--enable-dp-attention"):
        mapped.fields["engine.data_parallel_size"] = value
    elif value and value > 1:
        mapped.fields["cluster.replicas"] = value


def _expert_parallel(value: Any, mapped: Mapped, _command: Command) -> None:
    mapped.fields["engine.enable_expert_parallel"] = value is not None and value > 1


_ALGORITHMS: Final = {"EAGLE": "eagle", "EAGLE3": "eagle3", "NEXTN": "mtp", "STANDALONE": "draft_model"}


def _speculative_topk(value: Any, mapped: Mapped, _command: Command) -> None:
    if value not in (None, 1):
        mapped.unsupport(
            "--speculative-eagle-topk", value, "trees of drafts are not simulated; chains (1) are"
        )


def _draft_tokens(value: Any, mapped: Mapped, command: Command) -> None:
    """A chain of `steps` drafts is verified together with the token before it."""
    steps = command.values.get("--speculative-num-steps")
    if value is not None and steps is not None and value != steps + 1:
        mapped.unsupport(
            "--speculative-num-draft-tokens",
            value,
            "trees of drafts are not simulated; a chain has steps + 1",
        )


def _num_steps(value: Any, mapped: Mapped, _command: Command) -> None:
    if value is not None:
        mapped.fields["engine.speculative.num_speculative_tokens"] = value


RULES: Final = Rules(
    fields=_FIELDS,
    handlers={
        "--model-path": _model,
        "--json-model-override-args": _model_override,
        "--dtype": only(
            ("auto", "bfloat16", "float16", "half"),
            "engine.dtype",
            "--dtype",
            "32-bit serving is not simulated",
        ),
        "--kv-cache-dtype": only(
            ("auto", "fp8_e4m3", "fp8_e5m2"),
            "engine.kv_cache_dtype",
            "--kv-cache-dtype",
            "this type of KV cache is not simulated",
        ),
        "--disable-cuda-graph": _disable_cuda_graph,
        "--data-parallel-size": _data_parallel,
        "--enable-dp-attention": lambda _value, _mapped, _command: None,
        "--expert-parallel-size": _expert_parallel,
        "--speculative-algorithm": only(
            _ALGORITHMS,
            "engine.speculative.method",
            "--speculative-algorithm",
            "trees of n-grams are not simulated",
        ),
        "--speculative-num-steps": _num_steps,
        "--speculative-eagle-topk": _speculative_topk,
        "--speculative-num-draft-tokens": _draft_tokens,
    },
    environment={},
    **without_fields("sglang"),
)
"""Every flag of 0.5.3 stands in exactly one class (tests/launch)."""

_ALGORITHM_OF: Final = {method: name for name, method in _ALGORITHMS.items()}


def _write_steps(value: int) -> list[str]:
    """Write a chain of drafts."""
    steps, tokens = str(value), str(value + 1)
    return [
        *("--speculative-num-steps", steps),
        *("--speculative-eagle-topk", "1"),
        *("--speculative-num-draft-tokens", tokens),
    ]


WRITERS: Final[Mapping[str, Callable[[Any], list[str]]]] = {
    "engine.dtype": lambda value: ["--dtype", value],
    "engine.kv_cache_dtype": lambda value: ["--kv-cache-dtype", value],
    "engine.enforce_eager": lambda value: ["--disable-cuda-graph"] if value else [],
    "engine.data_parallel_size": lambda value: ["--enable-dp-attention", "--data-parallel-size", str(value)],
    "engine.speculative.method": lambda value: ["--speculative-algorithm", _ALGORITHM_OF[value]],
    "engine.speculative.num_speculative_tokens": _write_steps,
}
"""How fields that no flag holds alone are written."""
