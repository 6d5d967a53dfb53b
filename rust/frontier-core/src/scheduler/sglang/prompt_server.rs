//! A server that computes prompts for others (`disaggregation/prefill.py`, 0.5.3).
//!
//! A request enters the queue once its decode server has memory for it. Its prompt is computed as anywhere, with one
//! token of output reserved; it never decodes. Its memory stays taken until its KV has been sent, which is looked at at
//! the end of every turn.

use super::{EngineFailure, InFlightBatch, SglangScheduler};
use crate::ids::{RequestId, Slot};
use crate::scheduler::{Emission, StepOutcome};

/// What a prefill server keeps beside its scheduler.
#[derive(Clone, Debug, Default)]
pub(super) struct PromptServer {
    /// Their decode servers have memory for them, which no turn has seen yet.
    pub(super) bootstrapped: Vec<Slot>,
    /// Computed, and kept until they are sent, in order.
    pub(super) sending: Vec<Slot>,
    /// Requests that may still enter the queue: each takes a buffer for its first token until it is sent.
    pub(super) buffers: i64,
    /// Memory came back in the last turn.
    pub(super) released: bool,
}

impl PromptServer {
    /// Returns the state of an idle server that runs at most `max_running_requests`.
    pub(super) fn new(max_running_requests: u32) -> Self {
        Self { buffers: 2 * i64::from(max_running_requests), ..Self::default() }
    }
}

impl SglangScheduler {
    /// Takes a turn of a prefill server: chooses prompts and puts them in flight. Returns whether there are any.
    pub(super) fn next_prompts(&mut self) -> Result<bool, EngineFailure> {
        self.queue_bootstrapped();
        self.last = None;
        if let Some(slot) = self.chunked {
            self.cache_unfinished(slot)?;
            self.rows += 1;
        }
        self.running.full = false;
        self.prefill_batch()
    }

    /// Moves requests to the queue, in the order of their arrival, as long as there are buffers.
    fn queue_bootstrapped(&mut self) {
        let requests = &self.requests;
        self.prompts.bootstrapped.sort_by_key(|slot| {
            let request = &requests[slot.index()];
            (request.arrival, request.id)
        });
        let count = self.prompts.bootstrapped.len().min(self.prompts.buffers.max(0) as usize);
        self.prompts.buffers -= count as i64;
        let ready: Vec<Slot> = self.prompts.bootstrapped.drain(..count).collect();
        for slot in ready {
            self.enter(slot, false);
        }
    }

    /// Processes the results of a batch of prompts: those that are complete are sent.
    pub(super) fn process_prompts(
        &mut self,
        done: &InFlightBatch,
        outcome: &mut StepOutcome,
    ) -> Result<(), EngineFailure> {
        for &slot in &done.requests {
            let request = &mut self.requests[slot.index()];
            if request.aborted {
                if !self.in_flight.iter().any(|batch| batch.requests.contains(&slot)) {
                    self.drop_prompt(slot)?;
                }
                continue;
            }
            if request.chunks > 0 {
                request.chunks -= 1;
                continue;
            }
            request.append_output();
            if std::mem::take(&mut request.admitted) {
                self.num_live -= 1;
            }
            outcome.emitted.push(Emission {
                id: request.id,
                num_tokens: 1,
                num_drafts: 0,
                num_accepted: 0,
                hands_over: true,
            });
            outcome.finished.push(request.id);
            self.cache_unfinished(slot)?;
            self.prompts.sending.push(slot);
        }
        Ok(())
    }

    /// Frees the memory of requests that have been sent. The end of a turn.
    pub(super) fn release_sent(&mut self) -> Result<(), EngineFailure> {
        if !self.prompts.sending.iter().any(|slot| self.requests[slot.index()].transferred) {
            return Ok(());
        }
        let sending = std::mem::take(&mut self.prompts.sending);
        for slot in sending {
            if self.requests[slot.index()].transferred {
                self.let_go_of_sent(slot)?;
            } else {
                self.prompts.sending.push(slot);
            }
        }
        Ok(())
    }

    fn let_go_of_sent(&mut self, slot: Slot) -> Result<(), EngineFailure> {
        self.requests[slot.index()].finished = true;
        self.cache_finished(slot)?;
        self.prompts.buffers += 1;
        self.prompts.released = true;
        self.retiring.push(slot);
        Ok(())
    }

    /// Gives back what a request whose prompt was computed for nobody held.
    fn drop_prompt(&mut self, slot: Slot) -> Result<(), EngineFailure> {
        self.cache_unfinished(slot)?;
        let request = &mut self.requests[slot.index()];
        let (held, node) = (request.fill, request.node.take());
        self.rows += 1;
        match node {
            Some(node) => {
                self.tree.unlock(node);
                self.tree.let_go(node);
            }
            None => self.available += held,
        }
        self.prompts.buffers += 1;
        self.prompts.released = true;
        Ok(())
    }

    /// The KV of a request has left.
    pub fn kv_sent(&mut self, id: RequestId) {
        let sent = self.prompts.sending.iter().find(|slot| self.requests[slot.index()].id == id);
        if let Some(slot) = sent {
            self.requests[slot.index()].transferred = true;
        }
    }

    /// Takes a request out of a prefill server. What is being computed of it goes on to the end of the step. Returns
    /// whether it was there.
    pub(super) fn abort_prompt(&mut self, id: RequestId) -> Result<bool, EngineFailure> {
        let is_it = |slot: &Slot| self.requests[slot.index()].id == id;
        if let Some(at) = self.prompts.bootstrapped.iter().position(is_it) {
            let slot = self.prompts.bootstrapped.remove(at);
            self.end_aborted(slot);
            return Ok(true);
        }
        if let Some(at) = self.waiting.iter().position(is_it) {
            if let Some(slot) = self.waiting.remove(at) {
                self.prompts.buffers += 1;
                self.end_aborted(slot);
            }
            return Ok(true);
        }
        if let Some(at) = self.prompts.sending.iter().position(is_it) {
            let slot = self.prompts.sending.remove(at);
            self.let_go_of_sent(slot)?;
            return Ok(true);
        }
        let computed = self.in_flight.iter().flat_map(|batch| &batch.requests).chain(&self.chunked).copied();
        let found = computed
            .filter(|slot| !self.requests[slot.index()].aborted && is_it(slot))
            .collect::<Vec<Slot>>();
        let Some(&slot) = found.first() else { return Ok(false) };
        if self.chunked == Some(slot) {
            self.chunked = None;
        }
        self.end_aborted(slot);
        if !self.in_flight.iter().any(|batch| batch.requests.contains(&slot)) {
            self.drop_prompt(slot)?;
        }
        Ok(true)
    }

    /// Returns the slots whose KV is here: being computed, or kept.
    pub(super) fn prompts_held(&self) -> Vec<Slot> {
        let computed = self.in_flight.iter().flat_map(|batch| &batch.requests);
        let mut held: Vec<Slot> =
            computed.chain(&self.chunked).chain(&self.prompts.sending).copied().collect();
        held.sort_unstable_by_key(|slot| slot.index());
        held.dedup();
        held
    }
}
