//! Dense matrix products `[rows, k] x [k, n]`: FLOPs in tiles and waves, bytes of weights and activations.
//!
//! A kernel cuts the result into tiles, one thread block each; the GPU runs one block per SM at a time, so the
//! work comes in waves, and a partly filled tile or last wave costs as much as a full one (NVIDIA, "Matrix
//! Multiplication Background User's Guide", tile and wave quantization). Larger tiles reuse operands more; more
//! tiles fill the machine better. When the tiles of a product do not fill the machine, its inner dimension is
//! split over blocks as well, whose FP32 partial sums are written and read again (split-K in CUTLASS,
//! `media/docs/efficient_gemm.md`). Like a library's heuristic, the fastest of the known tilings is taken.
//!
//! Time is `max(compute, memory) + launch`, where
//!
//! - `memory = (k * n * weight_bytes + rows * (k + n) * activation_bytes) * batch / bandwidth`,
//! - `compute` is the least over tilings and splits of `waves * block_s / split + partial_sums`,
//! - `block_s = 2 * tile_rows * tile_cols * k / (flops_per_s / num_sms * tile_efficiency)`,
//! - `waves = ceil(ceil(rows / tile_rows) * ceil(n / tile_cols) * batch * split / num_sms)`.

use super::cost::Cost;
use super::device::Device;

/// Rows and columns of the tiles that kernels offer (CUTLASS and cuBLAS on tensor cores). Rows are tokens; tiles
/// of fewer than 64 rows are those of kernels that lay tokens along the instruction's narrow side.
const TILES: [(u32, u32); 12] = [
    (16, 64),
    (16, 128),
    (32, 64),
    (32, 128),
    (64, 64),
    (64, 128),
    (64, 256),
    (128, 64),
    (128, 128),
    (128, 256),
    (256, 64),
    (256, 128),
];

/// Rows in the smallest tile, which divides the rows of all others: compute time is constant within it.
pub const ROW_BLOCK: u32 = 16;

/// Ways to split the inner dimension.
const SPLITS: [u32; 4] = [2, 4, 8, 16];

/// Shortest inner dimension of a split: four 64-wide main-loop steps, or the prologue dominates.
const MIN_SPLIT_K: u32 = 256;

/// Bytes of one partial sum.
const ACCUMULATOR_BYTES: f64 = 4.0;

/// Operand reuse, in FLOPs per loaded element and half, at which a tile reaches half the rate of an infinite one.
const HALF_RATE_REUSE: f64 = 16.0;

/// Returns the rate of a tile of `rows x cols` relative to the largest (128 x 256), in (0, 1].
///
/// A tile loads `rows + cols` elements per step of the inner dimension for `rows * cols` multiply-adds. Rates
/// saturate with that reuse `r` as `r / (r + 16)`: 0.95 for 128 x 128, 0.79 for 64 x 64, the order of the
/// user's guide cited above.
pub(crate) fn tile_efficiency(rows: u32, cols: u32) -> f64 {
    let saturation = |rows: f64, cols: f64| {
        let reuse = rows * cols / (rows + cols);
        reuse / (reuse + HALF_RATE_REUSE)
    };
    saturation(f64::from(rows), f64::from(cols)) / saturation(128.0, 256.0)
}

/// A tile of a known product.
#[derive(Clone, Debug)]
struct Tiling {
    rows: u32,
    /// Tiles along the columns, times the independent products.
    tiles_per_row_of_tiles: u64,
    /// Time of one block without a split, in seconds.
    block_s: f64,
    /// Writing and reading the partial sums of one row of tiles for one split, in seconds.
    partial_s: f64,
}

/// A dense product of known `k` and `n`.
#[derive(Clone, Debug)]
pub struct Gemm {
    tilings: Vec<Tiling>,
    num_sms: u64,
    max_split: u32,
    launch_s: f64,
    bandwidth_bytes_per_s: f64,
    weight_bytes: f64,
    activation_bytes_per_row: f64,
    flops_per_row: f64,
    shape: GemmShape,
}

/// Names of [`Gemm::features`].
pub const FEATURES: [&str; 20] = [
    "rows",
    "k",
    "n",
    "batch",
    "weight_bytes",
    "total_weight_bytes",
    "flops",
    "intensity",
    "bound_s",
    "row_padding_16",
    "row_padding_64",
    "row_padding_128",
    "waves_64x128",
    "waves_128x128",
    "waves_128x256",
    "fill_64x128",
    "fill_128x128",
    "fill_128x256",
    "row_alignment",
    "shape_alignment",
];

/// Tiles of the wave features.
const FEATURE_TILES: [(u32, u32); 3] = [(64, 128), (128, 128), (128, 256)];

/// Shape and element sizes of a dense product.
#[derive(Clone, Copy, Debug)]
pub struct GemmShape {
    /// Inner dimension.
    pub k: u32,
    /// Columns of the result.
    pub n: u32,
    /// Independent products in one launch.
    pub batch: u32,
    /// Bytes per weight element.
    pub weight_bytes: f64,
    /// Bytes per element of input and output.
    pub activation_bytes: f64,
    /// Share of the FLOPs that no other rank repeats.
    pub model_share: f64,
}

impl Gemm {
    /// Returns the product of `shape` on `device`, whose sustained rate for its dtype is `flops_per_s`.
    pub fn new(device: &Device, flops_per_s: f64, shape: &GemmShape) -> Self {
        let (k, n, batch) = (f64::from(shape.k), f64::from(shape.n), f64::from(shape.batch));
        let sm_flops_per_s = flops_per_s / f64::from(device.num_sms);
        let tiling = |&(rows, cols): &(u32, u32)| {
            let tiles = u64::from(shape.n.div_ceil(cols)) * u64::from(shape.batch);
            let tile_elements = f64::from(rows) * f64::from(cols);
            Tiling {
                rows,
                tiles_per_row_of_tiles: tiles,
                block_s: 2.0 * tile_elements * k / (sm_flops_per_s * tile_efficiency(rows, cols)),
                partial_s: 2.0 * tile_elements * tiles as f64 * ACCUMULATOR_BYTES
                    / device.bandwidth_bytes_per_s,
            }
        };
        Self {
            tilings: TILES.iter().map(tiling).collect(),
            num_sms: u64::from(device.num_sms),
            max_split: shape.k / MIN_SPLIT_K,
            launch_s: device.launch_s,
            bandwidth_bytes_per_s: device.bandwidth_bytes_per_s,
            weight_bytes: k * n * shape.weight_bytes * batch,
            activation_bytes_per_row: (k + n) * shape.activation_bytes * batch,
            flops_per_row: 2.0 * k * n * batch * shape.model_share,
            shape: *shape,
        }
    }

    /// Returns the features of a run over `rows` rows that costs `cost`, as in [`FEATURES`]. Waves are tiles per SM,
    /// fill is the share of the last wave's slots (and of all before it) that hold a tile.
    pub fn features(&self, rows: u32, cost: &Cost) -> [f32; FEATURES.len()] {
        let shape = &self.shape;
        let padding = |tile: u32| f64::from(rows) / f64::from(rows.next_multiple_of(tile));
        let waves = FEATURE_TILES.map(|(tile_rows, tile_cols)| {
            let tiles = u64::from(rows.div_ceil(tile_rows))
                * u64::from(shape.n.div_ceil(tile_cols))
                * u64::from(shape.batch);
            tiles as f64 / self.num_sms as f64
        });
        let fill = waves.map(|waves| waves / waves.ceil());
        let alignment = |size: u32| f64::from(1_u32 << size.trailing_zeros().min(8));
        [
            f64::from(rows),
            f64::from(shape.k),
            f64::from(shape.n),
            f64::from(shape.batch),
            shape.weight_bytes,
            self.weight_bytes,
            cost.flops / shape.model_share,
            cost.compute_s / cost.memory_s,
            cost.seconds(),
            padding(16),
            padding(64),
            padding(128),
            waves[0],
            waves[1],
            waves[2],
            fill[0],
            fill[1],
            fill[2],
            alignment(rows),
            alignment(shape.k).min(alignment(shape.n)),
        ]
        .map(|value| value as f32)
    }

    /// Returns the cost of one run over `rows` rows.
    pub fn cost(&self, rows: u32) -> Cost {
        self.cost_with(rows, self.compute_s(rows))
    }

    /// Returns the cost of one run over `rows` rows whose compute time is known. Compute time changes
    /// only where `rows` passes a multiple of [`ROW_BLOCK`].
    #[inline]
    pub fn cost_with(&self, rows: u32, compute_s: f64) -> Cost {
        let rows = f64::from(rows);
        let bytes = self.weight_bytes + rows * self.activation_bytes_per_row;
        Cost {
            compute_s,
            memory_s: bytes / self.bandwidth_bytes_per_s,
            launch_s: self.launch_s,
            flops: rows * self.flops_per_row,
            bytes,
            ..Cost::default()
        }
    }

    /// Returns the time of the fastest tiling if only arithmetic (and partial sums) took time, in seconds.
    /// Never falls as `rows` grow.
    pub fn compute_s(&self, rows: u32) -> f64 {
        let mut fastest = f64::INFINITY;
        for tiling in &self.tilings {
            fastest = fastest.min(self.tiling_s(tiling, rows));
        }
        fastest
    }

    fn tiling_s(&self, tiling: &Tiling, rows: u32) -> f64 {
        let rows_of_tiles = u64::from(rows.div_ceil(tiling.rows));
        let tiles = rows_of_tiles * tiling.tiles_per_row_of_tiles;
        let mut fastest = tiles.div_ceil(self.num_sms) as f64 * tiling.block_s;
        if tiles >= self.num_sms {
            return fastest;
        }
        for split in SPLITS.into_iter().take_while(|&split| split <= self.max_split) {
            let waves = (tiles * u64::from(split)).div_ceil(self.num_sms);
            let split = f64::from(split);
            let partial_s = split * (rows_of_tiles as f64 * tiling.partial_s);
            fastest = fastest.min(waves as f64 * (tiling.block_s / split) + partial_s);
        }
        fastest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fidelity::cost::Bound;
    use crate::fidelity::fixtures::h100;
    use crate::plan::step_time::{Dtype, GpuSpec};
    use proptest::prelude::*;

    const PEAK: f64 = 989.4e12;

    fn gemm_on(gpu: &GpuSpec, k: u32, n: u32, batch: u32) -> Gemm {
        let device = Device::new(gpu);
        let rate = device.flops_per_s(Dtype::Bf16).unwrap();
        let shape = GemmShape { k, n, batch, weight_bytes: 2.0, activation_bytes: 2.0, model_share: 1.0 };
        Gemm::new(&device, rate, &shape)
    }

    fn gemm(k: u32, n: u32) -> Gemm {
        gemm_on(&h100(), k, n, 1)
    }

    #[test]
    fn a_big_square_product_runs_near_the_sustained_rate() {
        let cost = gemm(8192, 8192).cost(8192);
        let share = cost.flops / cost.seconds() / PEAK;
        // 2048 tiles of 128 x 256 are 15.5 waves of 132, so 16: 3 % lost.
        assert!(share > 0.8 * 0.93 && share <= 0.8, "{share}");
        assert_eq!(cost.bound(), Bound::Compute);
    }

    #[test]
    fn a_single_row_costs_its_weights() {
        for (k, n) in [(4096, 4096), (4096, 28672), (14336, 4096), (4096, 128_256)] {
            let cost = gemm(k, n).cost(1);
            let weights = 2.0 * f64::from(k) * f64::from(n);
            let ideal = weights / (3.35e12 * 0.9);
            assert_eq!(cost.bound(), Bound::Memory, "{k} x {n}");
            let ratio = cost.memory_s / ideal;
            assert!((1.0..1.001).contains(&ratio), "{k} x {n}: {ratio}");
        }
    }

    #[test]
    fn one_row_past_a_full_wave_starts_another() {
        // 256 rows are 132 tiles of 256 x 128: exactly one wave.
        let gemm = gemm(8192, 132 * 128);
        let (before, full, past) = (gemm.compute_s(241), gemm.compute_s(256), gemm.compute_s(257));
        assert_eq!(before.to_bits(), full.to_bits());
        assert!(past > 1.3 * full, "{past} after {full}");
        let one_wave = 2.0 * 256.0 * 128.0 * 8192.0 / (0.8 * PEAK / 132.0);
        assert!((full / one_wave - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_product_with_few_tiles_splits_its_inner_dimension() {
        // 4 tiles at most would leave 128 of 132 SMs idle.
        let cost = gemm(16384, 256).cost(64);
        let unsplit = 2.0 * 64.0 * 64.0 * 16384.0 / (0.8 * PEAK / 132.0 * tile_efficiency(64, 64));
        assert!(cost.compute_s < 0.3 * unsplit, "{} of {unsplit}", cost.compute_s);
    }

    #[test]
    fn independent_products_share_the_machine() {
        let (one, many) = (gemm_on(&h100(), 512, 128, 1), gemm_on(&h100(), 512, 128, 128));
        let (one, many) = (one.cost(16), many.cost(16));
        assert!((many.bytes / one.bytes - 128.0).abs() < 1e-9);
        assert!((many.flops / one.flops - 128.0).abs() < 1e-9);
        assert!(many.compute_s < 8.0 * one.compute_s);
    }

    #[test]
    fn larger_tiles_are_more_efficient() {
        assert!((tile_efficiency(128, 256) - 1.0).abs() < 1e-15);
        for ((rows, cols), expected) in [((128, 128), 0.95), ((64, 64), 0.79), ((16, 64), 0.53)] {
            assert!((tile_efficiency(rows, cols) - expected).abs() < 0.005);
        }
    }

    proptest! {
        #[test]
        fn prop_time_never_falls_with_rows(k in 64_u32..9000, n in 1_u32..9000, rows in 1_u32..5000) {
            let gemm = gemm(k, n);
            prop_assert!(gemm.cost(rows + 1).seconds() >= gemm.cost(rows).seconds());
            let block = rows.next_multiple_of(ROW_BLOCK);
            prop_assert_eq!(gemm.compute_s(rows).to_bits(), gemm.compute_s(block).to_bits());
        }

        #[test]
        fn prop_a_faster_machine_is_not_slower(k in 64_u32..9000, n in 1_u32..9000, rows in 1_u32..5000) {
            let base = gemm(k, n).cost(rows).seconds();
            let mut wider = h100();
            wider.memory_bandwidth_bytes_per_s *= 2.0;
            prop_assert!(gemm_on(&wider, k, n, 1).cost(rows).seconds() <= base);
            let mut faster = h100();
            faster.peak_flops_per_s.bf16 = Some(2.0 * PEAK);
            prop_assert!(gemm_on(&faster, k, n, 1).cost(rows).seconds() <= base);
        }

        #[test]
        fn prop_no_product_beats_the_roofline(k in 64_u32..9000, n in 1_u32..9000, rows in 1_u32..5000) {
            let cost = gemm(k, n).cost(rows);
            let bound = (cost.flops / (0.8 * PEAK)).max(cost.bytes / (0.9 * 3.35e12));
            prop_assert!(cost.seconds() >= bound * (1.0 - 1e-12));
        }
    }
}
