"""Latencies of deployments whose prefill and decode may be apart, as their clients saw them.

Which token a client sees first is the engine's choice. SGLang's and TensorRT-LLM's decode servers pass on the
one that came with the KV; vLLM's compute the last prompt token again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from frontier.results import Result

FirstToken = Literal["prefill", "decode"]
"""Which side a client has its first token from."""
_NS_PER_MS: Final = 1e6


def request_times_ms(result: Result) -> dict[str, NDArray[np.float64]]:
    """Return when requests got how far, in milliseconds after their arrival; one value per request each.

    `ready` is the end of the prompt on the prefill side and `end` that of the transfer; of requests that were
    not transferred both are the first token. `first` and `last` are the tokens of the decode side, and
    `output` is how many tokens there are.
    """
    requests, transfers = result.columns.requests, result.columns.transfers
    arrival = requests["arrival_ns"]
    found = {
        "first": (requests["first_token_ns"] - arrival) / _NS_PER_MS,
        "last": (requests["finished_ns"] - arrival) / _NS_PER_MS,
        "output": requests["generated_tokens"].astype(float),
    }
    for name in ("ready", "end"):
        at = requests["first_token_ns"].copy()
        at[transfers["request"]] = transfers[f"{name}_ns"]
        found[name] = (at - arrival) / _NS_PER_MS
    return found


def mean_latencies_ms(result: Result, first_token: FirstToken) -> dict[str, float]:
    """Return the mean TTFT and TPOT of a run.

    Where the prefill side's token is the first, TTFT ends with the transfer; TPOT is that of the decode side
    in either case, over requests of more than one token.
    """
    times = request_times_ms(result)
    several = times["output"] > 1
    decode_ms = (times["last"] - times["first"])[several]
    return {
        "ttft_mean_ms": float(times["end" if first_token == "prefill" else "first"].mean()),
        "tpot_mean_ms": float((decode_ms / (times["output"][several] - 1)).mean()),
    }


def little_tok_s(clients: int, output_tokens: float, ttft_ms: float, tpot_ms: float) -> float:
    """Return the output tokens per second of a closed loop with these mean latencies (Little's law)."""
    request_s = (ttft_ms + tpot_ms * (output_tokens - 1)) / 1e3
    return clients * output_tokens / request_s
