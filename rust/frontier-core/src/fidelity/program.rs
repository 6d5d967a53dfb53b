//! The operators of one forward pass, compiled: those whose cost depends on a row count alone collapse into one
//! dense table per kind of row, attention stays a formula.

use super::attention::{Attention, AttentionShape};
use super::batch::BatchShape;
use super::collective::{Collective, Kind};
use super::cost::{Cost, OperatorTime, TotalCost};
use super::device::Device;
use super::elementwise::Elementwise;
use super::gemm::{Gemm, GemmShape, ROW_BLOCK};
use super::grouped_gemm::{ExpertShape, GroupedGemm};
use crate::error::SimError;
use crate::plan::step_time::{Dtype, LinkSpec, OperatorSpec, RooflineSpec, Rows};

/// Most rows of a dense table; larger batches are evaluated directly, with the same bits.
const MAX_TABLE_ROWS: u32 = 32_768;

/// An operator whose cost depends on a row count alone.
#[derive(Clone, Debug)]
enum RowOperator {
    Gemm(Gemm),
    GroupedGemm(GroupedGemm),
    Elementwise(Elementwise),
    Collective(Collective),
}

impl RowOperator {
    fn cost(&self, rows: u32) -> Cost {
        match self {
            Self::Gemm(gemm) => gemm.cost(rows),
            Self::GroupedGemm(gemm) => gemm.cost(rows),
            Self::Elementwise(operator) => operator.cost(rows),
            Self::Collective(collective) => collective.cost(rows),
        }
    }

    /// Adds `count` runs to every entry of `table`, whose index is the number of rows.
    fn add_to(&self, table: &mut [TotalCost], count: f64) {
        let mut compute_s = 0.0;
        for (rows, entry) in (0_u32..).zip(table).skip(1) {
            let cost = match self {
                Self::Gemm(gemm) => {
                    if rows % ROW_BLOCK == 1 {
                        compute_s = gemm.compute_s(rows);
                    }
                    gemm.cost_with(rows, compute_s)
                }
                _ => self.cost(rows),
            };
            entry.add(&cost, count);
        }
    }
}

/// An operator with its place in the program.
#[derive(Clone, Debug)]
struct Placed<T> {
    position: usize,
    name: String,
    count: u32,
    operator: T,
}

/// Operators over one kind of rows, and the sum of their costs by row count.
#[derive(Clone, Debug)]
struct RowGroup {
    operators: Vec<Placed<RowOperator>>,
    table: Vec<TotalCost>,
}

impl RowGroup {
    fn new(operators: Vec<Placed<RowOperator>>, max_rows: u32) -> Self {
        let mut table = vec![TotalCost::default(); max_rows.min(MAX_TABLE_ROWS) as usize + 1];
        for placed in &operators {
            placed.operator.add_to(&mut table, f64::from(placed.count));
        }
        Self { operators, table }
    }

    #[inline]
    fn cost(&self, rows: u32) -> TotalCost {
        self.table.get(rows as usize).copied().unwrap_or_else(|| self.direct(rows))
    }

    fn direct(&self, rows: u32) -> TotalCost {
        let mut total = TotalCost::default();
        if rows > 0 {
            for placed in &self.operators {
                total.add(&placed.operator.cost(rows), f64::from(placed.count));
            }
        }
        total
    }
}

/// A compiled forward pass of one rank.
#[derive(Clone, Debug)]
pub struct Program {
    tokens: RowGroup,
    seqs: RowGroup,
    attention: Vec<Placed<Attention>>,
    windows: Vec<u32>,
}

impl Program {
    /// Compiles the program of `spec`, with tables for up to `max_tokens` tokens and `max_seqs` requests.
    ///
    /// # Errors
    /// [`SimError::Plan`] if an operator needs a rate or a link that the specification lacks.
    pub fn compile(spec: &RooflineSpec, max_tokens: u32, max_seqs: u32) -> Result<Self, SimError> {
        let device = Device::new(&spec.gpu);
        let windows = windows(&spec.program);
        let (mut tokens, mut seqs, mut attention) = (Vec::new(), Vec::new(), Vec::new());
        for (position, operator) in spec.program.iter().enumerate() {
            let (name, count) = (operator.name().to_owned(), operator.count());
            if let Some((rows, compiled)) = row_operator(&device, spec.link.as_ref(), position, operator)? {
                let group = match rows {
                    Rows::Tokens => &mut tokens,
                    Rows::Seqs => &mut seqs,
                };
                group.push(Placed { position, name, count, operator: compiled });
            } else if let Some(operator) = attention_operator(&device, &windows, position, operator)? {
                attention.push(Placed { position, name, count, operator });
            }
        }
        Ok(Self {
            tokens: RowGroup::new(tokens, max_tokens),
            seqs: RowGroup::new(seqs, max_seqs),
            attention,
            windows,
        })
    }

    /// Returns the distinct sliding windows, in order of appearance.
    pub fn windows(&self) -> &[u32] {
        &self.windows
    }

    /// Returns the cost of one forward pass on one rank, by table look-up. `tokens` and `seqs` are the row counts
    /// of `batch`.
    #[inline]
    pub fn cost(&self, batch: &BatchShape, tokens: u32, seqs: u32) -> TotalCost {
        self.sum(self.tokens.cost(tokens), self.seqs.cost(seqs), batch)
    }

    /// Returns the same, evaluating every operator: equal bit for bit.
    pub fn direct_cost(&self, batch: &BatchShape, tokens: u32, seqs: u32) -> TotalCost {
        self.sum(self.tokens.direct(tokens), self.seqs.direct(seqs), batch)
    }

    #[inline]
    fn sum(&self, tokens: TotalCost, seqs: TotalCost, batch: &BatchShape) -> TotalCost {
        let mut total = TotalCost {
            seconds: tokens.seconds + seqs.seconds,
            flops: tokens.flops + seqs.flops,
            bytes: tokens.bytes + seqs.bytes,
        };
        for placed in &self.attention {
            total.add(&placed.operator.cost(batch), f64::from(placed.count));
        }
        total
    }

    /// Returns the share of every operator, in program order; FLOPs and bytes are those of `ranks` ranks.
    pub fn breakdown(&self, batch: &BatchShape, tokens: u32, seqs: u32, ranks: f64) -> Vec<OperatorTime> {
        let mut rows = Vec::new();
        for (group, count) in [(&self.tokens, tokens), (&self.seqs, seqs)] {
            for placed in &group.operators {
                let cost = if count == 0 { Cost::default() } else { placed.operator.cost(count) };
                rows.push((placed.position, &placed.name, placed.count, cost));
            }
        }
        for placed in &self.attention {
            rows.push((placed.position, &placed.name, placed.count, placed.operator.cost(batch)));
        }
        rows.sort_by_key(|row| row.0);
        let time = |(_, name, count, cost): (usize, &String, u32, Cost)| OperatorTime {
            name: name.clone(),
            count,
            seconds: cost.seconds() * f64::from(count),
            flops: cost.flops * f64::from(count) * ranks,
            bytes: cost.bytes * f64::from(count) * ranks,
            bound: cost.bound(),
        };
        rows.into_iter().map(time).collect()
    }
}

/// Returns the distinct sliding windows of `program`, in order of appearance.
fn windows(program: &[OperatorSpec]) -> Vec<u32> {
    let mut windows = Vec::new();
    for operator in program {
        if let OperatorSpec::Attention { window: Some(window), .. } = operator
            && !windows.contains(window)
        {
            windows.push(*window);
        }
    }
    windows
}

fn rate(device: &Device, dtype: Dtype, position: usize) -> Result<f64, SimError> {
    device.flops_per_s(dtype).ok_or_else(|| SimError::Plan {
        path: format!("step_time.program[{position}].dtype"),
        message: format!("was {}, but the GPU has no rate for it", dtype.name()),
    })
}

/// Returns the compiled operator and the rows that it runs over, `None` for attention.
fn row_operator(
    device: &Device,
    link: Option<&LinkSpec>,
    position: usize,
    operator: &OperatorSpec,
) -> Result<Option<(Rows, RowOperator)>, SimError> {
    let collective = |kind, bytes_per_row, ranks| {
        let link = link.ok_or_else(|| SimError::Plan {
            path: "step_time.link".into(),
            message: format!("was absent, but step_time.program[{position}] communicates"),
        })?;
        Ok(RowOperator::Collective(Collective::new(device, link, kind, bytes_per_row, ranks)))
    };
    Ok(Some(match *operator {
        OperatorSpec::Gemm {
            rows, k, n, batch, dtype, weight_bytes, activation_bytes, model_share, ..
        } => {
            let shape = GemmShape { k, n, batch, weight_bytes, activation_bytes, model_share };
            (rows, RowOperator::Gemm(Gemm::new(device, rate(device, dtype, position)?, &shape)))
        }
        OperatorSpec::GroupedGemm {
            experts,
            top_k,
            k,
            n,
            dtype,
            weight_bytes,
            activation_bytes,
            model_share,
            ..
        } => {
            let shape = ExpertShape { experts, top_k, k, n, weight_bytes, activation_bytes, model_share };
            let gemm = GroupedGemm::new(device, rate(device, dtype, position)?, &shape);
            (Rows::Tokens, RowOperator::GroupedGemm(gemm))
        }
        OperatorSpec::Elementwise { rows, bytes_per_row, .. } => {
            (rows, RowOperator::Elementwise(Elementwise::new(device, bytes_per_row)))
        }
        OperatorSpec::AllReduce { rows, bytes_per_row, ranks, .. } => {
            (rows, collective(Kind::AllReduce, bytes_per_row, ranks)?)
        }
        OperatorSpec::AllGather { rows, bytes_per_row, ranks, .. } => {
            (rows, collective(Kind::AllGather, bytes_per_row, ranks)?)
        }
        OperatorSpec::Attention { .. } => return Ok(None),
    }))
}

fn attention_operator(
    device: &Device,
    windows: &[u32],
    position: usize,
    operator: &OperatorSpec,
) -> Result<Option<Attention>, SimError> {
    let OperatorSpec::Attention {
        phase,
        heads,
        kv_heads,
        qk_dim,
        v_dim,
        kv_bytes_per_token,
        window,
        dtype,
        activation_bytes,
        model_share,
        ..
    } = *operator
    else {
        return Ok(None);
    };
    let shape = AttentionShape {
        phase,
        heads,
        kv_heads,
        qk_dim,
        v_dim,
        kv_bytes_per_token,
        activation_bytes,
        model_share,
        window: window.and_then(|window| windows.iter().position(|&known| known == window)),
    };
    Ok(Some(Attention::new(device, rate(device, dtype, position)?, &shape)))
}
