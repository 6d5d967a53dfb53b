//! What the host launches in a step, and which CUDA graphs it may replay instead.

use serde::Deserialize;

/// Largest captured size: the dispatcher has an entry per row count.
pub const MAX_CAPTURE_TOKENS: u32 = 1 << 16;

/// Host time of launching a step's kernels, and the captured graphs.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchesSpec {
    /// Host time of launching one kernel outside a graph, the engine's own code around it included, in seconds.
    pub per_kernel_s: f64,
    /// Host time of replaying one graph, whatever it holds, in seconds.
    pub per_graph_s: f64,
    /// Host time per kernel of a replayed graph, in seconds.
    pub per_graph_kernel_s: f64,
    /// The captured graphs.
    pub graphs: GraphsSpec,
    /// Kernels of each pipeline stage.
    pub stages: Vec<StageLaunches>,
    /// Kernels of drafting; without, its launches take no time.
    pub draft: Option<DraftLaunches>,
}

/// Kernels that one rank of the last stage launches to draft. Piecewise graphs hold them where there is one that is
/// large enough; full graphs are the target's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DraftLaunches {
    /// Those of the first pass.
    pub first_pass: StageLaunches,
    /// Those of each further pass.
    pub decode_pass: StageLaunches,
}

/// Sizes of the captured graphs in tokens, each list ascending; none where a kind of graph is not captured.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphsSpec {
    /// Tokens of each request in a uniform decode batch: one, and one per draft token.
    pub decode_query_tokens: u32,
    /// Graphs of the whole forward pass for uniform decode batches.
    pub full_decode: Vec<u32>,
    /// Graphs of the whole forward pass for any batch.
    pub full: Vec<u32>,
    /// Graphs of what lies between attention operators, for any batch.
    pub piecewise: Vec<u32>,
}

/// Kernels that one rank of a stage launches per step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageLaunches {
    /// Kernels that piecewise and full graphs hold.
    pub pieces_kernels: u32,
    /// Kernels of attention and of the KV write, which only full graphs hold.
    pub attention_kernels: u32,
    /// Kernels after the forward pass, which no graph holds (LM head).
    pub tail_kernels: u32,
    /// Piecewise graphs of one forward pass.
    pub pieces: u32,
}
