//! Shortest job first, and shortest remaining job first (SRPT, Schrage 1968), on lengths known (the prompt) or
//! predicted (the output; Fu et al., "Efficient LLM Scheduling by Learning to Rank", 2024, order by predicted
//! length; Shahout et al., TRAIL, 2024, by what remains of it).

use super::predicted_output;
use crate::plan::policy::{JobSize, LengthSpec};
use crate::scheduler::live::LiveRequest;

/// Ranks by tokens.
#[derive(Clone, Copy, Debug)]
pub(in crate::scheduler) struct Size {
    by: JobSize,
    remaining: bool,
    preemptive: bool,
}

impl Size {
    pub(super) fn of_job(spec: &LengthSpec) -> Self {
        Self { by: spec.by, remaining: false, preemptive: spec.preemptive }
    }

    pub(super) fn of_rest(spec: &LengthSpec) -> Self {
        Self { by: spec.by, remaining: true, preemptive: spec.preemptive }
    }

    pub(super) fn counts_the_rest(self) -> bool {
        self.remaining
    }

    pub(super) fn preemptive(self) -> bool {
        self.preemptive
    }

    /// Returns the tokens of the job, or those left. A job that outlives its prediction has one token left.
    pub(super) fn rank(self, request: &LiveRequest) -> f64 {
        let prompt = if self.remaining {
            request.prompt_tokens.saturating_sub(request.num_computed)
        } else {
            request.prompt_tokens
        };
        let done = if self.remaining { f64::from(request.num_output_tokens()) } else { 0.0 };
        let output = (predicted_output(request) - done).max(1.0);
        match self.by {
            JobSize::Prompt => f64::from(prompt),
            JobSize::Output => output,
            JobSize::Total => f64::from(prompt) + output,
        }
    }
}
