//! The memo of cells: `exp(margin)` by the ranks of a row.
//!
//! Between two thresholds a rank does not change, so the ranks of a row say all that the trees can see of it: as
//! a key they are exact. Consecutive steps mostly stay in one cell, which is tested first, without any rank.

use std::hash::Hash;

use rustc_hash::FxHashMap;

use super::compiled::Compiled;

/// Cells remembered at most; then the memo begins anew. What it answers never depends on what it holds.
pub const MAX_CELLS: usize = 1 << 16;
/// Free features whose ranks fit in one word.
const NARROW: usize = 8;

/// Remembers ratios of one [`Compiled`].
#[derive(Clone, Debug)]
pub struct CellMemo {
    /// The cell of the last row, as half-open intervals; empty before the first.
    low: Vec<f32>,
    high: Vec<f32>,
    last: Option<f64>,
    cells: Cells,
}

#[derive(Clone, Debug)]
enum Cells {
    Narrow(FxHashMap<u64, f64>),
    Wide(FxHashMap<Box<[u8]>, f64>),
}

impl CellMemo {
    /// Returns an empty memo for `compiled`.
    pub fn new(compiled: &Compiled) -> Self {
        let features = compiled.free().len();
        Self {
            low: vec![0.0; features],
            high: vec![0.0; features],
            last: None,
            cells: if features <= NARROW {
                Cells::Narrow(FxHashMap::default())
            } else {
                Cells::Wide(FxHashMap::default())
            },
        }
    }

    /// Returns `exp(margin)` of a row of the free features of `compiled`, which must be the one that the memo was
    /// made for.
    ///
    /// # Panics
    /// If `x` has not one value per free feature.
    #[inline]
    pub fn ratio(&mut self, compiled: &Compiled, x: &[f32]) -> f64 {
        if let Some(ratio) = self.last
            && self.low.len() == x.len()
            && x.iter().zip(&self.low).zip(&self.high).all(|((&x, &low), &high)| low <= x && x < high)
        {
            return ratio;
        }
        self.look_up(compiled, x)
    }

    fn look_up(&mut self, compiled: &Compiled, x: &[f32]) -> f64 {
        assert_eq!(x.len(), self.low.len(), "a value per free feature");
        let ratio = match &mut self.cells {
            Cells::Narrow(cells) => {
                let mut ranks = [0; NARROW];
                compiled.rank(x, &mut ranks);
                compiled.cell(&ranks, &mut self.low, &mut self.high);
                remembered(cells, u64::from_le_bytes(ranks), || compiled.walk(&ranks))
            }
            Cells::Wide(cells) => {
                let mut ranks = [0; 256];
                compiled.rank(x, &mut ranks);
                compiled.cell(&ranks, &mut self.low, &mut self.high);
                remembered(cells, ranks[..x.len()].into(), || compiled.walk(&ranks))
            }
        };
        self.last = Some(ratio);
        ratio
    }
}

fn remembered<K: Eq + Hash>(cells: &mut FxHashMap<K, f64>, key: K, margin: impl FnOnce() -> f32) -> f64 {
    if let Some(&ratio) = cells.get(&key) {
        return ratio;
    }
    let ratio = libm::exp(f64::from(margin()));
    if cells.len() == MAX_CELLS {
        cells.clear();
    }
    cells.insert(key, ratio);
    ratio
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predictor::Ensemble;
    use crate::predictor::fixtures::{random_parts, random_row};
    use proptest::prelude::*;

    fn cells(memo: &CellMemo) -> usize {
        match &memo.cells {
            Cells::Narrow(cells) => cells.len(),
            Cells::Wide(cells) => cells.len(),
        }
    }

    #[test]
    fn a_full_memo_begins_anew_and_answers_alike() {
        for features in [8, 9] {
            let ensemble = Ensemble::new(&random_parts(7, features, 40, 6), features).unwrap();
            let compiled = ensemble.specialise(&vec![None; features]);
            let mut memo = CellMemo::new(&compiled);
            let mut most = 0;
            let mut began_anew = false;
            for query in 0..200_000 {
                let row = random_row(query, features);
                let row: Vec<f32> = compiled.free().iter().map(|&feature| row[feature]).collect();
                let ratio = memo.ratio(&compiled, &row);
                if query % 97 == 0 {
                    let exact = libm::exp(f64::from(compiled.margin(&row)));
                    assert_eq!(ratio.to_bits(), exact.to_bits());
                }
                began_anew |= cells(&memo) < most;
                most = most.max(cells(&memo));
            }
            assert!(began_anew && most == MAX_CELLS, "{features} features: {most} cells");
        }
    }

    proptest! {
        #[test]
        fn prop_a_remembered_ratio_is_the_exact_one(
            seed in any::<u64>(), features in 1_usize..14, trees in 1_usize..12, depth in 0_usize..6,
        ) {
            let ensemble = Ensemble::new(&random_parts(seed, features, trees, depth), features).unwrap();
            let compiled = ensemble.specialise(&vec![None; features]);
            let mut memo = CellMemo::new(&compiled);
            let mut row = random_row(seed ^ 3, features);
            for query in 0..200 {
                // Mostly a small move of one feature, as between the steps of a run, and some jumps.
                let jump = random_row(seed ^ (query + 5), features);
                let at = query as usize % features;
                row[at] = match query % 7 { 0 => jump[at], 1 => f32::INFINITY, 2 => -jump[at], _ => row[at] + 0.125 };
                let x: Vec<f32> = compiled.free().iter().map(|&feature| row[feature]).collect();
                let exact = libm::exp(f64::from(ensemble.margin(&row)));
                prop_assert_eq!(memo.ratio(&compiled, &x).to_bits(), exact.to_bits());
            }
        }
    }
}
