"""Mutations of the valid scenarios, each with what must come of it where that follows from its making."""

import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from mutated_scenario_bases import BASES, TRACE_FILE
from mutated_scenario_kinds import WRONG, kind_of
from mutation_outcome import INF, NAN, Path

Expect = Literal["refused", "same", "ends"]


@dataclass(frozen=True)
class Blame:
    """A path that the error must name, with the value found there (`...` for none to show).

    `nearby` also accepts a path around it; `nearest` is the name that must be suggested.
    """

    path: Path
    value: Any = ...
    nearby: bool = False
    nearest: str | None = None


@dataclass(frozen=True)
class Case:
    """A mutated scenario.

    Attributes:
        name: base and mutation, for messages.
        plain: the document.
        expect: `refused` with a `ConfigError`, the `same` run as the base, or `ends` in an error or a run.
        blames: what the error must name.
        alone: whether nothing in unrelated sections may be blamed beside.
        native: whether it holds Python values that no YAML text can.
    """

    name: str
    plain: Any
    expect: Expect
    blames: tuple[Blame, ...] = ()
    alone: bool = False
    native: bool = False

    @property
    def base(self) -> str:
        """The name of the valid scenario it was made from."""
        return self.name.split("/")[0]


_NEEDED: Final = (
    "model", "hardware", "workload", "gpu", "path", "arrivals", "prompt_tokens", "output_tokens", "rate",
    "cv", "concurrency", "mean", "ratio", "exponent", "edges", "weights", "segments", "count", "tokens",
    "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "vocab_size", "num_sms", "memory", "memory_bandwidth", "peak", "pcie_bandwidth",
)  # fmt: skip
_CHOICES: Final = ("arrivals", "prompt_tokens", "output_tokens", "step_time", "workload")
"""Sections of which exactly one alternative is given; without it they are empty."""


def cases_of(base: str) -> list[Case]:
    """Return the cases made from one valid scenario, always the same ones."""
    rng = random.Random(f"scenario {base}")
    makers = (
        _wrong_values,
        _dropped,
        _misspelt,
        _unknown,
        _moved,
        _swapped,
        _replaced,
        _nested,
        _several,
        _nulls,
    )
    return [case for maker in makers for case in maker(base, rng)]


def fields(plain: Any, at: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield (path, value) of every key, and of every entry of a list of sections, outside in."""
    items: list[tuple[str, Any]] = []
    if isinstance(plain, dict):
        items = list(plain.items())
    elif isinstance(plain, list) and any(isinstance(entry, dict) for entry in plain):
        items = [(str(index), entry) for index, entry in enumerate(plain)]
    for key, value in items:
        yield (*at, key), value
        yield from fields(value, (*at, key))


def changed(plain: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """Return a copy with the value at `path` replaced."""
    result = copy.deepcopy(plain)
    owner = _owner(result, path)
    owner[int(path[-1]) if isinstance(owner, list) else path[-1]] = value
    return result


def dropped(plain: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a copy without the key at `path`."""
    result = copy.deepcopy(plain)
    del _owner(result, path)[path[-1]]
    return result


def _owner(plain: Any, path: Path) -> Any:
    for part in path[:-1]:
        plain = plain[int(part) if isinstance(plain, list) else part]
    return plain


def _dots(path: Path) -> str:
    return ".".join(path)


def _keys(base: str) -> list[Path]:
    """Return the paths of all keys, entries of lists left out."""
    return [path for path, _ in fields(BASES[base]) if not path[-1].isdecimal()]


def _mappings(base: str) -> list[Path]:
    return [path for path, value in fields(BASES[base]) if isinstance(value, dict)]


def _is_open(path: Path) -> bool:
    """Return whether the mapping at `path` may have keys of its own: a Hugging Face configuration."""
    return path[:1] == ("model",)


def _wrong_values(base: str, rng: random.Random) -> Iterator[Case]:
    for path, value in fields(BASES[base]):
        kind = kind_of(path)
        if kind is None:
            continue
        for wrong in rng.sample(WRONG[kind], min(7, len(WRONG[kind]))):
            name = f"{base}/{_dots(path)} was {value!r:.30}, becomes {wrong!r:.40}"
            yield Case(name, changed(BASES[base], path, wrong), "refused", (Blame(path, wrong),), alone=True)


def _dropped(base: str, rng: random.Random) -> Iterator[Case]:
    del rng
    for path in _keys(base):
        plain = dropped(BASES[base], path)
        name = f"{base}/without {_dots(path)}"
        if path[-2:-1] and path[-2] in _CHOICES:
            yield Case(name, plain, "refused", (Blame(path, nearby=True),), alone=True)
        elif (
            path[-1] in _NEEDED
            and path[-2:-1] not in (("columns",), ("config",))
            and "config" not in BASES[base]["model"]
        ):
            yield Case(name, plain, "refused", (Blame(path, nearby=path[-1] == "gpu"),), alone=True)
        else:
            yield Case(name, plain, "ends")


def _misspelt(base: str, rng: random.Random) -> Iterator[Case]:
    for path in _keys(base):
        if _is_open(path) and len(path) > 1:
            continue
        typo = _typo(path[-1], rng)
        siblings = _owner(BASES[base], path)
        renamed = {typo if key == path[-1] else key: value for key, value in siblings.items()}
        plain = renamed if len(path) == 1 else changed(BASES[base], path[:-1], renamed)
        wrong = (*path[:-1], typo)
        yield Case(
            f"{base}/{_dots(path)} misspelt '{typo}'",
            plain,
            "refused",
            (Blame(wrong, nearest=path[-1] if len(path[-1]) > 3 else None),),
        )


def _typo(name: str, rng: random.Random) -> str:
    at = rng.randrange(len(name) - 1)
    kind = rng.choice(("drop", "double", "swap", "replace", "capital", "hyphen", "append", "space"))
    typo = {
        "drop": name[:at] + name[at + 1 :],
        "double": name[: at + 1] + name[at:],
        "swap": name[:at] + name[at + 1] + name[at] + name[at + 2 :],
        "replace": name[:at] + "x" + name[at + 1 :],
        "capital": name.capitalize(),
        "hyphen": name.replace("_", "-"),
        "append": f"{name}s",
        "space": f"{name} ",
    }[kind]
    return typo if typo != name else f"{name}s"


def _unknown(base: str, rng: random.Random) -> Iterator[Case]:
    values = (5, None, "x", NAN, {}, {"x": 1}, [])
    for path in ((), *_mappings(base)):
        if _is_open(path):
            continue
        value = rng.choice(values)
        new = (
            *path,
            rng.choice(("colour", "enable_magic", "", "model_name", "__class__", "naïve", "x" * 200)),
        )
        yield Case(
            f"{base}/extra {_dots(new)}",
            changed(BASES[base], new, value),
            "refused",
            (Blame(new),),
            alone=True,
        )


def _moved(base: str, rng: random.Random) -> Iterator[Case]:
    homes = [path for path in _mappings(base) if not _is_open(path)]
    movable = [
        path
        for path in _keys(base)
        if kind_of(path) is not None and path[-1] != "name" and not _is_open(path)
    ]
    for path in rng.sample(movable, min(8, len(movable))):
        home = rng.choice([home for home in homes if home[0] != path[0]])
        value = _owner(BASES[base], path)[path[-1]]
        new = (*home, path[-1])
        plain = changed(dropped(BASES[base], path), new, value)
        yield Case(f"{base}/{_dots(path)} moved to {_dots(home)}", plain, "refused", (Blame(new),))


def _swapped(base: str, rng: random.Random) -> Iterator[Case]:
    sections = [name for name, value in BASES[base].items() if isinstance(value, dict) and name != "model"]
    pairs = [(one, other) for one in sections for other in sections if one < other]
    for one, other in rng.sample(pairs, min(4, len(pairs))):
        plain = {**BASES[base], one: BASES[base][other], other: BASES[base][one]}
        blames = (Blame((one,)), Blame((other,)))
        yield Case(f"{base}/{one} and {other} swapped", plain, "refused", blames)


def _replaced(base: str, rng: random.Random) -> Iterator[Case]:
    for path in _mappings(base):
        whole = BASES[base] if len(path) == 1 else _owner(BASES[base], path)
        section = whole[int(path[-1]) if isinstance(whole, list) else path[-1]]
        for wrong in rng.sample([-5, "garbage", [], True, NAN, [section], {"garbage": section}], 3):
            if _is_open(path) and isinstance(wrong, dict):
                continue
            name = f"{base}/section {_dots(path)} becomes {wrong!r:.40}"
            yield Case(
                name, changed(BASES[base], path, wrong), "refused", (Blame(path, nearby=True),), alone=True
            )


def _nested(base: str, rng: random.Random) -> Iterator[Case]:
    """Put random trees where values or sections were."""

    def tree(depth: int) -> Any:
        kind = rng.randrange(9) if depth else rng.randrange(3, 9)
        if kind == 0:
            return [tree(depth - 1) for _ in range(rng.randrange(4))]
        if kind < 3:
            keys = (
                "x",
                "name",
                "fixed",
                "gpu",
                "rate",
                "config",
                "",
                "0",
                "min",
                "policy",
                "path",
                "poisson",
            )
            return {rng.choice(keys): tree(depth - 1) for _ in range(rng.randrange(4))}
        return rng.choice(
            (0, -1, 10**18, 1e308, NAN, INF, "", "x", "5ms", True, None, "a\x00b", "\u202e", "🦀")
        )

    paths = _keys(base)
    for _ in range(12):
        path = rng.choice(paths)
        value = [tree(3), tree(4)]
        # No field takes a list that begins so, nor does a list of numbers.
        plain = changed(BASES[base], path, value)
        expect: Expect = "ends" if _is_open(path) else "refused"
        yield Case(
            f"{base}/{_dots(path)} becomes {value!r:.60}",
            plain,
            expect,
            () if expect == "ends" else (Blame(path),),
        )


def _several(base: str, rng: random.Random) -> Iterator[Case]:
    """Make mistakes in several sections at once; all must be reported together."""
    leaves = [path for path in _keys(base) if kind_of(path) is not None]
    for _ in range(8):
        paths: dict[str, Path] = {}
        for path in rng.sample(leaves, 6):
            paths.setdefault(path[0], path)
        plain, blames = BASES[base], []
        for path in paths.values():
            wrong = rng.choice(WRONG[str(kind_of(path))])
            plain = changed(plain, path, wrong)
            blames.append(Blame(path, wrong))
        yield Case(
            f"{base}/wrong at once: {', '.join(map(_dots, paths.values()))}", plain, "refused", tuple(blames)
        )


def _nulls(base: str, rng: random.Random) -> Iterator[Case]:
    for path in rng.sample(_keys(base), 8):
        yield Case(f"{base}/{_dots(path)} becomes null", changed(BASES[base], path, None), "ends")


def with_trace(plain: Any, file: str) -> Any:
    """Return the document with the placeholder of the trace's path replaced."""
    if isinstance(plain, dict):
        return {key: with_trace(value, file) for key, value in plain.items()}
    if isinstance(plain, list):
        return [with_trace(value, file) for value in plain]
    return file if isinstance(plain, str) and plain == TRACE_FILE else plain
