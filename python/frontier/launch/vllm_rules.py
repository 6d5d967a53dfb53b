"""What each flag of `vllm serve` (0.11 to 0.32) means for a scenario."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from frontier.errors import ConfigError, Issue, show_value
from frontier.launch.command_line import Command
from frontier.launch.mapping import Mapped, Remark, Rules, name_model, only, without_fields
from frontier.units import parse_bytes

_FIELDS: Final = {
    "--tensor-parallel-size": "engine.tensor_parallel_size",
    "--pipeline-parallel-size": "engine.pipeline_parallel_size",
    "--data-parallel-size": "engine.data_parallel_size",
    "--prefill-context-parallel-size": "engine.prefill_context_parallel_size",
    "--decode-context-parallel-size": "engine.decode_context_parallel_size",
    "--enable-expert-parallel": "engine.enable_expert_parallel",
    "--max-model-len": "engine.max_model_len",
    "--quantization": "engine.quantization",
    "--enforce-eager": "engine.enforce_eager",
    "--block-size": "engine.block_size",
    "--gpu-memory-utilization": "engine.gpu_memory_utilization",
    "--num-gpu-blocks-override": "engine.num_gpu_blocks_override",
    "--enable-prefix-caching": "engine.enable_prefix_caching",
    "--max-num-batched-tokens": "engine.max_num_batched_tokens",
    "--max-num-scheduled-tokens": "engine.max_num_scheduled_tokens",
    "--max-num-seqs": "engine.max_num_seqs",
    "--max-num-active-seqs": "engine.max_num_active_seqs",
    "--long-prefill-token-threshold": "engine.long_prefill_token_threshold",
    "--long-prefill-token-threshold-adaptive": "engine.long_prefill_token_threshold_adaptive",
    "--enable-chunked-prefill": "engine.enable_chunked_prefill",
    "--disable-hybrid-kv-cache-manager": "engine.disable_hybrid_kv_cache_manager",
    "--async-scheduling": "engine.async_scheduling",
    "--scheduler-reserve-full-isl": "engine.scheduler_reserve_full_isl",
    "--watermark": "engine.watermark",
    "--prefill-schedule-interval": "engine.prefill_schedule_interval",
    "--performance-mode": "engine.performance_mode",
    "--cudagraph-capture-sizes": "engine.cuda_graph.capture_sizes",
    "--cuda-graph-sizes": "engine.cuda_graph.capture_sizes",
    "--max-cudagraph-capture-size": "engine.cuda_graph.max_capture_size",
    "--all2all-backend": "engine.moe.all2all_backend",
    "--expert-placement-strategy": "engine.moe.expert_placement_strategy",
    "--num-redundant-experts": "engine.moe.eplb.num_redundant_experts",
    "--eplb-window-size": "engine.moe.eplb.window_size",
    "--eplb-step-interval": "engine.moe.eplb.step_interval",
    "--enable-dbo": "engine.moe.enable_dbo",
    "--dbo-decode-token-threshold": "engine.moe.dbo_decode_token_threshold",
    "--dbo-prefill-token-threshold": "engine.moe.dbo_prefill_token_threshold",
    "--api-server-count": "engine.api_server_count",
    "--data-parallel-size-local": "engine.data_parallel_size_local",
    "--data-parallel-hybrid-lb": "engine.data_parallel_hybrid_lb",
    "--data-parallel-external-lb": "engine.data_parallel_external_lb",
    "--dp-sync-interval": "engine.dp_sync_interval",
    "--kv-offloading-size": "engine.kv_offloading_size",
}


def _hf_overrides(value: Any, mapped: Mapped, _command: Command) -> None:
    if isinstance(value, dict):
        mapped.fields["model_overrides"] = value
    else:
        mapped.unsupport("--hf-overrides", value, "only a JSON object of config.json keys can be applied")


_COMPILATION_FIELDS: Final = {
    "cudagraph_mode": "engine.cuda_graph.mode",
    "cudagraph_capture_sizes": "engine.cuda_graph.capture_sizes",
    "max_cudagraph_capture_size": "engine.cuda_graph.max_capture_size",
}
_COMPILATION_NEUTRAL: Final = (
    "debug_dump_path",
    "cache_dir",
    "compile_cache_save_format",
    "local_cache_dir",
    "cudagraph_num_of_warmups",
    "cudagraph_copy_inputs",
    "compilation_time",
    "encoder_compilation_time",
)


def _compilation_config(value: Any, mapped: Mapped, _command: Command) -> None:
    if not isinstance(value, dict):
        mapped.unsupport(
            "--compilation-config", value, "is a level of the compiler; kernels' times are not by level"
        )
        return
    for key, inner in value.items():
        if key in _COMPILATION_FIELDS:
            mapped.fields[_COMPILATION_FIELDS[key]] = inner
        elif key not in _COMPILATION_NEUTRAL and inner is not None:
            mapped.unsupport(
                f"--compilation-config.{key}", inner, "the compiler's effect on kernels is not simulated"
            )


def _optimization_level(value: Any, mapped: Mapped, command: Command) -> None:
    """O0 neither compiles nor captures, O1 captures piecewise, O2 (the default) and O3 fully."""
    level = str(value).upper().removeprefix("O")
    if level in ("2", "3"):
        return
    graphs = {"0": "none", "1": "piecewise"}.get(level)
    if graphs is None:
        mapped.unsupport("--optimization-level", value, "must be one of 0, 1, 2, 3")
        return
    said = command.values.get("--compilation-config")
    if not (isinstance(said, dict) and said.get("cudagraph_mode")):
        mapped.fields["engine.cuda_graph.mode"] = graphs
    mapped.unsupport("--optimization-level", value, "graphs follow it; kernels are timed as compiled ones")


_SPECULATIVE_FIELDS: Final = {
    "method": "method",
    "num_speculative_tokens": "num_speculative_tokens",
    "model": "model",
    "prompt_lookup_min": "prompt_lookup_min",
    "prompt_lookup_max": "prompt_lookup_max",
}
_MTP: Final = (
    "deepseek_mtp",
    "mimo_mtp",
    "glm4_moe_mtp",
    "ernie_mtp",
    "qwen3_next_mtp",
    "longcat_flash_mtp",
    "mtp",
)


def _speculative_config(value: Any, mapped: Mapped, _command: Command) -> None:
    if value is None:
        return
    for key, inner in value.items():
        if key in _SPECULATIVE_FIELDS:
            method = "mtp" if key == "method" and inner in _MTP else inner
            mapped.fields[f"engine.speculative.{_SPECULATIVE_FIELDS[key]}"] = method
        elif key == "synthetic_acceptance_rates":
            mapped.fields["engine.speculative.acceptance"] = {"per_position": inner}
        elif key == "draft_tensor_parallel_size" and inner is not None:
            mapped.unsupport(
                f"--speculative-config.{key}", inner, "the draft runs with the target's parallelism"
            )
        elif inner is not None:
            mapped.unsupport(f"--speculative-config.{key}", inner, "is not simulated")
    if "engine.speculative.method" not in mapped.fields and "model" in value:
        mapped.fields["engine.speculative.method"] = "draft_model"


def _spec_shortcut(field: str) -> Any:
    def handle(value: Any, mapped: Mapped, _command: Command) -> None:
        if value is not None:
            mapped.fields[f"engine.speculative.{field}"] = value

    return handle


def _eplb_config(value: Any, mapped: Mapped, command: Command) -> None:
    known = {"window_size", "step_interval", "num_redundant_experts", "use_async"}
    if not command.values.get("--enable-eplb"):
        mapped.neutral.append(Remark("--eplb-config", value, "has no effect without --enable-eplb"))
        return
    for key, inner in value.items():
        if key in known:
            mapped.fields[f"engine.moe.eplb.{key}"] = inner
        elif not key.startswith("log_"):
            mapped.unsupport(f"--eplb-config.{key}", inner, "is not simulated")


def _enable_eplb(value: Any, mapped: Mapped, _command: Command) -> None:
    if value:
        mapped.fields["engine.moe.eplb"] = {}


def _scheduling_policy(value: Any, mapped: Mapped, _command: Command) -> None:
    mapped.fields["engine.scheduling_policy"] = value


def _pp_layer_partition(text: str, mapped: Mapped, _command: Command) -> None:
    try:
        mapped.fields["engine.pipeline_layer_partition"] = [int(part) for part in text.split(",")]
    except ValueError:
        mapped.unsupport("VLLM_PP_LAYER_PARTITION", text, "must be whole numbers with commas between")


def _use_v1(text: str, mapped: Mapped, _command: Command) -> None:
    if text == "1":
        mapped.neutral.append(Remark("VLLM_USE_V1", text, "V1 is the only engine of these versions"))
    else:
        mapped.unsupport("VLLM_USE_V1", text, "these versions have no other engine than V1")


RULES: Final = Rules(
    fields=_FIELDS,
    handlers={
        "model_tag": name_model,
        "--model": name_model,
        "--hf-overrides": _hf_overrides,
        "--dtype": only(
            ("auto", "bfloat16", "float16", "half"),
            "engine.dtype",
            "--dtype",
            "32-bit serving is not simulated",
        ),
        "--kv-cache-dtype": only(
            ("auto", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2", "fp8_ds_mla"),
            "engine.kv_cache_dtype",
            "--kv-cache-dtype",
            "this type of KV cache is not simulated",
        ),
        "--compilation-config": _compilation_config,
        "--optimization-level": _optimization_level,
        "--speculative-config": _speculative_config,
        "--spec-method": _spec_shortcut("method"),
        "--spec-model": _spec_shortcut("model"),
        "--spec-tokens": _spec_shortcut("num_speculative_tokens"),
        "--eplb-config": _eplb_config,
        "--enable-eplb": _enable_eplb,
        "--scheduling-policy": _scheduling_policy,
    },
    environment={"VLLM_PP_LAYER_PARTITION": _pp_layer_partition, "VLLM_USE_V1": _use_v1},
    **without_fields("vllm"),
)
"""Every flag of every version stands in exactly one class (tests/launch)."""


def _write_speculative(value: dict[str, Any]) -> list[str]:
    config = {name: value[name] for name in _SPECULATIVE_FIELDS if value.get(name) is not None}
    rates = (value.get("acceptance") or {}).get("per_position")
    if rates is not None:
        config |= {"rejection_sample_method": "synthetic", "synthetic_acceptance_rates": list(rates)}
    return ["--speculative-config", json.dumps(config)]


def _write_capture(key: str) -> Callable[[Any], list[str]]:
    return lambda value: ["--compilation-config", json.dumps({key: value})]


def _write_policy(value: dict[str, Any]) -> list[str]:
    [policy] = value
    if policy not in ("fcfs", "priority"):
        message = f"was {show_value(policy)}, which vLLM does not have"
        raise ConfigError(Issue("engine.scheduling_policy", policy, message, ("fcfs", "priority")))
    return ["--scheduling-policy", policy]


def _write_enabled_eplb(value: dict[str, Any]) -> list[str]:
    words = ["--enable-eplb"]
    for key, inner in value.items():
        words += [f"--eplb-config.{key}", json.dumps(inner)]
    return words


WRITERS: Final[Mapping[str, Callable[[Any], list[str]]]] = {
    "engine.dtype": lambda value: ["--dtype", value],
    "engine.kv_cache_dtype": lambda value: ["--kv-cache-dtype", value],
    "engine.cuda_graph.mode": lambda value: _write_capture("cudagraph_mode")(str(value).upper()),
    "engine.speculative": _write_speculative,
    "engine.moe.eplb": _write_enabled_eplb,
    "engine.scheduling_policy": _write_policy,
    "engine.kv_offloading_size": lambda value: ["--kv-offloading-size", f"{parse_bytes(value) / 2**30:g}"],
}
"""How fields that no flag holds alone are written."""

VARIABLES: Final[Mapping[str, Callable[[Any], str]]] = {
    "engine.pipeline_layer_partition": lambda value: f"VLLM_PP_LAYER_PARTITION={','.join(map(str, value))}",
}
"""Fields that are variables of the environment."""
