//! Order of the waiting queue: what a scheduler serves first, and who makes room for whom.

use serde::Deserialize;

use crate::error::SimError;

/// Most levels of a multi-level feedback queue.
pub const MAX_LEVELS: u32 = 16;
/// Longest text of a priority expression.
pub const MAX_EXPRESSION_BYTES: usize = 4096;

/// Order of the waiting queue and choice of preemption victims.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// First come, first served; the last admitted is preempted first.
    Fcfs,
    /// By (priority, arrival); the largest is preempted first.
    Priority,
    /// Shortest job first.
    Sjf(LengthSpec),
    /// Shortest remaining job first.
    Srpt(LengthSpec),
    /// Earliest deadline first.
    Edf(DeadlineSpec),
    /// Least slack (laxity) first.
    LeastSlack(SlackSpec),
    /// Skip-join multi-level feedback queue.
    Mlfq(MlfqSpec),
    /// Multi-level feedback over whole sessions.
    CMlfq(CausalMlfqSpec),
    /// Virtual token counter: fairness between clients.
    Vtc(VtcSpec),
    /// The value of an expression, smallest first.
    Expression(ExpressionSpec),
    /// The number that the caller's function gave each request on arrival, smallest first.
    Callable(PreemptiveSpec),
}

/// Which lengths a size-based policy goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobSize {
    /// The prompt, which is known.
    Prompt,
    /// The output, as predicted.
    Output,
    /// Prompt and predicted output.
    Total,
}

/// Size-based order.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LengthSpec {
    /// What counts as the size.
    pub by: JobSize,
    /// Standard deviation of the logarithm of predicted over true output length; 0 is an oracle.
    pub error: f64,
    /// Running requests make room for waiting ones that rank before them.
    pub preemptive: bool,
}

/// Which moment of a request its objective limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// Its first token.
    Ttft,
    /// Its last token.
    E2e,
}

/// Order by deadline: arrival plus an objective.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeadlineSpec {
    /// ns from arrival to deadline by the request's priority: the first for priority 0 and below, the last for
    /// its own and all larger ones.
    pub objectives_ns: Vec<u64>,
    /// Running requests make room for waiting ones that rank before them.
    pub preemptive: bool,
}

/// Order by slack: deadline, less now, less the time that the request still needs.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlackSpec {
    /// As in [`DeadlineSpec`].
    pub objectives_ns: Vec<u64>,
    /// What the objective limits: the first token, or the last.
    pub objective: Objective,
    /// Estimated ns per prompt token still to compute.
    pub per_prefill_token_ns: u64,
    /// Estimated ns per output token still to come.
    pub per_decode_token_ns: u64,
    /// Error of predicted output lengths, as in [`LengthSpec`].
    pub error: f64,
}

/// Skip-join multi-level feedback queue. Service is counted in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MlfqSpec {
    /// Queues, the first served first.
    pub levels: u32,
    /// Service after which a request leaves the first queue.
    pub quantum_tokens: u64,
    /// Quantum of a queue over that of the one before.
    pub growth: u32,
    /// Prompt tokens that count as one token of service.
    pub prompt_tokens_per_unit: u32,
    /// A request joins the first queue whose quantum covers its prompt.
    pub skip_join: bool,
    /// A request that waited so long goes to the first queue; `None` never does.
    pub starvation_ns: Option<u64>,
    /// Running requests make room for waiting ones of an earlier queue.
    pub preemptive: bool,
}

/// Multi-level feedback over sessions: a request starts where the service of its session has got.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CausalMlfqSpec {
    /// The queues; service is that of the whole session.
    pub queues: MlfqSpec,
    /// A turn that adds at most this many prompt tokens starts one queue earlier.
    pub small_return_tokens: u32,
    /// A turn that adds at least this many starts one queue later.
    pub large_return_tokens: u32,
}

/// Weights of a virtual token counter.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VtcSpec {
    /// Cost of a prompt token.
    pub input_weight: f64,
    /// Cost of an output token.
    pub output_weight: f64,
}

/// A priority expression.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpressionSpec {
    /// Its text.
    pub text: String,
    /// ns from arrival to deadline, as in [`DeadlineSpec`]; empty where the expression has no deadline.
    pub objectives_ns: Vec<u64>,
    /// Error of predicted output lengths, as in [`LengthSpec`].
    pub error: f64,
    /// Running requests make room for waiting ones that rank before them.
    pub preemptive: bool,
}

/// Whether running requests make room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreemptiveSpec {
    /// Running requests make room for waiting ones that rank before them.
    pub preemptive: bool,
}

impl Policy {
    /// Tells how predicted output lengths spread around true ones (standard deviation of the logarithm).
    pub fn prediction_error(&self) -> f64 {
        match self {
            Self::Sjf(spec) | Self::Srpt(spec) => spec.error,
            Self::LeastSlack(spec) => spec.error,
            Self::Expression(spec) => spec.error,
            _ => 0.0,
        }
    }

    /// Checks the settings on their own.
    ///
    /// # Errors
    /// [`SimError::Plan`] naming the first offending field.
    pub fn check(&self) -> Result<(), SimError> {
        let refuse = |field: &str, message: String| {
            Err(SimError::Plan { path: format!("scheduler.policy.{field}"), message })
        };
        let error = self.prediction_error();
        if !(0.0..=10.0).contains(&error) {
            return refuse("error", format!("was {error}, must be in [0, 10]"));
        }
        let objectives: &[u64] = match self {
            Self::Edf(spec) => &spec.objectives_ns,
            Self::LeastSlack(spec) => &spec.objectives_ns,
            _ => &[1],
        };
        if objectives.is_empty() {
            return refuse("objectives_ns", "was empty, must have at least one objective".into());
        }
        let queues = match self {
            Self::Mlfq(spec) => Some(spec),
            Self::CMlfq(spec) => Some(&spec.queues),
            _ => None,
        };
        if let Some(queues) = queues {
            if !(2..=MAX_LEVELS).contains(&queues.levels) {
                return refuse("levels", format!("was {}, must be from 2 to {MAX_LEVELS}", queues.levels));
            }
            for (field, value) in [
                ("quantum_tokens", queues.quantum_tokens),
                ("growth", u64::from(queues.growth)),
                ("prompt_tokens_per_unit", u64::from(queues.prompt_tokens_per_unit)),
            ] {
                if value == 0 {
                    return refuse(field, "was 0, must be at least 1".into());
                }
            }
        }
        if let Self::Vtc(spec) = self {
            for (field, value) in [("input_weight", spec.input_weight), ("output_weight", spec.output_weight)]
            {
                if !(0.0..=1e6).contains(&value) {
                    return refuse(field, format!("was {value}, must be in [0, 1e6]"));
                }
            }
        }
        if let Self::Expression(spec) = self
            && spec.text.len() > MAX_EXPRESSION_BYTES
        {
            let message = format!("has {} bytes, at most {MAX_EXPRESSION_BYTES}", spec.text.len());
            return refuse("text", message);
        }
        Ok(())
    }
}
