//! Operators whose time depends on a row count alone, summed into one table per kind of rows.
//!
//! A table is filled as row counts are met: a run asks for few of the counts that it might, and a learned predictor
//! costs a microsecond. Entries also count how often they were asked for, so that what a run's times rest on is
//! known afterwards without work in its loop.

use std::collections::BTreeMap;

use super::collective::Collective;
use super::cost::{Cost, TotalCost};
use super::elementwise::Elementwise;
use super::expert_load::ExpertLoads;
use super::fused_moe::FusedMoe;
use super::gemm::Gemm;
use super::learned::{LearnedTable, LearnedTrees, Prediction};
use super::moe_exchange::MoeExchange;
use super::trust::TrustTally;

/// Most rows of the dense table; more are kept in a map.
const MAX_TABLE_ROWS: u32 = 32_768;

/// What runs.
#[derive(Clone, Debug)]
pub enum Kernel {
    /// Dense product.
    Gemm(Gemm),
    /// Routed experts.
    FusedMoe(FusedMoe),
    /// Memory-bound work.
    Elementwise(Elementwise),
    /// Collective.
    Collective(Collective),
    /// Exchange of tokens between the ranks of experts.
    MoeExchange(MoeExchange),
}

/// How its time is predicted.
#[derive(Clone, Debug)]
pub enum Learned {
    /// Factor on its bound.
    Trees(Box<LearnedTrees>),
    /// Times by bytes.
    Table(LearnedTable),
}

/// An operator in its place in the program.
#[derive(Clone, Debug)]
pub struct RowOperator {
    /// Place in the stage.
    pub position: usize,
    /// Name.
    pub name: String,
    /// Runs per step.
    pub count: u32,
    /// What runs.
    pub kernel: Kernel,
    /// How its time is predicted; `None`: by its bound.
    pub learned: Option<Learned>,
    /// Factor on the bound where that is all there is.
    pub bound_factor: f64,
}

impl RowOperator {
    /// Returns the cost of one run over `rows` rows, at least 1.
    fn bound(&self, rows: u32) -> Cost {
        match &self.kernel {
            Kernel::Gemm(kernel) => kernel.cost(rows),
            Kernel::FusedMoe(kernel) => kernel.cost_of(rows, &kernel.loads(rows)),
            Kernel::Elementwise(kernel) => kernel.cost(rows),
            Kernel::Collective(kernel) => kernel.cost(rows),
            Kernel::MoeExchange(kernel) => kernel.cost(rows),
        }
    }

    /// Returns the cost and the time of one run over `rows` rows, at least 1.
    pub fn price(&mut self, rows: u32) -> (Cost, Prediction) {
        if let Kernel::FusedMoe(kernel) = &self.kernel {
            let loads = kernel.loads(rows);
            return self.price_loads(rows, &loads);
        }
        let cost = match &self.kernel {
            Kernel::Gemm(kernel) => kernel.cost(rows),
            Kernel::FusedMoe(kernel) => kernel.cost(rows),
            Kernel::Elementwise(kernel) => kernel.cost(rows),
            Kernel::Collective(kernel) => kernel.cost(rows),
            Kernel::MoeExchange(kernel) => kernel.cost(rows),
        };
        let prediction = match (&mut self.learned, &self.kernel) {
            (None, _) => Prediction::unmeasured(&cost, self.bound_factor),
            (Some(Learned::Table(table)), Kernel::Collective(kernel)) => table.predict(kernel.payload(rows)),
            (Some(Learned::Table(table)), _) => table.predict(cost.bytes),
            (Some(Learned::Trees(trees)), kernel) => match kernel {
                Kernel::Gemm(kernel) => trees.predict(&cost, &kernel.features(rows, &cost)),
                Kernel::Elementwise(kernel) => trees.predict(&cost, &kernel.features(rows)),
                Kernel::MoeExchange(kernel) => trees.predict(&cost, &kernel.features(rows)),
                Kernel::FusedMoe(_) | Kernel::Collective(_) => {
                    Prediction::unmeasured(&cost, self.bound_factor)
                }
            },
        };
        (cost, prediction)
    }

    /// Returns the cost and the time of one run of routed experts over `rows` rows that spread as `loads`.
    pub fn price_loads(&mut self, rows: u32, loads: &ExpertLoads) -> (Cost, Prediction) {
        let Kernel::FusedMoe(kernel) = &self.kernel else {
            return self.price(rows);
        };
        let cost = kernel.cost_of(rows, loads);
        let prediction = match &mut self.learned {
            Some(Learned::Trees(trees)) => trees.predict(&cost, &kernel.features(rows, loads, &cost)),
            Some(Learned::Table(table)) => table.predict(cost.bytes),
            None => Prediction::unmeasured(&cost, self.bound_factor),
        };
        (cost, prediction)
    }

    fn runs(&self) -> f64 {
        f64::from(self.count)
    }
}

/// The sum over operators for one row count.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Not a number until it is asked for.
    cost: TotalCost,
    asked: u64,
}

const EMPTY: Entry =
    Entry { cost: TotalCost { seconds: f64::NAN, flops: 0.0, bytes: 0.0, active_s: 0.0 }, asked: 0 };

/// Operators over one kind of rows, and the sum of their costs by row count.
#[derive(Clone, Debug)]
pub struct RowGroup {
    operators: Vec<RowOperator>,
    table: Vec<Entry>,
    /// Row counts beyond the table.
    beyond: BTreeMap<u32, Entry>,
    /// Useful FLOPs and bytes of row counts that were padded, which captured sizes bound; not numbers until asked for.
    useful: Vec<(f64, f64)>,
}

impl RowGroup {
    /// Returns the group, with a table for up to `max_rows` rows.
    pub fn new(operators: Vec<RowOperator>, max_rows: u32) -> Self {
        let mut table = vec![EMPTY; max_rows.min(MAX_TABLE_ROWS) as usize + 1];
        table[0].cost = TotalCost::default();
        Self { operators, table, beyond: BTreeMap::new(), useful: Vec::new() }
    }

    /// Returns the cost of all operators over `rows` rows, and counts the question.
    #[inline]
    pub fn cost(&mut self, rows: u32) -> TotalCost {
        if let Some(entry) = self.table.get_mut(rows as usize)
            && !entry.cost.seconds.is_nan()
        {
            entry.asked += 1;
            return entry.cost;
        }
        self.first_cost(rows)
    }

    /// Returns the cost of all operators over `rows` rows of which `useful` are no padding: padding takes time, but
    /// its FLOPs and bytes are not useful ones.
    #[inline]
    pub fn padded_cost(&mut self, rows: u32, useful: u32) -> TotalCost {
        let mut cost = self.cost(rows);
        if rows != useful {
            (cost.flops, cost.bytes) = self.useful_work(useful);
        }
        cost
    }

    #[inline]
    fn useful_work(&mut self, rows: u32) -> (f64, f64) {
        match self.useful.get(rows as usize) {
            Some(&work) if !work.0.is_nan() => work,
            _ => self.first_useful_work(rows),
        }
    }

    #[cold]
    fn first_useful_work(&mut self, rows: u32) -> (f64, f64) {
        let mut total = TotalCost::default();
        if rows > 0 {
            for operator in &self.operators {
                total.add(&operator.bound(rows), 0.0, operator.runs());
            }
        }
        let index = rows as usize;
        if self.useful.len() <= index {
            self.useful.resize(index + 1, (f64::NAN, 0.0));
        }
        self.useful[index] = (total.flops, total.bytes);
        self.useful[index]
    }

    #[cold]
    fn first_cost(&mut self, rows: u32) -> TotalCost {
        if let Some(entry) = self.beyond.get_mut(&rows) {
            entry.asked += 1;
            return entry.cost;
        }
        let entry = Entry { cost: self.direct(rows), asked: 1 };
        match self.table.get_mut(rows as usize) {
            Some(slot) => *slot = entry,
            None => {
                self.beyond.insert(rows, entry);
            }
        }
        entry.cost
    }

    /// Returns the same, evaluating every operator: equal bit for bit.
    pub fn direct(&mut self, rows: u32) -> TotalCost {
        let mut total = TotalCost::default();
        if rows > 0 {
            for operator in &mut self.operators {
                let (cost, prediction) = operator.price(rows);
                total.add(&cost, prediction.seconds, operator.runs());
            }
        }
        total
    }

    /// Returns every operator with its cost and time over `rows` rows; nothing runs over no rows.
    pub fn prices(&mut self, rows: u32) -> impl Iterator<Item = (&RowOperator, Option<(Cost, Prediction)>)> {
        self.operators.iter_mut().map(move |operator| {
            let price = (rows > 0).then(|| operator.price(rows));
            (&*operator, price)
        })
    }

    /// Returns what all answers so far rest on, operator by operator in order of position.
    pub fn trust(&mut self) -> Vec<(usize, TrustTally)> {
        let Self { operators, table, beyond, useful: _ } = self;
        let dense = (0_u32..).zip(&*table);
        let asked: Vec<(u32, f64)> = dense
            .chain(beyond.iter().map(|(&rows, entry)| (rows, entry)))
            .filter(|&(rows, entry)| rows > 0 && entry.asked > 0)
            .map(|(rows, entry)| (rows, entry.asked as f64))
            .collect();
        let tally = |operator: &mut RowOperator| {
            let mut tally = TrustTally::default();
            for &(rows, asked) in &asked {
                let (_, prediction) = operator.price(rows);
                let seconds = prediction.seconds * operator.runs() * asked;
                tally.add(seconds, prediction.provenance, prediction.outside.as_ref());
            }
            (operator.position, tally)
        };
        operators.iter_mut().map(tally).collect()
    }

    /// Returns the operators.
    pub fn operators(&self) -> &[RowOperator] {
        &self.operators
    }
}
