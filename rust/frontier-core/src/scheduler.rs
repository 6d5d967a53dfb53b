//! Batch formation. A scheduler is data in, data out: it knows no clock, no latency and no event, so that it
//! can be checked against logs of a real engine decision by decision.

mod kv_loads;
mod live;
mod queue;
mod vllm_v1;

pub use kv_loads::{KvLoads, KvStep, KvWait};
pub use live::{LiveRequest, Status, Submission};
pub use vllm_v1::VllmScheduler;

use crate::ids::Slot;

/// How a request came into a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It was running already.
    Running,
    /// It was admitted for the first time.
    New,
    /// It was admitted again after a preemption.
    Resumed,
}

/// A request's part of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Scheduled {
    /// The request.
    pub slot: Slot,
    /// How it came in.
    pub admission: Admission,
    /// Tokens whose KV existed (or was being computed) before this step.
    pub computed_before: u32,
    /// Tokens to compute in this step.
    pub num_tokens: u32,
    /// The chunk reaches the end of what is known, so that the step samples a token.
    pub samples: bool,
    /// Part of this chunk was computed once and lost to a preemption.
    pub recomputes: bool,
}

/// One batch: what to compute, and who had to make room for it.
#[derive(Clone, Debug, Default)]
pub struct SchedulerOutput {
    /// Requests in batch order.
    pub scheduled: Vec<Scheduled>,
    /// Preempted requests in order.
    pub preempted: Vec<Slot>,
}

impl SchedulerOutput {
    /// Empties the output, keeping the memory.
    pub fn clear(&mut self) {
        self.scheduled.clear();
        self.preempted.clear();
    }
}

/// What the output of a batch changed.
#[derive(Clone, Debug, Default)]
pub struct StepOutcome {
    /// Requests that got a token, in batch order.
    pub emitted: Vec<Slot>,
    /// Requests that are complete, in batch order.
    pub finished: Vec<Slot>,
    /// Slots that nothing refers to any more; the caller hands them back with `retire`.
    pub retired: Vec<Slot>,
}

impl StepOutcome {
    /// Empties the outcome, keeping the memory.
    pub fn clear(&mut self) {
        self.emitted.clear();
        self.finished.clear();
        self.retired.clear();
    }
}
