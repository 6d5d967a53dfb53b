"""The flag tables are whole: every flag of every version means something, and exactly one thing."""

import pytest

from frontier.config import Scenario
from frontier.config.issues import leaf_paths
from frontier.errors import ConfigError
from frontier.launch import sglang_rules, vllm_rules
from frontier.launch.flag_table import flag_versions, flags_of, known_version

RULES = {"vllm": vllm_rules.RULES, "sglang": sglang_rules.RULES}
MODELLED = [*(("vllm", version) for version in flag_versions("vllm")), ("sglang", "0.5.3")]


@pytest.mark.parametrize(("engine", "version"), MODELLED)
def test_every_flag_stands_in_exactly_one_class(engine, version):
    names = {flag.name for flag in flags_of(engine, version).values()}
    assert len(names) > 150
    wrong = {name: classes for name in names if len(classes := RULES[engine].classes_of(name)) != 1}
    assert wrong == {}


@pytest.mark.parametrize("engine", RULES)
def test_rules_name_no_flag_that_never_was(engine):
    ever = {
        flag.name
        for kind, version in MODELLED
        if kind == engine
        for flag in flags_of(engine, version).values()
    }
    rules = RULES[engine]
    named = {*rules.fields, *rules.handlers}
    named |= {
        flag for table in (rules.neutral, rules.unsupported) for flags in table.values() for flag in flags
    }
    assert named <= ever


@pytest.mark.parametrize("engine", RULES)
def test_rules_lead_to_fields_of_the_scenario(engine):
    leaves = set(leaf_paths(Scenario))
    lost = [
        path for path in RULES[engine].fields.values() if path not in leaves and path != "engine.quantization"
    ]
    assert lost == []


def test_versions_go_by_minor_number():
    assert known_version("vllm", "0.19") == "0.19.0"
    assert known_version("vllm", "v0.15.3") == "0.15.1"
    assert known_version("sglang", "0.5.3") == "0.5.3"
    with pytest.raises(ConfigError, match="whose flags are not known"):
        known_version("vllm", "0.33")


def test_flags_come_and_go_with_versions():
    assert "--watermark" not in flags_of("vllm", "0.23")
    assert flags_of("vllm", "0.24")["--watermark"].default == 0.0
    assert "--swap-space" in flags_of("vllm", "0.17")
    assert "--swap-space" not in flags_of("vllm", "0.18")
