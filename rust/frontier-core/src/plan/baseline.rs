//! Settings of the schedulers that stand beside the engines' own, under the names of their sources.

use serde::Deserialize;

use super::policy::Policy;
use super::scheduler::MAX_STAGES;
use crate::error::SimError;

/// A baseline scheduler: its KV cache, its queue order, its rules.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaselineSpec {
    /// Tokens per KV block.
    pub block_size: u32,
    /// Blocks that requests may use.
    pub num_blocks: u32,
    /// Longest prompt + output, in tokens.
    pub max_model_len: u32,
    /// Order of waiting and of running requests.
    pub policy: Policy,
    /// Stages of layers that a batch passes one after the other, and most batches under way; a request is in one of
    /// them at most.
    pub pipeline_parallel_size: u32,
    /// Whose rules.
    pub rules: RulesSpec,
}

/// Rules of batch formation.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum RulesSpec {
    /// vLLM before its V1 engine.
    VllmV0(VllmV0Spec),
    /// Sarathi-Serve.
    Sarathi(SarathiSpec),
    /// Orca.
    Orca(OrcaSpec),
    /// Static batches, as `FasterTransformer` runs them.
    Static(StaticSpec),
    /// `TensorRT-LLM` in-flight batching.
    TensorrtLlm(TensorrtLlmSpec),
}

/// vLLM V0.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VllmV0Spec {
    /// Token budget of a batch of prompts.
    pub max_num_batched_tokens: u32,
    /// The budget counts prompts as padded to the longest (vLLM before 0.2.2).
    pub padded_budget: bool,
    /// Most running requests.
    pub max_num_seqs: u32,
    /// Share of the blocks kept free when admitting.
    pub watermark: f64,
}

/// Sarathi-Serve.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SarathiSpec {
    /// Token budget of a step, decodes included.
    pub chunk_size: u32,
    /// Most running requests.
    pub max_num_seqs: u32,
    /// Share of the blocks kept free when admitting.
    pub watermark: f64,
}

/// How much KV is reserved for a request at admission (the baselines of the vLLM paper, section 6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reservation {
    /// For the longest context that the model allows.
    Max,
    /// For the prompt and the next power of two of the output, `max_model_len` at most.
    Pow2,
    /// For the true length.
    Oracle,
}

/// Orca.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrcaSpec {
    /// Most requests of a batch.
    pub max_batch_size: u32,
    /// KV reserved at admission.
    pub reservation: Reservation,
}

/// Static batching.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StaticSpec {
    /// Most requests of a batch.
    pub max_batch_size: u32,
}

/// Admission and eviction of `TensorRT-LLM` (`CapacitySchedulerPolicy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CapacityPolicy {
    /// A request is admitted only if all admitted ones can run to their end.
    GuaranteedNoEvict,
    /// As many requests as fit the next step; the last to have started are paused when blocks run out.
    MaxUtilization,
}

/// `TensorRT-LLM` in-flight batching.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorrtLlmSpec {
    /// Admission and eviction.
    pub capacity_policy: CapacityPolicy,
    /// Most requests of a batch, and most admitted.
    pub max_batch_size: u32,
    /// Token budget of a step.
    pub max_num_tokens: u32,
    /// Prompts may be split over steps, in multiples of the block size.
    pub enable_chunked_context: bool,
    /// Blocks of computed prompts and of ended requests are kept for reuse.
    pub enable_block_reuse: bool,
}

impl BaselineSpec {
    /// Returns the blocks that `tokens` fill.
    #[inline]
    pub fn blocks_for(&self, tokens: u32) -> u32 {
        tokens.div_ceil(self.block_size)
    }

    /// Returns the most requests of one batch where `max_num_seqs` run: an equal share of them per stage, as Vidur has
    /// it (`max_micro_batch_size` of its replica schedulers).
    pub fn micro_batch_size(&self, max_num_seqs: u32) -> u32 {
        max_num_seqs / self.pipeline_parallel_size
    }

    /// Returns the blocks kept free when admitting.
    pub fn watermark_blocks(&self) -> u32 {
        match &self.rules {
            RulesSpec::VllmV0(VllmV0Spec { watermark, .. })
            | RulesSpec::Sarathi(SarathiSpec { watermark, .. }) => {
                (watermark * f64::from(self.num_blocks)) as u32
            }
            RulesSpec::Orca(_) | RulesSpec::Static(_) | RulesSpec::TensorrtLlm(_) => 0,
        }
    }

    /// Returns the KV tokens reserved at admission for a request that will have `total` tokens, `prompt` of them
    /// its prompt.
    pub fn orca_reservation(&self, rule: Reservation, prompt: u32, total: u32) -> u32 {
        match rule {
            Reservation::Max => self.max_model_len,
            Reservation::Pow2 => {
                let output = (total - prompt).checked_next_power_of_two().unwrap_or(u32::MAX);
                prompt.saturating_add(output).min(self.max_model_len)
            }
            Reservation::Oracle => total,
        }
    }

    /// Returns the blocks that must exist for a request of `total` tokens to be served for certain, whenever it is
    /// preempted. The KV of the last token is never written.
    pub fn blocks_at_most(&self, prompt: u32, total: u32) -> u32 {
        let needed = self.blocks_for(total - 1);
        match &self.rules {
            // Every step of a decode wants a free block, needed or not.
            RulesSpec::VllmV0(_) | RulesSpec::Sarathi(_) => {
                needed.saturating_add(self.watermark_blocks().max(1))
            }
            RulesSpec::Orca(rules) => {
                self.blocks_for(self.orca_reservation(rules.reservation, prompt, total))
            }
            RulesSpec::Static(_) => self.blocks_for(total),
            RulesSpec::TensorrtLlm(_) => needed,
        }
    }

    /// Returns the most tokens of a prompt where a budget holds for whole prompts.
    pub fn whole_prompt_budget(&self) -> Option<u32> {
        match &self.rules {
            RulesSpec::TensorrtLlm(rules) if !rules.enable_chunked_context => Some(rules.max_num_tokens),
            _ => None,
        }
    }

    /// Returns the most tokens and the most requests of one batch.
    pub fn batch_limits(&self) -> (u32, u32) {
        // What is computed has KV, so that prompts without a budget are limited by the cache. Padding is not.
        let cached = self.num_blocks.saturating_mul(self.block_size);
        match &self.rules {
            RulesSpec::VllmV0(spec) => {
                let seqs = self.micro_batch_size(spec.max_num_seqs);
                (spec.max_num_batched_tokens.max(seqs), seqs)
            }
            RulesSpec::Sarathi(spec) => {
                let seqs = self.micro_batch_size(spec.max_num_seqs);
                (spec.chunk_size.max(seqs), seqs)
            }
            RulesSpec::Orca(spec) => (cached, spec.max_batch_size),
            RulesSpec::Static(spec) => (cached, spec.max_batch_size),
            RulesSpec::TensorrtLlm(spec) => (spec.max_num_tokens, spec.max_batch_size),
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
        let at_least = |fields: &[(&str, u32, u32)]| {
            for &(field, value, least) in fields {
                if value < least {
                    return refuse(field, format!("was {value}, must be at least {least}"));
                }
            }
            Ok(())
        };
        at_least(&[
            ("block_size", self.block_size, 1),
            ("num_blocks", self.num_blocks, 1),
            ("max_model_len", self.max_model_len, 2),
            ("pipeline_parallel_size", self.pipeline_parallel_size, 1),
        ])?;
        let stages = self.pipeline_parallel_size;
        if stages > MAX_STAGES {
            return refuse("pipeline_parallel_size", format!("was {stages}, must be at most {MAX_STAGES}"));
        }
        let synchronous = match &self.rules {
            RulesSpec::VllmV0(_) | RulesSpec::Sarathi(_) => None,
            RulesSpec::Orca(_) => Some("orca"),
            RulesSpec::Static(_) => Some("static"),
            RulesSpec::TensorrtLlm(_) => Some("tensorrt_llm"),
        };
        if let Some(name) = synchronous
            && stages > 1
        {
            let message = format!("was {stages}, must be 1 with {name}, which keeps one batch under way");
            return refuse("pipeline_parallel_size", message);
        }
        match &self.rules {
            RulesSpec::VllmV0(spec) => at_least(&[
                ("rules.max_num_seqs", spec.max_num_seqs, stages),
                // Prompts are not split, and a preempted request comes back with all its tokens as one.
                ("rules.max_num_batched_tokens", spec.max_num_batched_tokens, self.max_model_len),
            ])?,
            RulesSpec::Sarathi(spec) => at_least(&[
                ("rules.max_num_seqs", spec.max_num_seqs, stages),
                ("rules.chunk_size", spec.chunk_size, 1),
            ])?,
            RulesSpec::Orca(spec) => at_least(&[("rules.max_batch_size", spec.max_batch_size, 1)])?,
            RulesSpec::Static(spec) => at_least(&[("rules.max_batch_size", spec.max_batch_size, 1)])?,
            RulesSpec::TensorrtLlm(spec) => {
                // Paused requests come back with all their tokens as one prompt.
                let pauses = spec.capacity_policy == CapacityPolicy::MaxUtilization;
                let whole = pauses && !spec.enable_chunked_context;
                let least = if whole { self.max_model_len } else { 1 };
                at_least(&[
                    ("rules.max_batch_size", spec.max_batch_size, 1),
                    ("rules.max_num_tokens", spec.max_num_tokens, least),
                ])?;
                if spec.enable_chunked_context && spec.max_num_tokens < self.block_size {
                    return refuse(
                        "rules.max_num_tokens",
                        format!("was {}, chunks are multiples of {}", spec.max_num_tokens, self.block_size),
                    );
                }
            }
        }
        if let RulesSpec::VllmV0(VllmV0Spec { watermark, .. })
        | RulesSpec::Sarathi(SarathiSpec { watermark, .. }) = &self.rules
            && !(*watermark >= 0.0 && *watermark < 1.0)
        {
            return refuse("rules.watermark", format!("was {watermark}, must be in [0, 1)"));
        }
        self.policy.check()
    }
}
