//! How long a step takes: a linear formula, or a program of operators priced by roofline.

use serde::Deserialize;

mod check;

/// The step-time model of a replica.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum StepTimeSpec {
    /// Integer nanoseconds, linear in counts of the batch: the clock of the golden logs.
    Linear(LinearSpec),
    /// Sum over the operators of the model, each bounded by compute, memory or network.
    Roofline(RooflineSpec),
}

/// A constant, plus a rate times each of prefill tokens, decode tokens, scheduled requests and context tokens;
/// all in ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinearSpec {
    /// ns per step.
    pub per_step_ns: u64,
    /// ns per token of a prompt (or of any chunk longer than one token).
    pub per_prefill_token_ns: u64,
    /// ns per decode token.
    pub per_decode_token_ns: u64,
    /// ns per scheduled request.
    pub per_seq_ns: u64,
    /// ns per token of context after the step, summed over requests.
    pub per_kv_token_ns: u64,
}

/// A device, its links, the host beside it, and the operators that one step launches on one rank.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RooflineSpec {
    /// The GPU of one rank.
    pub gpu: GpuSpec,
    /// The link that tensor-parallel collectives cross; absent when `tensor_parallel_size` is 1.
    pub link: Option<LinkSpec>,
    /// The host.
    pub cpu: CpuSpec,
    /// Operators of one forward pass on one rank, in order.
    pub program: Vec<OperatorSpec>,
    /// GPUs of one replica (for utilisation per GPU).
    pub gpus_per_replica: u32,
}

/// Rates of one GPU. Peak rates are dense (not the sparse marketing figures).
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuSpec {
    /// Streaming multiprocessors (compute units): the width of a wave.
    pub num_sms: u32,
    /// Dense peak of each dtype the program uses, FLOP/s.
    pub peak_flops_per_s: PeakFlops,
    /// HBM bandwidth, bytes/s.
    pub memory_bandwidth_bytes_per_s: f64,
    /// Share of the peak rate that a large GEMM sustains, in (0, 1].
    pub compute_efficiency: f64,
    /// Share of the bandwidth that a streaming kernel sustains, in (0, 1].
    pub memory_efficiency: f64,
    /// Time from one kernel's end to the next one's start, in seconds.
    pub kernel_launch_s: f64,
}

/// Dense peak rates in FLOP/s; `None` where the GPU has no such units.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeakFlops {
    /// FP32 on the vector units (or TF32 where named so by the vendor).
    pub fp32: Option<f64>,
    /// FP16.
    pub fp16: Option<f64>,
    /// BF16.
    pub bf16: Option<f64>,
    /// FP8.
    pub fp8: Option<f64>,
    /// INT8.
    pub int8: Option<f64>,
    /// FP4 (NVFP4, MXFP4).
    pub fp4: Option<f64>,
}

impl PeakFlops {
    /// Returns the dense peak for `dtype` in FLOP/s, `None` where the GPU has no such units.
    pub const fn get(&self, dtype: Dtype) -> Option<f64> {
        match dtype {
            Dtype::Fp32 => self.fp32,
            Dtype::Fp16 => self.fp16,
            Dtype::Bf16 => self.bf16,
            Dtype::Fp8 => self.fp8,
            Dtype::Int8 => self.int8,
            Dtype::Fp4 => self.fp4,
        }
    }
}

/// Data types of arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// 32-bit float.
    Fp32,
    /// 16-bit float.
    Fp16,
    /// bfloat16.
    Bf16,
    /// 8-bit float.
    Fp8,
    /// 8-bit integer.
    Int8,
    /// 4-bit float.
    Fp4,
}

impl Dtype {
    /// All of them, widest first.
    pub const ALL: [Self; 6] = [Self::Fp32, Self::Fp16, Self::Bf16, Self::Fp8, Self::Int8, Self::Fp4];

    /// Returns the name in the plan document.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
            Self::Int8 => "int8",
            Self::Fp4 => "fp4",
        }
    }
}

/// A link between ranks of one replica.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkSpec {
    /// Bandwidth per GPU and direction, bytes/s.
    pub bandwidth_bytes_per_s: f64,
    /// Latency of one message, in seconds.
    pub latency_s: f64,
    /// Share of the bandwidth that a large collective sustains, in (0, 1].
    pub efficiency: f64,
    /// Every rank reaches every other at full bandwidth at once (`NVLink`, not PCIe): what direct collectives of
    /// more than two ranks need.
    pub direct: bool,
}

/// Host cost of a step: `per_step_s + per_seq_s * num_seqs`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuSpec {
    /// Scheduling, input preparation and output processing, per step, in seconds.
    pub per_step_s: f64,
    /// The same per scheduled request, in seconds.
    pub per_seq_s: f64,
    /// The host works while the GPU does (asynchronous scheduling): a step takes the larger of the two.
    /// Otherwise it takes their sum.
    pub overlapped: bool,
}

/// What the rows of an operator are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rows {
    /// All scheduled tokens of the step.
    Tokens,
    /// One row per scheduled request (LM head, sampler).
    Seqs,
}

/// Which requests an attention operator serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionPhase {
    /// One kernel over all requests.
    Both,
    /// Requests with more than one token or an unfinished prompt.
    Prefill,
    /// Requests with one token over a computed prompt.
    Decode,
}

/// One operator of the forward pass on one rank. `count` is how often it runs per step (layers).
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum OperatorSpec {
    /// `[rows, k] x [k, n]`.
    Gemm {
        /// Name, as in `qkv_proj`.
        name: String,
        /// Runs per step.
        count: u32,
        /// Share of this rank's FLOPs that no other rank repeats, in (0, 1]: 1 / ranks for work that every rank
        /// does whole. FLOPs summed over ranks are then the model's.
        model_share: f64,
        /// What the rows are.
        rows: Rows,
        /// Inner dimension.
        k: u32,
        /// Columns of the result.
        n: u32,
        /// Independent products of this shape in one launch (heads of an absorbed MLA projection); else 1.
        batch: u32,
        /// Arithmetic.
        dtype: Dtype,
        /// Bytes per weight element (may be fractional: 4-bit groups with scales).
        weight_bytes: f64,
        /// Bytes per element of input and output.
        activation_bytes: f64,
    },
    /// Expert products: each token visits `top_k` of `experts`, spread evenly.
    GroupedGemm {
        /// Name, as in `experts.gate_up_proj`.
        name: String,
        /// Runs per step.
        count: u32,
        /// Share of this rank's FLOPs that no other rank repeats, in (0, 1]: 1 / ranks for work that every rank
        /// does whole. FLOPs summed over ranks are then the model's.
        model_share: f64,
        /// Experts on this rank.
        experts: u32,
        /// Routed experts per token that live on this rank, on average (`top_k` x local share).
        top_k: f64,
        /// Inner dimension.
        k: u32,
        /// Columns of the result.
        n: u32,
        /// Arithmetic.
        dtype: Dtype,
        /// Bytes per weight element.
        weight_bytes: f64,
        /// Bytes per element of input and output.
        activation_bytes: f64,
    },
    /// Scaled dot-product attention over the paged KV cache.
    Attention {
        /// Name, as in `attention` or `attention_sliding`.
        name: String,
        /// Runs per step.
        count: u32,
        /// Share of this rank's FLOPs that no other rank repeats, in (0, 1]: 1 / ranks for work that every rank
        /// does whole. FLOPs summed over ranks are then the model's.
        model_share: f64,
        /// Which requests.
        phase: AttentionPhase,
        /// Query heads on this rank.
        heads: u32,
        /// Heads of keys and values on this rank that one kernel block streams on its own; divides `heads`.
        /// 1 for absorbed MLA, where all query heads read one latent.
        kv_heads: u32,
        /// Width of a query-key product.
        qk_dim: u32,
        /// Width of a value.
        v_dim: u32,
        /// KV bytes read per context token, per layer, on this rank.
        kv_bytes_per_token: f64,
        /// Sliding window in tokens (a query sees at most this many keys, itself included), if any.
        window: Option<u32>,
        /// Arithmetic.
        dtype: Dtype,
        /// Bytes per element of query and output.
        activation_bytes: f64,
    },
    /// Memory-bound work: norms, rotary embedding, activation, residual, KV write, embedding look-up, sampler.
    Elementwise {
        /// Name, as in `rms_norm`.
        name: String,
        /// Runs per step.
        count: u32,
        /// What the rows are.
        rows: Rows,
        /// Bytes read and written per row.
        bytes_per_row: f64,
    },
    /// Sum over ranks of `bytes_per_row * rows`.
    AllReduce {
        /// Name, as in `all_reduce.attention`.
        name: String,
        /// Runs per step.
        count: u32,
        /// What the rows are.
        rows: Rows,
        /// Bytes per row.
        bytes_per_row: f64,
        /// Ranks that take part, at least 2.
        ranks: u32,
    },
    /// Collects the shards of `bytes_per_row * rows` (the total after the gather) on every rank.
    AllGather {
        /// Name, as in `all_gather.logits`.
        name: String,
        /// Runs per step.
        count: u32,
        /// What the rows are.
        rows: Rows,
        /// Bytes per row after the gather.
        bytes_per_row: f64,
        /// Ranks that take part, at least 2.
        ranks: u32,
    },
}

impl OperatorSpec {
    /// Returns the operator's name.
    pub fn name(&self) -> &str {
        match self {
            Self::Gemm { name, .. }
            | Self::GroupedGemm { name, .. }
            | Self::Attention { name, .. }
            | Self::Elementwise { name, .. }
            | Self::AllReduce { name, .. }
            | Self::AllGather { name, .. } => name,
        }
    }

    /// Returns how often the operator runs per step.
    pub const fn count(&self) -> u32 {
        match self {
            Self::Gemm { count, .. }
            | Self::GroupedGemm { count, .. }
            | Self::Attention { count, .. }
            | Self::Elementwise { count, .. }
            | Self::AllReduce { count, .. }
            | Self::AllGather { count, .. } => *count,
        }
    }
}
