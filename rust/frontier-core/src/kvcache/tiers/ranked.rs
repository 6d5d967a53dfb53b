//! Policies that order blocks by one number: LRU, LFU, TTL and Belady's oracle.

use std::collections::BTreeSet;

use rustc_hash::FxHashMap;

use super::eviction::Eviction;

/// Blocks in order of (rank, last use); the first leaves first.
#[derive(Clone, Debug)]
pub(super) struct Ranked {
    policy: Eviction,
    capacity: u64,
    /// Uses so far: ties go by last use.
    clock: u64,
    places: FxHashMap<u64, Place>,
    order: BTreeSet<(u64, u64, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    rank: u64,
    used: u64,
}

impl Ranked {
    pub(super) fn new(policy: Eviction, capacity: u64) -> Self {
        Self { policy, capacity, clock: 0, places: FxHashMap::default(), order: BTreeSet::new() }
    }

    pub(super) fn len(&self) -> u64 {
        self.places.len() as u64
    }

    pub(super) fn contains(&self, key: u64, now: u64) -> bool {
        self.places.get(&key).is_some_and(|place| !self.is_over(*place, now))
    }

    /// Tells whether a block's time is up. Only a TTL has times for ranks.
    fn is_over(&self, place: Place, now: u64) -> bool {
        matches!(self.policy, Eviction::Ttl { .. }) && place.rank <= now
    }

    pub(super) fn touch(&mut self, key: u64, now: u64, next_use: u64) {
        let place = self.places[&key];
        self.order.remove(&(place.rank, place.used, key));
        let rank = match self.policy {
            Eviction::Lfu {} => place.rank + 1,
            _ => self.first_rank(now, next_use),
        };
        self.put(key, rank);
    }

    pub(super) fn insert(
        &mut self,
        key: u64,
        now: u64,
        next_use: u64,
        may_leave: impl Fn(u64) -> bool,
    ) -> Result<Option<u64>, ()> {
        debug_assert!(!self.places.contains_key(&key), "Invariant: a block comes in once");
        let mut gone = None;
        if self.len() >= self.capacity {
            let victim = self.order.iter().copied().find(|&(_, _, key)| may_leave(key)).ok_or(())?;
            self.drop_block(victim);
            gone = Some(victim.2);
        }
        let rank = match self.policy {
            Eviction::Lfu {} => 1,
            _ => self.first_rank(now, next_use),
        };
        self.put(key, rank);
        Ok(gone)
    }

    pub(super) fn expire(&mut self, now: u64, may_leave: impl Fn(u64) -> bool) -> Option<u64> {
        if !matches!(self.policy, Eviction::Ttl { .. }) {
            return None;
        }
        let over = self.order.iter().take_while(|&&(rank, _, _)| rank <= now);
        let victim = over.copied().find(|&(_, _, key)| may_leave(key))?;
        self.drop_block(victim);
        Some(victim.2)
    }

    fn drop_block(&mut self, block: (u64, u64, u64)) {
        self.order.remove(&block);
        self.places.remove(&block.2);
    }

    fn first_rank(&self, now: u64, next_use: u64) -> u64 {
        match self.policy {
            Eviction::Ttl { ttl_ns } => now.saturating_add(ttl_ns),
            Eviction::Belady {} => u64::MAX - next_use,
            Eviction::Lru {} | Eviction::Lfu {} | Eviction::Arc {} => 0,
        }
    }

    fn put(&mut self, key: u64, rank: u64) {
        self.clock += 1;
        self.places.insert(key, Place { rank, used: self.clock });
        self.order.insert((rank, self.clock, key));
    }

    pub(super) fn check(&self) -> Result<(), String> {
        if self.order.len() != self.places.len() {
            return Err(format!("{} blocks are ordered, {} indexed", self.order.len(), self.places.len()));
        }
        if self.len() > self.capacity {
            return Err(format!("{} blocks are held, {} fit", self.len(), self.capacity));
        }
        let known = |&(rank, used, key): &(u64, u64, u64)| {
            self.places.get(&key).is_some_and(|place| (place.rank, place.used) == (rank, used))
        };
        match self.order.iter().find(|block| !known(block)) {
            Some(block) => Err(format!("block {:016x} is ordered but not indexed", block.2)),
            None => Ok(()),
        }
    }
}
