"""Scenarios that would run for centuries or fill the memory end in an error soon."""

import json
import subprocess
import sys
from typing import Any

import pytest
from scenario_variants import with_changes

pytestmark = pytest.mark.timeout(120)

SECONDS = 60
BYTES = 3 << 30

# A process of its own: what these scenarios must not do is to take the whole one down.
CHILD = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[2]),) * 2)
import frontier
try:
    result = frontier.simulate(json.load(sys.stdin))
    print(json.dumps([len(result.columns.requests["status"]), len(result.columns.timeline["time_ns"])]))
except frontier.FrontierError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of memory need the resource module")
@pytest.mark.parametrize(
    ("base", "changes", "words"),
    [
        ("closed loop", {"engine.step_time.linear.per_step": "50000d"}, "timeline_interval"),
        ("gamma", {"hardware.gpu.memory_bandwidth": "1B/s"}, "timeline_interval"),
        ("gamma", {"hardware.gpu.peak.bf16": "1FLOPS"}, "timeline_interval"),
        (
            "poisson",
            {"engine.cpu_overhead.per_step": "10h", "output.timeline_interval": "1ms"},
            "timeline_interval",
        ),
        (
            "gamma",
            {"synthetic.duration": "50000d", "synthetic.num_requests": None},
            "duration",
        ),
        ("piecewise", {"synthetic.duration": "50000d"}, "duration"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else None,
)
def test_long_runs_end(base: str, changes: dict[str, Any], words: str) -> None:
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(BYTES), str(SECONDS)],
        input=json.dumps(with_changes(base, changes)),
        capture_output=True,
        text=True,
        timeout=2 * SECONDS,
        check=False,
    )
    assert child.returncode == 0, f"exit code {child.returncode}: {child.stderr[:400]}"
    name, message = json.loads(child.stdout)
    assert name in ("ConfigError", "SimulationError")
    assert words in message
