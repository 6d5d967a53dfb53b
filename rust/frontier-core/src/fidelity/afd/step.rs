//! A step of attention ranks in lock step and the FFN ranks that they share.
//!
//! Each rank's batch is cut into micro-batches by tokens ([`BatchShape::set_share`]), so that a prompt's chunk may lie in
//! several. A micro-batch in a layer takes the time of
//! its class's part of the program over the layers of that part; with experts that is the time of the slowest FFN rank,
//! routing included where the plan has it ([`super::super::expert_layers`]: one draw for all layers and micro-batches of a
//! step, so layers of one class take equally long). Each micro-batch of a side replays the CUDA graph that holds it;
//! what pads it is computed, not sent. Head and tail run once per step, over all micro-batches and outside any graph.
//!
//! The host prepares the step once; it launches every part of every micro-batch, layer by layer, so that the step ends
//! no sooner than it has launched them.

mod breakdown;
mod launching;

use std::sync::Arc;

use super::max_plus::MaxPlus;
use super::pipeline::{Iteration, LayerClass, LayerKind, LayerRun};
use super::transfer::Transfer;
use crate::error::SimError;
use crate::fidelity::batch::BatchShape;
use crate::fidelity::cost::TotalCost;
use crate::fidelity::expert_layers::{ExpertStep, StepOrigin};
use crate::fidelity::graphs::{Dispatch, GraphDispatcher, GraphMode};
use crate::fidelity::launches::LaunchTimes;
use crate::fidelity::learned::Predictors;
use crate::fidelity::program::{Program, RowCounts};
use crate::fidelity::step::StepTime;
use crate::fidelity::trust::OperatorTrust;
use crate::plan::step_time::{AfdKind, AfdSpec, CpuSpec, OperatorsSpec, under};
use crate::predictor::Predictor;
use crate::rng::RngStreams;
use crate::time::SimDuration;

/// One side: its program by parts, and how they are launched.
#[derive(Clone, Debug)]
struct Side {
    program: Program,
    tensor_parallel_size: u32,
    ranks: u32,
    graphs: Option<Graphs>,
}

#[derive(Clone, Debug)]
struct Graphs {
    dispatcher: GraphDispatcher,
    launches: LaunchTimes,
    per_graph_s: f64,
    decode_query_tokens: u32,
}

/// A class of layers.
#[derive(Clone, Copy, Debug)]
struct Class {
    kind: LayerKind,
    layers: u32,
    destinations: f64,
}

/// Prices steps.
#[derive(Clone, Debug)]
pub struct Afd {
    attention: Side,
    ffn: Side,
    cpu: CpuSpec,
    classes: Vec<Class>,
    micro_batches: u32,
    transfers: [Transfer; 2],
    iteration: Iteration,
    max_plus: MaxPlus,
    origin: Option<StepOrigin>,
    pad_to_largest: bool,
    /// `[micro_batch][attention rank]`.
    shares: Vec<BatchShape>,
    /// How each share runs.
    dispatches: Vec<Dispatch>,
    /// Tokens that each FFN rank of a dense layer serves, `[micro_batch][FFN rank]`.
    served: Vec<u64>,
    /// What the FFN is given: a batch without requests.
    nothing: BatchShape,
    /// How each attention rank ran the last step: rows of all its micro-batches.
    of_ranks: Vec<Dispatch>,
    stages_s: [f64; 1],
}

impl Side {
    fn compile(
        side: &str,
        spec: &OperatorsSpec,
        limits: RowCounts,
        predictors: &[Arc<Predictor>],
    ) -> Result<Self, SimError> {
        let residuals = spec.residuals.map(|draw| RngStreams::new(draw.seed, draw.replication));
        let program = Program::compile(spec, limits, &Predictors { all: predictors, residuals });
        Ok(Self {
            program: under(side, program)?,
            tensor_parallel_size: spec.layout.tensor_parallel_size,
            ranks: spec.layout.data_parallel_size,
            graphs: spec.launches.as_ref().map(|launches| Graphs {
                dispatcher: GraphDispatcher::new(&launches.graphs),
                launches: LaunchTimes::new(launches),
                per_graph_s: launches.per_graph_s,
                decode_query_tokens: launches.graphs.decode_query_tokens,
            }),
        })
    }

    fn gpus(&self) -> f64 {
        f64::from(self.tensor_parallel_size) * f64::from(self.ranks)
    }

    fn dispatch(&self, tokens: u32, uniform_query: Option<u32>) -> Dispatch {
        match &self.graphs {
            Some(graphs) => graphs.dispatcher.dispatch(tokens, uniform_query, GraphMode::Full, 0),
            None => Dispatch { mode: GraphMode::Eager, tokens },
        }
    }

    /// Returns the host time of launching a part of `layers` layers for one micro-batch, in seconds.
    fn launch_s(&self, part: usize, mode: GraphMode, layers: u32) -> f64 {
        let Some(graphs) = &self.graphs else { return 0.0 };
        // A graph of the whole part is one per layer: other micro-batches come between.
        let replays_s =
            if mode == GraphMode::Full { f64::from(layers - 1) * graphs.per_graph_s } else { 0.0 };
        graphs.launches.of_stage(part, mode) + replays_s
    }

    /// Returns the cost of a part for `rows` rows of which `useful` are no padding.
    fn cost(&mut self, part: usize, batch: &BatchShape, rows: RowCounts, useful: RowCounts) -> TotalCost {
        let cost = if rows == useful {
            self.program.stage_cost(part, batch, rows)
        } else {
            self.program.padded_stage_cost(part, batch, rows, useful)
        };
        let mut all = cost.own;
        all.plus(&cost.shared);
        all
    }
}

impl Afd {
    /// Compiles `spec` for batches of up to `max_tokens` tokens and `max_seqs` requests per attention rank.
    ///
    /// # Errors
    /// [`SimError::Plan`] naming the first value that is not allowed.
    pub fn compile(
        spec: &AfdSpec,
        max_tokens: u32,
        max_seqs: u32,
        predictors: &[Arc<Predictor>],
    ) -> Result<Self, SimError> {
        let ranks = spec.attention.layout.data_parallel_size;
        let all_tokens = max_tokens.saturating_mul(ranks);
        let seqs = max_seqs.max(max_tokens);
        let limits =
            RowCounts { tokens: max_tokens, seqs, all_tokens: max_tokens, sharded_tokens: max_tokens };
        let attention = Side::compile("attention", &spec.attention, limits, predictors)?;
        let limits = RowCounts { tokens: all_tokens, seqs: 0, all_tokens, sharded_tokens: all_tokens };
        let ffn = Side::compile("ffn", &spec.ffn, limits, predictors)?;
        let classes: Vec<Class> = (spec.classes.iter().enumerate())
            .map(|(index, class)| Class {
                kind: match class.kind {
                    AfdKind::Dense => LayerKind::Dense,
                    AfdKind::Moe => LayerKind::Moe,
                },
                layers: spec.layers_of(index),
                destinations: class.destinations,
            })
            .collect();
        let parts = spec.micro_batches as usize * ranks as usize;
        let of_class = |class: &Class| LayerClass {
            kind: class.kind,
            attention_ns: vec![0; parts],
            a2f_ns: vec![0; parts],
            ffn_ns: match class.kind {
                LayerKind::Dense => vec![0; parts],
                LayerKind::Moe => {
                    vec![0; spec.micro_batches as usize * spec.ffn.layout.data_parallel_size as usize]
                }
            },
            f2a_ns: vec![0; parts],
        };
        let iteration = Iteration {
            micro_batches: spec.micro_batches as usize,
            attention_ranks: ranks as usize,
            ffn_ranks: spec.ffn.layout.data_parallel_size as usize,
            classes: classes.iter().map(of_class).collect(),
            layers: spec.layers.iter().map(|run| LayerRun { class: run.class, count: run.count }).collect(),
            head_ns: vec![0; ranks as usize],
            tail_ns: vec![0; ranks as usize],
        };
        let empty = BatchShape::new(attention.program.windows());
        Ok(Self {
            nothing: BatchShape::new(ffn.program.windows()),
            attention,
            ffn,
            cpu: spec.attention.cpu,
            classes,
            micro_batches: spec.micro_batches,
            transfers: [Transfer::new(&spec.a2f, spec.hidden), Transfer::new(&spec.f2a, spec.hidden)],
            iteration,
            max_plus: MaxPlus::default(),
            origin: None,
            pad_to_largest: false,
            shares: vec![empty; parts],
            dispatches: vec![Dispatch::default(); parts],
            served: vec![0; (spec.micro_batches * spec.ffn.layout.data_parallel_size) as usize],
            of_ranks: vec![Dispatch::default(); ranks as usize],
            stages_s: [0.0],
        })
    }

    /// Returns whether any operator has a learned predictor.
    pub fn is_learned(&self) -> bool {
        self.attention.program.is_learned() || self.ffn.program.is_learned()
    }

    /// Returns the distinct sliding windows of attention.
    pub fn windows(&self) -> &[u32] {
        self.attention.program.windows()
    }

    /// Returns the attention ranks.
    pub fn num_ranks(&self) -> usize {
        self.iteration.attention_ranks
    }

    /// Lets attention ranks compute as many rows as the largest micro-batch beside them.
    pub fn pad_to_largest(&mut self, pad: bool) {
        self.pad_to_largest = pad;
    }

    /// Says which step the next one is.
    pub fn set_origin(&mut self, origin: StepOrigin) {
        self.origin = Some(origin);
    }

    /// Returns the end of the last iteration, in seconds: for whoever asks for pipeline stages, there is one.
    pub fn stages_s(&self) -> &[f64] {
        &self.stages_s
    }

    /// Returns how each attention rank ran the last step.
    pub fn rank_dispatches(&self) -> &[Dispatch] {
        &self.of_ranks
    }

    /// Returns the last step's iteration: durations of everything, for [`super::event_graph`] to look into.
    pub fn iteration(&self) -> &Iteration {
        &self.iteration
    }

    /// Returns the time of a step.
    ///
    /// # Errors
    /// [`SimError::ClockOverflow`] or [`SimError::InvalidDuration`] if it is not representable.
    pub fn step(&mut self, batches: &[BatchShape]) -> Result<StepTime, SimError> {
        self.cut(batches);
        let mut work = [TotalCost::default(); 2];
        self.ends(batches, &mut work[0])?;
        for class in 0..self.classes.len() {
            self.attend(class, &mut work[0])?;
            self.send(class)?;
            self.feed_forward(class, &mut work[1])?;
        }
        let end = self.max_plus.end(&self.iteration)?;
        let (launch_s, hosts_s) = self.launched_s();
        let (busy, launch) = (SimDuration(end.0), SimDuration::from_seconds(launch_s)?);
        // The last kernel ends after all have run and after it was launched.
        let elapsed = busy.max(launch);
        self.stages_s = [elapsed.as_seconds()];
        let most_seqs = batches.iter().map(BatchShape::num_seqs).max().unwrap_or(0);
        let cpu_s = self.cpu.per_step_s + self.cpu.per_seq_s * most_seqs as f64;
        let total = if self.cpu.overlapped {
            // The thread that prepares the next step has launched this one.
            elapsed.max(SimDuration::from_seconds(cpu_s + hosts_s)?)
        } else {
            let cpu = SimDuration::from_seconds(cpu_s)?;
            SimDuration(elapsed.0.checked_add(cpu.0).ok_or(SimError::ClockOverflow)?)
        };
        // Attention's work is that of one GPU of each rank, the FFN's that of all.
        let attention_gpus = f64::from(self.attention.tensor_parallel_size);
        Ok(StepTime {
            total,
            cpu_exposed: total - busy,
            launch,
            graph: self.graph(),
            padded_tokens: self.of_ranks.iter().fold(0, |sum, rank| sum.saturating_add(rank.tokens)),
            draft: SimDuration::ZERO,
            flops: work[0].flops * attention_gpus + work[1].flops,
            bytes: work[0].bytes * attention_gpus + work[1].bytes,
            active_s: work[0].active_s * attention_gpus + work[1].active_s,
        })
    }

    /// Cuts the batches, and decides how the shares run.
    fn cut(&mut self, batches: &[BatchShape]) {
        let (ranks, ffn_ranks) = (batches.len(), self.iteration.ffn_ranks);
        self.served.fill(0);
        for micro_batch in 0..self.micro_batches {
            let first = micro_batch as usize * ranks;
            let served = &mut self.served[micro_batch as usize * ffn_ranks..][..ffn_ranks];
            for (rank, batch) in batches.iter().enumerate() {
                let share = &mut self.shares[first + rank];
                share.set_share(batch, micro_batch, self.micro_batches);
                // Tokens fit 32 bits by `StepTimer::admit`.
                let (tokens, uniform) = (share.num_tokens() as u32, share.uniform_query());
                served[rank % ffn_ranks] += u64::from(tokens);
                self.dispatches[first + rank] = self.attention.dispatch(tokens, uniform);
            }
            if self.pad_to_largest {
                let together = &mut self.dispatches[first..first + ranks];
                let largest = together.iter().map(|own| own.tokens).max().unwrap_or(0);
                for own in together {
                    own.tokens = largest;
                }
            }
        }
        for (rank, all) in self.of_ranks.iter_mut().enumerate() {
            *all = Dispatch { mode: GraphMode::Full, tokens: 0 };
            for own in self.dispatches[rank..].iter().step_by(ranks).filter(|own| own.tokens > 0) {
                *all =
                    Dispatch { mode: all.mode.min(own.mode), tokens: all.tokens.saturating_add(own.tokens) };
            }
        }
    }

    fn graph(&self) -> GraphMode {
        let busy = self.of_ranks.iter().filter(|rank| rank.tokens > 0);
        busy.map(|rank| rank.mode).min().unwrap_or_default()
    }

    /// Prices head and tail.
    fn ends(&mut self, batches: &[BatchShape], work: &mut TotalCost) -> Result<(), SimError> {
        let tail = self.classes.len() + 1;
        for (rank, batch) in batches.iter().enumerate() {
            let rows = rows(batch.num_tokens() as u32, batch, self.attention.tensor_parallel_size);
            for (part, at) in [(0, &mut self.iteration.head_ns), (tail, &mut self.iteration.tail_ns)] {
                let cost = self.attention.cost(part, batch, rows, rows);
                at[rank] = SimDuration::from_seconds(cost.seconds)?.0;
                work.plus(&cost);
            }
        }
        Ok(())
    }

    /// Prices attention in a class.
    fn attend(&mut self, class: usize, work: &mut TotalCost) -> Result<(), SimError> {
        let layers = f64::from(self.classes[class].layers);
        for (at, share) in self.shares.iter().enumerate() {
            let tensor_parallel_size = self.attention.tensor_parallel_size;
            let of = |tokens: u32| rows(tokens, share, tensor_parallel_size);
            let (rows, useful) = (of(self.dispatches[at].tokens), of(share.num_tokens() as u32));
            let cost = self.attention.cost(class + 1, share, rows, useful);
            work.plus(&cost);
            self.iteration.classes[class].attention_ns[at] =
                SimDuration::from_seconds(cost.seconds / layers)?.0;
        }
        Ok(())
    }

    /// Prices the transfers of a class: rows of one GPU on either side. An FFN rank of a dense layer hears from all its
    /// attention ranks at about the same time, and answers one after the other.
    fn send(&mut self, class: usize) -> Result<(), SimError> {
        let Class { kind, destinations, .. } = self.classes[class];
        let (ranks, ffn_ranks) = (self.iteration.attention_ranks, self.iteration.ffn_ranks);
        let ffn_tensor_parallel_size = f64::from(self.ffn.tensor_parallel_size);
        for at in 0..self.shares.len() {
            let sent = self.shares[at].num_tokens() as f64 * destinations;
            let of_attention = sent / f64::from(self.attention.tensor_parallel_size);
            let served = &self.served[at / ranks * ffn_ranks..][..ffn_ranks];
            let [heard, answered] = match kind {
                LayerKind::Moe => [served.iter().sum::<u64>() as f64 * destinations / self.ffn.gpus(); 2],
                LayerKind::Dense => {
                    let heard = served[at % ranks % ffn_ranks] as f64 * destinations;
                    [heard / ffn_tensor_parallel_size, sent / ffn_tensor_parallel_size]
                }
            };
            let times = &mut self.iteration.classes[class];
            times.a2f_ns[at] = self.transfers[0].ns(of_attention, heard)?;
            times.f2a_ns[at] = self.transfers[1].ns(of_attention, answered)?;
        }
        Ok(())
    }

    /// Prices the FFN of a class; adds the work of all its GPUs.
    fn feed_forward(&mut self, class: usize, work: &mut TotalCost) -> Result<(), SimError> {
        let Class { kind, layers, .. } = self.classes[class];
        let ffn_ranks = self.iteration.ffn_ranks;
        let per_layer = |seconds: f64| SimDuration::from_seconds(seconds / f64::from(layers));
        match kind {
            LayerKind::Dense => {
                for at in 0..self.shares.len() {
                    let tokens = self.shares[at].num_tokens() as u32;
                    let (rows, useful) = self.ffn_rows(tokens, kind);
                    let cost = self.ffn.cost(class, &self.nothing, rows, useful);
                    add(work, &cost, f64::from(self.ffn.tensor_parallel_size));
                    self.iteration.classes[class].ffn_ns[at] = per_layer(cost.seconds)?.0;
                }
            }
            LayerKind::Moe => {
                for micro_batch in 0..self.iteration.micro_batches {
                    let (rows, useful) = self.ffn_rows(self.all_tokens(micro_batch), kind);
                    let seconds = self.experts_s(class, rows, useful, work);
                    self.iteration.classes[class].ffn_ns[micro_batch * ffn_ranks..][..ffn_ranks]
                        .fill(per_layer(seconds)?.0);
                }
            }
        }
        Ok(())
    }

    /// Returns the tokens of a micro-batch, over all attention ranks.
    fn all_tokens(&self, micro_batch: usize) -> u32 {
        let ffn_ranks = self.iteration.ffn_ranks;
        let served = &self.served[micro_batch * ffn_ranks..][..ffn_ranks];
        u32::try_from(served.iter().sum::<u64>()).unwrap_or(u32::MAX)
    }

    /// Returns the rows of FFN operators for `tokens` tokens: those that it computes, and those that are no padding.
    fn ffn_rows(&self, tokens: u32, kind: LayerKind) -> (RowCounts, RowCounts) {
        let over = match kind {
            LayerKind::Dense => 1,
            LayerKind::Moe => self.ffn.ranks,
        };
        let rows = |all_tokens: u32| {
            let tokens = all_tokens.div_ceil(over);
            let sharded_tokens = tokens.div_ceil(self.ffn.tensor_parallel_size);
            RowCounts { tokens, seqs: 0, all_tokens, sharded_tokens }
        };
        let uniform = self.ffn.graphs.as_ref().map(|graphs| graphs.decode_query_tokens);
        (rows(self.ffn.dispatch(tokens, uniform).tokens), rows(tokens))
    }

    /// Returns the time of the slowest FFN rank in all layers of a class with experts, in seconds.
    fn experts_s(&mut self, class: usize, rows: RowCounts, useful: RowCounts, work: &mut TotalCost) -> f64 {
        let cost = self.ffn.cost(class, &self.nothing, rows, useful);
        add(work, &cost, self.ffn.gpus());
        let Some(experts) = self.ffn.program.experts(class) else { return cost.seconds };
        let (seconds, of_rank) = experts.stage(&ExpertStep {
            all_tokens: rows.all_tokens,
            useful_tokens: useful.all_tokens,
            tokens: rows.tokens,
            sharded_tokens: rows.sharded_tokens,
            dual_batch: false,
            own_s: 0.0,
            together_s: cost.seconds,
            origin: self.origin,
        });
        add(work, &of_rank, self.ffn.gpus());
        seconds
    }

    /// Returns what all times so far rest on: attention, then the FFN.
    pub fn trust(&mut self) -> Vec<OperatorTrust> {
        let mut trust = self.attention.program.trust();
        trust.append(&mut self.ffn.program.trust());
        trust
    }
}

/// Returns the rows of attention for `tokens` rows of `batch`, padding included.
fn rows(tokens: u32, batch: &BatchShape, tensor_parallel_size: u32) -> RowCounts {
    let sharded_tokens = tokens.div_ceil(tensor_parallel_size);
    RowCounts { tokens, seqs: batch.num_logits() as u32, all_tokens: tokens, sharded_tokens }
}

fn add(sum: &mut TotalCost, cost: &TotalCost, gpus: f64) {
    sum.seconds += cost.seconds * gpus;
    sum.flops += cost.flops * gpus;
    sum.bytes += cost.bytes * gpus;
    sum.active_s += cost.active_s * gpus;
}
