"""The figures of one measurement window, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from frontier.errors import nearest_name
from frontier.results.metrics import ALIASES, LATENCIES, METRICS, PERCENTILES


class Summary(Mapping[str, Any]):
    """Metrics of a run by name: `summary.mean_ttft_s`, `summary["mean_ttft_s"]`, or `dict(summary)`.

    Names and definitions follow `vllm bench serve`, with latencies in seconds; `docs/metrics.md` defines
    each. A metric is None where there is nothing to measure or a fact is missing. `p50_*` is another name of
    `median_*`.
    """

    __slots__ = ("_values",)

    _values: Mapping[str, Any]

    def __init__(self, values: Mapping[str, Any]) -> None:
        """Take one value for each name of `frontier.results.metrics.METRICS`."""
        if set(values) != set(METRICS):
            odd = sorted(set(values) ^ set(METRICS))
            raise ValueError(f"a summary has exactly the metrics of METRICS, these differ: {', '.join(odd)}")
        object.__setattr__(self, "_values", MappingProxyType({name: values[name] for name in METRICS}))

    def __getitem__(self, name: str) -> Any:
        name = ALIASES.get(name, name)
        if name not in self._values:
            raise KeyError(_unknown(name))
        return self._values[name]

    def __getattr__(self, name: str) -> Any:
        # Dunder look-ups (copy, pickle) come before _values exists.
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError:
            raise AttributeError(_unknown(name)) from None

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a summary cannot be changed")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *METRICS, *ALIASES})

    def __reduce__(self) -> tuple[Any, ...]:
        return (Summary, (dict(self._values),))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values (numbers, words, None, lists, dicts) that `json.dumps` takes."""
        return {
            name: dict(value)
            if isinstance(value, Mapping)
            else list(value)
            if isinstance(value, tuple)
            else value
            for name, value in self.items()
        }

    def to_vllm_bench(self) -> dict[str, Any]:
        """Return the figures under the keys, and in the units, of the JSON of `vllm bench serve`.

        Latencies are in ms, `failed` counts requests that were rejected or failed. Latencies are seen at the
        engine: a client also sees the network and the HTTP server. `step_time` is added, so that nobody takes
        the figures for measured ones.
        """
        bench: dict[str, Any] = {
            "duration": self["duration"],
            "completed": self["completed"],
            "failed": self["rejected"] + self["failed"],
            **{
                name: self[name]
                for name in (
                    "total_input_tokens",
                    "total_output_tokens",
                    "request_throughput",
                    "request_goodput",
                    "output_throughput",
                    "total_token_throughput",
                    "max_output_tokens_per_s",
                    "max_concurrent_requests",
                )
            },
        }
        for key in LATENCIES:
            for stat in ("mean", "median", "std", *(name for name in PERCENTILES if name != "median")):
                value = self[f"{stat}_{key}_s"]
                bench[f"{stat}_{key}_ms"] = None if value is None else value * 1e3
        bench["step_time"] = self["step_time"]
        return bench

    def __repr__(self) -> str:
        return (
            f"Summary(step_time={self['step_time']!r}, duration={self['duration']:g}, "
            f"completed={self['completed']}, {len(self)} metrics)"
        )

    def __str__(self) -> str:
        from frontier.results.text import summary_text  # noqa: PLC0415 - only when printed

        return summary_text(self)

    def __rich__(self) -> Any:
        from frontier.results.text import summary_rich  # noqa: PLC0415 - rich is slow to import

        return summary_rich(self)

    def _repr_html_(self) -> str:
        from frontier.results.html import summary_html  # noqa: PLC0415 - only needed in notebooks

        return summary_html(self)


def _unknown(name: str) -> str:
    nearest = nearest_name(name, [*METRICS, *ALIASES])
    return f"no metric '{name}'" + (f"; did you mean '{nearest}'?" if nearest else "")
