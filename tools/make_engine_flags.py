"""Pack the command-line flags that engines declare into `python/frontier/launch/data`.

    make_engine_flags.py FOLDER

FOLDER holds `vllm_serve_flags.json` and `sglang_server_flags.json`: `{version: {flag: {default, type,
choices?, aliases?, nargs?, dest?}}}`. A flag that is the same over versions is written once, with the first
and the last index of the versions that have it.
"""

import json
import lzma
import sys
from pathlib import Path
from typing import Any

SOURCES = {"vllm": "vllm_serve_flags.json", "sglang": "sglang_server_flags.json"}
TARGET = Path(__file__).parents[1] / "python" / "frontier" / "launch" / "data" / "engine_flags.json.xz"


def intervals(by_version: dict[str, dict[str, Any]]) -> dict[str, list[list[Any]]]:
    """Return `{flag: [[first, last, facts], ...]}` with indices of versions."""
    flags: dict[str, list[list[Any]]] = {}
    for index, declared in enumerate(by_version.values()):
        for name, facts in declared.items():
            spans = flags.setdefault(name, [])
            if spans and spans[-1][1] == index - 1 and spans[-1][2] == facts:
                spans[-1][1] = index
            else:
                spans.append([index, index, facts])
    return flags


def main() -> None:
    folder = Path(sys.argv[1])
    packed = {}
    for engine, name in SOURCES.items():
        by_version = json.loads((folder / name).read_text("utf-8"))
        packed[engine] = {"versions": list(by_version), "flags": intervals(by_version)}
    text = json.dumps(packed, separators=(",", ":"), sort_keys=True).encode()
    TARGET.write_bytes(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
    print(f"{TARGET.name}: {len(text)} bytes, {TARGET.stat().st_size} packed")


if __name__ == "__main__":
    main()
