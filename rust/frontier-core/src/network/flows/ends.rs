//! The earliest end among flows: a tournament over slots, in which a changed end plays its way up.

use super::state::Flow;

/// The end of a flow that stalls.
pub(super) const NEVER: u64 = u64::MAX;

/// Ends by slot. Ties go to the flow that started first.
#[derive(Clone, Debug, Default)]
pub(super) struct Ends {
    /// (end, serial), a power of two of them.
    keys: Vec<(u64, u64)>,
    /// Slot of the earliest end below each inner node; children of `i` are `2 i` and `2 i + 1`, leaves follow.
    winners: Vec<u32>,
}

impl Ends {
    /// Returns the earliest end and its slot.
    #[inline]
    pub(super) fn first(&self) -> Option<(u64, u32)> {
        let slot = *self.winners.get(1)?;
        let end = self.keys[slot as usize].0;
        (end != NEVER).then_some((end, slot))
    }

    /// Gives a slot an end.
    #[inline]
    pub(super) fn set(&mut self, slot: u32, end: u64, serial: u64) {
        if slot as usize >= self.keys.len() {
            self.grow(slot as usize + 1);
        }
        self.keys[slot as usize] = (end, serial);
        let mut node = (self.keys.len() + slot as usize) >> 1;
        while node > 0 {
            let winner = self.play(node);
            // The path above sees nothing new if another slot wins here as before.
            if winner == self.winners[node] && winner != slot {
                break;
            }
            self.winners[node] = winner;
            node /= 2;
        }
    }

    /// Gives the slots in `changed` the ends of their flows.
    pub(super) fn set_all(&mut self, changed: &[u32], flows: &[Flow]) {
        let size = self.keys.len();
        if changed.len() * (size.max(1).ilog2() as usize) < size.max(1) {
            for &slot in changed {
                let flow = &flows[slot as usize];
                self.set(slot, flow.end(), flow.serial);
            }
            return;
        }
        for &slot in changed {
            let flow = &flows[slot as usize];
            self.keys[slot as usize] = (flow.end(), flow.serial);
        }
        self.play_all();
    }

    fn grow(&mut self, slots: usize) {
        let size = slots.next_power_of_two().max(2);
        self.keys.resize(size, (NEVER, NEVER));
        self.winners.resize(size, 0);
        self.play_all();
    }

    fn play_all(&mut self) {
        for node in (1..self.winners.len()).rev() {
            self.winners[node] = self.play(node);
        }
    }

    #[inline]
    fn play(&self, node: usize) -> u32 {
        let size = self.winners.len();
        let contender =
            |child: usize| if child >= size { (child - size) as u32 } else { self.winners[child] };
        let (left, right) = (contender(2 * node), contender(2 * node + 1));
        if self.keys[right as usize] < self.keys[left as usize] { right } else { left }
    }
}
