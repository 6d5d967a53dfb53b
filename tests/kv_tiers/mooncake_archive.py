"""The packed Mooncake conversation trace.

mooncake_archive.py pack TRACE.jsonl ARCHIVE.xz    pack the published file
"""

import json
import lzma
import sys
from array import array
from pathlib import Path
from typing import Any

ARCHIVE = Path(__file__).with_name("mooncake_conversation.xz")
REQUESTS = 12_031

Row = dict[str, Any]


def pack(rows: list[Row]) -> bytes:
    """Return the archive of requests whose block hashes number new blocks in order of appearance."""
    starts: list[int] = []
    lengths: list[int] = []
    runs: list[int] = []
    fresh = 0
    for row in rows:
        before = len(starts)
        last = None
        for block in row["hash_ids"]:
            if last is not None and block == last + 1:
                lengths[-1] += 1
            else:
                starts.append(block - fresh)
                lengths.append(1)
            last = block
            fresh = max(fresh, block + 1)
        runs.append(len(starts) - before)
    times = [row["timestamp"] for row in rows]
    gaps = [after - before for before, after in zip([0, *times], times, strict=False)]
    prompts = [row["input_length"] for row in rows]
    outputs = [row["output_length"] for row in rows]
    planes = b"".join(_planes(column) for column in (gaps, prompts, outputs, runs, starts, lengths))
    return lzma.compress(planes, preset=9 | lzma.PRESET_EXTREME)


def unpack(archive: bytes, requests: int = REQUESTS) -> list[Row]:
    """Return the requests of an archive."""
    data = lzma.decompress(archive)
    short = [_column(data[4 * requests * at : 4 * requests * (at + 1)]) for at in range(4)]
    gaps, prompts, outputs, runs = short
    rest = data[16 * requests :]
    starts, lengths = _column(rest[: len(rest) // 2]), _column(rest[len(rest) // 2 :])
    rows, time, fresh, at = [], 0, 0, 0
    for gap, prompt, output, count in zip(gaps, prompts, outputs, runs, strict=True):
        time += gap
        blocks: list[int] = []
        for start, length in zip(starts[at : at + count], lengths[at : at + count], strict=True):
            blocks += range(start + fresh, start + fresh + length)
            fresh = max(fresh, blocks[-1] + 1)
        at += count
        rows.append({"timestamp": time, "input_length": prompt, "output_length": output, "hash_ids": blocks})
    return rows


def write_trace(path: Path) -> Path:
    """Write the trace as it was published."""
    path.write_text("".join(json.dumps(row) + "\n" for row in unpack(ARCHIVE.read_bytes())))
    return path


def _planes(column: list[int]) -> bytes:
    data = array("i", column).tobytes()
    return b"".join(data[byte::4] for byte in range(4))


def _column(planes: bytes) -> list[int]:
    count = len(planes) // 4
    data = bytearray(len(planes))
    for byte in range(4):
        data[byte::4] = planes[byte * count : (byte + 1) * count]
    return array("i", bytes(data)).tolist()


if __name__ == "__main__":
    command, source, target = sys.argv[1:]
    assert command == "pack"
    published = [json.loads(line) for line in Path(source).read_text().splitlines()]
    packed = pack(published)
    assert unpack(packed, len(published)) == published
    Path(target).write_bytes(packed)
