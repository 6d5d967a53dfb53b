//! A server that makes output from prompts of others (`disaggregation/decode.py`, 0.5.3).
//!
//! A request passes three queues. In the first it waits for memory for its prompt, in the second for its KV, in the third
//! for a place in the running batch; a turn that lets requests into that batch runs no step, and gives them the token that
//! came with their KV. Who is retracted goes to host memory, and comes back, KV and all, before anything else is let in.

use std::collections::VecDeque;

use super::batch::{Batch, ExtendBatch};
use super::{CLIP_MAX_NEW_TOKENS, EngineFailure, SglangScheduler};
use crate::ids::{RequestId, Slot};
use crate::plan::DisaggregationSpec;
use crate::scheduler::{CarriedToken, RemoteRead};

/// Servers that run at most so many requests have rows for twice as many more, whose KV is on its way.
const MAX_RUNNING_WITH_MORE_ROWS: u32 = 32;

/// What a decode server keeps beside its scheduler.
#[derive(Clone, Debug, Default)]
pub(super) struct OutputServer {
    reserved: i64,
    polling_interval: u32,
    turns_since_poll: u32,
    /// Without memory, in order.
    pub(super) unallocated: VecDeque<Slot>,
    /// With memory, whose KV is on its way, in order.
    pub(super) receiving: Vec<Slot>,
    /// Retracted, in order.
    pub(super) retracted: VecDeque<Slot>,
    /// Requests whose KV may still be sent for: each takes a buffer for its first token until that is here.
    pub(super) buffers: i64,
    /// Those that got memory in the last turns.
    reads: Vec<RemoteRead>,
    /// Those that the last turns let into the running batch, or that ended with the token that came.
    carried: Vec<CarriedToken>,
}

impl OutputServer {
    /// Returns the state of an idle server that runs at most `max_running_requests`.
    pub(super) fn new(part: DisaggregationSpec, max_running_requests: u32) -> Self {
        let DisaggregationSpec::Decode { num_reserved_decode_tokens, polling_interval } = part else {
            return Self::default();
        };
        Self {
            reserved: i64::from(num_reserved_decode_tokens),
            polling_interval,
            buffers: 2 * i64::from(max_running_requests),
            ..Self::default()
        }
    }

    /// Returns the rows of the request table of a decode server.
    pub(super) fn num_rows(max_running_requests: u32) -> i64 {
        let times = if max_running_requests <= MAX_RUNNING_WITH_MORE_ROWS { 3 } else { 1 };
        times * i64::from(max_running_requests)
    }

    pub(super) fn num_queued(&self) -> usize {
        self.unallocated.len() + self.receiving.len() + self.retracted.len()
    }
}

impl SglangScheduler {
    /// Takes a turn of a decode server. Returns whether it put a step in flight.
    pub(super) fn next_outputs(&mut self) -> Result<bool, EngineFailure> {
        self.look_at_queues()?;
        if let Some(mut last) = self.last.take() {
            let requests = &self.requests;
            last.batch.retain(|slot| !requests[slot.index()].finished);
            self.running.append(&mut last.batch);
        }
        if self.let_in() {
            return Ok(false);
        }
        self.next_decode()
    }

    /// Lets those come back who were retracted; if all have, gives memory to others and takes in whose KV is here.
    fn look_at_queues(&mut self) -> Result<(), EngineFailure> {
        self.bring_back()?;
        if !self.outputs.retracted.is_empty() {
            return Ok(());
        }
        self.outputs.turns_since_poll += 1;
        // A server that runs nothing takes turns all the time, so that it looks at once.
        let is_idle = self.running.is_empty() && self.in_flight.is_empty() && self.last.is_none();
        if is_idle || self.outputs.turns_since_poll >= self.outputs.polling_interval {
            self.outputs.turns_since_poll = 0;
            self.give_memory()?;
            self.take_received()?;
        }
        Ok(())
    }

    /// Returns the free slots beyond those that are kept for output; `for_one`: what the longest of those that run may
    /// need even if all others are retracted.
    fn spare_slots(&self, for_one: i64) -> i64 {
        let beside = self.running.len() + self.outputs.receiving.len() + self.waiting.len();
        let last = self.last.as_ref().map_or(0, |last| last.batch.len());
        self.available
            - (self.outputs.reserved * beside as i64).max(for_one)
            - self.outputs.reserved * last as i64
    }

    fn bring_back(&mut self) -> Result<(), EngineFailure> {
        if self.outputs.retracted.is_empty() {
            return Ok(());
        }
        let mut spare = self.spare_slots(0);
        while let Some(&slot) = self.outputs.retracted.front() {
            let held = self.requests[slot.index()].num_tokens();
            let wanted = held + self.outputs.reserved;
            if self.rows <= 0 || wanted > spare {
                break;
            }
            spare -= wanted;
            self.outputs.retracted.pop_front();
            self.rows -= 1;
            // The KV of the last token was never made.
            self.allocate(held - 1)?;
            self.requests[slot.index()].retracted = false;
            self.waiting.push_back(slot);
        }
        Ok(())
    }

    fn give_memory(&mut self) -> Result<(), EngineFailure> {
        if self.outputs.unallocated.is_empty() {
            return Ok(());
        }
        let requests = &self.requests;
        let running = || self.running.requests.iter().map(|slot| &requests[slot.index()]);
        let retractable: i64 = running().map(super::request::Request::num_tokens).sum();
        let longest = running().map(|request| request.longest() - retractable).max().unwrap_or(0);
        let mut spare = self.spare_slots(longest);
        while let Some(&slot) = self.outputs.unallocated.front() {
            let request = &self.requests[slot.index()];
            let prompt = i64::from(request.prompt_tokens);
            let wanted = prompt + self.outputs.reserved;
            if self.rows <= 0
                || self.outputs.buffers <= 0
                || wanted.max(request.longest() - retractable) > spare
            {
                break;
            }
            spare -= wanted;
            self.outputs.unallocated.pop_front();
            self.rows -= 1;
            self.outputs.buffers -= 1;
            self.allocate(prompt)?;
            let request = &self.requests[slot.index()];
            self.outputs.reads.push(RemoteRead { request: request.id, num_blocks: request.prompt_tokens });
            self.outputs.receiving.push(slot);
        }
        Ok(())
    }

    /// Takes in those whose KV is here, with their first token. Who wants no more is done.
    fn take_received(&mut self) -> Result<(), EngineFailure> {
        if !self.outputs.receiving.iter().any(|slot| self.requests[slot.index()].transferred) {
            return Ok(());
        }
        for slot in std::mem::take(&mut self.outputs.receiving) {
            let request = &mut self.requests[slot.index()];
            if !request.transferred {
                self.outputs.receiving.push(slot);
                continue;
            }
            request.append_output();
            self.outputs.buffers += 1;
            if request.max_new_tokens > 1 {
                self.waiting.push_back(slot);
                continue;
            }
            request.finished = true;
            let carried =
                CarriedToken { id: request.id, computed: request.prompt_tokens, is_new: true, is_last: true };
            self.outputs.carried.push(carried);
            self.retiring.push(slot);
            self.cache_finished(slot)?;
        }
        Ok(())
    }

    /// Lets waiting requests into the running batch, which they join in the next turn. Returns whether there are any.
    fn let_in(&mut self) -> bool {
        let room = i64::from(self.config.max_running_requests) - self.running.len() as i64;
        let count = self.waiting.len().min(room.max(0) as usize);
        if count == 0 {
            return false;
        }
        let requests: Vec<Slot> = self.waiting.drain(..count).collect();
        let mut lengths = Vec::with_capacity(count);
        for &slot in &requests {
            let request = &mut self.requests[slot.index()];
            let held = request.num_tokens() - 1;
            lengths.push(held);
            let is_new = request.let_in(held);
            self.num_live += 1;
            let carried = CarriedToken { id: request.id, computed: held as u32, is_new, is_last: false };
            self.outputs.carried.push(carried);
        }
        self.progressed = true;
        self.last = Some(ExtendBatch { batch: Batch { requests, lengths, full: false }, chunked: None });
        true
    }

    /// Hands over the requests that got memory for their prompts since the last call, in order.
    pub fn take_remote_reads(&mut self) -> Vec<RemoteRead> {
        std::mem::take(&mut self.outputs.reads)
    }

    /// Hands over the requests that were let in since the last call, in order.
    pub fn take_carried(&mut self) -> Vec<CarriedToken> {
        std::mem::take(&mut self.outputs.carried)
    }

    /// The KV of a request is here.
    pub fn kv_received(&mut self, id: RequestId) {
        let received = self.outputs.receiving.iter().find(|slot| self.requests[slot.index()].id == id);
        if let Some(slot) = received {
            self.requests[slot.index()].transferred = true;
        }
    }

    /// Notes that a request can never get memory: the real engine never looks at those behind it.
    pub(super) fn note_endless_wait(&mut self, slot: Slot) {
        let request = &self.requests[slot.index()];
        let wanted = request.longest().max(i64::from(request.prompt_tokens) + self.outputs.reserved);
        let pool = i64::from(self.config.max_total_tokens);
        if wanted <= pool {
            return;
        }
        let detail = format!(
            "request {} is let in with room for {wanted} tokens (its prompt, and the larger of \
             num_reserved_decode_tokens and its output), which never fits into the pool of {pool}, so it waits forever, \
             and all behind it; enlarge the pool, shorten the output or lower num_reserved_decode_tokens",
            request.id.0,
        );
        let damaged = self.damaged;
        self.note(EngineFailure { name: "hang", detail, stops: false });
        // Its books are in order.
        self.damaged = damaged;
    }

    /// Takes a request out of a decode server, and frees its memory; output in flight is dropped when it comes. Returns
    /// whether it was there.
    pub(super) fn abort_output(&mut self, id: RequestId) -> Result<bool, EngineFailure> {
        let is_it = |slot: &Slot| {
            let request = &self.requests[slot.index()];
            request.id == id && !request.finished
        };
        let waits_in = |queue: &VecDeque<Slot>| queue.iter().position(is_it);
        if let Some(at) = waits_in(&self.outputs.unallocated) {
            if let Some(slot) = self.outputs.unallocated.remove(at) {
                self.end_aborted(slot);
            }
        } else if let Some(at) = waits_in(&self.outputs.retracted) {
            if let Some(slot) = self.outputs.retracted.remove(at) {
                self.end_aborted(slot);
            }
        } else if let Some(at) = self.outputs.receiving.iter().position(is_it) {
            let slot = self.outputs.receiving.remove(at);
            self.outputs.buffers += 1;
            self.rows += 1;
            self.available += i64::from(self.requests[slot.index()].prompt_tokens);
            self.end_aborted(slot);
        } else {
            let queued = waits_in(&self.waiting).and_then(|at| self.waiting.remove(at));
            let unmerged = self.last.iter().flat_map(|last| &last.batch.requests);
            let held = queued.or_else(|| self.running.requests.iter().chain(unmerged).copied().find(is_it));
            let Some(slot) = held else { return Ok(false) };
            // Its slots in steps under way come back with them.
            self.cache_finished(slot)?;
            self.end_aborted(slot);
        }
        Ok(true)
    }

    /// Returns the KV slots that requests hold which are in no batch.
    pub(super) fn slots_of_queues(&self) -> i64 {
        let prompt = |slot: &Slot| i64::from(self.requests[slot.index()].prompt_tokens);
        let held = |slot: &Slot| self.requests[slot.index()].num_tokens() - 1;
        self.outputs.receiving.iter().map(prompt).sum::<i64>() + self.waiting.iter().map(held).sum::<i64>()
    }

    /// Returns the rows of the request table that requests have.
    pub(super) fn rows_of_outputs(&self) -> i64 {
        let unmerged = self.last.iter().flat_map(|last| &last.batch.requests);
        let batches = self.running.requests.iter().chain(unmerged);
        let live = batches.filter(|slot| !self.requests[slot.index()].finished).count();
        (live + self.outputs.receiving.len() + self.waiting.len()) as i64
    }
}

impl super::request::Request {
    /// Returns the longest that it can get, as far as memory is kept for it.
    fn longest(&self) -> i64 {
        i64::from(self.prompt_tokens) + self.max_new_tokens.min(CLIP_MAX_NEW_TOKENS)
    }
}
