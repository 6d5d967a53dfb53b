//! Requests that an engine can never serve, as its server tells before it takes them.

use super::Cluster;
use crate::metrics::RejectReason;
use crate::plan::baseline::BaselineSpec;
use crate::plan::{SchedulerConfig, SchedulerSpec, SglangConfig};
use crate::workload::RequestSpec;

impl Cluster {
    /// Tells why a request can never be served, if so (vLLM answers such requests with an error).
    pub fn refusal(&self, spec: &RequestSpec) -> RejectReason {
        if !self.limits.refuse_oversized {
            return RejectReason::None;
        }
        match &self.scheduler {
            SchedulerSpec::VllmV1(config) => vllm_refusal(config, spec),
            SchedulerSpec::Sglang(config) => sglang_refusal(config, spec),
            SchedulerSpec::Baseline(scheduler) => baseline_refusal(scheduler, spec),
        }
    }

    /// Returns the output that the engine lets a request have: SGLang's server cuts it to the room that is left.
    pub(super) fn granted_output(&self, spec: &RequestSpec) -> u32 {
        match &self.scheduler {
            SchedulerSpec::Sglang(config) if self.limits.refuse_oversized => {
                spec.output_tokens.min(config.longest_request().saturating_sub(2 + spec.prompt_tokens))
            }
            _ => spec.output_tokens,
        }
    }
}

/// Tells why SGLang would refuse a prompt, if so: it leaves at least six tokens beside it.
fn sglang_refusal(config: &SglangConfig, spec: &RequestSpec) -> RejectReason {
    let refused = |limit: u32| u64::from(spec.prompt_tokens) + 6 >= u64::from(limit);
    if refused(config.context_length) {
        RejectReason::ExceedsMaxModelLen
    } else if refused(config.max_total_tokens) {
        RejectReason::ExceedsKvCache
    } else {
        RejectReason::None
    }
}

/// Tells why vLLM would never serve a request, if so.
fn vllm_refusal(config: &SchedulerConfig, spec: &RequestSpec) -> RejectReason {
    let total = u64::from(spec.prompt_tokens) + u64::from(spec.output_tokens);
    if total > u64::from(config.max_model_len) {
        RejectReason::ExceedsMaxModelLen
    // The KV of the last token is never written.
    } else if config.blocks_of_request(total as u32 - 1) > u64::from(config.num_blocks - 1) {
        RejectReason::ExceedsKvCache
    } else if !config.enable_chunked_prefill && spec.prompt_tokens > config.token_budget() {
        RejectReason::ExceedsTokenBudget
    } else {
        RejectReason::None
    }
}

/// Tells why a baseline scheduler would never serve a request, if so.
fn baseline_refusal(scheduler: &BaselineSpec, spec: &RequestSpec) -> RejectReason {
    let total = u64::from(spec.prompt_tokens) + u64::from(spec.output_tokens);
    if total > u64::from(scheduler.max_model_len) {
        RejectReason::ExceedsMaxModelLen
    } else if scheduler.whole_prompt_budget().is_some_and(|budget| spec.prompt_tokens > budget) {
        RejectReason::ExceedsTokenBudget
    } else if scheduler.blocks_at_most(spec.prompt_tokens, total as u32) > scheduler.num_blocks {
        RejectReason::ExceedsKvCache
    } else {
        RejectReason::None
    }
}
