//! Which experts a rank holds, and how expert-parallel load balancing rearranges them.
//!
//! Rearranging follows `DeepSeek`'s EPLB (github.com/deepseek-ai/EPLB), which vLLM runs as its default policy
//! (`vllm/distributed/eplb/policy/default.py`), without its grouping by node: copies go one by one to the expert with
//! the largest load per copy; then experts, heaviest first, go to the rank with the least load that has room. Loads are
//! expected ones over the window, so the noise of counting tokens is left out.

use crate::plan::step_time::ExpertPlacement;

/// For each slot, rank by rank, the expert that it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Expert by slot.
    pub slots: Vec<u32>,
    /// Slots of a rank.
    pub per_rank: usize,
}

impl Placement {
    /// Returns the placement that an engine starts with; copies are of the first experts.
    pub fn initial(kind: ExpertPlacement, num_experts: u32, redundant_experts: u32, ranks: u32) -> Self {
        let slots = num_experts + redundant_experts;
        let per_rank = slots / ranks;
        let expert = |slot: u32| match kind {
            ExpertPlacement::Linear => slot,
            ExpertPlacement::RoundRobin => slot % per_rank * ranks + slot / per_rank,
        };
        Self {
            slots: (0..slots).map(|slot| expert(slot) % num_experts).collect(),
            per_rank: per_rank as usize,
        }
    }

    /// Returns the placement that balances `loads`, by expert.
    pub fn balanced(loads: &[f64], redundant_experts: u32, ranks: u32) -> Self {
        let mut copies = vec![1_u32; loads.len()];
        let per_copy = |expert: usize, copies: &[u32]| loads[expert] / f64::from(copies[expert]);
        for _ in 0..redundant_experts {
            let mut heaviest = 0;
            for expert in 1..loads.len() {
                if per_copy(expert, &copies) > per_copy(heaviest, &copies) {
                    heaviest = expert;
                }
            }
            copies[heaviest] += 1;
        }
        let mut items: Vec<(u32, f64)> = (0..loads.len())
            .flat_map(|expert| {
                let item = (expert as u32, per_copy(expert, &copies));
                std::iter::repeat_n(item, copies[expert] as usize)
            })
            .collect();
        // Stable, so that equals keep the order of their numbers.
        items.sort_by(|a, b| b.1.total_cmp(&a.1));
        let per_rank = items.len() / ranks as usize;
        let mut held: Vec<(f64, Vec<u32>)> = vec![(0.0, Vec::with_capacity(per_rank)); ranks as usize];
        for (expert, load) in items {
            let mut least: Option<usize> = None;
            for (rank, (sum, experts)) in held.iter().enumerate() {
                if experts.len() < per_rank && least.is_none_or(|known| *sum < held[known].0) {
                    least = Some(rank);
                }
            }
            if let Some(rank) = least {
                held[rank].0 += load;
                held[rank].1.push(expert);
            }
        }
        Self { slots: held.into_iter().flat_map(|(_, experts)| experts).collect(), per_rank }
    }

    /// Returns the most experts that a rank has to fetch to go from `before` to this placement.
    pub fn most_fetched(&self, before: &Self) -> u32 {
        let ranks = self.slots.chunks_exact(self.per_rank).zip(before.slots.chunks_exact(before.per_rank));
        let fetched = |(now, then): (&[u32], &[u32])| {
            now.iter()
                .enumerate()
                .filter(|(at, expert)| !then.contains(expert) && !now[..*at].contains(expert))
                .count()
        };
        ranks.map(fetched).max().unwrap_or(0) as u32
    }

    /// Returns the chance that a token visits each slot, where a token picks any copy of an expert with equal chances.
    pub fn slot_chances(&self, chances: &[f64]) -> Vec<f64> {
        let mut copies = vec![0.0; chances.len()];
        for &expert in &self.slots {
            copies[expert as usize] += 1.0;
        }
        self.slots.iter().map(|&expert| chances[expert as usize] / copies[expert as usize]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placements_hold_every_expert() {
        let linear = Placement::initial(ExpertPlacement::Linear, 8, 4, 4);
        assert_eq!(linear.slots, [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]);
        let dealt = Placement::initial(ExpertPlacement::RoundRobin, 8, 0, 4);
        assert_eq!(dealt.slots, [0, 4, 1, 5, 2, 6, 3, 7]);
    }

    #[test]
    fn the_worked_example_of_eplb_is_reproduced() {
        // A layer of the example in EPLB's README: 12 experts, 4 copies, 8 ranks. Copies go to 4, 5, 1 and 10.
        let loads = [90.0, 132.0, 40.0, 61.0, 104.0, 165.0, 39.0, 4.0, 73.0, 56.0, 183.0, 86.0];
        let found = Placement::balanced(&loads, 4, 8);
        let mut copies = [0; 12];
        for &expert in &found.slots {
            copies[expert as usize] += 1;
        }
        assert_eq!(copies, [1, 2, 1, 1, 2, 2, 1, 1, 1, 1, 2, 1]);
        let rank_loads: Vec<f64> = found
            .slots
            .chunks(2)
            .map(|held| held.iter().map(|&e| loads[e as usize] / f64::from(copies[e as usize])).sum())
            .collect();
        let (most, mean) = (rank_loads.iter().copied().fold(0.0, f64::max), 1033.0 / 8.0);
        assert!(most / mean < 1.12, "{rank_loads:?}");
    }

    #[test]
    fn what_a_rank_had_is_not_fetched() {
        let before = Placement { slots: vec![0, 1, 2, 3], per_rank: 2 };
        let after = Placement { slots: vec![1, 0, 2, 1], per_rank: 2 };
        assert_eq!((after.most_fetched(&before), before.most_fetched(&before)), (1, 0));
    }
}
