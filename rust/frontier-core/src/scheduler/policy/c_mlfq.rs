//! Feedback queues over whole trajectories, after the causality-driven MLFQ of Libra (arXiv 2606.03077).
//!
//! Libra routes the turns of agents to rollout buckets by the residual length that a prefix tree of tool outcomes
//! predicts, with the size of a tool's return among its signals. Traces here know no tools' outcomes. What they
//! know, per request: the service that the session attained in its earlier turns, which sets the queue, and the
//! prompt tokens that the turn adds (what the tool returned): a small return brings the turn one queue forward, a
//! large one sends it one back. A turn that exceeds the quantum of its queue moves on as in [`super::mlfq`].

use std::collections::BTreeMap;

use super::mlfq::Mlfq;
use crate::plan::policy::CausalMlfqSpec;
use crate::scheduler::live::LiveRequest;

#[derive(Clone, Copy, Debug, Default)]
struct Trajectory {
    /// Service of all turns, in the queues' units.
    service: u64,
    /// Prompt and output of the longest turn so far: the context that the next one starts from.
    context_tokens: u32,
}

/// Feedback queues whose unit of work is a session.
#[derive(Clone, Debug)]
pub(in crate::scheduler) struct CausalMlfq {
    queues: Mlfq,
    small_return_tokens: u32,
    large_return_tokens: u32,
    trajectories: BTreeMap<u32, Trajectory>,
}

impl CausalMlfq {
    pub(super) fn new(spec: &CausalMlfqSpec) -> Self {
        Self {
            queues: Mlfq::new(&spec.queues),
            small_return_tokens: spec.small_return_tokens,
            large_return_tokens: spec.large_return_tokens,
            trajectories: BTreeMap::new(),
        }
    }

    pub(super) fn queues(&self) -> &Mlfq {
        &self.queues
    }

    pub(super) fn join(&mut self, request: &mut LiveRequest) {
        let known = self.trajectories.entry(request.client).or_default();
        let reached = self.queues.reached(known.service);
        let level = if known.context_tokens == 0 {
            reached
        } else {
            let returned = request.prompt_tokens.saturating_sub(known.context_tokens);
            if returned <= self.small_return_tokens {
                reached.saturating_sub(1)
            } else if returned >= self.large_return_tokens {
                reached + 1
            } else {
                reached
            }
        };
        let context = request.prompt_tokens.saturating_add(request.max_tokens);
        known.context_tokens = known.context_tokens.max(context);
        self.queues.enter(request, level);
    }

    pub(super) fn served(&mut self, request: &mut LiveRequest, computed_before: u32, num_tokens: u32) {
        let service = self.queues.service(request, computed_before, num_tokens);
        let known = self.trajectories.entry(request.client).or_default();
        known.service = known.service.saturating_add(service);
        self.queues.served(request, computed_before, num_tokens);
    }
}
