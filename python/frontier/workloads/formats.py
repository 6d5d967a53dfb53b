"""The trace formats frontier knows, and how one is told from a header.

| format | source | container |
|---|---|---|
| `azure` | Azure LLM inference traces 2023 and 2024 (AzurePublicDataset, CC BY 4.0) | CSV |
| `mooncake` | Mooncake FAST'25 traces (kvcache-ai/Mooncake, Apache-2.0) | JSON lines |
| `qwen-bailian` | alibaba-edu/qwen-bailian-usagetraces-anon (Apache-2.0) | JSON lines |
| `burstgpt` | BurstGPT releases 1 and 2 (HPMLL/BurstGPT, CC BY 4.0) | CSV |
| `vidur` | processed traces of the Vidur simulator | CSV |
| `sharegpt-replay` | replays with `block_hash_ids_16` | CSV |
| `frontier` | frontier's own names: `arrival_ns`, `prompt_tokens`, `output_tokens` | any |
| `plain` | anything, with `columns` naming what is what | any |

With `auto`, a file that has the columns of a format is of that format, and `columns` replaces those it names;
a file of no known format is `plain`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from frontier.errors import WorkloadError, nearest_name, show_value
from frontier.workloads.values import DATETIME, TIME_UNITS

Role = Literal[
    "arrival", "prompt_tokens", "output_tokens", "priority", "session", "hash_ids", "model", "encoder_tokens"
]
ROLES: Final[tuple[Role, ...]] = (
    "arrival", "prompt_tokens", "output_tokens", "priority", "session", "hash_ids", "model",
    "encoder_tokens",
)  # fmt: skip
_NEEDED: Final[tuple[Role, ...]] = ("arrival", "prompt_tokens", "output_tokens")

LastBlock = Literal["hashed", "left out", "either"]


@dataclass(frozen=True)
class Format:
    """How the rows of a trace are written.

    Attributes:
        name: as `load_trace(format=...)` takes it.
        columns: source column of each role; an arrival of None puts all requests at time 0.
        time_unit: `s`, `ms`, `us`, `ns` or `datetime`.
        optional: roles whose columns may be absent from a file.
        block_size: tokens per block hash.
        last_block: whether a last, partial block has a hash. A prompt of P tokens then has
            ceil(P / block_size) hashes, else floor(P / block_size), and what is left over is unique.
        zero_output_failed: requests with 0 output tokens failed when recorded, and are skipped.
        chats: columns of a chat's id and of the id of the chat it follows (-1 for none); a session is such a
            chain of chats.
        marks: further columns that tell this format from others.
        models: names that the column of the role `model` may have; none where no such column is read.

    """

    name: str
    columns: Mapping[Role, str | None]
    time_unit: str = "s"
    optional: frozenset[Role] = frozenset()
    block_size: int | None = None
    last_block: LastBlock = "either"
    zero_output_failed: bool = False
    chats: tuple[str, str] | None = None
    marks: tuple[str, ...] = field(default=())
    models: tuple[str, ...] = ()

    def is_of(self, header: Sequence[str]) -> bool:
        """Return whether a file with these column names is of this format."""
        needed = {name for role, name in self.columns.items() if role not in self.optional and name}
        return bool(needed) and needed.union(self.marks) <= set(header)


_KNOWN: Final = (
    Format(
        "azure",
        {"arrival": "TIMESTAMP", "prompt_tokens": "ContextTokens", "output_tokens": "GeneratedTokens"},
        time_unit=DATETIME,
    ),
    Format(
        "qwen-bailian",
        {
            "arrival": "timestamp",
            "prompt_tokens": "input_length",
            "output_tokens": "output_length",
            "hash_ids": "hash_ids",
        },
        block_size=16,
        chats=("chat_id", "parent_chat_id"),
        marks=("chat_id", "parent_chat_id"),
    ),
    Format(
        "mooncake",
        {
            "arrival": "timestamp",
            "prompt_tokens": "input_length",
            "output_tokens": "output_length",
            "hash_ids": "hash_ids",
        },
        time_unit="ms",
        block_size=512,
        last_block="hashed",
    ),
    Format(
        "burstgpt",
        {
            "arrival": "Timestamp",
            "prompt_tokens": "Request tokens",
            "output_tokens": "Response tokens",
            "session": "Session ID",
            "model": "Model",
        },
        optional=frozenset({"session", "model"}),
        zero_output_failed=True,
    ),
    Format(
        "vidur",
        {
            "arrival": "arrived_at",
            "prompt_tokens": "num_prefill_tokens",
            "output_tokens": "num_decode_tokens",
        },
    ),
    Format(
        "sharegpt-replay",
        {
            "arrival": "arrival_s",
            "prompt_tokens": "num_prompt_tokens",
            "output_tokens": "num_output_tokens",
            "hash_ids": "block_hash_ids_16",
        },
        block_size=16,
        last_block="left out",
    ),
    Format(
        "frontier",
        {
            "arrival": "arrival_ns",
            "prompt_tokens": "prompt_tokens",
            "output_tokens": "output_tokens",
            "priority": "priority",
            "session": "session",
            "model": "model",
            "encoder_tokens": "encoder_tokens",
        },
        time_unit="ns",
        optional=frozenset({"priority", "session", "model", "encoder_tokens"}),
    ),
)
FORMATS: Final[dict[str, Format]] = {known.name: known for known in _KNOWN}
"""Formats with fixed column names; `plain` has none."""
FORMAT_NAMES: Final = ("auto", *FORMATS, "plain")


@dataclass(frozen=True)
class Request:
    """What the caller of `load_trace` asked for about the format."""

    format: str
    columns: Mapping[str, str | None] | None
    time_unit: str | None
    block_size: int | None
    models: tuple[str, ...] | None = None

    def check(self) -> None:
        """Raise `WorkloadError` if an option is not one of those allowed."""
        if self.format not in FORMAT_NAMES:
            raise WorkloadError(_unknown("format", self.format, FORMAT_NAMES), value=self.format)
        units = (*TIME_UNITS, DATETIME)
        if self.time_unit is not None and self.time_unit not in units:
            raise WorkloadError(_unknown("time_unit", self.time_unit, units), value=self.time_unit)
        for role in self.columns or ():
            if role not in ROLES:
                raise WorkloadError(_unknown("columns", role, ROLES), value=role)
        if self.format == "plain" and self.columns is None:
            raise WorkloadError(
                "format 'plain' needs columns, such as"
                " {'arrival': 'time', 'prompt_tokens': 'input', 'output_tokens': 'output'}"
            )
        if self.models is None and (self.columns or {}).get("model") is not None:
            raise WorkloadError("columns names a model, which needs models, the names that there may be")
        if self.models is not None and len(set(self.models)) != max(1, len(self.models)):
            raise WorkloadError(f"models was {show_value(self.models)}, must be names that differ")
        if self.block_size is not None and self.block_size < 1:
            raise WorkloadError(
                f"block_size was {self.block_size}, must be at least 1", value=self.block_size
            )


def choose_format(request: Request, header: Sequence[str], file: str) -> Format:
    """Return the format of a file with these column names (of JSON lines: keys of the first objects).

    Columns given by the caller replace those of the format. Raises `WorkloadError` where no format fits, a
    needed column is absent (the nearest name is suggested), or block hashes have no block size.
    """
    chosen = _base_format(request, header, file)
    if request.columns is not None:
        given: dict[Role, str | None] = {
            role: request.columns[role] for role in ROLES if role in request.columns
        }
        chosen = replace(chosen, columns={**chosen.columns, **given}, optional=chosen.optional - set(given))
    chosen = _with_models(chosen, request, header)
    chosen = replace(
        chosen,
        time_unit=request.time_unit or chosen.time_unit,
        block_size=request.block_size or chosen.block_size,
        columns={
            role: name
            for role, name in chosen.columns.items()
            if not (role in chosen.optional and name not in header)
            and not (name is None and role != "arrival")
        },
    )
    for role in _NEEDED:
        if role not in chosen.columns:
            raise WorkloadError(f"columns names no {role}; it needs {', '.join(_NEEDED)}", file=file)
    names = [name for name in chosen.columns.values() if name is not None]
    for name in (*names, *(chosen.chats or ())):
        _check_column(name, header, file)
    if request.models is not None and "model" not in chosen.columns:
        raise WorkloadError(
            f"has no column that names the model of each request, and there are {', '.join(request.models)};"
            " name it with columns={'model': ...}",
            file=file,
            line=1,
        )
    if "hash_ids" in chosen.columns and chosen.block_size is None:
        raise WorkloadError("hash_ids need block_size, the number of tokens per block hash", file=file)
    if "hash_ids" not in chosen.columns and request.block_size is not None:
        raise WorkloadError(
            f"block_size was {request.block_size}, but there is no column of hash_ids",
            file=file,
            value=request.block_size,
        )
    return chosen


def _with_models(fmt: Format, request: Request, header: Sequence[str]) -> Format:
    """Return a format with the column of models where it is wanted, and without it where it is not."""
    if request.models is None:
        kept: dict[Role, str | None] = {role: name for role, name in fmt.columns.items() if role != "model"}
        return replace(fmt, columns=kept)
    columns: dict[Role, str | None] = dict(fmt.columns)
    if "model" not in columns and "model" in header:
        columns["model"] = "model"
    return replace(fmt, columns=columns, models=request.models)


def _base_format(request: Request, header: Sequence[str], file: str) -> Format:
    if request.format in FORMATS:
        return FORMATS[request.format]
    detected = None if request.format == "plain" else next((f for f in _KNOWN if f.is_of(header)), None)
    if detected is not None:
        return detected
    if request.columns is not None:
        return Format("plain", {})
    shown = ", ".join(show_value(name) for name in list(header)[:12])
    formats = "; ".join(
        f"{known.name}: {', '.join(n for r, n in known.columns.items() if n and r not in known.optional)}"
        for known in _KNOWN
    )
    raise WorkloadError(
        f"the columns ({shown}) are of no known format ({formats}); name them with columns="
        "{'arrival': ..., 'prompt_tokens': ..., 'output_tokens': ...}",
        file=file,
        line=1,
    )


def _check_column(name: str, header: Sequence[str], file: str) -> None:
    count = list(header).count(name)
    if count == 1:
        return
    if count:
        raise WorkloadError(
            f"appears {count} times in the header, must appear once", file=file, line=1, column=name
        )
    near = nearest_name(name, header)
    hint = f"; did you mean '{near}'?" if near else ""
    columns = ", ".join(show_value(column) for column in list(header)[:24])
    raise WorkloadError(f"is missing{hint} (columns: {columns})", file=file, line=1, column=name)


def _unknown(option: str, value: str, allowed: Sequence[str]) -> str:
    near = nearest_name(value, allowed)
    hint = f"; did you mean '{near}'?" if near else ""
    return f"{option} was {show_value(value)}, must be one of {', '.join(allowed)}{hint}"
