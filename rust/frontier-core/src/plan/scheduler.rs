//! The engine's scheduler and its settings, under the engine's own names.

use serde::Deserialize;

use super::baseline::BaselineSpec;
use super::policy::Policy;
use crate::error::SimError;

/// Which scheduler an engine runs, with its settings.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum SchedulerSpec {
    /// vLLM V1.
    VllmV1(SchedulerConfig),
    /// A scheduler that stands beside the engines' own.
    Baseline(BaselineSpec),
}

impl SchedulerSpec {
    /// Returns the order of the waiting queue.
    pub fn policy(&self) -> &Policy {
        match self {
            Self::VllmV1(config) => &config.policy,
            Self::Baseline(spec) => &spec.policy,
        }
    }

    /// Returns the tokens per block; 1 for schedulers that count KV slots.
    pub fn block_size(&self) -> u32 {
        match self {
            Self::VllmV1(config) => config.block_size,
            Self::Baseline(spec) => spec.block_size,
        }
    }

    /// Returns the blocks in total: those that requests may use and the null block.
    pub fn num_blocks(&self) -> u32 {
        match self {
            Self::VllmV1(config) => config.num_blocks,
            Self::Baseline(spec) => spec.num_blocks.saturating_add(1),
        }
    }

    /// Returns the most tokens and the most requests of one batch.
    pub fn batch_limits(&self) -> (u32, u32) {
        match self {
            Self::VllmV1(config) => (config.max_num_batched_tokens, config.max_batch_seqs()),
            Self::Baseline(spec) => spec.batch_limits(),
        }
    }

    /// Checks the settings on their own.
    ///
    /// # Errors
    /// [`SimError::Plan`] naming the first offending field.
    pub fn check(&self) -> Result<(), SimError> {
        match self {
            Self::VllmV1(config) => config.check(),
            Self::Baseline(spec) => spec.check(),
        }
    }
}

/// Scheduler settings of one engine (vLLM `SchedulerConfig` and `CacheConfig`).
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "these are vLLM's own switches")]
pub struct SchedulerConfig {
    /// Tokens per KV block.
    pub block_size: u32,
    /// Blocks in total, the null block 0 included: `num_blocks - 1` are usable.
    pub num_blocks: u32,
    /// Longest prompt + output, in tokens.
    pub max_model_len: u32,
    /// Token budget of one step (also the input budget).
    pub max_num_batched_tokens: u32,
    /// A smaller token budget for scheduling, if set.
    pub max_num_scheduled_tokens: Option<u32>,
    /// Most requests in RUNNING.
    pub max_num_seqs: u32,
    /// Another limit on RUNNING in its place, if set.
    pub max_num_active_seqs: Option<u32>,
    /// Largest chunk of a prompt while other requests exist; 0 means no limit.
    pub long_prefill_token_threshold: u32,
    /// Raise the threshold to `max_num_batched_tokens / number of requests` when that is larger.
    pub long_prefill_token_threshold_adaptive: bool,
    /// Prompts may be split over steps.
    pub enable_chunked_prefill: bool,
    /// Full blocks are kept for reuse by requests with the same prefix.
    pub enable_prefix_caching: bool,
    /// Queue order.
    pub policy: Policy,
    /// Admit a request only if all its present tokens fit, not just the first chunk.
    pub scheduler_reserve_full_isl: bool,
    /// Share of blocks kept free when admitting beside running requests.
    pub watermark: f64,
    /// Tokens for which blocks are reserved beyond those scheduled (drafts of speculative decoding).
    pub num_lookahead_tokens: u32,
    /// Schedule the next step while the present one runs.
    pub async_scheduling: bool,
}

impl SchedulerConfig {
    /// Returns the blocks that `tokens` fill; no request has more than `max_model_len` tokens.
    #[inline]
    pub fn blocks_for(&self, tokens: u32) -> u32 {
        tokens.min(self.max_model_len).div_ceil(self.block_size)
    }

    /// Returns the tokens that one step may compute.
    pub fn token_budget(&self) -> u32 {
        self.max_num_scheduled_tokens.unwrap_or(u32::MAX).min(self.max_num_batched_tokens)
    }

    /// Returns the most requests that a batch can have.
    pub fn max_batch_seqs(&self) -> u32 {
        self.max_num_active_seqs.unwrap_or(self.max_num_seqs)
    }

    /// Checks the settings on their own.
    ///
    /// # Errors
    /// [`SimError::Plan`] naming the first offending field.
    pub fn check(&self) -> Result<(), SimError> {
        let refuse = |field: &str, message: String| {
            Err(SimError::Plan { path: format!("scheduler.{field}"), message })
        };
        for (field, value, least) in [
            ("block_size", self.block_size, 1),
            ("num_blocks", self.num_blocks, 2),
            ("max_model_len", self.max_model_len, 2),
            ("max_num_batched_tokens", self.max_num_batched_tokens, 1),
            ("max_num_seqs", self.max_num_seqs, 1),
            ("max_num_scheduled_tokens", self.max_num_scheduled_tokens.unwrap_or(1), 1),
            ("max_num_active_seqs", self.max_num_active_seqs.unwrap_or(1), 1),
        ] {
            if value < least {
                return refuse(field, format!("was {value}, must be at least {least}"));
            }
        }
        // False for NaN, so NaN is refused as well.
        if !(self.watermark >= 0.0 && self.watermark < 1.0) {
            return refuse("watermark", format!("was {}, must be in [0, 1)", self.watermark));
        }
        self.policy.check()
    }
}
