"""Rows of a chunk of a trace file, whatever the container, and the checks of whole rows."""

from __future__ import annotations

import csv
import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from frontier.errors import WorkloadError, show_value
from frontier.workloads import columns, values
from frontier.workloads.columns import Problem
from frontier.workloads.formats import Format, Role
from frontier.workloads.loaded import NO_SESSION
from frontier.workloads.values import BadValueError

FAILED: Final = "failed when recorded (0 output tokens)"
"""Reason under which requests of formats with `zero_output_failed` are counted."""
_DECODE = json.JSONDecoder(parse_float=lambda text: text, parse_constant=lambda text: text).decode


@dataclass
class Rows:
    """Rows of one chunk. A row with a problem, or that failed when it was recorded, has arbitrary values."""

    lines: NDArray[np.int64]
    arrival_ns: NDArray[np.int64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    priority: NDArray[np.int64] | None = None
    session: NDArray[np.uint32] | None = None
    hashes: NDArray[np.uint64] | None = None
    hash_counts: NDArray[np.int64] | None = None
    problems: list[Problem] = field(default_factory=list)
    failed: NDArray[np.bool_] | None = None
    model: NDArray[np.uint16] | None = None
    encoder_tokens: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.lines)


def read_parent(parent: object) -> object:
    """Return the id of the chat that a chat follows, None where it follows none (-1 or nothing)."""
    if parent is None or str(parent).strip() in ("-1", "-1.0", ""):
        return None
    _check_name(parent)
    return parent


def _check_name(name: object) -> None:
    if isinstance(name, bool) or not isinstance(name, (int, str)):
        raise BadValueError("not a name", f"was {show_value(name)}, must be text, a whole number or nothing")


class Sessions:
    """Numbers sessions by first appearance, over all chunks of a file."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {"": NO_SESSION, str(NO_SESSION): NO_SESSION}
        self._count = 0

    def of_name(self, name: object) -> int:
        """Return the session called `name` (text or a whole number); none for None and empty text."""
        if name is None:
            return NO_SESSION
        _check_name(name)
        code = self._codes.setdefault(str(name).strip(), self._count)
        self._count += code == self._count
        return code

    def of_chat(self, chat: object, parent: object) -> int:
        """Return the session of a chat that follows `parent` (see `read_parent`), which may be unknown."""
        session = self.of_name(chat if parent is None else parent)
        if isinstance(chat, (int, str)) and not isinstance(chat, bool):
            self._codes[str(chat).strip()] = session
            return session
        raise BadValueError("not a name", f"was {show_value(chat)}, must be the id of the chat")

    def of_column(self, cells: pl.Series) -> NDArray[np.uint32]:
        """Return the sessions of a column of names."""
        names = cells.cast(pl.String).fill_null("").str.strip_chars()
        distinct = names.unique(maintain_order=True)
        codes = pl.Series([self.of_name(name) for name in distinct.to_list()], dtype=pl.UInt32)
        numbers = names.replace_strict(distinct, codes, return_dtype=pl.UInt32)
        # Of no rows at all polars makes a column of objects.
        return numbers.to_numpy().astype(np.uint32)


def rows_of_csv(first_line: int, text: str, header: Sequence[str], fmt: Format, sessions: Sessions) -> Rows:
    """Return the rows of whole lines of CSV. Blank lines are passed over."""
    lines = pl.Series([text]).str.split("\n").explode().str.strip_suffix("\r")
    numbers = np.arange(first_line, first_line + len(lines), dtype=np.int64)
    filled = lines.str.contains(r"\S")
    lines, numbers = lines.filter(filled), numbers[filled.to_numpy()]
    if '"' in text:
        table, problems = _quoted_cells(lines.to_list(), len(header))
    else:
        table, problems = _plain_cells(lines, len(header))
    names = source_columns(fmt)
    cells = {name: table[header.index(name)] for name in names}
    rows = rows_of_table(numbers, cells, fmt, sessions)
    rows.problems = problems + rows.problems
    return rows


def rows_of_table(
    numbers: NDArray[np.int64], cells: Mapping[str, pl.Series], fmt: Format, sessions: Sessions
) -> Rows:
    """Return the rows of a table, given its columns by name."""
    name_of = fmt.columns
    prompt_name, output_name = str(name_of["prompt_tokens"]), str(name_of["output_tokens"])
    prompt = columns.read_tokens(prompt_name, cells[prompt_name])
    output = columns.read_tokens(output_name, cells[output_name], zero=fmt.zero_output_failed)
    rows = Rows(numbers, np.zeros(len(numbers), np.int64), prompt.values, output.values)
    if (arrival_name := name_of["arrival"]) is not None:
        arrival = columns.read_arrivals(arrival_name, cells[arrival_name], fmt.time_unit)
        rows.arrival_ns = arrival.values
        rows.problems += arrival.problems
    rows.problems += prompt.problems + output.problems
    if priority_name := name_of.get("priority"):
        priority = columns.read_priorities(priority_name, cells[priority_name])
        rows.priority = priority.values
        rows.problems += priority.problems
    if encoder_name := name_of.get("encoder_tokens"):
        encoder = columns.read_tokens(encoder_name, cells[encoder_name], zero=True)
        rows.encoder_tokens = encoder.values
        rows.problems += encoder.problems
    if session_name := name_of.get("session"):
        rows.session = sessions.of_column(cells[session_name])
    if model_name := name_of.get("model"):
        model = columns.read_models(model_name, cells[model_name], fmt.models)
        rows.model = model.values.astype(np.uint16)
        rows.problems += model.problems
    if fmt.chats:
        chats = zip(cells[fmt.chats[0]].to_list(), cells[fmt.chats[1]].to_list(), strict=True)
        rows.session = _chat_column(list(chats), fmt.chats, sessions, rows.problems)
    if hash_name := name_of.get("hash_ids"):
        rows.hashes, rows.hash_counts, problems = columns.read_hash_lists(hash_name, cells[hash_name])
        rows.problems += problems
    if fmt.zero_output_failed:
        bad = {problem.row for problem in output.problems}
        rows.failed = (output.values == 0) & ~np.isin(np.arange(len(rows)), list(bad))
    return rows


def check_types(schema: Mapping[str, pl.DataType], fmt: Format, file: str) -> None:
    """Raise `WorkloadError` if a column of a typed file cannot have its role."""
    roles: list[tuple[Role, str | None]] = list(fmt.columns.items())
    roles += [("session", name) for name in fmt.chats or ()]
    for role, name in roles:
        if name is not None and (allowed := columns.type_allowed(role, schema[name])) is not None:
            raise WorkloadError(f"holds {schema[name]}, must hold {allowed}", file=file, column=name)


def rows_of_json(first_line: int, text: str, fmt: Format, sessions: Sessions) -> Rows:
    """Return the rows of whole lines of JSON, one object each. Blank lines are passed over."""
    reader = _JsonRows(fmt, sessions)
    for number, line in enumerate(text.split("\n"), first_line):
        if line and not line.isspace():
            reader.add(number, line)
    return reader.rows()


def read_object(line: str) -> dict[str, Any]:
    """Return the JSON object of a line, decimals as text. Raises `BadValueError` if it is none."""
    try:
        record = _DECODE(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise BadValueError("not a JSON object", f"was {show_value(line)}, must be a JSON object")
    return record


def check_rows(rows: Rows, fmt: Format) -> None:
    """Append the problems of rows whose columns do not go together."""
    total = rows.prompt_tokens + rows.output_tokens
    limit = values.MAX_TOKENS
    for row in np.flatnonzero(total > limit).tolist():
        output = int(rows.output_tokens[row])
        message = f"was {output}, which makes {total[row]} tokens with the prompt, must make at most {limit}"
        rows.problems.append(Problem(row, fmt.columns["output_tokens"], output, "out of range", message))
    if rows.hash_counts is None or fmt.block_size is None:
        return
    least = rows.prompt_tokens // fmt.block_size
    most = -(-rows.prompt_tokens // fmt.block_size)
    if fmt.last_block == "hashed":
        least = most
    elif fmt.last_block == "left out":
        most = least
    for row in np.flatnonzero((rows.hash_counts < least) | (rows.hash_counts > most)).tolist():
        count, prompt = int(rows.hash_counts[row]), int(rows.prompt_tokens[row])
        allowed = f"{least[row]}" if least[row] == most[row] else f"{least[row]} or {most[row]}"
        message = (
            f"has {count} hashes, must have {allowed}: {prompt} prompt tokens in blocks of {fmt.block_size}"
        )
        rows.problems.append(
            Problem(row, fmt.columns["hash_ids"], count, "count disagrees with length", message)
        )


class _JsonRows:
    """Collects rows of JSON objects in compact arrays."""

    def __init__(self, fmt: Format, sessions: Sessions) -> None:
        self._format = fmt
        self._sessions = sessions
        self._lines = array("q")
        self._numbers: dict[Role, array[int]] = {
            role: array("q")
            for role in ("arrival", "prompt_tokens", "output_tokens", "priority", "model", "encoder_tokens")
        }
        self._session = array("I")
        self._hashes = array("Q")
        self._counts = array("q")
        self._problems: list[Problem] = []
        self._failed: list[int] = []

    def add(self, number: int, line: str) -> None:
        """Add a line, as a row with a problem if it cannot be used."""
        row = len(self._lines)
        self._lines.append(number)
        for column in self._numbers.values():
            column.append(0)
        self._session.append(NO_SESSION)
        self._counts.append(0)
        name: str | None = None
        value: object = line
        try:
            record = read_object(line)
            for role, name in self._roles():
                value = record.get(name) if name is not None else None
                if self._read(row, role, value):
                    self._failed.append(row)
                    return
            if self._format.chats:
                chat_name, name = self._format.chats
                value = record.get(name)
                parent = read_parent(value)
                name, value = chat_name, record.get(chat_name)
                self._session[row] = self._sessions.of_chat(value, parent)
        except BadValueError as bad:
            self._problems.append(Problem(row, name, value, bad.reason, str(bad)))

    def _roles(self) -> list[tuple[Role, str | None]]:
        # The output comes first: of a request that failed nothing else counts.
        order = sorted(self._format.columns.items(), key=lambda item: item[0] != "output_tokens")
        return [(role, name) for role, name in order if name is not None]

    def _read(self, row: int, role: Role, value: object) -> bool:
        """Store a value; return whether it says that the request failed."""
        match role:
            case "output_tokens" if self._format.zero_output_failed:
                self._numbers[role][row] = values.read_tokens_or_zero(value)
                return self._numbers[role][row] == 0
            case "prompt_tokens" | "output_tokens":
                self._numbers[role][row] = values.read_tokens(value)
            case "arrival" if self._format.time_unit == values.DATETIME:
                self._numbers[role][row] = values.read_datetime(value)
            case "arrival":
                self._numbers[role][row] = values.read_time(value, values.TIME_UNITS[self._format.time_unit])
            case "priority":
                self._numbers[role][row] = values.read_priority(value)
            case "encoder_tokens":
                self._numbers[role][row] = values.read_tokens_or_zero(value)
            case "session":
                self._session[row] = self._sessions.of_name(value)
            case "model":
                self._numbers[role][row] = values.read_model(value, self._format.models)
            case "hash_ids":
                hashes = _hash_array(value)
                self._hashes.extend(hashes)
                self._counts[row] = len(hashes)
        return False

    def rows(self) -> Rows:
        """Return what was added."""
        roles = self._format.columns

        def numbers(role: Role) -> NDArray[np.int64]:
            return np.frombuffer(self._numbers[role], np.int64)

        failed = np.zeros(len(self._lines), np.bool_)
        failed[self._failed] = True
        return Rows(
            np.frombuffer(self._lines, np.int64),
            numbers("arrival"),
            numbers("prompt_tokens"),
            numbers("output_tokens"),
            numbers("priority") if "priority" in roles else None,
            np.frombuffer(self._session, np.uint32) if "session" in roles or self._format.chats else None,
            np.frombuffer(self._hashes, np.uint64) if "hash_ids" in roles else None,
            np.frombuffer(self._counts, np.int64) if "hash_ids" in roles else None,
            self._problems,
            failed if self._format.zero_output_failed else None,
            numbers("model").astype(np.uint16) if "model" in roles else None,
            numbers("encoder_tokens") if "encoder_tokens" in roles else None,
        )


def _hash_array(value: object) -> array[int]:
    if value is None:
        raise BadValueError("missing", "is missing, must be a list of block hashes")
    if not isinstance(value, list):
        raise BadValueError("not a list", f"was {show_value(value)}, must be a list of block hashes")
    try:
        if bool not in set(map(type, value)):  # true would pass for 1
            return array("Q", value)
    except (TypeError, OverflowError):
        pass
    return array("Q", [values.read_hash(element) for element in value])


def source_columns(fmt: Format) -> list[str]:
    """Return the names of the columns that a format reads."""
    names = [name for name in fmt.columns.values() if name is not None]
    return list(dict.fromkeys([*names, *(fmt.chats or ())]))


def _chat_column(
    chats: list[tuple[object, object]], names: tuple[str, str], sessions: Sessions, problems: list[Problem]
) -> NDArray[np.uint32]:
    column = np.full(len(chats), NO_SESSION, np.uint32)
    for row, (chat, parent) in enumerate(chats):
        name, value = names[1], parent
        try:
            known = read_parent(parent)
            name, value = names[0], chat
            column[row] = sessions.of_chat(chat, known)
        except BadValueError as bad:
            problems.append(Problem(row, name, value, bad.reason, str(bad)))
    return column


def _plain_cells(lines: pl.Series, width: int) -> tuple[list[pl.Series], list[Problem]]:
    counts = lines.str.count_matches(",", literal=True) + 1
    problems = [
        _ragged(row, counts[row], width, lines[row]) for row in (counts != width).arg_true().to_list()
    ]
    return lines.str.split_exact(",", width - 1).struct.unnest().get_columns(), problems


def _quoted_cells(lines: list[str], width: int) -> tuple[list[pl.Series], list[Problem]]:
    table: list[list[str]] = []
    problems: list[Problem] = []
    for row, line in enumerate(lines):
        try:
            fields = next(csv.reader([line], strict=True))
        except csv.Error as error:
            fields = []
            message = (
                f"was {show_value(line)}, which is no CSV ({error}); quotes must be closed on their line"
            )
            problems.append(Problem(row, None, line, "not CSV", message))
        else:
            if len(fields) != width:
                problems.append(_ragged(row, len(fields), width, line))
        table.append((fields + [""] * width)[:width])
    return [pl.Series(list(column), dtype=pl.String) for column in zip(*table, strict=True)], problems


def _ragged(row: int, count: int, width: int, line: str) -> Problem:
    message = f"has {count} fields, must have {width} as the header has: {show_value(line)}"
    return Problem(row, None, line, "wrong number of fields", message)
