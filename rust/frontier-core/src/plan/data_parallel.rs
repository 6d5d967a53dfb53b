//! Data-parallel ranks of one replica: engines that share its experts, and how requests reach them.

use serde::Deserialize;

use crate::error::SimError;

/// Most data-parallel ranks of one replica.
pub const MAX_RANKS: u32 = 1024;

/// Data-parallel ranks, each an engine with a scheduler and a KV cache of its own. Engine `replica * size + rank` is
/// rank `rank` of a replica.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataParallelSpec {
    /// Ranks of a replica, at least 2.
    pub size: u32,
    /// Consecutive ranks among which one balancer spreads requests: all of a replica behind an internal load
    /// balancer, those of a node in hybrid mode, 1 where the router of the cluster sees every rank.
    pub ranks_per_balancer: u32,
    /// How that balancer chooses.
    pub balancer: BalancerSpec,
    /// How ranks that share experts keep step; `None` for ranks that share nothing.
    pub lock_step: Option<LockStepSpec>,
}

/// How requests are spread over the data-parallel ranks behind one balancer.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum BalancerSpec {
    /// Rank 0, 1, 2, ... in turn (`SGLang`).
    RoundRobin {},
    /// Every API server scores the ranks and takes the lowest (vLLM, `vllm/v1/engine/core_client.py`).
    VllmScores {
        /// API servers, which take requests in turn.
        api_servers: u32,
        /// Interval of the coordinator's snapshots of queue lengths.
        snapshot_interval_ns: u64,
        /// What a rank's score is.
        score: RankScore,
        /// The scan for the lowest score starts one rank further with every request; otherwise each API server
        /// always starts at a rank of its own.
        rotating: bool,
    },
}

/// Load of a rank as an API server sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RankScore {
    /// `4 * waiting + running` (up to vLLM 0.26).
    Queues,
    /// `max(API servers * own requests in flight, waiting + running)`, and `6 * waiting * (KV use - 0.5)` more where
    /// requests wait and over half of the KV cache is used (from vLLM 0.27).
    InFlight,
}

/// How engines that share experts keep step (`DPEngineCoreProc`, `vllm/v1/engine/core.py`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockStepSpec {
    /// Tokens that a rank without work computes.
    pub dummy_tokens: u32,
    /// Steps between agreements on whether any rank has work left.
    pub sync_interval: u32,
    /// They also agree at the first step of a wave.
    pub sync_at_first_step: bool,
    /// Ranks outside CUDA graphs compute as many rows as the largest of them (up to vLLM 0.16).
    pub pad_to_largest: bool,
    /// Steps from one on which prompts may be computed to the next, while others decode.
    pub prefill_schedule_interval: u32,
}

impl DataParallelSpec {
    /// Checks the settings on their own.
    ///
    /// # Errors
    /// [`SimError::Plan`] naming the first offending field.
    pub fn check(&self) -> Result<(), SimError> {
        let refuse = |field: &str, message: String| {
            Err(SimError::Plan { path: format!("data_parallel.{field}"), message })
        };
        if !(2..=MAX_RANKS).contains(&self.size) {
            return refuse("size", format!("was {}, must be 2 to {MAX_RANKS}", self.size));
        }
        let ranks = self.ranks_per_balancer;
        if ranks == 0 || !self.size.is_multiple_of(ranks) {
            return refuse(
                "ranks_per_balancer",
                format!("was {ranks}, must divide the size ({})", self.size),
            );
        }
        if let BalancerSpec::VllmScores { api_servers, snapshot_interval_ns, .. } = self.balancer {
            if api_servers == 0 {
                return refuse("balancer.api_servers", "was 0, must be at least 1".into());
            }
            if snapshot_interval_ns == 0 {
                return refuse("balancer.snapshot_interval_ns", "was 0, must be at least 1".into());
            }
        }
        if let Some(step) = &self.lock_step {
            for (field, value) in [
                ("dummy_tokens", step.dummy_tokens),
                ("sync_interval", step.sync_interval),
                ("prefill_schedule_interval", step.prefill_schedule_interval),
            ] {
                if value == 0 {
                    return refuse(&format!("lock_step.{field}"), "was 0, must be at least 1".into());
                }
            }
        }
        Ok(())
    }
}
