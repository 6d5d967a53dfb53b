//! How the tokens of a step spread over the experts of one rank.
//!
//! Three laws. *Balanced*: as evenly as whole tokens allow. *Uniform*: every token picks `top_k` experts at random
//! with equal chances, so an expert's load is binomial. *Power law* with exponent `alpha`, as in the public operator
//! tables (aiconfigurator, `collector/helper.py`, `sample_power_law`): expert weights are independent draws from the
//! density `w^-alpha` on `[1, 0.8 * tokens]`, or on `[0.01, 2]` where there are fewer visits than experts, scaled to
//! the sum of visits, rounded, cut at the number of tokens.
//!
//! A measured step has one draw of the loads; a forecast wants the typical one. Uniform loads are the quantiles
//! `(i + 1/2) / n` of their law, spread over ranks by shuffles; power-law loads are averaged over draws. Shuffles and
//! draws are few, have fixed seeds and share their random numbers over all token counts, so that facts move smoothly
//! with them. Over several ranks the rank of interest is the most loaded one, which all others wait for.

use crate::rng::RngStreams;

/// Rows of the tiles that fused-MoE kernels offer.
pub const TILE_ROWS: [u32; 5] = [16, 32, 64, 128, 256];
/// Shuffles of experts over ranks, or draws of weights.
const DRAWS: u64 = 8;
/// Mean load up to which binomial quantiles are summed term by term; above, the normal law is close.
const EXACT_MEAN: f64 = 40.0;

/// How tokens spread over experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LoadLaw {
    /// As evenly as whole tokens allow.
    Balanced,
    /// At random with equal chances.
    Uniform,
    /// Weights by a power law of this exponent.
    PowerLaw(f64),
}

impl LoadLaw {
    /// Returns the law of an `imbalance`: -1 balanced, 0 uniform, above 0 a power law of that exponent.
    pub fn of(imbalance: f64) -> Self {
        if imbalance < 0.0 {
            Self::Balanced
        } else if imbalance > 0.0 {
            Self::PowerLaw(imbalance)
        } else {
            Self::Uniform
        }
    }
}

/// Loads of the experts of one rank, in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ExpertLoads {
    /// Tokens that visit the rank, once per expert visited.
    pub visits: f64,
    /// Experts with work.
    pub active: f64,
    /// Largest load.
    pub max: f64,
    /// Sum of squared loads.
    pub squares: f64,
    /// Tiles over all experts, by [`TILE_ROWS`].
    pub tiles: [f64; 5],
}

impl ExpertLoads {
    /// Adds an expert with this load.
    #[inline]
    pub fn add(&mut self, load: f64) {
        if load <= 0.0 {
            return;
        }
        self.visits += load;
        self.active += 1.0;
        self.max = self.max.max(load);
        self.squares += load * load;
        for (tiles, rows) in self.tiles.iter_mut().zip(TILE_ROWS) {
            *tiles += (load / f64::from(rows)).ceil();
        }
    }

    /// Returns whether nothing of these loads is more than of `other`'s.
    pub fn is_within(&self, other: &Self) -> bool {
        self.visits <= other.visits
            && self.active <= other.active
            && self.tiles.iter().zip(&other.tiles).all(|(tiles, others)| tiles <= others)
    }

    fn scaled(&self, factor: f64) -> Self {
        Self {
            visits: self.visits * factor,
            active: self.active * factor,
            max: self.max * factor,
            squares: self.squares * factor,
            tiles: self.tiles.map(|tiles| tiles * factor),
        }
    }

    fn plus(&self, other: &Self) -> Self {
        let mut tiles = self.tiles;
        for (sum, more) in tiles.iter_mut().zip(other.tiles) {
            *sum += more;
        }
        Self {
            visits: self.visits + other.visits,
            active: self.active + other.active,
            max: self.max + other.max,
            squares: self.squares + other.squares,
            tiles,
        }
    }

    /// Returns the squared coefficient of variation of the loads of `experts` experts.
    pub fn variation(&self, experts: f64) -> f64 {
        if self.visits <= 0.0 {
            return 0.0;
        }
        (experts * self.squares / (self.visits * self.visits) - 1.0).max(0.0)
    }
}

/// Returns the loads of the most loaded of `ranks` ranks, which hold `experts / ranks` experts each, when `tokens`
/// tokens visit `top_k` of all `experts`.
///
/// `levels` are those of [`power_law_levels`], which other laws do not look at.
pub fn expert_loads(
    law: LoadLaw,
    levels: &[f64],
    tokens: u32,
    top_k: u32,
    experts: u32,
    ranks: u32,
) -> ExpertLoads {
    let (count, visits) = (experts as usize, u64::from(tokens) * u64::from(top_k));
    let per_rank = (experts / ranks.max(1)) as usize;
    match law {
        LoadLaw::Balanced => {
            let (each, rest) = (visits / u64::from(experts), visits % u64::from(experts));
            let loads: Vec<f64> =
                (0..u64::from(experts)).map(|index| (each + u64::from(index < rest)) as f64).collect();
            // As the measured tables spread them: the remainder goes to the first experts.
            facts(&loads[..per_rank])
        }
        LoadLaw::Uniform => {
            let wanted = binomial_quantiles(tokens, f64::from(top_k) / f64::from(experts), count);
            let mut loads = whole_loads(&wanted, visits, f64::from(tokens));
            if ranks <= 1 {
                return facts(&loads);
            }
            let mut stream = RngStreams::new(0, 0).get("expert_load.shuffle");
            average((0..DRAWS).map(|_| {
                for last in (1..count).rev() {
                    loads.swap(last, stream.below(last as u64 + 1) as usize);
                }
                facts(heaviest(&loads, per_rank))
            }))
        }
        LoadLaw::PowerLaw(alpha) => average(levels.chunks_exact(count).map(|levels| {
            let wanted = power_law_weights(alpha, tokens, top_k, levels);
            let loads = whole_loads(&wanted, visits, f64::from(tokens));
            facts(heaviest(&loads, per_rank))
        })),
    }
}

/// Returns the random numbers behind a power law's draws for `experts` experts, none for other laws.
pub fn power_law_levels(law: LoadLaw, experts: u32) -> Vec<f64> {
    if !matches!(law, LoadLaw::PowerLaw(_)) {
        return Vec::new();
    }
    let mut stream = RngStreams::new(0, 0).get("expert_load.power_law");
    (0..DRAWS * u64::from(experts)).map(|_| stream.unit()).collect()
}

fn facts(loads: &[f64]) -> ExpertLoads {
    let mut sum = ExpertLoads::default();
    for &load in loads {
        sum.add(load);
    }
    sum
}

fn average(draws: impl Iterator<Item = ExpertLoads>) -> ExpertLoads {
    draws.fold(ExpertLoads::default(), |sum, draw| sum.plus(&draw)).scaled(1.0 / DRAWS as f64)
}

/// Returns the experts of the most loaded rank; the first of equals.
fn heaviest(loads: &[f64], per_rank: usize) -> &[f64] {
    let mut found: (&[f64], f64) = (loads, -1.0);
    for rank in loads.chunks_exact(per_rank) {
        let visits = rank.iter().sum();
        if visits > found.1 {
            found = (rank, visits);
        }
    }
    found.0
}

/// Returns whole loads in proportion to `wanted` with the sum `visits`, none above `most`, in the order of `wanted`.
/// What rounding and cutting leave over or take too much goes to, or comes from, every expert in turn.
fn whole_loads(wanted: &[f64], visits: u64, most: f64) -> Vec<f64> {
    let scale = visits as f64 / wanted.iter().sum::<f64>().max(f64::MIN_POSITIVE);
    let mut loads: Vec<f64> = wanted.iter().map(|wanted| (wanted * scale).round().min(most)).collect();
    let mut left = visits as f64 - loads.iter().sum::<f64>();
    // Least loaded first for what is missing, most loaded first for what is too much.
    let mut order: Vec<usize> = (0..loads.len()).collect();
    order.sort_by(|&a, &b| loads[a].total_cmp(&loads[b]));
    if left < 0.0 {
        order.reverse();
    }
    while left.abs() >= 1.0 {
        let before = left;
        let each = (left.abs() / loads.len() as f64).floor().max(1.0);
        for &index in &order {
            let step = each.min(left.abs()).floor() * left.signum();
            let load = (loads[index] + step).clamp(0.0, most);
            left -= load - loads[index];
            loads[index] = load;
        }
        if left.to_bits() == before.to_bits() {
            break;
        }
    }
    loads
}

/// Returns the weights at these levels of the truncated power law.
fn power_law_weights(alpha: f64, tokens: u32, top_k: u32, levels: &[f64]) -> Vec<f64> {
    let visits = f64::from(tokens) * f64::from(top_k);
    let (least, most) =
        if visits > levels.len() as f64 { (1.0, (0.8 * f64::from(tokens)).max(1.0)) } else { (0.01, 2.0) };
    let exponent = 1.0 - alpha;
    let (low, high) = (libm::pow(least, exponent), libm::pow(most, exponent));
    let weight = |&level: &f64| {
        if exponent.abs() < 1e-9 {
            return least * libm::pow(most / least, level);
        }
        libm::pow(low + level * (high - low), 1.0 / exponent)
    };
    levels.iter().map(weight).collect()
}

/// Returns `count` mid quantiles of the binomial law of `tokens` trials of chance `p`, largest first.
fn binomial_quantiles(tokens: u32, p: f64, count: usize) -> Vec<f64> {
    let trials = f64::from(tokens);
    let mean = trials * p;
    let levels = (0..count).map(|index| (index as f64 + 0.5) / count as f64);
    let mut quantiles: Vec<f64> = if p >= 1.0 {
        vec![trials; count]
    } else if mean > EXACT_MEAN {
        let deviation = (mean * (1.0 - p)).sqrt();
        levels.map(|level| (mean + deviation * normal_quantile(level)).round().clamp(0.0, trials)).collect()
    } else {
        // P(0) may underflow to zero only where the mean is far above EXACT_MEAN.
        let (mut load, mut mass) = (0.0, libm::pow(1.0 - p, trials));
        let mut cumulative = mass;
        levels
            .map(|level| {
                while cumulative < level && load < trials {
                    mass *= (trials - load) / (load + 1.0) * (p / (1.0 - p));
                    load += 1.0;
                    cumulative += mass;
                }
                load
            })
            .collect()
    };
    quantiles.reverse();
    quantiles
}

/// Returns the quantile of the standard normal law, to 5e-4 (Abramowitz and Stegun, 26.2.23).
pub(super) fn normal_quantile(level: f64) -> f64 {
    let tail = level.min(1.0 - level);
    let t = (-2.0 * libm::log(tail)).sqrt();
    let numerator = 2.515_517 + t * (0.802_853 + t * 0.010_328);
    let denominator = 1.0 + t * (1.432_788 + t * (0.189_269 + t * 0.001_308));
    let quantile = t - numerator / denominator;
    if level < 0.5 { -quantile } else { quantile }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::float_cmp, reason = "counts are whole numbers")]

    use super::*;
    use proptest::prelude::*;

    fn loads(law: LoadLaw, tokens: u32, top_k: u32, experts: u32, ranks: u32) -> ExpertLoads {
        expert_loads(law, &power_law_levels(law, experts), tokens, top_k, experts, ranks)
    }

    fn close(found: f64, expected: f64, tolerance: f64) {
        assert!((found - expected).abs() <= tolerance, "{found} is not {expected} to {tolerance}");
    }

    #[test]
    fn balanced_loads_differ_by_at_most_one() {
        let found = loads(LoadLaw::Balanced, 100, 8, 128, 1);
        assert_eq!((found.visits, found.active, found.max), (800.0, 128.0, 7.0));
        assert_eq!(found.tiles[0], 128.0);
        let few = loads(LoadLaw::Balanced, 4, 2, 64, 1);
        assert_eq!((few.visits, few.active, few.max), (8.0, 8.0, 1.0));
    }

    #[test]
    fn uniform_loads_leave_as_many_experts_idle_as_chance_does() {
        // 32 tokens, 8 of 128: 128 * (1 - (15 / 16)^32) = 111.8 experts are expected to have work.
        let found = loads(LoadLaw::Uniform, 32, 8, 128, 1);
        close(found.active, 111.8, 2.0);
        assert_eq!(found.visits, 256.0);
        // Binomial variance 1875 around 2000: a squared variation of 1 / 2000 * 15 / 16.
        let many = loads(LoadLaw::Uniform, 32_000, 8, 128, 1);
        close(many.variation(128.0), 0.000_469, 0.000_05);
        assert_eq!(many.active, 128.0);
    }

    #[test]
    fn a_power_law_concentrates_tokens() {
        let uniform = loads(LoadLaw::Uniform, 4096, 8, 128, 1);
        let skewed = loads(LoadLaw::PowerLaw(1.2), 4096, 8, 128, 1);
        assert!(skewed.max > 3.0 * uniform.max && skewed.max <= 4096.0);
        assert!(skewed.variation(128.0) > 10.0 * uniform.variation(128.0));
    }

    #[test]
    fn the_heaviest_rank_has_more_than_its_share() {
        let share = 4096.0 * 8.0 / 8.0;
        let found = loads(LoadLaw::PowerLaw(1.2), 4096, 8, 128, 8);
        assert!(found.visits > 1.2 * share, "{}", found.visits);
        let balanced = loads(LoadLaw::Balanced, 4096, 8, 128, 8);
        assert_eq!(balanced.visits, share);
    }

    #[test]
    fn normal_quantiles_are_those_of_the_table() {
        close(normal_quantile(0.975), 1.959_964, 5e-4);
        close(normal_quantile(0.5), 0.0, 5e-4);
        close(normal_quantile(0.01), -2.326_348, 5e-4);
    }

    proptest! {
        #[test]
        fn prop_every_visit_lands_once(
            tokens in 1_u32..5000, top_k in 1_u32..9, spare in 0_u32..200, law in -1_i32..3,
        ) {
            let (law, experts) = (LoadLaw::of(f64::from(law) * 0.6), top_k + spare);
            let found = loads(law, tokens, top_k, experts, 1);
            prop_assert_eq!(found.visits, f64::from(tokens) * f64::from(top_k));
            prop_assert!(found.max <= f64::from(tokens));
            prop_assert!(found.active >= f64::from(top_k) && found.active <= f64::from(experts));
            prop_assert!(found.tiles[0] >= found.visits / 16.0);
        }
    }
}
