//! What a scheduling policy is told about a request on its arrival: a prediction of its output length.

use crate::plan::Policy;
use crate::rng::RngStreams;
use crate::workload::{RequestSpec, standard_normal};

/// Numbers that requests get on arrival.
#[derive(Clone, Debug)]
pub struct Scores {
    /// Standard deviation of the logarithm of predicted over true output length.
    error: f64,
    streams: RngStreams,
}

impl Scores {
    /// Returns the scores that a policy asks for.
    pub fn new(policy: &Policy, streams: &RngStreams) -> Self {
        Self { error: policy.prediction_error(), streams: *streams }
    }

    /// Returns the predicted output length of a request in tokens: the true one, times a lognormal error of its own
    /// that depends on the request's number alone.
    pub fn of(&self, spec: &RequestSpec) -> f64 {
        let truth = f64::from(spec.output_tokens);
        if self.error == 0.0 {
            return truth;
        }
        let mut stream = self.streams.get(&format!("policy.prediction.{}", spec.id.0));
        truth * libm::exp(self.error * standard_normal(&mut stream))
    }
}
