//! Where requests come from: a trace, or arrival processes and length distributions.

use serde::Deserialize;

mod check;

pub(crate) use check::lognormal_parameters;

/// The source of requests.
#[expect(clippy::large_enum_variant, reason = "a plan has one")]
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum WorkloadSpec {
    /// Rows of a trace, whose columns are handed over beside the plan.
    Trace {
        /// Replaces the trace's own arrival times (rows are then taken in order), if set.
        arrivals: Option<ArrivalSpec>,
        /// Number of requests; more than the trace has rows starts it over (needs `arrivals`). `None`: all rows.
        num_requests: Option<u64>,
    },
    /// Requests drawn from distributions.
    Synthetic(SyntheticSpec),
}

/// Requests drawn from distributions, each from a stream of its own.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyntheticSpec {
    /// When requests arrive.
    pub arrivals: ArrivalSpec,
    /// Stop after this many requests. At least one of this and `duration_ns` is set.
    pub num_requests: Option<u64>,
    /// Stop before the first arrival later than this (closed loop: no new request from then on).
    pub duration_ns: Option<u64>,
    /// Prompt lengths, shared prefix not included.
    pub prompt_tokens: LengthSpec,
    /// Output lengths.
    pub output_tokens: LengthSpec,
    /// Prefixes shared between requests, if any.
    pub shared_prefix: Option<SharedPrefixSpec>,
    /// Number of sessions that requests are drawn into, uniformly; `None`: no sessions.
    pub sessions: Option<u32>,
    /// Priorities drawn uniformly from 0 ..= this; 0 gives all requests priority 0.
    pub max_priority: u32,
    /// The share of requests for each of the plan's paths, relative to the others; none: all are for the first.
    #[serde(default)]
    pub models: Vec<f64>,
    /// What requests bring to be encoded, if any do.
    pub encoder: Option<EncoderSpec>,
}

/// What an encoder computes before the prompt: images, in tokens of the encoder.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderSpec {
    /// Tokens of a request that has any.
    pub tokens: LengthSpec,
    /// Share of requests that have any, in [0, 1].
    pub share: f64,
}

/// Prompts begin with one of `count` prefixes of `tokens` tokens each.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedPrefixSpec {
    /// Number of distinct prefixes, at least 1.
    pub count: u32,
    /// Length of each.
    pub tokens: LengthSpec,
    /// Popularity of prefix i is proportional to 1 / (i + 1)^exponent; 0 is uniform, 100 the most.
    pub zipf_exponent: f64,
    /// Share of requests that have a prefix at all, in [0, 1].
    pub share: f64,
}

/// Arrival processes. Every process starts at time 0 and the first arrival comes after the first gap, so that a
/// stretch of length T sees `rate * T` arrivals on average. Rates lie in 1e-9 ..= 1e9 per second.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ArrivalSpec {
    /// Exponential gaps; no cap on a gap, so the rate is unbiased.
    Poisson {
        /// Mean arrivals per second.
        rate_per_s: f64,
    },
    /// Gamma-distributed gaps: shape `1 / cv^2`, mean `1 / rate_per_s`.
    Gamma {
        /// Mean arrivals per second.
        rate_per_s: f64,
        /// Coefficient of variation of a gap (1 is Poisson), in 1e-4 ..= 1e3.
        cv: f64,
    },
    /// Equal gaps.
    Constant {
        /// Arrivals per second.
        rate_per_s: f64,
    },
    /// Everything at time 0 (offline inference).
    Burst {},
    /// A Poisson process whose rate changes at given times.
    Piecewise {
        /// Rates in order.
        segments: Vec<RateSegment>,
        /// Start over after the last segment; otherwise the last rate stays (and if it is 0, arrivals end).
        repeat: bool,
    },
    /// `concurrency` clients, each sending its next request `think_time_ns` after its last one ended.
    ClosedLoop {
        /// Clients.
        concurrency: u32,
        /// Pause between a completion and the next request.
        think_time_ns: u64,
    },
}

/// A stretch of time with one arrival rate.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateSegment {
    /// Length of the stretch, at least 1 ns.
    pub duration_ns: u64,
    /// Mean arrivals per second; 0 is a pause, but not all rates may be 0.
    pub rate_per_s: f64,
}

/// Length distributions, in tokens. Draws are rounded to whole tokens (half to even) and at least 1.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum LengthSpec {
    /// Always the same.
    Fixed {
        /// Tokens.
        tokens: u32,
    },
    /// Uniform over `min ..= max`.
    Uniform {
        /// Least.
        min: u32,
        /// Most.
        max: u32,
    },
    /// Lognormal with the given mean and coefficient of variation of the *untruncated* law, redrawn until the
    /// rounded draw (0 counts as 1) is inside `min ..= max`. Refused if fewer than 1 % of the draws would be.
    Lognormal {
        /// Mean in tokens.
        mean: f64,
        /// Standard deviation / mean.
        cv: f64,
        /// Least.
        min: u32,
        /// Most.
        max: u32,
    },
    /// Zipf over `min ..= max`: length `min + i` has weight 1 / (i + 1)^exponent.
    Zipf {
        /// Exponent, over 0 and at most 100.
        exponent: f64,
        /// Least.
        min: u32,
        /// Most.
        max: u32,
    },
    /// Empirical: bin i covers `edges[i] .. edges[i + 1]` with weight `weights[i]`, uniform inside.
    Histogram {
        /// Bin edges, not negative, increasing, one more than weights.
        edges: Vec<f64>,
        /// Weights, not negative, not all zero.
        weights: Vec<f64>,
    },
}
