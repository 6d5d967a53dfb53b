//! The blocks of one tier: what it holds, from when on it can be read, and until when it must stay.

use rustc_hash::FxHashMap;

use super::eviction::{Eviction, NEVER_USED_AGAIN, Residents};
use crate::error::SimError;
use crate::time::SimTime;

/// State of a block in a tier.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// When it has arrived.
    ready: SimTime,
    /// Until when transfers use it.
    busy_until: SimTime,
    /// Loads under way that have no end yet.
    pins: u32,
}

impl Entry {
    fn may_leave(&self, now: SimTime) -> bool {
        self.pins == 0 && self.ready <= now && self.busy_until <= now
    }
}

/// The blocks of one tier.
#[derive(Clone, Debug)]
pub struct TierPool {
    capacity: u64,
    residents: Residents,
    entries: FxHashMap<u64, Entry>,
    inserted: u64,
    evicted: u64,
    expired: u64,
    refused: u64,
    peak: u64,
}

impl TierPool {
    /// Returns an empty tier of `capacity` blocks.
    pub fn new(policy: Eviction, capacity: u64) -> Self {
        Self {
            capacity,
            residents: Residents::new(policy, capacity),
            entries: FxHashMap::default(),
            inserted: 0,
            evicted: 0,
            expired: 0,
            refused: 0,
            peak: 0,
        }
    }

    /// Returns the number of blocks held, those on their way in included.
    pub fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Tells whether no block is held.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Tells whether `key` can be read now.
    pub fn readable(&self, key: u64, now: SimTime) -> bool {
        self.entries.get(&key).is_some_and(|entry| entry.ready <= now) && self.residents.contains(key, now.0)
    }

    /// Tells whether `key` is here or on its way in.
    pub fn holds(&self, key: u64) -> bool {
        self.entries.contains_key(&key)
    }

    /// Notes a use of a block that is held.
    pub fn touch(&mut self, key: u64, now: SimTime) {
        self.residents.touch(key, now.0, NEVER_USED_AGAIN);
    }

    /// Makes room for a block that is not held, which stays on its way in until [`Self::arrives`]. Returns what had
    /// to leave, or `Err(())` if everything here is in use.
    pub(super) fn insert(&mut self, key: u64, now: SimTime) -> Result<Option<u64>, ()> {
        let entries = &self.entries;
        let gone = self
            .residents
            .insert(key, now.0, NEVER_USED_AGAIN, |other| entries[&other].may_leave(now))
            .inspect_err(|()| self.refused += 1)?;
        if let Some(victim) = gone {
            self.entries.remove(&victim);
            self.evicted += 1;
        }
        self.entries.insert(key, Entry { ready: SimTime::MAX, busy_until: SimTime::ZERO, pins: 0 });
        self.inserted += 1;
        self.peak = self.peak.max(self.len());
        Ok(gone)
    }

    /// Says when a block that was taken in has arrived.
    pub(super) fn arrives(&mut self, key: u64, ready: SimTime) {
        self.entry(key).ready = ready;
    }

    /// Keeps a block until a transfer that reads it is done.
    pub(super) fn keep_until(&mut self, key: u64, end: SimTime) {
        let entry = self.entry(key);
        entry.busy_until = entry.busy_until.max(end);
    }

    /// Keeps a block until [`Self::unpin`].
    pub(super) fn pin(&mut self, key: u64) {
        self.entry(key).pins += 1;
    }

    /// Takes back one [`Self::pin`].
    pub(super) fn unpin(&mut self, key: u64) {
        let entry = self.entry(key);
        debug_assert!(entry.pins > 0, "Invariant: what is let go was held");
        entry.pins -= 1;
    }

    fn entry(&mut self, key: u64) -> &mut Entry {
        self.entries.get_mut(&key).expect("Invariant: a block in use stays in its tier")
    }

    /// Drops the blocks whose time is up.
    pub(super) fn expire(&mut self, now: SimTime) {
        loop {
            let entries = &self.entries;
            let gone = self.residents.expire(now.0, |other| entries[&other].may_leave(now));
            let Some(key) = gone else { return };
            self.entries.remove(&key);
            self.expired += 1;
        }
    }

    /// Returns blocks that came in, had to leave, ran out of time, found no room, and the most held at once.
    pub fn totals(&self) -> [u64; 5] {
        [self.inserted, self.evicted, self.expired, self.refused, self.peak]
    }

    /// Checks that no block is lost and no more are held than fit; `pins` is the number of pins that loads know of.
    /// O(blocks).
    ///
    /// # Errors
    /// [`SimError::Invariant`] naming the first law that does not hold.
    pub fn check_integrity(&self, pins: u64) -> Result<(), SimError> {
        let broken = |what: String| Err(SimError::Invariant { what: format!("KV tier: {what}") });
        if let Err(what) = self.residents.check() {
            return broken(what);
        }
        let (held, ordered) = (self.len(), self.residents.len());
        if held != ordered || held > self.capacity {
            return broken(format!("{held} blocks are held, {ordered} ordered, {} fit", self.capacity));
        }
        if held + self.evicted + self.expired != self.inserted {
            return broken(format!(
                "{held} blocks held, {} evicted and {} expired do not make the {} that came in",
                self.evicted, self.expired, self.inserted
            ));
        }
        let pinned: u64 = self.entries.values().map(|entry| u64::from(entry.pins)).sum();
        if pinned != pins {
            return broken(format!("blocks have {pinned} pins, loads know of {pins}"));
        }
        Ok(())
    }
}
