//! Ensembles for the tests of this room.

use rand_core::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

use super::ensemble::{EnsembleParts, LEAF};

/// Two trees over two features, with thresholds 1 and 2 of the first and 5 of the second.
pub(super) fn two_trees() -> EnsembleParts {
    EnsembleParts {
        thresholds: vec![1.0, 2.0, 5.0],
        threshold_offsets: vec![0, 2, 3],
        nodes: vec![0, 0, LEAF, 1, 0, LEAF, LEAF, 0, 1, LEAF, LEAF],
        tree_starts: vec![0, 7, 11],
        leaves: vec![1.0, 2.0, 4.0, 16.0, 32.0],
        base_score: 0.5,
    }
}

/// Random trees up to `depth`, with thresholds on a grid of eighths, so that rows of eighths meet them exactly.
pub(super) fn random_parts(seed: u64, features: usize, trees: usize, depth: usize) -> EnsembleParts {
    let mut rng = Pcg64Mcg::seed_from_u64(seed);
    let mut below = move |n: usize| (rng.next_u64() % n as u64) as usize;
    let mut parts = EnsembleParts {
        thresholds: Vec::new(),
        threshold_offsets: vec![0],
        nodes: Vec::new(),
        tree_starts: vec![0],
        leaves: Vec::new(),
        base_score: below(1000) as f32 / 999.0,
    };
    for _ in 0..features {
        let mut thresholds: Vec<f32> = (0..=below(24)).map(|_| below(48) as f32 / 8.0 - 3.0).collect();
        thresholds.sort_by(f32::total_cmp);
        thresholds.dedup();
        parts.thresholds.extend(thresholds);
        parts.threshold_offsets.push(parts.thresholds.len() as u32);
    }
    for _ in 0..trees {
        let mut open = vec![0];
        while let Some(at) = open.pop() {
            if at == depth || below(6) == 0 {
                parts.nodes.push(LEAF);
                parts.leaves.push(below(1 << 20) as f32 / 524_287.0 - 1.0);
            } else {
                let feature = below(features);
                let count = parts.threshold_offsets[feature + 1] - parts.threshold_offsets[feature];
                parts.nodes.extend([feature as u8, below(count as usize) as u8]);
                open.extend([at + 1, at + 1]);
            }
        }
        parts.tree_starts.push(parts.nodes.len() as u32);
    }
    parts
}

/// A row of eighths in and beyond the range of the thresholds.
pub(super) fn random_row(seed: u64, features: usize) -> Vec<f32> {
    let mut rng = Pcg64Mcg::seed_from_u64(seed);
    (0..features).map(|_| (rng.next_u64() % 60) as f32 / 8.0 - 3.5).collect()
}
