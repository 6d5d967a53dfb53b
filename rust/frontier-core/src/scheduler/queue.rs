//! The waiting queue, in the order of the scheduling policy.

use std::collections::VecDeque;

use super::live::LiveRequest;
use super::policy::{Ranking, order};
use crate::ids::Slot;
use crate::plan::Policy;
use crate::time::SimTime;

/// Requests that wait for admission (vLLM `vllm/v1/core/sched/request_queue.py`), and the policy's accounts.
#[derive(Clone, Debug)]
pub(super) struct WaitingQueue {
    ranking: Ranking,
    slots: VecDeque<Slot>,
}

impl WaitingQueue {
    pub(super) fn new(policy: &Policy) -> Self {
        Self { ranking: Ranking::new(policy), slots: VecDeque::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub(super) fn front(&self) -> Option<Slot> {
        self.slots.front().copied()
    }

    pub(super) fn pop_front(&mut self) -> Option<Slot> {
        self.slots.pop_front()
    }

    /// Takes a request out of the queue, wherever it stands.
    pub(super) fn take(&mut self, slot: Slot) {
        if self.front() == Some(slot) {
            self.slots.pop_front();
        } else if let Some(at) = self.slots.iter().position(|other| *other == slot) {
            self.slots.remove(at);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Slot> {
        self.slots.iter().copied()
    }

    /// Adds a new request: last, or in its order.
    pub(super) fn push(&mut self, slot: Slot, requests: &mut [LiveRequest]) {
        if self.ranking.is_fcfs() {
            self.slots.push_back(slot);
        } else {
            self.ranking.arrives(&mut requests[slot.index()]);
            self.insert_in_order(slot, requests);
        }
    }

    /// Puts back a request that was preempted: first, or in its order.
    pub(super) fn put_back(&mut self, slot: Slot, requests: &[LiveRequest]) {
        if self.ranking.is_fcfs() {
            self.slots.push_front(slot);
        } else {
            self.ranking.returns(&requests[slot.index()]);
            self.insert_in_order(slot, requests);
        }
    }

    /// Puts back a request that was looked at and passed over: first, or in its order.
    pub(super) fn put_back_unserved(&mut self, slot: Slot, requests: &[LiveRequest]) {
        if self.ranking.is_fcfs() {
            self.slots.push_front(slot);
        } else {
            self.insert_in_order(slot, requests);
        }
    }

    /// Brings requests that wait beside the queue into its order; first come, first served leaves them as they are.
    pub(super) fn sort(&self, slots: &mut [Slot], requests: &[LiveRequest]) {
        if !self.ranking.is_fcfs() {
            slots.sort_by(|one, other| order(&requests[one.index()], &requests[other.index()]));
        }
    }

    /// Books that a request in the queue is over.
    pub(super) fn ends_waiting(&mut self, request: &LiveRequest) {
        self.ranking.ends_waiting(request);
    }

    /// Tells whether of two requests that wait, in the queue or beside it, the first does not come after the other.
    /// First come, first served knows no other order than that of the calls.
    pub(super) fn precedes(&self, one: Slot, other: Slot, requests: &[LiveRequest]) -> bool {
        self.ranking.is_fcfs() || order(&requests[one.index()], &requests[other.index()]).is_le()
    }

    pub(super) fn retain(&mut self, keep: impl FnMut(&Slot) -> bool) {
        self.slots.retain(keep);
    }

    /// Brings the order up to date before a batch is formed. Costs nothing unless ranks change with time or with
    /// the service of others; then it looks at every request.
    #[inline]
    pub(super) fn refresh(&mut self, now: SimTime, requests: &mut [LiveRequest], running: &[Slot]) {
        if self.ranking.is_dynamic() {
            self.rank_all(now, requests, running);
        } else if self.ranking.follows_output() {
            self.rank_running(now, requests, running);
        }
    }

    fn rank_all(&mut self, now: SimTime, requests: &mut [LiveRequest], running: &[Slot]) {
        for &slot in &self.slots {
            let request = &mut requests[slot.index()];
            request.service.rank = self.ranking.refreshed(request, now);
        }
        self.rank_running(now, requests, running);
        let requests = &*requests;
        self.slots
            .make_contiguous()
            .sort_by(|one, other| order(&requests[one.index()], &requests[other.index()]));
    }

    fn rank_running(&self, now: SimTime, requests: &mut [LiveRequest], running: &[Slot]) {
        for &slot in running {
            let request = &mut requests[slot.index()];
            request.service.rank = self.ranking.rank(request, now);
        }
    }

    /// Books that a request taken from the queue was admitted.
    #[inline]
    pub(super) fn admitted(&mut self, slot: Slot, now: SimTime, requests: &mut [LiveRequest]) {
        if !self.ranking.is_fcfs() && self.ranking.admitted(&requests[slot.index()]) {
            self.rank_all(now, requests, &[]);
        }
    }

    /// Books that a batch computes `num_tokens` tokens of a request after the first `computed_before`.
    #[inline]
    pub(super) fn served(
        &mut self,
        request: &mut LiveRequest,
        computed_before: u32,
        num_tokens: u32,
        now: SimTime,
    ) {
        if !self.ranking.is_fcfs() {
            self.ranking.served(request, computed_before, num_tokens, now);
        }
    }

    /// Books that drafts of a request were accepted: output tokens beside the one that [`Self::served`] booked.
    pub(super) fn accepted(&mut self, request: &mut LiveRequest, num_tokens: u32, now: SimTime) {
        if !self.ranking.is_fcfs() {
            self.ranking.accepted(request, num_tokens, now);
        }
    }

    /// The last of RUNNING need not be the last in the policy's order, so that a victim may be in the batch already.
    #[inline]
    pub(super) fn victims_may_be_scheduled(&self) -> bool {
        !self.ranking.is_fcfs()
    }

    /// Returns the position in `running` (not empty) of the request to preempt when blocks run out: the last
    /// admitted under FCFS, else the first of the largest by rank and arrival.
    pub(super) fn choose_victim(&self, running: &[Slot], requests: &[LiveRequest]) -> usize {
        if self.ranking.is_fcfs() { running.len() - 1 } else { last_in_order(running, requests) }
    }

    /// Returns the position in `running` of the request that makes room for the first waiting one, which lacks
    /// it: the last in order, if it ranks after that one and the policy is preemptive.
    #[inline]
    pub(super) fn displaced(&self, running: &[Slot], requests: &[LiveRequest]) -> Option<usize> {
        if !self.ranking.is_preemptive() || running.is_empty() {
            return None;
        }
        let first = &requests[self.front()?.index()];
        let at = last_in_order(running, requests);
        (requests[running[at].index()].service.rank > first.service.rank).then_some(at)
    }

    /// Tells whether running requests ever make room for waiting ones.
    #[inline]
    pub(super) fn is_preemptive(&self) -> bool {
        self.ranking.is_preemptive()
    }

    fn insert_in_order(&mut self, slot: Slot, requests: &[LiveRequest]) {
        let request = &requests[slot.index()];
        let at = self.slots.partition_point(|other| order(&requests[other.index()], request).is_le());
        self.slots.insert(at, slot);
    }
}

fn last_in_order(running: &[Slot], requests: &[LiveRequest]) -> usize {
    let key = |at: usize| {
        let request = &requests[running[at].index()];
        (request.service.rank, request.arrival)
    };
    let after = |one: usize, other: usize| {
        let (one, other) = (key(one), key(other));
        one.0.total_cmp(&other.0).then(one.1.cmp(&other.1)).is_gt()
    };
    (1..running.len()).fold(0, |best, at| if after(at, best) { at } else { best })
}
