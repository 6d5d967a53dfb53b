//! Values that the types of the schema cannot rule out, refused with the path of the field.

use super::{CpuSpec, Dtype, GpuSpec, LinkSpec, OperatorSpec, RooflineSpec, StepTimeSpec};
use crate::error::SimError;

/// Largest inner dimension or number of columns of a product: keeps tile counts inside 64 bits.
const MAX_DIMENSION: u32 = 1 << 24;
/// Most independent products in one launch, for the same reason.
const MAX_BATCH: u32 = 1 << 16;
/// Least share of tokens that visit an expert: below it the expected number of active experts is lost in rounding.
const MIN_EXPERT_SHARE: f64 = 1e-9;

impl StepTimeSpec {
    /// Checks the values on their own.
    ///
    /// # Errors
    /// [`SimError::Plan`] naming the first offending field.
    pub fn check(&self) -> Result<(), SimError> {
        match self {
            Self::Linear(_) => Ok(()),
            Self::Roofline(spec) => spec.check(),
        }
    }
}

impl RooflineSpec {
    fn check(&self) -> Result<(), SimError> {
        self.gpu.check()?;
        if let Some(link) = &self.link {
            link.check()?;
        }
        self.cpu.check()?;
        at_least("step_time", "gpus_per_replica", self.gpus_per_replica, 1)?;
        if self.program.is_empty() {
            return refuse("step_time", "program", "was empty, must hold at least one operator".into());
        }
        for (index, operator) in self.program.iter().enumerate() {
            self.check_operator(&format!("step_time.program[{index}]"), operator)?;
        }
        Ok(())
    }

    fn check_operator(&self, path: &str, operator: &OperatorSpec) -> Result<(), SimError> {
        if operator.name().is_empty() {
            return refuse(path, "name", "was empty, must name the operator".into());
        }
        at_least(path, "count", operator.count(), 1)?;
        match *operator {
            OperatorSpec::Gemm {
                k, n, batch, dtype, weight_bytes, activation_bytes, model_share, ..
            } => {
                share(path, "model_share", model_share)?;
                within(path, "k", k, MAX_DIMENSION)?;
                within(path, "n", n, MAX_DIMENSION)?;
                within(path, "batch", batch, MAX_BATCH)?;
                self.check_dtype(path, dtype)?;
                positive(path, "weight_bytes", weight_bytes)?;
                positive(path, "activation_bytes", activation_bytes)
            }
            OperatorSpec::GroupedGemm {
                experts,
                top_k,
                k,
                n,
                dtype,
                weight_bytes,
                activation_bytes,
                model_share,
                ..
            } => {
                share(path, "model_share", model_share)?;
                within(path, "experts", experts, MAX_BATCH)?;
                let experts = f64::from(experts);
                // False for NaN, so NaN is refused as well.
                if !(top_k >= MIN_EXPERT_SHARE * experts && top_k <= experts) {
                    let message = format!(
                        "was {top_k}, must be positive (at least {MIN_EXPERT_SHARE} of experts) and at most \
                         experts ({experts})"
                    );
                    return refuse(path, "top_k", message);
                }
                within(path, "k", k, MAX_DIMENSION)?;
                within(path, "n", n, MAX_DIMENSION)?;
                self.check_dtype(path, dtype)?;
                positive(path, "weight_bytes", weight_bytes)?;
                positive(path, "activation_bytes", activation_bytes)
            }
            OperatorSpec::Attention { .. } => self.check_attention(path, operator),
            OperatorSpec::Elementwise { bytes_per_row, .. } => positive(path, "bytes_per_row", bytes_per_row),
            OperatorSpec::AllReduce { bytes_per_row, ranks, .. }
            | OperatorSpec::AllGather { bytes_per_row, ranks, .. } => {
                positive(path, "bytes_per_row", bytes_per_row)?;
                self.check_ranks(path, ranks)
            }
        }
    }

    fn check_attention(&self, path: &str, operator: &OperatorSpec) -> Result<(), SimError> {
        let OperatorSpec::Attention {
            heads,
            kv_heads,
            qk_dim,
            v_dim,
            kv_bytes_per_token,
            window,
            dtype,
            activation_bytes,
            model_share,
            ..
        } = *operator
        else {
            return Ok(());
        };
        share(path, "model_share", model_share)?;
        for (field, value) in [("heads", heads), ("kv_heads", kv_heads), ("qk_dim", qk_dim), ("v_dim", v_dim)]
        {
            within(path, field, value, MAX_BATCH)?;
        }
        if heads % kv_heads != 0 {
            let message = format!("was {kv_heads}, must divide heads ({heads})");
            return refuse(path, "kv_heads", message);
        }
        positive(path, "kv_bytes_per_token", kv_bytes_per_token)?;
        if let Some(window) = window {
            at_least(path, "window", window, 1)?;
        }
        self.check_dtype(path, dtype)?;
        positive(path, "activation_bytes", activation_bytes)
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

    fn check_ranks(&self, path: &str, ranks: u32) -> Result<(), SimError> {
        at_least(path, "ranks", ranks, 2)?;
        if ranks > self.gpus_per_replica {
            let message =
                format!("was {ranks}, must not exceed gpus_per_replica ({})", self.gpus_per_replica);
            return refuse(path, "ranks", message);
        }
        if self.link.is_none() {
            let message = format!("was absent, but {path} communicates between {ranks} ranks");
            return refuse("step_time", "link", message);
        }
        Ok(())
    }
}

impl GpuSpec {
    fn check(&self) -> Result<(), SimError> {
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
    fn check(&self) -> Result<(), SimError> {
        let path = "step_time.link";
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

fn refuse(path: &str, field: &str, message: String) -> Result<(), SimError> {
    Err(SimError::Plan { path: format!("{path}.{field}"), message })
}

fn at_least(path: &str, field: &str, value: u32, least: u32) -> Result<(), SimError> {
    if value < least {
        return refuse(path, field, format!("was {value}, must be at least {least}"));
    }
    Ok(())
}

fn within(path: &str, field: &str, value: u32, most: u32) -> Result<(), SimError> {
    if value == 0 || value > most {
        return refuse(path, field, format!("was {value}, must be in 1 ..= {most}"));
    }
    Ok(())
}

fn positive(path: &str, field: &str, value: f64) -> Result<(), SimError> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    refuse(path, field, format!("was {value}, must be positive and finite"))
}

fn not_negative(path: &str, field: &str, value: f64) -> Result<(), SimError> {
    if value >= 0.0 && value.is_finite() {
        return Ok(());
    }
    refuse(path, field, format!("was {value}, must be finite and not negative"))
}

fn share(path: &str, field: &str, value: f64) -> Result<(), SimError> {
    if value > 0.0 && value <= 1.0 {
        return Ok(());
    }
    refuse(path, field, format!("was {value}, must be in (0, 1]"))
}
