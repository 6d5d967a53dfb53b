"""What CUDA graphs and their padding change, beside the published range.

    python benches/cuda_graphs.py [MODEL GPU]

The Frontier paper (arXiv 2605.21312, pages 3 and 4; H800, vLLM 0.10.2, co-located): with sizes {1, 2, 4, 8,
16, 32, 64}, leaving the padding out overestimates throughput by 22.6 to 45.8 %, and CUDA graphs change it by
32.3 to 46.5 %. Batches are not stated there. Here: a closed loop of N clients keeps N requests of 256 prompt
and 512 output tokens in flight, so that over 99 % of the steps are decodes of N; synchronous scheduling,
full decode graphs. `padding` is the throughput with a graph for every batch size over that with the sizes
above; `graphs` the share of the throughput that is lost without graphs, and `gain` what they add.
"""

import sys
from typing import Any

import frontier

SIZES = [1, 2, 4, 8, 16, 32, 64]
BATCHES = (4, 5, 6, 8, 9, 12, 16, 17, 24, 32, 33, 48, 64)
PADDING = (22.6, 45.8)
GRAPHS = (32.3, 46.5)
MARGIN = 5.0


def throughput(model: str, gpu: str, requests: int, **engine: Any) -> float:
    """Return output tokens per second of `requests` clients."""
    scenario = {
        "model": model,
        "hardware": gpu,
        "engine": {
            "async_scheduling": False,
            "max_num_seqs": 64,
            "max_num_batched_tokens": 8192,
            "max_model_len": 2048,
            "num_gpu_blocks_override": 8000,
            **engine,
        },
        "workload": {
            "synthetic": {
                "arrivals": {"closed_loop": {"concurrency": requests}},
                "num_requests": 2 * requests,
                "prompt_tokens": 256,
                "output_tokens": 512,
            }
        },
    }
    return float(frontier.simulate(scenario).summary()["output_throughput"])


def changes(model: str, gpu: str, requests: int) -> tuple[float, float, float]:
    """Return what padding, graphs off and graphs on change, in percent: `padding`, `graphs`, `gain` above."""
    padded = throughput(model, gpu, requests, cuda_graph={"mode": "full_decode_only", "capture_sizes": SIZES})
    every = [*range(1, 65)]
    exact = throughput(model, gpu, requests, cuda_graph={"mode": "full_decode_only", "capture_sizes": every})
    eager = throughput(model, gpu, requests, enforce_eager=True)
    return 100 * (exact / padded - 1), 100 * (1 - eager / padded), 100 * (padded / eager - 1)


def within(value: float, published: tuple[float, float]) -> bool:
    """Return whether a figure is at most `MARGIN` points outside the published range."""
    return published[0] - MARGIN <= value <= published[1] + MARGIN


def main() -> None:
    model, gpu = sys.argv[1:3] if len(sys.argv) > 2 else ("qwen3-30b-a3b", "h800")
    print(f"{model} on {gpu}; published: padding {PADDING}, graphs {GRAPHS} %; * within {MARGIN:g} points")
    print(f"{'batch':>5}{'rows':>6}{'padding, %':>12}{'graphs, %':>11}{'gain, %':>10}")
    for requests in BATCHES:
        rows = next(size for size in SIZES if size >= requests)
        padding, lost, gain = changes(model, gpu, requests)
        marks = [
            "*" if within(value, published) else " "
            for value, published in ((padding, PADDING), (lost, GRAPHS), (gain, GRAPHS))
        ]
        print(
            f"{requests:5}{rows:6}{padding:11.1f}{marks[0]}{lost:10.1f}{marks[1]}{gain:9.1f}{marks[2]}",
            flush=True,
        )


if __name__ == "__main__":
    main()
