"""`frontier kv-cache`."""

import json

import pytest

ROWS = [[1, 2, 3], [1, 2, 4], [5, 6, 7], [1, 2, 3]]


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "trace.jsonl"
    lines = [
        {"timestamp": 1000 * at, "input_length": 512 * len(ids), "output_length": 1, "hash_ids": ids}
        for at, ids in enumerate(ROWS)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_prints_a_curve_for_every_policy_within_80_columns(cli, trace):
    result = cli("kv-cache", trace)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "4 requests, 12 block look-ups of 512 tokens, 7 distinct blocks"
    assert lines[1].split() == ["blocks", "lru", "lfu", "arc", "ttl", "belady"]
    assert lines[-2].split() == ["7", *["41.7", "%"] * 5]
    assert lines[-1] == "with 7 blocks, lru finds 5 of 12"
    assert max(map(len, lines)) <= 80


def test_takes_sizes_and_policies(cli, trace):
    result = cli(
        "kv-cache", trace, "--policy", "lru", "--policy", "ttl", "--capacity", "5", "--ttl", "1s", "--json"
    )
    document = json.loads(result.stdout)
    assert [point["policy"] for point in document["points"]] == ["lru", "ttl"]
    lru, ttl = document["points"]
    # The last look-up finds 1 and 2: a request uses its first block last, and what is used last leaves last.
    assert (lru["hit_blocks"], lru["lookup_blocks"], lru["capacity_blocks"]) == (4, 12, 5)
    assert ttl["hit_blocks"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--policy", "lur"), "did you mean 'lru'"),
        (("--capacity", "0"), "capacities"),
        (("--capacity", "many"), "--capacity"),
        (("--ttl", "5"), "--ttl"),
        (("--block-size", "0"), "block_size"),
    ],
)
def test_values_that_are_not_allowed_are_named(cli, trace, arguments, message):
    result = cli("kv-cache", trace, *arguments)
    assert result.exit_code == 3
    assert message in result.stderr
