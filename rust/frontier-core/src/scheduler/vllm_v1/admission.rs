//! Phase 2 of a step: waiting requests, until the first that does not fit.

use super::budget::Budget;
use super::caching::cache_full_blocks;
use super::{VllmScheduler, request_is_new};
use crate::ids::Slot;
use crate::scheduler::kv_loads::Seek;
use crate::scheduler::live::{Handover, Status};
use crate::scheduler::{Admission, SchedulerOutput};
use crate::time::SimTime;

/// What phase 2 does with the request at the head of the queue.
enum Chunk {
    /// Compute this many tokens, of which so many are paddings for drafts.
    Tokens { num_tokens: u32, num_drafts: u32 },
    /// Nothing more is admitted in this step.
    Stop,
    /// The request is passed over.
    PassOver,
}

/// What became of a request that was put aside, when it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LookedAt {
    /// It runs.
    Admitted,
    /// It keeps its place, since its KV is not there yet or its chunk may not be cut; the next one may be looked at.
    PassedOver,
    /// Nothing more is admitted in this step.
    DoesNotFit,
}

/// What an admission of this step finds beside it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Beside {
    /// Phase 1 scheduled a part of a prompt.
    prompt_continues: bool,
    /// Phase 1 scheduled anything.
    running: bool,
}

impl VllmScheduler {
    /// Admits waiting requests. `prompt_continues`: phase 1 scheduled a part of a prompt.
    pub(super) fn admit_waiting(
        &mut self,
        now: SimTime,
        prompt_continues: bool,
        budget: &mut Budget,
        out: &mut SchedulerOutput,
    ) {
        // Padding keeps batches of decodes uniform, so it needs one: running requests without a prompt among them.
        let beside = Beside { prompt_continues, running: !out.scheduled.is_empty() };
        let mut passed_over: Vec<Slot> = Vec::new();
        let mut still_loading = 0;
        // Those put aside in this very step are not looked at.
        let (mut at, mut to_look_at) = (0, self.handovers.num_to_look_at());
        while budget.room() > 0 && self.running.len() < self.max_running {
            if at < to_look_at {
                match self.admit_received(at, beside, budget, out) {
                    LookedAt::Admitted => to_look_at -= 1,
                    LookedAt::PassedOver => at += 1,
                    LookedAt::DoesNotFit => break,
                }
                continue;
            }
            if self.parked_goes_first(still_loading) {
                match self.admit_loaded(still_loading, beside, budget, out) {
                    LookedAt::Admitted => {}
                    LookedAt::PassedOver => still_loading += 1,
                    LookedAt::DoesNotFit => break,
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
            match self.requests[slot.index()].handover {
                Handover::Receives => {
                    if !self.put_aside(slot) {
                        break;
                    }
                    self.waiting.pop_front();
                    continue;
                }
                // The last token is computed again, which gives the first logits.
                Handover::Buffered => computed = self.requests[slot.index()].prompt_tokens - 1,
                Handover::Neither | Handover::Keeps => {}
            }
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
            let pads = self.pads_chunk(computed, beside);
            let (num_tokens, num_drafts) = match self.first_chunk(slot, computed, pads, budget) {
                Chunk::Tokens { num_tokens, num_drafts } => (num_tokens, num_drafts),
                Chunk::Stop => break,
                Chunk::PassOver => {
                    self.waiting.pop_front();
                    passed_over.insert(0, slot);
                    continue;
                }
            };
            if !self.allocate_admitted(slot, computed, num_tokens) {
                break;
            }
            self.book_admission(slot);
            self.waiting.pop_front();
            self.start(slot, computed, (num_tokens, num_drafts), budget, out);
            self.waiting.admitted(slot, now, &mut self.requests);
        }
        self.handovers.sort(&self.waiting, &self.requests);
        for slot in passed_over.into_iter().rev() {
            self.waiting.put_back_unserved(slot, &self.requests);
        }
    }

    /// Admits a request that was put aside and holds the blocks of its first `computed` tokens, if there is room for more:
    /// `reserve` says for how many tokens in all, given those that are there after this step.
    pub(super) fn admit_holder(
        &mut self,
        slot: Slot,
        computed: u32,
        reserve: impl Fn(u32) -> u32,
        beside: Beside,
        budget: &mut Budget,
        out: &mut SchedulerOutput,
    ) -> LookedAt {
        let pads = self.pads_chunk(computed, beside);
        let (num_tokens, num_drafts) = match self.first_chunk(slot, computed, pads, budget) {
            Chunk::Tokens { num_tokens, num_drafts } => (num_tokens, num_drafts),
            Chunk::Stop => return LookedAt::DoesNotFit,
            Chunk::PassOver => return LookedAt::PassedOver,
        };
        let watermark = self.watermark();
        let request = &mut self.requests[slot.index()];
        let total = computed + num_tokens;
        let fresh = self.config.blocks_for(reserve(total)).saturating_sub(request.blocks.len() as u32);
        if u64::from(fresh) + watermark > u64::from(self.pool.num_free()) {
            return LookedAt::DoesNotFit;
        }
        self.pool.allocate(fresh, &mut request.blocks);
        cache_full_blocks(&mut self.pool, request, total.min(request.num_tokens), self.config.block_size);
        self.start(slot, computed, (num_tokens, num_drafts), budget, out);
        LookedAt::Admitted
    }

    /// Moves a request that has its blocks to RUNNING. `chunk`: its tokens, and how many of them stand for drafts.
    fn start(
        &mut self,
        slot: Slot,
        computed: u32,
        (num_tokens, num_drafts): (u32, u32),
        budget: &mut Budget,
        out: &mut SchedulerOutput,
    ) {
        let request = &mut self.requests[slot.index()];
        let admission = if request_is_new(request) { Admission::New } else { Admission::Resumed };
        request.status = Status::Running;
        request.num_computed = computed;
        if request.handover == Handover::Buffered {
            request.handover = Handover::Neither;
        }
        request.prefill_in_flight |= computed + num_tokens < request.num_tokens;
        self.running.push(slot);
        budget.take(num_tokens);
        let mut scheduled = request.scheduled(slot, admission, num_tokens);
        scheduled.num_drafts = num_drafts;
        out.scheduled.push(scheduled);
    }

    /// Tells whether a request with `computed` cached tokens and one to compute is padded to a whole verification.
    fn pads_chunk(&self, computed: u32, beside: Beside) -> bool {
        self.pads_admissions
            && !beside.prompt_continues
            && (beside.running || (computed > 0 && self.rules.pads_alone))
    }

    /// Decides how much of a request with `computed` cached tokens is computed first.
    fn first_chunk(&self, slot: Slot, computed: u32, pads: bool, budget: &Budget) -> Chunk {
        let room = budget.room();
        let mut wanted = self.requests[slot.index()].num_tokens - computed;
        let mut num_drafts = 0;
        let most = self.num_speculative_tokens;
        if pads && wanted == 1 && computed.saturating_add(most + 2) <= self.config.max_model_len {
            if 1 + most > room {
                return Chunk::Stop;
            }
            (wanted, num_drafts) = (1 + most, most);
        }
        wanted = budget.clip_chunk(wanted);
        if wanted > room && !self.config.enable_chunked_prefill {
            return if self.rules.stop_at_unchunked { Chunk::Stop } else { Chunk::PassOver };
        }
        Chunk::Tokens { num_tokens: wanted.min(room), num_drafts }
    }
}
