"""How large a model each family of operators gets, and which features it sees.

Few deep trees are as accurate as many shallow ones at a tenth of the nodes. Two limits shape the numbers:
all packs of a wheel together take a few megabytes, and a predictor that is evaluated in every step
(attention) should depend on few features that change from step to step, because its result is kept for as
long as none of them crosses a threshold. Head sizes do not count: they are fixed when a plan is compiled.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from frontier.training.identity import ATTENTION, ELEMENTWISE, EXCHANGES, Identity

HEAD_FEATURES = (
    "heads",
    "kv_heads",
    "heads_per_kv_head",
    "qk_dim",
    "v_dim",
    "kv_bytes_per_token",
    "window",
)
SKEW_FEATURES = ("kv_max_ratio", "kv_variation")
DECODE_FEATURES = (*HEAD_FEATURES, "num_seqs", "kv_mean", "kv_bytes", "tile_waves")
PREFILL_FEATURES = (
    *HEAD_FEATURES,
    "num_seqs",
    "query_tokens",
    "kv_max",
    "mean_keys",
    "waves",
    "fill",
    "bound_s",
)
MIXED_FEATURES = (
    *HEAD_FEATURES,
    "prefill.query_tokens",
    "prefill.kv_max",
    "prefill.mean_keys",
    "decode.num_seqs",
    "decode.kv_mean",
    "decode.kv_bytes",
    "decode.kv_max_ratio",
    "decode.kv_variation",
)
# The names of features that make a static shape; a shape that was profiled counts as measured.
SHAPES = {
    "gemm": ("k", "n", "batch"),
    "fused_moe": ("hidden", "intermediate", "local_experts", "top_k", "num_experts", "expert_ranks"),
    **dict.fromkeys(ATTENTION, ("heads", "kv_heads", "qk_dim", "v_dim", "kv_bytes_per_token", "window")),
    **dict.fromkeys(ELEMENTWISE, ("bytes_per_row",)),
    **dict.fromkeys(EXCHANGES, ("hidden", "top_k", "num_experts", "ranks", "nodes", "bytes_per_element")),
}
MAX_BIN = 255
SEED = 20_250_801
"""Of splits; XGBoost itself draws nothing (no sampling of rows or columns)."""


@dataclass(frozen=True)
class Settings:
    """Size and objective of one ensemble; `features` None for all of the operator's."""

    trees: int
    depth: int
    eta: float
    features: tuple[str, ...] | None = None
    objective: str = "reg:squarederror"


_BY_OPERATOR = {
    "gemm": Settings(25, 9, 0.35),
    "prefill_attention": Settings(16, 10, 0.45, PREFILL_FEATURES),
    "decode_attention": Settings(16, 10, 0.45, DECODE_FEATURES),
    "fused_moe": Settings(40, 8, 0.25),
    "mixed_attention": Settings(25, 10, 0.35, MIXED_FEATURES),
    "decode_skew": Settings(16, 4, 0.45, (*SKEW_FEATURES, "blocks_per_sm", "kv_mean")),
    **dict.fromkeys(ELEMENTWISE, Settings(16, 8, 0.45)),
    **dict.fromkeys(EXCHANGES, Settings(30, 6, 0.30)),
}
# TensorRT-LLM's packs are optional, so they may be larger.
_LARGE = {"gemm": Settings(100, 9, 0.12), "fused_moe": Settings(40, 10, 0.25)}
_SMALL = 1_500
"""Rows below which a tree needs no more than `_SMALL_DEPTH` levels."""
_SMALL_DEPTH = 7


_NOISY = 0.15
"""95th percentile of the repeats' errors from which a table is dirty: its outliers are not to be followed."""


def settings_for(
    identity: Identity, rows: int, *, skewed: bool = False, repeats_p95: float = 0.0
) -> Settings:
    """Return the settings of one predictor.

    Args:
        identity: what it predicts.
        rows: to learn from.
        skewed: decodes differ in length.
        repeats_p95: how far repeated inputs lie from their median, NaN where nothing was repeated.
    """
    sizes = {**_BY_OPERATOR, **_LARGE} if identity.backend == "trtllm" else _BY_OPERATOR
    found = sizes[identity.operator]
    if skewed and found.features is not None and identity.operator == "decode_attention":
        found = replace(found, features=(*found.features, *SKEW_FEATURES))
    if (identity.operator == "fused_moe" and identity.backend == "trtllm") or repeats_p95 > _NOISY:
        # Autotuned kernels misfire and skewed loads are unseeded draws: means would follow the outliers.
        found = replace(found, objective="reg:absoluteerror")
    if identity.operator == "gemm" and identity.backend == "sglang":
        # Noise of 3 to 5 %: deeper trees learn it, and the error of large ones rises.
        found = replace(found, depth=8)
    if rows < _SMALL:
        found = replace(found, depth=min(found.depth, _SMALL_DEPTH))
    return found
