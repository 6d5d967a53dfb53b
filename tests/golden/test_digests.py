"""Runs are reproducible: the same digests as ever, on every platform and any number of threads."""

import json
from pathlib import Path

import digests
import frontier
import pytest

GOLDEN = json.loads(Path(__file__).with_name("digests.json").read_text())


@pytest.mark.parametrize("name", digests.SCENARIOS)
def test_digest_is_the_golden_one(name):
    assert frontier.simulate(digests.scenario(name)).digest == GOLDEN[name]


@pytest.mark.parametrize("threads", [1, 2])
def test_digests_do_not_depend_on_the_number_of_threads(threads):
    results = frontier.simulate_many(map(digests.scenario, digests.SCENARIOS), threads=threads)
    assert [result.digest for result in results] == list(GOLDEN.values())


def test_every_golden_digest_is_of_a_scenario_of_its_own():
    assert list(GOLDEN) == list(digests.SCENARIOS)
    assert len(set(GOLDEN.values())) == len(GOLDEN)
