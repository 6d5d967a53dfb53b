"""A scenario as the command, or the manifest, that launches it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from frontier.config import Scenario
from frontier.config.base import BASE_KEY
from frontier.config.encode import ENCODE
from frontier.config.sglang_handover import DECODE_ONLY
from frontier.errors import ConfigError, Issue, show_value
from frontier.launch import sglang_rules, vllm_rules
from frontier.launch.flag_table import Flag, flags_of
from frontier.launch.mapping import Rules
from frontier.models import hub_name

_SIMULATION_ONLY: Final = (
    "engine.name",
    "engine.version",
    "engine.step_time",
    "engine.cpu_overhead",
    "engine.sampling",
    "engine.frontend",
    "engine.moe.routing",
    "engine.moe.drift",
    "engine.moe.sampling",
    "engine.moe.shared_experts_stream_token_threshold",
)
"""What describes the simulation or the traffic, not the launch."""

_ROUTER_MODES: Final = {"round_robin": "round-robin", "random": "random", "prefix_aware": "kv"}
"""`DYN_ROUTER_MODE` of Dynamo's frontend by routing policy."""

_IMAGES: Final = {
    "vllm": "nvcr.io/nvidia/ai-dynamo/vllm-runtime:my-tag",
    "sglang": "nvcr.io/nvidia/ai-dynamo/sglang-runtime:my-tag",
}


_NIXL_ROLES: Final = {"prefill": "kv_producer", "decode": "kv_consumer"}
"""`kv_role` of vLLM's NIXL connector by the role of a cluster."""


def to_vllm(scenario: Scenario) -> str:
    """Return the `vllm serve` command of one replica of a scenario.

    Fields at their default are left to the engine's version, whose rules are the same. Of a scenario with
    `clusters` it is one command for each, below a comment with its name and its replicas; those of prefill
    and decode clusters hand KV over with the NIXL connector. They need the proxy of your choice before them.

    Raises:
        ConfigError: the scenario is not vLLM's, or has settings that no flag of the version can express; KV
            is not pulled.
    """
    if scenario.clusters is None:
        return _vllm_command(scenario, [])
    transfer = None if scenario.disaggregation is None else scenario.disaggregation.kv_transfer
    if transfer is not None and transfer.mode not in (None, "pull"):
        message = f"was '{transfer.mode}', commands are written for vLLM's NIXL connector alone, which pulls"
        raise ConfigError(Issue("disaggregation.kv_transfer.mode", transfer.mode, message, ("pull",)))
    apart = [view.name for view in scenario.views() if view.role in ("attention", "ffn")]
    if apart:
        message = f"are attention or FFN ranks ({', '.join(apart)}), for which vllm serve has no flags"
        raise ConfigError(Issue("clusters", apart, message))
    encoders = [view.name for view in scenario.views() if view.role == ENCODE]
    if encoders:
        message = f"are encoders ({', '.join(encoders)}), for whose connectors no commands are written"
        raise ConfigError(Issue("clusters", encoders, message))
    commands = []
    for view in scenario.views():
        role = _NIXL_ROLES.get(view.role)
        settings = {"kv_connector": "NixlConnector", "kv_role": role}
        words = [] if role is None else ["--kv-transfer-config", json.dumps(settings)]
        if view.served_model is not None and view.plain.served_model_name is not None:
            words += ["--served-model-name", view.served_model]
        cluster = view.scenario.cluster
        gpus = f"{view.facts.gpus_per_replica} x {view.facts.gpu.name}"
        about = f"# cluster {view.name}: {cluster.replicas} x this, each on {gpus}"
        try:
            commands.append(f"{about}\n{_vllm_command(view.scenario, words)}\n")
        except ConfigError as error:
            raise error.placed([view.placed(issue) for issue in error.issues], error.source) from None
    return "\n".join(commands)


def _vllm_command(scenario: Scenario, more: list[str]) -> str:
    variables, arguments = _vllm_arguments(scenario)
    model, overrides = _model_of(scenario)
    words = [*variables, "vllm", "serve", model]
    if overrides:
        words += ["--hf-overrides", json.dumps(overrides)]
    return _command([*words, *arguments, *more])


def _one_cluster(scenario: Scenario, what: str) -> None:
    """Refuse clusters with a role.

    Raises:
        ConfigError: the scenario has some.
    """
    if scenario.clusters is not None:
        names = [view.name for view in scenario.views()]
        message = f"are {', '.join(names)}: {what} is written for `cluster` alone; use vllm, one command each"
        raise ConfigError(Issue("clusters", names, message))


def to_sglang(scenario: Scenario) -> str:
    """Return the command that launches SGLang's server for one replica of a scenario.

    Of a scenario with prefill and decode clusters it is one command for each, below a comment with its name
    and its replicas. They need SGLang's router before them.

    Raises:
        ConfigError: the scenario is not SGLang's, or has settings that no flag can express.
    """
    if scenario.clusters is not None and any(view.role in _NIXL_ROLES for view in scenario.views()):
        return _sglang_servers(scenario)
    _one_cluster(scenario, "SGLang's command")
    return _sglang_command(scenario, [])


def _sglang_servers(scenario: Scenario) -> str:
    """Return a command for each prefill and decode cluster; SGLang's router goes before them."""
    views = scenario.views()
    decode = next(view for view in views if view.role == "decode")
    commands = []
    for view in views:
        words = ["--disaggregation-mode", view.role]
        size = decode.engine.tensor_parallel_size
        if view.role == "prefill" and size != view.engine.tensor_parallel_size:
            words += ["--disaggregation-decode-tp", str(size)]
        gpus = f"{view.facts.gpus_per_replica} x {view.facts.gpu.name}"
        about = f"# cluster {view.name}: {view.scenario.cluster.replicas} x this, each on {gpus}"
        dropped = tuple(f"engine.sglang.{name}" for name in DECODE_ONLY) if view.role == "prefill" else ()
        try:
            commands.append(f"{about}\n{_sglang_command(view.scenario, words, dropped)}\n")
        except ConfigError as error:
            raise error.placed([view.placed(issue) for issue in error.issues], error.source) from None
    return "\n".join(commands)


def _sglang_command(scenario: Scenario, more: list[str], dropped: tuple[str, ...] = ()) -> str:
    arguments = _sglang_arguments(scenario, dropped)
    model, overrides = _model_of(scenario)
    words = ["python", "-m", "sglang.launch_server", "--model-path", model]
    if overrides:
        words += ["--json-model-override-args", json.dumps(overrides)]
    return _command([*words, *arguments, *more])


def to_dynamo(scenario: Scenario) -> str:
    """Return a `DynamoGraphDeployment` (YAML, `nvidia.com/v1beta1`) with the scenario's router and replicas.

    Set the tags of the images and the secret of the model hub before applying it.

    Raises:
        ConfigError: as `to_vllm` and `to_sglang`; and for routing policies that Dynamo lacks.
    """
    from frontier.config.document import dump_document  # noqa: PLC0415

    _one_cluster(scenario, "Dynamo's manifest")
    engine = scenario.engine.name
    model, overrides = _model_of(scenario)
    if engine == "vllm":
        variables, arguments = _vllm_arguments(scenario)
        override_flag = "--hf-overrides"
        first = ["--model", model]
    else:
        variables, arguments = [], _sglang_arguments(scenario)
        override_flag = "--json-model-override-args"
        first = ["--model-path", model]
    if overrides:
        first += [override_flag, json.dumps(overrides)]
    policy = scenario.cluster.router.policy
    if policy not in _ROUTER_MODES:
        message = f"was {show_value(policy)}, which Dynamo's frontend does not have"
        raise ConfigError(Issue("cluster.router.policy", policy, message, tuple(_ROUTER_MODES)))
    environment = [_variable(pair) for pair in variables]
    worker: dict[str, Any] = {
        **_container(engine),
        "command": ["python3", "-m", f"dynamo.{engine}"],
        "args": [*first, *arguments],
        "resources": {"limits": {"nvidia.com/gpu": str(scenario.resolve().gpus_per_replica)}},
    }
    if environment:
        worker["env"] = environment
    router = {"name": "DYN_ROUTER_MODE", "value": _ROUTER_MODES[policy]}
    manifest = {
        "apiVersion": "nvidia.com/v1beta1",
        "kind": "DynamoGraphDeployment",
        "metadata": {"name": _resource_name(scenario)},
        "spec": {
            "components": [
                _component("Frontend", "frontend", 1, {**_container(engine), "env": [router]}),
                _component("worker", "worker", scenario.cluster.replicas, worker),
            ]
        },
    }
    return dump_document(manifest)


def _component(name: str, kind: str, replicas: int, container: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "type": kind,
        "replicas": replicas,
        "podTemplate": {"spec": {"containers": [container]}},
    }


def _container(engine: str) -> dict[str, Any]:
    secret = [{"secretRef": {"name": "hf-token-secret"}}]
    return {"name": "main", "image": _IMAGES[engine], "envFrom": secret}


def _variable(pair: str) -> dict[str, str]:
    name, _, value = pair.partition("=")
    return {"name": name, "value": value}


def _resource_name(scenario: Scenario) -> str:
    text = (scenario.name or f"{scenario.resolve().model.name}-{scenario.engine.name}").lower()
    name = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in text).strip("-")
    return name[:63].rstrip("-") or "frontier"


def _command(words: list[str]) -> str:
    """Quote the words, one flag a line."""
    lines: list[list[str]] = [[]]
    for word in words:
        if word.startswith("--"):
            lines.append([])
        name, equals, value = word.partition("=")
        assigns = bool(equals) and name.isidentifier()
        lines[-1].append(f"{name}={shlex.quote(value)}" if assigns else shlex.quote(word))
    return " \\\n  ".join(" ".join(line) for line in lines)


def _model_of(scenario: Scenario) -> tuple[str, dict[str, Any]]:
    """Return what the engine loads the model by, and the keys of its config.json to replace."""
    model: Any = scenario.model
    overrides: dict[str, Any] = {}
    if isinstance(model, Mapping):
        overrides = {key: value for key, value in model.items() if key != BASE_KEY}
        model = model.get(BASE_KEY)
        if model is None:
            message = "is an inline configuration, which no engine can load; name a preset or a path"
            raise ConfigError(Issue("model", scenario.model, message))
    return hub_name(str(model)) or str(model), overrides


def _leaves(plain: Mapping[str, Any], prefix: str, stops: frozenset[str]) -> Iterator[tuple[str, Any]]:
    for key, value in plain.items():
        path = f"{prefix}.{key}"
        if isinstance(value, Mapping) and path not in stops:
            yield from _leaves(value, path, stops)
        else:
            yield path, value


def _settings(scenario: Scenario, engine: str, whole: frozenset[str]) -> dict[str, Any]:
    """Return the engine settings that are not at their default, by path; `whole` paths keep mappings."""
    if scenario.engine.name != engine:
        message = f"was {show_value(scenario.engine.name)}, must be {engine} for this command"
        raise ConfigError(Issue("engine.name", scenario.engine.name, message))
    plain = scenario.to_dict(defaults=False).get("engine", {})
    return {
        path: value
        for path, value in _leaves(plain, "engine", whole)
        if not any(path == only or path.startswith(f"{only}.") for only in _SIMULATION_ONLY)
    }


def _flag_words(flag: Flag, value: Any) -> list[str]:
    if flag.is_switch:
        if value:
            return [flag.name]
        negative = next((alias for alias in flag.aliases if alias.startswith("--no-")), None)
        return [negative] if negative else []
    if flag.takes_many:
        return [flag.name, *(str(one) for one in value)]
    return [flag.name, json.dumps(value) if isinstance(value, dict | list) else str(value)]


def _refuse(paths: Mapping[str, Any], engine: str, version: str) -> None:
    if paths:
        raise ConfigError(
            [
                Issue(path, value, f"was {show_value(value)}, which no flag of {engine} {version} can say")
                for path, value in paths.items()
            ]
        )


def _vllm_arguments(scenario: Scenario) -> tuple[list[str], list[str]]:
    """Return variables and arguments, the model aside."""
    whole = frozenset(
        {"engine.speculative", "engine.scheduling_policy", "engine.scheduler", "engine.moe.eplb"}
    )
    settings = _settings(scenario, "vllm", whole)
    variables = [
        vllm_rules.VARIABLES[path](settings.pop(path)) for path in vllm_rules.VARIABLES if path in settings
    ]
    return variables, _arguments(scenario, settings, vllm_rules.RULES, vllm_rules.WRITERS)


def _sglang_arguments(scenario: Scenario, dropped: tuple[str, ...] = ()) -> list[str]:
    """Return the arguments, the model and the fields `dropped` aside."""
    settings = _settings(scenario, "sglang", frozenset())
    settings = {path: value for path, value in settings.items() if path not in dropped}
    return _arguments(scenario, settings, sglang_rules.RULES, sglang_rules.WRITERS)


def _arguments(
    scenario: Scenario,
    settings: Mapping[str, Any],
    rules: Rules,
    writers: Mapping[str, Callable[[Any], list[str]]],
) -> list[str]:
    """Return the words that say all `settings` to the scenario's version of its engine."""
    engine, version = scenario.engine.name, scenario.engine.version
    flags = flags_of(engine, version)
    flag_of: dict[str, str] = {}
    for name, path in rules.fields.items():
        if name in flags:
            flag_of.setdefault(path, name)
    words: list[str] = []
    unknown: dict[str, Any] = {}
    for path, value in settings.items():
        if path in writers:
            words += writers[path](value)
        elif path in flag_of:
            words += _flag_words(flags[flag_of[path]], value)
        else:
            unknown[path] = value
    _refuse(unknown, engine, version)
    return words
