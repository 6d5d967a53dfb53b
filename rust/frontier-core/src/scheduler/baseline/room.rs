//! What all baseline schedulers share: live requests, their blocks, the waiting queue and the running list.

use crate::error::SimError;
use crate::ids::{BlockId, RequestId, Slot};
use crate::kvcache::BlockPool;
use crate::plan::baseline::BaselineSpec;
use crate::scheduler::live::{LiveRequest, Status, Submission};
use crate::scheduler::policy::order;
use crate::scheduler::queue::WaitingQueue;
use crate::scheduler::{Admission, Emission, Gauges, Member, SchedulerOutput, StepOutcome};
use crate::time::SimTime;

/// Requests, blocks and queues of one engine.
#[derive(Clone, Debug)]
pub(super) struct Room {
    block_size: u32,
    max_model_len: u32,
    pub(super) pool: BlockPool,
    requests: Vec<LiveRequest>,
    vacant: Vec<Slot>,
    /// Per slot: the request has all but its last token computed and gets one in each step.
    generating: Vec<bool>,
    /// Running requests in the policy's order.
    running: Vec<Slot>,
    pub(super) waiting: WaitingQueue,
    now: SimTime,
    calls: u64,
    progressed: bool,
    /// Scratch: cached blocks of the request under consideration.
    hits: Vec<BlockId>,
}

impl Room {
    pub(super) fn new(spec: &BaselineSpec, reuse: bool) -> Self {
        Self {
            block_size: spec.block_size,
            max_model_len: spec.max_model_len,
            // The pool keeps block 0 to itself.
            pool: BlockPool::new(spec.num_blocks.saturating_add(1), reuse),
            requests: Vec::new(),
            vacant: Vec::new(),
            generating: Vec::new(),
            running: Vec::new(),
            waiting: WaitingQueue::new(&spec.policy),
            now: SimTime::ZERO,
            calls: 0,
            progressed: false,
            hits: Vec::new(),
        }
    }

    pub(super) fn block_size(&self) -> u32 {
        self.block_size
    }

    pub(super) fn blocks_for(&self, tokens: u32) -> u32 {
        tokens.div_ceil(self.block_size)
    }

    #[inline]
    pub(super) fn request(&self, slot: Slot) -> &LiveRequest {
        &self.requests[slot.index()]
    }

    pub(super) fn running(&self) -> &[Slot] {
        &self.running
    }

    pub(super) fn num_running(&self) -> u32 {
        self.running.len() as u32
    }

    pub(super) fn add(&mut self, submission: &Submission<'_>) {
        let slot = self.vacant.pop().unwrap_or_else(|| {
            self.requests.push(LiveRequest::vacant());
            self.generating.push(false);
            Slot::from_index(self.requests.len() - 1)
        });
        self.generating[slot.index()] = false;
        let request = &mut self.requests[slot.index()];
        request.reset(submission, self.block_size);
        if self.pool.caching() {
            request.rehash(self.block_size);
        }
        self.waiting.push(slot, &mut self.requests);
    }

    /// Starts a batch: empties it, and brings both queues into the policy's order of this moment.
    pub(super) fn begin(&mut self, now: SimTime, out: &mut SchedulerOutput) {
        out.clear();
        self.calls += 1;
        self.now = now;
        self.waiting.refresh(now, &mut self.requests, &self.running);
        let requests = &self.requests;
        let in_order = |one: &Slot, other: &Slot| order(&requests[one.index()], &requests[other.index()]);
        if !self.running.is_sorted_by(|one, other| in_order(one, other).is_le()) {
            self.running.sort_by(in_order);
        }
    }

    /// Makes a waiting request run, with blocks for `reserved` tokens of which `cached` are there already (see
    /// [`Self::find_hits`]). The caller has made sure that there are enough.
    pub(super) fn admit(&mut self, slot: Slot, cached: u32, reserved: u32) {
        self.waiting.take(slot);
        if cached == 0 {
            self.hits.clear();
        }
        let request = &mut self.requests[slot.index()];
        request.status = Status::Running;
        request.num_computed = cached;
        for &block in &self.hits {
            self.pool.touch(block);
        }
        request.blocks.extend_from_slice(&self.hits);
        request.num_cached_blocks = self.hits.len() as u32;
        request.num_hit_blocks = request.num_cached_blocks;
        self.hits.clear();
        let missing = reserved.div_ceil(self.block_size).saturating_sub(request.blocks.len() as u32);
        self.pool.allocate(missing, &mut request.blocks);
        self.running.push(slot);
        self.waiting.admitted(slot, self.now, &mut self.requests);
    }

    /// Tells whether a request runs.
    #[inline]
    pub(super) fn runs(&self, slot: Slot) -> bool {
        self.requests[slot.index()].status == Status::Running
    }

    /// Tells whether a running request gets one token per step by now.
    #[inline]
    pub(super) fn generates(&self, slot: Slot) -> bool {
        self.generating[slot.index()]
    }

    /// Tells whether a running request is in a batch whose output is not there yet.
    #[inline]
    pub(super) fn is_under_way(&self, slot: Slot) -> bool {
        self.requests[slot.index()].num_in_flight > 0
    }

    /// Returns the last running request from `position` on that no batch under way carries.
    pub(super) fn last_within_reach(&self, position: usize) -> Option<Slot> {
        self.running[position..].iter().rev().copied().find(|&slot| !self.is_under_way(slot))
    }

    /// Puts `num_tokens` tokens of a running request into the batch.
    pub(super) fn schedule(&self, slot: Slot, num_tokens: u32, out: &mut SchedulerOutput) {
        let request = &self.requests[slot.index()];
        let admission = if request.last_scheduled > 0 {
            Admission::Running
        } else if request.num_preemptions > 0 {
            Admission::Resumed
        } else {
            Admission::New
        };
        out.scheduled.push(request.scheduled(slot, admission, num_tokens));
    }

    /// Returns the blocks that a running request lacks for `tokens` tokens.
    pub(super) fn missing(&self, slot: Slot, tokens: u32) -> u32 {
        self.blocks_for(tokens).saturating_sub(self.request(slot).blocks.len() as u32)
    }

    /// Gives a running request the blocks for `tokens` tokens, which must be free.
    pub(super) fn grow(&mut self, slot: Slot, tokens: u32) {
        let missing = self.missing(slot, tokens);
        if missing > 0 {
            self.pool.allocate(missing, &mut self.requests[slot.index()].blocks);
        }
    }

    /// Takes a running request out of RUNNING; it goes back to the waiting queue and loses its blocks.
    pub(super) fn preempt(&mut self, slot: Slot, out: &mut SchedulerOutput) {
        self.running.retain(|other| *other != slot);
        let request = &mut self.requests[slot.index()];
        self.pool.release(&request.blocks);
        request.blocks.clear();
        request.num_cached_blocks = 0;
        request.status = Status::Preempted;
        request.num_computed = 0;
        request.last_scheduled = 0;
        request.num_preemptions += 1;
        self.generating[slot.index()] = false;
        out.preempted.push(Member { slot, id: request.id });
        self.waiting.put_back(slot, &self.requests);
    }

    /// Finds the longest cached prefix of a waiting request (kept for [`Self::admit`]) and returns its length in
    /// tokens, and the blocks that reviving it takes from the free ones. At least one token is always computed.
    pub(super) fn find_hits(&mut self, slot: Slot) -> (u32, u32) {
        self.hits.clear();
        if !self.pool.caching() {
            return (0, 0);
        }
        let request = &self.requests[slot.index()];
        let most = ((request.num_tokens - 1) / self.block_size).min(request.private_from) as usize;
        let hashes = &request.hasher.hashes()[..most];
        self.hits.extend(hashes.iter().map_while(|&hash| self.pool.lookup(hash)));
        let revived = self.hits.iter().filter(|&&block| self.pool.is_free(block)).count() as u32;
        (self.hits.len() as u32 * self.block_size, revived)
    }

    /// Closes a batch: counters advance, so that it counts as computed.
    pub(super) fn commit(&mut self, out: &mut SchedulerOutput) {
        for entry in &mut out.scheduled {
            let request = &mut self.requests[entry.slot.index()];
            request.num_computed = entry.computed_before + entry.num_tokens;
            request.last_scheduled = self.calls;
            request.num_in_flight = entry.num_tokens;
            self.waiting.served(request, entry.computed_before, entry.num_tokens, self.now);
            entry.recomputes = entry.computed_before < request.high_water;
            if request.num_computed > request.high_water {
                request.high_water = request.num_computed;
                self.progressed = true;
            }
            entry.samples = request.num_computed >= request.num_tokens;
        }
    }

    /// Gives each request whose chunk reached its end a token. Complete ones leave and free their blocks.
    pub(super) fn update(&mut self, batch: &SchedulerOutput, outcome: &mut StepOutcome) {
        let ended = self.emit(batch, outcome);
        if ended {
            for entry in &batch.scheduled {
                if self.request(entry.slot).status == Status::Finished {
                    self.free(entry.slot);
                    outcome.retired.push(entry.slot);
                }
            }
            let requests = &self.requests;
            self.running.retain(|slot| requests[slot.index()].status != Status::Finished);
        }
    }

    /// Gives each request whose chunk reached its end a token, and marks complete ones, which keep their blocks.
    /// Returns whether there are any.
    pub(super) fn emit(&mut self, batch: &SchedulerOutput, outcome: &mut StepOutcome) -> bool {
        outcome.clear();
        for entry in &batch.scheduled {
            let request = &mut self.requests[entry.slot.index()];
            request.num_in_flight = 0;
            if entry.samples {
                request.num_tokens += 1;
                self.generating[entry.slot.index()] = true;
                if self.pool.caching() {
                    request.rehash(self.block_size);
                }
                outcome.emitted.push(Emission {
                    id: request.id,
                    num_tokens: 1,
                    num_drafts: 0,
                    num_accepted: 0,
                    hands_over: false,
                });
            }
            let complete =
                request.num_tokens >= self.max_model_len || request.num_output_tokens() >= request.max_tokens;
            if self.pool.caching() && !request.prompt_is_unfinished() {
                let known = if complete { request.num_computed } else { request.prompt_tokens };
                let full = (known / self.block_size).min(request.private_from);
                while request.num_cached_blocks < full {
                    let index = request.num_cached_blocks as usize;
                    self.pool.insert_cached(request.blocks[index], request.hasher.hashes()[index]);
                    request.num_cached_blocks += 1;
                }
            }
            if entry.samples && complete {
                request.status = Status::Finished;
                outcome.finished.push(request.id);
            }
        }
        !outcome.finished.is_empty()
    }

    /// Frees the blocks of a request that is over.
    pub(super) fn free(&mut self, slot: Slot) {
        let request = &mut self.requests[slot.index()];
        self.pool.release(&request.blocks);
        request.blocks.clear();
    }

    /// Takes requests that are over out of RUNNING.
    pub(super) fn drop_finished(&mut self) {
        let requests = &self.requests;
        self.running.retain(|slot| requests[slot.index()].status != Status::Finished);
    }

    pub(super) fn retire(&mut self, slot: Slot) {
        debug_assert_eq!(
            self.request(slot).status,
            Status::Finished,
            "Invariant: only ended requests retire"
        );
        self.vacant.push(slot);
    }

    pub(super) fn has_requests(&self) -> bool {
        !self.running.is_empty() || !self.waiting.is_empty()
    }

    pub(super) fn take_progress(&mut self) -> bool {
        std::mem::take(&mut self.progressed)
    }

    pub(super) fn gauges(&self) -> Gauges {
        Gauges {
            num_running: self.running.len() as u32,
            num_waiting: self.waiting.len() as u32,
            num_usable: self.pool.num_usable(),
            num_free: self.pool.num_free(),
        }
    }

    pub(super) fn visit_left_out(&self, visit: &mut dyn FnMut(RequestId, bool)) {
        for &slot in &self.running {
            let request = self.request(slot);
            // One that holds blocks and was never in a batch still queues.
            let under_way = request.num_in_flight > 0;
            if request.last_scheduled > 0 && !request.was_scheduled_in(self.calls) && !under_way {
                visit(request.id, request.prompt_is_unfinished());
            }
        }
    }

    pub(super) fn visit_preempted(&self, visit: &mut dyn FnMut(RequestId, u32)) {
        for slot in self.running.iter().copied().chain(self.waiting.iter()) {
            let request = self.request(slot);
            if request.num_preemptions > 0 {
                visit(request.id, request.num_preemptions);
            }
        }
    }

    pub(super) fn check_integrity(&self) -> Result<(), SimError> {
        let held = self.requests.iter().map(|request| request.blocks.len() as u64).sum();
        self.pool.check_integrity(held)?;
        let broken = |what: String| Err(SimError::Invariant { what });
        for &slot in &self.running {
            let request = self.request(slot);
            if request.status != Status::Running {
                return broken(format!("slot {} is in RUNNING but does not run", slot.0));
            }
            if self.blocks_for(request.num_computed) > request.blocks.len() as u32 {
                return broken(format!("request {} computed more than its blocks hold", request.id.0));
            }
        }
        for slot in self.waiting.iter() {
            let request = self.request(slot);
            if !matches!(request.status, Status::Waiting | Status::Preempted) || !request.blocks.is_empty() {
                return broken(format!("slot {} is in WAITING but does not wait", slot.0));
            }
        }
        let live = self.requests.len() - self.vacant.len();
        let listed = self.running.len() + self.waiting.len();
        let over = self.requests.iter().filter(|request| request.status == Status::Finished).count();
        if listed + over < live {
            return broken(format!("{live} requests are live, {listed} are in a queue"));
        }
        Ok(())
    }
}
