//! What drafting adds to a step (speculative decoding), as the plan names it.

use serde::Deserialize;

use super::OperatorSpec;

/// Drafting after the forward pass of the target: a first pass over all tokens of the step, then passes of one token
/// per request. Both have the rows of their own: those of an LM head are one per request.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DraftSpec {
    /// Operators of the first pass on one rank of the last stage; empty where drafting takes no GPU time.
    pub first_pass: Vec<OperatorSpec>,
    /// Operators of each further pass.
    pub decode_pass: Vec<OperatorSpec>,
    /// Further passes.
    pub passes: u32,
    /// What the host does.
    pub cpu: DraftCpuSpec,
}

/// Host cost of drafting, after sampling and before the next step: `per_step_s + per_seq_s * num_seqs +
/// per_context_token_s * tokens of context`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DraftCpuSpec {
    /// Per step, in seconds.
    pub per_step_s: f64,
    /// Per scheduled request, in seconds.
    pub per_seq_s: f64,
    /// Per token of context, summed over requests, in seconds: searching prompts for n-grams.
    pub per_context_token_s: f64,
}

impl DraftCpuSpec {
    /// Returns whether the host does anything.
    pub fn is_idle(&self) -> bool {
        [self.per_step_s, self.per_seq_s, self.per_context_token_s].iter().all(|&seconds| seconds <= 0.0)
    }
}
