//! Length distributions in tokens.

use super::laws::{Zipf, standard_normal};
use crate::error::SimError;
use crate::plan::workload::{LengthSpec, lognormal_parameters};
use crate::rng::Stream;

/// Tries of the truncated lognormal. At the least acceptance allowed, 1 %, all fail once in 10^43 draws.
const MAX_TRIES: u32 = 10_000;

/// A checked length law.
#[derive(Clone, Debug)]
pub(super) enum Lengths {
    Fixed(u32),
    Uniform { min: u32, count: u64 },
    Lognormal { mu: f64, sigma: f64, min: u32, max: u32 },
    Zipf { law: Zipf, min: u32 },
    Histogram { edges: Vec<f64>, cumulative: Vec<f64>, last: usize },
}

impl Lengths {
    /// Returns the law of a checked specification.
    pub(super) fn new(spec: &LengthSpec) -> Self {
        match *spec {
            LengthSpec::Fixed { tokens } => Self::Fixed(tokens),
            LengthSpec::Uniform { min, max } => Self::Uniform { min, count: u64::from(max - min) + 1 },
            LengthSpec::Lognormal { mean, cv, min, max } => {
                let (mu, sigma) = lognormal_parameters(mean, cv);
                Self::Lognormal { mu, sigma, min, max }
            }
            LengthSpec::Zipf { exponent, min, max } => {
                Self::Zipf { law: Zipf::new(u64::from(max - min) + 1, exponent), min }
            }
            LengthSpec::Histogram { ref edges, ref weights } => Self::histogram(edges, weights),
        }
    }

    fn histogram(edges: &[f64], weights: &[f64]) -> Self {
        let mut sum = 0.0;
        let cumulative = weights.iter().map(|weight| {
            sum += weight;
            sum
        });
        Self::Histogram {
            cumulative: cumulative.collect(),
            edges: edges.to_vec(),
            last: weights.iter().rposition(|&weight| weight > 0.0).unwrap_or(0),
        }
    }

    /// Returns a length of at least 1 token.
    ///
    /// # Errors
    /// [`SimError::Input`] if a truncated law found no value inside its bounds, which a checked one does not.
    pub(super) fn draw(&self, stream: &mut Stream) -> Result<u32, SimError> {
        Ok(match self {
            Self::Fixed(tokens) => *tokens,
            Self::Uniform { min, count } => min + stream.below(*count) as u32,
            Self::Lognormal { mu, sigma, min, max } => {
                return truncated_lognormal(*mu, *sigma, *min, *max, stream);
            }
            Self::Zipf { law, min } => min + law.draw(stream) as u32,
            Self::Histogram { edges, cumulative, last } => {
                let target = stream.unit() * cumulative[*last];
                // Bins of weight 0 end where they begin and are stepped over.
                let bin = cumulative.partition_point(|&sum| sum <= target).min(*last);
                let length = edges[bin] + stream.unit() * (edges[bin + 1] - edges[bin]);
                length.round_ties_even().max(1.0) as u32
            }
        })
    }
}

fn truncated_lognormal(
    mu: f64,
    sigma: f64,
    min: u32,
    max: u32,
    stream: &mut Stream,
) -> Result<u32, SimError> {
    let range = f64::from(min)..=f64::from(max);
    for _ in 0..MAX_TRIES {
        let length = libm::exp(mu + sigma * standard_normal(stream)).round_ties_even().max(1.0);
        if range.contains(&length) {
            return Ok(length as u32);
        }
    }
    Err(SimError::Input {
        what: "lognormal lengths".into(),
        message: format!("{MAX_TRIES} draws in a row fell outside {min} ..= {max}"),
    })
}

#[cfg(test)]
mod tests;
