//! Steps with attention and FFN on ranks of their own (attention-FFN disaggregation), as the plan names it.

use serde::Deserialize;

use super::check::{at_least, not_negative, positive, refuse, share, within};
use super::{CpuSpec, OperatorSpec, OperatorsSpec};
use crate::error::SimError;

/// Most micro-batches of a step.
const MAX_MICRO_BATCHES: u32 = 64;

/// A step of attention ranks in lock step and the FFN ranks that they share.
///
/// The stages of the two programs are their parts, which run at times of their own: of attention the head (embedding),
/// one part per class of layers, and the tail (final norm, LM head, sampler); of the FFN one part per class. A part of
/// a class holds the operators of all its layers.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AfdSpec {
    /// One attention rank of `tensor_parallel_size` GPUs; there are `data_parallel_size` of them. Its host prepares
    /// steps, once each.
    pub attention: OperatorsSpec,
    /// The FFN ranks, `data_parallel_size` of `tensor_parallel_size` GPUs each. Of the rows of operators, `all_tokens`
    /// are those of all attention ranks in layers with experts, and `tokens` an FFN rank's share of them; in dense
    /// layers both are those of one attention rank. `sharded_tokens` are `tokens` over `tensor_parallel_size`.
    pub ffn: OperatorsSpec,
    /// Classes of layers.
    pub classes: Vec<AfdClassSpec>,
    /// The layers in their order.
    pub layers: Vec<AfdLayersSpec>,
    /// Parts that every attention rank's batch is cut into.
    pub micro_batches: u32,
    /// Width of the model.
    pub hidden: u32,
    /// From attention to FFN.
    pub a2f: TransferSpec,
    /// Back.
    pub f2a: TransferSpec,
}

/// Whether all attention ranks share the FFN of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AfdKind {
    /// Attention rank `a` has FFN rank `a mod data_parallel_size`; nobody waits for others.
    Dense,
    /// Experts on all FFN ranks: barriers before and after.
    Moe,
}

/// A class of layers.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AfdClassSpec {
    /// Barriers or none.
    pub kind: AfdKind,
    /// FFN ranks that a token is sent to, on average, and comes back from: each of a rank's GPUs gets its part of the
    /// tokens.
    pub destinations: f64,
}

/// Consecutive layers of one class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AfdLayersSpec {
    /// Index into the classes.
    pub class: usize,
    /// Layers.
    pub count: u32,
}

/// Activations between the two sides: `latency_s` and the longer of what either end takes for its bytes.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransferSpec {
    /// Bytes per element, scales included.
    pub bytes_per_element: f64,
    /// Latency of a transfer, in seconds.
    pub latency_s: f64,
    /// Each GPU of an attention rank.
    pub attention: TransferEndSpec,
    /// Each GPU of the FFN ranks.
    pub ffn: TransferEndSpec,
}

/// A GPU's way to the other side.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransferEndSpec {
    /// Bandwidth in this direction, bytes/s.
    pub bandwidth_bytes_per_s: f64,
    /// Shares of it that are reached, by bytes of the GPU's part of a transfer, in ascending order: linear between,
    /// constant beyond.
    pub utilization: Vec<[f64; 2]>,
}

impl AfdSpec {
    /// Returns the layers of a class.
    pub fn layers_of(&self, class: usize) -> u32 {
        self.layers.iter().filter(|run| run.class == class).map(|run| run.count).sum()
    }

    pub(super) fn check(&self) -> Result<(), SimError> {
        under("attention", self.attention.check())?;
        under("ffn", self.ffn.check())?;
        let path = "step_time";
        within(path, "micro_batches", self.micro_batches, MAX_MICRO_BATCHES)?;
        at_least(path, "hidden", self.hidden, 1)?;
        self.check_classes()?;
        for (side, spec) in [("attention", &self.attention), ("ffn", &self.ffn)] {
            let path = format!("{path}.{side}");
            if spec.draft.is_some() {
                return refuse(&path, "draft", "was given, but nothing drafts here".into());
            }
            if let Some(ranks) = spec.layout.prefill_context_parallel_size {
                return refuse(
                    &path,
                    "layout.prefill_context_parallel_size",
                    format!("was {ranks}, must be null"),
                );
            }
        }
        self.check_ffn()?;
        if self.attention.moe.is_some() {
            return refuse(
                "step_time.attention",
                "moe",
                "was given, but experts are those of the FFN".into(),
            );
        }
        for (name, transfer) in [("a2f", &self.a2f), ("f2a", &self.f2a)] {
            let path = format!("{path}.{name}");
            positive(&path, "bytes_per_element", transfer.bytes_per_element)?;
            not_negative(&path, "latency_s", transfer.latency_s)?;
            transfer.attention.check(&format!("{path}.attention"))?;
            transfer.ffn.check(&format!("{path}.ffn"))?;
        }
        Ok(())
    }

    fn check_classes(&self) -> Result<(), SimError> {
        let classes = self.classes.len();
        at_least("step_time", "classes", classes as u32, 1)?;
        for (side, found, expected) in
            [("attention", self.attention.stages.len(), classes + 2), ("ffn", self.ffn.stages.len(), classes)]
        {
            if found != expected {
                let message = format!("has {found} parts, must have {expected} for {classes} classes");
                return refuse(&format!("step_time.{side}"), "stages", message);
            }
        }
        for (index, run) in self.layers.iter().enumerate() {
            let path = format!("step_time.layers[{index}]");
            if run.class >= classes {
                return refuse(&path, "class", format!("was {}, must be below {classes}", run.class));
            }
            within(&path, "count", run.count, 1 << 16)?;
        }
        for (index, class) in self.classes.iter().enumerate() {
            let path = format!("step_time.classes[{index}]");
            positive(&path, "destinations", class.destinations)?;
            let ranks = self.ffn.layout.data_parallel_size;
            if class.destinations > f64::from(ranks) {
                let message = format!("was {}, must be at most the FFN ranks ({ranks})", class.destinations);
                return refuse(&path, "destinations", message);
            }
            if self.layers_of(index) == 0 {
                return refuse("step_time", "layers", format!("has none of class {index}"));
            }
        }
        Ok(())
    }

    /// Refuses what FFN ranks do not have.
    fn check_ffn(&self) -> Result<(), SimError> {
        let path = "step_time.ffn";
        for (stage, operators) in self.ffn.stages.iter().enumerate() {
            if operators.iter().any(|operator| matches!(operator, OperatorSpec::Attention(_))) {
                return refuse(path, &format!("stages[{stage}]"), "has attention, must be the FFN".into());
            }
        }
        if self.ffn.cpu != (CpuSpec { per_step_s: 0.0, per_seq_s: 0.0, overlapped: self.ffn.cpu.overlapped })
        {
            let message = "has a time, but the host of the attention ranks prepares steps, once each".into();
            return refuse(path, "cpu", message);
        }
        let Some(moe) = &self.ffn.moe else { return Ok(()) };
        if moe.dbo.is_some() {
            return refuse(path, "moe.dbo", "was given, but micro_batches says how batches are cut".into());
        }
        if moe.eplb.is_some_and(|eplb| !eplb.use_async) {
            let message = "was false; experts that move between steps are not modelled here, must be true";
            return refuse(path, "moe.eplb.use_async", message.into());
        }
        Ok(())
    }
}

impl TransferEndSpec {
    fn check(&self, path: &str) -> Result<(), SimError> {
        positive(path, "bandwidth_bytes_per_s", self.bandwidth_bytes_per_s)?;
        at_least(path, "utilization", self.utilization.len() as u32, 1)?;
        for &[bytes, reached] in &self.utilization {
            not_negative(path, "utilization", bytes)?;
            share(path, "utilization", reached)?;
        }
        if !self.utilization.is_sorted_by(|one, next| one[0] < next[0]) {
            return refuse(path, "utilization", "was not ascending in bytes, must be".into());
        }
        Ok(())
    }
}

/// Names the side in the path of an error.
pub(crate) fn under<T>(side: &str, result: Result<T, SimError>) -> Result<T, SimError> {
    result.map_err(|error| match error {
        SimError::Plan { path, message } => {
            SimError::Plan { path: path.replacen("step_time", &format!("step_time.{side}"), 1), message }
        }
        other => other,
    })
}
