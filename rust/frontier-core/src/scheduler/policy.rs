//! What is served first: the rank of a request under the scheduling policy, smaller first, and the service that
//! policies keep account of. Ties go to the earlier arrival.
//!
//! A policy orders the waiting queue. Who is preempted when blocks run out is the last in its order too. Where a
//! policy is `preemptive`, running requests also make room for waiting ones that rank before them; preemption
//! recomputes, so that this costs the work that is dropped.

mod c_mlfq;
mod deadline;
mod expression;
mod mlfq;
mod size;
mod vtc;

use std::cmp::Ordering;

pub use expression::{Expression, ExpressionError};

use self::c_mlfq::CausalMlfq;
use self::deadline::{Deadlines, Slack};
use self::mlfq::Mlfq;
use self::size::Size;
use self::vtc::Vtc;
use super::live::{LiveRequest, Status};
use crate::error::SimError;
use crate::plan::Policy;
use crate::time::SimTime;

/// What policies keep about a request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Service {
    /// Its rank, as last computed.
    pub(crate) rank: f64,
    /// Its predicted output length in tokens, or the number that the caller's function gave it.
    pub(crate) score: f64,
    /// Tokens computed for it, recomputed ones included and rejected drafts not.
    pub(crate) attained_tokens: u64,
    /// Feedback queue that it is in.
    pub(crate) level: u32,
    /// Service in that queue, in the units of the queue.
    pub(crate) served_in_level: u64,
    /// When it was last part of a batch, or arrived.
    pub(crate) last_served: SimTime,
}

/// A policy at work.
#[derive(Clone, Debug)]
pub(super) enum Ranking {
    Fcfs,
    Priority,
    Size(Size),
    Deadlines(Deadlines),
    Slack(Slack),
    Mlfq(Mlfq),
    CausalMlfq(CausalMlfq),
    Vtc(Vtc),
    Expression(Box<Expression>),
    Callable { preemptive: bool },
}

impl Ranking {
    pub(super) fn new(policy: &Policy) -> Self {
        match policy {
            Policy::Fcfs => Self::Fcfs,
            Policy::Priority => Self::Priority,
            Policy::Sjf(spec) => Self::Size(Size::of_job(spec)),
            Policy::Srpt(spec) => Self::Size(Size::of_rest(spec)),
            Policy::Edf(spec) => Self::Deadlines(Deadlines::new(spec)),
            Policy::LeastSlack(spec) => Self::Slack(Slack::new(spec)),
            Policy::Mlfq(spec) => Self::Mlfq(Mlfq::new(spec)),
            Policy::CMlfq(spec) => Self::CausalMlfq(CausalMlfq::new(spec)),
            Policy::Vtc(spec) => Self::Vtc(Vtc::new(spec)),
            Policy::Expression(spec) => Self::Expression(Box::new(Expression::of_checked_plan(spec))),
            Policy::Callable(spec) => Self::Callable { preemptive: spec.preemptive },
        }
    }

    /// First come, first served: the queue needs no ranks.
    #[inline]
    pub(super) fn is_fcfs(&self) -> bool {
        matches!(self, Self::Fcfs)
    }

    /// Ranks change while requests wait.
    #[inline]
    pub(super) fn is_dynamic(&self) -> bool {
        match self {
            Self::Slack(_) | Self::Vtc(_) => true,
            Self::Mlfq(queues) => queues.promotes(),
            Self::CausalMlfq(policy) => policy.queues().promotes(),
            Self::Expression(expression) => expression.is_dynamic(),
            _ => false,
        }
    }

    /// Ranks of running requests change with their output, which comes after a batch is formed.
    #[inline]
    pub(super) fn follows_output(&self) -> bool {
        match self {
            Self::Size(policy) => policy.counts_the_rest(),
            Self::Expression(_) => true,
            _ => false,
        }
    }

    /// Running requests make room for waiting ones that rank before them.
    #[inline]
    pub(super) fn is_preemptive(&self) -> bool {
        match self {
            Self::Size(policy) => policy.preemptive(),
            Self::Deadlines(policy) => policy.preemptive(),
            Self::Mlfq(queues) => queues.preemptive(),
            Self::CausalMlfq(policy) => policy.queues().preemptive(),
            Self::Expression(expression) => expression.is_preemptive(),
            Self::Callable { preemptive } => *preemptive,
            Self::Fcfs | Self::Priority | Self::Slack(_) | Self::Vtc(_) => false,
        }
    }

    /// A new request joins the queue.
    pub(super) fn arrives(&mut self, request: &mut LiveRequest) {
        request.service.last_served = request.arrival;
        match self {
            Self::Mlfq(queues) => queues.join(request),
            Self::CausalMlfq(policy) => policy.join(request),
            Self::Vtc(counters) => counters.arrives(request.client),
            Self::Expression(expression) => expression.arrives(request),
            _ => {}
        }
        request.service.rank = self.rank(request, request.arrival);
    }

    /// A request that was running joins the queue again.
    pub(super) fn returns(&mut self, request: &LiveRequest) {
        if let Self::Vtc(counters) = self {
            counters.returns(request.client);
        }
    }

    /// A request in the queue is over: output that was in flight when it was preempted was its last.
    pub(super) fn ends_waiting(&mut self, request: &LiveRequest) {
        if let Self::Vtc(counters) = self {
            counters.leaves(request.client);
        }
    }

    /// A request leaves the queue to run. Tells whether that changes the ranks of others.
    pub(super) fn admitted(&mut self, request: &LiveRequest) -> bool {
        if let Self::Vtc(counters) = self {
            counters.admitted(request);
            return true;
        }
        false
    }

    /// A batch formed now computes `num_tokens` tokens of a request after the first `computed_before`.
    pub(super) fn served(
        &mut self,
        request: &mut LiveRequest,
        computed_before: u32,
        num_tokens: u32,
        now: SimTime,
    ) {
        request.service.attained_tokens += u64::from(num_tokens);
        request.service.last_served = now;
        match self {
            Self::Mlfq(queues) => queues.served(request, computed_before, num_tokens),
            Self::CausalMlfq(policy) => policy.served(request, computed_before, num_tokens),
            Self::Vtc(counters) => counters.served(request, computed_before, num_tokens),
            Self::Expression(expression) => expression.served(request, num_tokens),
            _ => {}
        }
        request.service.rank = self.rank(request, now);
    }

    /// Drafts of a request were accepted: so many output tokens more than its steps count.
    pub(super) fn accepted(&mut self, request: &mut LiveRequest, num_tokens: u32, now: SimTime) {
        request.service.attained_tokens += u64::from(num_tokens);
        let prompt = request.prompt_tokens;
        match self {
            Self::Mlfq(queues) => queues.served(request, prompt, num_tokens),
            Self::CausalMlfq(policy) => policy.served(request, prompt, num_tokens),
            Self::Vtc(counters) => counters.accepted(request, num_tokens),
            Self::Expression(expression) => expression.served(request, num_tokens),
            _ => {}
        }
        // The queue is in the order of the ranks as last computed: one of its own waits until it is ordered anew.
        if request.status == Status::Running {
            request.service.rank = self.rank(request, now);
        }
    }

    /// Moves a waiting request that starved, and returns its present rank.
    pub(super) fn refreshed(&mut self, request: &mut LiveRequest, now: SimTime) -> f64 {
        match self {
            Self::Mlfq(queues) => queues.promote(request, now),
            Self::CausalMlfq(policy) => policy.queues().promote(request, now),
            _ => {}
        }
        self.rank(request, now)
    }

    /// Returns the rank of a request now; what is no number ranks last.
    pub(super) fn rank(&self, request: &LiveRequest, now: SimTime) -> f64 {
        let rank = match self {
            Self::Fcfs => 0.0,
            Self::Priority => f64::from(request.priority),
            Self::Size(policy) => policy.rank(request),
            Self::Deadlines(policy) => policy.rank(request),
            Self::Slack(policy) => policy.rank(request, now),
            Self::Mlfq(_) | Self::CausalMlfq(_) => f64::from(request.service.level),
            Self::Vtc(counters) => counters.of(request.client),
            Self::Expression(expression) => expression.rank(request, now),
            Self::Callable { .. } => request.service.score,
        };
        if rank.is_nan() { f64::INFINITY } else { rank }
    }
}

/// Orders two requests by their ranks as last computed.
#[inline]
pub(super) fn order(one: &LiveRequest, other: &LiveRequest) -> Ordering {
    one.service
        .rank
        .total_cmp(&other.service.rank)
        .then_with(|| (one.arrival, one.tie_rank).cmp(&(other.arrival, other.tie_rank)))
}

/// Checks what a policy's settings cannot check on their own: that its expression compiles.
///
/// # Errors
/// [`SimError::Plan`] with the place in the text.
pub fn check_policy(policy: &Policy) -> Result<(), SimError> {
    let Policy::Expression(spec) = policy else { return Ok(()) };
    Expression::new(spec).map(|_| ()).map_err(|error| SimError::Plan {
        path: "scheduler.policy.expression.text".into(),
        message: error.to_string(),
    })
}

/// Returns the output length that a size-based policy believes in, in tokens.
fn predicted_output(request: &LiveRequest) -> f64 {
    request.service.score
}
