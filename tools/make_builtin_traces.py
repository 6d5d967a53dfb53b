"""Make the traces that come with the package from the files their authors published.

    python tools/make_builtin_traces.py AzureLLMInferenceTrace_conv.csv

writes `python/frontier/workloads/data/azure_2023_conv.parquet`: columns `arrival_ns` (int64, the first
request at 0), `prompt_tokens` and `output_tokens` (uint32), rows in the order of the file. `ATTRIBUTION.md`
beside it names the source.
"""

import argparse
from pathlib import Path

import polars as pl

from frontier.workloads import builtin_path, load_trace


def main() -> None:
    """Convert the file named on the command line."""
    parser = argparse.ArgumentParser(description="Convert AzureLLMInferenceTrace_conv.csv (2023).")
    parser.add_argument("csv", type=Path, help="from github.com/Azure/AzurePublicDataset, folder data")
    parser.add_argument(
        "--out", type=Path, default=builtin_path("azure-2023-conv"), help="Parquet file to write"
    )
    options = parser.parse_args()
    trace = load_trace(options.csv, format="azure")
    table = pl.DataFrame(
        {
            "arrival_ns": trace.arrival_ns,
            "prompt_tokens": trace.prompt_tokens,
            "output_tokens": trace.output_tokens,
        }
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    table.write_parquet(options.out, compression="zstd", compression_level=19)
    print(f"{options.out}: {len(table)} requests, {options.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
