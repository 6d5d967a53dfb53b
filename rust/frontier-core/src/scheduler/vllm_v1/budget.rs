//! What one step may still compute.

use crate::plan::{Rules, SchedulerConfig};

/// The two budgets of a step: tokens to schedule, and rows of input, of which drafters take some of their own.
pub(super) struct Budget {
    tokens: u32,
    input: u32,
    draft_slots: u32,
    /// Largest chunk of a prompt, if limited.
    chunk: Option<u32>,
}

impl Budget {
    /// Returns the budget of a step with `num_requests` running and waiting requests.
    #[inline]
    pub(super) fn new(config: &SchedulerConfig, rules: &Rules, draft_slots: u32, num_requests: u32) -> Self {
        let input = config.max_num_batched_tokens;
        let mut chunk = match config.long_prefill_token_threshold {
            0 => None,
            _ if num_requests <= 1 && rules.threshold_spares_lone => None,
            threshold => Some(threshold),
        };
        if config.long_prefill_token_threshold_adaptive && rules.threshold_spares_lone {
            chunk = chunk.map(|threshold| threshold.max(input / num_requests));
        }
        Self { tokens: config.token_budget(), input, draft_slots, chunk }
    }

    /// Returns the tokens that one more request may have; 0 ends the step.
    #[inline]
    pub(super) fn room(&self) -> u32 {
        self.tokens.min(self.input.saturating_sub(self.draft_slots))
    }

    /// Returns `num_tokens` or the largest chunk.
    #[inline]
    pub(super) fn clip_chunk(&self, num_tokens: u32) -> u32 {
        self.chunk.map_or(num_tokens, |limit| num_tokens.min(limit))
    }

    /// Spends the tokens of a request, at most [`Self::room`].
    #[inline]
    pub(super) fn take(&mut self, num_tokens: u32) {
        self.tokens -= num_tokens;
        self.input -= num_tokens + self.draft_slots;
    }

    /// Takes back what a request that leaves the batch had spent.
    pub(super) fn give_back(&mut self, num_tokens: u32) {
        self.tokens += num_tokens;
        self.input += num_tokens + self.draft_slots;
    }
}
