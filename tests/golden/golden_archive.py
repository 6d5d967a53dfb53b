"""Archives of golden logs.

golden_archive.py pack DIR ARCHIVE.tar.xz      pack DIR/NAME.{json,csv,jsonl}; equal files give equal bytes
golden_archive.py unpack ARCHIVE.tar.xz DIR    write them back
"""

import argparse
import functools
import io
import json
import lzma
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class GoldenCase:
    """One case: the configuration, the lines of the trace, the lines of the log (the last is the summary)."""

    name: str
    config: dict[str, Any]
    trace: list[str]
    log: list[str]


def pack(directory: Path, archive: Path) -> None:
    members = [path for path in sorted(directory.iterdir()) if path.suffix in (".json", ".csv", ".jsonl")]
    with (
        lzma.open(archive, "wb", preset=9 | lzma.PRESET_EXTREME) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for path in members:
            content = path.read_bytes()
            member = tarfile.TarInfo(path.name)  # no owner, no time: the bytes depend on the files alone
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def contents(archive: Path) -> dict[str, str]:
    with tarfile.open(archive, "r:xz") as tar:
        return {member.name: tar.extractfile(member).read().decode() for member in tar}


def unpack(archive: Path, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in contents(archive).items():
        (directory / name).write_text(text, encoding="utf-8", newline="")


@functools.cache
def cases(archive: Path) -> dict[str, GoldenCase]:
    """Return the cases of an archive by name."""
    files = contents(archive)
    names = [name.removesuffix(".json") for name in files if name.endswith(".json")]
    return {
        name: GoldenCase(
            name=name,
            config=json.loads(files[f"{name}.json"]),
            trace=files[f"{name}.csv"].splitlines(),
            log=files[f"{name}.jsonl"].splitlines(),
        )
        for name in names
    }


@functools.cache
def cases_of_versions(archive: Path, base: Path) -> dict[str, GoldenCase]:
    """Return the cases of an archive of logs alone, `NAME@VERSION.jsonl`, with the inputs of `base`."""
    inputs, found = cases(base), {}
    for file, log in contents(archive).items():
        stem = file.removesuffix(".jsonl")
        name, version = stem.split("@")
        config = inputs[name].config | {"vllm": version}
        found[stem] = GoldenCase(stem, config, inputs[name].trace, log.splitlines())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Pack and unpack golden logs.")
    commands = parser.add_subparsers(required=True)
    for command, names in ((pack, ("directory", "archive")), (unpack, ("archive", "directory"))):
        sub = commands.add_parser(command.__name__)
        for name in names:
            sub.add_argument(name, type=Path)
        sub.set_defaults(command=command)
    arguments = vars(parser.parse_args())
    arguments.pop("command")(**arguments)


if __name__ == "__main__":
    main()
