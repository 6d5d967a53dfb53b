"""From the SCENARIO argument to a `Scenario`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frontier.cli.examples import example_names, example_path
from frontier.cli.exits import DoesNotFitError
from frontier.errors import ConfigError, Issue, nearest_name

if TYPE_CHECKING:
    from frontier.config import Scenario
    from frontier.memory import MemoryPlan

_SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Given:
    """A scenario as the command line names it: its file and the values set beside it."""

    file: Path
    overrides: tuple[str, ...]

    @classmethod
    def of(cls, argument: str, overrides: Sequence[str] = ()) -> Given:
        """Find the file of `argument`: the name of a built-in example, or a path.

        Raises:
            ConfigError: it is neither.
        """
        names = example_names()
        if argument in names:
            return cls(example_path(argument), tuple(overrides))
        path = Path(argument)
        if path.suffix not in _SUFFIXES and path.name == argument and not path.exists():
            message = f"was '{argument}', is neither a file nor a built-in example"
            raise ConfigError(Issue("SCENARIO", argument, message, names, nearest_name(argument, names)))
        return cls(path, tuple(overrides))

    def load(self) -> Scenario:
        """Read and validate the scenario.

        Raises:
            DoesNotFitError: its only problem is the GPU's memory.
            ConfigError: it has other problems.
        """
        from frontier.config import load  # noqa: PLC0415 - slow to import

        try:
            return load(self.file, overrides=self.overrides)
        except ConfigError as error:
            plan = self.failed_memory_plan(error)
            if plan is None:
                raise
            raise DoesNotFitError(error.issues, source=error.source) from None

    def failed_memory_plan(self, error: ConfigError) -> MemoryPlan | None:
        """Return the memory plan behind an error, None where the error has other reasons."""
        try:
            plan = _memory_plan(self._plain())
        except ConfigError:
            return None
        reasons = {issue.message for issue in plan.issues}
        return plan if all(issue.message in reasons for issue in error.issues) else None

    def _plain(self) -> dict[str, Any]:
        """Return the document with the overrides applied, not validated."""
        from frontier.config import apply_set  # noqa: PLC0415 - slow to import
        from frontier.config.document import parse_document, read_text  # noqa: PLC0415
        from frontier.config.locate import anchor_paths  # noqa: PLC0415

        plain, _ = parse_document(read_text(self.file, what="scenario"))
        return apply_set(anchor_paths(plain, self.file.resolve().parent), self.overrides)


def _memory_plan(plain: Mapping[str, Any]) -> MemoryPlan:
    """Return the memory plan of a scenario's plain values, also where it does not fit.

    A `Scenario` that does not fit cannot be made, so its sections are resolved by the same steps here.

    Raises:
        ConfigError: one of the sections it rests on is not valid.
    """
    from pydantic import ValidationError  # noqa: PLC0415 - slow to import

    from frontier.config import resolve  # noqa: PLC0415
    from frontier.config.engine import Engine  # noqa: PLC0415
    from frontier.config.sections import Hardware  # noqa: PLC0415
    from frontier.memory import plan_kv_cache  # noqa: PLC0415

    try:
        engine = Engine.model_validate(plain.get("engine", {}))
        hardware = Hardware.model_validate(plain.get("hardware"))
    except ValidationError as error:
        raise ConfigError(str(error)) from None
    parts = resolve.Parts(plain.get("model"), hardware, engine, None, None, None, frozenset())
    issues: list[Issue] = []
    spec, gpu = resolve._load_model(parts, issues), resolve._load_gpu(parts, issues)
    limits = resolve._limits(parts, engine, spec, gpu)
    if spec is None or gpu is None or limits is None:
        raise ConfigError(issues)
    return plan_kv_cache(
        spec,
        gpu,
        tensor_parallel_size=engine.tensor_parallel_size,
        block_size=resolve._block_size(engine, spec, gpu),
        gpu_memory_utilization=engine.gpu_memory_utilization,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_num_seqs=limits.max_num_seqs,
        # What `auto` comes down to where even the shortest context does not fit.
        max_model_len=2 if engine.max_model_len == "auto" else limits.max_model_len,
        kv_cache_dtype=engine.kv_cache_dtype,
        num_gpu_blocks_override=engine.num_gpu_blocks_override,
        weight_dtype="auto",
    )
