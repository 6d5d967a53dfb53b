//! The waiting queue, in the order of the scheduling policy.

use std::collections::VecDeque;

use super::live::LiveRequest;
use crate::ids::Slot;
use crate::plan::Policy;

/// Requests that wait for admission (vLLM `vllm/v1/core/sched/request_queue.py`).
#[derive(Clone, Debug)]
pub(super) struct WaitingQueue {
    policy: Policy,
    slots: VecDeque<Slot>,
}

impl WaitingQueue {
    pub(super) fn new(policy: Policy) -> Self {
        Self { policy, slots: VecDeque::new() }
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

    pub(super) fn iter(&self) -> impl Iterator<Item = Slot> {
        self.slots.iter().copied()
    }

    /// Adds a new request: last, or in its order.
    pub(super) fn push(&mut self, slot: Slot, requests: &[LiveRequest]) {
        match self.policy {
            Policy::Fcfs => self.slots.push_back(slot),
            Policy::Priority => self.insert_in_order(slot, requests),
        }
    }

    /// Puts back a request that was taken from the queue or preempted: first, or in its order.
    pub(super) fn put_back(&mut self, slot: Slot, requests: &[LiveRequest]) {
        match self.policy {
            Policy::Fcfs => self.slots.push_front(slot),
            Policy::Priority => self.insert_in_order(slot, requests),
        }
    }

    pub(super) fn retain(&mut self, keep: impl FnMut(&Slot) -> bool) {
        self.slots.retain(keep);
    }

    fn insert_in_order(&mut self, slot: Slot, requests: &[LiveRequest]) {
        let key = requests[slot.index()].priority_key();
        let at = self.slots.partition_point(|other| requests[other.index()].priority_key() <= key);
        self.slots.insert(at, slot);
    }
}
