//! Phase 1 of a step: running requests, in order of admission.

use super::VllmScheduler;
use super::budget::Budget;
use super::caching::release_blocks;
use crate::ids::Slot;
use crate::scheduler::live::{LiveRequest, Status};
use crate::scheduler::{Admission, Member, SchedulerOutput};

impl VllmScheduler {
    /// Tells whether prompts wait: it is not their turn, their last one was not cut short, and others decode
    /// meanwhile.
    pub(super) fn defers_prefills(&self) -> bool {
        let decodes = |slot: &Slot| !self.requests[slot.index()].prompt_is_unfinished();
        self.throttled && !self.turn_was_full && self.running.iter().any(decodes)
    }

    /// Gives every running request (but prompts, where `defer_prefills` says so) its next tokens; whoever cannot have blocks preempts others. Returns whether a
    /// prompt continues in this step.
    #[inline]
    pub(super) fn schedule_running(
        &mut self,
        defer_prefills: bool,
        budget: &mut Budget,
        out: &mut SchedulerOutput,
    ) -> bool {
        let mut position = 0;
        let mut prompt_continues = false;
        let speculates = self.num_speculative_tokens > 0;
        while position < self.running.len() && budget.room() > 0 {
            let slot = self.running[position];
            let request = &self.requests[slot.index()];
            let deferred = defer_prefills && request.prompt_is_unfinished();
            let spaced = self.spaces_steps && self.calls < request.rare.next_eligible;
            let drafts = if speculates { request.rare.num_drafts } else { 0 };
            let num_tokens = if deferred || spaced || end_is_certain(request) {
                0
            } else {
                let room = self.config.max_model_len.saturating_sub(request.num_computed + 1);
                budget.clip_chunk(request.num_pending(drafts)).min(budget.room()).min(room)
            };
            if num_tokens == 0 {
                position += 1;
                continue;
            }
            if !self.make_room(slot, num_tokens, &mut position, budget, out) {
                break;
            }
            budget.take(num_tokens);
            let request = &mut self.requests[slot.index()];
            prompt_continues |= request.in_chunk;
            let mut scheduled = request.scheduled(slot, Admission::Running, num_tokens);
            if drafts > 0 {
                scheduled.num_drafts = request.take_drafts(num_tokens);
            }
            out.scheduled.push(scheduled);
            position += 1;
        }
        prompt_continues
    }

    /// Allocates blocks for `num_tokens` more tokens of a running request, preempting until it works. Returns
    /// false if the request had to preempt itself.
    #[inline]
    fn make_room(
        &mut self,
        slot: Slot,
        num_tokens: u32,
        position: &mut usize,
        budget: &mut Budget,
        out: &mut SchedulerOutput,
    ) -> bool {
        while !self.allocate_running(slot, num_tokens) {
            let victim_position = self.waiting.choose_victim(&self.running, &self.requests);
            if self.handovers.pins(&self.requests[self.running[victim_position].index()]) {
                return false;
            }
            let victim = self.running.remove(victim_position);
            if self.waiting.victims_may_be_scheduled() {
                // Already part of this very batch: its budget is free again.
                let scheduled = out.scheduled.iter().position(|entry| entry.slot == victim);
                if let Some(at) = scheduled {
                    budget.give_back(out.scheduled.remove(at).num_tokens);
                }
                let moves = if self.rules.victim_moves_scan {
                    victim_position < *position
                } else {
                    scheduled.is_some()
                };
                *position -= usize::from(moves);
            }
            self.preempt(victim);
            out.preempted.push(Member { slot: victim, id: self.requests[victim.index()].id });
            if victim == slot {
                return false;
            }
        }
        true
    }

    /// Under a preemptive policy, running requests leave for waiting ones that rank before them.
    pub(super) fn make_way(&mut self, out: &mut SchedulerOutput) {
        while let Some(front) = self.waiting.front() {
            let needed = self.config.blocks_of_request(self.requests[front.index()].num_tokens);
            let full = self.running.len() >= self.max_running;
            if !full && needed + u64::from(self.watermark_blocks) <= u64::from(self.pool.num_free()) {
                return;
            }
            let Some(position) = self.waiting.displaced(&self.running, &self.requests) else { return };
            if self.handovers.pins(&self.requests[self.running[position].index()]) {
                return;
            }
            let victim = self.running.remove(position);
            self.preempt(victim);
            out.preempted.push(Member { slot: victim, id: self.requests[victim.index()].id });
        }
    }

    /// Preemption recomputes: all blocks are freed (their cached content may be found again), and output in
    /// flight becomes stale.
    fn preempt(&mut self, slot: Slot) {
        let request = &mut self.requests[slot.index()];
        // Groups of layers keep private content in the index, like any other.
        let inserted = request.num_hit_blocks.max(request.private_from)..request.num_cached_blocks;
        if !inserted.is_empty() {
            let blocks = &request.blocks[inserted.start as usize..inserted.end as usize];
            request.former.push(inserted.start as usize, blocks, request.hasher.hashes(), &self.pool);
        }
        release_blocks(&mut self.pool, request);
        request.num_cached_blocks = 0;
        request.status = Status::Preempted;
        request.num_computed = 0;
        request.prefill_in_flight = false;
        request.rare.num_drafts = 0;
        request.num_stale = request.num_in_flight;
        request.num_placeholders = 0;
        request.num_preemptions += 1;
        self.waiting.put_back(slot, &self.requests);
    }
}

/// With output in flight, tells whether that output is the request's last: then there is nothing to add.
#[inline]
fn end_is_certain(request: &LiveRequest) -> bool {
    if request.num_placeholders == 0 {
        return false;
    }
    let last = u64::from(request.prompt_tokens) + u64::from(request.max_tokens);
    u64::from(request.num_computed) + 2 >= last + u64::from(request.num_placeholders)
}
