//! Budgets of one prefill batch (`PrefillAdder`).

use std::cmp::Reverse;

use super::{CLIP_MAX_NEW_TOKENS, EngineFailure, SglangScheduler};
use crate::ids::Slot;
use crate::kvcache::NodeId;

/// What became of a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Try the next one.
    Continue,
    /// Memory is used up: nobody joins until someone leaves.
    NoToken,
    /// Another budget is used up.
    Other,
}

/// The requests of a prefill so far, and what may still be added.
#[derive(Debug)]
pub(super) struct Budget {
    pub(super) added: Vec<Slot>,
    /// Running requests that had to make room.
    pub(super) preempted: Vec<Slot>,
    /// The added request of whose prompt only a part fits.
    pub(super) new_chunked: Option<Slot>,
    input_left: i64,
    chunk_left: Option<i64>,
    /// Memory spoken for: of the requests added, and what all are expected to need.
    total_offset: f64,
    /// Memory of the requests added alone.
    current_offset: i64,
    /// Without the radix cache: tokens left and tokens held of everyone, by tokens left.
    finishing: Option<Vec<(i64, i64)>>,
}

impl Budget {
    /// Returns the budgets of a prefill beside the running batch.
    pub(super) fn new(scheduler: &SglangScheduler) -> Self {
        let config = &scheduler.config;
        let mixed = if scheduler.mixes { scheduler.running.len() as i64 } else { 0 };
        // In the engine's order of additions: floating-point sums depend on it.
        let expected =
            scheduler.running.requests.iter().fold(0.0, |sum, &slot| sum + scheduler.expected_rest(slot));
        Self {
            added: Vec::new(),
            preempted: Vec::new(),
            new_chunked: None,
            input_left: i64::from(config.max_prefill_tokens) - mixed,
            chunk_left: config.chunked_prefill_size.map(|size| i64::from(size) - mixed),
            total_offset: mixed as f64 + expected,
            current_offset: mixed,
            finishing: None,
        }
    }

    /// Returns the memory that nobody will need.
    fn total_left(&self, scheduler: &SglangScheduler) -> f64 {
        scheduler.free() as f64 - self.total_offset
    }

    /// Returns the memory that nobody has now.
    fn current_left(&self, scheduler: &SglangScheduler) -> i64 {
        scheduler.free() - self.current_offset
    }

    fn verdict(&self, scheduler: &SglangScheduler) -> Verdict {
        if self.total_left(scheduler) <= 0.0 || self.current_left(scheduler) <= 0 {
            Verdict::NoToken
        } else if self.input_left <= 0 || self.chunk_left.is_some_and(|left| left <= 0) {
            Verdict::Other
        } else {
            Verdict::Continue
        }
    }

    fn add(&mut self, slot: Slot, num_tokens: i64, reserve: i64) {
        self.added.push(slot);
        self.total_offset += (num_tokens + reserve) as f64;
        self.current_offset += num_tokens;
        self.input_left -= num_tokens;
        if let Some(left) = &mut self.chunk_left {
            *left -= num_tokens;
        }
    }

    /// Adds what fits of the rest of the chunked request: nothing, or less, if memory is short. Returns whether more
    /// is left.
    pub(super) fn continue_chunked(&mut self, scheduler: &mut SglangScheduler, slot: Slot) -> bool {
        let memory = self.total_left(scheduler) as i64;
        let room = self.chunk_left.unwrap_or(i64::MAX).min(memory);
        let request = &mut scheduler.requests[slot.index()];
        request.fill = request.num_tokens();
        let rest = request.fill - request.prefix;
        let is_cut = rest > room;
        request.cut_to(rest.min(room));
        let (extend, reserve) = (request.extend, if is_cut { 0 } else { request.reserve() });
        self.add(slot, extend, reserve);
        is_cut
    }

    /// Adds a waiting request whose longest cached prefix ends at `node`, or a first chunk of it, or refuses it.
    pub(super) fn try_add(&mut self, scheduler: &mut SglangScheduler, slot: Slot, node: NodeId) -> Verdict {
        let radix = scheduler.radix();
        let request = &scheduler.requests[slot.index()];
        let (extend, reserve) = (request.extend, request.reserve());
        if radix {
            let wanted = (extend + reserve) as f64;
            if wanted >= self.total_left(scheduler) {
                return Verdict::NoToken;
            }
            if extend >= self.input_left && !self.added.is_empty() {
                return Verdict::Other;
            }
            scheduler.tree.lock(node);
            // Its cached tokens are no longer evictable: ask again.
            let fits = wanted < self.total_left(scheduler);
            scheduler.tree.unlock(node);
            if !fits {
                return Verdict::NoToken;
            }
        } else if !self.all_can_finish(scheduler, slot) {
            return Verdict::NoToken;
        }
        match self.chunk_left {
            Some(left) if extend > left => {
                if left == 0 || (radix && left < 0) {
                    return Verdict::Other;
                }
                let request = &mut scheduler.requests[slot.index()];
                request.cut_to(left);
                self.new_chunked = Some(slot);
                self.add(slot, left, 0);
            }
            _ => self.add(slot, extend, reserve),
        }
        if radix {
            scheduler.lock_for(slot, node);
        }
        self.verdict(scheduler)
    }

    /// Without the radix cache: does everybody's known rest fit, if memory returns as requests finish in the order of
    /// tokens left?
    fn all_can_finish(&mut self, scheduler: &SglangScheduler, slot: Slot) -> bool {
        let candidate = &scheduler.requests[slot.index()];
        let current_left = self.current_left(scheduler);
        if candidate.extend as f64 > self.total_left(scheduler).min(current_left as f64) {
            return false;
        }
        let rest = |slot: Slot| {
            let request = &scheduler.requests[slot.index()];
            (request.max_new_tokens - request.num_output, request.num_tokens())
        };
        let own = rest(slot);
        match &mut self.finishing {
            None => {
                let everyone = std::iter::once(&slot).chain(&scheduler.running.requests).chain(&self.added);
                let mut all: Vec<_> = everyone.map(|&slot| rest(slot)).filter(|rest| rest.0 > 0).collect();
                all.sort_by_key(|rest| rest.0);
                self.finishing = Some(all);
            }
            Some(all) if own.0 > 0 => {
                // The largest goes before the last, not after it.
                let last = all.len().saturating_sub(1);
                let at = all.iter().position(|other| own.0 <= other.0).unwrap_or(last);
                all.insert(at, own);
            }
            Some(_) => {}
        }
        let all = self.finishing.as_deref().unwrap_or_default();
        let left = current_left - candidate.extend;
        let mut freed = 0;
        for (at, &(rest, held)) in all.iter().enumerate() {
            let alive = (all.len() - at) as i64;
            if left + freed - rest * alive <= alive {
                return false;
            }
            freed += held;
        }
        true
    }

    /// Preempts for a candidate all running requests whose priority is worse by more than the threshold, if that is
    /// enough. Returns whether it did.
    pub(super) fn preempt_for(
        &mut self,
        scheduler: &mut SglangScheduler,
        slot: Slot,
    ) -> Result<bool, EngineFailure> {
        let sign = scheduler.priority_sign;
        let threshold = i64::from(scheduler.config.priority_scheduling_preemption_threshold);
        let candidate = &scheduler.requests[slot.index()];
        // The tokens of its last attempt, if it had one.
        let mut missing = (candidate.extend + candidate.reserve()) as f64 - self.total_left(scheduler);
        let priority = candidate.priority;
        let mut worse: Vec<Slot> = scheduler
            .running
            .requests
            .iter()
            .copied()
            .filter(|victim| {
                let other = scheduler.requests[victim.index()].priority;
                sign * (other - priority) > threshold && !self.preempted.contains(victim)
            })
            .collect();
        worse.sort_by_key(|victim| {
            let request = &scheduler.requests[victim.index()];
            (Reverse(sign * request.priority), Reverse(request.entered))
        });
        for &victim in &worse {
            missing -= scheduler.expected_rest(victim);
        }
        if worse.is_empty() || missing > 0.0 {
            return Ok(false);
        }
        let own_rest = scheduler.expected_rest(slot);
        let running = scheduler.running.requests.clone();
        let mut kept = Vec::with_capacity(running.len() - worse.len());
        let mut num_gone = 0;
        for (place, &other) in running.iter().enumerate() {
            if !worse.contains(&other) {
                kept.push(place);
                continue;
            }
            // The candidate's own rest, not the victim's.
            self.total_offset -= own_rest;
            num_gone += 1;
            if scheduler.requests[other.index()].finished {
                scheduler.note_preempted_finished(other);
            }
            scheduler.release(place, running.len() - num_gone)?;
            self.preempted.push(other);
        }
        scheduler.running.select(&kept);
        Ok(true)
    }
}

impl SglangScheduler {
    /// Returns the slots that are free or hold content that nobody uses.
    fn free(&self) -> i64 {
        self.available + self.tree.evictable()
    }

    /// Returns the output that a request is expected to make still.
    fn expected_rest(&self, slot: Slot) -> f64 {
        let request = &self.requests[slot.index()];
        (request.max_new_tokens - request.num_output).min(CLIP_MAX_NEW_TOKENS) as f64 * self.ratio
    }
}
