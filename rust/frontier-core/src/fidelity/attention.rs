//! Scaled dot-product attention over a paged KV cache, from the distribution of a batch's lengths.
//!
//! Useful work: `2 * (qk_dim + v_dim)` FLOPs per query head and query-key pair over the exact causal area (clipped
//! by the sliding window), each request's keys and values read once, queries and outputs moved once.
//!
//! *Prefills* are cut into blocks of 128 query rows (FlashAttention-2, Dao 2023; FlashAttention-3, Shah et al.
//! 2024) that hold the packed query heads of one KV head. A block computes its full rows against every key that
//! one of its queries sees, so a partial tile costs as much as a full one; the blocks share the machine, and the
//! longest one (the last tile of the longest context) bounds the kernel from below. Where blocks do not fill the
//! machine, their keys are split over idle SMs.
//!
//! *Decodes* are cut along keys (split-KV: Flash-Decoding, Dao et al. 2023): a block streams tiles of
//! 128 keys of one KV head for all the query heads that share it, rows padded to the 16 of a tensor-core
//! instruction. Tiles of all requests are spread evenly over SMs in whole waves, so short contexts cost a tile
//! and skew between requests is hidden, as in engines that schedule splits per request.
//!
//! Time = `max(compute, memory) + launch`. One kernel over both groups adds up their compute and their memory.
//! Left out: softmax rate, the kernel that combines splits, L2 hits of shared prefixes.

use super::batch::{AttentionWork, BatchShape, GroupShape, KV_TILE_TOKENS, QUERY_TILE_TOKENS};
use super::cost::Cost;
use super::device::Device;
use super::encoder_attention;
use crate::plan::step_time::{AttentionPhase, AttentionSpan};

/// Query rows of a prefill block.
const BLOCK_ROWS: f64 = 128.0;
/// Rows of the smallest tensor-core instruction: decode rows are padded to it.
const INSTRUCTION_ROWS: u64 = 16;

/// Heads, widths and element sizes of an attention operator on one rank.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    /// Which requests.
    pub phase: AttentionPhase,
    /// Query heads.
    pub heads: u32,
    /// KV heads.
    pub kv_heads: u32,
    /// Width of a query-key product.
    pub qk_dim: u32,
    /// Width of a value.
    pub v_dim: u32,
    /// KV bytes per context token.
    pub kv_bytes_per_token: f64,
    /// Bytes per element of query and output.
    pub activation_bytes: f64,
    /// Which of the batch's windows, if any.
    pub window: Option<usize>,
    /// Its tokens, if any.
    pub window_tokens: Option<u32>,
    /// What a token sees where attention is not causal.
    pub span: Option<AttentionSpan>,
    /// Share of the FLOPs that no other rank repeats.
    pub model_share: f64,
}

/// An attention operator of known shape.
#[derive(Clone, Debug)]
pub struct Attention {
    phase: AttentionPhase,
    window: Option<usize>,
    num_sms: f64,
    launch_s: f64,
    bandwidth_bytes_per_s: f64,
    kv_bytes_per_token: f64,
    /// Query and output bytes per new token.
    query_bytes_per_token: f64,
    /// FLOPs per query-key pair over all heads.
    flops_per_pair: f64,
    /// Time of one query row and one key on one SM, in seconds.
    row_key_s: f64,
    heads: f64,
    kv_heads: f64,
    /// Query heads per KV head.
    group: u64,
    qk_dim: f64,
    v_dim: f64,
    /// Tokens of the window; without one, more than any context.
    window_tokens: f64,
    span: Option<AttentionSpan>,
    model_share: f64,
}

/// Features that are the same for every batch: the first of [`PREFILL_FEATURES`] and [`DECODE_FEATURES`].
pub const NUM_STATIC_FEATURES: usize = 7;

/// Names of [`Attention::prefill_features`].
pub const PREFILL_FEATURES: [&str; 21] = [
    "heads",
    "kv_heads",
    "heads_per_kv_head",
    "qk_dim",
    "v_dim",
    "kv_bytes_per_token",
    "window",
    "num_seqs",
    "query_tokens",
    "query_max",
    "kv_max",
    "mean_keys",
    "prefix_share",
    "waves",
    "fill",
    "longest_tile_ratio",
    "query_spread",
    "flops",
    "kv_bytes",
    "intensity",
    "bound_s",
];

/// Names of [`Attention::decode_features`].
pub const DECODE_FEATURES: [&str; 17] = [
    "heads",
    "kv_heads",
    "heads_per_kv_head",
    "qk_dim",
    "v_dim",
    "kv_bytes_per_token",
    "window",
    "num_seqs",
    "blocks_per_sm",
    "queries_per_seq",
    "kv_mean",
    "kv_bytes",
    "tile_waves",
    "fill",
    "kv_max_ratio",
    "kv_variation",
    "bound_s",
];

/// Names of [`Attention::mixed_features`]: the static ones, those of the prefills, those of the decodes.
pub const MIXED_FEATURES: [&str; 31] = [
    "heads",
    "kv_heads",
    "heads_per_kv_head",
    "qk_dim",
    "v_dim",
    "kv_bytes_per_token",
    "window",
    "prefill.num_seqs",
    "prefill.query_tokens",
    "prefill.query_max",
    "prefill.kv_max",
    "prefill.mean_keys",
    "prefill.prefix_share",
    "prefill.waves",
    "prefill.fill",
    "prefill.longest_tile_ratio",
    "prefill.query_spread",
    "prefill.flops",
    "prefill.kv_bytes",
    "prefill.intensity",
    "prefill.bound_s",
    "decode.num_seqs",
    "decode.blocks_per_sm",
    "decode.queries_per_seq",
    "decode.kv_mean",
    "decode.kv_bytes",
    "decode.tile_waves",
    "decode.fill",
    "decode.kv_max_ratio",
    "decode.kv_variation",
    "decode.bound_s",
];

/// Seconds of compute and memory of one group of requests.
#[derive(Clone, Copy, Default)]
struct Demand {
    compute_s: f64,
    memory_s: f64,
}

impl Attention {
    /// Returns the operator of `shape` on `device`, whose sustained rate for its dtype is `flops_per_s`.
    pub fn new(device: &Device, flops_per_s: f64, shape: &AttentionShape) -> Self {
        let heads = f64::from(shape.heads);
        let width = f64::from(shape.qk_dim) + f64::from(shape.v_dim);
        let num_sms = f64::from(device.num_sms);
        Self {
            phase: shape.phase,
            window: shape.window,
            num_sms,
            launch_s: device.launch_s,
            bandwidth_bytes_per_s: device.bandwidth_bytes_per_s,
            kv_bytes_per_token: shape.kv_bytes_per_token,
            query_bytes_per_token: heads * width * shape.activation_bytes,
            flops_per_pair: 2.0 * width * heads * shape.model_share,
            row_key_s: 2.0 * width / (flops_per_s / num_sms),
            heads,
            kv_heads: f64::from(shape.kv_heads),
            group: u64::from(shape.heads / shape.kv_heads),
            qk_dim: f64::from(shape.qk_dim),
            v_dim: f64::from(shape.v_dim),
            window_tokens: f64::from(shape.window_tokens.unwrap_or(u32::MAX)),
            span: shape.span,
            model_share: shape.model_share,
        }
    }

    /// Returns the cost of one run for `batch`: nothing at all, not even a launch, if no request takes part.
    pub fn cost(&self, batch: &BatchShape) -> Cost {
        self.combined(&self.prefill_cost(batch), &self.decode_cost(batch))
    }

    /// Returns the cost of one kernel over prefills and decodes: their compute and their memory add up.
    #[inline]
    pub fn combined(&self, prefill: &Cost, decode: &Cost) -> Cost {
        Cost {
            compute_s: prefill.compute_s + decode.compute_s,
            memory_s: prefill.memory_s + decode.memory_s,
            network_s: 0.0,
            launch_s: prefill.launch_s.max(decode.launch_s),
            flops: prefill.flops + decode.flops,
            bytes: prefill.bytes + decode.bytes,
        }
    }

    /// Returns the cost of one run over the prefills of `batch` alone; nothing if there are none.
    #[inline]
    pub fn prefill_cost(&self, batch: &BatchShape) -> Cost {
        let (group, work) = (batch.prefill(), batch.prefill_work(self.window));
        if group.num_seqs == 0 || self.phase == AttentionPhase::Decode {
            return Cost::default();
        }
        if let Some(span) = self.span {
            let work = &encoder_attention::work(span, group, work);
            return self.cost_of(group, work, self.prefill(group, work));
        }
        self.cost_of(group, work, self.prefill(group, work))
    }

    /// Returns the cost of one run over the decodes of `batch` alone; nothing if there are none.
    #[inline]
    pub fn decode_cost(&self, batch: &BatchShape) -> Cost {
        let (group, work) = (batch.decode(), batch.decode_work(self.window));
        if group.num_seqs == 0 || self.phase == AttentionPhase::Prefill {
            return Cost::default();
        }
        self.cost_of(group, work, self.decode(group, work))
    }

    #[inline]
    fn cost_of(&self, group: &GroupShape, work: &AttentionWork, demand: Demand) -> Cost {
        Cost {
            compute_s: demand.compute_s,
            memory_s: demand.memory_s,
            launch_s: self.launch_s,
            flops: work.area as f64 * self.flops_per_pair,
            bytes: work.kv_read as f64 * self.kv_bytes_per_token
                + group.query_tokens as f64 * self.query_bytes_per_token,
            ..Cost::default()
        }
    }

    /// Returns the bytes of keys and values that the decodes of `batch` read.
    #[inline]
    pub fn decode_kv_bytes(&self, batch: &BatchShape) -> f64 {
        batch.decode_work(self.window).kv_read as f64 * self.kv_bytes_per_token
    }

    /// Returns the features of the prefills of `batch`, which cost `cost`, as in [`PREFILL_FEATURES`]. There must be
    /// a prefill.
    pub fn prefill_features(&self, batch: &BatchShape, cost: &Cost) -> [f32; PREFILL_FEATURES.len()] {
        let (group, work) = (batch.prefill(), batch.prefill_work(self.window));
        let (seqs, queries) = (f64::from(group.num_seqs), group.query_tokens as f64);
        let tiles = work.query_tiles as f64;
        let waves = tiles * f64::from(QUERY_TILE_TOKENS) * self.heads / BLOCK_ROWS / self.num_sms;
        let statics = self.static_features();
        [
            statics[0],
            statics[1],
            statics[2],
            statics[3],
            statics[4],
            statics[5],
            statics[6],
            seqs,
            queries,
            f64::from(group.query_max),
            f64::from(group.kv_max),
            work.area as f64 / queries,
            (group.kv_tokens as f64 - queries) / group.kv_tokens as f64,
            waves,
            waves / waves.ceil(),
            f64::from(work.query_tile_keys_max) * tiles / work.query_tile_keys as f64,
            seqs * group.query_squares as f64 / (queries * queries),
            work.area as f64 * self.flops_per_pair / self.model_share,
            work.kv_read as f64 * self.kv_bytes_per_token,
            cost.compute_s / cost.memory_s,
            cost.seconds(),
        ]
        .map(|value| value as f32)
    }

    /// Returns the features of the decodes of `batch`, which cost `cost`, as in [`DECODE_FEATURES`]. There must be
    /// a decode.
    #[inline]
    pub fn decode_features(&self, batch: &BatchShape, cost: &Cost) -> [f32; DECODE_FEATURES.len()] {
        let (group, work) = (batch.decode(), batch.decode_work(self.window));
        let (seqs, read) = (f64::from(group.num_seqs), work.kv_read as f64);
        let mean = read / seqs;
        let waves = work.kv_tiles as f64 * self.kv_heads / self.num_sms;
        let statics = self.static_features();
        [
            statics[0],
            statics[1],
            statics[2],
            statics[3],
            statics[4],
            statics[5],
            statics[6],
            seqs,
            seqs * self.kv_heads / self.num_sms,
            group.query_tokens as f64 / seqs,
            mean,
            work.kv_read as f64 * self.kv_bytes_per_token,
            waves,
            waves / waves.ceil(),
            f64::from(work.query_tile_keys_max) / mean,
            (seqs * work.kv_read_squares as f64 / (read * read) - 1.0).max(0.0),
            cost.seconds(),
        ]
        .map(|value| value as f32)
    }

    /// Returns the features of a batch of prefills and decodes, as in [`MIXED_FEATURES`], from those of both parts.
    pub fn mixed_features(
        prefill: &[f32; PREFILL_FEATURES.len()],
        decode: &[f32; DECODE_FEATURES.len()],
    ) -> [f32; MIXED_FEATURES.len()] {
        let mut features = [0.0; MIXED_FEATURES.len()];
        let (first, second) = features.split_at_mut(PREFILL_FEATURES.len());
        first.copy_from_slice(prefill);
        second.copy_from_slice(&decode[NUM_STATIC_FEATURES..]);
        features
    }

    /// Heads, KV heads, query heads per KV head, widths of keys and values, KV bytes per token, window.
    #[inline]
    pub fn static_features(&self) -> [f64; NUM_STATIC_FEATURES] {
        [
            self.heads,
            self.kv_heads,
            self.group as f64,
            self.qk_dim,
            self.v_dim,
            self.kv_bytes_per_token,
            self.window_tokens,
        ]
    }

    #[inline]
    fn prefill(&self, group: &GroupShape, work: &AttentionWork) -> Demand {
        let rows_per_tile = f64::from(QUERY_TILE_TOKENS) * self.heads;
        let shared_s = work.query_tile_keys as f64 * rows_per_tile * self.row_key_s / self.num_sms;
        let blocks = work.query_tiles as f64 * rows_per_tile / BLOCK_ROWS;
        let splits = (self.num_sms / blocks).floor().max(1.0);
        let longest = f64::from(work.query_tile_keys_max);
        let longest = (longest / splits).max(longest.min(f64::from(KV_TILE_TOKENS)));
        let longest_s = longest * BLOCK_ROWS * self.row_key_s;
        let bytes = work.kv_read as f64 * self.kv_bytes_per_token
            + group.query_tokens as f64 * self.query_bytes_per_token;
        Demand { compute_s: shared_s.max(longest_s), memory_s: bytes / self.bandwidth_bytes_per_s }
    }

    #[inline]
    fn decode(&self, group: &GroupShape, work: &AttentionWork) -> Demand {
        // One query per request, or a few drafted tokens: rows of one request's tile, by the mean.
        let queries = group.query_tokens.div_ceil(u64::from(group.num_seqs));
        let rows = (self.group * queries).next_multiple_of(INSTRUCTION_ROWS) as f64;
        let tiles = work.kv_tiles as f64 * self.kv_heads;
        let keys_per_sm = (tiles / self.num_sms).ceil() * f64::from(KV_TILE_TOKENS);
        let bytes = keys_per_sm * self.num_sms * (self.kv_bytes_per_token / self.kv_heads)
            + group.query_tokens as f64 * self.query_bytes_per_token;
        Demand {
            compute_s: keys_per_sm * rows * self.row_key_s,
            memory_s: bytes / self.bandwidth_bytes_per_s,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fidelity::cost::Bound;
    use crate::fidelity::fixtures::h100;
    use crate::plan::step_time::Dtype;
    use proptest::prelude::*;

    const RATE: f64 = 0.8 * 989.4e12;
    const BANDWIDTH: f64 = 0.9 * 3.35e12;

    /// Llama-3.1-8B: 32 heads over 8 KV heads of 128, 4 KiB of KV per token and layer.
    fn llama(phase: AttentionPhase, window: Option<usize>) -> Attention {
        let device = Device::new(&h100());
        let shape = AttentionShape {
            phase,
            heads: 32,
            kv_heads: 8,
            qk_dim: 128,
            v_dim: 128,
            kv_bytes_per_token: 4096.0,
            activation_bytes: 2.0,
            model_share: 1.0,
            window,
            window_tokens: None,
            span: None,
        };
        Attention::new(&device, device.flops_per_s(Dtype::Bf16).unwrap(), &shape)
    }

    fn batch(windows: &[u32], requests: &[(u32, u32, bool)]) -> BatchShape {
        let mut batch = BatchShape::new(windows);
        for &(query, context, is_prefill) in requests {
            batch.add(query, context, is_prefill);
        }
        batch
    }

    #[test]
    fn a_long_prefill_runs_near_the_sustained_rate() {
        let cost = llama(AttentionPhase::Both, None).cost(&batch(&[], &[(16_384, 16_384, true)]));
        let pairs = 16_384.0 * 16_385.0 / 2.0;
        assert!((cost.flops / (pairs * 32.0 * 512.0) - 1.0).abs() < 1e-12);
        let share = cost.flops / cost.seconds() / RATE;
        assert!(share > 0.95 && share <= 1.0, "{share}");
        assert_eq!(cost.bound(), Bound::Compute);
    }

    #[test]
    fn long_decodes_cost_their_kv_bytes() {
        let requests: Vec<_> = (0..128).map(|_| (1, 8_192, false)).collect();
        let cost = llama(AttentionPhase::Both, None).cost(&batch(&[], &requests));
        let bytes = 128.0 * 8_192.0 * 4096.0;
        let ratio = cost.memory_s / (bytes / BANDWIDTH);
        assert!((1.0..1.01).contains(&ratio), "{ratio}");
        assert_eq!(cost.bound(), Bound::Memory);
    }

    #[test]
    fn a_short_decode_costs_a_whole_tile() {
        let attention = llama(AttentionPhase::Both, None);
        let costs = [1, 128].map(|context| attention.cost(&batch(&[], &[(1, context, false)])));
        assert_eq!(costs[0].memory_s.to_bits(), costs[1].memory_s.to_bits());
        // 8 KV heads are 8 tiles: 17 requests are 136 tiles, a second wave on 132 SMs.
        let wave = |requests: usize| {
            let requests = vec![(1, 100, false); requests];
            attention.cost(&batch(&[], &requests)).memory_s
        };
        assert!(wave(16) < 1.04 * wave(1));
        assert!(wave(17) > 1.9 * wave(16));
    }

    #[test]
    fn skew_changes_the_area_of_prefills_but_not_the_bytes_of_decodes() {
        let attention = llama(AttentionPhase::Both, None);
        let equal = attention.cost(&batch(&[], &[(4_096, 4_096, true), (4_096, 4_096, true)]));
        let skewed = attention.cost(&batch(&[], &[(7_168, 7_168, true), (1_024, 1_024, true)]));
        assert!(skewed.flops > 1.5 * equal.flops);
        assert!(skewed.seconds() > 1.4 * equal.seconds());
        assert_eq!(skewed.bytes.to_bits(), equal.bytes.to_bits());
        let equal = attention.cost(&batch(&[], &[(1, 4_096, false), (1, 4_096, false)]));
        let skewed = attention.cost(&batch(&[], &[(1, 7_168, false), (1, 1_024, false)]));
        assert_eq!(skewed, equal);
    }

    #[test]
    fn a_window_clips_area_and_bytes() {
        let attention = llama(AttentionPhase::Both, Some(0));
        let cost = attention.cost(&batch(&[512], &[(1, 100_000, false), (2_048, 50_000, true)]));
        let pairs = 512.0 + 2_048.0 * 512.0;
        assert!((cost.flops / (pairs * 32.0 * 512.0) - 1.0).abs() < 1e-12);
        let keys = 512.0 + (512.0 + 2_047.0);
        let expected = keys * 4096.0 + 2_049.0 * 32.0 * 256.0 * 2.0;
        assert!((cost.bytes / expected - 1.0).abs() < 1e-12);
    }

    #[test]
    fn phases_serve_their_own_requests() {
        let requests = [(300, 900, true), (1, 2_000, false)];
        let mixed = batch(&[], &requests);
        for (phase, index) in [(AttentionPhase::Prefill, 0), (AttentionPhase::Decode, 1)] {
            let attention = llama(phase, None);
            assert_eq!(attention.cost(&mixed), attention.cost(&batch(&[], &requests[index..=index])));
            assert_eq!(attention.cost(&batch(&[], &requests[1 - index..=1 - index])), Cost::default());
        }
        // One kernel for both saves a launch and overlaps compute with memory.
        let apart = llama(AttentionPhase::Prefill, None).cost(&mixed).seconds()
            + llama(AttentionPhase::Decode, None).cost(&mixed).seconds();
        assert!(llama(AttentionPhase::Both, None).cost(&mixed).seconds() < apart);
    }

    #[test]
    fn a_lone_chunk_is_bound_by_its_longest_block() {
        // 33 tokens make 2 query tiles, 16 blocks of 128 rows, whose keys split over 8 SMs each.
        let cost = llama(AttentionPhase::Both, None).cost(&batch(&[], &[(33, 16_384, true)]));
        let longest = 16_384.0 / 8.0 * 128.0 * 512.0 / (RATE / 132.0);
        assert!((cost.compute_s / longest - 1.0).abs() < 1e-12);
    }

    proptest! {
        #[test]
        fn prop_more_work_takes_no_less_time(
            requests in proptest::collection::vec((1_u32..600, 0_u32..9000, any::<bool>()), 1..30),
            window in 1_u32..4000,
        ) {
            for index in [None, Some(0)] {
                let attention = llama(AttentionPhase::Both, index);
                let mut batch = BatchShape::new(&[window]);
                let mut before = 0.0;
                for &(query, history, is_prefill) in &requests {
                    let query = if is_prefill { query } else { 1 };
                    batch.add(query, history + query, is_prefill);
                    let cost = attention.cost(&batch);
                    prop_assert!(cost.seconds() >= before * (1.0 - 1e-12));
                    let bound = (cost.flops / RATE).max(cost.bytes / BANDWIDTH);
                    prop_assert!(cost.seconds() >= bound * (1.0 - 1e-12));
                    before = cost.seconds();
                }
            }
        }
    }
}
