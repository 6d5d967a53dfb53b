"""How many kernels the host launches for a step, from the operators of a plan.

One launch per operator and run, but for those that are several kernels in vLLM:

- routed experts (`fused_experts_impl` of `vllm/model_executor/layers/fused_moe`): two kernels that sort
  tokens by expert (`moe_align_block_size`), the product, the activation, the second product, the weighted
  sum;
- the dispatch of the default all-to-all gathers hidden states and router scores (`AgRsAll2AllManager`).

Attention and the KV write are what piecewise graphs are split at (`splitting_ops`,
`vllm/config/compilation.py`). The LM head runs after the forward pass, outside any graph; the sampler's
launches are part of the host's time per step (`engine.cpu_overhead.per_step`), as they were measured. Passes
that draft are counted alike; their argmax is a launch of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

_KERNELS: Final = {"fused_moe": 6}
_DISPATCH_KERNELS: Final = 2
_KV_WRITE: Final = "kv_cache_write"
_SAMPLER: Final = "sampler"


def stage_launches(operators: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Count the kernels of one pipeline stage, from the plan's form of its operators.

    Returns:
        `pieces_kernels`: in piecewise and full graphs; `attention_kernels`: attention and KV writes, in full
        graphs only; `tail_kernels`: in no graph; `pieces`: piecewise graphs of one forward pass.
    """
    counts = {"pieces_kernels": 0, "attention_kernels": 0, "tail_kernels": 0}
    layers = 0
    for operator in operators:
        launched = operator["count"] * _kernels(operator)
        if operator["op"] == "attention":
            counts["attention_kernels"] += launched
        elif operator["name"].removeprefix("draft.").removeprefix("draft_next.") == _KV_WRITE:
            counts["attention_kernels"] += launched
            layers += operator["count"]
        elif operator.get("rows") == "seqs":
            counts["tail_kernels"] += launched
        else:
            counts["pieces_kernels"] += launched
    # A piece before the first attention, and one after each; none where only a tail is.
    return {**counts, "pieces": layers + 1 if layers or counts["pieces_kernels"] else 0}


def _kernels(operator: Mapping[str, Any]) -> int:
    if operator["name"] == _SAMPLER:
        return 0
    if operator["op"] == "moe_exchange" and operator["phase"] == "dispatch":
        return _DISPATCH_KERNELS
    return _KERNELS.get(operator["op"], 1)
