//! Expert products (mixture of experts): one product per expert, over the tokens routed to it, in one launch.
//!
//! Routing is balanced in the mean and independent between tokens: each of `rows` tokens visits a given local
//! expert with probability `p = top_k / experts`. Then `experts * (1 - (1 - p)^rows)` experts are expected to have
//! work; only their weights are read. An active expert has `t = rows * top_k / active` tokens on average;
//! cut into tiles of `M` rows these fill `max(1, t / M + (M - 1) / (2 M))` tiles in expectation (a remainder
//! spread evenly over a tile), as fused-MoE kernels pad every expert's tokens to a tile (vLLM
//! `moe_align_block_size`). Tiles run in waves as in [`gemm`](super::gemm).
//!
//! Left out: skewed routing, shared experts (dense products of their own), the sort and the weighted sum
//! (elementwise operators of their own).

use super::cost::Cost;
use super::device::Device;
use super::gemm::tile_efficiency;

/// Rows of the tiles that fused-MoE kernels offer.
const TILE_ROWS: [u32; 5] = [16, 32, 64, 128, 256];
/// Columns of a tile.
const TILE_COLS: u32 = 128;

/// Shape and element sizes of the experts on one rank.
#[derive(Clone, Copy, Debug)]
pub struct ExpertShape {
    /// Experts on this rank.
    pub experts: u32,
    /// Experts of this rank that a token visits, on average.
    pub top_k: f64,
    /// Inner dimension.
    pub k: u32,
    /// Columns of the result.
    pub n: u32,
    /// Bytes per weight element.
    pub weight_bytes: f64,
    /// Bytes per element of input and output.
    pub activation_bytes: f64,
    /// Share of the FLOPs that no other rank repeats.
    pub model_share: f64,
}

/// An expert product of known shape.
#[derive(Clone, Debug)]
pub struct GroupedGemm {
    experts: f64,
    top_k: f64,
    /// `1 - p`: a token passes a given expert by.
    idle: f64,
    /// Rows of a tile and the time of one block, in seconds.
    blocks: Vec<(f64, f64)>,
    tiles_along_columns: f64,
    num_sms: f64,
    launch_s: f64,
    bandwidth_bytes_per_s: f64,
    weight_bytes_per_expert: f64,
    activation_bytes_per_visit: f64,
    flops_per_visit: f64,
}

impl GroupedGemm {
    /// Returns the product of `shape` on `device`, whose sustained rate for its dtype is `flops_per_s`.
    pub fn new(device: &Device, flops_per_s: f64, shape: &ExpertShape) -> Self {
        let (k, n) = (f64::from(shape.k), f64::from(shape.n));
        let sm_flops_per_s = flops_per_s / f64::from(device.num_sms);
        let block = |&rows: &u32| {
            let flops = 2.0 * f64::from(rows) * f64::from(TILE_COLS) * k;
            (f64::from(rows), flops / (sm_flops_per_s * tile_efficiency(rows, TILE_COLS)))
        };
        Self {
            experts: f64::from(shape.experts),
            top_k: shape.top_k,
            idle: 1.0 - shape.top_k / f64::from(shape.experts),
            blocks: TILE_ROWS.iter().map(block).collect(),
            tiles_along_columns: f64::from(shape.n.div_ceil(TILE_COLS)),
            num_sms: f64::from(device.num_sms),
            launch_s: device.launch_s,
            bandwidth_bytes_per_s: device.bandwidth_bytes_per_s,
            weight_bytes_per_expert: k * n * shape.weight_bytes,
            activation_bytes_per_visit: (k + n) * shape.activation_bytes,
            flops_per_visit: 2.0 * k * n * shape.model_share,
        }
    }

    /// Returns the number of experts expected to have work.
    pub fn active_experts(&self, rows: u32) -> f64 {
        self.experts * (1.0 - power(self.idle, rows))
    }

    /// Returns the cost of one run over `rows` tokens, before they are copied to their experts.
    pub fn cost(&self, rows: u32) -> Cost {
        let active = self.active_experts(rows);
        let visits = f64::from(rows) * self.top_k;
        let bytes = active * self.weight_bytes_per_expert + visits * self.activation_bytes_per_visit;
        Cost {
            compute_s: self.compute_s(active, visits),
            memory_s: bytes / self.bandwidth_bytes_per_s,
            launch_s: self.launch_s,
            flops: visits * self.flops_per_visit,
            bytes,
            ..Cost::default()
        }
    }

    fn compute_s(&self, active: f64, visits: f64) -> f64 {
        let tokens = visits / active;
        let mut fastest = f64::INFINITY;
        for &(rows, block_s) in &self.blocks {
            let tiles_per_expert = (tokens / rows + (rows - 1.0) / (2.0 * rows)).max(1.0);
            let tiles = active * tiles_per_expert * self.tiles_along_columns;
            fastest = fastest.min((tiles / self.num_sms).ceil() * block_s);
        }
        fastest
    }
}

/// Returns `base` to the power `exponent` by repeated squaring: the same bits on every platform.
fn power(base: f64, exponent: u32) -> f64 {
    let (mut result, mut square, mut rest) = (1.0, base, exponent);
    while rest > 0 {
        if rest & 1 == 1 {
            result *= square;
        }
        square *= square;
        rest >>= 1;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fidelity::cost::Bound;
    use crate::fidelity::fixtures::h100;
    use crate::plan::step_time::Dtype;
    use proptest::prelude::*;

    /// Gate and up projections of Qwen3-30B-A3B: 128 experts, 8 per token.
    fn experts(experts: u32, top_k: f64) -> GroupedGemm {
        let device = Device::new(&h100());
        let rate = device.flops_per_s(Dtype::Bf16).unwrap();
        let shape = ExpertShape {
            experts,
            top_k,
            k: 2048,
            n: 1536,
            weight_bytes: 2.0,
            activation_bytes: 2.0,
            model_share: 1.0,
        };
        GroupedGemm::new(&device, rate, &shape)
    }

    #[test]
    fn powers_by_squaring_equal_repeated_products() {
        for exponent in [0, 1, 2, 7, 64, 1000] {
            let product: f64 = (0..exponent).map(|_| 0.9375).product();
            let found = power(0.9375, exponent);
            assert!((found - product).abs() <= 1e-12 * product, "{exponent}: {found} is not {product}");
        }
    }

    #[test]
    fn one_token_reads_the_experts_it_visits() {
        let cost = experts(128, 8.0).cost(1);
        let weights = 8.0 * 2048.0 * 1536.0 * 2.0;
        assert!((cost.bytes / (weights + 8.0 * (2048.0 + 1536.0) * 2.0) - 1.0).abs() < 1e-12);
        assert_eq!(cost.bound(), Bound::Memory);
    }

    #[test]
    fn many_tokens_read_every_expert_once() {
        let product = experts(128, 8.0);
        assert!((product.active_experts(4096) - 128.0).abs() < 1e-9);
        // 32 tokens: 128 * (1 - (15 / 16)^32) = 111.77 experts.
        assert!((product.active_experts(32) - 111.77).abs() < 0.01);
        let all = experts(8, 8.0);
        assert_eq!(all.active_experts(1).to_bits(), 8.0_f64.to_bits());
    }

    #[test]
    fn full_tiles_approach_the_dense_rate() {
        let cost = experts(128, 8.0).cost(65_536);
        let share = cost.flops / cost.seconds() / (0.8 * 989.4e12);
        assert!(share > 0.9 && share <= 1.0, "{share}");
        assert_eq!(cost.bound(), Bound::Compute);
    }

    proptest! {
        #[test]
        fn prop_time_never_falls_with_tokens(rows in 1_u32..20_000, experts_ in 1_u32..256, share in 0.001_f64..1.0) {
            let product = experts(experts_, share * f64::from(experts_));
            let (now, next) = (product.cost(rows), product.cost(rows + 1));
            // Expected counts carry rounding errors of a few units in the last place.
            prop_assert!(next.seconds() >= now.seconds() * (1.0 - 1e-9));
            prop_assert!(next.bytes >= now.bytes * (1.0 - 1e-12));
            prop_assert!(product.active_experts(rows) <= f64::from(experts_));
        }
    }
}
