"""A launch command as a scenario."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from frontier.config import Scenario
from frontier.config.base import BASE_KEY
from frontier.errors import ConfigError, Issue
from frontier.launch import sglang_rules, vllm_rules
from frontier.launch.command_line import Command, read_command
from frontier.launch.mapping import Mapped, Remark

_RULES: Final = {"vllm": vllm_rules.RULES, "sglang": sglang_rules.RULES}
DEFAULT_VERSIONS: Final = {"vllm": "0.32.0", "sglang": "0.5.3"}


@dataclass(frozen=True, slots=True)
class Launch:
    """What a launch command means.

    Attributes:
        scenario: the engine that the command starts, under the workload and on the hardware given.
        engine: `vllm` or `sglang`.
        version: the version whose flags and defaults hold.
        unsupported: flags and variables that change a real run in ways that are not simulated.
        neutral: flags and variables that change nothing that is simulated, each with the reason.
    """

    scenario: Scenario
    engine: str
    version: str
    unsupported: tuple[Remark, ...]
    neutral: tuple[Remark, ...]

    def summary(self) -> str:
        """Return the remarks for people, what is not simulated first."""
        lines = [f"not simulated: {remark}" for remark in self.unsupported]
        lines += [f"no effect here: {remark}" for remark in self.neutral]
        return "\n".join(lines)


def from_command(
    command: str | Sequence[str],
    *,
    hardware: Any,
    workload: Any,
    version: str | None = None,
    model: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    strict: bool = False,
    **sections: Any,
) -> Launch:
    """Make a scenario of a command that launches vLLM or SGLang.

    Every flag of the version ends in a field of the scenario, among `neutral` (it changes nothing that is
    simulated) or among `unsupported`. Flags left out follow the defaults of the version.

        launch = frontier.from_command(
            "vllm serve meta-llama/Llama-3.1-8B-Instruct -tp 2 --max-num-seqs 128",
            hardware="h100", workload={"trace": "azure-2023-conv"}, version="0.32")
        result = frontier.simulate(launch.scenario)

    Args:
        command: as typed into a shell, variables in front and continuation lines allowed, or its words.
        hardware: the scenario's hardware section, which no command names.
        workload: the scenario's workload section.
        version: of the engine; the newest that is modelled if not given.
        model: instead of the command's, for names that no preset has.
        strict: raise instead of listing flags that are not simulated.
        sections: other sections of the scenario (`cluster`, `objectives`, `seed`, ...). What `engine` says
            goes over the command: with drafts, `engine={"speculative": {"acceptance": 0.7}}` for instance,
            because how many are accepted is a matter of the traffic.

    Raises:
        ConfigError: the command cannot be read, has flags that the version lacks, or makes no valid
            scenario; with `strict`, also for every flag that is not simulated.
    """
    versions = DEFAULT_VERSIONS if version is None else dict.fromkeys(DEFAULT_VERSIONS, version)
    read = read_command(command, versions)
    mapped = _RULES[read.engine].apply(read)
    if strict and mapped.unsupported:
        raise ConfigError([Issue("command", remark.value, f"has {remark}") for remark in mapped.unsupported])
    document = {**sections, "hardware": hardware, "workload": workload}
    _put_engine(document, read, mapped, versions[read.engine])
    document["model"] = _model(model, mapped)
    return Launch(
        scenario=_scenario(document, mapped),
        engine=read.engine,
        version=versions[read.engine],
        unsupported=tuple(mapped.unsupported),
        neutral=tuple(mapped.neutral),
    )


def _model(given: Any, mapped: Mapped) -> Any:
    named = mapped.fields.pop("model", None)
    overrides = mapped.fields.pop("model_overrides", None)
    model = given if given is not None else named
    if model is None:
        raise ConfigError(Issue("command", None, "names no model"))
    if not overrides:
        return model
    return {**model, **overrides} if isinstance(model, Mapping) else {BASE_KEY: model, **overrides}


def _put_engine(document: dict[str, Any], read: Command, mapped: Mapped, version: str) -> None:
    """Put what the command says into the document; what the caller says of the engine goes over it."""
    given = document.pop("engine", {})
    if not isinstance(given, Mapping):
        raise ConfigError(Issue("engine", given, "must be a mapping beside a command"))
    document["engine"] = {"name": read.engine, "version": version}
    for path, value in mapped.fields.items():
        first, *rest = path.split(".")
        if first in ("model", "model_overrides") or value is None:
            continue
        nested = value
        for part in reversed(rest):
            nested = {part: nested}
        document[first] = _merged(document.get(first), nested)
    document["engine"] = _merged(document["engine"], given)


def _merged(below: Any, above: Any) -> Any:
    """Return `above` laid over `below`, mapping by mapping."""
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return above
    merged = dict(below)
    for key, value in above.items():
        merged[key] = _merged(merged[key], value) if key in merged else value
    return merged


def _scenario(document: dict[str, Any], mapped: Mapped) -> Scenario:
    try:
        return Scenario.from_dict(document)
    except ConfigError as error:
        issues = [
            replace(issue, message=f"{issue.message} (said by {mapped.origin[issue.path]})")
            if issue.path in mapped.origin
            else issue
            for issue in error.issues
        ]
        raise error.placed(issues, error.source) from None
