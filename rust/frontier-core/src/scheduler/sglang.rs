//! SGLang's scheduler, rules of version 0.5.3 (`sglang/srt/managers/{scheduler,schedule_batch,schedule_policy}.py`,
//! `scheduler_output_processor_mixin.py`), page size 1, no speculation.
//!
//! A turn runs a batch of prompts if it can form one, else a step of everything that decodes; a batch in flight
//! (overlap) is scheduled behind without its results. Where that engine fails (it hands the same memory back twice,
//! drops requests, runs out of slots), so does this one, and says so by name: [`EngineFailure`].

#![expect(clippy::cast_possible_wrap, reason = "lengths of batches and queues are far below 2^63")]

mod admission;
mod batch;
mod decode;
mod failure;
mod integrity;
mod leaving;
mod memory;
mod order;
mod output_server;
mod prefill;
mod prompt_server;
mod request;
mod results;

use std::collections::VecDeque;

pub use batch::InFlightBatch;
use batch::Mode;
pub use failure::EngineFailure;

use super::{BatchScheduler, Gauges, Scheduled, SchedulerOutput, StepOutcome, Submission};
use crate::error::SimError;
use crate::ids::{RequestId, Slot};
use crate::kvcache::{BlockHash, RadixTree};
use crate::plan::{DisaggregationSpec, SchedulePolicy, SglangConfig};
use crate::time::SimTime;
use crate::workload::Segment;
use batch::{Batch, ExtendBatch};
use output_server::OutputServer;
use prompt_server::PromptServer;
use request::Request;

/// Longest output that an admission reserves memory for.
const CLIP_MAX_NEW_TOKENS: i64 = 4096;
/// `new_token_ratio` at first, for a conservativeness of 1.
const INIT_NEW_TOKEN_RATIO: f64 = 0.7;
/// Its least value, as a share of the first.
const MIN_NEW_TOKEN_RATIO_FACTOR: f64 = 0.14;
/// Decode steps in which it falls from the first to the least.
const NEW_TOKEN_RATIO_DECAY_STEPS: f64 = 600.0;
/// Decode steps of the others that a retraction makes room for.
const RETRACT_DECODE_STEPS: i64 = 20;
/// Finished requests that are left alone until somebody looks which of them are still referred to.
pub(super) const MIN_RETIRING: usize = 16;

/// What a server does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Both,
    Prompts,
    Outputs,
}

/// State of the scheduler of one engine.
#[derive(Clone, Debug)]
pub struct SglangScheduler {
    config: SglangConfig,
    part: Part,
    prompts: PromptServer,
    outputs: OutputServer,
    /// After what 0.5.3 makes of it: tree orders need the tree, mixing needs chunks.
    policy: SchedulePolicy,
    mixes: bool,
    /// Times a priority, it is smaller for who is served first.
    priority_sign: i64,
    ratio: f64,
    ratio_init: f64,
    ratio_min: f64,
    ratio_decay: f64,
    /// Stays empty without the radix cache.
    tree: RadixTree,
    /// Scratch: prefixes inside the queue.
    queued: RadixTree,
    /// Free KV slots and free rows of the request table.
    available: i64,
    rows: i64,
    requests: Vec<Request>,
    vacant: Vec<Slot>,
    waiting: VecDeque<Slot>,
    running: Batch,
    /// The batch of the turn before, if it computed prompts: it has not joined `running` yet.
    last: Option<ExtendBatch>,
    /// The request whose prompt is being computed chunk by chunk.
    chunked: Option<Slot>,
    in_flight: VecDeque<InFlightBatch>,
    spare: Vec<InFlightBatch>,
    num_entries: u64,
    /// Admitted and not known to be finished.
    num_live: u32,
    /// Requests put back in this turn that had output or were retracted; all that lost their memory in it.
    returned: Vec<RequestId>,
    evicted: Vec<Slot>,
    retiring: Vec<Slot>,
    sweep: u64,
    progressed: bool,
    failure: Option<EngineFailure>,
    /// A failure left the engine's own books wrong.
    damaged: bool,
}

impl SglangScheduler {
    /// Returns an idle scheduler.
    pub fn new(config: SglangConfig) -> Self {
        let needs_tree = matches!(config.schedule_policy, SchedulePolicy::Lpm | SchedulePolicy::DfsWeight);
        let policy = if config.disable_radix_cache && needs_tree {
            SchedulePolicy::Fcfs
        } else {
            config.schedule_policy
        };
        let ratio_init = (INIT_NEW_TOKEN_RATIO * config.schedule_conservativeness).min(1.0);
        let ratio_min = (ratio_init * MIN_NEW_TOKEN_RATIO_FACTOR).min(1.0);
        let part = match config.disaggregation {
            None => Part::Both,
            Some(DisaggregationSpec::Prefill {}) => Part::Prompts,
            Some(DisaggregationSpec::Decode { .. }) => Part::Outputs,
        };
        Self {
            policy,
            mixes: config.enable_mixed_chunk && config.chunked_prefill_size.is_some(),
            priority_sign: if config.schedule_low_priority_values_first { 1 } else { -1 },
            ratio: ratio_init,
            ratio_init,
            ratio_min,
            ratio_decay: (ratio_init - ratio_min) / NEW_TOKEN_RATIO_DECAY_STEPS,
            tree: RadixTree::new(),
            queued: RadixTree::new(),
            available: i64::from(config.max_total_tokens),
            rows: match part {
                Part::Outputs => OutputServer::num_rows(config.max_running_requests),
                _ => i64::from(config.max_running_requests),
            },
            prompts: PromptServer::new(config.max_running_requests),
            outputs: config.disaggregation.map_or_else(OutputServer::default, |part| {
                OutputServer::new(part, config.max_running_requests)
            }),
            part,
            requests: Vec::new(),
            vacant: Vec::new(),
            waiting: VecDeque::new(),
            running: Batch::default(),
            last: None,
            chunked: None,
            in_flight: VecDeque::new(),
            spare: Vec::new(),
            num_entries: 0,
            num_live: 0,
            returned: Vec::new(),
            evicted: Vec::new(),
            retiring: Vec::new(),
            sweep: 0,
            progressed: false,
            failure: None,
            damaged: false,
            config,
        }
    }

    /// Returns the settings.
    pub fn config(&self) -> &SglangConfig {
        &self.config
    }

    /// Returns the free KV slots.
    pub fn available(&self) -> i64 {
        self.available
    }

    /// Returns the cached tokens that nobody uses.
    pub fn evictable(&self) -> i64 {
        self.tree.evictable()
    }

    /// Returns the share of their remaining output that running requests are expected to need.
    pub fn new_token_ratio(&self) -> f64 {
        self.ratio
    }

    /// Tells whether the running batch takes no further requests.
    pub fn batch_is_full(&self) -> bool {
        self.running.full
    }

    /// Returns the running batch in order.
    pub fn running(&self) -> impl Iterator<Item = RequestId> {
        self.running.requests.iter().map(|&slot| self.id(slot))
    }

    /// Returns the waiting requests in queue order.
    pub fn waiting(&self) -> impl Iterator<Item = RequestId> {
        self.waiting.iter().map(|&slot| self.id(slot))
    }

    /// Returns the request whose prompt is being computed chunk by chunk.
    pub fn chunked(&self) -> Option<RequestId> {
        self.chunked.map(|slot| self.id(slot))
    }

    /// Returns the batch that the last turn formed.
    pub fn newest(&self) -> Option<&InFlightBatch> {
        self.in_flight.back()
    }

    /// Returns the requests that the last turn put back and that had output or were retracted.
    pub fn returned(&self) -> &[RequestId] {
        &self.returned
    }

    /// Tells whether the result of a request's chunk is still to come.
    pub fn awaits_chunk(&self, slot: Slot) -> bool {
        self.requests[slot.index()].chunks > 0
    }

    #[inline]
    fn id(&self, slot: Slot) -> RequestId {
        self.requests[slot.index()].id
    }

    #[inline]
    fn radix(&self) -> bool {
        !self.config.disable_radix_cache
    }

    /// Adds a request to the end of the queue. `back`: it was there before.
    fn enter(&mut self, slot: Slot, back: bool) {
        self.num_entries += 1;
        let entered = self.num_entries;
        let request = &mut self.requests[slot.index()];
        request.entered = entered;
        if back || request.num_output > 0 {
            self.returned.push(request.id);
        }
        self.waiting.push_back(slot);
    }

    /// Chooses the next batch and puts it in flight. Returns whether there is one.
    fn next_batch(&mut self) -> Result<bool, EngineFailure> {
        let chunked = self.chunked;
        if let Some(slot) = chunked {
            self.cache_unfinished(slot)?;
            self.rows += 1;
        }
        if let Some(mut last) = self.last.take() {
            let apart = [chunked, last.chunked];
            let requests = &self.requests;
            let left = last.batch.retain(|slot| {
                !requests[slot.index()].finished && Some(slot) != apart[0] && Some(slot) != apart[1]
            });
            if left {
                self.running.full = false;
            }
            if self.running.is_empty() && !last.batch.is_empty() {
                // With its own flag, which is not set.
                self.running = last.batch;
            } else {
                self.running.append(&mut last.batch);
            }
        }
        if self.prefill_batch()? {
            return Ok(true);
        }
        self.next_decode()
    }

    /// Puts a step of the running batch in flight. Returns whether there is one.
    fn next_decode(&mut self) -> Result<bool, EngineFailure> {
        if !self.running.is_empty() {
            self.decode_batch()?;
        }
        if self.running.is_empty() {
            return Ok(false);
        }
        let mut formed = self.spare.pop().unwrap_or_default();
        formed.reset(Mode::Decode, self.running.len() as i64);
        formed.requests.extend_from_slice(&self.running.requests);
        self.in_flight.push_back(formed);
        Ok(true)
    }

    /// Tells whether requests are here that are in no queue and no batch of a server without a part.
    fn has_requests_between(&self) -> bool {
        self.last.is_some() && self.part == Part::Outputs
            || self.outputs.num_queued() > 0
            || !self.prompts.bootstrapped.is_empty()
            || !self.prompts.sending.is_empty()
    }

    /// Does what a server with a part does at the end of a turn, after results if there were any.
    pub fn end_turn(&mut self) {
        if self.part == Part::Prompts
            && let Err(failure) = self.release_sent()
        {
            self.note(failure);
        }
    }

    /// Tells whether the last turn left something for the next one, although it launched nothing.
    pub fn take_released(&mut self) -> bool {
        std::mem::take(&mut self.prompts.released)
    }

    /// Tells whether the server does only a part of the work on a request.
    pub fn has_part(&self) -> bool {
        self.part != Part::Both
    }

    /// Tells whether the server is one for prompts, whose requests go on elsewhere.
    pub fn serves_prompts(&self) -> bool {
        self.part == Part::Prompts
    }

    /// Writes the newest batch in flight into `out`.
    fn describe(&mut self, out: &mut SchedulerOutput) {
        let Self { in_flight, requests, running, last, progressed, num_live, .. } = self;
        let Some(formed) = in_flight.back() else { return };
        let num_extends = formed.extends.len();
        out.num_prefills = Some(num_extends as u32);
        let lengths = match (formed.mode, last) {
            (Mode::Decode, _) | (_, None) => &running.lengths,
            (_, Some(last)) => &last.batch.lengths,
        };
        for (position, &slot) in formed.requests.iter().enumerate() {
            let request = &mut requests[slot.index()];
            let (before, num_tokens) = if position < num_extends {
                let (before, num_tokens) = formed.extends[position];
                out.num_given_back += num_tokens.min(0).unsigned_abs() as u32;
                (before + num_tokens.min(0), num_tokens.max(0))
            } else {
                (lengths[position] - 1, 1)
            };
            let (entry, further) = request.scheduled(slot, before, num_tokens, position < num_extends);
            *num_live += u32::from(entry.admission != super::Admission::Running);
            *progressed |= further;
            out.scheduled.push(entry);
        }
    }
}

impl BatchScheduler for SglangScheduler {
    fn is_in_flight_elsewhere(&self, _entry: &Scheduled) -> bool {
        false // no pipeline
    }

    fn add_request(&mut self, submission: &Submission<'_>) {
        let slot = self.vacant.pop().unwrap_or_else(|| {
            self.requests.push(Request::vacant());
            Slot::from_index(self.requests.len() - 1)
        });
        self.requests[slot.index()].reset(submission);
        match self.part {
            Part::Both => self.enter(slot, false),
            Part::Prompts => self.prompts.bootstrapped.push(slot),
            Part::Outputs => {
                self.outputs.unallocated.push_back(slot);
                self.note_endless_wait(slot);
            }
        }
    }

    /// Takes one turn of SGLang's loop; `out` stays without requests where it finds nothing to run. Without results
    /// to come either, the engine is idle and `new_token_ratio` starts anew.
    fn schedule(&mut self, _now: SimTime, out: &mut SchedulerOutput) {
        out.clear();
        self.returned.clear();
        self.evicted.clear();
        let pending = !self.in_flight.is_empty();
        let formed = match self.part {
            Part::Both => self.next_batch(),
            Part::Prompts => self.next_prompts(),
            Part::Outputs => self.next_outputs(),
        };
        match formed {
            Ok(true) => self.describe(out),
            Ok(false) if pending => {}
            Ok(false) => self.ratio = self.ratio_init,
            Err(failure) => self.note(failure),
        }
        out.preempted.extend(
            self.evicted.iter().map(|&slot| super::Member { slot, id: self.requests[slot.index()].id }),
        );
    }

    fn update(&mut self, _now: SimTime, _batch: &SchedulerOutput, outcome: &mut StepOutcome) {
        outcome.clear();
        let Some(done) = self.in_flight.pop_front() else { return };
        if let Err(failure) = self.process(&done, outcome) {
            self.note(failure);
        }
        self.spare.push(done);
        self.end_turn();
        self.retire_unreferenced(outcome);
    }

    fn retire(&mut self, slot: Slot) {
        if let Some(node) = self.requests[slot.index()].node.take() {
            self.tree.let_go(node);
        }
        self.vacant.push(slot);
    }

    #[inline]
    fn has_requests(&self) -> bool {
        !self.waiting.is_empty()
            || !self.running.is_empty()
            || self.chunked.is_some()
            || (self.part != Part::Both && self.has_requests_between())
    }

    #[inline]
    fn gauges(&self) -> Gauges {
        let free = self.available + self.tree.evictable();
        Gauges {
            num_running: self.num_live,
            num_waiting: (self.waiting.len() + self.prompts.bootstrapped.len() + self.outputs.num_queued())
                as u32,
            num_usable: self.config.max_total_tokens,
            num_free: free.clamp(0, i64::from(self.config.max_total_tokens)) as u32,
        }
    }

    fn caching(&self) -> bool {
        self.radix()
    }

    fn cached_prefix(&self, segments: &[Segment], _hashes: &[BlockHash]) -> u32 {
        let num_tokens: u32 = segments.iter().map(|segment| segment.len).sum();
        self.tree.peek(segments, num_tokens.saturating_sub(1))
    }

    fn take_progress(&mut self) -> bool {
        std::mem::take(&mut self.progressed)
    }

    fn take_failure(&mut self) -> Option<EngineFailure> {
        self.failure.take()
    }

    /// Prompts go first: whoever decodes waits, unless the step is mixed.
    fn visit_left_out(&self, visit: &mut dyn FnMut(RequestId, bool)) {
        if self.last.is_none() {
            return;
        }
        for &slot in &self.running.requests {
            let request = &self.requests[slot.index()];
            if !request.finished {
                visit(request.id, false);
            }
        }
    }

    fn visit_preempted(&self, visit: &mut dyn FnMut(RequestId, u32)) {
        for &slot in self.running.requests.iter().chain(&self.waiting) {
            let request = &self.requests[slot.index()];
            if request.num_preemptions > 0 {
                visit(request.id, request.num_preemptions);
            }
        }
    }

    fn visit_waiting(&self, visit: &mut dyn FnMut(RequestId)) {
        let all = self.waiting.iter().chain(&self.prompts.bootstrapped).chain(&self.outputs.retracted);
        all.chain(&self.outputs.receiving)
            .chain(&self.outputs.unallocated)
            .for_each(|&slot| visit(self.id(slot)));
    }

    fn check_integrity(&self) -> Result<(), SimError> {
        if self.damaged { Ok(()) } else { self.check_books() }
    }
}
