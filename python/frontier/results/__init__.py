"""Results of a simulation: frames, metrics, latency attribution, save and load.

`Result` wraps the columns of a run and the `RunFacts` of its scenario. Metrics are defined in
`docs/metrics.md`. polars and rich are imported only when a frame or a rendering is asked for.
"""

from frontier.results.attribution import Attribution
from frontier.results.cluster_facts import ClusterFacts
from frontier.results.clusters import ClusterColumns
from frontier.results.columns import ATTRIBUTION_CAUSES
from frontier.results.facts import Objectives, RunFacts
from frontier.results.interval import Interval
from frontier.results.metrics import METRICS, Metric
from frontier.results.result import Result
from frontier.results.saturation import Saturation
from frontier.results.statistics import Sample
from frontier.results.summary import Summary
from frontier.results.tokens import TokenRuns
from frontier.results.trust import OperatorTrust, Trust
from frontier.results.window import Window

__all__ = [
    "ATTRIBUTION_CAUSES",
    "METRICS",
    "Attribution",
    "ClusterColumns",
    "ClusterFacts",
    "Interval",
    "Metric",
    "Objectives",
    "OperatorTrust",
    "Result",
    "RunFacts",
    "Sample",
    "Saturation",
    "Summary",
    "TokenRuns",
    "Trust",
    "Window",
]
