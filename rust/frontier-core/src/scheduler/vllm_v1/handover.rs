//! KV that comes from another engine, or stays for one: the scheduler's side of vLLM's NIXL connector
//! (`distributed/kv_transfer/kv_connector/v1/nixl`, `v1/core/sched/scheduler.py`, 0.22 to 0.32).
//!
//! A request whose prompt another engine has computed gets blocks for all of it at once, less what is cached here, and
//! is put aside in a queue of its own, which goes before all that wait. Once its KV is there it goes on with the last
//! token of its prompt, which has to be computed again for the first logits. On the other side a request that is handed
//! over keeps its blocks after its end until they have been read.

use std::collections::VecDeque;

use super::VllmScheduler;
use super::admission::{Beside, LookedAt};
use super::budget::Budget;
use super::caching::{cache_full_blocks, release_blocks};
use crate::ids::{BlockId, RequestId, Slot};
use crate::kvcache::BlockPool;
use crate::scheduler::live::LiveRequest;
use crate::scheduler::queue::WaitingQueue;
use crate::scheduler::{Handover, SchedulerOutput};

/// KV that an engine begins to read from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteRead {
    /// Whose it is.
    pub request: RequestId,
    /// Blocks to fill.
    pub num_blocks: u32,
}

/// Requests between engines.
#[derive(Clone, Debug, Default)]
pub(super) struct Handovers {
    /// Put aside, in their order: what they wait for is on its way, or was there when there was no room to run.
    waiting: Vec<Slot>,
    /// Those of them whose KV is there, but which were not looked at since.
    received: Vec<Slot>,
    /// How many of them were looked at since, and had no room to run.
    num_without_room: usize,
    /// Reads that began in the step that was formed last.
    reads: Vec<RemoteRead>,
    /// Ended here and kept for another engine.
    kept: Vec<Slot>,
    /// Freed blocks come back only when all steps that were in flight at the time are done.
    defers_frees: bool,
    steps_formed: u64,
    steps_done: u64,
    deferred: VecDeque<(u64, Vec<BlockId>)>,
}

impl Handovers {
    /// Tells whether requests are kept, or put aside, here.
    #[inline]
    pub(super) fn any(&self) -> bool {
        !self.waiting.is_empty() || !self.kept.is_empty()
    }

    /// Returns how many requests are put aside.
    #[inline]
    pub(super) fn num_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Returns how many of the requests put aside are worth looking at, in order: none while all wait for their KV.
    #[inline]
    pub(super) fn num_to_look_at(&self) -> usize {
        if self.received.is_empty() && self.num_without_room == 0 { 0 } else { self.waiting.len() }
    }

    /// Brings the requests put aside into the order of the queue, where that is not first come, first served.
    pub(super) fn sort(&mut self, queue: &WaitingQueue, requests: &[LiveRequest]) {
        queue.sort(&mut self.waiting, requests);
    }

    /// Returns the requests that ended here and are kept for other engines.
    pub(super) fn kept(&self) -> impl Iterator<Item = Slot> {
        self.kept.iter().copied()
    }

    /// Forgets a request.
    pub(super) fn forget(&mut self, slot: Slot) {
        self.waiting.retain(|&other| other != slot);
        self.received.retain(|&other| other != slot);
        self.kept.retain(|&other| other != slot);
    }

    /// Keeps a request that ended here.
    pub(super) fn keep(&mut self, slot: Slot) {
        self.kept.push(slot);
    }

    /// Returns how many blocks come back later.
    pub(super) fn num_deferred(&self) -> u64 {
        self.deferred.iter().map(|(_, blocks)| blocks.len() as u64).sum()
    }

    /// Tells whether the blocks of a request have to outlive steps in flight.
    #[inline]
    pub(super) fn pins(&self, request: &LiveRequest) -> bool {
        self.defers_frees && request.num_in_flight > 0
    }

    /// Notes a step that computes something.
    #[inline]
    pub(super) fn step_formed(&mut self) {
        self.steps_formed += u64::from(self.defers_frees);
    }

    /// Notes that the oldest step in flight is done, and frees what waited for it.
    #[inline]
    pub(super) fn step_done(&mut self, pool: &mut BlockPool) {
        self.steps_done += u64::from(self.defers_frees);
        while self.deferred.front().is_some_and(|(step, _)| *step <= self.steps_done) {
            let blocks = self.deferred.pop_front().map(|(_, blocks)| blocks).unwrap_or_default();
            pool.release(&blocks);
        }
    }

    /// Frees the blocks of a request that ended, now or when the steps in flight are done.
    #[inline]
    pub(super) fn release(&mut self, pool: &mut BlockPool, request: &mut LiveRequest) {
        if self.pins(request) {
            self.deferred.push_back((self.steps_formed, std::mem::take(&mut request.blocks)));
        } else {
            release_blocks(pool, request);
        }
    }
}

impl VllmScheduler {
    /// Takes KV from other engines from now on (vLLM's `kv_role: kv_consumer`).
    pub fn receive_kv(&mut self) {
        self.handovers.defers_frees = self.rules.defers_frees && self.config.queue_depth() > 1;
    }

    /// Returns the requests that were put aside for KV from another engine, in queue order.
    pub fn kv_waiting(&self) -> impl Iterator<Item = Slot> {
        self.handovers.waiting.iter().copied()
    }

    /// Tells whether the release has a queue of its own for requests that hold KV.
    pub fn shows_kv_waiting(&self) -> bool {
        self.rules.kv_queue
    }

    /// Hands over the reads that the step which was formed last begins.
    pub fn take_remote_reads(&mut self) -> Vec<RemoteRead> {
        std::mem::take(&mut self.handovers.reads)
    }

    /// The KV of a request has come. Returns whether the request waited for it.
    pub fn kv_received(&mut self, id: RequestId) -> bool {
        let slot = self.handovers.waiting.iter().find(|slot| self.requests[slot.index()].id == id);
        self.handovers.received.extend(slot);
        slot.is_some()
    }

    /// The KV of a request that ended here has been read: its blocks are free. Returns its slot, if nothing refers to
    /// it any more.
    pub fn kv_sent(&mut self, id: RequestId) -> Option<Slot> {
        let at = self.handovers.kept.iter().position(|slot| self.requests[slot.index()].id == id)?;
        let slot = self.handovers.kept.remove(at);
        let request = &mut self.requests[slot.index()];
        release_blocks(&mut self.pool, request);
        request.handover = Handover::Neither;
        (request.num_in_flight == 0).then_some(slot)
    }

    /// Looks at the request at place `at` of those put aside.
    pub(super) fn admit_received(
        &mut self,
        at: usize,
        beside: Beside,
        budget: &mut Budget,
        out: &mut SchedulerOutput,
    ) -> LookedAt {
        let slot = self.handovers.waiting[at];
        let request = &mut self.requests[slot.index()];
        let block_size = self.config.block_size;
        if request.handover == Handover::Receives {
            let Some(come) = self.handovers.received.iter().position(|&other| other == slot) else {
                return LookedAt::PassedOver;
            };
            self.handovers.received.swap_remove(come);
            request.handover = Handover::Neither;
            self.handovers.num_without_room += 1;
            cache_full_blocks(&mut self.pool, request, request.num_computed, block_size);
            if request.num_computed == request.num_tokens {
                // The last token is computed again, which gives the first logits.
                request.num_computed -= 1;
            }
        }
        let computed = request.num_computed;
        let (lookahead, longest) = (self.lookahead_tokens, self.config.max_model_len);
        let reserve = |total: u32| total.saturating_add(lookahead).min(longest.max(total));
        let looked_at = self.admit_holder(slot, computed, reserve, beside, budget, out);
        if looked_at == LookedAt::Admitted {
            self.handovers.waiting.remove(at);
            self.handovers.num_without_room -= 1;
        }
        looked_at
    }

    /// Takes blocks for the whole prompt of the first waiting request, which has the hits in `self.hits`, and puts it
    /// aside until its KV is there. Returns false if it does not fit.
    pub(super) fn put_aside(&mut self, slot: Slot) -> bool {
        let request = &self.requests[slot.index()];
        let config = &self.config;
        let whole = config.blocks_for(request.num_tokens.min(config.max_model_len));
        let fresh = whole.saturating_sub(self.hits.len() as u32);
        let needed = u64::from(fresh) + self.num_revived() + self.watermark();
        let free = u64::from(self.pool.num_free());
        // What is promised is a sum over all requests, so it is asked for last.
        if needed > free || (self.rules.reserves_for_loads && needed + self.promised_blocks() > free) {
            return false;
        }
        self.hold_hits(slot, fresh);
        let request = &mut self.requests[slot.index()];
        request.num_computed = request.prompt_tokens;
        request.prefill_in_flight = true;
        self.handovers.reads.push(RemoteRead { request: request.id, num_blocks: fresh });
        self.handovers.waiting.push(slot);
        true
    }

    /// Returns the blocks that requests whose prompts are being computed or read will still take, and what the next
    /// one needs for its drafts.
    fn promised_blocks(&self) -> u64 {
        let config = &self.config;
        let drafts = match self.num_speculative_tokens {
            0 => 0,
            k => 1 + k + self.lookahead_tokens,
        };
        let all = self.running.iter().chain(&self.handovers.waiting);
        let promised = all
            .map(|slot| &self.requests[slot.index()])
            .filter(|request| request.prefill_in_flight)
            .map(|request| {
                let tokens = request.num_tokens.min(config.max_model_len) + drafts;
                u64::from(config.blocks_for(tokens).saturating_sub(request.blocks.len() as u32))
            })
            .sum::<u64>();
        promised + u64::from(config.blocks_for(drafts))
    }
}
