//! One iteration as data, and the rules that [`super::event_graph`] and [`super::max_plus`] both follow.
//!
//! `micro_batches` micro-batches go through the layers. In every layer, micro-batch `j` of attention rank `a` is
//! computed (attention), sent (A2F), computed again (FFN) and returned (F2A); then the next layer may begin with it.
//!
//! - **Ranks** do one thing at a time, in the static order (layer, micro-batch, attention rank).
//! - **Layers with experts** have two barriers: the FFN ranks begin with a micro-batch when it has arrived from *all*
//!   attention ranks (dispatch), and return it when *all* FFN ranks are done with it (combine). An attention rank
//!   without requests takes part with whatever time its dummy takes, zero included.
//! - **Dense layers** have none: attention rank `a` is served by FFN rank `a mod ffn_ranks` as soon as it arrives.
//! - **Links** send one thing at a time, and a transfer occupies its sender's: A2F the attention rank's; F2A of a
//!   dense layer the FFN rank's; F2A of a layer with experts those of all FFN ranks, from one start until its last
//!   attention rank has everything.
//! - **Head and tail** of an attention rank (host and embedding; LM head and sampling) are there once per iteration:
//!   the head before its first micro-batch, the tail after its last has returned.
//!
//! All orders are consistent with (layer, micro-batch), so nothing can wait in a circle.

use crate::error::SimError;
use crate::time::SimTime;

/// Whether the FFN of a layer is shared by all attention ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind {
    /// No barrier: each attention rank has its FFN rank.
    Dense,
    /// Routed experts on all FFN ranks: barriers before and after.
    Moe,
}

/// Durations of all layers of one class, in ns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerClass {
    /// Barriers or none.
    pub kind: LayerKind,
    /// Attention, `[micro_batch][attention rank]`.
    pub attention_ns: Vec<u64>,
    /// Activations on their way out, `[micro_batch][attention rank]`.
    pub a2f_ns: Vec<u64>,
    /// FFN: `[micro_batch][FFN rank]` with experts; without, the time of the FFN rank that serves it,
    /// `[micro_batch][attention rank]`.
    pub ffn_ns: Vec<u64>,
    /// Activations on their way back, `[micro_batch][attention rank]`.
    pub f2a_ns: Vec<u64>,
}

/// Consecutive layers of one class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerRun {
    /// Index into [`Iteration::classes`].
    pub class: usize,
    /// Layers, at least 1.
    pub count: u32,
}

/// One iteration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Iteration {
    /// Micro-batches, at least 1.
    pub micro_batches: usize,
    /// Attention ranks, at least 1.
    pub attention_ranks: usize,
    /// FFN ranks, at least 1.
    pub ffn_ranks: usize,
    /// Classes of layers.
    pub classes: Vec<LayerClass>,
    /// The layers in their order.
    pub layers: Vec<LayerRun>,
    /// Before the first layer, by attention rank, in ns.
    pub head_ns: Vec<u64>,
    /// After the last layer, by attention rank, in ns.
    pub tail_ns: Vec<u64>,
}

/// What is done in one span of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Activity {
    /// Host and embedding, once.
    Head,
    /// The attention part of a layer.
    Attention,
    /// Activations on their way to the FFN ranks.
    AttentionToFfn,
    /// The FFN part of a layer.
    Ffn,
    /// Activations on their way back.
    FfnToAttention,
    /// LM head and sampling, once.
    Tail,
}

/// One activity, as a span of a trace. Heads and tails have layer and micro-batch 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// The layer.
    pub layer: u32,
    /// The micro-batch.
    pub micro_batch: u32,
    /// What.
    pub activity: Activity,
    /// The FFN rank for the FFN of a layer with experts; otherwise the attention rank whose micro-batch it is (in a
    /// dense layer FFN rank `rank mod ffn_ranks` computes it).
    pub rank: u32,
    /// Start.
    pub start: SimTime,
    /// End.
    pub end: SimTime,
}

impl Iteration {
    /// Returns the number of layers.
    pub fn num_layers(&self) -> u32 {
        self.layers.iter().map(|run| run.count).sum()
    }

    /// Refuses what no iteration is.
    ///
    /// # Errors
    /// [`SimError::Invariant`] naming what does not fit together; [`SimError::ClockOverflow`] if all activities one
    /// after the other take longer than simulated time lasts.
    pub fn check(&self) -> Result<(), SimError> {
        let (ranks, ffn_ranks) = (self.attention_ranks, self.ffn_ranks);
        if self.micro_batches == 0 || ranks == 0 || ffn_ranks == 0 {
            return refuse("an iteration has micro-batches, attention ranks and FFN ranks");
        }
        if self.head_ns.len() != ranks || self.tail_ns.len() != ranks {
            return refuse("an iteration has a head and a tail per attention rank");
        }
        let of_attention = self.micro_batches * ranks;
        for class in &self.classes {
            let of_ffn = match class.kind {
                LayerKind::Dense => of_attention,
                LayerKind::Moe => self.micro_batches * ffn_ranks,
            };
            let fits = [&class.attention_ns, &class.a2f_ns, &class.f2a_ns].map(Vec::len) == [of_attention; 3];
            if !fits || class.ffn_ns.len() != of_ffn {
                return refuse("a class of layers has a duration per micro-batch and rank");
            }
        }
        if self.layers.iter().any(|run| run.class >= self.classes.len() || run.count == 0) {
            return refuse("layers come in runs of a class that exists");
        }
        let sum = |times: &[u64]| times.iter().map(|&time| u128::from(time)).sum::<u128>();
        let all: u128 = self
            .layers
            .iter()
            .map(|run| {
                let class = &self.classes[run.class];
                let parts = [&class.attention_ns, &class.a2f_ns, &class.ffn_ns, &class.f2a_ns];
                parts.iter().map(|times| sum(times)).sum::<u128>() * u128::from(run.count)
            })
            .sum();
        if all + sum(&self.head_ns) + sum(&self.tail_ns) > u128::from(SimTime::MAX.0) {
            return Err(SimError::ClockOverflow);
        }
        Ok(())
    }
}

fn refuse(what: &str) -> Result<(), SimError> {
    Err(SimError::Invariant { what: what.into() })
}
