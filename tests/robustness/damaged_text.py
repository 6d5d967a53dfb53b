"""Random damage to text."""

import random


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return the text with a piece cut out, doubled, moved or overwritten, or its end missing."""
    lines = data.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    place = rng.randrange(len(data))
    match rng.randrange(9):
        case 0:
            return data[:place]
        case 1:
            return data[:place] + data[place + rng.randrange(1, 20) :]
        case 2:
            return b"".join(lines[:at] + lines[at + 1 :])
        case 3:
            return b"".join([*lines[:at], lines[at], *lines[at:]])
        case 4:
            rng.shuffle(lines)
            return b"".join(lines)
        case 5:
            return b"".join([*lines[:at], b"  " + lines[at], *lines[at + 1 :]])
        case 6:
            return b"".join([*lines[:at], lines[at].lstrip(), *lines[at + 1 :]])
        case 7:
            return data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]
        case _:
            return (
                data[:place]
                + rng.choice([b"\x00", b"\xff", b"\t", b":", b"- ", b"&a ", b"*a", b"{", b'"', b"\r"])
                + data[place:]
            )
