//! The tiers of one replica and the blocks that move between them.
//!
//! Everything passes through the host: what comes from disk or remote pool is read into host memory and goes to the
//! device from there. A block is copied, not moved, on its way up.

use super::counters::TierCounters;
use super::link::{Link, Transfer};
use super::pool::TierPool;
use crate::error::SimError;
use crate::kvcache::BlockHash;
use crate::plan::kv_tiers::{KvTierSpec, KvTiersSpec, TierKind, WritePolicy};
use crate::time::SimTime;

const HOST: usize = 0;

#[derive(Clone, Debug)]
struct Level {
    kind: TierKind,
    bytes_per_block: u64,
    shared: bool,
    pool: TierPool,
    read: Link,
    write: Link,
    lookups: u64,
    hits: u64,
}

impl Level {
    fn new(spec: &KvTierSpec) -> Self {
        Self {
            kind: spec.kind,
            bytes_per_block: spec.bytes_per_block,
            shared: spec.shared,
            pool: TierPool::new(spec.eviction, spec.capacity_blocks),
            read: Link::new(spec.read_bytes_per_s, spec.latency_ns),
            write: Link::new(spec.write_bytes_per_s, spec.latency_ns),
            lookups: 0,
            hits: 0,
        }
    }

    fn read_blocks(&mut self, blocks: usize, earliest: SimTime) -> Result<Transfer, SimError> {
        self.read.send(self.bytes_per_block.saturating_mul(blocks as u64), earliest)
    }

    fn write_blocks(&mut self, blocks: usize, earliest: SimTime) -> Result<Transfer, SimError> {
        self.write.send(self.bytes_per_block.saturating_mul(blocks as u64), earliest)
    }
}

/// Where the leading blocks of a request lie: one tier number each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Tier of each block, the host being 0.
    pub tiers: Vec<u8>,
}

/// A load to the device under way.
#[derive(Clone, Debug)]
pub struct Read {
    /// Blocks that it keeps in the host.
    pinned: Vec<u64>,
    /// Blocks from below the host, which cross to the device when all of them are in the host.
    from_below: usize,
    /// When they are.
    hop: Option<SimTime>,
    /// When everything sent to the device so far has arrived.
    end: SimTime,
}

impl Read {
    /// Returns when something happens next: the blocks from below reach the host, or the load is done.
    pub fn due(&self) -> SimTime {
        self.hop.unwrap_or(self.end)
    }
}

/// The tiers below one device.
#[derive(Clone, Debug)]
pub struct Hierarchy {
    levels: Vec<Level>,
    write_policy: WritePolicy,
    now: SimTime,
    num_pins: u64,
}

impl Hierarchy {
    /// Returns empty tiers.
    pub fn new(spec: &KvTiersSpec) -> Self {
        Self {
            levels: spec.tiers.iter().map(Level::new).collect(),
            write_policy: spec.write_policy,
            now: SimTime::ZERO,
            num_pins: 0,
        }
    }

    /// Returns the present moment.
    pub fn now(&self) -> SimTime {
        self.now
    }

    /// Sets the present moment, and drops what ran out of time.
    pub fn set_now(&mut self, now: SimTime) {
        self.now = self.now.max(now);
        for level in &mut self.levels {
            level.pool.expire(self.now);
        }
    }

    /// Exchanges the pool that replicas share, if there is one, with the one that the caller keeps.
    pub fn swap_shared(&mut self, pool: &mut TierPool) {
        if let Some(level) = self.levels.last_mut().filter(|level| level.shared) {
            std::mem::swap(&mut level.pool, pool);
        }
    }

    /// Finds the longest run of `hashes`, from the first, of which every block can be read now, from the fastest
    /// tier that has it. `host_only`: lower tiers do not count.
    pub fn find(&self, hashes: &[BlockHash], host_only: bool, found: &mut Found) {
        found.tiers.clear();
        let levels = if host_only { &self.levels[..1] } else { &self.levels[..] };
        let tier_of = |hash: &BlockHash| {
            levels.iter().position(|level| level.pool.readable(hash.key(), self.now)).map(|tier| tier as u8)
        };
        found.tiers.extend(hashes.iter().map_while(tier_of));
    }

    /// Tells whether the host has `hash`, or it is on its way there.
    pub fn host_holds(&self, hash: BlockHash) -> bool {
        self.levels[HOST].pool.holds(hash.key())
    }

    /// Counts an admission: `asked` blocks that the device did not have, of which `used` came from the tiers.
    pub fn count(&mut self, asked: u64, used: &[u8]) {
        let mut left = asked;
        for (tier, level) in self.levels.iter_mut().enumerate() {
            let hits = used.iter().filter(|&&from| usize::from(from) == tier).count() as u64;
            level.lookups += left;
            level.hits += hits;
            left -= hits;
        }
    }

    /// Notes that a request used these blocks, last one first, so that a prefix outlives what follows it.
    pub fn touch(&mut self, hashes: &[BlockHash]) {
        let host = &mut self.levels[HOST].pool;
        for hash in hashes.iter().rev() {
            if host.holds(hash.key()) {
                host.touch(hash.key(), self.now);
            }
        }
    }

    /// Copies blocks of the device, of different contents, to the host, not before `earliest`; blocks that are
    /// there already are only touched. Returns when the copy is done, `None` if there was nothing to copy.
    ///
    /// # Errors
    /// [`SimError::ClockOverflow`].
    pub fn store(&mut self, hashes: &[BlockHash], earliest: SimTime) -> Result<Option<SimTime>, SimError> {
        let (mut stored, mut victims) = (Vec::new(), Vec::new());
        let host = &mut self.levels[HOST].pool;
        for hash in hashes {
            if host.holds(hash.key()) {
                host.touch(hash.key(), self.now);
            } else if let Ok(gone) = host.insert(hash.key(), self.now) {
                stored.push(hash.key());
                victims.extend(gone);
            }
        }
        let room = self.write_back(HOST, &victims)?;
        if stored.is_empty() {
            return Ok(None);
        }
        let end = self.levels[HOST].write_blocks(stored.len(), earliest.max(room))?.end;
        for &key in &stored {
            self.levels[HOST].pool.arrives(key, end);
        }
        if self.write_policy != WritePolicy::WriteBack {
            for tier in HOST + 1..self.levels.len() {
                let (copied, _) = self.take_in(tier, &stored);
                if let Some(copied_by) = self.write(tier, &copied, end)? {
                    for &key in &copied {
                        self.levels[HOST].pool.keep_until(key, copied_by);
                    }
                }
            }
        }
        Ok(Some(end))
    }

    /// Hands blocks that left `tier` to the one below, if that is how writing works. Returns when their memory
    /// may be used again.
    fn write_back(&mut self, tier: usize, victims: &[u64]) -> Result<SimTime, SimError> {
        let below = tier + 1;
        if self.write_policy != WritePolicy::WriteBack || below == self.levels.len() || victims.is_empty() {
            return Ok(self.now);
        }
        let (taken, next_victims) = self.take_in(below, victims);
        let room = self.write_back(below, &next_victims)?;
        Ok(self.write(below, &taken, room)?.unwrap_or(self.now))
    }

    /// Makes room in `tier` for those of `keys` that it does not hold. Returns them, and what had to leave.
    fn take_in(&mut self, tier: usize, keys: &[u64]) -> (Vec<u64>, Vec<u64>) {
        let (mut taken, mut victims) = (Vec::new(), Vec::new());
        let pool = &mut self.levels[tier].pool;
        for &key in keys {
            if pool.holds(key) {
                pool.touch(key, self.now);
            } else if let Ok(gone) = pool.insert(key, self.now) {
                taken.push(key);
                victims.extend(gone);
            }
        }
        (taken, victims)
    }

    /// Writes blocks for which there is room in `tier`. Returns when they are there.
    fn write(&mut self, tier: usize, keys: &[u64], earliest: SimTime) -> Result<Option<SimTime>, SimError> {
        if keys.is_empty() {
            return Ok(None);
        }
        let level = &mut self.levels[tier];
        let end = level.write_blocks(keys.len(), earliest)?.end;
        for &key in keys {
            level.pool.arrives(key, end);
        }
        Ok(Some(end))
    }

    /// Starts loading blocks to the device: those of the host now, those from below when they have reached it.
    /// `tiers` says where each of `hashes` lies, as [`Self::find`] found it.
    ///
    /// # Errors
    /// [`SimError::ClockOverflow`].
    pub fn start_read(&mut self, hashes: &[BlockHash], tiers: &[u8]) -> Result<Read, SimError> {
        let mut read = Read { pinned: Vec::new(), from_below: 0, hop: None, end: self.now };
        let keys = |tier: usize| {
            let pairs = hashes.iter().zip(tiers).rev();
            pairs.filter(move |&(_, &from)| usize::from(from) == tier).map(|(hash, _)| hash.key())
        };
        for key in keys(HOST) {
            let host = &mut self.levels[HOST].pool;
            host.touch(key, self.now);
            host.pin(key);
            read.pinned.push(key);
        }
        if !read.pinned.is_empty() {
            read.end = self.levels[HOST].read_blocks(read.pinned.len(), self.now)?.end;
        }
        // All are on their way before any is taken in: what leaves the host for them must not drive them out below.
        let mut below = Vec::new();
        for tier in HOST + 1..self.levels.len() {
            let wanted: Vec<u64> = keys(tier).collect();
            if !wanted.is_empty() {
                below.push((self.fetch(tier, &wanted)?.end, wanted));
            }
        }
        for (arrival, wanted) in below {
            for &key in &wanted {
                let (kept, victims) = self.take_in(HOST, &[key]);
                self.write_back(HOST, &victims)?;
                if !kept.is_empty() {
                    let host = &mut self.levels[HOST].pool;
                    host.arrives(key, arrival);
                    host.pin(key);
                    read.pinned.push(key);
                }
            }
            read.from_below += wanted.len();
            read.hop = read.hop.max(Some(arrival));
        }
        self.num_pins += read.pinned.len() as u64;
        Ok(read)
    }

    /// Reads blocks of a lower tier towards the host.
    fn fetch(&mut self, tier: usize, keys: &[u64]) -> Result<Transfer, SimError> {
        let level = &mut self.levels[tier];
        let transfer = level.read_blocks(keys.len(), self.now)?;
        for &key in keys {
            level.pool.touch(key, self.now);
            level.pool.keep_until(key, transfer.end);
        }
        Ok(transfer)
    }

    /// Goes on with a load that is due. Returns whether it is done.
    ///
    /// # Errors
    /// [`SimError::ClockOverflow`].
    pub fn go_on(&mut self, read: &mut Read) -> Result<bool, SimError> {
        debug_assert!(read.due() <= self.now, "Invariant: only a load that is due goes on");
        if let Some(hop) = read.hop.take() {
            read.end = read.end.max(self.levels[HOST].read_blocks(read.from_below, hop)?.end);
            return Ok(false);
        }
        for &key in &read.pinned {
            self.levels[HOST].pool.unpin(key);
        }
        self.num_pins -= read.pinned.len() as u64;
        Ok(true)
    }

    /// Loads blocks of the host to the device within a step.
    ///
    /// # Errors
    /// [`SimError::ClockOverflow`].
    pub fn read_in_step(&mut self, hashes: &[BlockHash]) -> Result<Transfer, SimError> {
        let transfer = self.levels[HOST].read_blocks(hashes.len(), self.now)?;
        for hash in hashes {
            self.levels[HOST].pool.keep_until(hash.key(), transfer.end);
        }
        Ok(transfer)
    }

    /// Reads the leading blocks of `hashes` that lower tiers have, and the host has not, into the host, if there
    /// are `at_least` of them. Blocks arrive one by one, and stay until [`Self::let_go`]. Returns when the last one has
    /// arrived and which they are, `None` without a transfer.
    ///
    /// # Errors
    /// [`SimError::ClockOverflow`].
    pub fn prefetch(
        &mut self,
        hashes: &[BlockHash],
        at_least: u64,
    ) -> Result<Option<(SimTime, Vec<u64>)>, SimError> {
        let mut wanted: Vec<Vec<u64>> = vec![Vec::new(); self.levels.len()];
        let mut count = 0;
        for hash in hashes {
            if self.levels[HOST].pool.holds(hash.key()) {
                continue;
            }
            let mut lower = HOST + 1..self.levels.len();
            let Some(tier) = lower.find(|&tier| self.levels[tier].pool.readable(hash.key(), self.now)) else {
                break;
            };
            wanted[tier].push(hash.key());
            count += 1;
        }
        if count == 0 || count < at_least {
            return Ok(None);
        }
        // What leaves the host for them must not drive them out below before they are read.
        self.keep_below(&wanted, TierPool::pin);
        let (mut last, mut fetched) = (self.now, Vec::new());
        for (tier, keys) in wanted.iter().enumerate().filter(|(_, keys)| !keys.is_empty()) {
            let (kept, victims) = self.take_in(HOST, keys);
            self.write_back(HOST, &victims)?;
            if kept.is_empty() {
                continue;
            }
            let transfer = self.fetch(tier, &kept)?;
            for (at, &key) in kept.iter().enumerate() {
                let host = &mut self.levels[HOST].pool;
                host.arrives(key, transfer.until(at as u64 + 1, kept.len() as u64));
                host.pin(key);
            }
            last = last.max(transfer.end);
            fetched.extend(kept);
        }
        self.keep_below(&wanted, TierPool::unpin);
        self.num_pins += fetched.len() as u64;
        Ok((!fetched.is_empty()).then_some((last, fetched)))
    }

    /// Pins or unpins the blocks `keys[tier]` of each tier.
    fn keep_below(&mut self, keys: &[Vec<u64>], change: impl Fn(&mut TierPool, u64)) {
        for (level, keys) in self.levels.iter_mut().zip(keys) {
            for &key in keys {
                change(&mut level.pool, key);
            }
        }
    }

    /// Lets go of blocks of the host that a prefetch kept there.
    pub fn let_go(&mut self, keys: &[u64]) {
        for &key in keys {
            self.levels[HOST].pool.unpin(key);
        }
        self.num_pins -= keys.len() as u64;
    }

    /// Returns what each tier did. A shared pool counts for all replicas; its links for this one.
    pub fn counters(&self) -> Vec<TierCounters> {
        let counters = |level: &Level| {
            let ((read_bytes, _, read_busy_ns), (written_bytes, _, write_busy_ns)) =
                (level.read.totals(), level.write.totals());
            let mut counters = TierCounters {
                lookup_blocks: level.lookups,
                hit_blocks: level.hits,
                read_bytes,
                written_bytes,
                read_busy_ns,
                write_busy_ns,
                ..TierCounters::none(level.kind)
            };
            counters.add_pool(&level.pool);
            counters
        };
        self.levels.iter().map(counters).collect()
    }

    /// Checks every tier. O(blocks).
    ///
    /// # Errors
    /// [`SimError::Invariant`] naming the first law that does not hold.
    pub fn check_integrity(&self) -> Result<(), SimError> {
        for (tier, level) in self.levels.iter().enumerate() {
            level.pool.check_integrity(if tier == HOST { self.num_pins } else { 0 })?;
            if level.hits > level.lookups {
                let what = format!("KV tier: {} hits of {} look-ups", level.hits, level.lookups);
                return Err(SimError::Invariant { what });
            }
        }
        Ok(())
    }
}
