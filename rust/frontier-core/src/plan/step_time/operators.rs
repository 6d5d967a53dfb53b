//! Operators of a forward pass, as the plan names them.

use serde::Deserialize;

use super::Dtype;

/// What the rows of an operator are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rows {
    /// Scheduled tokens of the rank's own batch.
    Tokens,
    /// Rows of logits of the rank's own batch (LM head, sampler): one per scheduled request, and one per draft that the
    /// step verifies. Passes that draft have one per request.
    Seqs,
    /// Scheduled tokens of all data-parallel ranks together (experts, and what feeds them).
    AllTokens,
    /// The rank's share of its own batch where tokens are dealt out over tensor-parallel ranks: tokens / ranks,
    /// rounded up (sequence-parallel experts).
    ShardedTokens,
}

/// A learned predictor of an operator's time.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PredictorRef {
    /// Index into the predictors that go beside the plan.
    pub index: u32,
    /// Nothing was measured on this GPU for this operator: the predictor was trained on other GPUs.
    pub unmeasured: bool,
    /// Factor of the user's own calibration, 1 by default.
    pub calibration: f64,
}

/// One operator of the forward pass on one rank. `count` is how often it runs per step (layers). `model_share` is
/// the share of this rank's FLOPs that no other rank repeats, in (0, 1]: 1 / ranks for work that every rank does
/// whole. FLOPs summed over ranks are then the model's.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum OperatorSpec {
    /// `[rows, k] x [k, n]`.
    Gemm(GemmSpec),
    /// The routed experts of a layer: both products, the activation between them and the weighted sum.
    FusedMoe(FusedMoeSpec),
    /// Scaled dot-product attention over the paged KV cache.
    Attention(AttentionSpec),
    /// Memory-bound work: norms, rotary embedding, activation, residual, KV write, embedding look-up, sampler.
    Elementwise(ElementwiseSpec),
    /// A collective between ranks.
    Collective(CollectiveSpec),
    /// Tokens travel to the ranks of their experts, or back.
    MoeExchange(MoeExchangeSpec),
}

/// A dense product.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GemmSpec {
    /// Name, as in `qkv_proj`.
    pub name: String,
    /// Runs per step.
    pub count: u32,
    /// How its time is predicted; `None`: by the roofline.
    pub predictor: Option<PredictorRef>,
    /// Share of the FLOPs that no other rank repeats.
    pub model_share: f64,
    /// What the rows are.
    pub rows: Rows,
    /// Inner dimension.
    pub k: u32,
    /// Columns of the result.
    pub n: u32,
    /// Independent products of this shape in one launch (heads of an absorbed MLA projection); else 1.
    pub batch: u32,
    /// Arithmetic.
    pub dtype: Dtype,
    /// Bytes per weight element (may be fractional: 4-bit groups with scales).
    pub weight_bytes: f64,
    /// Bytes per element of input and output.
    pub activation_bytes: f64,
}

/// Routed experts: each token visits `top_k` of `num_experts`, of which, with `redundant_experts` copies, this rank
/// holds one in `expert_ranks`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FusedMoeSpec {
    /// Name, as in `experts`.
    pub name: String,
    /// Runs per step.
    pub count: u32,
    /// How its time is predicted; `None`: by the roofline.
    pub predictor: Option<PredictorRef>,
    /// Share of the FLOPs that no other rank repeats.
    pub model_share: f64,
    /// What the rows are.
    pub rows: Rows,
    /// Experts of the layer, over all ranks.
    pub num_experts: u32,
    /// Experts that a token visits, over all ranks.
    pub top_k: u32,
    /// Copies of some of them (expert-parallel load balancing).
    pub redundant_experts: u32,
    /// Ranks over which whole experts are spread (expert parallelism); divides the experts and their copies.
    pub expert_ranks: u32,
    /// Width of the model.
    pub hidden: u32,
    /// Width of one expert on this rank.
    pub intermediate: u32,
    /// Gate and up projections (two products in), or one.
    pub gated: bool,
    /// Arithmetic.
    pub dtype: Dtype,
    /// Bytes per weight element.
    pub weight_bytes: f64,
    /// Bytes per element of input and output.
    pub activation_bytes: f64,
    /// How tokens spread over experts: -1 evenly, 0 at random with equal chances, above 0 by a power law of that
    /// exponent.
    pub imbalance: f64,
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

/// What every token sees where attention is not causal: whole requests are computed in one step, without a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum AttentionSpan {
    /// All tokens of its request.
    Request {},
    /// Those of its block: requests are cut into blocks of so many tokens.
    Blocks {
        /// Tokens of a block, at least 1.
        tokens: u32,
    },
}

/// Predictors of an attention operator by kind of batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionPredictors {
    /// Prefills alone.
    pub prefill: Option<PredictorRef>,
    /// Decodes alone.
    pub decode: Option<PredictorRef>,
    /// Decodes of unequal length over decodes of equal length and equal sum, where `decode` has only seen the latter.
    pub skew: Option<PredictorRef>,
    /// Prefills and decodes in one kernel.
    pub mixed: Option<PredictorRef>,
}

/// Attention.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionSpec {
    /// Name, as in `attention` or `attention_sliding`.
    pub name: String,
    /// Runs per step.
    pub count: u32,
    /// How its time is predicted; absent ones: by the roofline.
    pub predictors: AttentionPredictors,
    /// One kernel over prefills and decodes takes the time of the prefills alone plus this many times that of the decodes
    /// alone: 1 where it treats both as well as kernels of their own do. `None`: their compute and their memory add up
    /// apart, as in a roofline.
    pub mixed_decode_factor: Option<f64>,
    /// Share of the FLOPs that no other rank repeats.
    pub model_share: f64,
    /// Which requests.
    pub phase: AttentionPhase,
    /// Query heads on this rank.
    pub heads: u32,
    /// Heads of keys and values on this rank that one kernel block streams on its own; divides `heads`. 1 for
    /// absorbed MLA, where all query heads read one latent.
    pub kv_heads: u32,
    /// Width of a query-key product.
    pub qk_dim: u32,
    /// Width of a value.
    pub v_dim: u32,
    /// KV bytes read per context token, per layer, on this rank.
    pub kv_bytes_per_token: f64,
    /// Sliding window in tokens (a query sees at most this many keys, itself included), if any.
    pub window: Option<u32>,
    /// What a token of an encoder sees; `None`: the tokens before it, as in a language model.
    pub span: Option<AttentionSpan>,
    /// Arithmetic.
    pub dtype: Dtype,
    /// Bytes per element of query and output.
    pub activation_bytes: f64,
}

/// Memory-bound work.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ElementwiseSpec {
    /// Name, as in `rms_norm`.
    pub name: String,
    /// Runs per step.
    pub count: u32,
    /// How its time is predicted; `None`: by the roofline.
    pub predictor: Option<PredictorRef>,
    /// What the rows are.
    pub rows: Rows,
    /// Bytes read and written per row.
    pub bytes_per_row: f64,
}

/// Which collective.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CollectiveKind {
    /// Sum over ranks of `bytes_per_row * rows`.
    AllReduce,
    /// Collects shards: `bytes_per_row * rows` is the total after the gather.
    AllGather,
    /// Sums `bytes_per_row * rows` and leaves each rank its shard.
    ReduceScatter,
    /// Every rank sends `bytes_per_row * rows` in all, spread evenly over the ranks, itself included.
    AllToAll,
    /// One rank sends `bytes_per_row * rows` to another (pipeline stages).
    SendRecv,
}

/// A collective over `ranks` ranks, evenly spread over `nodes` nodes.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CollectiveSpec {
    /// Name, as in `all_reduce.attention`.
    pub name: String,
    /// Runs per step.
    pub count: u32,
    /// How its time is predicted; `None`: by latency and bandwidth of the link.
    pub predictor: Option<PredictorRef>,
    /// Which one.
    pub kind: CollectiveKind,
    /// What the rows are.
    pub rows: Rows,
    /// Bytes per row.
    pub bytes_per_row: f64,
    /// Ranks that take part, at least 2.
    pub ranks: u32,
    /// Nodes that they are on; divides `ranks`.
    pub nodes: u32,
}

/// Direction of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExchangePhase {
    /// To the experts.
    Dispatch,
    /// Back.
    Combine,
}

/// An all-to-all that sends each token once to every rank that holds one of its experts (`DeepEP`), each rank
/// starting from `rows` tokens of its own.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeExchangeSpec {
    /// Name, as in `moe_dispatch`.
    pub name: String,
    /// Runs per step.
    pub count: u32,
    /// How its time is predicted; `None`: by latency and bandwidth of the links.
    pub predictor: Option<PredictorRef>,
    /// Direction.
    pub phase: ExchangePhase,
    /// What the rows are.
    pub rows: Rows,
    /// Width of the model.
    pub hidden: u32,
    /// Experts that a token visits.
    pub top_k: u32,
    /// Experts of the layer, over all ranks.
    pub num_experts: u32,
    /// Ranks that hold them, at least 2.
    pub ranks: u32,
    /// Nodes that these are on; divides `ranks`.
    pub nodes: u32,
    /// Bytes per element sent (1 in fp8, scales apart).
    pub bytes_per_element: f64,
}

impl OperatorSpec {
    /// Returns the operator's name.
    pub fn name(&self) -> &str {
        match self {
            Self::Gemm(spec) => &spec.name,
            Self::FusedMoe(spec) => &spec.name,
            Self::Attention(spec) => &spec.name,
            Self::Elementwise(spec) => &spec.name,
            Self::Collective(spec) => &spec.name,
            Self::MoeExchange(spec) => &spec.name,
        }
    }

    /// Returns how often the operator runs per step.
    pub const fn count(&self) -> u32 {
        match self {
            Self::Gemm(spec) => spec.count,
            Self::FusedMoe(spec) => spec.count,
            Self::Attention(spec) => spec.count,
            Self::Elementwise(spec) => spec.count,
            Self::Collective(spec) => spec.count,
            Self::MoeExchange(spec) => spec.count,
        }
    }

    /// Returns the predictors it names, each with its field.
    pub fn predictors(&self) -> impl Iterator<Item = (&'static str, &PredictorRef)> {
        let one = |predictor| [("predictor", predictor), ("", None), ("", None), ("", None)];
        let named = match self {
            Self::Gemm(spec) => one(spec.predictor.as_ref()),
            Self::FusedMoe(spec) => one(spec.predictor.as_ref()),
            Self::Attention(AttentionSpec { predictors, .. }) => [
                ("predictors.prefill", predictors.prefill.as_ref()),
                ("predictors.decode", predictors.decode.as_ref()),
                ("predictors.skew", predictors.skew.as_ref()),
                ("predictors.mixed", predictors.mixed.as_ref()),
            ],
            Self::Elementwise(spec) => one(spec.predictor.as_ref()),
            Self::Collective(spec) => one(spec.predictor.as_ref()),
            Self::MoeExchange(spec) => one(spec.predictor.as_ref()),
        };
        named.into_iter().filter_map(|(field, predictor)| predictor.map(|predictor| (field, predictor)))
    }
}
