//! Batches: the one that runs on, the prefill that has yet to join it, and those in flight.

use crate::ids::Slot;

/// Requests that decode together (`ScheduleBatch`).
#[derive(Clone, Debug, Default)]
pub(super) struct Batch {
    pub(super) requests: Vec<Slot>,
    /// Tokens in the KV cache by request, those of the running step included.
    pub(super) lengths: Vec<i64>,
    /// It takes no further requests (`batch_is_full`).
    pub(super) full: bool,
}

impl Batch {
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Keeps the requests that `keep` names, in order. Returns whether any left.
    #[inline]
    pub(super) fn retain(&mut self, keep: impl Fn(Slot) -> bool) -> bool {
        let before = self.requests.len();
        let mut kept = 0;
        for at in 0..before {
            let slot = self.requests[at];
            if keep(slot) {
                if kept != at {
                    self.requests[kept] = slot;
                    self.lengths[kept] = self.lengths[at];
                }
                kept += 1;
            }
        }
        self.requests.truncate(kept);
        self.lengths.truncate(kept);
        kept < before
    }

    /// Keeps the requests at these places, in this order.
    pub(super) fn select(&mut self, places: &[usize]) {
        self.requests = places.iter().map(|&at| self.requests[at]).collect();
        self.lengths = places.iter().map(|&at| self.lengths[at]).collect();
    }

    /// Takes over the requests of another batch.
    pub(super) fn append(&mut self, other: &mut Self) {
        self.requests.append(&mut other.requests);
        self.lengths.append(&mut other.lengths);
    }
}

/// A prefill that has not joined the running batch yet.
#[derive(Clone, Debug)]
pub(super) struct ExtendBatch {
    pub(super) batch: Batch,
    /// The request that was being chunked when it was formed.
    pub(super) chunked: Option<Slot>,
}

/// What a batch computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mode {
    /// Prompts, or parts of them.
    Extend,
    /// One token for each request.
    #[default]
    Decode,
    /// Prompts, and after them one token for each running request.
    Mixed,
}

/// A batch as it was launched: the requests may move on before its results are processed.
#[derive(Clone, Debug, Default)]
pub struct InFlightBatch {
    pub(super) mode: Mode,
    /// Prefills first.
    pub(super) requests: Vec<Slot>,
    /// Tokens before and in the step, by prefill.
    pub(super) extends: Vec<(i64, i64)>,
    /// KV slots taken for it.
    pub(super) slots: i64,
}

impl InFlightBatch {
    /// Returns what it computes, as the golden logs name it: `extend`, `decode` or `mixed`.
    pub fn mode(&self) -> &'static str {
        match self.mode {
            Mode::Extend => "extend",
            Mode::Decode => "decode",
            Mode::Mixed => "mixed",
        }
    }

    /// Returns the tokens before and in the step for each prefill; the second is below zero in a chunk with which the
    /// engine takes tokens back.
    pub fn extends(&self) -> &[(i64, i64)] {
        &self.extends
    }

    /// Becomes an empty batch, keeping the memory.
    pub(super) fn reset(&mut self, mode: Mode, slots: i64) {
        self.mode = mode;
        self.requests.clear();
        self.extends.clear();
        self.slots = slots;
    }
}
