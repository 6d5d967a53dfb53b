//! The event kernel: a clock and a queue ordered by `(time, phase, sequence number)`.
//!
//! It knows no serving word. Ties in time are broken by phase (a small number chosen by the caller, whose
//! order is documented in [`crate::event`]), then by insertion: equal keys leave first in, first out.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::error::SimError;
use crate::time::SimTime;

/// Bits of the sequence number in a packed key; the phase takes the byte above it.
const SEQ_BITS: u32 = 56;

/// A pending event. The key packs time, phase and insertion number into one integer, so that ordering two
/// events is one comparison.
#[derive(Clone, Copy, Debug)]
struct Entry<E> {
    key: u128,
    event: E,
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key.cmp(&other.key)
    }
}

/// A queue of future events and the present time. Push and pop are O(log pending).
#[derive(Clone, Debug)]
pub struct EventQueue<E> {
    heap: BinaryHeap<Reverse<Entry<E>>>,
    now: SimTime,
    seq: u64,
    popped: u64,
}

impl<E: Copy> Default for EventQueue<E> {
    fn default() -> Self {
        Self::new()
    }
}

impl<E: Copy> EventQueue<E> {
    /// Returns an empty queue at time zero.
    pub fn new() -> Self {
        Self { heap: BinaryHeap::new(), now: SimTime::ZERO, seq: 0, popped: 0 }
    }

    /// Returns the time of the last popped event.
    #[inline]
    pub fn now(&self) -> SimTime {
        self.now
    }

    /// Returns how many events were popped.
    pub fn popped(&self) -> u64 {
        self.popped
    }

    /// Returns how many events are pending.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Tells whether nothing is pending.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    /// Tells whether nothing else is pending at the present time.
    #[inline]
    pub fn is_alone_in_time(&self) -> bool {
        self.heap.peek().is_none_or(|Reverse(entry)| SimTime((entry.key >> 64) as u64) > self.now)
    }

    /// Schedules `event` at `time`. Scheduling at the present time is allowed.
    ///
    /// # Errors
    /// [`SimError::Invariant`] if `time` is in the past.
    #[inline]
    pub fn push(&mut self, time: SimTime, phase: u8, event: E) -> Result<(), SimError> {
        if time < self.now {
            return Err(SimError::Invariant {
                what: format!(
                    "an event was scheduled at {} ns, before the present {} ns",
                    time.0, self.now.0
                ),
            });
        }
        debug_assert!(self.seq < 1 << SEQ_BITS, "Invariant: fewer than 2^56 events");
        let key = (u128::from(time.0) << 64) | (u128::from(phase) << SEQ_BITS) | u128::from(self.seq);
        self.seq += 1;
        self.heap.push(Reverse(Entry { key, event }));
        Ok(())
    }

    /// Takes the earliest event and moves the clock to it.
    #[inline]
    pub fn pop(&mut self) -> Option<(SimTime, E)> {
        let Reverse(entry) = self.heap.pop()?;
        self.now = SimTime((entry.key >> 64) as u64);
        self.popped += 1;
        Some((self.now, entry.event))
    }
}

#[cfg(test)]
mod property_tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn prop_events_leave_in_stable_order_of_time_and_phase(
            keys in prop::collection::vec((0_u64..20, 0_u8..4), 0..200)
        ) {
            let mut queue = EventQueue::new();
            for (i, &(time, phase)) in keys.iter().enumerate() {
                queue.push(SimTime(time), phase, i).unwrap();
            }
            let mut expected: Vec<usize> = (0..keys.len()).collect();
            expected.sort_by_key(|&i| keys[i]); // stable
            let left: Vec<usize> = std::iter::from_fn(|| queue.pop().map(|(_, event)| event)).collect();
            prop_assert_eq!(left, expected);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_past_is_refused_and_the_present_is_not() {
        let mut queue = EventQueue::new();
        queue.push(SimTime(5), 0, 'a').unwrap();
        assert_eq!(queue.pop(), Some((SimTime(5), 'a')));
        assert!(queue.push(SimTime(4), 0, 'b').is_err());
        queue.push(SimTime(5), 0, 'c').unwrap();
        assert_eq!(queue.pop(), Some((SimTime(5), 'c')));
        assert_eq!((queue.now(), queue.popped(), queue.is_empty()), (SimTime(5), 2, true));
    }
}
