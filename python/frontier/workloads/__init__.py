"""Request traces: loaders of the public formats, and transformations.

`load_trace` reads a file in bounded pieces into compact numpy columns (`LoadedTrace`), `trace_from_columns`
takes columns in memory, and `LoadedTrace.write` makes a file of either; `slice_time`, `limit`, `scale_time`,
`scale_rate` and `sample` make traces of traces. The shared content of prompts is carried as
segments of token streams, never as token arrays.
"""

from frontier.workloads.builtin import builtin_path, builtin_traces
from frontier.workloads.formats import FORMAT_NAMES
from frontier.workloads.in_memory import trace_from_columns
from frontier.workloads.load import load_trace
from frontier.workloads.loaded import NO_SESSION, OUTPUT_STREAM_BASE, LoadedTrace, LoadReport
from frontier.workloads.transform import limit, sample, scale_rate, scale_time, slice_time

__all__ = [
    "FORMAT_NAMES",
    "NO_SESSION",
    "OUTPUT_STREAM_BASE",
    "LoadReport",
    "LoadedTrace",
    "builtin_path",
    "builtin_traces",
    "limit",
    "load_trace",
    "sample",
    "scale_rate",
    "scale_time",
    "slice_time",
    "trace_from_columns",
]
