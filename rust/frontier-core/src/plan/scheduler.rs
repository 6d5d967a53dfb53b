//! The engine's scheduler and its settings, under the engine's own names.

use serde::Deserialize;

use super::baseline::BaselineSpec;
use super::policy::Policy;
use super::sglang::SglangConfig;
use super::speculative::{DraftMethod, SpeculativeSpec};
use super::vllm_rules::Rules;
use crate::error::SimError;

/// Most stages of a pipeline.
pub const MAX_STAGES: u32 = 1024;

/// Which scheduler an engine runs, with its settings.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum SchedulerSpec {
    /// vLLM V1.
    VllmV1(SchedulerConfig),
    /// SGLang 0.5.3.
    Sglang(SglangConfig),
    /// A scheduler that stands beside the engines' own.
    Baseline(BaselineSpec),
}

impl SchedulerSpec {
    /// Returns the order in which requests are served. SGLang's orders are its own, and need nothing from outside: here
    /// it counts as first come, first served.
    pub fn policy(&self) -> &Policy {
        match self {
            Self::VllmV1(config) => &config.policy,
            Self::Sglang(_) => &Policy::Fcfs,
            Self::Baseline(spec) => &spec.policy,
        }
    }

    /// Returns the tokens per block by whose hashes prefixes are known; no prompt fills one where they are known
    /// otherwise.
    pub fn block_size(&self) -> u32 {
        match self {
            Self::VllmV1(config) => config.block_size,
            Self::Sglang(_) => u32::MAX,
            Self::Baseline(spec) => spec.block_size,
        }
    }

    /// Returns the blocks (or KV slots) in total, as the engine counts them: one of them is no request's.
    pub fn num_blocks(&self) -> u32 {
        match self {
            Self::VllmV1(config) => config.num_blocks,
            // Slot 0 takes what padding writes, and is no request's.
            Self::Sglang(config) => config.max_total_tokens.saturating_add(1),
            Self::Baseline(spec) => spec.num_blocks.saturating_add(1),
        }
    }

    /// Returns the stages of layers that a batch passes one after the other.
    pub fn pipeline_parallel_size(&self) -> u32 {
        match self {
            Self::VllmV1(config) => config.pipeline_parallel_size,
            Self::Sglang(_) => 1,
            Self::Baseline(spec) => spec.pipeline_parallel_size,
        }
    }

    /// Returns the batches that an engine keeps in flight; 1 waits for each batch before it forms the next.
    pub fn queue_depth(&self) -> usize {
        match self {
            Self::VllmV1(config) => config.queue_depth(),
            Self::Sglang(_) => 1,
            Self::Baseline(spec) => spec.pipeline_parallel_size as usize,
        }
    }

    /// Returns the most tokens and the most requests of one batch.
    pub fn batch_limits(&self) -> (u32, u32) {
        match self {
            Self::VllmV1(config) => (config.max_num_batched_tokens, config.max_batch_seqs()),
            Self::Sglang(config) => config.batch_limits(),
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
            Self::Sglang(config) => config.check(),
            Self::Baseline(spec) => spec.check(),
        }
    }
}

/// Scheduler settings of one engine (vLLM `SchedulerConfig` and `CacheConfig`).
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "these are vLLM's own switches")]
pub struct SchedulerConfig {
    /// Which release's rules: 19 for vLLM 0.19, from 11 to 32 ([`Rules`]).
    pub minor_version: u32,
    /// Tokens per KV block.
    pub block_size: u32,
    /// Blocks in total, the null block 0 included: `num_blocks - 1` are usable.
    pub num_blocks: u32,
    /// Sliding window of each group of layers in tokens, null for whole contexts: vLLM's hybrid KV cache manager.
    /// Empty for the plain cache, in which all layers keep whole contexts in common blocks.
    pub kv_group_windows: Vec<Option<u32>>,
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
    /// Schedule the next step while the present one runs.
    pub async_scheduling: bool,
    /// Stages of layers: as many batches are in flight.
    pub pipeline_parallel_size: u32,
    /// Workers run vLLM's second model runner, which from 0.23 on keeps one batch more in flight than it has stages.
    pub v2_runner: bool,
    /// Speculative decoding, if any.
    pub speculative: Option<SpeculativeSpec>,
}

impl SchedulerConfig {
    /// Returns the blocks that `tokens` fill; no request has more than `max_model_len` tokens.
    #[inline]
    pub fn blocks_for(&self, tokens: u32) -> u32 {
        tokens.min(self.max_model_len).div_ceil(self.block_size)
    }

    /// Returns the most blocks that one request holds at a time in a group of layers with this window: beside the
    /// window, the tokens of the batch under way, whose ends share blocks with others.
    pub fn blocks_in_window(&self, window: Option<u32>) -> u32 {
        window.map_or(u32::MAX, |window| {
            self.blocks_for((window - 1).saturating_add(self.max_num_batched_tokens)) + 1
        })
    }

    /// Returns the most blocks that a request of `tokens` tokens holds at a time, over all groups of layers.
    pub fn blocks_of_request(&self, tokens: u32) -> u64 {
        let whole = self.blocks_for(tokens);
        if self.kv_group_windows.is_empty() {
            return u64::from(whole);
        }
        let held = |&window: &Option<u32>| u64::from(whole.min(self.blocks_in_window(window)));
        self.kv_group_windows.iter().map(held).sum()
    }

    /// Returns the rules of the release.
    pub fn rules(&self) -> Rules {
        Rules::of(self.minor_version)
    }

    /// Returns the tokens that one step may compute.
    pub fn token_budget(&self) -> u32 {
        let given = self.max_num_scheduled_tokens.filter(|_| self.rules().max_num_scheduled_tokens);
        given.unwrap_or(u32::MAX).min(self.max_num_batched_tokens)
    }

    /// Returns the most requests that a batch can have.
    pub fn max_batch_seqs(&self) -> u32 {
        let given = self.max_num_active_seqs.filter(|_| self.rules().max_num_active_seqs);
        given.unwrap_or(self.max_num_seqs)
    }

    /// Returns the drafts per request and step, at most.
    pub fn num_speculative_tokens(&self) -> u32 {
        self.speculative.as_ref().map_or(0, |spec| spec.num_speculative_tokens)
    }

    /// Returns the tokens for which blocks are reserved beyond those scheduled: the drafts of a drafter that keeps
    /// KV of its own.
    pub fn num_lookahead_tokens(&self) -> u32 {
        match &self.speculative {
            Some(spec) if spec.method.is_eagle() => spec.num_speculative_tokens,
            Some(spec) if spec.method == DraftMethod::DraftModel && self.rules().draft_model_lookahead => {
                spec.num_speculative_tokens
            }
            _ => 0,
        }
    }

    /// Returns what each scheduled request costs of the input budget beside its tokens.
    pub fn draft_slots(&self) -> u32 {
        let drafts = self.speculative.as_ref().is_some_and(|spec| spec.method == DraftMethod::DraftModel);
        u32::from(drafts && self.rules().draft_slots)
    }

    /// Tells whether steps of one request are kept `pipeline_parallel_size` calls apart.
    pub fn spaces_steps(&self) -> bool {
        self.async_scheduling && self.pipeline_parallel_size > 1 && self.v2_runner && self.rules().v2_runner
    }

    /// Returns the batches in flight (`VllmConfig.max_concurrent_batches`).
    pub fn queue_depth(&self) -> usize {
        let stages = self.pipeline_parallel_size as usize;
        match (self.async_scheduling, stages) {
            (false, _) => stages,
            (true, 1) => 2,
            (true, _) => stages + usize::from(self.spaces_steps()),
        }
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
            ("pipeline_parallel_size", self.pipeline_parallel_size, 1),
        ] {
            if value < least {
                return refuse(field, format!("was {value}, must be at least {least}"));
            }
        }
        if !(Rules::FIRST_MINOR..=Rules::LAST_MINOR).contains(&self.minor_version) {
            let (first, last) = (Rules::FIRST_MINOR, Rules::LAST_MINOR);
            return refuse(
                "minor_version",
                format!("was {}, must be in {first} ..= {last}", self.minor_version),
            );
        }
        if self.pipeline_parallel_size > MAX_STAGES {
            let message = format!("was {}, must be at most {MAX_STAGES}", self.pipeline_parallel_size);
            return refuse("pipeline_parallel_size", message);
        }
        if self.kv_group_windows.contains(&Some(0)) {
            return refuse("kv_group_windows", "has a window of 0 tokens, must be at least 1".into());
        }
        if let Some(speculative) = &self.speculative {
            speculative.check()?;
        }
        // False for NaN, so NaN is refused as well.
        if !(self.watermark >= 0.0 && self.watermark < 1.0) {
            return refuse("watermark", format!("was {}, must be in [0, 1)", self.watermark));
        }
        self.policy.check()
    }
}
