//! The routed experts of a layer (mixture of experts): tokens are sorted by expert, every expert multiplies its tokens
//! by its weights (gate and up, then down), and each token's results are summed by weight.
//!
//! Only experts that have work are read. Each expert's tokens are padded to whole tiles, as fused-MoE kernels do (vLLM
//! `moe_align_block_size`); tiles run in waves as in [`gemm`](super::gemm). Loads come from a law
//! ([`expert_load`](super::expert_load)), so skew costs what its tiles and its active experts cost.
//!
//! Five kernels are launched: sort, two products, activation, sum.
//!
//! Left out: shared experts (dense products of their own), the router (an operator of its own).

use super::cost::Cost;
use super::device::Device;
use super::expert_load::{ExpertLoads, LoadLaw, TILE_ROWS, expert_loads, power_law_levels};
use super::gemm::tile_efficiency;

/// Columns of a tile.
const TILE_COLS: u32 = 128;
/// Sort, two products, activation, weighted sum.
const LAUNCHES: f64 = 5.0;

/// Shape and element sizes of the experts on one rank.
#[derive(Clone, Copy, Debug)]
pub struct MoeShape {
    /// Experts over all ranks.
    pub num_experts: u32,
    /// Experts that a token visits, over all ranks.
    pub top_k: u32,
    /// Copies of some of them.
    pub redundant_experts: u32,
    /// Ranks over which whole experts are spread.
    pub expert_ranks: u32,
    /// Width of the model.
    pub hidden: u32,
    /// Width of one expert on this rank.
    pub intermediate: u32,
    /// Gate and up projections, or one.
    pub gated: bool,
    /// Bytes per weight element.
    pub weight_bytes: f64,
    /// Bytes per element of input and output.
    pub activation_bytes: f64,
    /// How tokens spread over experts.
    pub law: LoadLaw,
    /// Share of the FLOPs that no other rank repeats.
    pub model_share: f64,
}

/// Routed experts of known shape.
#[derive(Clone, Debug)]
pub struct FusedMoe {
    shape: MoeShape,
    levels: Vec<f64>,
    num_sms: f64,
    launch_s: f64,
    bandwidth_bytes_per_s: f64,
    /// Time of one block of each tile height for a column tile of width-1 inner dimension, in seconds.
    block_s: [f64; 5],
    weight_bytes_per_expert: f64,
    activation_bytes_per_visit: f64,
    flops_per_visit: f64,
}

/// Names of [`FusedMoe::features`].
pub const FEATURES: [&str; 20] = [
    "rows",
    "hidden",
    "intermediate",
    "local_experts",
    "top_k",
    "num_experts",
    "expert_ranks",
    "visits",
    "active",
    "max_load",
    "mean_load",
    "load_variation",
    "tiles_16",
    "tiles_64",
    "tiles_128",
    "waves_64",
    "active_weight_bytes",
    "flops",
    "intensity",
    "bound_s",
];

impl MoeShape {
    /// Returns the experts over all ranks, copies included.
    pub const fn slots(&self) -> u32 {
        self.num_experts + self.redundant_experts
    }
}

impl FusedMoe {
    /// Returns the experts of `shape` on `device`, whose sustained rate for their dtype is `flops_per_s`.
    pub fn new(device: &Device, flops_per_s: f64, shape: &MoeShape) -> Self {
        let (hidden, width) = (f64::from(shape.hidden), f64::from(shape.intermediate));
        let products_in = if shape.gated { 2.0 } else { 1.0 };
        let elements = hidden * width * (products_in + 1.0);
        let sm_flops_per_s = flops_per_s / f64::from(device.num_sms);
        let block = |rows: u32| {
            let flops = 2.0 * f64::from(rows) * f64::from(TILE_COLS);
            flops / (sm_flops_per_s * tile_efficiency(rows, TILE_COLS))
        };
        // Read the token, write gate and up, read them and write the activation, read it, write the result and sum it.
        let moved = 3.0 * hidden + 2.0 * (products_in + 1.0) * width;
        Self {
            shape: *shape,
            levels: power_law_levels(shape.law, shape.slots()),
            num_sms: f64::from(device.num_sms),
            launch_s: device.launch_s * LAUNCHES,
            bandwidth_bytes_per_s: device.bandwidth_bytes_per_s,
            block_s: TILE_ROWS.map(block),
            weight_bytes_per_expert: elements * shape.weight_bytes,
            activation_bytes_per_visit: moved * shape.activation_bytes,
            flops_per_visit: 2.0 * elements * shape.model_share,
        }
    }

    /// Returns the shape.
    pub fn shape(&self) -> &MoeShape {
        &self.shape
    }

    /// Returns the bytes of one expert's weights on one rank.
    pub fn weight_bytes_per_expert(&self) -> f64 {
        self.weight_bytes_per_expert
    }

    /// Returns the loads of this rank's experts when `rows` tokens are routed over all ranks.
    pub fn loads(&self, rows: u32) -> ExpertLoads {
        let shape = &self.shape;
        expert_loads(shape.law, &self.levels, rows, shape.top_k, shape.slots(), shape.expert_ranks)
    }

    /// Returns the cost of one run over `rows` tokens, before they are copied to their experts.
    pub fn cost(&self, rows: u32) -> Cost {
        self.cost_of(rows, &self.loads(rows))
    }

    /// Returns the cost of one run with these loads. Its FLOPs are those of an average rank, so that they add up
    /// over ranks; its time and bytes are the most loaded one's.
    pub fn cost_of(&self, rows: u32, loads: &ExpertLoads) -> Cost {
        let bytes =
            loads.active * self.weight_bytes_per_expert + loads.visits * self.activation_bytes_per_visit;
        Cost {
            compute_s: self.compute_s(loads),
            memory_s: bytes / self.bandwidth_bytes_per_s,
            launch_s: self.launch_s,
            flops: self.flops(rows),
            bytes,
            ..Cost::default()
        }
    }

    /// Returns the useful FLOPs of an average rank over `rows` tokens.
    pub fn flops(&self, rows: u32) -> f64 {
        let visits = f64::from(rows) * f64::from(self.shape.top_k) / f64::from(self.shape.expert_ranks);
        visits * self.flops_per_visit
    }

    /// Columns of the first product.
    fn inner_width(&self) -> u64 {
        u64::from(self.shape.intermediate) * if self.shape.gated { 2 } else { 1 }
    }

    fn compute_s(&self, loads: &ExpertLoads) -> f64 {
        let (hidden, width) = (self.shape.hidden, self.shape.intermediate);
        let products = [
            (self.inner_width().div_ceil(u64::from(TILE_COLS)) as f64, f64::from(hidden)),
            (f64::from(hidden.div_ceil(TILE_COLS)), f64::from(width)),
        ];
        let mut fastest = f64::INFINITY;
        for (tiles, block_s) in loads.tiles.iter().zip(self.block_s) {
            let mut total = 0.0;
            for (columns, k) in products {
                total += (tiles * columns / self.num_sms).ceil() * block_s * k;
            }
            fastest = fastest.min(total);
        }
        fastest
    }

    /// Returns the features of a run over `rows` tokens, as in [`FEATURES`].
    pub fn features(&self, rows: u32, loads: &ExpertLoads, cost: &Cost) -> [f32; FEATURES.len()] {
        let shape = &self.shape;
        let local = f64::from(shape.slots()) / f64::from(shape.expert_ranks);
        let columns = self.inner_width().div_ceil(u64::from(TILE_COLS)) as f64;
        [
            f64::from(rows),
            f64::from(shape.hidden),
            f64::from(shape.intermediate),
            local,
            f64::from(shape.top_k),
            f64::from(shape.num_experts),
            f64::from(shape.expert_ranks),
            loads.visits,
            loads.active,
            loads.max,
            loads.visits / loads.active.max(1.0),
            loads.variation(local),
            loads.tiles[0],
            loads.tiles[2],
            loads.tiles[3],
            loads.tiles[2] * columns / self.num_sms,
            loads.active * self.weight_bytes_per_expert,
            loads.visits * self.flops_per_visit / self.shape.model_share,
            cost.compute_s / cost.memory_s,
            cost.seconds(),
        ]
        .map(|value| value as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fidelity::cost::Bound;
    use crate::fidelity::fixtures::h100;
    use crate::plan::step_time::Dtype;
    use proptest::prelude::*;

    /// Qwen3-30B-A3B: 8 of 128 experts of width 768.
    fn experts(law: LoadLaw, expert_ranks: u32) -> FusedMoe {
        let device = Device::new(&h100());
        let shape = MoeShape {
            num_experts: 128,
            top_k: 8,
            redundant_experts: 0,
            expert_ranks,
            hidden: 2048,
            intermediate: 768,
            gated: true,
            weight_bytes: 2.0,
            activation_bytes: 2.0,
            law,
            model_share: 1.0,
        };
        FusedMoe::new(&device, device.flops_per_s(Dtype::Bf16).unwrap(), &shape)
    }

    #[test]
    fn one_token_reads_the_experts_it_visits() {
        let cost = experts(LoadLaw::Balanced, 1).cost(1);
        let weights = 8.0 * 3.0 * 2048.0 * 768.0 * 2.0;
        assert!(cost.bytes > weights && cost.bytes < 1.02 * weights, "{} of {weights}", cost.bytes);
        assert_eq!(cost.bound(), Bound::Memory);
    }

    #[test]
    fn many_tokens_approach_the_dense_rate() {
        let cost = experts(LoadLaw::Balanced, 1).cost(65_536);
        let share = cost.flops / cost.seconds() / (0.8 * 989.4e12);
        assert!(share > 0.85 && share <= 1.0, "{share}");
        assert_eq!(cost.bound(), Bound::Compute);
    }

    #[test]
    fn skew_costs_padding_on_the_rank_that_has_it() {
        let even = experts(LoadLaw::Balanced, 8).cost(4096).seconds();
        let skewed = experts(LoadLaw::PowerLaw(1.2), 8).cost(4096).seconds();
        assert!(skewed > 1.2 * even, "{skewed} against {even}");
    }

    #[test]
    fn features_are_numbers() {
        let moe = experts(LoadLaw::Uniform, 1);
        let loads = moe.loads(100);
        let features = moe.features(100, &loads, &moe.cost_of(100, &loads));
        assert!(features.iter().all(|value| value.is_finite()));
        assert_eq!((features[0], features[7]), (100.0, 800.0));
    }

    proptest! {
        #[test]
        fn prop_time_never_falls_much_with_tokens(rows in 1_u32..20_000) {
            // Typical loads are whole tokens, so a tile may vanish when a token joins; never more than a wave.
            let product = experts(LoadLaw::Uniform, 1);
            let (now, next) = (product.cost(rows).seconds(), product.cost(rows + 1).seconds());
            prop_assert!(next >= now * 0.9, "{now} then {next}");
        }
    }
}
