//! The vLLM V1 scheduler, versions 0.11 to 0.32 (`vllm/v1/core/sched/{scheduler,async_scheduler}.py`); which rules
//! a version has: [`Rules`].
//!
//! "There is no decoding phase nor prefill phase": each step gives a request
//! `num_tokens + drafts + placeholders - num_computed` tokens, clipped by budgets. `num_computed` advances when a
//! batch is scheduled, not when it is done; rejected drafts take it back. KV from tiers below
//! the device: `parking`.

mod abort;
mod admission;
mod budget;
mod caching;
mod handover;
mod kv_groups;
mod output;
mod parking;
mod running;

use budget::Budget;
use handover::Handovers;
pub use handover::RemoteRead;
pub(super) use kv_groups::GroupTable;
use kv_groups::KvGroups;

use super::kv_loads::KvLoads;
use super::live::{LiveRequest, Status, Submission};
use super::queue::WaitingQueue;
use super::{BatchScheduler, Gauges, Scheduled, SchedulerOutput, StepOutcome};
use crate::error::SimError;
use crate::ids::{BlockId, RequestId, Slot};
use crate::kvcache::{BlockHash, BlockPool};
use crate::plan::{Rules, SchedulerConfig};
use crate::speculation::Speculation;
use crate::time::SimTime;
use crate::workload::Segment;

/// State of the scheduler of one engine.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "settings resolved once, read in every step")]
pub struct VllmScheduler {
    config: SchedulerConfig,
    rules: Rules,
    /// Blocks to keep free when admitting beside running requests.
    watermark_blocks: u32,
    /// Most requests in RUNNING.
    max_running: usize,
    /// All present tokens of a request must fit when it is admitted.
    reserve_full_isl: bool,
    speculation: Option<Speculation>,
    /// Drafts per request and step, at most; 0 without speculative decoding.
    num_speculative_tokens: u32,
    /// Tokens for which running requests reserve blocks beyond those scheduled, and admitted ones.
    lookahead_tokens: u32,
    admission_lookahead_tokens: u32,
    draft_slots: u32,
    /// The last block of a prefix hit is computed again.
    drops_last_hit: bool,
    pads_admissions: bool,
    /// Steps of one request are kept as many calls apart as there are stages.
    spaces_steps: bool,
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
    /// Prompts wait for their turn while others decode.
    throttled: bool,
    /// The last batch in which prompts had their turn used up its tokens, so that they need another.
    turn_was_full: bool,
    /// Scratch: the cached blocks of the request under consideration.
    hits: Vec<BlockId>,
    /// Groups of layers that keep different parts of the context, if any.
    groups: Option<KvGroups>,
    /// Tiers of KV below the device, if any.
    kv_loads: Option<Box<KvLoads>>,
    /// Requests that come from other engines, or stay for them.
    handovers: Handovers,
}

impl VllmScheduler {
    /// Returns an idle scheduler.
    pub fn new(config: SchedulerConfig) -> Self {
        let rules = config.rules();
        let caching = config.enable_prefix_caching;
        let pool = BlockPool::new(config.num_blocks, caching);
        let lookahead_tokens = config.num_lookahead_tokens();
        let speculation = config.speculative.as_ref().map(Speculation::new);
        let watermark = if rules.watermark { config.watermark } else { 0.0 };
        Self {
            rules,
            watermark_blocks: (watermark * f64::from(config.num_blocks)) as u32,
            max_running: config.max_batch_seqs() as usize,
            reserve_full_isl: config.scheduler_reserve_full_isl && rules.reserve_full_isl,
            num_speculative_tokens: config.num_speculative_tokens(),
            lookahead_tokens,
            admission_lookahead_tokens: if rules.lookahead_at_admission { lookahead_tokens } else { 0 },
            draft_slots: config.draft_slots(),
            drops_last_hit: config.speculative.as_ref().is_some_and(|spec| spec.method.is_eagle()),
            pads_admissions: speculation.is_some() && rules.pads_admissions,
            spaces_steps: config.spaces_steps(),
            speculation,
            pool: if rules.reuses_unhashed_first(caching) { pool } else { pool.appending_all() },
            requests: Vec::new(),
            vacant: Vec::new(),
            running: Vec::new(),
            waiting: WaitingQueue::new(&config.policy),
            calls: 0,
            newly_finished: false,
            progressed: false,
            throttled: false,
            turn_was_full: false,
            hits: Vec::new(),
            groups: KvGroups::of(&config),
            kv_loads: None,
            handovers: Handovers::default(),
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
        self.parked().chain(self.waiting.iter())
    }

    /// Returns the number of waiting requests.
    #[inline]
    fn num_waiting(&self) -> usize {
        self.num_parked() + self.handovers.num_waiting() + self.waiting.len()
    }
}

impl BatchScheduler for VllmScheduler {
    fn throttle_prefills(&mut self, throttle: bool) {
        self.throttled = throttle;
    }

    /// Tells whether there is a reason to call `schedule()`.
    #[inline]
    fn has_requests(&self) -> bool {
        !self.running.is_empty()
            || !self.waiting.is_empty()
            || self.newly_finished
            || self.num_parked() > 0
            || self.handovers.any()
    }

    /// Tells whether some request got further than ever before since the last call of this method.
    fn take_progress(&mut self) -> bool {
        std::mem::take(&mut self.progressed)
    }

    /// Adds a request to the waiting queue.
    fn add_request(&mut self, submission: &Submission<'_>) {
        let slot = self.vacant.pop().unwrap_or_else(|| {
            self.requests.push(LiveRequest::vacant());
            Slot::from_index(self.requests.len() - 1)
        });
        let request = &mut self.requests[slot.index()];
        request.reset(submission, self.config.block_size);
        if self.pool.caching() {
            request.rehash(self.config.block_size);
        }
        self.waiting.push(slot, &mut self.requests);
        if let Some(loads) = &mut self.kv_loads {
            loads.arrive(slot, self.requests[slot.index()].hasher.hashes());
        }
    }

    /// Hands back a slot reported in [`StepOutcome::retired`].
    fn retire(&mut self, slot: Slot) {
        debug_assert_eq!(
            self.requests[slot.index()].status,
            Status::Finished,
            "Invariant: only ended requests retire"
        );
        self.vacant.push(slot);
    }

    /// Forms the next batch into `out` (emptied first): running requests first, in order of admission, then,
    /// if nothing had to be preempted, waiting ones.
    fn schedule(&mut self, now: SimTime, out: &mut SchedulerOutput) {
        out.clear();
        self.calls += 1;
        self.waiting.refresh(now, &mut self.requests, &self.running);
        if self.waiting.is_preemptive() {
            self.make_way(out);
        }
        let displaced = out.preempted.len();
        let num_requests = (self.running.len() + self.num_waiting()) as u32;
        let mut budget = Budget::new(&self.config, &self.rules, self.draft_slots, num_requests);
        let defer_prefills = self.defers_prefills();
        let prompt_continues = self.schedule_running(defer_prefills, &mut budget, out);
        if out.preempted.len() == displaced && !defer_prefills {
            self.admit_waiting(now, prompt_continues, &mut budget, out);
        }
        if !defer_prefills {
            self.turn_was_full = budget.room() == 0;
        }
        self.commit(now, out);
        self.newly_finished = false;
    }

    fn update(&mut self, now: SimTime, batch: &SchedulerOutput, outcome: &mut StepOutcome) {
        self.take_output(now, batch, outcome);
    }

    #[inline]
    fn gauges(&self) -> Gauges {
        Gauges {
            num_running: self.running.len() as u32,
            num_waiting: self.num_waiting() as u32,
            num_usable: self.pool.num_usable(),
            num_free: self.pool.num_free(),
        }
    }

    fn caching(&self) -> bool {
        self.pool.caching()
    }

    fn cached_prefix(&self, _segments: &[Segment], hashes: &[BlockHash]) -> u32 {
        let blocks = match &self.groups {
            None => self.pool.cached_prefix(hashes),
            Some(groups) => groups.cached_prefix(hashes, &self.pool, self.config.block_size),
        };
        blocks as u32 * self.config.block_size
    }

    fn visit_left_out(&self, visit: &mut dyn FnMut(RequestId, bool)) {
        for &slot in &self.running {
            let request = &self.requests[slot.index()];
            // In a pipeline, a request is not left out of a batch while another one that carries it is under way.
            let under_way = self.config.pipeline_parallel_size > 1 && request.num_in_flight > 0;
            if !request.was_scheduled_in(self.calls) && !under_way {
                visit(request.id, request.prompt_is_unfinished());
            }
        }
    }

    fn is_in_flight_elsewhere(&self, entry: &Scheduled) -> bool {
        self.requests[entry.slot.index()].num_in_flight > entry.num_tokens
    }

    fn visit_preempted(&self, visit: &mut dyn FnMut(RequestId, u32)) {
        for slot in self.running.iter().copied().chain(self.waiting()) {
            let request = &self.requests[slot.index()];
            if request.num_preemptions > 0 {
                visit(request.id, request.num_preemptions);
            }
        }
    }

    fn visit_waiting(&self, visit: &mut dyn FnMut(RequestId)) {
        self.kv_waiting().chain(self.waiting()).for_each(|slot| visit(self.requests[slot.index()].id));
    }

    /// Checks that blocks and queues are conserved. O(blocks + requests).
    ///
    /// # Errors
    /// [`SimError::Invariant`] naming the first law that does not hold.
    fn check_integrity(&self) -> Result<(), SimError> {
        let in_groups = |request: &LiveRequest| request.tables.iter().map(GroupTable::num_held).sum::<u64>();
        let held: u64 =
            self.requests.iter().map(|request| request.blocks.len() as u64 + in_groups(request)).sum();
        self.pool.check_integrity(held + self.handovers.num_deferred())?;
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
        if let Some(slot) = self
            .kv_waiting()
            .chain(self.waiting())
            .find(|slot| wrong(slot, &[Status::Waiting, Status::Preempted]))
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
