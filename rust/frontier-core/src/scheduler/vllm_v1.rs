//! The vLLM V1 scheduler, rules of version 0.32 (`vllm/v1/core/sched/{scheduler,async_scheduler}.py`).
//!
//! "There is no decoding phase nor prefill phase": each step gives a request
//! `num_tokens + placeholders - num_computed` tokens, clipped by budgets. `num_computed` advances when a
//! batch is scheduled, not when it is done. Speculative tokens and pipeline stages are not part of this version;
//! KV from tiers below the device is (`parking`).

mod parking;

use super::kv_loads::{KvLoads, Seek};
use super::live::{LiveRequest, Status, Submission};
use super::queue::WaitingQueue;
use super::{Admission, Scheduled, SchedulerOutput, StepOutcome};
use crate::error::SimError;
use crate::ids::{BlockId, Slot};
use crate::kvcache::{BlockHash, BlockPool};
use crate::plan::{Policy, SchedulerConfig};
use parking::Unpark;

/// State of the scheduler of one engine.
#[derive(Clone, Debug)]
pub struct VllmScheduler {
    config: SchedulerConfig,
    /// Blocks to keep free when admitting beside running requests.
    watermark_blocks: u32,
    pool: BlockPool,
    requests: Vec<LiveRequest>,
    vacant: Vec<Slot>,
    running: Vec<Slot>,
    waiting: WaitingQueue,
    /// Number of `schedule()` calls.
    calls: u64,
    /// A request finished since the last `schedule()`: vLLM then runs one more, to tell the workers.
    newly_finished: bool,
    /// Some request got further than ever before since the flag was last taken.
    progressed: bool,
    /// Scratch: the cached blocks of the request under consideration.
    hits: Vec<BlockId>,
    /// Tiers of KV below the device, if any.
    kv_loads: Option<Box<KvLoads>>,
}

/// What one step may still compute.
struct Budget {
    /// Tokens left.
    left: u32,
    /// Largest chunk of a prompt, if limited.
    chunk: Option<u32>,
}

impl Budget {
    fn clip_chunk(&self, num_tokens: u32) -> u32 {
        self.chunk.map_or(num_tokens, |limit| num_tokens.min(limit))
    }
}

impl VllmScheduler {
    /// Returns an idle scheduler.
    pub fn new(config: SchedulerConfig) -> Self {
        Self {
            watermark_blocks: (config.watermark * f64::from(config.num_blocks)) as u32,
            pool: BlockPool::new(config.num_blocks, config.enable_prefix_caching),
            requests: Vec::new(),
            vacant: Vec::new(),
            running: Vec::new(),
            waiting: WaitingQueue::new(config.policy),
            calls: 0,
            newly_finished: false,
            progressed: false,
            hits: Vec::new(),
            kv_loads: None,
            config,
        }
    }

    /// Returns the settings.
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// Returns the block pool.
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// Returns the state of a live request.
    #[inline]
    pub fn request(&self, slot: Slot) -> &LiveRequest {
        &self.requests[slot.index()]
    }

    /// Returns the running requests in order of admission.
    pub fn running(&self) -> &[Slot] {
        &self.running
    }

    /// Returns the waiting requests in queue order, those that wait for KV first.
    pub fn waiting(&self) -> impl Iterator<Item = Slot> {
        self.kv_loads.iter().flat_map(|loads| loads.parked()).chain(self.waiting.iter())
    }

    /// Returns the number of waiting requests.
    pub fn num_waiting(&self) -> usize {
        self.num_parked() + self.waiting.len()
    }

    /// Returns the number of the last `schedule()` call.
    pub fn calls(&self) -> u64 {
        self.calls
    }

    /// Tells whether there is a reason to call `schedule()`.
    #[inline]
    pub fn has_requests(&self) -> bool {
        !self.running.is_empty() || !self.waiting.is_empty() || self.newly_finished || self.num_parked() > 0
    }

    /// Tells whether some request got further than ever before since the last call of this method.
    pub fn take_progress(&mut self) -> bool {
        std::mem::take(&mut self.progressed)
    }

    /// Adds a request to the waiting queue.
    pub fn add_request(&mut self, submission: &Submission<'_>) -> Slot {
        let slot = self.vacant.pop().unwrap_or_else(|| {
            self.requests.push(LiveRequest::vacant());
            Slot::from_index(self.requests.len() - 1)
        });
        let request = &mut self.requests[slot.index()];
        request.reset(submission, self.config.block_size);
        if self.pool.caching() {
            request.rehash(self.config.block_size);
        }
        self.waiting.push(slot, &self.requests);
        if let Some(loads) = &mut self.kv_loads {
            loads.arrive(slot, self.requests[slot.index()].hasher.hashes(), submission.arrival);
        }
        slot
    }

    /// Hands back a slot reported in [`StepOutcome::retired`].
    pub fn retire(&mut self, slot: Slot) {
        debug_assert_eq!(
            self.requests[slot.index()].status,
            Status::Finished,
            "Invariant: only ended requests retire"
        );
        self.vacant.push(slot);
    }

    /// Forms the next batch into `out` (emptied first): running requests first, in order of admission, then,
    /// if nothing had to be preempted, waiting ones.
    pub fn schedule(&mut self, out: &mut SchedulerOutput) {
        out.clear();
        self.calls += 1;
        let mut budget = self.step_budget();
        self.schedule_running(&mut budget, out);
        if out.preempted.is_empty() {
            self.admit_waiting(&mut budget, out);
        }
        self.commit(out);
        self.newly_finished = false;
    }

    fn step_budget(&self) -> Budget {
        let config = &self.config;
        let num_requests = (self.running.len() + self.num_waiting()) as u32;
        // The long-prefill threshold spares others, so it does not bind a lone request.
        let mut chunk = match config.long_prefill_token_threshold {
            0 => None,
            _ if num_requests <= 1 => None,
            threshold => Some(threshold),
        };
        if config.long_prefill_token_threshold_adaptive {
            chunk = chunk.map(|threshold| threshold.max(config.max_num_batched_tokens / num_requests));
        }
        Budget { left: config.token_budget(), chunk }
    }

    /// Phase 1: every running request gets its next tokens; whoever cannot have blocks preempts others.
    fn schedule_running(&mut self, budget: &mut Budget, out: &mut SchedulerOutput) {
        let mut position = 0;
        while position < self.running.len() && budget.left > 0 {
            let slot = self.running[position];
            let request = &self.requests[slot.index()];
            let num_tokens = if end_is_certain(request) {
                0
            } else {
                let room = self.config.max_model_len.saturating_sub(request.num_computed + 1);
                budget.clip_chunk(request.num_pending()).min(budget.left).min(room)
            };
            if num_tokens == 0 {
                position += 1;
                continue;
            }
            if !self.make_room(slot, num_tokens, &mut position, budget, out) {
                break;
            }
            budget.left -= num_tokens;
            let computed_before = self.requests[slot.index()].num_computed;
            out.scheduled.push(scheduled(slot, Admission::Running, computed_before, num_tokens));
            position += 1;
        }
    }

    /// Allocates blocks for `num_tokens` more tokens of a running request, preempting until it works. Returns
    /// false if the request had to preempt itself.
    fn make_room(
        &mut self,
        slot: Slot,
        num_tokens: u32,
        position: &mut usize,
        budget: &mut Budget,
        out: &mut SchedulerOutput,
    ) -> bool {
        while !self.allocate_running(slot, num_tokens) {
            let (victim_position, victim) = self.choose_victim();
            self.running.remove(victim_position);
            if self.config.policy == Policy::Priority {
                if victim_position < *position {
                    *position -= 1;
                }
                // Already part of this very batch: its budget is free again.
                if let Some(at) = out.scheduled.iter().position(|entry| entry.slot == victim) {
                    budget.left += out.scheduled.remove(at).num_tokens;
                }
            }
            self.preempt(victim);
            out.preempted.push(victim);
            if victim == slot {
                return false;
            }
        }
        true
    }

    fn choose_victim(&self) -> (usize, Slot) {
        let last = self.running.len() - 1;
        match self.config.policy {
            Policy::Fcfs => (last, self.running[last]),
            Policy::Priority => {
                // The first of the largest by (priority, arrival).
                let rank = |at: usize| {
                    let request = &self.requests[self.running[at].index()];
                    (request.priority, request.arrival)
                };
                let at = (1..=last).fold(0, |best, at| if rank(at) > rank(best) { at } else { best });
                (at, self.running[at])
            }
        }
    }

    /// Preemption recomputes: all blocks are freed (their cached content may be found again), and output in
    /// flight becomes stale.
    fn preempt(&mut self, slot: Slot) {
        let request = &mut self.requests[slot.index()];
        let inserted = request.num_hit_blocks.max(request.private_from)..request.num_cached_blocks;
        if !inserted.is_empty() {
            let blocks = &request.blocks[inserted.start as usize..inserted.end as usize];
            request.former.push(inserted.start as usize, blocks, request.hasher.hashes(), &self.pool);
        }
        self.pool.release(&request.blocks);
        request.blocks.clear();
        request.num_cached_blocks = 0;
        request.status = Status::Preempted;
        request.num_computed = 0;
        request.num_stale = request.num_in_flight;
        request.num_placeholders = 0;
        request.num_preemptions += 1;
        self.waiting.put_back(slot, &self.requests);
    }

    /// Phase 2: admits waiting requests until the first that does not fit.
    fn admit_waiting(&mut self, budget: &mut Budget, out: &mut SchedulerOutput) {
        let max_running = self.config.max_batch_seqs() as usize;
        let mut passed_over = Vec::new();
        let mut parked = 0;
        while budget.left > 0 && self.running.len() < max_running {
            if self.parked_goes_first(parked) {
                match self.admit_loaded(parked, budget, out) {
                    Unpark::Admitted => {}
                    Unpark::Loading => parked += 1,
                    Unpark::DoesNotFit => break,
                }
                continue;
            }
            let Some(slot) = self.waiting.front() else {
                break;
            };
            let request = &self.requests[slot.index()];
            if request.num_stale > 0 {
                // Its stale output has to drain first; it keeps its place.
                self.waiting.pop_front();
                passed_over.push(slot);
                continue;
            }
            debug_assert_eq!(request.num_computed, 0, "Invariant: a waiting request has nothing computed");
            let mut computed = self.find_hits(slot);
            match self.seek_below(slot) {
                Seek::Nothing => {}
                Seek::InStep(blocks) => computed += blocks * self.config.block_size,
                Seek::Hold => {
                    self.waiting.pop_front();
                    passed_over.push(slot);
                    continue;
                }
                Seek::Park(blocks) => {
                    if !self.park(slot, blocks) {
                        break;
                    }
                    continue;
                }
            }
            let request = &self.requests[slot.index()];
            let wanted = budget.clip_chunk(request.num_tokens - computed);
            if wanted > budget.left && !self.config.enable_chunked_prefill {
                break;
            }
            let num_tokens = wanted.min(budget.left);
            if !self.allocate_admitted(slot, computed, num_tokens) {
                break;
            }
            let (device_hits, first) = (self.hits.len() as u32, request_is_new(&self.requests[slot.index()]));
            if let Some(loads) = &mut self.kv_loads {
                loads.admitted(slot, self.requests[slot.index()].hasher.hashes(), device_hits, first);
            }
            self.waiting.pop_front();
            self.start(slot, computed, num_tokens, budget, out);
        }
        for slot in passed_over.into_iter().rev() {
            self.waiting.put_back(slot, &self.requests);
        }
    }

    /// Moves a request that has its blocks to RUNNING.
    fn start(
        &mut self,
        slot: Slot,
        computed: u32,
        num_tokens: u32,
        budget: &mut Budget,
        out: &mut SchedulerOutput,
    ) {
        let request = &mut self.requests[slot.index()];
        let admission = if request_is_new(request) { Admission::New } else { Admission::Resumed };
        request.status = Status::Running;
        request.num_computed = computed;
        self.running.push(slot);
        budget.left -= num_tokens;
        out.scheduled.push(scheduled(slot, admission, computed, num_tokens));
    }

    /// Finds the longest cached prefix (left in `self.hits`) and returns its length in tokens. At least one
    /// token is always computed.
    fn find_hits(&mut self, slot: Slot) -> u32 {
        self.hits.clear();
        if !self.pool.caching() {
            return 0;
        }
        let request = &self.requests[slot.index()];
        let most = ((request.num_tokens - 1) / self.config.block_size) as usize;
        let private_from = request.private_from as usize;
        let find = |(index, &hash)| {
            if index < private_from {
                self.pool.lookup(hash)
            } else {
                request.former.find(index, hash, &self.pool)
            }
        };
        self.hits.extend(request.hasher.hashes()[..most].iter().enumerate().map_while(find));
        self.hits.len() as u32 * self.config.block_size
    }

    fn allocate_running(&mut self, slot: Slot, num_tokens: u32) -> bool {
        let request = &mut self.requests[slot.index()];
        let total = request.num_computed.min(self.config.max_model_len) + num_tokens;
        let wanted = self.config.blocks_for(total.saturating_add(self.config.num_lookahead_tokens));
        let missing = wanted.saturating_sub(request.blocks.len() as u32);
        if missing > 0 {
            if missing > self.pool.num_free() {
                return false;
            }
            self.pool.allocate(missing, &mut request.blocks);
        }
        cache_full_blocks(&mut self.pool, request, total.min(request.num_tokens), self.config.block_size);
        true
    }

    /// Allocates blocks for an admission: the hits in `self.hits` and `num_tokens` more. All present tokens
    /// must fit if `scheduler_reserve_full_isl` is set, and the watermark is kept beside running requests.
    fn allocate_admitted(&mut self, slot: Slot, computed: u32, num_tokens: u32) -> bool {
        let config = &self.config;
        let request = &mut self.requests[slot.index()];
        let watermark = if self.running.is_empty() { 0 } else { self.watermark_blocks };
        // A hit that nobody holds sits among the free blocks, so reviving it costs one.
        let revived = self.hits.iter().filter(|&&block| self.pool.is_free(block)).count() as u64;
        let held = self.hits.len() as u32;
        let fits = |tokens: u32| {
            let fresh = config.blocks_for(tokens).saturating_sub(held);
            u64::from(fresh) + revived + u64::from(watermark) <= u64::from(self.pool.num_free())
        };
        if config.scheduler_reserve_full_isl && !fits(request.num_tokens) {
            return false;
        }
        let total = computed + num_tokens;
        let reserved = total.saturating_add(config.num_lookahead_tokens);
        if !fits(reserved) {
            return false;
        }
        for &block in &self.hits {
            self.pool.touch(block);
        }
        request.blocks.extend_from_slice(&self.hits);
        request.num_cached_blocks = held;
        request.num_hit_blocks = held;
        self.pool.allocate(config.blocks_for(reserved).saturating_sub(held), &mut request.blocks);
        cache_full_blocks(&mut self.pool, request, total.min(request.num_tokens), config.block_size);
        true
    }

    /// Counters advance at schedule time, so that the next call may follow before the batch is done.
    fn commit(&mut self, out: &mut SchedulerOutput) {
        for entry in &mut out.scheduled {
            let request = &mut self.requests[entry.slot.index()];
            request.num_computed += entry.num_tokens;
            request.num_in_flight += entry.num_tokens;
            request.last_scheduled = self.calls;
            entry.recomputes = entry.computed_before < request.high_water;
            if request.num_computed > request.high_water {
                request.high_water = request.num_computed;
                self.progressed = true;
            }
            entry.samples = request.num_computed >= request.num_tokens + request.num_placeholders;
            if entry.samples && self.config.async_scheduling {
                request.num_placeholders += 1;
            }
        }
    }

    /// Processes the output of a batch: each request whose chunk reached its end gets one token, and leaves
    /// when it has as many as it asked for or as the model allows.
    pub fn update(&mut self, batch: &SchedulerOutput, outcome: &mut StepOutcome) {
        outcome.clear();
        let block_size = self.config.block_size;
        let (mut left_running, mut left_waiting) = (false, false);
        for entry in &batch.scheduled {
            let request = &mut self.requests[entry.slot.index()];
            request.num_in_flight -= entry.num_tokens;
            let stale = request.num_stale > 0;
            if stale {
                request.num_stale -= entry.num_tokens;
            }
            if request.status == Status::Finished {
                if request.num_in_flight == 0 {
                    outcome.retired.push(entry.slot);
                }
                continue;
            }
            if !entry.samples {
                continue;
            }
            request.num_tokens += 1;
            if self.pool.caching() {
                request.rehash(block_size);
            }
            outcome.emitted.push(entry.slot);
            if self.config.async_scheduling {
                if !stale {
                    request.num_placeholders -= 1;
                }
                if request.status == Status::Running {
                    let known = request.num_computed - request.num_placeholders;
                    cache_full_blocks(&mut self.pool, request, known, block_size);
                }
            }
            if request.num_tokens >= self.config.max_model_len
                || request.num_output_tokens() >= request.max_tokens
            {
                match request.status {
                    Status::Running => left_running = true,
                    // Output that was in flight when the request was preempted can still finish it.
                    Status::Preempted | Status::Waiting | Status::Finished => left_waiting = true,
                }
                request.status = Status::Finished;
                self.pool.release(&request.blocks);
                request.blocks.clear();
                self.newly_finished = true;
                outcome.finished.push(entry.slot);
                if request.num_in_flight == 0 {
                    outcome.retired.push(entry.slot);
                }
            }
        }
        let requests = &self.requests;
        let goes_on = |slot: &Slot| requests[slot.index()].status != Status::Finished;
        if left_running {
            self.running.retain(goes_on);
        }
        if left_waiting {
            self.waiting.retain(goes_on);
        }
    }

    /// Returns the leading blocks of `hashes` that this engine has cached.
    pub fn cached_prefix(&self, hashes: &[BlockHash]) -> usize {
        self.pool.cached_prefix(hashes)
    }

    /// Checks that blocks and queues are conserved. O(blocks + requests).
    ///
    /// # Errors
    /// [`SimError::Invariant`] naming the first law that does not hold.
    pub fn check_integrity(&self) -> Result<(), SimError> {
        let held = self.requests.iter().map(|request| request.blocks.len() as u64).sum();
        self.pool.check_integrity(held)?;
        if let Some(loads) = &self.kv_loads {
            loads.check_integrity()?;
        }
        let wrong =
            |slot: &Slot, expected: &[Status]| !expected.contains(&self.requests[slot.index()].status);
        if let Some(slot) = self.running.iter().find(|slot| wrong(slot, &[Status::Running])) {
            return Err(SimError::Invariant {
                what: format!("slot {} is in RUNNING but does not run", slot.0),
            });
        }
        if let Some(slot) =
            self.waiting.iter().find(|slot| wrong(slot, &[Status::Waiting, Status::Preempted]))
        {
            return Err(SimError::Invariant {
                what: format!("slot {} is in WAITING but does not wait", slot.0),
            });
        }
        Ok(())
    }
}

fn request_is_new(request: &LiveRequest) -> bool {
    request.num_preemptions == 0
}

fn scheduled(slot: Slot, admission: Admission, computed_before: u32, num_tokens: u32) -> Scheduled {
    Scheduled { slot, admission, computed_before, num_tokens, samples: false, recomputes: false }
}

/// With output in flight, tells whether that output is the request's last: then there is nothing to add.
fn end_is_certain(request: &LiveRequest) -> bool {
    request.num_placeholders > 0
        && request.num_computed + 2 - request.num_placeholders >= request.prompt_tokens + request.max_tokens
}

/// Enters the full blocks among the first `num_tokens` tokens into the cache index. A block can be hit from
/// the moment it is allocated, even while it is being computed.
#[inline]
fn cache_full_blocks(pool: &mut BlockPool, request: &mut LiveRequest, num_tokens: u32, block_size: u32) {
    if !pool.caching() {
        return;
    }
    // A prompt beyond `max_model_len` (only replays admit one) has fewer blocks than tokens would fill.
    let full = (num_tokens / block_size).min(request.blocks.len() as u32);
    while request.num_cached_blocks < full {
        let index = request.num_cached_blocks as usize;
        let (block, hash) = (request.blocks[index], request.hasher.hashes()[index]);
        if request.num_cached_blocks < request.private_from {
            pool.insert_cached(block, hash);
        } else {
            pool.insert_private(block, hash);
        }
        request.num_cached_blocks += 1;
    }
}
