//! Drafts of speculative decoding as data: how many a request gets, and how many of them are accepted.
//!
//! Every answer depends on the seed, the request and how far its output has come, never on the batch or the moment:
//! other batching leaves them as they were.

use crate::ids::RequestId;
use crate::plan::speculative::ReplayDraws;
use crate::plan::{AcceptanceSpec, DraftLengthSpec, SpeculativeSpec};
use crate::rng::{RngStreams, mix, open_unit};

/// Compiled laws of draft lengths and acceptance.
#[derive(Clone, Debug)]
pub struct Speculation {
    most: u32,
    lengths: Lengths,
    acceptance: Acceptance,
}

#[derive(Clone, Debug)]
enum Lengths {
    Full,
    Match { rate: f64, min_context_tokens: u32, key: u64 },
    Replay(ReplayDraws),
}

#[derive(Clone, Debug)]
enum Acceptance {
    /// Probability that all drafts up to and with each position are accepted, none rising.
    Marginal {
        rates: Vec<f64>,
        key: u64,
    },
    Trace(Vec<Vec<u32>>),
    Replay {
        accept_permille: u64,
        draws: ReplayDraws,
    },
}

impl Speculation {
    /// Compiles `spec`, which was checked. Streams: `speculation.draft_length`, `speculation.acceptance`.
    pub fn new(spec: &SpeculativeSpec) -> Self {
        let streams = RngStreams::new(spec.seed, spec.replication);
        let key = |name: &str| streams.get(name).bits();
        let most = spec.num_speculative_tokens;
        let lengths = match &spec.draft_length {
            DraftLengthSpec::Full {} => Lengths::Full,
            DraftLengthSpec::Match { rate, min_context_tokens } => Lengths::Match {
                rate: *rate,
                min_context_tokens: *min_context_tokens,
                key: key("speculation.draft_length"),
            },
            DraftLengthSpec::Replay(draws) => Lengths::Replay(draws.clone()),
        };
        let marginal = |rates| Acceptance::Marginal { rates, key: key("speculation.acceptance") };
        let acceptance = match &spec.acceptance {
            AcceptanceSpec::Rate { rate } => {
                let powers = std::iter::successors(Some(*rate), |power| Some(power * rate));
                marginal(powers.take(most as usize).collect())
            }
            AcceptanceSpec::PerPosition { rates } => marginal(rates.clone()),
            AcceptanceSpec::Trace { rows } => Acceptance::Trace(rows.clone()),
            AcceptanceSpec::Replay { accept_permille, draws } => {
                Acceptance::Replay { accept_permille: u64::from(*accept_permille), draws: draws.clone() }
            }
        };
        Self { most, lengths, acceptance }
    }

    /// Returns the drafts per request and step, at most.
    #[inline]
    pub fn most(&self) -> u32 {
        self.most
    }

    /// Returns the drafts of a request that has `output_tokens` tokens of output and `context_tokens` in all.
    pub fn num_drafts(&self, request: RequestId, output_tokens: u32, context_tokens: u32) -> u32 {
        match &self.lengths {
            Lengths::Full => self.most,
            Lengths::Match { rate, min_context_tokens, key } => {
                let matched =
                    context_tokens >= *min_context_tokens && unit(*key, request, output_tokens) < *rate;
                if matched { self.most } else { 0 }
            }
            Lengths::Replay(draws) => {
                (draw(draws, request, u64::from(output_tokens), 2) % (u64::from(self.most) + 1)) as u32
            }
        }
    }

    /// Returns how many of `planned` drafts exist where a batch is planned before its drafts are known: all or none of a
    /// lookup's.
    pub fn num_found(
        &self,
        request: RequestId,
        output_tokens: u32,
        context_tokens: u32,
        planned: u32,
    ) -> u32 {
        match &self.lengths {
            Lengths::Match { .. } => self.num_drafts(request, output_tokens, context_tokens).min(planned),
            Lengths::Full | Lengths::Replay(_) => planned,
        }
    }

    /// Returns how many of `num_drafts` drafts are accepted of a request that had `output_tokens` tokens of output,
    /// in its step with drafts number `verification`.
    pub fn num_accepted(
        &self,
        request: RequestId,
        output_tokens: u32,
        verification: u32,
        num_drafts: u32,
    ) -> u32 {
        match &self.acceptance {
            Acceptance::Marginal { rates, key } => {
                let drawn = unit(*key, request, output_tokens);
                let accepted =
                    rates.iter().take(num_drafts as usize).take_while(|&&rate| drawn < rate).count();
                accepted as u32
            }
            Acceptance::Trace(rows) => {
                let row = &rows[request.index() % rows.len()];
                row[verification as usize % row.len()].min(num_drafts)
            }
            Acceptance::Replay { accept_permille, draws } => {
                let is_accepted = |&j: &u32| {
                    draw(draws, request, u64::from(output_tokens) + u64::from(j), 1) < *accept_permille
                };
                (0..num_drafts).take_while(is_accepted).count() as u32
            }
        }
    }
}

/// Returns a uniform number in (0, 1) that depends on the key, the request and its position alone.
fn unit(key: u64, request: RequestId, position: u32) -> f64 {
    open_unit(mix(mix(key ^ u64::from(request.0)) ^ u64::from(position)))
}

/// Returns the draw of the golden logs, below 1000.
fn draw(draws: &ReplayDraws, request: RequestId, position: u64, salt: u64) -> u64 {
    let number = draws.request_numbers.get(request.index()).copied().unwrap_or(u64::from(request.0));
    mix(mix(mix(mix(draws.seed) ^ number) ^ position) ^ salt) % 1000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::DraftMethod;

    fn spec(draft_length: DraftLengthSpec, acceptance: AcceptanceSpec) -> Speculation {
        Speculation::new(&SpeculativeSpec {
            method: DraftMethod::Eagle,
            num_speculative_tokens: 4,
            draft_length,
            acceptance,
            seed: 3,
            replication: 0,
        })
    }

    /// Shares of 40,000 steps in which each of 4 drafts was accepted.
    fn shares(acceptance: AcceptanceSpec) -> [f64; 4] {
        let speculation = spec(DraftLengthSpec::Full {}, acceptance);
        let mut counts = [0_u32; 4];
        for request in 0..200 {
            for position in 0..200 {
                let accepted = speculation.num_accepted(RequestId(request), position, 0, 4);
                counts[..accepted as usize].iter_mut().for_each(|count| *count += 1);
            }
        }
        counts.map(|count| f64::from(count) / 40_000.0)
    }

    #[test]
    fn a_rate_accepts_geometrically() {
        for (share, expected) in
            shares(AcceptanceSpec::Rate { rate: 0.7 }).iter().zip([0.7, 0.49, 0.343, 0.2401])
        {
            assert!((share - expected).abs() < 0.01, "{share} is not {expected}");
        }
    }

    #[test]
    fn positions_are_accepted_as_often_as_their_rates_say() {
        let found = shares(AcceptanceSpec::PerPosition { rates: vec![0.8, 0.5, 0.1] });
        for (share, expected) in found.iter().zip([0.8, 0.5, 0.1, 0.0]) {
            assert!((share - expected).abs() < 0.01, "{share} is not {expected}");
        }
    }

    #[test]
    fn certain_acceptance_and_certain_rejection_are_certain() {
        for (rate, expected) in [(1.0, 4), (0.0, 0)] {
            let speculation = spec(DraftLengthSpec::Full {}, AcceptanceSpec::Rate { rate });
            let accepted = |position| speculation.num_accepted(RequestId(9), position, 0, 4);
            assert!((0..10_000).all(|position| accepted(position) == expected));
        }
    }

    #[test]
    fn a_trace_is_taken_row_by_request_and_entry_by_step() {
        let rows = vec![vec![3, 9], vec![1]];
        let speculation = spec(DraftLengthSpec::Full {}, AcceptanceSpec::Trace { rows });
        let accepted = |request, step| speculation.num_accepted(RequestId(request), 77, step, 4);
        assert_eq!([accepted(0, 0), accepted(0, 1), accepted(0, 2)], [3, 4, 3]);
        assert_eq!([accepted(1, 0), accepted(1, 5), accepted(2, 0)], [1, 1, 3]);
    }

    #[test]
    fn lookups_match_as_often_as_asked_and_never_without_context() {
        let lengths = DraftLengthSpec::Match { rate: 0.25, min_context_tokens: 6 };
        let speculation = spec(lengths, AcceptanceSpec::Rate { rate: 0.5 });
        let found: Vec<u32> =
            (0..20_000).map(|position| speculation.num_drafts(RequestId(1), position, 6)).collect();
        assert!(found.iter().all(|&drafts| drafts == 0 || drafts == 4));
        let share = found.iter().filter(|&&drafts| drafts > 0).count() as f64 / 20_000.0;
        assert!((share - 0.25).abs() < 0.01, "the share was {share}");
        assert!((0..1000).all(|position| speculation.num_drafts(RequestId(1), position, 5) == 0));
    }

    #[test]
    fn replayed_draws_are_those_of_the_logs() {
        // splitmix64 chained over (7, 2, 5, 1), modulo 1000, computed by tests/oracle/ref_sched.py.
        let draws = ReplayDraws { seed: 7, request_numbers: vec![2] };
        assert_eq!(draw(&draws, RequestId(0), 5, 1), 415);
    }
}
