//! Step times read from tables: operators by the number of tokens, attention by two keys each, as Vidur (Agrawal et
//! al., `MLSys` 2024) keys its predictions. Cells that are not there are an error: nothing is extrapolated.

use std::collections::BTreeMap;

use super::batch::BatchShape;
use crate::error::SimError;
use crate::plan::step_time::{AttentionTable, TablesSpec};
use crate::time::SimDuration;

/// Tables, ready to be read.
#[derive(Clone, Debug)]
pub(super) struct Tables {
    tokens_s: Vec<f64>,
    send_recv_s: Vec<f64>,
    /// Time of each stage in the last step, in seconds; empty without stages.
    stages_s: Vec<f64>,
    decode_s: BTreeMap<(u64, u64), f64>,
    prefill_s: BTreeMap<(u64, u64), f64>,
    kv_granularity: u64,
    prefill_batching_factor: f64,
}

impl Tables {
    pub(super) fn new(spec: &TablesSpec) -> Self {
        let points = |table: &AttentionTable| {
            let keys = table.first.iter().zip(&table.second);
            keys.zip(&table.time_s).map(|((&a, &b), &time)| ((u64::from(a), u64::from(b)), time)).collect()
        };
        Self {
            tokens_s: spec.tokens_s.clone(),
            send_recv_s: spec.send_recv_s.clone(),
            stages_s: if spec.num_stages > 1 { vec![0.0; spec.num_stages as usize] } else { Vec::new() },
            decode_s: points(&spec.decode),
            prefill_s: points(&spec.prefill),
            kv_granularity: u64::from(spec.kv_granularity),
            prefill_batching_factor: spec.prefill_batching_factor,
        }
    }

    fn rounded(&self, tokens: u64) -> u64 {
        tokens.div_ceil(self.kv_granularity) * self.kv_granularity
    }

    /// Returns the time of each stage in the last step, in seconds; nothing without stages.
    pub(super) fn stages_s(&self) -> &[f64] {
        &self.stages_s
    }

    /// Returns the time of a batch, and notes that of each stage.
    ///
    /// # Errors
    /// [`SimError::MissingEntry`] naming a cell that the tables lack.
    pub(super) fn step(&mut self, batch: &BatchShape) -> Result<SimDuration, SimError> {
        let tokens = batch.num_tokens();
        if tokens == 0 {
            self.stages_s.fill(0.0);
            return Ok(SimDuration::ZERO);
        }
        let Some(&base_s) = self.tokens_s.get(tokens as usize - 1) else {
            return lacking(&format!("{tokens} tokens (the last entry is for {})", self.tokens_s.len()));
        };
        let mut total_s = base_s;
        // A prompt of which one token is computed is a prefill here, whatever kernels make of it.
        let (decode, prefill, single) = (batch.decode(), batch.prefill(), batch.single_prompts());
        let seqs = u64::from(decode.num_seqs - single.num_seqs);
        // The mean in whole tokens first, as Vidur keys its predictions.
        if let Some(mean) = (decode.kv_tokens - single.kv_tokens).checked_div(seqs) {
            let context = self.rounded(mean);
            let Some(&time_s) = self.decode_s.get(&(seqs, context)) else {
                return lacking(&format!("decode attention of {seqs} requests with a context of {context}"));
            };
            total_s += time_s;
        }
        let prompts = prefill.num_seqs + single.num_seqs;
        if prompts > 0 {
            let kv_tokens = prefill.kv_tokens + single.kv_tokens;
            let before = self.rounded(kv_tokens - prefill.query_tokens - single.query_tokens);
            let squares = prefill.query_squares + single.query_squares;
            let chunk = (squares as f64).sqrt().round_ties_even() as u64;
            let Some(&time_s) = self.prefill_s.get(&(before, chunk)) else {
                return lacking(&format!("prefill attention of {chunk} tokens after {before}"));
            };
            total_s += if prompts > 1 { time_s * self.prefill_batching_factor } else { time_s };
        }
        if let [others @ .., last] = &mut self.stages_s[..] {
            *last = total_s / (others.len() + 1) as f64;
            others.fill(*last + self.send_recv_s[tokens as usize - 1]);
            total_s = self.stages_s.iter().sum();
        }
        SimDuration::from_seconds(total_s)
    }
}

fn lacking<T>(cell: &str) -> Result<T, SimError> {
    Err(SimError::MissingEntry { cell: cell.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(num_stages: u32) -> Tables {
        let table = |first: &[u32], second: &[u32], time_s: &[f64]| AttentionTable {
            first: first.to_vec(),
            second: second.to_vec(),
            time_s: time_s.to_vec(),
        };
        Tables::new(&TablesSpec {
            num_stages,
            send_recv_s: if num_stages > 1 { vec![0.25; 100] } else { Vec::new() },
            tokens_s: (1..=100_u32).map(|tokens| f64::from(tokens) * 1e-3).collect(),
            decode: table(&[1, 2], &[64, 64], &[0.5, 0.7]),
            prefill: table(&[0, 64], &[50, 30], &[2.0, 3.0]),
            kv_granularity: 64,
            prefill_batching_factor: 1.1,
        })
    }

    fn step(rows: &[(u32, u32)]) -> Result<SimDuration, SimError> {
        let mut batch = BatchShape::new(&[]);
        for &(tokens, context) in rows {
            batch.add(tokens, context, tokens > 1);
        }
        tables(1).step(&batch)
    }

    #[test]
    fn cells_are_found_by_their_rounded_keys() {
        assert_eq!(step(&[]), Ok(SimDuration::ZERO));
        assert_eq!(step(&[(1, 10)]), Ok(SimDuration(501_000_000)));
        // A mean of 64.5 is 64 whole tokens.
        assert_eq!(step(&[(1, 64), (1, 65)]), Ok(SimDuration(702_000_000)));
        // The root of 30^2 + 40^2 is 50; two prompts, so the factor applies.
        assert_eq!(step(&[(30, 30), (40, 40)]), Ok(SimDuration(2_270_000_000)));
        assert_eq!(step(&[(30, 90), (1, 1)]), Ok(SimDuration(3_531_000_000)));
    }

    #[test]
    fn stages_share_the_layers_and_all_but_the_last_hand_over() {
        let mut tables = tables(2);
        let mut batch = BatchShape::new(&[]);
        batch.add(1, 10, false);
        assert_eq!(tables.step(&batch), Ok(SimDuration(751_000_000)));
        assert_eq!(tables.stages_s(), [0.5005, 0.2505]);
    }

    #[test]
    fn cells_that_are_not_there_are_named() {
        for (rows, part) in [
            (&[(1, 65)][..], "decode attention of 1 requests with a context of 128"),
            (&[(31, 31)], "prefill attention of 31 tokens after 0"),
            (&[(101, 101)], "101 tokens (the last entry is for 100)"),
        ] {
            let message = step(rows).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(message.contains(part), "{message}");
        }
    }
}
