//! A link and a flow, and the units that their numbers have.

use super::broken;
use super::ends::NEVER;
use crate::error::SimError;
use crate::plan::network::MAX_BYTES_PER_S;
use crate::time::SimTime;

/// Units of a rate per byte per second.
pub(super) const RATE_UNITS: f64 = 16_384.0;
/// Units of what is left, per byte: units of a rate times nanoseconds.
pub(super) const UNITS_PER_BYTE: u128 = 16_384 * 1_000_000_000;
/// Growth of one stream of a bundle of one part, in units of growth.
pub(super) const GROWTH_BITS: u32 = 32;

/// One direction of a link, and who is on it.
#[derive(Clone, Debug, Default)]
pub(super) struct Link {
    pub(super) full_capacity: u64,
    pub(super) capacity: u64,
    /// Sum of the weights of its flows.
    pub(super) weight: u64,
    /// (slot, position in the flow's hops), in no order: sums over it are of integers.
    pub(super) flows: Vec<(u32, u32)>,
    /// Bytes that flows which are gone carried over it.
    pub(super) bytes: u128,
    pub(super) dirty: bool,
}

/// A flow's place on a link.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hop {
    pub(super) link: u32,
    /// Position among the link's flows.
    pub(super) at: u32,
    /// Parts of the flow that the link carries.
    pub(super) parts: u32,
    /// Parts times growth: its claim on the link.
    pub(super) weight: u64,
}

/// A flow under way; its memory is reused.
#[derive(Clone, Debug, Default)]
pub(super) struct Flow {
    pub(super) serial: u64,
    pub(super) tag: u64,
    pub(super) bytes: u64,
    pub(super) whole: u32,
    /// How fast a part grows while links are filled.
    pub(super) growth: u64,
    /// Most that a part may have; `NO_CEILING` without one.
    pub(super) ceiling: u64,
    pub(super) hops: Vec<Hop>,
    /// Rate of one part.
    pub(super) rate: u64,
    /// What was left at `since`.
    pub(super) left: u128,
    pub(super) since: SimTime,
    pub(super) live: bool,
}

pub(super) const NO_CEILING: u64 = u64::MAX;

impl Flow {
    /// Moves bytes up to `now`, at the rate so far.
    pub(super) fn bring_forward(&mut self, now: SimTime) {
        let moved = (u128::from(self.rate) * u128::from(self.whole))
            .saturating_mul(u128::from(now.since(self.since).0));
        self.left = self.left.saturating_sub(moved);
        self.since = now;
    }

    /// Returns the first nanosecond at which nothing is left.
    pub(super) fn end(&self) -> u64 {
        if self.left == 0 {
            return self.since.0;
        }
        if self.rate == 0 {
            return NEVER;
        }
        let duration = self.left.div_ceil(u128::from(self.rate) * u128::from(self.whole));
        let end = u128::from(self.since.0) + duration;
        if end > u128::from(SimTime::MAX.0) { NEVER } else { end as u64 }
    }

    /// Returns whole bytes moved up to `now`.
    pub(super) fn moved(&mut self, now: SimTime) -> u64 {
        self.bring_forward(now);
        self.bytes - self.left.div_ceil(UNITS_PER_BYTE) as u64
    }
}

pub(super) fn rate_units(bytes_per_s: f64) -> Result<u64, SimError> {
    if bytes_per_s > 0.0 && bytes_per_s <= MAX_BYTES_PER_S {
        return Ok(rate_units_of(bytes_per_s).max(1));
    }
    Err(broken("rates of links and flows are positive and at most 562 TB/s"))
}

/// Returns a rate in units, rounded down.
pub(in crate::network) fn rate_units_of(bytes_per_s: f64) -> u64 {
    (bytes_per_s * RATE_UNITS) as u64
}
