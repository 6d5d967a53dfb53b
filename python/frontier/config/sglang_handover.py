"""What SGLang's prefill and decode servers make of their settings.

`sglang/srt/server_args.py` (`_handle_disaggregation`, `validate_disagg_tp_size`) and
`sglang/srt/disaggregation`, 0.5.3. A prefill server never decodes and runs no CUDA graph, a decode server
computes no prompts and keeps no prefixes. Both size their memory as servers that do both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from frontier.config.clusters import PARTIAL, is_given
from frontier.config.sglang import Sglang
from frontier.errors import Issue, show_value

if TYPE_CHECKING:
    from frontier.config.disaggregation import Disaggregation, KvTransfer
    from frontier.config.views import ClusterView

DEFAULT_RESERVED_TOKENS: Final = 512
DEFAULT_POLLING_INTERVAL: Final = 1

DECODE_ONLY: Final = ("num_reserved_decode_tokens", "disaggregation_decode_polling_interval")
"""Settings that only a decode server looks at."""

_WITHOUT_EFFECT: Final = {
    "prefill": (*DECODE_ONLY, "schedule_conservativeness"),
    "decode": (
        "max_prefill_tokens",
        "schedule_policy",
        "schedule_conservativeness",
        "disable_radix_cache",
        "radix_eviction_policy",
    ),
}
"""Settings by role that its servers do not look at. Where they stand at the top, they are for others."""


def with_part(settings: dict[str, Any], sglang: Sglang, role: str) -> dict[str, Any]:
    """Return the scheduler settings of a plan for a server of a role."""
    if role not in _WITHOUT_EFFECT:
        return settings
    if role == "prefill":
        return settings | {"disaggregation": {"mode": "prefill"}}
    reserved = sglang.num_reserved_decode_tokens
    interval = sglang.disaggregation_decode_polling_interval
    part = {
        "mode": "decode",
        "num_reserved_decode_tokens": DEFAULT_RESERVED_TOKENS if reserved is None else reserved,
        "polling_interval": DEFAULT_POLLING_INTERVAL if interval is None else interval,
    }
    return settings | {"disable_radix_cache": True, "disaggregation": part}


def colocated_issues(sglang: Sglang) -> list[Issue]:
    """Return settings of decode servers on a server that does both."""
    issues = []
    for name in DECODE_ONLY:
        value = getattr(sglang, name)
        if value is not None:
            message = f"was {value}, has no effect without prefill and decode clusters; remove it"
            issues.append(Issue(f"engine.sglang.{name}", value, message))
    return issues


def server_issues(view: ClusterView) -> list[Issue]:
    """Return the settings of one server that do not go with its role."""
    sglang, issues = view.engine.sglang or Sglang(), []
    reasons = {
        "enable_mixed_chunk": "no server has prompts and decodes in one step",
        "enable_priority_scheduling": "SGLang 0.5.3 sets no priorities where KV is handed over",
    }
    for name, reason in reasons.items():
        if getattr(sglang, name):
            message = f"was true without effect: {reason}; remove it"
            issues.append(view.placed(Issue(f"engine.sglang.{name}", True, message)))
    own = None if view.own is None else view.own.engine
    for name in _WITHOUT_EFFECT.get(view.role, ()):
        if is_given(own, PARTIAL["engine"], f"sglang.{name}"):
            value = getattr(sglang, name)
            message = f"was {show_value(value)}, has no effect on {view.role} servers; remove it"
            issues.append(view.placed(Issue(f"engine.sglang.{name}", value, message)))
    return issues


def way_issues(transfer: KvTransfer, section: Disaggregation) -> list[Issue]:
    """Return ways to hand KV over that SGLang does not have."""
    issues, path = [], "disaggregation.kv_transfer"
    if transfer.mode != "push":
        message = (
            f"was '{transfer.mode}': SGLang's decode server sets memory aside, then the prefill server writes"
        )
        issues.append(Issue(f"{path}.mode", transfer.mode, message, ("push",)))
    elif transfer.granularity == "layer":
        message = "was 'layer': SGLang sends each chunk of a prompt when its step is done"
        issues.append(Issue(f"{path}.granularity", "layer", message, ("chunk", "request")))
    if transfer.proxy_latency:
        message = "has no effect: SGLang's router sends a request to both servers at once; remove it"
        issues.append(Issue(f"{path}.proxy_latency", transfer.proxy_latency, message))
    for name in ("direct_below", "deflect_above"):
        value = getattr(section, name)
        if value is not None:
            message = f"was {value}: a decode server of SGLang computes no prompts; remove it"
            issues.append(Issue(f"disaggregation.{name}", value, message))
    return issues
