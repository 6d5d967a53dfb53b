//! The skip-join multi-level feedback queue of `FastServe` (Wu et al., "Fast Distributed Inference Serving for
//! Large Language Models", 2023, section 4.1; NSDI 2026).
//!
//! A request joins the first queue whose quantum covers its first iteration, so that long prompts skip the early
//! queues; what uses up the quantum of its queue moves to the next; what waits too long goes back to the first.
//! `FastServe` measures service in GPU time; a scheduler here knows no latency, so it counts tokens, a prompt's at a
//! discount, which stands for the time that they take relative to an output token's.

use crate::plan::policy::MlfqSpec;
use crate::scheduler::live::LiveRequest;
use crate::time::SimTime;

/// Feedback queues.
#[derive(Clone, Debug)]
pub(in crate::scheduler) struct Mlfq {
    spec: MlfqSpec,
    /// Service that each queue but the last gives, in prompt tokens.
    quanta: Vec<u64>,
}

impl Mlfq {
    pub(super) fn new(spec: &MlfqSpec) -> Self {
        let first = spec.quantum_tokens.saturating_mul(u64::from(spec.prompt_tokens_per_unit));
        let next = |quantum: &u64| Some(quantum.saturating_mul(u64::from(spec.growth)));
        let quanta = std::iter::successors(Some(first), next).take(spec.levels as usize - 1).collect();
        Self { spec: *spec, quanta }
    }

    pub(super) fn promotes(&self) -> bool {
        self.spec.starvation_ns.is_some()
    }

    pub(super) fn preemptive(&self) -> bool {
        self.spec.preemptive
    }

    fn last(&self) -> u32 {
        self.quanta.len() as u32
    }

    /// Returns the first queue whose quantum covers so much service.
    fn covering(&self, service: u64) -> u32 {
        self.quanta.iter().position(|&quantum| quantum >= service).map_or(self.last(), |level| level as u32)
    }

    /// Returns the queue that so much service in all leads to from the first.
    pub(super) fn reached(&self, service: u64) -> u32 {
        let mut left = service;
        for (level, &quantum) in self.quanta.iter().enumerate() {
            if left < quantum {
                return level as u32;
            }
            left -= quantum;
        }
        self.last()
    }

    pub(super) fn join(&self, request: &mut LiveRequest) {
        let level = if self.spec.skip_join { self.covering(u64::from(request.prompt_tokens)) } else { 0 };
        self.enter(request, level);
    }

    /// Puts a request at the start of a queue.
    pub(super) fn enter(&self, request: &mut LiveRequest, level: u32) {
        request.service.level = level.min(self.last());
        request.service.served_in_level = 0;
    }

    /// Returns the service that tokens amount to, in prompt tokens.
    pub(super) fn service(&self, request: &LiveRequest, computed_before: u32, num_tokens: u32) -> u64 {
        let prompt = request.prompt_tokens.saturating_sub(computed_before).min(num_tokens);
        u64::from(prompt) + u64::from(num_tokens - prompt) * u64::from(self.spec.prompt_tokens_per_unit)
    }

    pub(super) fn served(&self, request: &mut LiveRequest, computed_before: u32, num_tokens: u32) {
        let service = self.service(request, computed_before, num_tokens);
        let state = &mut request.service;
        state.served_in_level = state.served_in_level.saturating_add(service);
        while state.level < self.last() && state.served_in_level >= self.quanta[state.level as usize] {
            state.served_in_level -= self.quanta[state.level as usize];
            state.level += 1;
        }
    }

    /// Sends a waiting request that starved to the first queue.
    pub(super) fn promote(&self, request: &mut LiveRequest, now: SimTime) {
        if let Some(limit) = self.spec.starvation_ns
            && request.service.level > 0
            && now.since(request.service.last_served).0 >= limit
        {
            self.enter(request, 0);
            request.service.last_served = now;
        }
    }
}
