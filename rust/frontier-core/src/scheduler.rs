//! Batch formation. A scheduler is data in, data out: it knows no event and not how long a step takes, and the moment
//! only where its policy looks at it or KV is on its way between tiers (`kv_loads`), so that it can be checked against
//! logs of a real engine decision by decision.
//!
//! [`BatchScheduler`] is what an engine asks of any scheduler; [`Scheduler`] is the closed set of them.

mod any;
mod baseline;
mod kv_loads;
mod live;
mod policy;
mod queue;
mod sglang;
mod vllm_v1;

pub use any::Scheduler;
pub use baseline::Baseline;
pub use kv_loads::{KvLoads, KvStep, KvWait};
pub use live::{Handover, LiveRequest, Status, Submission};
pub use policy::{Expression, ExpressionError, check_policy};
pub use sglang::{EngineFailure, InFlightBatch, SglangScheduler};
pub use vllm_v1::{RemoteRead, VllmScheduler};

use crate::error::SimError;
use crate::ids::{RequestId, Slot};
use crate::kvcache::BlockHash;
use crate::time::SimTime;
use crate::workload::Segment;

/// What an engine asks of its scheduler.
pub trait BatchScheduler {
    /// Adds a request to the waiting queue.
    fn add_request(&mut self, submission: &Submission<'_>);

    /// Forms the next batch into `out` (emptied first).
    fn schedule(&mut self, now: SimTime, out: &mut SchedulerOutput);

    /// Processes the output of a batch that [`Self::schedule`] formed, in the order in which they were formed;
    /// `outcome` is emptied first.
    fn update(&mut self, now: SimTime, batch: &SchedulerOutput, outcome: &mut StepOutcome);

    /// Hands back a slot reported in [`StepOutcome::retired`].
    fn retire(&mut self, slot: Slot);

    /// Says whether the next batches hold prompts back while others decode, which data-parallel ranks do in turns.
    /// Schedulers without such turns have nothing to do.
    fn throttle_prefills(&mut self, _throttle: bool) {}

    /// Tells whether there is a reason to call [`Self::schedule`].
    fn has_requests(&self) -> bool;

    /// Returns queue lengths and the state of the KV cache.
    fn gauges(&self) -> Gauges;

    /// Tells whether prefixes are kept for reuse.
    fn caching(&self) -> bool;

    /// Returns how many leading tokens of a prompt are cached; `hashes` are those of its full blocks.
    fn cached_prefix(&self, segments: &[Segment], hashes: &[BlockHash]) -> u32;

    /// Tells whether some request got further than ever before since the last call of this method.
    fn take_progress(&mut self) -> bool;

    /// Returns how the real engine fails in what was done since the last call of this method, if it does.
    fn take_failure(&mut self) -> Option<EngineFailure> {
        None
    }

    /// Visits the running requests that the last batch left out: their ids, and whether a part of the prompt is
    /// still to be computed.
    fn visit_left_out(&self, visit: &mut dyn FnMut(RequestId, bool));

    /// Tells whether an earlier batch in flight carries the request of `entry`, too.
    fn is_in_flight_elsewhere(&self, entry: &Scheduled) -> bool;

    /// Visits the live requests that were preempted, running ones first, with how often.
    fn visit_preempted(&self, visit: &mut dyn FnMut(RequestId, u32));

    /// Visits the waiting requests in queue order.
    fn visit_waiting(&self, visit: &mut dyn FnMut(RequestId));

    /// Checks that blocks and queues are conserved. O(blocks + requests).
    ///
    /// # Errors
    /// [`SimError::Invariant`] naming the first law that does not hold.
    fn check_integrity(&self) -> Result<(), SimError>;
}

/// Queue lengths and the state of the KV cache of one engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Running requests.
    pub num_running: u32,
    /// Waiting requests.
    pub num_waiting: u32,
    /// Blocks (or KV slots, for schedulers that count tokens) that requests may use.
    pub num_usable: u32,
    /// Those that no request holds; cached content counts as free.
    pub num_free: u32,
}

impl Gauges {
    /// Returns the blocks held by requests.
    #[inline]
    pub fn used(&self) -> u32 {
        self.num_usable - self.num_free
    }
}

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
    /// The request, in the scheduler's arena.
    pub slot: Slot,
    /// The request.
    pub id: RequestId,
    /// How it came in.
    pub admission: Admission,
    /// Its prompt length in tokens.
    pub prompt_tokens: u32,
    /// Tokens whose KV existed (or was being computed) before this step.
    pub computed_before: u32,
    /// Tokens to compute in this step, drafts included.
    pub num_tokens: u32,
    /// Drafts among them, to be verified: the last ones. A decode computes one token more than it has drafts.
    pub num_drafts: u32,
    /// The chunk reaches the end of what is known, so that the step samples a token.
    pub samples: bool,
    /// Part of this chunk was computed once and lost to a preemption.
    pub recomputes: bool,
}

/// A request, by its slot and its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its place in the scheduler's arena.
    pub slot: Slot,
    /// The request.
    pub id: RequestId,
}

impl Scheduled {
    /// Tells whether this part counts as prefill: its prompt was unfinished, or it has more than one token beside
    /// its drafts.
    #[inline]
    pub fn is_prefill(&self) -> bool {
        self.computed_before < self.prompt_tokens || self.num_tokens > 1 + self.num_drafts
    }
}

/// A request that got tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Emission {
    /// The request.
    pub id: RequestId,
    /// New output tokens, at least 1.
    pub num_tokens: u32,
    /// Drafts that the step verified, paddings included.
    pub num_drafts: u32,
    /// Drafts that were accepted; the request may have ended before the last of them.
    pub num_accepted: u32,
    /// The token is nobody's: another engine goes on with the request and makes it again.
    pub hands_over: bool,
}

/// A request that joins a decode server with the token that its prefill made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CarriedToken {
    /// The request.
    pub id: RequestId,
    /// Its tokens in the KV cache.
    pub computed: u32,
    /// It gets its first token now; otherwise it had it, and comes back after it was retracted.
    pub is_new: bool,
    /// It wants no more tokens.
    pub is_last: bool,
}

/// One batch: what to compute, and who had to make room for it.
#[derive(Clone, Debug, Default)]
pub struct SchedulerOutput {
    /// Requests in batch order.
    pub scheduled: Vec<Scheduled>,
    /// Preempted requests in order.
    pub preempted: Vec<Member>,
    /// The first so many requests are prefills and the rest decodes, whatever their lengths; where none, a request
    /// with an unfinished prompt or more than one token is a prefill.
    pub num_prefills: Option<u32>,
    /// Tokens that chunks of negative length take back: SGLang 0.5.3 forms such chunks when memory is short.
    pub num_given_back: u32,
    /// What the device computes where padding makes it differ from `scheduled`, row by row; else empty.
    pub padded: Vec<PaddedRow>,
}

/// A row of a batch as the device computes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PaddedRow {
    /// Tokens computed, padding included.
    pub num_tokens: u32,
    /// Context after the step, padding included.
    pub context_after: u32,
    /// The tokens are those of a prompt.
    pub is_prefill: bool,
}

impl SchedulerOutput {
    /// Empties the output, keeping the memory.
    pub fn clear(&mut self) {
        self.scheduled.clear();
        self.preempted.clear();
        self.num_prefills = None;
        self.num_given_back = 0;
        self.padded.clear();
    }
}

/// What the output of a batch changed.
#[derive(Clone, Debug, Default)]
pub struct StepOutcome {
    /// Requests that got tokens, in batch order.
    pub emitted: Vec<Emission>,
    /// Requests that are complete, in batch order.
    pub finished: Vec<RequestId>,
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
