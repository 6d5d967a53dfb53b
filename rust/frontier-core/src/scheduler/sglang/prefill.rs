//! The prefill batch: who is in it, and its launch.

use super::admission::{Budget, Verdict};
use super::batch::{Batch, ExtendBatch, Mode};
use super::{EngineFailure, Part, SglangScheduler};
use crate::ids::Slot;

impl SglangScheduler {
    /// Forms a prefill batch and puts it in flight, if there is anything to compute. Returns whether there is.
    pub(super) fn prefill_batch(&mut self) -> Result<bool, EngineFailure> {
        let by_priority = self.config.enable_priority_scheduling;
        let most = i64::from(self.config.max_running_requests);
        if by_priority {
            self.running.full = false;
        }
        if (self.running.full || self.waiting.is_empty()) && self.chunked.is_none() {
            return Ok(false);
        }
        if most <= self.running.len() as i64 && self.chunked.is_none() && !by_priority {
            self.running.full = true;
            return Ok(false);
        }
        self.order_queue();
        let mut budget = Budget::new(self);
        if let Some(slot) = self.chunked {
            self.chunked = budget.continue_chunked(self, slot).then_some(slot);
        }
        let continued = budget.added.len();
        for at in 0..self.waiting.len() {
            let slot = self.waiting[at];
            let staying = self.running.len() as i64 - budget.preempted.len() as i64;
            // On a prefill server, requests whose KV is on its way have rows, too.
            let rows = if self.part == Part::Prompts { self.rows } else { i64::MAX };
            if budget.added.len() as i64 >= rows.min(most - staying) {
                self.running.full = true;
            }
            if self.running.full && !(by_priority && budget.preempt_for(self, slot)?) {
                break;
            }
            let node = self.match_prefix(slot);
            let request = &mut self.requests[slot.index()];
            request.extend = request.fill - request.prefix;
            match budget.try_add(self, slot, node) {
                Verdict::Continue => {}
                Verdict::NoToken => {
                    self.running.full = true;
                    break;
                }
                Verdict::Other => break,
            }
        }
        if budget.added.is_empty() {
            if !budget.preempted.is_empty() {
                self.note_lost(&budget.preempted);
            }
            return Ok(false);
        }
        // Nothing behind a refused request is tried, so those added stand first.
        self.waiting.drain(..budget.added.len() - continued);
        for slot in budget.preempted {
            self.note_hang(slot);
            self.enter(slot, false);
        }
        if let Some(slot) = budget.new_chunked {
            if self.chunked.is_some() {
                let detail = "a second request is to be chunked at a time".into();
                return Err(EngineFailure::stop("second chunked request", detail));
            }
            self.chunked = Some(slot);
        }
        if let Some(slot) = self.chunked {
            self.requests[slot.index()].chunks += 1;
        }
        self.launch(budget.added)?;
        Ok(true)
    }

    /// Takes rows and slots for a prefill and, in a mixed step, for the running batch behind it.
    fn launch(&mut self, added: Vec<Slot>) -> Result<(), EngineFailure> {
        let mut formed = self.spare.pop().unwrap_or_default();
        formed.reset(Mode::Extend, 0);
        if added.len() as i64 > self.rows {
            let detail =
                format!("{} rows of the request table are wanted, {} are free", added.len(), self.rows);
            return Err(EngineFailure::stop("out of request rows", detail));
        }
        self.rows -= added.len() as i64;
        let mut batch = Batch { lengths: Vec::with_capacity(added.len()), requests: added, full: false };
        for &slot in &batch.requests {
            let request = &mut self.requests[slot.index()];
            if request.fill - request.prefix != request.extend {
                let detail = format!(
                    "request {} is to compute {} tokens: memory is short for its next chunk, or more requests run than \
                     chunked_prefill_size has tokens; enlarge the KV pool, raise chunked_prefill_size or lower \
                     max_running_requests",
                    request.id.0, request.extend
                );
                return Err(EngineFailure::stop("negative chunk", detail));
            }
            request.retracted = false;
            formed.extends.push((request.prefix, request.extend));
            batch.lengths.push(request.fill);
            formed.slots += request.extend.max(0);
        }
        self.allocate(formed.slots)?;
        if self.mixes && !self.running.is_empty() {
            self.drop_finished();
            if !self.running.is_empty() {
                self.advance()?;
                for &slot in &self.running.requests {
                    let request = &mut self.requests[slot.index()];
                    request.fill = request.num_tokens();
                    request.extend = 1;
                }
                formed.mode = Mode::Mixed;
                formed.slots += self.running.len() as i64;
                batch.append(&mut self.running);
            }
        }
        formed.requests.extend_from_slice(&batch.requests);
        self.last = Some(ExtendBatch { batch, chunked: self.chunked });
        self.in_flight.push_back(formed);
        Ok(())
    }
}
