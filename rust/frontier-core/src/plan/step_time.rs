//! How long a step takes: a linear formula, or a program of operators priced by roofline.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::SimError;

mod afd;
mod check;
mod draft;
mod launches;
mod moe;
mod operators;
mod tables;

pub(crate) use afd::under;
pub use afd::{AfdClassSpec, AfdKind, AfdLayersSpec, AfdSpec, TransferEndSpec, TransferSpec};
pub use check::{MAX_BATCH, MAX_DIMENSION};
pub use draft::{DraftCpuSpec, DraftSpec};
pub use launches::{DraftLaunches, GraphsSpec, LaunchesSpec, MAX_CAPTURE_TOKENS, StageLaunches};
pub use moe::{
    DboSpec, DriftSpec, EplbSpec, ExpertPlacement, MoeSampling, MoeSpec, MoeStageSpec, RoutingSpec,
};
pub use operators::{
    AttentionPhase, AttentionPredictors, AttentionSpan, AttentionSpec, CollectiveKind, CollectiveSpec,
    ElementwiseSpec, ExchangePhase, FusedMoeSpec, GemmSpec, MoeExchangeSpec, OperatorSpec, PredictorRef,
    Rows,
};
pub use tables::{AttentionTable, TablesSpec};

/// The step-time model of a replica.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum StepTimeSpec {
    /// Integer nanoseconds, linear in counts of the batch: the clock of the golden logs.
    Linear(LinearSpec),
    /// Sum over the operators of the model, each priced by a learned predictor or by its roofline bound.
    Operators(Box<OperatorsSpec>),
    /// Tables of the user's own.
    Tables(Box<TablesSpec>),
    /// Decoding with attention and FFN on ranks of their own.
    Afd(Box<AfdSpec>),
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
pub struct OperatorsSpec {
    /// The GPU of one rank.
    pub gpu: GpuSpec,
    /// Links between ranks; each absent where no operator crosses it.
    pub links: LinksSpec,
    /// The host.
    pub cpu: CpuSpec,
    /// Launches and CUDA graphs; `None`: launching takes no host time and nothing is padded.
    pub launches: Option<LaunchesSpec>,
    /// How the model is spread over the GPUs of the replica.
    pub layout: LayoutSpec,
    /// Operators of one forward pass on one rank, in order: one list per pipeline stage.
    pub stages: Vec<Vec<OperatorSpec>>,
    /// What drafting adds to a step; `None` without speculative decoding.
    pub draft: Option<DraftSpec>,
    /// Draw each predictor's error from its hold-out residuals; `None` for the predictors' best estimates.
    pub residuals: Option<ResidualsSpec>,
    /// Routing of the layers with experts; `None`: typical loads by each operator's `imbalance`.
    pub moe: Option<MoeSpec>,
}

/// The streams from which errors of predictors are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResidualsSpec {
    /// Seed.
    pub seed: u64,
    /// Replication.
    pub replication: u64,
}

/// Links by reach.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinksSpec {
    /// Between GPUs of one node (`NVLink`, `PCIe`).
    pub node: Option<LinkSpec>,
    /// Between nodes, per GPU.
    pub network: Option<LinkSpec>,
}

/// Sizes of the parallel groups of one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayoutSpec {
    /// Ranks that share every layer.
    pub tensor_parallel_size: u32,
    /// Stages of layers.
    pub pipeline_parallel_size: u32,
    /// Ranks (of `tensor_parallel_size` GPUs each) that batch apart and meet in the experts.
    pub data_parallel_size: u32,
    /// Ranks (of `tensor_parallel_size` GPUs each) that share the tokens of prompts; none is one.
    pub prefill_context_parallel_size: Option<u32>,
}

impl LayoutSpec {
    /// Returns the GPUs of one replica. Values are small (checked), so the product fits.
    pub const fn gpus(&self) -> u32 {
        let context = match self.prefill_context_parallel_size {
            Some(ranks) => ranks,
            None => 1,
        };
        self.tensor_parallel_size * self.pipeline_parallel_size * self.data_parallel_size * context
    }
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

/// Reads a part of a plan on its own; `what` names it.
fn read<T: DeserializeOwned>(what: &str, json: &str) -> Result<T, SimError> {
    let mut reader = serde_json::Deserializer::from_str(json);
    serde_path_to_error::deserialize(&mut reader).map_err(|error| SimError::Plan {
        path: format!("{what}.{}", error.path()),
        message: error.inner().to_string(),
    })
}

impl StepTimeSpec {
    /// Reads the `step_time` of a plan on its own.
    ///
    /// # Errors
    /// [`SimError::Plan`] naming what is not of the schema.
    pub fn from_json(json: &str) -> Result<Self, SimError> {
        read("step_time", json)
    }
}

impl GpuSpec {
    /// Reads and checks the `gpu` of a plan on its own.
    ///
    /// # Errors
    /// [`SimError::Plan`] naming what is not of the schema, or not allowed.
    pub fn from_json(json: &str) -> Result<Self, SimError> {
        let gpu: Self = read("gpu", json)?;
        gpu.check()?;
        Ok(gpu)
    }
}

impl LinksSpec {
    /// Reads the `links` of a plan on their own.
    ///
    /// # Errors
    /// [`SimError::Plan`] naming what is not of the schema.
    pub fn from_json(json: &str) -> Result<Self, SimError> {
        read("links", json)
    }
}

impl Dtype {
    /// Returns the type called `name` in the plan document.
    ///
    /// # Errors
    /// [`SimError::Plan`] if there is none.
    pub fn from_name(name: &str) -> Result<Self, SimError> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name).ok_or_else(|| SimError::Plan {
            path: "dtype".into(),
            message: format!("was {name:?}, must be one of {}", Self::ALL.map(Self::name).join(", ")),
        })
    }
}
