"""How much KV cache a replica has, computed as the engine computes it at start.

`plan_kv_cache` is vLLM's (0.11 to 0.32); `frontier.memory.sglang` has SGLang's. Weights and bytes per block
are exact; what vLLM measures in a profile run is estimated.
"""

from frontier.memory.draft import DraftLayers, draft_head, draft_layers
from frontier.memory.plan import MemoryPlan
from frontier.memory.versions import VllmRules, rules_of
from frontier.memory.vllm import plan_kv_cache
from frontier.vllm_versions import VLLM_VERSIONS

__all__ = [
    "VLLM_VERSIONS",
    "DraftLayers",
    "MemoryPlan",
    "VllmRules",
    "draft_head",
    "draft_layers",
    "plan_kv_cache",
    "rules_of",
]
