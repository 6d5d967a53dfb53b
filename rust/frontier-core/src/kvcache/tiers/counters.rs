//! What tiers did, counted.

use super::pool::TierPool;
use crate::plan::kv_tiers::TierKind;

/// What a tier did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierCounters {
    /// Which tier.
    pub kind: TierKind,
    /// Blocks asked for that no faster tier had, over first admissions.
    pub lookup_blocks: u64,
    /// Those of them found here and used.
    pub hit_blocks: u64,
    /// Bytes that left it towards the device, per link.
    pub read_bytes: u64,
    /// Bytes that came in over its link.
    pub written_bytes: u64,
    /// Time in which the link towards the device was taken.
    pub read_busy_ns: u64,
    /// Time in which the link into the tier was taken.
    pub write_busy_ns: u64,
    /// Blocks that came in, by whatever way.
    pub inserted_blocks: u64,
    /// Blocks that had to leave.
    pub evicted_blocks: u64,
    /// Blocks that ran out of time.
    pub expired_blocks: u64,
    /// Blocks that found everything here in use, and were not kept.
    pub refused_blocks: u64,
    /// Most blocks held at once.
    pub peak_blocks: u64,
}

impl TierCounters {
    /// Returns the counters of a tier that did nothing.
    pub fn none(kind: TierKind) -> Self {
        Self {
            kind,
            lookup_blocks: 0,
            hit_blocks: 0,
            read_bytes: 0,
            written_bytes: 0,
            read_busy_ns: 0,
            write_busy_ns: 0,
            inserted_blocks: 0,
            evicted_blocks: 0,
            expired_blocks: 0,
            refused_blocks: 0,
            peak_blocks: 0,
        }
    }

    /// Adds the counters of another replica's tier.
    pub fn add(&mut self, other: &Self) {
        self.lookup_blocks += other.lookup_blocks;
        self.hit_blocks += other.hit_blocks;
        self.read_bytes += other.read_bytes;
        self.written_bytes += other.written_bytes;
        self.read_busy_ns += other.read_busy_ns;
        self.write_busy_ns += other.write_busy_ns;
        self.inserted_blocks += other.inserted_blocks;
        self.evicted_blocks += other.evicted_blocks;
        self.expired_blocks += other.expired_blocks;
        self.refused_blocks += other.refused_blocks;
        self.peak_blocks += other.peak_blocks;
    }

    /// Adds what happened to the blocks of a pool.
    pub fn add_pool(&mut self, pool: &TierPool) {
        let [inserted, evicted, expired, refused, peak] = pool.totals();
        self.inserted_blocks += inserted;
        self.evicted_blocks += evicted;
        self.expired_blocks += expired;
        self.refused_blocks += refused;
        self.peak_blocks += peak;
    }
}
