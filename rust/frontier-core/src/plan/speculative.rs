//! Speculative decoding: who drafts, how many tokens, and which of them are accepted.

use serde::Deserialize;

use crate::error::SimError;

/// Most drafts per request and step.
pub const MAX_DRAFTS: u32 = 1024;

/// How drafts are made (vLLM `SpeculativeConfig.method`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DraftMethod {
    /// Prompt lookup on the host.
    Ngram,
    /// Prompt lookup on the GPU.
    NgramGpu,
    /// Suffix trees of earlier outputs.
    Suffix,
    /// A small model of the same vocabulary.
    DraftModel,
    /// Heads beside the LM head.
    Medusa,
    /// EAGLE head.
    Eagle,
    /// EAGLE-3 head.
    Eagle3,
    /// The model's own multi-token-prediction layers.
    Mtp,
}

impl DraftMethod {
    /// Tells whether the drafter reads the target's hidden states over a KV cache of its own: it then reserves
    /// lookahead blocks and recomputes the last block of a prefix hit.
    pub const fn is_eagle(self) -> bool {
        matches!(self, Self::Eagle | Self::Eagle3 | Self::Mtp)
    }
}

/// Speculative decoding of one engine.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpeculativeSpec {
    /// Who drafts.
    pub method: DraftMethod,
    /// Drafts per request and step, at most; at least 1.
    pub num_speculative_tokens: u32,
    /// How many drafts a step has.
    pub draft_length: DraftLengthSpec,
    /// How many of them are accepted.
    pub acceptance: AcceptanceSpec,
    /// Seed of the draws.
    pub seed: u64,
    /// Replication of the draws.
    pub replication: u64,
}

/// How many drafts a request gets for its next step. Asynchronous scheduling always plans for the most.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum DraftLengthSpec {
    /// Always `num_speculative_tokens`.
    Full {},
    /// All or none: a lookup finds a match with probability `rate`, and none while fewer than
    /// `min_context_tokens` tokens are known.
    Match {
        /// Share of the lookups with a match, in [0, 1].
        rate: f64,
        /// Tokens that a lookup needs.
        min_context_tokens: u32,
    },
    /// `draw(seed, request, output position, 2) % (k + 1)`, as the golden logs of the real scheduler were made.
    Replay(ReplayDraws),
}

/// How many drafts of a step are accepted, from the first one on.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum AcceptanceSpec {
    /// Each draft is accepted with this probability if all before it were.
    Rate {
        /// In [0, 1].
        rate: f64,
    },
    /// Entry `i` is the share of steps with drafts in which draft `i` was accepted, as vLLM reports it: it counts
    /// all drafts before it in, so entries do not rise. Drafts beyond the list are rejected.
    PerPosition {
        /// In [0, 1].
        rates: Vec<f64>,
    },
    /// Accepted drafts, step by step: request `i` takes row `i` modulo the number of rows, its n-th step with drafts
    /// takes entry `n` modulo the length of the row.
    Trace {
        /// At least one row, none of them empty.
        rows: Vec<Vec<u32>>,
    },
    /// Draft j at output position p is accepted while `draw(seed, request, p + j, 1) < accept_permille`, as the golden
    /// logs of the real scheduler were made.
    Replay {
        /// Out of a thousand.
        accept_permille: u32,
        /// The draws.
        draws: ReplayDraws,
    },
}

/// Draws of the golden logs: four chained steps of splitmix64, modulo 1000.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplayDraws {
    /// Seed.
    pub seed: u64,
    /// Number by which the draws know each request, in order of ids.
    pub request_numbers: Vec<u64>,
}

impl SpeculativeSpec {
    /// Checks the settings on their own.
    ///
    /// # Errors
    /// [`SimError::Plan`] naming the first offending field.
    pub fn check(&self) -> Result<(), SimError> {
        let refuse = |field: &str, message: String| {
            Err(SimError::Plan { path: format!("scheduler.speculative.{field}"), message })
        };
        let k = self.num_speculative_tokens;
        if !(1..=MAX_DRAFTS).contains(&k) {
            return refuse("num_speculative_tokens", format!("was {k}, must be in 1 ..= {MAX_DRAFTS}"));
        }
        // False for NaN, so NaN is refused as well.
        let is_share = |value: f64| (0.0..=1.0).contains(&value);
        if let DraftLengthSpec::Match { rate, .. } = self.draft_length
            && !is_share(rate)
        {
            return refuse("draft_length.rate", format!("was {rate}, must be in [0, 1]"));
        }
        match &self.acceptance {
            AcceptanceSpec::Rate { rate } if !is_share(*rate) => {
                refuse("acceptance.rate", format!("was {rate}, must be in [0, 1]"))
            }
            AcceptanceSpec::PerPosition { rates } => {
                if let Some(rate) = rates.iter().find(|&&rate| !is_share(rate)) {
                    return refuse("acceptance.rates", format!("has {rate}, must be in [0, 1]"));
                }
                if rates.is_empty() || rates.windows(2).any(|pair| pair[1] > pair[0]) {
                    return refuse("acceptance.rates", "must have an entry, and must not rise".into());
                }
                Ok(())
            }
            AcceptanceSpec::Trace { rows } => {
                if rows.is_empty() || rows.iter().any(Vec::is_empty) {
                    return refuse("acceptance.rows", "must have a row, and no empty ones".into());
                }
                Ok(())
            }
            AcceptanceSpec::Rate { .. } | AcceptanceSpec::Replay { .. } => Ok(()),
        }
    }
}
