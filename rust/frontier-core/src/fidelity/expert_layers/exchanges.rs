//! Dispatch and combine of one layer, priced by rows that need not be whole.

use std::collections::BTreeMap;

use crate::fidelity::learned::Prediction;
use crate::fidelity::row_operator::{Kernel, RowOperator};

/// The exchanges of a layer: none where all ranks gather all tokens.
#[derive(Clone, Debug)]
pub struct Exchanges {
    /// Their operators, in program order.
    pub operators: Vec<RowOperator>,
    /// Times by rows.
    prices: [BTreeMap<u32, Prediction>; 2],
}

impl Exchanges {
    /// Returns these exchanges, at most two.
    pub fn new(operators: Vec<RowOperator>) -> Self {
        Self { operators, prices: [BTreeMap::new(), BTreeMap::new()] }
    }

    /// Returns the time of all of them over `rows` rows, in seconds.
    pub fn seconds(&mut self, rows: f64) -> f64 {
        (0..self.operators.len()).map(|index| self.predict(index, rows).seconds).sum()
    }

    /// Returns the prediction of one exchange over rows that need not be whole.
    pub fn predict(&mut self, index: usize, rows: f64) -> Prediction {
        let below = (rows as u32).max(1);
        let weight = (rows - f64::from(below)).clamp(0.0, 1.0);
        let low = self.price(index, below);
        if weight <= 0.0 {
            return low;
        }
        let high = self.price(index, below + 1);
        Prediction { seconds: low.seconds + (high.seconds - low.seconds) * weight, ..high }
    }

    fn price(&mut self, index: usize, rows: u32) -> Prediction {
        let operator = &mut self.operators[index];
        *self.prices[index].entry(rows).or_insert_with(|| operator.price(rows).1)
    }

    /// Returns the time on the links of the exchanges of all layers in which every rank sends `rows` rows, in seconds.
    pub fn even_s(&self, rows: f64) -> f64 {
        let time = |operator: &RowOperator| match &operator.kernel {
            Kernel::MoeExchange(kernel) => kernel.network_s(rows) * f64::from(operator.count),
            _ => 0.0,
        };
        self.operators.iter().map(time).sum()
    }
}
