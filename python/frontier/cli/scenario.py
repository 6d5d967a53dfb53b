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
        plan = _memory_plan(self._plain())
        if plan is None:
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


def _memory_plan(plain: Mapping[str, Any]) -> MemoryPlan | None:
    """Return the memory plan of plain values, also of a scenario that does not fit; None if they are wrong.

    A `Scenario` that does not fit cannot be made, so the sections it rests on are read one by one.
    """
    from pydantic import ValidationError  # noqa: PLC0415 - slow to import

    from frontier.config import resolve  # noqa: PLC0415
    from frontier.config.engine import Engine  # noqa: PLC0415
    from frontier.config.sections import Hardware  # noqa: PLC0415

    try:
        engine = Engine.model_validate(plain.get("engine", {}))
        hardware = Hardware.model_validate(plain.get("hardware"))
    except ValidationError:
        return None
    sections = {"model": plain.get("model"), "hardware": hardware, "engine": engine}
    return resolve.memory_plan(resolve.Parts.of(sections, frozenset()))
