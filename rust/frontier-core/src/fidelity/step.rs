//! The step timer: compiled once per plan, evaluated once per step.

use std::sync::Arc;

use super::afd::pipeline::Iteration;
use super::afd::step::Afd;
use super::batch::BatchShape;
use super::cost::{OperatorTime, TotalCost};
use super::draft::Draft;
use super::expert_layers::{ExpertStep, StepOrigin};
use super::graphs::{Dispatch, GraphDispatcher, GraphMode};
use super::launches::LaunchTimes;
use super::learned::Predictors;
use super::linear::linear_step;
use super::program::{Program, RowCounts};
use super::tables::Tables;
use super::trust::OperatorTrust;
use crate::error::SimError;
use crate::plan::step_time::{CpuSpec, DboSpec, LinearSpec, OperatorsSpec, StepTimeSpec};
use crate::predictor::Predictor;
use crate::rng::RngStreams;
use crate::time::SimDuration;

/// How long a step takes, and what the replica's hardware does in it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepTime {
    /// The whole step: all pipeline stages, one after the other.
    pub total: SimDuration,
    /// The part of it in which the GPU waits for the host.
    pub cpu_exposed: SimDuration,
    /// Host time of launching its kernels, the busiest stage's: hidden as far as the GPU is the slower of the two.
    pub launch: SimDuration,
    /// How its kernels are launched.
    pub graph: GraphMode,
    /// Rows of token operators, padding included, over all data-parallel ranks.
    pub padded_tokens: u32,
    /// The part of it that drafting takes (speculative decoding): passes on the GPU, and the host's search.
    pub draft: SimDuration,
    /// Useful FLOPs of all ranks of the replica.
    pub flops: f64,
    /// Useful HBM bytes of all ranks of the replica.
    pub bytes: f64,
    /// Seconds in which compute, memory or network is busy at its sustained rate, summed over ranks.
    pub active_s: f64,
}

impl StepTime {
    /// A time of `batch` whose work and launches nobody knows.
    #[inline]
    fn of(total: SimDuration, batch: &BatchShape) -> Self {
        Self { total, padded_tokens: batch.num_tokens() as u32, ..Self::default() }
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
    Afd(Box<Afd>),
}

#[derive(Clone, Debug)]
struct Operators {
    program: Program,
    cpu: CpuSpec,
    tensor_parallel_size: u32,
    /// Ranks that share the tokens of prompts.
    prefill_context_parallel_size: u32,
    data_parallel_size: usize,
    graphs: Option<(GraphDispatcher, LaunchTimes)>,
    /// How each data-parallel rank ran the last step.
    dispatches: Vec<Dispatch>,
    draft: Option<Draft>,
    dbo: Option<DboSpec>,
    origin: Option<StepOrigin>,
    /// Ranks compute as many rows as the largest of them.
    pad_to_largest: bool,
    /// Time of each stage in the last step, in seconds.
    stages_s: Vec<f64>,
}

/// Drafting of one step, in seconds.
#[expect(clippy::struct_field_names, reason = "units end names")]
#[derive(Clone, Copy, Default)]
struct Drafted {
    /// GPU time of all passes.
    busy_s: f64,
    /// From the end of the target's last stage to that of the last pass.
    elapsed_s: f64,
    /// Host time of launching the last stage and all passes.
    launched_s: f64,
    /// The host's own work, after all of that.
    cpu_s: f64,
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
            StepTimeSpec::Afd(spec) => {
                Model::Afd(Box::new(Afd::compile(spec, max_tokens, max_seqs, predictors)?))
            }
            StepTimeSpec::Operators(spec) => {
                Model::Operators(Box::new(Operators::compile(spec, max_tokens, max_seqs, predictors)?))
            }
        };
        Ok(Self { model, max_tokens, max_seqs })
    }

    /// Returns the name of the model, which labels every result: `linear`, `tables`, `roofline`, or `learned` where at
    /// least one operator has a learned predictor.
    pub fn name(&self) -> &'static str {
        match &self.model {
            Model::Linear(_) => "linear",
            Model::Tables(_) => "tables",
            Model::Operators(operators) if operators.is_learned() => "learned",
            Model::Afd(afd) if afd.is_learned() => "learned",
            Model::Operators(_) | Model::Afd(_) => "roofline",
        }
    }

    /// Returns the distinct sliding windows that a [`BatchShape`] for this timer must keep areas for.
    pub fn windows(&self) -> &[u32] {
        match &self.model {
            Model::Linear(_) | Model::Tables(_) => &[],
            Model::Operators(operators) => operators.program.windows(),
            Model::Afd(afd) => afd.windows(),
        }
    }

    /// Returns an empty batch of the kind that the timer prices.
    pub fn new_batch(&self) -> BatchShape {
        let operators = match &self.model {
            Model::Operators(operators) => operators,
            Model::Afd(_) => return BatchShape::to_be_cut(self.windows()),
            Model::Linear(_) | Model::Tables(_) => return BatchShape::new(self.windows()),
        };
        let batch = match &operators.draft {
            Some(draft) if draft.next.is_some() => {
                BatchShape::drafting(self.windows(), Draft::mean_advance(draft.passes))
            }
            _ => BatchShape::new(self.windows()),
        };
        batch.shared_by(operators.prefill_context_parallel_size)
    }

    /// Returns the number of batches of one step: one per data-parallel rank.
    pub fn num_batches(&self) -> usize {
        match &self.model {
            Model::Linear(_) | Model::Tables(_) => 1,
            Model::Operators(operators) => operators.data_parallel_size,
            Model::Afd(afd) => afd.num_ranks(),
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
            Model::Linear(spec) => Ok(StepTime::of(linear_step(spec, &batches[0])?, &batches[0])),
            Model::Tables(tables) => Ok(StepTime::of(tables.step(&batches[0])?, &batches[0])),
            Model::Operators(operators) => operators.step(batches),
            Model::Afd(afd) => afd.step(batches),
        }
    }

    /// Lets data-parallel ranks compute as many rows as the largest of them, as vLLM did up to 0.16 even without CUDA
    /// graphs. The linear clock has no rows.
    pub fn pad_to_largest(&mut self, pad: bool) {
        match &mut self.model {
            Model::Linear(_) | Model::Tables(_) => {}
            Model::Operators(operators) => operators.pad_to_largest = pad,
            Model::Afd(afd) => afd.pad_to_largest(pad),
        }
    }

    /// Says which step the next batches are: draws of the experts' loads, and popularity that drifts, depend on it.
    /// Until it is said, steps are typical ones.
    #[inline]
    pub fn set_origin(&mut self, origin: StepOrigin) {
        match &mut self.model {
            Model::Linear(_) | Model::Tables(_) => {}
            Model::Operators(operators) => operators.origin = Some(origin),
            Model::Afd(afd) => afd.set_origin(origin),
        }
    }

    /// Returns the time of each pipeline stage in the last step, in seconds, launches that its GPU waits for included:
    /// a pipeline with enough batches in flight finishes one per longest stage.
    /// Drafting is a part of the last.
    pub fn stages_s(&self) -> &[f64] {
        match &self.model {
            Model::Linear(_) => &[],
            Model::Tables(tables) => tables.stages_s(),
            Model::Operators(operators) => &operators.stages_s,
            Model::Afd(afd) => afd.stages_s(),
        }
    }

    /// Returns the last step of attention-FFN disaggregation as an iteration, whose activities
    /// [`super::afd::event_graph::simulate`] lists; `None` for other models.
    pub fn afd_iteration(&self) -> Option<&Iteration> {
        match &self.model {
            Model::Afd(afd) => Some(afd.iteration()),
            _ => None,
        }
    }

    /// Returns the rows of token operators of each data-parallel rank in the last step, padding included; nothing for
    /// the clocks, which have no rows.
    pub fn padded_tokens(&self) -> impl Iterator<Item = u32> {
        let dispatches = match &self.model {
            Model::Linear(_) | Model::Tables(_) => &[][..],
            Model::Operators(operators) => &operators.dispatches,
            Model::Afd(afd) => afd.rank_dispatches(),
        };
        dispatches.iter().map(|rank| rank.tokens)
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
            Model::Afd(afd) => afd.breakdown(batches, rank)?,
            Model::Operators(operators) => {
                operators.dispatch(batches);
                let dual_batch = operators.is_dual_batch(batches);
                let all_rows = operators.all_rows();
                let rows = operators.row_counts(operators.dispatches[rank].tokens, batch, all_rows);
                let mut times = operators.program.breakdown(batch, rows, dual_batch);
                if let Some(draft) = &mut operators.draft {
                    let (tp, last) = (operators.tensor_parallel_size, operators.stages_s.len() - 1);
                    times.append(&mut draft.breakdown(batches, rank, tp, last));
                }
                let ranks = operators.ranks_per_stage();
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
            Model::Afd(afd) => afd.trust(),
            Model::Operators(operators) => {
                let mut trust = operators.program.trust();
                trust.append(&mut operators.draft.as_mut().map(Draft::trust).unwrap_or_default());
                trust
            }
        }
    }

    /// Returns whether passes of one token per request draft.
    #[inline]
    fn drafts_on(&self) -> bool {
        match &self.model {
            Model::Linear(_) | Model::Tables(_) | Model::Afd(_) => false,
            Model::Operators(operators) => operators.draft.as_ref().is_some_and(|draft| draft.next.is_some()),
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
        // Tokens that ranks share are counted on one of them.
        if batch.num_drafts() > tokens * u64::from(batch.num_sharing()) {
            let what = format!("drafts are tokens of the step, was {} drafts", batch.num_drafts());
            return Err(SimError::Invariant { what });
        }
        if self.drafts_on() && batch.drafted().is_none() {
            let what = "a batch of a timer that drafts comes from new_batch".into();
            return Err(SimError::Invariant { what });
        }
        if matches!(self.model, Model::Afd(_)) && !batch.can_be_cut() {
            let what = "a batch that is cut into micro-batches comes from new_batch".into();
            return Err(SimError::Invariant { what });
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

impl Operators {
    fn compile(
        spec: &OperatorsSpec,
        max_tokens: u32,
        max_seqs: u32,
        predictors: &[Arc<Predictor>],
    ) -> Result<Self, SimError> {
        let ranks = spec.layout.data_parallel_size;
        // With drafts to verify, all passes draft one token each, the first included.
        let verified = spec.draft.as_ref().map_or(0, |draft| draft.passes.saturating_add(1));
        let limits = RowCounts {
            tokens: max_tokens,
            seqs: max_seqs.saturating_mul(verified.saturating_add(1)).min(max_tokens.max(max_seqs)),
            all_tokens: max_tokens.saturating_mul(ranks),
            sharded_tokens: max_tokens.div_ceil(spec.layout.tensor_parallel_size),
        };
        let residuals = spec.residuals.map(|draw| RngStreams::new(draw.seed, draw.replication));
        let predictors = Predictors { all: predictors, residuals };
        let program = Program::compile(spec, limits, &predictors)?;
        let draft = spec.draft.as_ref().map(|draft| {
            let of_first = RowCounts { seqs: max_seqs, ..limits };
            let of_next = RowCounts {
                tokens: max_seqs,
                seqs: max_seqs,
                all_tokens: max_seqs.saturating_mul(ranks),
                sharded_tokens: max_seqs.div_ceil(spec.layout.tensor_parallel_size),
            };
            let compile =
                |name, operators, limits| Program::compile_draft(spec, name, operators, limits, &predictors);
            Ok::<_, SimError>(Draft {
                first: compile("first_pass", &draft.first_pass, of_first)?,
                next: compile("decode_pass", &draft.decode_pass, of_next)?,
                passes: draft.passes,
                cpu: draft.cpu,
            })
        });
        Ok(Self {
            draft: draft.transpose()?,
            stages_s: vec![0.0; program.num_stages()],
            program,
            cpu: spec.cpu,
            tensor_parallel_size: spec.layout.tensor_parallel_size,
            prefill_context_parallel_size: spec.layout.prefill_context_parallel_size.unwrap_or(1),
            data_parallel_size: ranks as usize,
            graphs: spec
                .launches
                .as_ref()
                .map(|launches| (GraphDispatcher::new(&launches.graphs), LaunchTimes::new(launches))),
            dispatches: Vec::with_capacity(ranks as usize),
            dbo: spec.moe.as_ref().and_then(|moe| moe.dbo),
            origin: None,
            pad_to_largest: false,
        })
    }

    /// Returns the GPUs that run the same operators on a data-parallel rank's batch.
    fn ranks_per_stage(&self) -> f64 {
        f64::from(self.tensor_parallel_size) * f64::from(self.prefill_context_parallel_size)
    }

    /// Tells whether every rank has enough tokens for two micro-batches.
    #[inline]
    fn is_dual_batch(&self, batches: &[BatchShape]) -> bool {
        let Some(dbo) = &self.dbo else { return false };
        batches.iter().all(|batch| {
            // A decode has one token that is no draft, and all have as many (`check_ubatch_thresholds`).
            let decodes = batch.uniform_query().is_some() && batch.num_tokens() == batch.num_logits();
            let least = if decodes { dbo.decode_token_threshold } else { dbo.prefill_token_threshold };
            batch.num_tokens() >= u64::from(least.max(2))
        })
    }

    /// Decides how every rank runs its batch.
    #[inline]
    fn dispatch(&mut self, batches: &[BatchShape]) {
        // Counts fit 32 bits by `StepTimer::admit`.
        let tokens = |batch: &BatchShape| batch.num_tokens() as u32;
        match (&self.graphs, batches) {
            (Some((graphs, _)), [batch]) => {
                let found = graphs.dispatch(tokens(batch), batch.uniform_query(), GraphMode::Full, 0);
                self.dispatches.clear();
                self.dispatches.push(found);
            }
            (Some((graphs, _)), _) => {
                let ranks = batches.iter().map(|batch| (tokens(batch), batch.uniform_query()));
                graphs.dispatch_together(ranks, &mut self.dispatches);
            }
            (None, _) => {
                self.dispatches.clear();
                let eager = |batch| Dispatch { mode: GraphMode::Eager, tokens: tokens(batch) };
                self.dispatches.extend(batches.iter().map(eager));
            }
        }
        if self.pad_to_largest {
            let largest = self.dispatches.iter().map(|rank| rank.tokens).max().unwrap_or(0);
            self.dispatches.iter_mut().for_each(|rank| rank.tokens = largest);
        }
    }

    /// Returns the rows of all ranks in the step that was dispatched last.
    #[inline]
    fn all_rows(&self) -> u32 {
        self.dispatches.iter().fold(0, |sum, rank| sum.saturating_add(rank.tokens))
    }

    #[inline]
    fn row_counts(&self, tokens: u32, batch: &BatchShape, all_tokens: u32) -> RowCounts {
        let ranks = self.tensor_parallel_size;
        // The usual case spares a division.
        let sharded_tokens = if ranks == 1 { tokens } else { tokens.div_ceil(ranks) };
        RowCounts { tokens, seqs: batch.num_logits() as u32, all_tokens, sharded_tokens }
    }

    fn is_learned(&self) -> bool {
        let drafts = self.draft.iter().flat_map(Draft::programs);
        std::iter::once(&self.program).chain(drafts).any(Program::is_learned)
    }

    /// Returns what drafting adds to a step whose last stage took the host `launching_s` to launch, and adds its work.
    #[inline]
    fn draft(&mut self, batches: &[BatchShape], launching_s: f64, work: &mut TotalCost) -> Drafted {
        let Some(draft) = &mut self.draft else { return Drafted::default() };
        let busy_s = draft.gpu_s(batches, self.tensor_parallel_size, work);
        let launched_s = match &self.graphs {
            Some((graphs, times)) => launching_s + draft.launch_s(batches, graphs, times),
            None => 0.0,
        };
        let mut elapsed_s = busy_s;
        if let Some(last) = self.stages_s.last_mut() {
            // As for the stages: the last kernel ends after it was launched.
            if launched_s > *last + busy_s {
                elapsed_s = launched_s - *last;
            }
            *last += elapsed_s;
        }
        Drafted { busy_s, elapsed_s, launched_s, cpu_s: draft.cpu_s(batches) }
    }

    #[inline]
    fn step(&mut self, batches: &[BatchShape]) -> Result<StepTime, SimError> {
        self.dispatch(batches);
        let (all_tokens, all_rows) = (all_tokens(batches), self.all_rows());
        // Ranks without a batch wait for the others.
        let graph = self.dispatches.iter().filter(|rank| rank.tokens > 0).map(|rank| rank.mode).min();
        let (mut work, mut gpu_s, mut most_seqs) = (TotalCost::default(), 0.0, 0);
        let (mut elapsed_s, mut launch_s, mut last_launching_s) = (0.0, 0.0_f64, 0.0);
        let dual_batch = self.is_dual_batch(batches);
        for stage in 0..self.stages_s.len() {
            let (mut slowest_s, mut shared_s) = (0.0_f64, 0.0);
            let mut most = RowCounts { tokens: 0, seqs: 0, all_tokens: all_rows, sharded_tokens: 0 };
            for (rank, batch) in batches.iter().enumerate() {
                let rows = self.row_counts(self.dispatches[rank].tokens, batch, all_rows);
                let cost = if dual_batch {
                    self.program.halves_cost(stage, batch, rows)
                } else if all_rows == all_tokens {
                    self.program.stage_cost(stage, batch, rows)
                } else {
                    let useful = self.row_counts(batch.num_tokens() as u32, batch, all_tokens);
                    self.program.padded_stage_cost(stage, batch, rows, useful)
                };
                work.plus(&cost.own);
                work.plus(&cost.shared);
                slowest_s = slowest_s.max(cost.own.seconds);
                shared_s = cost.shared.seconds;
                most_seqs = most_seqs.max(batch.num_seqs() as u32);
                most.tokens = most.tokens.max(rows.tokens);
                most.sharded_tokens = most.sharded_tokens.max(rows.sharded_tokens);
            }
            let mut busy_s = slowest_s + shared_s;
            if let Some(experts) = self.program.experts(stage) {
                let (stage_s, of_rank) = experts.stage(&ExpertStep {
                    all_tokens: all_rows,
                    useful_tokens: all_tokens,
                    tokens: most.tokens,
                    sharded_tokens: most.sharded_tokens,
                    dual_batch,
                    own_s: slowest_s,
                    together_s: shared_s,
                    origin: self.origin,
                });
                busy_s = stage_s;
                for _ in batches {
                    work.plus(&of_rank);
                }
            }
            let launching_s = match (&self.graphs, graph) {
                (Some((_, times)), Some(mode)) => times.of_stage(stage, mode),
                _ => 0.0,
            };
            // The last kernel ends after all have run and after it was launched; `max` would hide what is no number.
            let stage_s = if launching_s > busy_s { launching_s } else { busy_s };
            self.stages_s[stage] = stage_s;
            gpu_s += busy_s;
            elapsed_s += stage_s;
            launch_s = launch_s.max(launching_s);
            last_launching_s = launching_s;
        }
        let drafted = self.draft(batches, last_launching_s, &mut work);
        launch_s = launch_s.max(drafted.launched_s);
        gpu_s += drafted.busy_s;
        elapsed_s += drafted.elapsed_s;
        // The slowest of several hides times that are not numbers; their sum does not.
        if !work.seconds.is_finite() {
            (gpu_s, elapsed_s) = (work.seconds, work.seconds);
        }
        let cpu_s = self.cpu.per_step_s + self.cpu.per_seq_s * f64::from(most_seqs);
        // In a pipeline, the host works while the first stage computes the batch before.
        let (hiding_s, later_s) = match self.stages_s[..] {
            [first_s, _, ..] => (first_s, elapsed_s - first_s),
            _ => (elapsed_s, 0.0),
        };
        let total_s = if self.cpu.overlapped {
            // The thread that prepares the next step has launched this one.
            let host_s = cpu_s + launch_s;
            if host_s > hiding_s { host_s + later_s } else { elapsed_s }
        } else {
            elapsed_s + cpu_s
        };
        // The host drafts once tokens are sampled: nothing hides it.
        let total_s = total_s + drafted.cpu_s;
        let total = SimDuration::from_seconds(total_s)?;
        // total_s is no less than gpu_s, but for a rounding error of the sum over stages.
        let gpu = SimDuration::from_seconds(gpu_s)?;
        let cpu_exposed = total.max(gpu) - gpu;
        let ranks = self.ranks_per_stage();
        Ok(StepTime {
            total,
            cpu_exposed,
            launch: SimDuration::from_seconds(launch_s)?,
            graph: graph.unwrap_or_default(),
            padded_tokens: all_rows,
            draft: SimDuration::from_seconds(drafted.elapsed_s + drafted.cpu_s)?,
            flops: work.flops * ranks,
            bytes: work.bytes * ranks,
            active_s: work.active_s * ranks,
        })
    }
}
