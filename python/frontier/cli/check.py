"""`frontier check`: validate a scenario and explain its memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import click

from frontier import units
from frontier.cli import output
from frontier.cli.exits import issues_json
from frontier.cli.options import json_option, scenario_argument, set_option
from frontier.cli.service_facts import service_facts
from frontier.errors import DoesNotFitError

if TYPE_CHECKING:
    from frontier.config import Resolved, Scenario
    from frontier.config.views import ClusterView
    from frontier.lowering import Lowered
    from frontier.memory import MemoryPlan
    from frontier.memory.sglang import SglangPlan


@click.command(short_help="Validate a scenario and explain its memory.")
@scenario_argument
@set_option
@json_option
def check(scenario: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Validate SCENARIO, a YAML file or the name of a built-in example, without running it.

    Reads its trace, shows the engine's effective limits and explains the GPU's memory: weights, KV blocks,
    what is left, and why a configuration does not fit.
    """
    from frontier.config import load  # noqa: PLC0415 - slow to import

    try:
        chosen = load(scenario, overrides=overrides)
    except DoesNotFitError as error:
        plan = error.memory
        if as_json:
            output.print_json({"fits": False, "memory": memory_facts(plan), "issues": issues_json(error)})
        else:
            _print_memory(replace(plan, issues=()))  # they are the error, which goes to stderr
        raise
    from frontier.lowering import lower  # noqa: PLC0415 - slow to import

    lowered = lower(chosen)
    if as_json:
        output.print_json(document(chosen, lowered))
        return
    output.print_facts(_overview(chosen, lowered))
    views = chosen.views()
    for view in views:
        output.print_text("" if len(views) == 1 else f"\ncluster {view.name}")
        if len(views) > 1:
            model = () if view.served_model is None else (("model", _served(view)),)
            output.print_facts([*model, *_cluster_overview(view)])
        _print_memory(view.facts.memory)
    for warning in _other_warnings(lowered):
        output.print_text(f"warning: {warning}")
    click.echo(f"\n{scenario} is valid")


def document(scenario: Scenario, lowered: Lowered) -> dict[str, Any]:
    """Return the JSON document of a valid scenario; sizes in bytes."""
    common = {
        "fits": True,
        "issues": [],
        "requests": _num_requests(scenario, lowered),
        "step_time": lowered.step_time,
        "warnings": list(lowered.warnings),
        "scenario": scenario.to_dict(),
    }
    views = scenario.views()
    clusters = [_cluster_document(view) for view in views]
    if scenario.clusters is None:
        return {**common, **clusters[0]}
    return {
        **common,
        "gpus_total": sum(view.facts.gpus_total for view in views),
        "clusters": [
            {
                "name": view.name,
                "role": view.role,
                "weight": view.weight,
                **({} if view.served_model is None else {"model": view.served_model}),
                **found,
            }
            for view, found in zip(views, clusters, strict=True)
        ],
    }


def _cluster_document(view: ClusterView) -> dict[str, Any]:
    resolved = view.facts
    cluster = {
        "replicas": view.scenario.cluster.replicas,
        "in_service": _in_service(view),
        "gpus_per_replica": resolved.gpus_per_replica,
        "gpus_total": resolved.gpus_total,
    }
    if not view.has_requests:
        return {"memory": memory_facts(resolved.memory), "cluster": cluster}
    return {
        "memory": memory_facts(resolved.memory),
        "engine": {
            "max_model_len": resolved.max_model_len,
            "max_num_batched_tokens": resolved.max_num_batched_tokens,
            "max_num_seqs": resolved.max_num_seqs,
            "block_size": resolved.block_size,
            "num_gpu_blocks": resolved.num_blocks,
        },
        "cluster": cluster,
    }


def _in_service(view: ClusterView) -> int:
    """Return the replicas in service at the start."""
    cluster = view.scenario.cluster
    return cluster.replicas if cluster.in_service is None else cluster.in_service


def memory_facts(plan: MemoryPlan | SglangPlan) -> dict[str, Any]:
    """Return a memory plan as plain values, under the names of `MemoryPlan` or `SglangPlan`."""
    names = [each.name for each in fields(plan) if each.name != "issues"]
    facts = {name: getattr(plan, name) for name in names}
    return {
        **facts,
        "warnings": list(plan.warnings),
        "kv_cache_tokens": plan.kv_cache_tokens,
        "max_concurrency": plan.max_concurrency,
    }


def _overview(scenario: Scenario, lowered: Lowered) -> list[tuple[str, str]]:
    from frontier.config.models_served import model_names  # noqa: PLC0415 - slow to import

    requests = _num_requests(scenario, lowered)
    source = scenario.workload.chosen
    if scenario.workload.trace is not None:
        source = f"trace {scenario.workload.trace.path}"
    first = lowered.clusters[0]
    names = model_names(scenario.views())
    return [
        ("models" if names else "model", ", ".join(names) or first.resolved.model.name),
        *(() if len(scenario.views()) > 1 else _cluster_overview(first.view)),
        *_transfers(scenario, lowered, names),
        *((("embeddings", _embeddings(lowered)),) if _encodes(lowered) else ()),
        *service_facts(scenario),
        ("workload", source if requests is None else f"{source}, {requests:,} requests"),
        ("step time", lowered.step_time),
    ]


def _transfers(scenario: Scenario, lowered: Lowered, names: Sequence[str]) -> list[tuple[str, str]]:
    """Return how KV is handed over, in words; of several models each that has it handed over."""
    receives = [path["legs"][-1]["receives"] for path in lowered.plan.get("paths", ())]
    if len(receives) < 2:
        return [("KV transfer", _transfer(scenario, each)) for each in receives]
    found = [
        f"{name}: {_transfer(scenario, each)}"
        for name, each in zip(names, receives, strict=True)
        if each is not None
    ]
    return [("KV transfer", "\n".join(found) or "none")]


def _transfer(scenario: Scenario, receives: dict[str, Any] | None) -> str:
    if receives is None:
        return "none"
    section = None if scenario.disaggregation is None else scenario.disaggregation.kv_transfer
    given = None if section is None else section.bandwidth
    over = "over the network" if given is None else f"{units.format_bandwidth(given)} each"
    size = units.format_bytes(receives["bytes_per_block"])
    return f"{receives['mode']} by {receives['granularity']}, {over}, {size} per block"


def _served(view: ClusterView) -> str:
    """Return the model of a cluster, and by what name it is asked for if that is another."""
    name = view.facts.model.name
    return name if name == view.served_model else f"{name}, served as {view.served_model}"


def _encodes(lowered: Lowered) -> dict[str, Any] | None:
    """Return how embeddings go from encoders to prompts, None without encoders."""
    paths = lowered.plan.get("paths")
    found: dict[str, Any] | None = paths[0]["legs"][0]["encodes"] if paths else None
    return found


def _embeddings(lowered: Lowered) -> str:
    """Return what an encoder hands on, in words."""
    encodes = _encodes(lowered)
    assert encodes is not None
    size = units.format_bytes(round(encodes["bytes_per_token"]))
    bandwidth = units.format_bandwidth(encodes["bytes_per_s"])
    return f"{size} per patch, {bandwidth} each, after {units.format_duration(encodes['latency_ns'])}"


def _cluster_overview(view: ClusterView) -> list[tuple[str, str]]:
    resolved, engine, cluster = view.facts, view.engine, view.scenario.cluster
    shown = f"{cluster.replicas} x "
    shown += f"{resolved.gpus_per_replica} x " if resolved.gpus_per_replica > 1 else ""
    shown += resolved.gpu.name
    if not view.has_requests:
        ranks, size = engine.data_parallel_size, engine.tensor_parallel_size
        return [(view.role, shown), ("ranks", f"{ranks} of {size} GPUs" if size > 1 else f"{ranks}")]
    shown += f", {cluster.router.policy}"
    if cluster.in_service is not None:
        shown += f", {cluster.in_service} in service at the start"
    return [
        ("cluster", shown) if view.own is None else (view.role, shown),
        ("engine", f"{engine.name} {engine.version}"),
        *(() if engine.scheduler is None else (("scheduler", engine.scheduler.chosen),)),
        *_limits(engine.name, resolved),
    ]


def _limits(engine: str, resolved: Resolved) -> list[tuple[str, str]]:
    """Return the effective limits under the engine's own names."""
    names = ("max_model_len", "max_num_batched_tokens", "max_num_seqs")
    if engine == "sglang":
        names = ("longest request", "prefill tokens of a step", "max_running_requests")
    values = (resolved.max_model_len, resolved.max_num_batched_tokens, resolved.max_num_seqs)
    return [(name, f"{value:,}") for name, value in zip(names, values, strict=True)]


def _num_requests(scenario: Scenario, lowered: Lowered) -> int | None:
    """Return how many requests a run would issue, None where a duration ends it."""
    workload = scenario.workload
    if workload.synthetic is not None:
        return workload.synthetic.num_requests
    wanted: int | None = lowered.plan["workload"]["num_requests"]
    if wanted is not None or lowered.columns is None:
        return wanted
    return len(lowered.columns)


def _print_memory(plan: MemoryPlan | SglangPlan) -> None:
    output.print_text(f"memory of one GPU (tensor_parallel_size {plan.tensor_parallel_size}):")
    output.print_text(plan.explain())


def _other_warnings(lowered: Lowered) -> list[str]:
    """Return the warnings that the explanations of the memory do not have."""
    shown = {
        told
        for each in lowered.clusters
        for warning in each.resolved.memory.warnings
        for told in (warning, f"{each.view.name}: {warning}")
    }
    return [warning for warning in lowered.warnings if warning not in shown]
