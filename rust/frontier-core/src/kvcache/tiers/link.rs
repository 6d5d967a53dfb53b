//! A link between two tiers: one transfer at a time, first come, first served.

use crate::error::SimError;
use crate::time::SimTime;

const NS_PER_S: u128 = 1_000_000_000;

/// One direction of the way to a tier.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    bytes_per_s: u64,
    latency_ns: u64,
    free: SimTime,
    bytes: u64,
    transfers: u64,
    busy_ns: u64,
}

/// When a transfer crosses its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// When the first byte moves: after those before it, and the latency.
    pub begin: SimTime,
    /// When the last byte has arrived.
    pub end: SimTime,
}

impl Transfer {
    /// Returns when the first `part` of `whole` equal pieces have arrived, rounded up.
    pub fn until(&self, part: u64, whole: u64) -> SimTime {
        let span = u128::from(self.end.since(self.begin).0);
        SimTime(self.begin.0 + (span * u128::from(part)).div_ceil(u128::from(whole.max(1))) as u64)
    }
}

impl Link {
    /// Returns an idle link. `bytes_per_s` must be positive.
    pub fn new(bytes_per_s: u64, latency_ns: u64) -> Self {
        Self { bytes_per_s, latency_ns, free: SimTime::ZERO, bytes: 0, transfers: 0, busy_ns: 0 }
    }

    /// Sends `bytes`, not before `earliest` and after everything sent before: `latency + bytes / bandwidth`,
    /// rounded up to whole nanoseconds.
    ///
    /// # Errors
    /// [`SimError::ClockOverflow`].
    pub fn send(&mut self, bytes: u64, earliest: SimTime) -> Result<Transfer, SimError> {
        let start = self.free.max(earliest);
        let moving = (u128::from(bytes) * NS_PER_S).div_ceil(u128::from(self.bytes_per_s));
        let end = u128::from(start.0) + u128::from(self.latency_ns) + moving;
        if end > u128::from(SimTime::MAX.0) {
            return Err(SimError::ClockOverflow);
        }
        let end = SimTime(end as u64);
        self.free = end;
        self.bytes += bytes;
        self.transfers += 1;
        self.busy_ns += end.since(start).0;
        Ok(Transfer { begin: SimTime(start.0 + self.latency_ns), end })
    }

    /// Returns bytes sent, transfers, and ns in which the link was taken.
    pub fn totals(&self) -> (u64, u64, u64) {
        (self.bytes, self.transfers, self.busy_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfers_follow_each_other() {
        let mut link = Link::new(2_000_000_000, 100);
        let first = link.send(2_000, SimTime(50)).unwrap();
        assert_eq!(first, Transfer { begin: SimTime(150), end: SimTime(1_150) });
        // Asked for earlier than the link is free.
        let second = link.send(1, SimTime(60)).unwrap();
        assert_eq!(second, Transfer { begin: SimTime(1_250), end: SimTime(1_251) });
        // After a gap.
        assert_eq!(link.send(0, SimTime(5_000)).unwrap().end, SimTime(5_100));
        assert_eq!(link.totals(), (2_001, 3, 1_100 + 101 + 100));
        assert_eq!((first.until(1, 4), first.until(4, 4)), (SimTime(400), SimTime(1_150)));
    }

    #[test]
    fn time_does_not_overflow() {
        let mut link = Link::new(1, 0);
        assert_eq!(link.send(u64::MAX, SimTime::ZERO), Err(SimError::ClockOverflow));
        assert_eq!(link.send(1, SimTime::ZERO).unwrap().end, SimTime(1_000_000_000));
    }
}
