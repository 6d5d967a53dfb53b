//! Step times from operator tables of the user's own.

use serde::Deserialize;

use crate::error::SimError;
use crate::plan::scheduler::MAX_STAGES;

/// Times of a forward pass by its shape, all layers of all stages summed; everything in seconds.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TablesSpec {
    /// Stages of a pipeline, each with an equal part of the layers. With 1, a scheduler's pipeline takes equal parts.
    pub num_stages: u32,
    /// Handing over to the next stage, by scheduled tokens from 1; every stage but the last does. Empty without stages.
    pub send_recv_s: Vec<f64>,
    /// What depends on the number of scheduled tokens alone, by tokens from 1.
    pub tokens_s: Vec<f64>,
    /// Attention of decodes.
    pub decode: AttentionTable,
    /// Attention of prefills.
    pub prefill: AttentionTable,
    /// Context lengths are rounded up to a multiple of this many tokens before tables are read.
    pub kv_granularity: u32,
    /// Prefill attention of a batch with several prompts over that of one with the same work.
    pub prefill_batching_factor: f64,
}

/// Points of an attention table, in any order: two keys and the time.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionTable {
    /// Decodes: number of requests. Prefills: tokens before the chunks, rounded.
    pub first: Vec<u32>,
    /// Decodes: mean context in whole tokens, rounded. Prefills: root of the sum of squared chunk lengths, to the nearest token.
    pub second: Vec<u32>,
    /// Time.
    pub time_s: Vec<f64>,
}

impl TablesSpec {
    pub(super) fn check(&self) -> Result<(), SimError> {
        let refuse = |field: &str, message: String| {
            Err(SimError::Plan { path: format!("step_time.{field}"), message })
        };
        if self.tokens_s.is_empty() {
            return refuse("tokens_s", "was empty, must have a time for one token at least".into());
        }
        if !(1..=MAX_STAGES).contains(&self.num_stages) {
            return refuse("num_stages", format!("was {}, must be from 1 to {MAX_STAGES}", self.num_stages));
        }
        let expected = if self.num_stages > 1 { self.tokens_s.len() } else { 0 };
        if self.send_recv_s.len() != expected {
            return refuse(
                "send_recv_s",
                format!(
                    "has {} entries, must have {expected}: as many as tokens_s with stages, none without",
                    self.send_recv_s.len()
                ),
            );
        }
        if self.kv_granularity == 0 {
            return refuse("kv_granularity", "was 0, must be at least 1".into());
        }
        let factor = self.prefill_batching_factor;
        if !(factor > 0.0 && factor.is_finite()) {
            return refuse("prefill_batching_factor", format!("was {factor}, must be over 0 and finite"));
        }
        for (name, table) in [("decode", &self.decode), ("prefill", &self.prefill)] {
            let lengths = [table.first.len(), table.second.len(), table.time_s.len()];
            if lengths.iter().any(|&length| length != lengths[0]) {
                return refuse(name, format!("has columns of {lengths:?} rows, must be equally many"));
            }
        }
        let times = [&self.tokens_s, &self.send_recv_s, &self.decode.time_s, &self.prefill.time_s];
        if let Some(wrong) = times.into_iter().flatten().find(|time| !(**time >= 0.0 && time.is_finite())) {
            return refuse(
                "tokens_s",
                format!("or an attention table had {wrong}, times are finite and not negative"),
            );
        }
        Ok(())
    }
}
