//! The step timer: compiled once per plan, evaluated once per step.

use super::batch::BatchShape;
use super::cost::OperatorTime;
use super::linear::linear_step;
use super::program::Program;
use crate::error::SimError;
use crate::plan::step_time::{CpuSpec, LinearSpec, StepTimeSpec};
use crate::time::SimDuration;

/// How long a step takes, and what the replica's hardware does in it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepTime {
    /// The whole step.
    pub total: SimDuration,
    /// The part of it in which the GPU waits for the host.
    pub cpu_exposed: SimDuration,
    /// Useful FLOPs of all ranks of the replica.
    pub flops: f64,
    /// Useful HBM bytes of all ranks of the replica.
    pub bytes: f64,
}

/// Answers how long a batch takes on one replica.
#[derive(Clone, Debug)]
pub struct StepTimer {
    model: Model,
    max_tokens: u32,
    max_seqs: u32,
}

#[derive(Clone, Debug)]
enum Model {
    Linear(LinearSpec),
    Roofline(Box<Roofline>),
}

#[derive(Clone, Debug)]
struct Roofline {
    program: Program,
    cpu: CpuSpec,
    ranks: f64,
}

impl StepTimer {
    /// Compiles `spec` for batches of up to `max_tokens` tokens and `max_seqs` requests.
    ///
    /// # Errors
    /// [`SimError::Plan`] naming the first value that is not allowed.
    pub fn compile(spec: &StepTimeSpec, max_tokens: u32, max_seqs: u32) -> Result<Self, SimError> {
        spec.check()?;
        let model = match spec {
            StepTimeSpec::Linear(linear) => Model::Linear(*linear),
            StepTimeSpec::Roofline(roofline) => Model::Roofline(Box::new(Roofline {
                program: Program::compile(roofline, max_tokens, max_seqs)?,
                cpu: roofline.cpu,
                ranks: f64::from(roofline.gpus_per_replica),
            })),
        };
        Ok(Self { model, max_tokens, max_seqs })
    }

    /// Returns the name of the model, which labels every result: `linear` or `roofline`.
    pub fn name(&self) -> &'static str {
        match self.model {
            Model::Linear(_) => "linear",
            Model::Roofline(_) => "roofline",
        }
    }

    /// Returns the distinct sliding windows that a [`BatchShape`] for this timer must keep areas for.
    pub fn windows(&self) -> &[u32] {
        match &self.model {
            Model::Linear(_) => &[],
            Model::Roofline(roofline) => roofline.program.windows(),
        }
    }

    /// Returns how long `batch` takes. An empty batch costs the host's time per step and no GPU time.
    ///
    /// # Errors
    /// [`SimError::Invariant`] if the batch is larger than the timer was compiled for, or was built for other
    /// windows; [`SimError::ClockOverflow`] or [`SimError::InvalidDuration`] if the time is not representable.
    pub fn step(&self, batch: &BatchShape) -> Result<StepTime, SimError> {
        let (tokens, seqs) = self.admit(batch)?;
        match &self.model {
            Model::Linear(spec) => Ok(StepTime {
                total: linear_step(spec, batch)?,
                cpu_exposed: SimDuration::ZERO,
                flops: 0.0,
                bytes: 0.0,
            }),
            Model::Roofline(roofline) => roofline.step(batch, tokens, seqs),
        }
    }

    /// Returns the share of every operator in the GPU time of `batch`, in program order. The linear clock has no
    /// operators.
    ///
    /// # Errors
    /// [`SimError::Invariant`] as [`StepTimer::step`].
    pub fn breakdown(&self, batch: &BatchShape) -> Result<Vec<OperatorTime>, SimError> {
        let (tokens, seqs) = self.admit(batch)?;
        Ok(match &self.model {
            Model::Linear(_) => Vec::new(),
            Model::Roofline(roofline) => roofline.program.breakdown(batch, tokens, seqs, roofline.ranks),
        })
    }

    /// Returns the tokens and requests of a batch that the timer was compiled for.
    #[inline]
    fn admit(&self, batch: &BatchShape) -> Result<(u32, u32), SimError> {
        let (tokens, seqs) = (batch.num_tokens(), batch.num_seqs());
        if tokens > u64::from(self.max_tokens) || seqs > u64::from(self.max_seqs) {
            return Err(SimError::Invariant {
                what: format!(
                    "a step has at most {} tokens of {} requests, was {tokens} tokens of {seqs} requests",
                    self.max_tokens, self.max_seqs
                ),
            });
        }
        // Element by element: `memcmp` over no bytes at a vector's dangling pointer takes some 90 ns on CPUs
        // that check its masked load against the page table.
        let (found, expected) = (batch.windows(), self.windows());
        if found.len() != expected.len()
            || found.iter().zip(expected).any(|(found, expected)| found != expected)
        {
            return Err(SimError::Invariant {
                what: format!(
                    "a batch keeps areas for the windows of its step timer, {expected:?}, was {found:?}"
                ),
            });
        }
        Ok((tokens as u32, seqs as u32))
    }
}

impl Roofline {
    #[inline]
    fn step(&self, batch: &BatchShape, tokens: u32, seqs: u32) -> Result<StepTime, SimError> {
        let gpu = self.program.cost(batch, tokens, seqs);
        let cpu_s = self.cpu.per_step_s + self.cpu.per_seq_s * f64::from(seqs);
        let total_s = if self.cpu.overlapped { gpu.seconds.max(cpu_s) } else { gpu.seconds + cpu_s };
        let total = SimDuration::from_seconds(total_s)?;
        // total_s is no less than gpu.seconds and rounding keeps order, so the difference is not negative.
        let cpu_exposed = total - SimDuration::from_seconds(gpu.seconds)?;
        Ok(StepTime { total, cpu_exposed, flops: gpu.flops * self.ranks, bytes: gpu.bytes * self.ranks })
    }
}
