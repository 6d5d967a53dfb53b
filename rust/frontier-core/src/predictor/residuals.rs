//! How far measurements scatter around predictions: quantiles of `log(measured / predicted)` on rows that
//! training did not see.

use super::refuse;
use crate::error::SimError;

/// Largest log residual: a factor of half a billion.
const MAX_RESIDUAL: f64 = 20.0;

/// Quantiles of the log residual; none at all where too few rows were held out to know any.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResidualQuantiles {
    points: Vec<(f64, f64)>,
}

impl ResidualQuantiles {
    /// Checks and takes pairs of probability and log residual.
    ///
    /// # Errors
    /// [`SimError::Pack`] if probabilities do not ascend strictly within (0, 1), or residuals fall or are not
    /// finite.
    pub fn new(points: Vec<(f64, f64)>) -> Result<Self, SimError> {
        for (at, &(q, residual)) in points.iter().enumerate() {
            if !(q > 0.0 && q < 1.0 && residual.abs() <= MAX_RESIDUAL) {
                return Err(refuse(format!(
                    "residual_quantiles[{at}]: was [{q}, {residual}], must be [between 0 and 1, finite and at most {MAX_RESIDUAL} either way]"
                )));
            }
        }
        if let Some(at) = points.windows(2).position(|pair| pair[0].0 >= pair[1].0 || pair[0].1 > pair[1].1) {
            return Err(refuse(format!("residual_quantiles[{}]: the pairs must ascend", at + 1)));
        }
        Ok(Self { points })
    }

    /// Returns whether nothing is known of the scatter.
    pub fn is_empty(&self) -> bool {
        self.points.is_empty()
    }

    /// Returns the log residual at probability `u`: linear between quantiles, flat beyond the outer ones (also
    /// for NaN), 0 where none is known.
    pub fn at(&self, u: f64) -> f64 {
        let right = self.points.partition_point(|point| point.0 <= u);
        let (Some(&(q1, r1)), Some(&(q0, r0))) =
            (self.points.get(right), right.checked_sub(1).and_then(|left| self.points.get(left)))
        else {
            let outer = if right == 0 { self.points.first() } else { self.points.last() };
            return outer.map_or(0.0, |point| point.1);
        };
        r0 + (r1 - r0) * ((u - q0) / (q1 - q0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_met_and_flat_beyond_the_outer_ones() {
        let residuals = ResidualQuantiles::new(vec![(0.1, -0.5), (0.5, 0.0), (0.9, 1.0)]).unwrap();
        let expected =
            [(0.0, -0.5), (0.1, -0.5), (0.3, -0.25), (0.5, 0.0), (0.7, 0.5), (0.9, 1.0), (1.0, 1.0)];
        for (u, residual) in expected {
            assert!((residuals.at(u) - residual).abs() < 1e-12, "{u}");
        }
        assert!(!residuals.is_empty());
    }

    #[test]
    fn without_quantiles_there_is_no_residual() {
        let none = ResidualQuantiles::new(Vec::new()).unwrap();
        assert!(none.is_empty());
        assert_eq!(none.at(0.3).to_bits(), 0.0_f64.to_bits());
        let one = ResidualQuantiles::new(vec![(0.5, 0.25)]).unwrap();
        assert!([0.1, 0.5, 0.9].iter().all(|&u| (one.at(u) - 0.25).abs() < 1e-15));
    }

    #[test]
    fn pairs_out_of_order_or_range_are_refused() {
        let cases = [
            vec![(0.0, 0.0)],
            vec![(1.0, 0.0)],
            vec![(f64::NAN, 0.0)],
            vec![(0.5, f64::NAN)],
            vec![(0.5, 0.0), (0.5, 1.0)],
            vec![(0.4, 1.0), (0.5, 0.0)],
        ];
        for points in cases {
            assert!(ResidualQuantiles::new(points).is_err());
        }
    }
}
