//! How much of a time rests on measurements.

/// Where a time comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Provenance {
    /// This very shape was profiled on this GPU, and the batch lies inside the measured ranges.
    Measured,
    /// Another shape of the same kernel was profiled on this GPU, and all features lie inside the measured ranges.
    Interpolated,
    /// A feature lies outside the measured range.
    Extrapolated,
    /// Nothing was measured on this GPU: a predictor of other GPUs, or the bound alone.
    Unmeasured,
}

impl Provenance {
    /// All of them, best first.
    pub const ALL: [Self; 4] = [Self::Measured, Self::Interpolated, Self::Extrapolated, Self::Unmeasured];

    /// Returns the name used in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Measured => "measured",
            Self::Interpolated => "interpolated",
            Self::Extrapolated => "extrapolated",
            Self::Unmeasured => "unmeasured",
        }
    }
}

/// A feature outside the range that was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outside {
    /// Its place in the operator's list of features.
    pub feature: usize,
    /// Its value.
    pub value: f32,
    /// Least measured value.
    pub low: f32,
    /// Greatest measured value.
    pub high: f32,
    /// How many times above the greatest, or below the least, measured value (for ranges that touch zero: how many
    /// widths of the range outside, plus one).
    pub distance: f64,
}

impl Outside {
    /// Returns the facts of `value` outside `low ..= high`.
    pub fn new(feature: usize, value: f32, low: f32, high: f32) -> Self {
        let (x, least, most) = (f64::from(value), f64::from(low), f64::from(high));
        let distance = if x > most && most > 0.0 {
            x / most
        } else if x < least && x > 0.0 {
            least / x
        } else {
            1.0 + (x - most).max(least - x) / (most - least).max(f64::MIN_POSITIVE)
        };
        Self { feature, value, low, high, distance: distance.min(f64::from(f32::MAX)) }
    }
}

/// Seconds of GPU time of one operator by provenance, and what lay furthest outside.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TrustTally {
    /// Seconds, in the order of [`Provenance::ALL`].
    pub seconds: [f64; 4],
    /// The furthest excursion.
    pub furthest: Option<Outside>,
}

impl TrustTally {
    /// Counts `seconds` of this provenance.
    #[inline]
    pub fn add(&mut self, seconds: f64, provenance: Provenance, outside: Option<&Outside>) {
        self.seconds[provenance as usize] += seconds;
        if let Some(outside) = outside
            && self.furthest.as_ref().is_none_or(|known| outside.distance > known.distance)
        {
            self.furthest = Some(*outside);
        }
    }
}

/// What a run's times of one operator rest on.
#[derive(Clone, Debug, PartialEq)]
pub struct OperatorTrust {
    /// Name in the program.
    pub name: String,
    /// Seconds and the furthest excursion.
    pub tally: TrustTally,
    /// Name of the feature of that excursion; empty without one.
    pub feature: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_factors() {
        assert!((Outside::new(0, 8.0, 1.0, 2.0).distance - 4.0).abs() < 1e-12);
        assert!((Outside::new(0, 0.5, 1.0, 2.0).distance - 2.0).abs() < 1e-12);
        assert!((Outside::new(0, 0.5, 0.0, 0.0).distance - f64::from(f32::MAX)).abs() < 1.0);
        assert!((Outside::new(0, -1.0, 0.0, 2.0).distance - 1.5).abs() < 1e-12);
    }

    #[test]
    fn the_furthest_excursion_is_kept() {
        let mut tally = TrustTally::default();
        for value in [3.0, 9.0, 5.0] {
            let outside = Outside::new(2, value, 1.0, 2.0);
            tally.add(0.5, Provenance::Extrapolated, Some(&outside));
        }
        tally.add(1.0, Provenance::Measured, None);
        assert_eq!(tally.seconds.map(f64::to_bits), [1.0, 0.0, 1.5, 0.0].map(f64::to_bits));
        assert_eq!(tally.furthest.map(|outside| outside.value), Some(9.0));
    }
}
