//! How many tokens reach a rank, given how many visits its experts get: a token that visits two of them is sent once.
//!
//! A token chooses its experts independently, under the condition that they are `top_k` in all (conditional Poisson
//! sampling: Chen, Dempster and Liu, "Weighted finite population sampling to maximize entropy", Biometrika 81(3), 1994):
//! of all laws with given chances, the one that assumes nothing else. Over many tokens, those that reach a rank are then a linear function
//! of its visits plus noise, with the means and covariances of one token.

use super::placement::Placement;

/// Chances from here on are certainties.
const CERTAIN: f64 = 1.0 - 1e-9;
/// Rounds after which chances fit, usually much sooner.
const ROUNDS: usize = 50;

/// Tokens that reach a rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reach {
    /// Share of all tokens that reach it, on average.
    pub share: f64,
    /// Visits per token, on average.
    pub visits: f64,
    /// Change of the tokens that reach it per visit more.
    pub per_visit: f64,
    /// Variance, per token, of what visits do not tell.
    pub variance: f64,
}

impl Reach {
    /// Returns the tokens that reach the rank when its experts get `visits` of `tokens` tokens; `noise`: a standard
    /// normal draw.
    pub fn tokens(&self, visits: f64, tokens: f64, top_k: f64, noise: f64) -> f64 {
        let expected = self.share * tokens + self.per_visit * (visits - self.visits * tokens);
        let found = expected + (self.variance * tokens).sqrt() * noise;
        found.min(tokens).min(visits).max(visits / top_k)
    }
}

/// Returns the chances of independent choices which, under the condition that `top_k` are made, are made with
/// `chances`.
pub fn independent_chances(chances: &[f64], top_k: u32) -> Vec<f64> {
    let open: Vec<usize> =
        (0..chances.len()).filter(|&at| chances[at] > 0.0 && chances[at] < CERTAIN).collect();
    let certain = chances.iter().filter(|&&chance| chance >= CERTAIN).count();
    let wanted = (top_k as usize).saturating_sub(certain);
    let mut found: Vec<f64> = chances.iter().map(|chance| f64::from(u8::from(*chance >= CERTAIN))).collect();
    if wanted == 0 || open.len() <= wanted {
        for at in open {
            found[at] = chances[at];
        }
        return found;
    }
    let mut odds: Vec<f64> = open.iter().map(|&at| chances[at] / (1.0 - chances[at])).collect();
    for _ in 0..ROUNDS {
        let made = inclusions(&odds, wanted);
        let mut worst = 0.0_f64;
        for ((odds, made), &at) in odds.iter_mut().zip(made).zip(&open) {
            let chance = chances[at];
            worst = worst.max((made / chance - 1.0).abs());
            *odds *= chance * (1.0 - made) / ((1.0 - chance) * made);
        }
        if worst < 1e-9 {
            break;
        }
    }
    for (odds, at) in odds.into_iter().zip(open) {
        found[at] = odds / (1.0 + odds);
    }
    found
}

/// Returns how often each is among `wanted` independent choices with these odds.
fn inclusions(odds: &[f64], wanted: usize) -> Vec<f64> {
    let (count, width) = (odds.len(), wanted + 1);
    // Laws of how many are chosen before each place, and from it on, each scaled to a sum of 1.
    let table = |order: &mut dyn Iterator<Item = f64>| {
        let mut rows = vec![0.0; (count + 1) * width];
        rows[0] = 1.0;
        for (place, odds) in order.enumerate() {
            let chance = odds / (1.0 + odds);
            for chosen in 0..width {
                let before = if chosen > 0 { rows[place * width + chosen - 1] } else { 0.0 };
                rows[(place + 1) * width + chosen] =
                    rows[place * width + chosen] * (1.0 - chance) + before * chance;
            }
        }
        rows
    };
    let before = table(&mut odds.iter().copied());
    let after = table(&mut odds.iter().rev().copied());
    let all = before[count * width + wanted];
    (0..count)
        .map(|place| {
            let (left, right) =
                (&before[place * width..][..width], &after[(count - place - 1) * width..][..width]);
            let others: f64 = (0..wanted).map(|chosen| left[chosen] * right[wanted - 1 - chosen]).sum();
            odds[place] / (1.0 + odds[place]) * others / all
        })
        .collect()
}

/// Returns the reach of every rank, from the chances of independent choices of each expert.
pub fn reaches(placement: &Placement, chances: &[f64], top_k: u32) -> Vec<Reach> {
    let most = top_k as usize;
    let slots = placement.slot_chances(chances);
    let ranks: Vec<Vec<f64>> =
        slots.chunks_exact(placement.per_rank).map(|held| counts_of_independent(held, most)).collect();
    let count = ranks.len();
    // Counts over the ranks before each one, and after it.
    let none = || {
        let mut law = vec![0.0; most + 1];
        law[0] = 1.0;
        law
    };
    let mut after = vec![none(); count + 1];
    for rank in (0..count).rev() {
        after[rank] = sum(&ranks[rank], &after[rank + 1]);
    }
    let mut before = none();
    let mut found = Vec::with_capacity(count);
    for rank in 0..count {
        let others = sum(&before, &after[rank + 1]);
        let law: Vec<f64> = (0..=most).map(|own| ranks[rank][own] * others[most - own]).collect();
        found.push(reach(&law));
        before = sum(&before, &ranks[rank]);
    }
    found
}

/// Returns the law of how many of independent events happen, up to `most` of them.
fn counts_of_independent(chances: &[f64], most: usize) -> Vec<f64> {
    let mut law = vec![0.0; most + 1];
    law[0] = 1.0;
    for chance in chances {
        for count in (1..=most).rev() {
            law[count] = law[count] * (1.0 - chance) + law[count - 1] * chance;
        }
        law[0] *= 1.0 - chance;
    }
    law
}

/// Returns the law of the sum of two independent counts, as far as they are long.
fn sum(one: &[f64], other: &[f64]) -> Vec<f64> {
    (0..one.len()).map(|all| (0..=all).map(|part| one[part] * other[all - part]).sum()).collect()
}

/// Returns the reach of a rank whose number of a token's experts has this law, but for a factor.
fn reach(law: &[f64]) -> Reach {
    let total: f64 = law.iter().sum();
    if total <= 0.0 {
        return Reach { share: 0.0, visits: 0.0, per_visit: 0.0, variance: 0.0 };
    }
    let (mut visits, mut squares) = (0.0, 0.0);
    for (count, mass) in law.iter().enumerate() {
        visits += mass * count as f64 / total;
        squares += mass * (count * count) as f64 / total;
    }
    let share = 1.0 - law[0] / total;
    let (variance, covariance) = (squares - visits * visits, visits * (1.0 - share));
    let per_visit = if variance > 0.0 { covariance / variance } else { 0.0 };
    Reach { share, visits, per_visit, variance: (share * (1.0 - share) - per_visit * covariance).max(0.0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::step_time::ExpertPlacement;

    #[test]
    fn equal_chances_give_the_hypergeometric_law() {
        let placement = Placement::initial(ExpertPlacement::Linear, 64, 0, 4);
        let found = reaches(&placement, &[6.0 / 64.0; 64], 6);
        // None of 6 different experts is among 16 of 64: C(48, 6) / C(64, 6).
        let none: f64 = (0..6).map(|i| (48.0 - f64::from(i)) / (64.0 - f64::from(i))).product();
        for rank in found {
            assert!((rank.share - (1.0 - none)).abs() < 1e-12, "{rank:?}");
            assert!((rank.visits - 1.5).abs() < 1e-12, "{rank:?}");
        }
    }

    #[test]
    fn chosen_under_the_condition_experts_have_their_chances() {
        let weights: Vec<f64> = (1..=12).map(|place| 1.0 / f64::from(place)).collect();
        let scale = 3.0 / weights.iter().sum::<f64>();
        let chances: Vec<f64> = weights.iter().map(|weight| weight * scale).collect();
        let found = independent_chances(&chances, 3);
        // All subsets of three.
        let (mut all, mut made) = (0.0, [0.0; 12]);
        for set in 0..1_u32 << 12 {
            if set.count_ones() == 3 {
                let is_in = |expert: usize| set >> expert & 1 == 1;
                let mass: f64 = (0..12).map(|e| if is_in(e) { found[e] } else { 1.0 - found[e] }).product();
                all += mass;
                (0..12).filter(|&expert| is_in(expert)).for_each(|expert| made[expert] += mass);
            }
        }
        for (made, chance) in made.iter().zip(&chances) {
            assert!((made / all - chance).abs() < 1e-7, "{found:?}");
        }
        let certain = independent_chances(&[1.0, 0.5, 0.25, 0.25], 2);
        assert!((certain[0] - 1.0).abs() < 1e-12 && certain[1] > certain[2], "{certain:?}");
    }

    #[test]
    fn a_rank_with_one_expert_is_reached_by_every_visit() {
        let placement = Placement::initial(ExpertPlacement::Linear, 8, 0, 8);
        let rank = reaches(&placement, &[0.25; 8], 2)[3];
        assert!((rank.tokens(30.0, 100.0, 2.0, 1.0) - 30.0).abs() < 1e-6, "{rank:?}");
    }
}
