//! Clusters of one role as one pool: which of them takes a request.

use crate::plan::{BalanceSpec, LegSpec};

/// The clusters that may take a leg.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    clusters: Vec<usize>,
    weights: Vec<f64>,
    balance: BalanceSpec,
    /// What each cluster is owed (smooth weighted round robin).
    credit: Vec<f64>,
    /// Requests under way in each.
    outstanding: Vec<u32>,
}

impl Pool {
    pub(super) fn new(leg: &LegSpec) -> Self {
        Self {
            clusters: leg.clusters.iter().map(|&cluster| cluster as usize).collect(),
            weights: leg.weights.clone(),
            balance: leg.balance,
            credit: vec![0.0; leg.clusters.len()],
            outstanding: vec![0; leg.clusters.len()],
        }
    }

    /// Returns the clusters of the pool.
    pub(super) fn clusters(&self) -> &[usize] {
        &self.clusters
    }

    /// Returns the requests under way in all of them.
    pub(super) fn outstanding(&self) -> u64 {
        self.outstanding.iter().map(|&count| u64::from(count)).sum()
    }

    /// Chooses one of the clusters that are open, and counts a request as under way there.
    pub(super) fn choose(&mut self, is_open: impl Fn(usize) -> bool) -> Option<usize> {
        let open: Vec<usize> = (0..self.clusters.len()).filter(|&at| is_open(self.clusters[at])).collect();
        let first = *open.first()?;
        let at = match self.balance {
            BalanceSpec::Weighted => self.next_in_turn(&open),
            BalanceSpec::LeastLoaded => {
                let load = |at: usize| f64::from(self.outstanding[at]) / self.weights[at];
                open.iter().fold(first, |best, &at| if load(at) < load(best) { at } else { best })
            }
        };
        self.outstanding[at] += 1;
        Some(self.clusters[at])
    }

    /// Notes that a request is no longer under way in `cluster`, if that is one of the pool.
    pub(super) fn release(&mut self, cluster: usize) {
        if let Some(at) = self.clusters.iter().position(|&other| other == cluster) {
            self.outstanding[at] -= 1;
        }
    }

    /// Every cluster is owed its weight, and the one that is owed most pays for all.
    fn next_in_turn(&mut self, open: &[usize]) -> usize {
        for &at in open {
            self.credit[at] += self.weights[at];
        }
        let credit = &self.credit;
        let at = open.iter().fold(open[0], |best, &at| if credit[at] > credit[best] { at } else { best });
        self.credit[at] -= open.iter().map(|&at| self.weights[at]).sum::<f64>();
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    fn pool(weights: &[f64], balance: BalanceSpec) -> Pool {
        Pool::new(&LegSpec {
            clusters: (0..weights.len() as u32).collect(),
            weights: weights.to_vec(),
            balance,
            encodes: None,
            receives: None,
        })
    }

    #[test]
    fn turns_follow_weights_and_are_spread_evenly() {
        let mut pool = pool(&[5.0, 1.0, 1.0], BalanceSpec::Weighted);
        let order: Vec<_> = (0..7).map(|_| pool.choose(|_| true).unwrap()).collect();
        assert_eq!(order, [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn the_least_loaded_for_its_weight_is_next() {
        let mut pool = pool(&[2.0, 1.0], BalanceSpec::LeastLoaded);
        let order: Vec<_> = (0..6).map(|_| pool.choose(|_| true).unwrap()).collect();
        assert_eq!(order, [0, 1, 0, 0, 1, 0]);
        pool.release(1);
        pool.release(1);
        assert_eq!(pool.choose(|_| true), Some(1));
        assert_eq!(pool.choose(|cluster| cluster == 0), Some(0));
        assert_eq!(pool.choose(|_| false), None);
    }
}
