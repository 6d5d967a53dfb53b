//! Simulated time: integer nanoseconds, and the one conversion from floating point.

use std::ops::Sub;

use crate::error::SimError;

/// A moment, in nanoseconds since the start of the simulation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct SimTime(pub u64);

/// A length of time in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct SimDuration(pub u64);

impl SimTime {
    /// The start of the simulation.
    pub const ZERO: Self = Self(0);
    /// The end of simulated time, 292 years from the start: times fit a signed column.
    pub const MAX: Self = Self(i64::MAX as u64);

    /// Returns `self + duration`.
    ///
    /// # Errors
    /// [`SimError::ClockOverflow`] past [`Self::MAX`].
    #[inline]
    pub fn after(self, duration: SimDuration) -> Result<Self, SimError> {
        let time = self.0.checked_add(duration.0).map(Self);
        time.filter(|&time| time <= Self::MAX).ok_or(SimError::ClockOverflow)
    }

    /// Returns the time since `earlier`, zero if `earlier` is later.
    #[inline]
    pub fn since(self, earlier: Self) -> SimDuration {
        SimDuration(self.0.saturating_sub(earlier.0))
    }
}

impl SimDuration {
    /// No time at all.
    pub const ZERO: Self = Self(0);

    /// Converts seconds to nanoseconds, rounding half to even. The only way from `f64` to time.
    ///
    /// # Errors
    /// [`SimError::InvalidDuration`] if `seconds` is NaN, negative, infinite or over 2^63 ns.
    #[inline]
    pub fn from_seconds(seconds: f64) -> Result<Self, SimError> {
        let ns = (seconds * 1e9).round_ties_even();
        // A range contains no NaN, so NaN is refused as well.
        if (0.0..9.223_372_036_854_775e18).contains(&ns) {
            Ok(Self(ns as u64))
        } else {
            Err(SimError::InvalidDuration { seconds })
        }
    }

    /// Returns the duration in seconds.
    #[inline]
    pub fn as_seconds(self) -> f64 {
        self.0 as f64 / 1e9
    }
}

impl Sub for SimDuration {
    type Output = Self;

    #[inline]
    fn sub(self, other: Self) -> Self {
        Self(self.0 - other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_round_half_to_even() {
        assert_eq!(SimDuration::from_seconds(0.5e-9).unwrap().0, 0);
        assert_eq!(SimDuration::from_seconds(1.5e-9).unwrap().0, 2);
        assert_eq!(SimDuration::from_seconds(1.0).unwrap().0, 1_000_000_000);
    }

    #[test]
    fn seconds_that_are_no_duration_are_refused() {
        for bad in [f64::NAN, -1e-9, f64::INFINITY, f64::NEG_INFINITY, 1e30] {
            assert!(SimDuration::from_seconds(bad).is_err(), "{bad} was accepted");
        }
    }

    #[test]
    fn the_clock_does_not_wrap() {
        assert!(SimTime::MAX.after(SimDuration(1)).is_err());
        assert!(SimTime::MAX.after(SimDuration(u64::MAX)).is_err());
        assert_eq!(SimTime(1).after(SimDuration(2)), Ok(SimTime(3)));
    }
}
