//! The step timer: compiled once per plan, evaluated once per step.

use std::sync::Arc;

use super::batch::BatchShape;
use super::cost::{OperatorTime, TotalCost};
use super::learned::Predictors;
use super::linear::linear_step;
use super::program::{Program, RowCounts};
use super::tables::Tables;
use super::trust::OperatorTrust;
use crate::error::SimError;
use crate::plan::step_time::{CpuSpec, LinearSpec, OperatorsSpec, StepTimeSpec};
use crate::predictor::Predictor;
use crate::rng::RngStreams;
use crate::time::SimDuration;

/// How long a step takes, and what the replica's hardware does in it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepTime {
    /// The whole step: all pipeline stages, one after the other.
    pub total: SimDuration,
    /// The part of it in which the GPU waits for the host.
    pub cpu_exposed: SimDuration,
    /// Useful FLOPs of all ranks of the replica.
    pub flops: f64,
    /// Useful HBM bytes of all ranks of the replica.
    pub bytes: f64,
    /// Seconds in which compute, memory or network is busy at its sustained rate, summed over ranks.
    pub active_s: f64,
}

impl StepTime {
    /// A time whose work nobody knows.
    fn of(total: SimDuration) -> Self {
        Self { total, cpu_exposed: SimDuration::ZERO, flops: 0.0, bytes: 0.0, active_s: 0.0 }
    }
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
    Operators(Box<Operators>),
    Tables(Box<Tables>),
}

#[derive(Clone, Debug)]
struct Operators {
    program: Program,
    cpu: CpuSpec,
    tensor_parallel_size: u32,
    data_parallel_size: usize,
    /// Time of each stage in the last step, in seconds.
    stages_s: Vec<f64>,
}

impl StepTimer {
    /// Compiles `spec` for batches of up to `max_tokens` tokens and `max_seqs` requests per data-parallel rank, with
    /// the predictors that it refers to by index.
    ///
    /// # Errors
    /// [`SimError::Plan`] naming the first value that is not allowed.
    pub fn compile(
        spec: &StepTimeSpec,
        max_tokens: u32,
        max_seqs: u32,
        predictors: &[Arc<Predictor>],
    ) -> Result<Self, SimError> {
        spec.check()?;
        let model = match spec {
            StepTimeSpec::Linear(linear) => Model::Linear(*linear),
            StepTimeSpec::Tables(spec) => Model::Tables(Box::new(Tables::new(spec))),
            StepTimeSpec::Operators(spec) => {
                Model::Operators(Box::new(Operators::compile(spec, max_tokens, max_seqs, predictors)?))
            }
        };
        Ok(Self { model, max_tokens, max_seqs })
    }

    /// Returns the name of the model, which labels every result: `linear`, `roofline`, `tables`, or `learned` where at least one
    /// operator has a learned predictor.
    pub fn name(&self) -> &'static str {
        match &self.model {
            Model::Linear(_) => "linear",
            Model::Tables(_) => "tables",
            Model::Operators(operators) if operators.program.is_learned() => "learned",
            Model::Operators(_) => "roofline",
        }
    }

    /// Returns the distinct sliding windows that a [`BatchShape`] for this timer must keep areas for.
    pub fn windows(&self) -> &[u32] {
        match &self.model {
            Model::Linear(_) | Model::Tables(_) => &[],
            Model::Operators(operators) => operators.program.windows(),
        }
    }

    /// Returns the number of batches of one step: one per data-parallel rank.
    pub fn num_batches(&self) -> usize {
        match &self.model {
            Model::Linear(_) | Model::Tables(_) => 1,
            Model::Operators(operators) => operators.data_parallel_size,
        }
    }

    /// Returns how long `batch` takes on a replica without data parallelism. An empty batch costs the host's time per
    /// step and no GPU time.
    ///
    /// # Errors
    /// As [`StepTimer::step_all`].
    #[inline]
    pub fn step(&mut self, batch: &BatchShape) -> Result<StepTime, SimError> {
        self.step_all(std::slice::from_ref(batch))
    }

    /// Returns how long a step takes whose data-parallel ranks run `batches`, in lock step: in every layer all wait for
    /// the slowest. Ranks run the same layers, so the slowest of one layer is the slowest of all.
    ///
    /// # Errors
    /// [`SimError::Invariant`] if there is not one batch per rank, if one is larger than the timer was compiled for, or
    /// was built for other windows; [`SimError::ClockOverflow`] or [`SimError::InvalidDuration`] if the time is not
    /// representable.
    #[inline]
    pub fn step_all(&mut self, batches: &[BatchShape]) -> Result<StepTime, SimError> {
        self.admit(batches)?;
        match &mut self.model {
            Model::Linear(spec) => Ok(StepTime::of(linear_step(spec, &batches[0])?)),
            Model::Tables(tables) => Ok(StepTime::of(tables.step(&batches[0])?)),
            Model::Operators(operators) => operators.step(batches),
        }
    }

    /// Returns the GPU time of each pipeline stage in the last step, in seconds: a pipeline with enough batches in
    /// flight finishes one per longest stage.
    pub fn stages_s(&self) -> &[f64] {
        match &self.model {
            Model::Linear(_) | Model::Tables(_) => &[],
            Model::Operators(operators) => &operators.stages_s,
        }
    }

    /// Returns the share of every operator in the GPU time of rank `rank` of a step that runs `batches`, in program
    /// order; FLOPs and bytes are those of the GPUs that run it. The linear clock has no operators.
    ///
    /// # Errors
    /// [`SimError::Invariant`] as [`StepTimer::step_all`].
    pub fn breakdown(&mut self, batches: &[BatchShape], rank: usize) -> Result<Vec<OperatorTime>, SimError> {
        self.admit(batches)?;
        let Some(batch) = batches.get(rank) else {
            let what = format!("a rank is below {}, was {rank}", batches.len());
            return Err(SimError::Invariant { what });
        };
        Ok(match &mut self.model {
            Model::Linear(_) | Model::Tables(_) => Vec::new(),
            Model::Operators(operators) => {
                let rows = row_counts(batch, all_tokens(batches), operators.tensor_parallel_size);
                let mut times = operators.program.breakdown(batch, rows);
                let ranks = f64::from(operators.tensor_parallel_size);
                for time in &mut times {
                    time.flops *= ranks;
                    time.bytes *= ranks;
                }
                times
            }
        })
    }

    /// Returns what all times so far rest on, operator by operator; nothing for the linear clock. Seconds are summed
    /// over data-parallel ranks.
    pub fn trust(&mut self) -> Vec<OperatorTrust> {
        match &mut self.model {
            Model::Linear(_) | Model::Tables(_) => Vec::new(),
            Model::Operators(operators) => operators.program.trust(),
        }
    }

    /// Refuses batches that the timer was not compiled for.
    #[inline]
    fn admit(&self, batches: &[BatchShape]) -> Result<(), SimError> {
        if batches.len() != self.num_batches() {
            let what = format!(
                "a step has a batch per rank ({}), was {} batches",
                self.num_batches(),
                batches.len()
            );
            return Err(SimError::Invariant { what });
        }
        batches.iter().try_for_each(|batch| self.admit_one(batch))
    }

    #[inline]
    fn admit_one(&self, batch: &BatchShape) -> Result<(), SimError> {
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
        Ok(())
    }
}

/// Returns the scheduled tokens of all ranks; each rank's fit 32 bits by [`StepTimer::admit`].
#[inline]
fn all_tokens(batches: &[BatchShape]) -> u32 {
    let sum: u64 = batches.iter().map(BatchShape::num_tokens).sum();
    u32::try_from(sum).unwrap_or(u32::MAX)
}

#[inline]
fn row_counts(batch: &BatchShape, all_tokens: u32, tensor_parallel_size: u32) -> RowCounts {
    let tokens = batch.num_tokens() as u32;
    // The usual case spares a division.
    let sharded_tokens =
        if tensor_parallel_size == 1 { tokens } else { tokens.div_ceil(tensor_parallel_size) };
    RowCounts { tokens, seqs: batch.num_seqs() as u32, all_tokens, sharded_tokens }
}

impl Operators {
    fn compile(
        spec: &OperatorsSpec,
        max_tokens: u32,
        max_seqs: u32,
        predictors: &[Arc<Predictor>],
    ) -> Result<Self, SimError> {
        let ranks = spec.layout.data_parallel_size;
        let limits = RowCounts {
            tokens: max_tokens,
            seqs: max_seqs,
            all_tokens: max_tokens.saturating_mul(ranks),
            sharded_tokens: max_tokens.div_ceil(spec.layout.tensor_parallel_size),
        };
        let residuals = spec.residuals.map(|draw| RngStreams::new(draw.seed, draw.replication));
        let program = Program::compile(spec, limits, &Predictors { all: predictors, residuals })?;
        Ok(Self {
            stages_s: vec![0.0; program.num_stages()],
            program,
            cpu: spec.cpu,
            tensor_parallel_size: spec.layout.tensor_parallel_size,
            data_parallel_size: ranks as usize,
        })
    }

    #[inline]
    fn step(&mut self, batches: &[BatchShape]) -> Result<StepTime, SimError> {
        let all_tokens = all_tokens(batches);
        let (mut work, mut gpu_s, mut most_seqs) = (TotalCost::default(), 0.0, 0);
        for stage in 0..self.stages_s.len() {
            let (mut slowest_s, mut shared_s) = (0.0_f64, 0.0);
            for batch in batches {
                let rows = row_counts(batch, all_tokens, self.tensor_parallel_size);
                let cost = self.program.stage_cost(stage, batch, rows);
                work.plus(&cost.own);
                work.plus(&cost.shared);
                slowest_s = slowest_s.max(cost.own.seconds);
                shared_s = cost.shared.seconds;
                most_seqs = most_seqs.max(rows.seqs);
            }
            self.stages_s[stage] = slowest_s + shared_s;
            gpu_s += self.stages_s[stage];
        }
        // The slowest of several hides times that are not numbers; their sum does not.
        let gpu_s = if work.seconds.is_finite() { gpu_s } else { work.seconds };
        let cpu_s = self.cpu.per_step_s + self.cpu.per_seq_s * f64::from(most_seqs);
        // `max` would prefer a number to what is none.
        let total_s = if self.cpu.overlapped && cpu_s > gpu_s { cpu_s } else { gpu_s };
        let total_s = if self.cpu.overlapped { total_s } else { gpu_s + cpu_s };
        let total = SimDuration::from_seconds(total_s)?;
        // total_s is no less than gpu_s and rounding keeps order, so the difference is not negative.
        let cpu_exposed = total - SimDuration::from_seconds(gpu_s)?;
        let ranks = f64::from(self.tensor_parallel_size);
        Ok(StepTime {
            total,
            cpu_exposed,
            flops: work.flops * ranks,
            bytes: work.bytes * ranks,
            active_s: work.active_s * ranks,
        })
    }
}
