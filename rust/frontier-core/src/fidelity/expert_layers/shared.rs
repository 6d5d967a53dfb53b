//! Shared experts, which every token visits: priced apart, because they may run beside the routed ones.

use std::collections::BTreeMap;

use super::overlap::Busy;
use crate::fidelity::cost::TotalCost;
use crate::fidelity::row_operator::RowOperator;
use crate::fidelity::trust::TrustTally;

/// Shared experts, and which rows they see.
#[derive(Clone, Debug)]
pub struct Shared {
    /// Their operators.
    pub operators: Vec<RowOperator>,
    /// They see a share of the rank's tokens.
    pub sharded: bool,
    /// By rows.
    costs: BTreeMap<u32, (Busy, TotalCost)>,
    asked: BTreeMap<u32, u64>,
}

impl Shared {
    /// Returns the shared experts that these operators are; `sharded`: they see a share of the rank's tokens.
    pub fn new(operators: Vec<RowOperator>, sharded: bool) -> Self {
        Self { operators, sharded, costs: BTreeMap::new(), asked: BTreeMap::new() }
    }

    /// Returns what each operator's times so far rest on.
    pub fn trust(&mut self) -> Vec<TrustTally> {
        let Self { operators, asked, .. } = self;
        let tally = |operator: &mut RowOperator| {
            let mut tally = TrustTally::default();
            for (&rows, &asked) in &*asked {
                let (_, prediction) = operator.price(rows);
                let seconds = prediction.seconds * f64::from(operator.count) * asked as f64;
                tally.add(seconds, prediction.provenance, prediction.outside.as_ref());
            }
            tally
        };
        operators.iter_mut().map(tally).collect()
    }

    /// Returns what all of them together cost over `rows` rows; `counted` questions count for [`Shared::trust`].
    pub fn cost(&mut self, rows: u32, counted: bool) -> (Busy, TotalCost) {
        if rows == 0 || self.operators.is_empty() {
            return (Busy::default(), TotalCost::default());
        }
        if counted {
            *self.asked.entry(rows).or_insert(0) += 1;
        }
        let operators = &mut self.operators;
        *self.costs.entry(rows).or_insert_with(|| {
            let (mut busy, mut work) = (Busy::default(), TotalCost::default());
            for operator in operators {
                let (cost, prediction) = operator.price(rows);
                let runs = f64::from(operator.count);
                busy.seconds += prediction.seconds * runs;
                busy.compute_s += cost.compute_s * runs;
                busy.memory_s += cost.memory_s * runs;
                work.add(&cost, prediction.seconds, runs);
            }
            (busy, work)
        })
    }
}
