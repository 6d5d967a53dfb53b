//! Checks of a workload's values, each refusal with the path of the field.

use super::{
    ArrivalSpec, EncoderSpec, LengthSpec, RateSegment, SharedPrefixSpec, SyntheticSpec, WorkloadSpec,
};
use crate::error::SimError;

/// Arrival rates that gaps of whole nanoseconds can follow.
const RATES_PER_S: std::ops::RangeInclusive<f64> = 1e-9..=1e9;
/// Most requests of a run: request ids have 32 bits.
const MAX_REQUESTS: u64 = u32::MAX as u64;
/// Least share of lognormal draws that must fall inside the bounds.
const MIN_ACCEPTANCE: f64 = 0.01;

impl WorkloadSpec {
    /// Checks the settings on their own (the trace is not looked at).
    ///
    /// # Errors
    /// [`SimError::Plan`] naming the first offending field.
    pub fn check(&self) -> Result<(), SimError> {
        match self {
            Self::Trace { arrivals, num_requests } => {
                check_num_requests(*num_requests)?;
                arrivals.as_ref().map_or(Ok(()), |arrivals| arrivals.check("workload.arrivals"))
            }
            Self::Synthetic(spec) => spec.check(),
        }
    }
}

impl SyntheticSpec {
    fn check(&self) -> Result<(), SimError> {
        check_num_requests(self.num_requests)?;
        match (self.num_requests, self.duration_ns) {
            (None, None) => {
                return refuse(
                    "workload",
                    "neither num_requests nor duration_ns is set, at least one must be".into(),
                );
            }
            (_, Some(0)) => {
                return refuse("workload.duration_ns", "was 0, must be at least 1".into());
            }
            (None, Some(_)) if self.arrivals == ArrivalSpec::Burst {} => {
                let message =
                    "is not set, but burst arrivals (all at time 0) end only after num_requests".into();
                return refuse("workload.num_requests", message);
            }
            _ => {}
        }
        self.arrivals.check("workload.arrivals")?;
        self.prompt_tokens.check("workload.prompt_tokens")?;
        self.output_tokens.check("workload.output_tokens")?;
        if let Some(prefix) = &self.shared_prefix {
            prefix.check()?;
        }
        if self.sessions == Some(0) {
            return refuse("workload.sessions", "was 0, must be at least 1 (or null for no sessions)".into());
        }
        if i32::try_from(self.max_priority).is_err() {
            return refuse(
                "workload.max_priority",
                format!("was {}, must be at most {}", self.max_priority, i32::MAX),
            );
        }
        for (number, &share) in self.models.iter().enumerate() {
            positive("workload", &format!("models[{number}]"), share, 1e9)?;
        }
        if let Some(encoder) = &self.encoder {
            encoder.check()?;
        }
        self.check_total_tokens()
    }

    /// A request's prompt and output together are counted in 32 bits.
    fn check_total_tokens(&self) -> Result<(), SimError> {
        let prefix = self.shared_prefix.as_ref().map_or(0, |prefix| u64::from(prefix.tokens.max_tokens()));
        let prompt = u64::from(self.prompt_tokens.max_tokens());
        let output = u64::from(self.output_tokens.max_tokens());
        let total = prefix + prompt + output;
        if total > u64::from(u32::MAX) {
            return refuse(
                "workload.prompt_tokens",
                format!(
                    "the longest shared prefix, prompt and output add up to {total} tokens ({prefix} + {prompt} + \
                     {output}), must be at most {}",
                    u32::MAX
                ),
            );
        }
        Ok(())
    }
}

impl EncoderSpec {
    fn check(&self) -> Result<(), SimError> {
        let path = "workload.encoder";
        self.tokens.check(&format!("{path}.tokens"))?;
        within(path, "share", self.share, 0.0, 1.0)
    }
}

impl SharedPrefixSpec {
    fn check(&self) -> Result<(), SimError> {
        let path = "workload.shared_prefix";
        at_least_one(path, "count", self.count)?;
        self.tokens.check(&format!("{path}.tokens"))?;
        within(path, "zipf_exponent", self.zipf_exponent, 0.0, 100.0)?;
        within(path, "share", self.share, 0.0, 1.0)
    }
}

impl ArrivalSpec {
    fn check(&self, path: &str) -> Result<(), SimError> {
        match self {
            Self::Poisson { rate_per_s } | Self::Constant { rate_per_s } => check_rate(path, *rate_per_s),
            Self::Gamma { rate_per_s, cv } => {
                check_rate(path, *rate_per_s)?;
                within(path, "cv", *cv, 1e-4, 1e3)
            }
            Self::Burst {} => Ok(()),
            Self::Piecewise { segments, .. } => check_segments(path, segments),
            Self::ClosedLoop { concurrency, .. } => at_least_one(path, "concurrency", *concurrency),
        }
    }
}

impl LengthSpec {
    /// Returns an upper bound of what the law can draw.
    pub fn max_tokens(&self) -> u32 {
        match self {
            Self::Fixed { tokens } => *tokens,
            Self::Uniform { max, .. } | Self::Lognormal { max, .. } | Self::Zipf { max, .. } => *max,
            // The cast saturates; the check of the edges keeps them inside 32 bits.
            Self::Histogram { edges, .. } => {
                edges.last().map_or(1, |edge| edge.round_ties_even().max(1.0) as u32)
            }
        }
    }

    fn check(&self, path: &str) -> Result<(), SimError> {
        match self {
            Self::Fixed { tokens } => at_least_one(path, "tokens", *tokens),
            Self::Uniform { min, max } => check_bounds(path, *min, *max),
            Self::Lognormal { mean, cv, min, max } => {
                check_bounds(path, *min, *max)?;
                positive(path, "mean", *mean, 1e15)?;
                within(path, "cv", *cv, 0.0, 1e3)?;
                check_acceptance(path, lognormal_parameters(*mean, *cv), *min, *max)
            }
            Self::Zipf { exponent, min, max } => {
                check_bounds(path, *min, *max)?;
                positive(path, "exponent", *exponent, 100.0)
            }
            Self::Histogram { edges, weights } => check_histogram(path, edges, weights),
        }
    }
}

/// Returns (mu, sigma) of the lognormal law with this mean and coefficient of variation.
pub(crate) fn lognormal_parameters(mean: f64, cv: f64) -> (f64, f64) {
    let variance = libm::log1p(cv * cv);
    (libm::log(mean) - 0.5 * variance, variance.sqrt())
}

fn refuse(path: &str, message: String) -> Result<(), SimError> {
    Err(SimError::Plan { path: path.into(), message })
}

fn check_num_requests(num_requests: Option<u64>) -> Result<(), SimError> {
    match num_requests {
        Some(n) if n == 0 || n > MAX_REQUESTS => {
            refuse("workload.num_requests", format!("was {n}, must be in 1 ..= {MAX_REQUESTS}"))
        }
        _ => Ok(()),
    }
}

fn at_least_one(path: &str, field: &str, value: u32) -> Result<(), SimError> {
    if value == 0 {
        return refuse(&format!("{path}.{field}"), "was 0, must be at least 1".into());
    }
    Ok(())
}

/// Refuses what is outside `low ..= high`, and NaN.
fn within(path: &str, field: &str, value: f64, low: f64, high: f64) -> Result<(), SimError> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    refuse(&format!("{path}.{field}"), format!("was {value}, must be in {low} ..= {high:e}"))
}

/// Refuses what is not over 0 or is over `high`, and NaN.
fn positive(path: &str, field: &str, value: f64, high: f64) -> Result<(), SimError> {
    if value > 0.0 && value <= high {
        return Ok(());
    }
    refuse(&format!("{path}.{field}"), format!("was {value}, must be over 0 and at most {high:e}"))
}

fn check_rate(path: &str, rate_per_s: f64) -> Result<(), SimError> {
    if RATES_PER_S.contains(&rate_per_s) {
        return Ok(());
    }
    let (low, high) = (RATES_PER_S.start(), RATES_PER_S.end());
    refuse(&format!("{path}.rate_per_s"), format!("was {rate_per_s}, must be in {low:e} ..= {high:e}"))
}

fn check_segments(path: &str, segments: &[RateSegment]) -> Result<(), SimError> {
    let mut length_ns = 0_u64;
    for (i, segment) in segments.iter().enumerate() {
        let path = format!("{path}.segments[{i}]");
        if segment.duration_ns == 0 {
            return refuse(&format!("{path}.duration_ns"), "was 0, must be at least 1".into());
        }
        let Some(end) = length_ns.checked_add(segment.duration_ns) else {
            let message =
                format!("was {}, which takes the sum of all durations past 2^64 - 1 ns", segment.duration_ns);
            return refuse(&format!("{path}.duration_ns"), message);
        };
        length_ns = end;
        if segment.rate_per_s != 0.0 {
            check_rate(&path, segment.rate_per_s)?;
        }
    }
    if segments.iter().all(|segment| segment.rate_per_s == 0.0) {
        let what = if segments.is_empty() { "is empty" } else { "has only rates of 0" };
        return refuse(
            &format!("{path}.segments"),
            format!("{what}, must have a segment with a rate over 0"),
        );
    }
    Ok(())
}

fn check_bounds(path: &str, min: u32, max: u32) -> Result<(), SimError> {
    at_least_one(path, "min", min)?;
    if max < min {
        return refuse(&format!("{path}.max"), format!("was {max}, must be at least min, which is {min}"));
    }
    Ok(())
}

fn check_acceptance(path: &str, (mu, sigma): (f64, f64), min: u32, max: u32) -> Result<(), SimError> {
    let above = |tokens: f64| {
        let log = libm::log(tokens);
        if sigma > 0.0 {
            0.5 * libm::erfc((log - mu) / (sigma * std::f64::consts::SQRT_2))
        } else {
            f64::from(u8::from(log <= mu))
        }
    };
    // A draw that rounds to 0 counts as 1.
    let from_min = if min > 1 { above(f64::from(min) - 0.5) } else { 1.0 };
    let acceptance = from_min - above(f64::from(max) + 0.5);
    if acceptance < MIN_ACCEPTANCE {
        return refuse(
            path,
            format!(
                "only {:.3} % of the lognormal draws fall inside min ..= max ({min} ..= {max}), must be at least 1 %; \
                 widen the bounds or move the mean between them",
                100.0 * acceptance
            ),
        );
    }
    Ok(())
}

fn check_histogram(path: &str, edges: &[f64], weights: &[f64]) -> Result<(), SimError> {
    if weights.is_empty() || edges.len() != weights.len() + 1 {
        let message = format!(
            "has {} entries for {} weights, must have one more than weights, and at least one weight is needed",
            edges.len(),
            weights.len()
        );
        return refuse(&format!("{path}.edges"), message);
    }
    let mut least = 0.0;
    for (i, &edge) in edges.iter().enumerate() {
        let rises = edge > least || (i == 0 && edge >= 0.0);
        if !(rises && edge <= f64::from(u32::MAX)) {
            let message =
                format!("was {edge}, must be over the edge before, not negative, and at most {}", u32::MAX);
            return refuse(&format!("{path}.edges[{i}]"), message);
        }
        least = edge;
    }
    for (i, &weight) in weights.iter().enumerate() {
        within(path, &format!("weights[{i}]"), weight, 0.0, 1e300 / weights.len() as f64)?;
    }
    if weights.iter().all(|&weight| weight == 0.0) {
        return refuse(&format!("{path}.weights"), "are all 0, at least one must be over 0".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
