//! Where the experts of every layer are, step by step.

use super::placement::Placement;
use super::popularity::Popularity;
use crate::plan::step_time::{EplbSpec, ExpertPlacement};

/// Shape of the layers' experts.
#[derive(Clone, Copy, Debug)]
pub struct ExpertCounts {
    /// Experts of a layer.
    pub num_experts: u32,
    /// Copies of some of them.
    pub redundant_experts: u32,
    /// Ranks that hold them.
    pub ranks: u32,
    /// Layers.
    pub layers: u32,
}

/// Placement of every layer for a while.
#[derive(Clone, Debug)]
pub struct Arrangement {
    /// By layer.
    pub placements: Vec<Placement>,
    /// Number of the first arrangement with these placements.
    pub id: u32,
    /// Experts that the rank with most of them fetched to get here, over all layers.
    pub fetched: u32,
}

/// All arrangements, made as they are asked for.
#[derive(Clone, Debug)]
pub struct Arrangements {
    counts: ExpertCounts,
    eplb: Option<EplbSpec>,
    made: Vec<Arrangement>,
}

impl Arrangements {
    /// Returns the arrangements that begin with `kind` and go on as `eplb` says.
    pub fn new(kind: ExpertPlacement, counts: ExpertCounts, eplb: Option<EplbSpec>) -> Self {
        let ExpertCounts { num_experts, redundant_experts, ranks, layers } = counts;
        let placement = Placement::initial(kind, num_experts, redundant_experts, ranks);
        let first = Arrangement { placements: vec![placement; layers as usize], id: 0, fetched: 0 };
        Self { counts, eplb, made: vec![first] }
    }

    /// Returns the number of the arrangement of step `step`, and whether ranks stop for it to be made.
    pub fn number(&self, step: u64) -> (u64, bool) {
        let Some(eplb) = &self.eplb else {
            return (0, false);
        };
        // Beside the steps, one layer's weights arrive per step; the last of them completes the arrangement.
        let delay = if eplb.use_async { u64::from(self.counts.layers) } else { 0 };
        let interval = u64::from(eplb.step_interval);
        let Some(since) = step.checked_sub(first_step(eplb) + delay) else {
            return (0, false);
        };
        (1 + since / interval, !eplb.use_async && since.is_multiple_of(interval))
    }

    /// Returns the first step after experts were rearranged; 0 where they never are.
    pub fn settled_step(&self) -> u64 {
        let Some(eplb) = &self.eplb else { return 0 };
        first_step(eplb) + if eplb.use_async { u64::from(self.counts.layers) } else { 0 }
    }

    /// Returns arrangement `number`, made from what was popular in the window before it.
    pub fn get(&mut self, number: u64, popularity: &Popularity) -> &Arrangement {
        while let Some(eplb) = self.eplb
            && self.made.len() as u64 <= number
        {
            let next = self.made.len() as u64;
            let to = first_step(&eplb) + (next - 1) * u64::from(eplb.step_interval);
            let from = to.saturating_sub(u64::from(eplb.window_size));
            let ExpertCounts { redundant_experts, ranks, layers, .. } = self.counts;
            let placements: Vec<Placement> = (0..layers as usize)
                .map(|layer| Placement::balanced(&popularity.mean(layer, from, to), redundant_experts, ranks))
                .collect();
            let known = self.made.iter().find(|made| made.placements == placements).map(|made| made.id);
            let before = &self.made[next as usize - 1].placements;
            let fetched = placements.iter().zip(before).map(|(now, then)| now.most_fetched(then)).sum();
            self.made.push(Arrangement { placements, id: known.unwrap_or(next as u32), fetched });
        }
        &self.made[(number as usize).min(self.made.len() - 1)]
    }
}

/// Returns the step before which experts are first rearranged (vLLM, `eplb_state.py`: a quarter of the interval).
fn first_step(eplb: &EplbSpec) -> u64 {
    u64::from((eplb.step_interval / 4).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::step_time::RoutingSpec;
    use crate::rng::RngStreams;

    fn eplb(use_async: bool) -> EplbSpec {
        EplbSpec { window_size: 1000, step_interval: 3000, use_async }
    }

    #[test]
    fn rearranging_comes_after_a_quarter_and_then_every_interval() {
        let counts = ExpertCounts { num_experts: 16, redundant_experts: 4, ranks: 4, layers: 3 };
        let at_once = Arrangements::new(ExpertPlacement::Linear, counts, Some(eplb(false)));
        let found: Vec<_> = [749, 750, 751, 3749, 3750].map(|step| at_once.number(step)).into();
        assert_eq!(found, [(0, false), (1, true), (1, false), (1, false), (2, true)]);
        let beside = Arrangements::new(ExpertPlacement::Linear, counts, Some(eplb(true)));
        assert_eq!((beside.number(752), beside.number(753)), ((0, false), (1, false)));
    }

    #[test]
    fn popularity_that_stays_is_arranged_once() {
        let counts = ExpertCounts { num_experts: 16, redundant_experts: 4, ranks: 4, layers: 3 };
        let routing = RoutingSpec::PowerLaw { exponent: 1.0 };
        let popularity = Popularity::new(&routing, None, (16, 2), (0, 3), RngStreams::new(5, 0));
        let mut all = Arrangements::new(ExpertPlacement::Linear, counts, Some(eplb(false)));
        assert!(all.get(1, &popularity).fetched > 0);
        let later = all.get(3, &popularity);
        assert_eq!((later.id, later.fetched), (1, 0));
    }
}
