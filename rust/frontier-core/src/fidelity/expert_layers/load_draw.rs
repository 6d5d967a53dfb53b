//! Draws of the loads of experts, without following single tokens.
//!
//! A token visits `top_k` different experts, each with a chance of its own, so an expert's load is binomial, and loads
//! add up to `tokens * top_k`. Up to [`SYSTEMATIC_TOKENS`] tokens are drawn by *systematic sampling* (Madow, "On the
//! theory of systematic sampling, II", 1949): experts lie end to end on a line, each as long as its chance, and a token
//! takes those that a comb of step 1 with random offset meets: different ones, with exactly their chances. A few
//! shuffles of the line, each for its share of the tokens, keep neighbours from meeting always or never. Above, loads
//! are independent binomial draws (normal ones where the mean is large), corrected by variance to the right sum, which
//! gives the covariances of sampling with fixed size (Hájek, "Asymptotic theory of rejective sampling with varying
//! probabilities from a finite population", 1964).

use crate::fidelity::expert_load::normal_quantile;
use crate::rng::Stream;

/// Tokens up to which they are drawn one by one.
const SYSTEMATIC_TOKENS: u32 = 64;
/// Shuffles of the line.
const SHUFFLES: u32 = 8;
/// Mean load up to which binomial draws are exact.
const EXACT_MEAN: f64 = 12.0;

/// Draws the loads of the slots of one layer.
#[derive(Clone, Debug)]
pub struct LoadDraw {
    /// Chance that a token visits each slot.
    chances: Vec<f64>,
    /// Slots by expert, so that a token never meets two copies of one.
    experts: Vec<Vec<u32>>,
    tokens: u32,
    visits: u64,
    variances: Vec<f64>,
    variance: f64,
    /// Laws of the slots with a small mean.
    laws: Vec<Option<Binomial>>,
    /// Buffers.
    wanted: Vec<f64>,
    offsets: Vec<f64>,
}

impl LoadDraw {
    /// Returns the draws of `tokens` tokens over `slots`, which hold these experts and are visited by these chances.
    pub fn new(slots: &[u32], chances: Vec<f64>, tokens: u32) -> Self {
        let num_experts = slots.iter().max().map_or(0, |&most| most as usize + 1);
        let mut experts = vec![Vec::new(); num_experts];
        for (slot, &expert) in slots.iter().enumerate() {
            experts[expert as usize].push(slot as u32);
        }
        let trials = f64::from(tokens);
        let binomial: Vec<f64> = chances.iter().map(|p| trials * p * (1.0 - p).max(0.0)).collect();
        let (variances, variance) = before_correction(&binomial);
        let visits: f64 = chances.iter().sum::<f64>() * trials;
        Self {
            laws: if tokens > SYSTEMATIC_TOKENS { laws(&chances, trials) } else { Vec::new() },
            wanted: Vec::with_capacity(chances.len()),
            offsets: Vec::new(),
            visits: visits.round() as u64,
            variances,
            variance,
            chances,
            experts,
            tokens,
        }
    }

    /// Draws loads by slot into `loads`.
    pub fn draw(&mut self, stream: &mut Stream, loads: &mut Vec<u32>) {
        loads.clear();
        loads.resize(self.chances.len(), 0);
        if self.tokens <= SYSTEMATIC_TOKENS {
            let shuffles = SHUFFLES.min(self.tokens);
            for shuffle in 0..shuffles {
                let share = (self.tokens + shuffle) / shuffles;
                self.systematic(share, stream, loads);
            }
        } else {
            self.binomial(stream, loads);
        }
    }

    /// Adds the loads of `tokens` tokens, each with a comb of its own over one shuffled line.
    fn systematic(&mut self, tokens: u32, stream: &mut Stream, loads: &mut [u32]) {
        for last in (1..self.experts.len()).rev() {
            self.experts.swap(last, stream.below(last as u64 + 1) as usize);
        }
        self.offsets.clear();
        self.offsets.extend((0..tokens).map(|_| stream.unit()));
        self.offsets.sort_unstable_by(f64::total_cmp);
        // Combs sorted by offset meet the line in rounds: round r has its teeth at r + offset.
        let (mut round, mut next, mut end) = (0.0, 0, 0.0);
        let mut last_met = 0;
        for slots in &self.experts {
            for &slot in slots {
                end += self.chances[slot as usize];
                while round + self.offsets[next] < end {
                    loads[slot as usize] += 1;
                    next += 1;
                    if next == self.offsets.len() {
                        (next, round) = (0, round + 1.0);
                    }
                    last_met = slot as usize;
                }
            }
        }
        // The line may end a rounding error short of its last tooth.
        let met = round as u64 * u64::from(tokens) + next as u64;
        let expected = self.visits / u64::from(self.tokens) * u64::from(tokens);
        loads[last_met] += (expected - met) as u32;
    }

    fn binomial(&mut self, stream: &mut Stream, loads: &mut [u32]) {
        let trials = f64::from(self.tokens);
        self.wanted.clear();
        let mut sum = 0.0;
        for ((&p, law), &variance) in self.chances.iter().zip(&self.laws).zip(&self.variances) {
            let load = match law {
                Some(law) => law.quantile(stream.unit()),
                None => trials * p + variance.sqrt() * normal_quantile(stream.unit()),
            };
            sum += load;
            self.wanted.push(load);
        }
        let excess = sum - self.visits as f64;
        let share = if self.variance > 0.0 { excess / self.variance } else { 0.0 };
        let mut left = self.visits.cast_signed();
        for ((load, wanted), &variance) in loads.iter_mut().zip(&self.wanted).zip(&self.variances) {
            // Half up by a random half, so that small corrections do not vanish.
            let rounded = (wanted - variance * share + stream.unit()).floor().clamp(0.0, trials);
            *load = rounded as u32;
            left -= i64::from(*load);
        }
        // What rounding leaves over goes to, or comes from, slots by chance, as far as their loads vary.
        let most = self.variances.iter().copied().fold(0.0, f64::max);
        while left != 0 && most > 0.0 {
            let slot = stream.below(loads.len() as u64) as usize;
            let wanted = stream.unit() * most < self.variances[slot];
            if left > 0 && wanted && loads[slot] < self.tokens {
                loads[slot] += 1;
                left -= 1;
            } else if left < 0 && wanted && loads[slot] > 0 {
                loads[slot] -= 1;
                left += 1;
            }
        }
    }
}

/// Returns the variances of independent draws that have these ones after the correction to a fixed sum, and their sum.
fn before_correction(wanted: &[f64]) -> (Vec<f64>, f64) {
    let mut found = wanted.to_vec();
    let mut sum: f64 = found.iter().sum();
    for _ in 0..8 {
        for (variance, wanted) in found.iter_mut().zip(wanted) {
            *variance = wanted / (1.0 - (*variance / sum.max(f64::MIN_POSITIVE)).min(0.5));
        }
        sum = found.iter().sum();
    }
    (found, sum)
}

/// A binomial law, for its quantiles.
#[derive(Clone, Debug)]
struct Binomial {
    /// Chance of at most each load.
    cumulative: Vec<f64>,
    mean: usize,
}

impl Binomial {
    fn new(trials: f64, p: f64) -> Self {
        let (mut mass, odds) = (libm::pow(1.0 - p, trials), p / (1.0 - p));
        let (mut load, mut sum) = (0.0, mass);
        let mut cumulative = vec![mass];
        while load < trials && sum < 1.0 - 1e-12 && mass > 0.0 {
            mass *= (trials - load) / (load + 1.0) * odds;
            load += 1.0;
            sum += mass;
            cumulative.push(sum);
        }
        Self { cumulative, mean: (trials * p) as usize }
    }

    /// Returns the least load that has at least the chance `level` of not being exceeded.
    #[inline]
    fn quantile(&self, level: f64) -> f64 {
        let last = self.cumulative.len() - 1;
        let mut load = self.mean.min(last);
        while load < last && self.cumulative[load] < level {
            load += 1;
        }
        while load > 0 && self.cumulative[load - 1] >= level {
            load -= 1;
        }
        load as f64
    }
}

/// Returns the laws of slots with a small mean.
fn laws(chances: &[f64], trials: f64) -> Vec<Option<Binomial>> {
    chances.iter().map(|&p| (trials * p <= EXACT_MEAN).then(|| Binomial::new(trials, p))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::RngStreams;

    /// Mean and variance of every slot's load over draws.
    fn moments(chances: &[f64], tokens: u32, draws: u32) -> Vec<(f64, f64)> {
        let slots: Vec<u32> = (0..chances.len() as u32).collect();
        let mut law = LoadDraw::new(&slots, chances.to_vec(), tokens);
        let (mut stream, mut loads) = (RngStreams::new(3, 0).get("moments"), Vec::new());
        let mut sums = vec![(0.0, 0.0); chances.len()];
        for _ in 0..draws {
            law.draw(&mut stream, &mut loads);
            let all: u64 = loads.iter().map(|&load| u64::from(load)).sum();
            assert_eq!(all, (chances.iter().sum::<f64>() * f64::from(tokens)).round() as u64);
            assert!(loads.iter().all(|&load| load <= tokens));
            for (sum, &load) in sums.iter_mut().zip(&loads) {
                sum.0 += f64::from(load);
                sum.1 += f64::from(load) * f64::from(load);
            }
        }
        let n = f64::from(draws);
        sums.iter().map(|&(sum, squares)| (sum / n, squares / n - (sum / n) * (sum / n))).collect()
    }

    #[test]
    fn loads_are_binomial_and_add_up() {
        let mut chances: Vec<f64> = (1..=32).map(|place| 0.5 / f64::from(place)).collect();
        let scale = 4.0 / chances.iter().sum::<f64>();
        for chance in &mut chances {
            *chance = (*chance * scale).min(0.98);
        }
        let rest = 4.0 - chances.iter().sum::<f64>();
        chances[1] += rest;
        for tokens in [1, 7, 100, 512, 513, 4000] {
            for (&p, (mean, variance)) in chances.iter().zip(moments(&chances, tokens, 4000)) {
                let (expected, spread) = (f64::from(tokens) * p, f64::from(tokens) * p * (1.0 - p));
                // Five standard errors.
                let tolerance = 5.0 * (spread / 4000.0).sqrt();
                assert!((mean - expected).abs() < tolerance + 0.02, "{tokens} x {p}: mean {mean}");
                assert!((variance - spread).abs() < 0.16 * spread + 0.05, "{tokens} x {p}: {variance}");
            }
        }
    }

    #[test]
    fn a_certain_expert_gets_every_token() {
        for tokens in [3, 2000] {
            let found = moments(&[1.0, 0.5, 0.25, 0.25], tokens, 50);
            assert!((found[0].0 - f64::from(tokens)).abs() < 1e-9, "{found:?}");
        }
    }
}
