//! Order by objectives: earliest deadline first (Liu and Layland 1973) and least slack first (least laxity, Mok
//! 1983), with deadlines at arrival plus the objective of a request's class.

use super::predicted_output;
use crate::plan::policy::{DeadlineSpec, Objective, SlackSpec};
use crate::scheduler::live::LiveRequest;
use crate::time::SimTime;

/// Returns the deadline of a request in ns. f64 holds whole nanoseconds up to 104 days; beyond, ties go by arrival.
pub(super) fn deadline_ns(objectives_ns: &[u64], request: &LiveRequest) -> f64 {
    let class = usize::try_from(request.priority).unwrap_or(0).min(objectives_ns.len() - 1);
    request.arrival.0 as f64 + objectives_ns[class] as f64
}

/// Earliest deadline first.
#[derive(Clone, Debug)]
pub(in crate::scheduler) struct Deadlines {
    objectives_ns: Vec<u64>,
    preemptive: bool,
}

impl Deadlines {
    pub(super) fn new(spec: &DeadlineSpec) -> Self {
        Self { objectives_ns: spec.objectives_ns.clone(), preemptive: spec.preemptive }
    }

    pub(super) fn preemptive(&self) -> bool {
        self.preemptive
    }

    pub(super) fn rank(&self, request: &LiveRequest) -> f64 {
        deadline_ns(&self.objectives_ns, request)
    }
}

/// Least slack first. Never preemptive: two requests of equal slack would displace each other for ever, each time
/// at the price of a recomputed prompt.
#[derive(Clone, Debug)]
pub(in crate::scheduler) struct Slack {
    spec: SlackSpec,
}

impl Slack {
    pub(super) fn new(spec: &SlackSpec) -> Self {
        Self { spec: spec.clone() }
    }

    /// Returns the time to spare in ns: deadline, less now, less what the request still needs.
    pub(super) fn rank(&self, request: &LiveRequest, now: SimTime) -> f64 {
        let prompt = f64::from(request.num_tokens.saturating_sub(request.num_computed));
        let mut needed_ns = prompt * self.spec.per_prefill_token_ns as f64;
        if self.spec.objective == Objective::E2e {
            let left = (predicted_output(request) - f64::from(request.num_output_tokens())).max(1.0);
            needed_ns += left * self.spec.per_decode_token_ns as f64;
        } else if request.num_output_tokens() > 0 {
            // Its first token is out: nothing presses any more.
            return f64::INFINITY;
        }
        deadline_ns(&self.spec.objectives_ns, request) - now.0 as f64 - needed_ns
    }
}
