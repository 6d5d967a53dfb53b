//! Features and bounds of many runs at once, from columns: what predictors are trained on. The same code prices
//! operators inside a simulation, so training and use cannot disagree.

use super::attention::{self, Attention, AttentionShape};
use super::batch::BatchShape;
use super::cost::Cost;
use super::device::Device;
use super::elementwise::{self, Elementwise};
use super::expert_load::LoadLaw;
use super::fused_moe::{self, FusedMoe, MoeShape};
use super::gemm::{self, Gemm, GemmShape};
use super::moe_exchange::{self, ExchangeShape, MoeExchange};
use crate::error::SimError;
use crate::plan::step_time::{AttentionPhase, Dtype, GpuSpec, LinksSpec, MAX_BATCH, MAX_DIMENSION};

/// Most tokens of a measured batch, or of a context.
const MAX_ROWS: u32 = 1 << 24;

/// Operators whose time a tree predictor may learn, each with the names of its features.
pub const FAMILIES: [(&str, &[&str]); 17] = [
    ("gemm", &gemm::FEATURES),
    ("prefill_attention", &attention::PREFILL_FEATURES),
    ("decode_attention", &attention::DECODE_FEATURES),
    ("decode_skew", &attention::DECODE_FEATURES),
    ("mixed_attention", &attention::MIXED_FEATURES),
    ("fused_moe", &fused_moe::FEATURES),
    ("rms_norm", &elementwise::FEATURES),
    ("rope", &elementwise::FEATURES),
    ("activation", &elementwise::FEATURES),
    ("kv_write", &elementwise::FEATURES),
    ("embedding", &elementwise::FEATURES),
    ("quant_fp8", &elementwise::FEATURES),
    ("moe_gating", &elementwise::FEATURES),
    ("moe_permute", &elementwise::FEATURES),
    ("sampler", &elementwise::FEATURES),
    ("moe_dispatch", &moe_exchange::FEATURES),
    ("moe_combine", &moe_exchange::FEATURES),
];

/// Returns the names of the features of `operator`, `None` if no trees predict it.
pub fn feature_names(operator: &str) -> Option<&'static [&'static str]> {
    FAMILIES.iter().find(|(name, _)| *name == operator).map(|(_, names)| *names)
}

/// Columns by name, one value per run.
pub trait Columns {
    /// Returns the column called `name`, `None` if it is absent.
    fn numbers(&self, name: &str) -> Option<&[f64]>;
    /// Returns a column of whole numbers, `None` if it is absent.
    fn counts(&self, name: &str) -> Option<&[u32]>;
}

/// Features and bounds, row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureTable {
    /// Names of the features.
    pub names: &'static [&'static str],
    /// Values, row after row.
    pub features: Vec<f32>,
    /// The costs, one per row.
    pub costs: Vec<Cost>,
}

/// Returns the features and bounds of every row of `columns` for `operator` on `gpu`.
///
/// # Errors
/// [`SimError::Features`] naming the operator, column or row that is not allowed.
pub fn operator_features(
    operator: &str,
    gpu: &GpuSpec,
    links: LinksSpec,
    dtype: Dtype,
    columns: &dyn Columns,
) -> Result<FeatureTable, SimError> {
    let Some(names) = feature_names(operator) else {
        let known: Vec<_> = FAMILIES.iter().map(|(name, _)| *name).collect();
        return refuse(format!("operator: was {operator:?}, must be one of {}", known.join(", ")));
    };
    let device = Device::new(gpu);
    let Some(rate) = device.flops_per_s(dtype) else {
        return refuse(format!("dtype: was {}, but the GPU has no rate for it", dtype.name()));
    };
    let mut table = FeatureTable { names, features: Vec::new(), costs: Vec::new() };
    match operator {
        "gemm" => gemm_rows(&mut table, &device, rate, columns)?,
        "prefill_attention" => attention_rows(&mut table, &device, rate, columns, AttentionPhase::Prefill)?,
        "decode_attention" | "decode_skew" => {
            attention_rows(&mut table, &device, rate, columns, AttentionPhase::Decode)?;
        }
        "mixed_attention" => attention_rows(&mut table, &device, rate, columns, AttentionPhase::Both)?,
        "fused_moe" => moe_rows(&mut table, &device, rate, columns)?,
        "moe_dispatch" | "moe_combine" => exchange_rows(&mut table, &device, links, columns)?,
        _ => elementwise_rows(&mut table, &device, columns)?,
    }
    Ok(table)
}

impl FeatureTable {
    fn push(&mut self, features: &[f32], cost: Cost) {
        self.features.extend_from_slice(features);
        self.costs.push(cost);
    }
}

fn refuse<T>(what: String) -> Result<T, SimError> {
    Err(SimError::Features { what })
}

/// Columns of equal length, read row by row.
struct Reader<'a> {
    columns: Vec<(&'static str, &'a [f64])>,
}

impl<'a> Reader<'a> {
    fn new(columns: &'a dyn Columns, names: &[&'static str]) -> Result<Self, SimError> {
        let mut found: Vec<(&'static str, &[f64])> = Vec::with_capacity(names.len());
        for &name in names {
            let Some(column) = columns.numbers(name) else {
                return refuse(format!("{name}: this column is missing"));
            };
            if let Some((first, other)) = found.first()
                && other.len() != column.len()
            {
                let message = format!("{name}: has {} rows, but {first} has {}", column.len(), other.len());
                return refuse(message);
            }
            found.push((name, column));
        }
        Ok(Self { columns: found })
    }

    fn rows(&self) -> usize {
        self.columns.first().map_or(0, |(_, column)| column.len())
    }

    /// Returns a whole number in 1 ..= `most`.
    fn whole(&self, column: usize, row: usize, most: u32) -> Result<u32, SimError> {
        let (name, values) = self.columns[column];
        let value = values[row];
        if value >= 1.0 && value <= f64::from(most) && value.fract() == 0.0 {
            return Ok(value as u32);
        }
        refuse(format!("{name}[{row}]: was {value}, must be a whole number in 1 ..= {most}"))
    }

    /// Returns a positive finite number.
    fn positive(&self, column: usize, row: usize) -> Result<f64, SimError> {
        let (name, values) = self.columns[column];
        if values[row] > 0.0 && values[row].is_finite() {
            return Ok(values[row]);
        }
        refuse(format!("{name}[{row}]: was {}, must be positive and finite", values[row]))
    }

    fn number(&self, column: usize, row: usize) -> f64 {
        self.columns[column].1[row]
    }

    /// Returns whether a value of 0 or 1 is 1.
    fn flag(&self, column: usize, row: usize) -> Result<bool, SimError> {
        let (name, values) = self.columns[column];
        match values[row] {
            0.0 => Ok(false),
            1.0 => Ok(true),
            other => refuse(format!("{name}[{row}]: was {other}, must be 0 or 1")),
        }
    }

    /// Returns -1, 0, or a positive exponent.
    fn imbalance(&self, column: usize, row: usize) -> Result<f64, SimError> {
        let (name, values) = self.columns[column];
        let value = values[row];
        if value.is_finite() && (value >= 0.0 || value.to_bits() == (-1.0_f64).to_bits()) {
            return Ok(value);
        }
        refuse(format!("{name}[{row}]: was {value}, must be -1, 0 or positive and finite"))
    }
}

fn gemm_rows(
    table: &mut FeatureTable,
    device: &Device,
    rate: f64,
    columns: &dyn Columns,
) -> Result<(), SimError> {
    let reader = Reader::new(columns, &["rows", "k", "n", "batch", "weight_bytes", "activation_bytes"])?;
    for row in 0..reader.rows() {
        let rows = reader.whole(0, row, MAX_ROWS)?;
        let shape = GemmShape {
            k: reader.whole(1, row, MAX_DIMENSION)?,
            n: reader.whole(2, row, MAX_DIMENSION)?,
            batch: reader.whole(3, row, MAX_BATCH)?,
            weight_bytes: reader.positive(4, row)?,
            activation_bytes: reader.positive(5, row)?,
            model_share: 1.0,
        };
        let product = Gemm::new(device, rate, &shape);
        let cost = product.cost(rows);
        table.push(&product.features(rows, &cost), cost);
    }
    Ok(())
}

fn attention_rows(
    table: &mut FeatureTable,
    device: &Device,
    rate: f64,
    columns: &dyn Columns,
    phase: AttentionPhase,
) -> Result<(), SimError> {
    let names = ["heads", "kv_heads", "qk_dim", "v_dim", "kv_bytes_per_token", "activation_bytes", "window"];
    let reader = Reader::new(columns, &names)?;
    let groups = Groups::new(columns, reader.rows())?;
    for row in 0..reader.rows() {
        let window = reader.number(6, row);
        let window_tokens = if window == 0.0 { None } else { Some(reader.whole(6, row, u32::MAX)?) };
        let shape = AttentionShape {
            phase,
            heads: reader.whole(0, row, MAX_BATCH)?,
            kv_heads: reader.whole(1, row, MAX_BATCH)?,
            qk_dim: reader.whole(2, row, MAX_BATCH)?,
            v_dim: reader.whole(3, row, MAX_BATCH)?,
            kv_bytes_per_token: reader.positive(4, row)?,
            activation_bytes: reader.positive(5, row)?,
            window: window_tokens.map(|_| 0),
            window_tokens,
            span: None,
            model_share: 1.0,
        };
        if !shape.heads.is_multiple_of(shape.kv_heads) {
            return refuse(format!(
                "kv_heads[{row}]: was {}, must divide heads ({})",
                shape.kv_heads, shape.heads
            ));
        }
        let batch = groups.batch(row, window_tokens)?;
        let kernel = Attention::new(device, rate, &shape);
        for (group, other, wanted) in [
            (batch.prefill(), AttentionPhase::Decode, "prefill (query > 1)"),
            (batch.decode(), AttentionPhase::Prefill, "decode (query == 1)"),
        ] {
            if group.num_seqs == 0 && phase != other {
                return refuse(format!("query[{row}]: this batch has no {wanted}"));
            }
        }
        let (prefill, decode) = (kernel.prefill_cost(&batch), kernel.decode_cost(&batch));
        match phase {
            AttentionPhase::Prefill => table.push(&kernel.prefill_features(&batch, &prefill), prefill),
            AttentionPhase::Decode => table.push(&kernel.decode_features(&batch, &decode), decode),
            AttentionPhase::Both => {
                let parts =
                    (kernel.prefill_features(&batch, &prefill), kernel.decode_features(&batch, &decode));
                let features = Attention::mixed_features(&parts.0, &parts.1);
                table.push(&features, kernel.combined(&prefill, &decode));
            }
        }
    }
    Ok(())
}

/// Batches as groups of equal requests.
struct Groups<'a> {
    offsets: &'a [u32],
    count: &'a [u32],
    query: &'a [u32],
    context: &'a [u32],
}

impl<'a> Groups<'a> {
    fn new(columns: &'a dyn Columns, rows: usize) -> Result<Self, SimError> {
        let get = |name: &str| {
            columns
                .counts(name)
                .ok_or_else(|| SimError::Features { what: format!("{name}: this column is missing") })
        };
        let found = Self {
            offsets: get("offsets")?,
            count: get("count")?,
            query: get("query")?,
            context: get("context")?,
        };
        let groups = found.count.len();
        if found.query.len() != groups || found.context.len() != groups {
            return refuse("count, query, context: must have the same length".into());
        }
        let ends = (found.offsets.first(), found.offsets.last());
        let sorted = found.offsets.windows(2).all(|pair| pair[0] <= pair[1]);
        if found.offsets.len() != rows + 1 || ends.0 != Some(&0) || !sorted {
            return refuse(format!("offsets: must be {} ascending numbers from 0", rows + 1));
        }
        if ends.1.map(|&end| end as usize) != Some(groups) {
            return refuse(format!("offsets: must end at the number of groups ({groups})"));
        }
        Ok(found)
    }

    fn batch(&self, row: usize, window: Option<u32>) -> Result<BatchShape, SimError> {
        let mut batch = BatchShape::new(window.as_slice());
        for group in self.offsets[row] as usize..self.offsets[row + 1] as usize {
            let (count, query, context) = (self.count[group], self.query[group], self.context[group]);
            if query == 0 || context < query || context > MAX_ROWS || count > MAX_BATCH {
                return refuse(format!(
                    "count, query, context [{group}]: were {count}, {query}, {context}; query must be at least 1, \
                     context at least query and at most {MAX_ROWS}, count at most {MAX_BATCH}"
                ));
            }
            for _ in 0..count {
                batch.add(query, context, query > 1);
            }
        }
        Ok(batch)
    }
}

fn moe_rows(
    table: &mut FeatureTable,
    device: &Device,
    rate: f64,
    columns: &dyn Columns,
) -> Result<(), SimError> {
    let names = [
        "rows",
        "hidden",
        "inter",
        "experts",
        "top_k",
        "moe_tp",
        "moe_ep",
        "weight_bytes",
        "activation_bytes",
        "gated",
        "imbalance",
    ];
    let reader = Reader::new(columns, &names)?;
    for row in 0..reader.rows() {
        let rows = reader.whole(0, row, MAX_ROWS)?;
        let shape = MoeShape {
            num_experts: reader.whole(3, row, MAX_BATCH)?,
            top_k: reader.whole(4, row, MAX_BATCH)?,
            redundant_experts: 0,
            expert_ranks: reader.whole(6, row, MAX_BATCH)?,
            hidden: reader.whole(1, row, MAX_DIMENSION)?,
            intermediate: reader.whole(2, row, MAX_DIMENSION / 2)?.div_ceil(reader.whole(5, row, MAX_BATCH)?),
            gated: reader.flag(9, row)?,
            weight_bytes: reader.positive(7, row)?,
            activation_bytes: reader.positive(8, row)?,
            law: LoadLaw::of(reader.imbalance(10, row)?),
            model_share: 1.0,
        };
        if shape.top_k > shape.num_experts || !shape.num_experts.is_multiple_of(shape.expert_ranks) {
            return refuse(format!(
                "experts[{row}]: was {}, must be at least top_k ({}) and a multiple of moe_ep ({})",
                shape.num_experts, shape.top_k, shape.expert_ranks
            ));
        }
        let product = FusedMoe::new(device, rate, &shape);
        let loads = product.loads(rows);
        let cost = product.cost_of(rows, &loads);
        table.push(&product.features(rows, &loads, &cost), cost);
    }
    Ok(())
}

fn elementwise_rows(
    table: &mut FeatureTable,
    device: &Device,
    columns: &dyn Columns,
) -> Result<(), SimError> {
    let reader = Reader::new(columns, &["rows", "bytes_per_row"])?;
    for row in 0..reader.rows() {
        let rows = reader.whole(0, row, MAX_ROWS)?;
        let operator = Elementwise::new(device, reader.positive(1, row)?);
        table.push(&operator.features(rows), operator.cost(rows));
    }
    Ok(())
}

fn exchange_rows(
    table: &mut FeatureTable,
    device: &Device,
    links: LinksSpec,
    columns: &dyn Columns,
) -> Result<(), SimError> {
    let names = ["rows", "hidden", "top_k", "experts", "ep", "nodes", "bytes_per_element"];
    let reader = Reader::new(columns, &names)?;
    for row in 0..reader.rows() {
        let rows = reader.whole(0, row, MAX_ROWS)?;
        let shape = ExchangeShape {
            hidden: reader.whole(1, row, MAX_DIMENSION)?,
            top_k: reader.whole(2, row, MAX_BATCH)?,
            num_experts: reader.whole(3, row, MAX_BATCH)?,
            ranks: reader.whole(4, row, MAX_BATCH)?,
            nodes: reader.whole(5, row, MAX_BATCH)?,
            bytes_per_element: reader.positive(6, row)?,
        };
        if shape.ranks < 2 || !shape.ranks.is_multiple_of(shape.nodes) {
            return refuse(format!(
                "ep[{row}]: was {}, must be at least 2 and a multiple of nodes ({})",
                shape.ranks, shape.nodes
            ));
        }
        let exchange = MoeExchange::new(device, links.node, links.network, &shape);
        table.push(&exchange.features(rows), exchange.cost(rows));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fidelity::fixtures::h100;
    use std::collections::BTreeMap;

    #[derive(Default)]
    struct Table {
        numbers: BTreeMap<&'static str, Vec<f64>>,
        counts: BTreeMap<&'static str, Vec<u32>>,
    }

    impl Columns for Table {
        fn numbers(&self, name: &str) -> Option<&[f64]> {
            self.numbers.get(name).map(Vec::as_slice)
        }

        fn counts(&self, name: &str) -> Option<&[u32]> {
            self.counts.get(name).map(Vec::as_slice)
        }
    }

    const NO_LINKS: LinksSpec = LinksSpec { node: None, network: None };

    fn features(operator: &str, table: &Table) -> Result<FeatureTable, String> {
        operator_features(operator, &h100(), NO_LINKS, Dtype::Bf16, table).map_err(|error| error.to_string())
    }

    fn gemm_table() -> Table {
        let columns = [
            ("rows", 17.0),
            ("k", 4096.0),
            ("n", 6144.0),
            ("batch", 1.0),
            ("weight_bytes", 2.0),
            ("activation_bytes", 2.0),
        ];
        Table { numbers: columns.map(|(name, value)| (name, vec![value; 2])).into(), ..Table::default() }
    }

    #[test]
    fn rows_become_rows() {
        let table = features("gemm", &gemm_table()).unwrap();
        assert_eq!((table.features.len(), table.costs.len()), (2 * table.names.len(), 2));
        assert_eq!(table.features[0].to_bits(), 17.0_f32.to_bits());
        assert!(table.features.iter().all(|value| value.is_finite()));
    }

    #[test]
    fn a_decode_batch_of_two_lengths_keeps_its_spread() {
        let statics = [
            ("heads", 32.0),
            ("kv_heads", 8.0),
            ("qk_dim", 128.0),
            ("v_dim", 128.0),
            ("kv_bytes_per_token", 4096.0),
            ("activation_bytes", 2.0),
            ("window", 0.0),
        ];
        let mut table =
            Table { numbers: statics.map(|(name, value)| (name, vec![value])).into(), ..Table::default() };
        table.counts.insert("offsets", vec![0, 2]);
        table.counts.insert("count", vec![3, 1]);
        table.counts.insert("query", vec![1, 1]);
        table.counts.insert("context", vec![100, 500]);
        let found = features("decode_attention", &table).unwrap();
        let value = |name: &str| {
            let index = found.names.iter().position(|known| *known == name).unwrap();
            f64::from(found.features[index])
        };
        assert!((value("kv_mean") - 200.0).abs() < 1e-6 && (value("kv_max_ratio") - 2.5).abs() < 1e-6);
        assert!((value("kv_variation") - 0.75).abs() < 1e-6);
        assert!(features("prefill_attention", &table).unwrap_err().contains("no prefill"));
        table.counts.insert("context", vec![100, 0]);
        assert!(features("decode_attention", &table).unwrap_err().contains("context at least query"));
        table.counts.insert("offsets", vec![0, 3]);
        assert!(features("decode_attention", &table).unwrap_err().contains("offsets"));
    }

    #[test]
    fn bad_columns_are_named() {
        let refused = |name: &'static str, value: f64| {
            let mut table = gemm_table();
            table.numbers.insert(name, vec![4.0, value]);
            features("gemm", &table).unwrap_err()
        };
        for (name, value) in [("rows", 0.0), ("k", 1.5), ("n", f64::NAN), ("weight_bytes", f64::INFINITY)] {
            assert!(refused(name, value).contains(&format!("{name}[1]: was")), "{name}");
        }
        let mut table = gemm_table();
        table.numbers.insert("n", vec![1.0]);
        assert!(features("gemm", &table).unwrap_err().contains("n: has 1 rows"));
        table.numbers.remove("n");
        assert!(features("gemm", &table).unwrap_err().contains("n: this column is missing"));
        assert!(features("conv", &gemm_table()).unwrap_err().contains("must be one of gemm"));
    }
}
