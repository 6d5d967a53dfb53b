"""Segments say the same about shared content as the block hashes they come from."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontier.workloads.prefixes import Prefixes


def _segments(prompts, block_size, piece=100):
    """Return the segments of prompts given as (hashes, tokens), added `piece` at a time."""
    prefixes = Prefixes(block_size)
    for begin in range(0, len(prompts), piece):
        part = prompts[begin : begin + piece]
        prefixes.add(
            np.array([block for hashes, _ in part for block in hashes], np.uint64),
            np.array([len(hashes) for hashes, _ in part], np.int64),
            np.array([tokens for _, tokens in part], np.int64),
        )
    return prefixes.finish()


def _rows(segments):
    """Return the list of (stream, start, length) of each request."""
    parts = zip(segments.stream.tolist(), segments.start.tolist(), segments.length.tolist(), strict=True)
    parts = list(parts)
    offsets = segments.offsets.tolist()
    return [parts[a:b] for a, b in pairwise(offsets)]


def _tokens(row):
    return [(stream, start + i) for stream, start, length in row for i in range(length)]


def _common(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def test_a_conversation_becomes_one_segment_per_prompt():
    rows = _rows(_segments([([7, 8, 9], 12), ([7, 8, 9, 5, 6], 20), ([7, 8, 1], 11)], 4))
    assert rows[0] == [(0, 0, 12)]
    assert rows[1] == [(0, 0, 20)]
    assert rows[2] == [(0, 0, 8), (1, 0, 3)]


def test_the_last_hash_may_be_of_a_partial_block():
    assert _rows(_segments([([3, 4], 7)], 4)) == [[(0, 0, 7)]]


def test_tokens_beyond_the_last_hash_are_unique():
    rows = _rows(_segments([([3], 6), ([3], 7), ([], 3)], 4))
    assert [row[0] for row in rows[:2]] == [(0, 0, 4), (0, 0, 4)]
    assert (rows[0][1][2], rows[1][1][2]) == (2, 3)
    assert rows[0][1][0] != rows[1][1][0]
    assert rows[2] == [], "a prompt without hashes has no segments"


@pytest.mark.parametrize("piece", [1, 2])
def test_hashes_beyond_31_bits_of_positions_have_streams_of_their_own(piece):
    rows = _rows(_segments([([1, 2, 3], 3 * 2**30), ([2, 3], 2**31)], 2**30, piece))
    assert [len(row) for row in rows] == [2, 2]
    assert rows[0][0] == (0, 0, 2**31)
    assert rows[0][1] == rows[1][1] == (1, 0, 2**30)
    assert rows[1][0] == (0, 2**30, 2**30)


_PROMPTS = st.integers(1, 5).flatmap(
    lambda block: st.tuples(
        st.just(block),
        st.lists(
            st.tuples(st.lists(st.integers(0, 6), max_size=6), st.integers(0, block - 1), st.booleans()),
            min_size=1,
            max_size=12,
        ),
    )
)


@given(_PROMPTS, st.integers(1, 4))
def test_two_prompts_agree_token_by_token_as_their_hashes_do(case, piece):
    block, drawn = case
    prompts = []
    for hashes, extra, hashed in drawn:
        # `extra` tokens beyond whole blocks: covered by the last hash, or by none.
        partial = bool(hashes) and hashed and extra > 0
        tokens = (len(hashes) - 1) * block + extra if partial else len(hashes) * block + extra
        prompts.append((hashes, max(tokens, 1)))
    rows = _rows(_segments(prompts, block, piece))
    assert rows == _rows(_segments(prompts, block)), "pieces change nothing"
    spelled = []
    for number, ((hashes, tokens), row) in enumerate(zip(prompts, rows, strict=True)):
        if not hashes:
            assert row == []
            continue
        got = _tokens(row)
        assert len(got) == tokens
        expected = [(h, i) for h in hashes for i in range(block)][:tokens]
        expected += [(f"rest of {number}", i) for i in range(tokens - len(expected))]
        spelled.append((got, expected))
        assert all(length > 0 for _, _, length in row)
        joined = [(a, b) for a, b in pairwise(row) if a[0] == b[0] and a[1] + a[2] == b[1]]
        assert not joined, "adjacent segments that continue each other are merged"
    for got, expected in spelled:
        for other_got, other_expected in spelled:
            assert _common(got, other_got) == _common(expected, other_expected)
    # Identities map one to one, so every later comparison of tokens agrees as well.
    pairs = {pair for got, expected in spelled for pair in zip(got, expected, strict=True)}
    assert len({a for a, _ in pairs}) == len(pairs) == len({b for _, b in pairs})
