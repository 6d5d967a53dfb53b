//! Values that the types of the schema cannot rule out, refused with the path of the field.

use super::{
    AttentionPhase, AttentionPredictors, AttentionSpan, AttentionSpec, CpuSpec, DraftSpec, Dtype,
    FusedMoeSpec, GemmSpec, GpuSpec, GraphsSpec, LaunchesSpec, LayoutSpec, LinkSpec, MAX_CAPTURE_TOKENS,
    OperatorSpec, OperatorsSpec, StepTimeSpec,
};
use crate::error::SimError;

/// Largest inner dimension or number of columns of a product: keeps tile counts inside 64 bits.
pub const MAX_DIMENSION: u32 = 1 << 24;
/// Most independent products in one launch, for the same reason.
pub const MAX_BATCH: u32 = 1 << 16;
/// Largest parallel group: keeps the number of GPUs inside 32 bits.
const MAX_GROUP: u32 = 1 << 10;
/// Most passes of one step that draft.
const MAX_DRAFT_PASSES: u32 = 1 << 10;

impl StepTimeSpec {
    /// Checks the values on their own.
    ///
    /// # Errors
    /// [`SimError::Plan`] naming the first offending field.
    pub fn check(&self) -> Result<(), SimError> {
        match self {
            Self::Linear(_) => Ok(()),
            Self::Operators(spec) => spec.check(),
            Self::Tables(spec) => spec.check(),
            Self::Afd(spec) => spec.check(),
        }
    }
}

impl OperatorsSpec {
    pub(super) fn check(&self) -> Result<(), SimError> {
        self.gpu.check()?;
        for (link, name) in [(&self.links.node, "node"), (&self.links.network, "network")] {
            if let Some(link) = link {
                link.check(&format!("step_time.links.{name}"))?;
            }
        }
        self.cpu.check()?;
        self.layout.check()?;
        if let Some(launches) = &self.launches {
            launches.check(self.stages.len())?;
        }
        if self.stages.len() != self.layout.pipeline_parallel_size as usize {
            let message = format!(
                "has {} lists, must have one per pipeline stage ({})",
                self.stages.len(),
                self.layout.pipeline_parallel_size
            );
            return refuse("step_time", "stages", message);
        }
        for (number, stage) in self.stages.iter().enumerate() {
            let path = format!("step_time.stages[{number}]");
            if stage.is_empty() {
                return Err(SimError::Plan {
                    path,
                    message: "was empty, must hold at least one operator".into(),
                });
            }
            for (index, operator) in stage.iter().enumerate() {
                self.check_operator(&format!("{path}[{index}]"), operator)?;
            }
        }
        self.draft.as_ref().map_or(Ok(()), |draft| self.check_draft(draft))?;
        self.moe.as_ref().map_or(Ok(()), |moe| moe.check(self))
    }

    fn check_draft(&self, draft: &DraftSpec) -> Result<(), SimError> {
        let path = "step_time.draft";
        if draft.first_pass.is_empty() && draft.cpu.is_idle() {
            return refuse(path, "first_pass", "was empty, and the host does nothing either".into());
        }
        if (draft.passes == 0) != draft.decode_pass.is_empty() {
            let message = format!("was {}, with {} operators", draft.passes, draft.decode_pass.len());
            return refuse(path, "passes", format!("{message} in decode_pass; both or neither are needed"));
        }
        within(path, "passes", draft.passes.saturating_add(1), MAX_DRAFT_PASSES + 1)?;
        for (name, pass) in [("first_pass", &draft.first_pass), ("decode_pass", &draft.decode_pass)] {
            for (index, operator) in pass.iter().enumerate() {
                self.check_operator(&format!("{path}.{name}[{index}]"), operator)?;
            }
        }
        let cpu = &draft.cpu;
        for (field, value) in [
            ("per_step_s", cpu.per_step_s),
            ("per_seq_s", cpu.per_seq_s),
            ("per_context_token_s", cpu.per_context_token_s),
        ] {
            not_negative("step_time.draft.cpu", field, value)?;
        }
        Ok(())
    }

    fn check_operator(&self, path: &str, operator: &OperatorSpec) -> Result<(), SimError> {
        if operator.name().is_empty() {
            return refuse(path, "name", "was empty, must name the operator".into());
        }
        at_least(path, "count", operator.count(), 1)?;
        for (slot, predictor) in operator.predictors() {
            positive(path, &format!("{slot}.calibration"), predictor.calibration)?;
        }
        match operator {
            OperatorSpec::Gemm(spec) => self.check_gemm(path, spec),
            OperatorSpec::FusedMoe(spec) => self.check_moe(path, spec),
            OperatorSpec::Attention(spec) => self.check_attention(path, spec),
            OperatorSpec::Elementwise(spec) => positive(path, "bytes_per_row", spec.bytes_per_row),
            OperatorSpec::Collective(spec) => {
                positive(path, "bytes_per_row", spec.bytes_per_row)?;
                self.check_ranks(path, spec.ranks, spec.nodes)
            }
            OperatorSpec::MoeExchange(spec) => {
                within(path, "hidden", spec.hidden, MAX_DIMENSION)?;
                within(path, "num_experts", spec.num_experts, MAX_BATCH)?;
                within(path, "top_k", spec.top_k, spec.num_experts)?;
                positive(path, "bytes_per_element", spec.bytes_per_element)?;
                self.check_ranks(path, spec.ranks, spec.nodes)
            }
        }
    }

    fn check_gemm(&self, path: &str, spec: &GemmSpec) -> Result<(), SimError> {
        share(path, "model_share", spec.model_share)?;
        within(path, "k", spec.k, MAX_DIMENSION)?;
        within(path, "n", spec.n, MAX_DIMENSION)?;
        within(path, "batch", spec.batch, MAX_BATCH)?;
        self.check_dtype(path, spec.dtype)?;
        positive(path, "weight_bytes", spec.weight_bytes)?;
        positive(path, "activation_bytes", spec.activation_bytes)
    }

    fn check_moe(&self, path: &str, spec: &FusedMoeSpec) -> Result<(), SimError> {
        share(path, "model_share", spec.model_share)?;
        within(path, "num_experts", spec.num_experts, MAX_BATCH)?;
        within(path, "top_k", spec.top_k, spec.num_experts)?;
        within(path, "expert_ranks", spec.expert_ranks, self.layout.gpus())?;
        if spec.redundant_experts > MAX_BATCH {
            let message = format!("was {}, must be at most {MAX_BATCH}", spec.redundant_experts);
            return refuse(path, "redundant_experts", message);
        }
        let held = spec.num_experts + spec.redundant_experts;
        divides(path, "expert_ranks", spec.expert_ranks, "num_experts + redundant_experts", held)?;
        within(path, "hidden", spec.hidden, MAX_DIMENSION)?;
        within(path, "intermediate", spec.intermediate, MAX_DIMENSION / 2)?;
        self.check_dtype(path, spec.dtype)?;
        positive(path, "weight_bytes", spec.weight_bytes)?;
        positive(path, "activation_bytes", spec.activation_bytes)?;
        // False for NaN, so NaN is refused as well.
        if spec.imbalance.is_finite()
            && (spec.imbalance >= 0.0 || spec.imbalance.to_bits() == (-1.0_f64).to_bits())
        {
            return Ok(());
        }
        refuse(path, "imbalance", format!("was {}, must be -1, 0 or positive and finite", spec.imbalance))
    }

    fn check_attention(&self, path: &str, spec: &AttentionSpec) -> Result<(), SimError> {
        share(path, "model_share", spec.model_share)?;
        let sizes = [
            ("heads", spec.heads),
            ("kv_heads", spec.kv_heads),
            ("qk_dim", spec.qk_dim),
            ("v_dim", spec.v_dim),
        ];
        for (field, value) in sizes {
            within(path, field, value, MAX_BATCH)?;
        }
        divides(path, "kv_heads", spec.kv_heads, "heads", spec.heads)?;
        positive(path, "kv_bytes_per_token", spec.kv_bytes_per_token)?;
        if let Some(window) = spec.window {
            at_least(path, "window", window, 1)?;
        }
        if let Some(span) = spec.span {
            check_span(path, span, spec)?;
        }
        check_slots(path, spec)?;
        let learned = spec.predictors.prefill.is_some() || spec.predictors.decode.is_some();
        if learned && spec.phase == AttentionPhase::Both && spec.mixed_decode_factor.is_none() {
            let message = "was absent, but predictors price prefills and decodes apart".into();
            return refuse(path, "mixed_decode_factor", message);
        }
        if let Some(factor) = spec.mixed_decode_factor {
            positive(path, "mixed_decode_factor", factor)?;
        }
        self.check_dtype(path, spec.dtype)?;
        positive(path, "activation_bytes", spec.activation_bytes)
    }

    fn check_dtype(&self, path: &str, dtype: Dtype) -> Result<(), SimError> {
        let peaks = &self.gpu.peak_flops_per_s;
        if peaks.get(dtype).is_some() {
            return Ok(());
        }
        let known: Vec<_> =
            Dtype::ALL.into_iter().filter(|&dtype| peaks.get(dtype).is_some()).map(Dtype::name).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        let message = format!(
            "was {}, but step_time.gpu.peak_flops_per_s has no rate for it (it has {known})",
            dtype.name()
        );
        refuse(path, "dtype", message)
    }

    fn check_ranks(&self, path: &str, ranks: u32, nodes: u32) -> Result<(), SimError> {
        at_least(path, "ranks", ranks, 2)?;
        let gpus = self.layout.gpus();
        if ranks > gpus {
            return refuse(
                path,
                "ranks",
                format!("was {ranks}, must not exceed the replica's GPUs ({gpus})"),
            );
        }
        at_least(path, "nodes", nodes, 1)?;
        divides(path, "nodes", nodes, "ranks", ranks)?;
        for (link, name, crossed) in
            [(&self.links.node, "node", nodes < ranks), (&self.links.network, "network", nodes > 1)]
        {
            if crossed && link.is_none() {
                let message =
                    format!("was absent, but {path} communicates between {ranks} ranks on {nodes} nodes");
                return refuse("step_time.links", name, message);
            }
        }
        Ok(())
    }
}

/// Refuses predictors that the operator would never ask.
/// Checks attention that is not causal, which no predictor knows.
fn check_span(path: &str, span: AttentionSpan, spec: &AttentionSpec) -> Result<(), SimError> {
    if let AttentionSpan::Blocks { tokens } = span {
        at_least(path, "span.tokens", tokens, 1)?;
    }
    if spec.window.is_some() || spec.predictors != AttentionPredictors::default() {
        let message = "was given beside a window or predictors, which are those of causal attention".into();
        return refuse(path, "span", message);
    }
    Ok(())
}

fn check_slots(path: &str, spec: &AttentionSpec) -> Result<(), SimError> {
    let slots = &spec.predictors;
    let idle = [
        ("prefill", slots.prefill.is_some() && spec.phase == AttentionPhase::Decode, "there are no prefills"),
        ("decode", slots.decode.is_some() && spec.phase == AttentionPhase::Prefill, "there are no decodes"),
        ("skew", slots.skew.is_some() && slots.decode.is_none(), "there is no predictor of decodes"),
        ("mixed", slots.mixed.is_some() && spec.phase != AttentionPhase::Both, "no kernel takes both"),
    ];
    for (slot, idle, why) in idle {
        if idle {
            return refuse(path, &format!("predictors.{slot}"), format!("has no effect: {why}"));
        }
    }
    Ok(())
}

impl LayoutSpec {
    fn check(&self) -> Result<(), SimError> {
        let sizes = [
            ("tensor_parallel_size", self.tensor_parallel_size),
            ("pipeline_parallel_size", self.pipeline_parallel_size),
            ("data_parallel_size", self.data_parallel_size),
            ("prefill_context_parallel_size", self.prefill_context_parallel_size.unwrap_or(1)),
        ];
        for (field, size) in sizes {
            within("step_time.layout", field, size, MAX_GROUP)?;
        }
        Ok(())
    }
}

impl GpuSpec {
    pub(super) fn check(&self) -> Result<(), SimError> {
        let path = "step_time.gpu";
        at_least(path, "num_sms", self.num_sms, 1)?;
        for dtype in Dtype::ALL {
            if let Some(peak) = self.peak_flops_per_s.get(dtype) {
                positive("step_time.gpu.peak_flops_per_s", dtype.name(), peak)?;
            }
        }
        positive(path, "memory_bandwidth_bytes_per_s", self.memory_bandwidth_bytes_per_s)?;
        share(path, "compute_efficiency", self.compute_efficiency)?;
        share(path, "memory_efficiency", self.memory_efficiency)?;
        not_negative(path, "kernel_launch_s", self.kernel_launch_s)
    }
}

impl LinkSpec {
    fn check(&self, path: &str) -> Result<(), SimError> {
        positive(path, "bandwidth_bytes_per_s", self.bandwidth_bytes_per_s)?;
        not_negative(path, "latency_s", self.latency_s)?;
        share(path, "efficiency", self.efficiency)
    }
}

impl CpuSpec {
    fn check(&self) -> Result<(), SimError> {
        not_negative("step_time.cpu", "per_step_s", self.per_step_s)?;
        not_negative("step_time.cpu", "per_seq_s", self.per_seq_s)
    }
}

impl LaunchesSpec {
    fn check(&self, stages: usize) -> Result<(), SimError> {
        let path = "step_time.launches";
        not_negative(path, "per_kernel_s", self.per_kernel_s)?;
        not_negative(path, "per_graph_s", self.per_graph_s)?;
        not_negative(path, "per_graph_kernel_s", self.per_graph_kernel_s)?;
        if self.stages.len() != stages {
            let message = format!("has {} entries, must have one per stage ({stages})", self.stages.len());
            return refuse(path, "stages", message);
        }
        self.graphs.check()
    }
}

impl GraphsSpec {
    fn check(&self) -> Result<(), SimError> {
        let path = "step_time.launches.graphs";
        at_least(path, "decode_query_tokens", self.decode_query_tokens, 1)?;
        let lists =
            [("full_decode", &self.full_decode), ("full", &self.full), ("piecewise", &self.piecewise)];
        for (field, sizes) in lists {
            for &size in sizes {
                within(path, field, size, MAX_CAPTURE_TOKENS)?;
            }
            if !sizes.is_sorted_by(|one, next| one < next) {
                return refuse(path, field, "was not ascending, must hold each size once".into());
            }
        }
        Ok(())
    }
}

pub(super) fn refuse(path: &str, field: &str, message: String) -> Result<(), SimError> {
    Err(SimError::Plan { path: format!("{path}.{field}"), message })
}

fn divides(path: &str, field: &str, value: u32, of: &str, whole: u32) -> Result<(), SimError> {
    if !whole.is_multiple_of(value) {
        return refuse(path, field, format!("was {value}, must divide {of} ({whole})"));
    }
    Ok(())
}

pub(super) fn at_least(path: &str, field: &str, value: u32, least: u32) -> Result<(), SimError> {
    if value < least {
        return refuse(path, field, format!("was {value}, must be at least {least}"));
    }
    Ok(())
}

pub(super) fn within(path: &str, field: &str, value: u32, most: u32) -> Result<(), SimError> {
    if value == 0 || value > most {
        return refuse(path, field, format!("was {value}, must be in 1 ..= {most}"));
    }
    Ok(())
}

pub(super) fn positive(path: &str, field: &str, value: f64) -> Result<(), SimError> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    refuse(path, field, format!("was {value}, must be positive and finite"))
}

pub(super) fn not_negative(path: &str, field: &str, value: f64) -> Result<(), SimError> {
    if value >= 0.0 && value.is_finite() {
        return Ok(());
    }
    refuse(path, field, format!("was {value}, must be finite and not negative"))
}

pub(super) fn share(path: &str, field: &str, value: f64) -> Result<(), SimError> {
    if value > 0.0 && value <= 1.0 {
        return Ok(());
    }
    refuse(path, field, format!("was {value}, must be in (0, 1]"))
}
