//! The slowest rank: how long the layers with experts of a stage take together, as a distribution.
//!
//! In each layer every rank receives the tokens of its experts, computes them and sends them back; the next layer
//! waits for the slowest. A table holds quantiles of the sum over layers, for one number of tokens, one popularity and
//! one arrangement. It is made by drawing the loads of every layer a number of times, taking the slowest rank of each
//! draw, and adding up one draw of each layer, many times over: layers are independent. A step then costs one random
//! number ([`Table::at`]).

use super::reach::Reach;
use crate::fidelity::cost::Cost;
use crate::fidelity::expert_load::{ExpertLoads, normal_quantile};
use crate::fidelity::fused_moe::FusedMoe;
use crate::fidelity::learned::Prediction;
use crate::fidelity::trust::TrustTally;
use crate::rng::Stream;

/// Quantiles of a table, each for an equal share of the steps.
const QUANTILES: usize = 256;
/// Draws of a layer, at least.
const LEAST_DRAWS: u32 = 32;
/// Draws over all layers, at least.
const ALL_DRAWS: u32 = 2048;
/// Sums over layers that quantiles are taken from.
const SUMS: u32 = 4096;

/// One layer: its slowest rank.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Layer {
    /// Dispatch, experts and combine, in seconds.
    pub seconds: f64,
    /// Of them, the exchanges, in the order of the program.
    pub exchanges_s: [f64; 2],
    /// Arithmetic of the experts at its sustained rate.
    pub compute_s: f64,
    /// HBM traffic of the experts at its sustained rate.
    pub memory_s: f64,
    /// Bytes that the experts move.
    pub bytes: f64,
}

impl Layer {
    /// Adds another one, `weight` times.
    pub fn add(&mut self, other: &Self, weight: f64) {
        self.seconds += other.seconds * weight;
        for (sum, more) in self.exchanges_s.iter_mut().zip(other.exchanges_s) {
            *sum += more * weight;
        }
        self.compute_s += other.compute_s * weight;
        self.memory_s += other.memory_s * weight;
        self.bytes += other.bytes * weight;
    }
}

/// Distribution of the time of all layers of a stage.
#[derive(Clone, Debug)]
pub struct Table {
    /// Quantiles of the sum over layers, in seconds, at the middle of equal shares.
    quantiles: Vec<f64>,
    /// Mean over draws of the sum over layers.
    pub mean: Layer,
    /// What the experts' times rest on, per step.
    pub experts: TrustTally,
    /// What the exchanges' times rest on, per step.
    pub exchanges: [TrustTally; 2],
}

impl Table {
    /// Returns the time at `level` in (0, 1).
    #[inline]
    pub fn at(&self, level: f64) -> f64 {
        self.quantiles[((level * QUANTILES as f64) as usize).min(QUANTILES - 1)]
    }
}

/// Returns how often each of `layers` layers is drawn: less often where popularity drifts, because tables serve for a
/// while only and their errors even out.
pub fn draws_per_layer(layers: u32, drifts: bool) -> u32 {
    let share = if drifts { 4 } else { 1 };
    (ALL_DRAWS / share).div_ceil(layers).max(LEAST_DRAWS / share)
}

/// Collects draws of layers.
#[derive(Clone, Debug, Default)]
pub struct TableBuilder {
    /// Time of every draw, layer by layer.
    seconds: Vec<f64>,
    mean: Layer,
    /// What the times rest on; summed over draws.
    pub experts: TrustTally,
    /// Of each exchange.
    pub exchanges: [TrustTally; 2],
}

impl TableBuilder {
    /// Adds a draw of the present layer.
    pub fn push(&mut self, layer: &Layer) {
        self.seconds.push(layer.seconds);
        self.mean.add(layer, 1.0);
    }

    /// Returns the table of `layers` layers, which have equally many draws each.
    pub fn finish(mut self, layers: u32, stream: &mut Stream) -> Table {
        let draws = self.seconds.len() / layers as usize;
        let share = 1.0 / draws as f64;
        let mut mean = Layer::default();
        mean.add(&self.mean, share);
        for tally in std::iter::once(&mut self.experts).chain(&mut self.exchanges) {
            tally.seconds = tally.seconds.map(|seconds| seconds * share);
        }
        let sums = if draws == 1 { vec![mean.seconds] } else { self.sums(layers, draws, &mean, stream) };
        // No interpolation: with few tokens a time has few values.
        let quantile = |index: usize| sums[(2 * index + 1) * sums.len() / (2 * QUANTILES)];
        let quantiles = (0..QUANTILES).map(quantile).collect();
        Table { quantiles, mean, experts: self.experts, exchanges: self.exchanges }
    }

    /// Returns sums of one draw of every layer, in order.
    fn sums(&self, layers: u32, draws: usize, mean: &Layer, stream: &mut Stream) -> Vec<f64> {
        if layers == 1 {
            let mut sums = self.seconds.clone();
            sums.sort_unstable_by(f64::total_cmp);
            return sums;
        }
        // Few draws of a layer spread a little less around their mean than the layer does. With few layers there are
        // many draws, and sums of few values that should stay as they are.
        let spread = if layers > 8 { (draws as f64 / (draws as f64 - 1.0)).sqrt() } else { 1.0 };
        let mut sums: Vec<f64> = (0..SUMS)
            .map(|_| {
                let picked: f64 = self
                    .seconds
                    .chunks_exact(draws)
                    .map(|layer| layer[stream.below(draws as u64) as usize])
                    .sum();
                mean.seconds + (picked - mean.seconds) * spread
            })
            .collect();
        sums.sort_unstable_by(f64::total_cmp);
        sums
    }
}

/// Prices the ranks of one layer.
pub trait RankPrices {
    /// Returns the experts' kernel.
    fn kernel(&self) -> &FusedMoe;
    /// Returns an estimate of the exchanges' time of a rank that so many tokens reach, in seconds: exact where it is
    /// linear.
    fn exchanges_s(&self, tokens: f64) -> f64;
}

/// Loads of the ranks of one layer, reused from draw to draw.
#[derive(Clone, Debug, Default)]
pub struct RankLoads {
    ranks: Vec<ExpertLoads>,
    /// Tokens that reach each rank, where they matter.
    tokens: Vec<f64>,
}

impl RankLoads {
    /// Takes the loads of `slots`, of which every rank has `per_rank`.
    pub fn set(&mut self, slots: &[u32], per_rank: usize) {
        self.ranks.clear();
        for held in slots.chunks_exact(per_rank) {
            let mut rank = ExpertLoads::default();
            for &load in held {
                rank.add(f64::from(load));
            }
            self.ranks.push(rank);
        }
        self.tokens.clear();
        self.tokens.resize(self.ranks.len(), 0.0);
    }

    /// Sets how many of `tokens` tokens reach each rank: a draw, or what is expected.
    pub fn set_tokens(&mut self, reaches: &[Reach], tokens: u32, top_k: u32, mut noise: Option<&mut Stream>) {
        for ((received, loads), reach) in self.tokens.iter_mut().zip(&self.ranks).zip(reaches) {
            let noise = noise.as_mut().map_or(0.0, |stream| normal_quantile(stream.unit()));
            *received = reach.tokens(loads.visits, f64::from(tokens), f64::from(top_k), noise);
        }
    }

    /// Returns the slowest rank by its bound: the first of equals.
    pub fn slowest(&self, rows: u32, prices: &impl RankPrices) -> usize {
        let time = |rank: usize| {
            prices.kernel().cost_of(rows, &self.ranks[rank]).seconds() + prices.exchanges_s(self.tokens[rank])
        };
        let mut slowest = 0;
        for rank in 1..self.ranks.len() {
            if self.ranks[rank].visits > self.ranks[slowest].visits {
                slowest = rank;
            }
        }
        let mut most = time(slowest);
        for rank in 0..self.ranks.len() {
            // Time grows with each of these, so most ranks need no second look.
            if self.ranks[rank].is_within(&self.ranks[slowest]) && self.tokens[rank] <= self.tokens[slowest] {
                continue;
            }
            let seconds = time(rank);
            if seconds > most {
                (slowest, most) = (rank, seconds);
            }
        }
        slowest
    }

    /// Returns the loads of a rank, and the tokens that reach it.
    pub fn of(&self, rank: usize) -> (ExpertLoads, f64) {
        (self.ranks[rank], self.tokens[rank])
    }
}

/// Adds the prediction of one run to a tally.
pub fn note(tally: &mut TrustTally, prediction: &Prediction) {
    tally.add(prediction.seconds, prediction.provenance, prediction.outside.as_ref());
}

/// Returns a layer whose experts cost `cost` and take `seconds`, and whose exchanges take `exchanges_s`.
pub fn layer(cost: &Cost, seconds: f64, exchanges_s: [f64; 2]) -> Layer {
    Layer {
        seconds: seconds + exchanges_s[0] + exchanges_s[1],
        exchanges_s,
        compute_s: cost.compute_s,
        memory_s: cost.memory_s,
        bytes: cost.bytes,
    }
}
