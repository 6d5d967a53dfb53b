//! What a scheduling policy is told about a request on its arrival: a prediction of its output length, or a number of
//! the caller's own.

use std::fmt;

use crate::error::SimError;
use crate::ids::ReplicaId;
use crate::plan::Policy;
use crate::rng::RngStreams;
use crate::scheduler::Gauges;
use crate::time::SimTime;
use crate::workload::{RequestSpec, standard_normal};

/// A request that arrives, and the engine that it was routed to.
#[derive(Clone, Copy, Debug)]
pub struct ArrivingRequest<'a> {
    /// The request; its output length is the true one, which no real engine knows.
    pub spec: &'a RequestSpec,
    /// When it reaches its engine.
    pub now: SimTime,
    /// Where it goes.
    pub replica: ReplicaId,
    /// The state of that engine before it.
    pub gauges: Gauges,
}

/// A policy of the caller's own, at admission granularity: it is asked once per request, on arrival, and its number
/// stays. Asking the caller again as requests wait would put foreign code into every step.
pub trait ArrivalPolicy: Send {
    /// Returns the rank of a request, smaller first.
    ///
    /// # Errors
    /// What is wrong, in words; the run then ends with [`SimError::Policy`].
    fn rank(&mut self, request: &ArrivingRequest<'_>) -> Result<f64, String>;
}

/// Numbers that requests get on arrival.
pub struct Scores {
    /// Standard deviation of the logarithm of predicted over true output length.
    error: f64,
    streams: RngStreams,
    policy: Option<Box<dyn ArrivalPolicy>>,
}

impl fmt::Debug for Scores {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Scores").field("error", &self.error).finish_non_exhaustive()
    }
}

impl Scores {
    /// Returns the scores that a policy asks for.
    pub fn new(policy: &Policy, streams: &RngStreams) -> Self {
        Self { error: policy.prediction_error(), streams: *streams, policy: None }
    }

    /// Asks the caller's policy from now on.
    pub fn ask(&mut self, policy: Box<dyn ArrivalPolicy>) {
        self.policy = Some(policy);
    }

    /// Returns the number that the caller's policy gives, or the predicted output length of a request in tokens: the
    /// true one, times a lognormal error of its own that depends on the request's number alone.
    ///
    /// # Errors
    /// [`SimError::Policy`] where the caller's policy fails or its number is none.
    pub fn of(&mut self, request: &ArrivingRequest<'_>) -> Result<f64, SimError> {
        let spec = request.spec;
        if let Some(policy) = &mut self.policy {
            let refuse = |message| SimError::Policy { request: spec.id.0, message };
            let rank = policy.rank(request).map_err(refuse)?;
            return if rank.is_nan() { Err(refuse("its rank is not a number".into())) } else { Ok(rank) };
        }
        let truth = f64::from(spec.output_tokens);
        if self.error == 0.0 {
            return Ok(truth);
        }
        let mut stream = self.streams.get(&format!("policy.prediction.{}", spec.id.0));
        Ok(truth * libm::exp(self.error * standard_normal(&mut stream)))
    }
}
