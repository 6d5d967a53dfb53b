"""Measured deployments beside simulated ones, and what the errors come to.

A *suite* turns one published set of measurements into *cases*: a scenario, what was measured, and how to read
the same from a run; or, where only steps were published, what prices a step. `evaluate` simulates
the cases, `Report` has a tidy table of points and statistics over groups of them. `frontier validate` is the
command.

    from frontier import validation

    report = validation.evaluate(validation.suite("vllm-replay"), "measured/")
    print(report.groups)
"""

from frontier.validation.case import Case, LeftOut, Outcome, StepCase, Suite
from frontier.validation.evaluate import evaluate
from frontier.validation.report import Report
from frontier.validation.suites import SUITES, suite

__all__ = ["SUITES", "Case", "LeftOut", "Outcome", "Report", "StepCase", "Suite", "evaluate", "suite"]
