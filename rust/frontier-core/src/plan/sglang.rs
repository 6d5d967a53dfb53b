//! Settings of SGLang's scheduler (`sglang/srt/server_args.py`, 0.5.3), under the names of its server arguments.

use serde::Deserialize;

use crate::error::SimError;

/// Order of the waiting queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum SchedulePolicy {
    /// First come, first served.
    #[serde(rename = "fcfs")]
    Fcfs,
    /// Longest prefix match first.
    #[serde(rename = "lpm")]
    Lpm,
    /// Depth first over the radix tree, branches with most waiting requests first.
    #[serde(rename = "dfs-weight")]
    DfsWeight,
    /// Longest output first.
    #[serde(rename = "lof")]
    Lof,
}

/// Order in which the radix cache gives up its leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RadixEvictionPolicy {
    /// Least recently used first.
    Lru,
    /// Meant to be the least frequently used first; 0.5.3 never counts hits, so that it equals `Lru`.
    Lfu,
}

/// What a server does where prompts are computed apart from their output (`--disaggregation-mode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "mode", rename_all = "snake_case", deny_unknown_fields)]
pub enum DisaggregationSpec {
    /// It computes prompts.
    Prefill {},
    /// It takes their KV and makes the output.
    Decode {
        /// Tokens of output that memory is kept for, for each request that is let in, resumed or running.
        num_reserved_decode_tokens: u32,
        /// The queues of requests that come are looked at in every so manieth turn.
        polling_interval: u32,
    },
}

/// Scheduler settings of one SGLang engine.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "these are SGLang's own switches")]
pub struct SglangConfig {
    /// KV slots, one token each.
    pub max_total_tokens: u32,
    /// Most requests that hold KV at a time.
    pub max_running_requests: u32,
    /// Longest prompt + output, in tokens.
    pub context_length: u32,
    /// Most tokens of prompts in a step, if prompts are split over steps.
    pub chunked_prefill_size: Option<u32>,
    /// Tokens of prompts after which no further request joins a prefill.
    pub max_prefill_tokens: u32,
    /// Order of the waiting queue.
    pub schedule_policy: SchedulePolicy,
    /// Scales the share of their output that running requests are expected to need.
    pub schedule_conservativeness: f64,
    /// Keep nothing for requests with the same prefix.
    pub disable_radix_cache: bool,
    /// Order in which cached content goes.
    pub radix_eviction_policy: RadixEvictionPolicy,
    /// Let running requests decode in the steps of chunked prompts.
    pub enable_mixed_chunk: bool,
    /// Schedule a step only when the one before is done and processed.
    pub disable_overlap_schedule: bool,
    /// Serve requests by priority, and preempt for it.
    pub enable_priority_scheduling: bool,
    /// By how much a request's priority must exceed another's to preempt it.
    pub priority_scheduling_preemption_threshold: u32,
    /// Lower values are served first.
    pub schedule_low_priority_values_first: bool,
    /// Its part where prompts are computed apart from their output; none of a server that does both.
    pub disaggregation: Option<DisaggregationSpec>,
}

impl SglangConfig {
    /// Returns the KV slots that one request can have: SGLang cuts requests to them.
    pub fn longest_request(&self) -> u32 {
        self.context_length.min(self.max_total_tokens)
    }

    /// Returns a bound on the tokens and on the requests of one batch, as long as the engine's books are right.
    pub fn batch_limits(&self) -> (u32, u32) {
        let prompts = self.chunked_prefill_size.unwrap_or(u32::MAX).min(self.max_total_tokens);
        (prompts.saturating_add(self.max_running_requests), self.max_running_requests)
    }

    /// Checks the settings on their own.
    ///
    /// # Errors
    /// [`SimError::Plan`] naming the first offending field.
    pub fn check(&self) -> Result<(), SimError> {
        let refuse = |field: &str, message: String| {
            Err(SimError::Plan { path: format!("scheduler.{field}"), message })
        };
        for (field, value) in [
            ("max_total_tokens", self.max_total_tokens),
            ("max_running_requests", self.max_running_requests),
            ("context_length", self.context_length),
            ("chunked_prefill_size", self.chunked_prefill_size.unwrap_or(1)),
            ("max_prefill_tokens", self.max_prefill_tokens),
        ] {
            if value == 0 {
                return refuse(field, "was 0, must be at least 1".into());
            }
        }
        let conservativeness = self.schedule_conservativeness;
        if !(conservativeness >= 0.0 && conservativeness.is_finite()) {
            return refuse(
                "schedule_conservativeness",
                format!("was {conservativeness}, must be a number of at least 0"),
            );
        }
        self.check_disaggregation()
    }

    /// Checks that nothing is asked for that a server with a part does not do.
    fn check_disaggregation(&self) -> Result<(), SimError> {
        let refuse = |field: &str, message: &str| {
            Err(SimError::Plan { path: format!("scheduler.{field}"), message: message.into() })
        };
        let Some(part) = self.disaggregation else { return Ok(()) };
        if self.enable_priority_scheduling {
            return refuse(
                "enable_priority_scheduling",
                "was true: with disaggregation SGLang sets no priorities",
            );
        }
        if self.enable_mixed_chunk {
            return refuse(
                "enable_mixed_chunk",
                "was true: with disaggregation no step has prompts and decodes",
            );
        }
        if let DisaggregationSpec::Decode { polling_interval, .. } = part {
            if polling_interval == 0 {
                return refuse("disaggregation.polling_interval", "was 0, must be at least 1");
            }
            if !self.disable_radix_cache {
                return refuse(
                    "disable_radix_cache",
                    "was false: a decode server of SGLang keeps no prefixes",
                );
            }
        }
        Ok(())
    }
}
