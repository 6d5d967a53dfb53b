//! Drafting as a part of a step: what speculative decoding computes beside the target's forward pass.
//!
//! The first pass runs over all tokens of the step, so it sees the batch itself; each further pass computes one token
//! per request, so it sees the batch's [`drafted`](BatchShape::drafted) shape. All further passes are priced at the
//! mean of their context lengths. Data-parallel ranks draft in lock step, as they do everything. Kernels are launched in
//! piecewise graphs where one is large enough; rows that pad to its size are not priced.

use super::batch::BatchShape;
use super::cost::{OperatorTime, TotalCost};
use super::graphs::{GraphDispatcher, GraphMode};
use super::launches::LaunchTimes;
use super::program::{Program, RowCounts};
use super::trust::OperatorTrust;
use crate::plan::step_time::DraftCpuSpec;

/// Drafting of one replica, compiled.
#[derive(Clone, Debug)]
pub struct Draft {
    /// One stage of operators; `None` where the GPU does nothing.
    pub first: Option<Program>,
    /// The same for each further pass.
    pub next: Option<Program>,
    /// Further passes.
    pub passes: u32,
    /// The host's part.
    pub cpu: DraftCpuSpec,
}

/// Returns the rows of a pass over `batch`: one row of logits per request.
fn row_counts(batch: &BatchShape, all_tokens: u32, tensor_parallel_size: u32) -> RowCounts {
    let tokens = batch.num_tokens() as u32;
    let sharded_tokens = tokens.div_ceil(tensor_parallel_size);
    RowCounts { tokens, seqs: batch.num_seqs() as u32, all_tokens, sharded_tokens }
}

impl Draft {
    /// Returns by how many tokens the context of a request has grown in the mean further pass.
    pub fn mean_advance(passes: u32) -> u32 {
        passes.div_ceil(2)
    }

    /// Returns the GPU time of all passes in seconds, and adds their work of all ranks.
    pub fn gpu_s(&mut self, batches: &[BatchShape], tensor_parallel_size: u32, work: &mut TotalCost) -> f64 {
        let tp = tensor_parallel_size;
        let mut total = 0.0;
        if let Some(first) = &mut self.first {
            total += pass_s(first, batches.iter(), tp, 1.0, work);
        }
        if let Some(next) = &mut self.next {
            let drafted = batches.iter().filter_map(BatchShape::drafted);
            let runs = f64::from(self.passes);
            total += runs * pass_s(next, drafted, tp, runs, work);
        }
        total
    }

    /// Returns the host's time to launch all passes in seconds: in piecewise graphs if the largest rank fits one.
    pub fn launch_s(&self, batches: &[BatchShape], graphs: &GraphDispatcher, times: &LaunchTimes) -> f64 {
        let mode = |rows: fn(&BatchShape) -> u64| {
            let most = batches.iter().map(rows).max().unwrap_or(0);
            graphs.dispatch(u32::try_from(most).unwrap_or(u32::MAX), None, GraphMode::Piecewise, 0).mode
        };
        times.of_draft(mode(BatchShape::num_tokens), mode(BatchShape::num_seqs), self.passes)
    }

    /// Returns the host's time in seconds; the slowest rank's.
    pub fn cpu_s(&self, batches: &[BatchShape]) -> f64 {
        let of = |batch: &BatchShape| {
            self.cpu.per_step_s
                + self.cpu.per_seq_s * batch.num_seqs() as f64
                + self.cpu.per_context_token_s * batch.kv_tokens() as f64
        };
        batches.iter().map(of).fold(0.0, f64::max)
    }

    /// Returns the share of every operator for rank `rank`, first pass then all further ones; FLOPs and bytes of one
    /// GPU. `stage` is where it runs.
    pub fn breakdown(
        &mut self,
        batches: &[BatchShape],
        rank: usize,
        tensor_parallel_size: u32,
        stage: usize,
    ) -> Vec<OperatorTime> {
        let tp = tensor_parallel_size;
        let mut times = Vec::new();
        if let (Some(first), Some(batch)) = (&mut self.first, batches.get(rank)) {
            let rows = row_counts(batch, all_tokens(batches.iter()), tp);
            times.extend(first.breakdown(batch, rows, false));
        }
        if let (Some(next), Some(batch)) = (&mut self.next, batches.get(rank).and_then(BatchShape::drafted)) {
            let rows = row_counts(batch, all_tokens(batches.iter().filter_map(BatchShape::drafted)), tp);
            let runs = f64::from(self.passes);
            times.extend(next.breakdown(batch, rows, false).into_iter().map(|time| OperatorTime {
                count: time.count * self.passes,
                seconds: time.seconds * runs,
                flops: time.flops * runs,
                bytes: time.bytes * runs,
                bound_s: time.bound_s * runs,
                ..time
            }));
        }
        for time in &mut times {
            time.stage = stage;
        }
        times
    }

    /// Returns what all times so far rest on; further passes count once each.
    pub fn trust(&mut self) -> Vec<OperatorTrust> {
        let mut all = self.first.as_mut().map(Program::trust).unwrap_or_default();
        let runs = f64::from(self.passes);
        let mut next = self.next.as_mut().map(Program::trust).unwrap_or_default();
        for trust in &mut next {
            for seconds in &mut trust.tally.seconds {
                *seconds *= runs;
            }
        }
        all.append(&mut next);
        all
    }

    /// Returns the programs there are.
    pub fn programs(&self) -> impl Iterator<Item = &Program> {
        self.first.iter().chain(&self.next)
    }
}

fn all_tokens<'a>(batches: impl Iterator<Item = &'a BatchShape>) -> u32 {
    let sum: u64 = batches.map(BatchShape::num_tokens).sum();
    u32::try_from(sum).unwrap_or(u32::MAX)
}

/// Returns the time of one pass in lock step, and adds `runs` times its work.
fn pass_s<'a>(
    program: &mut Program,
    batches: impl Iterator<Item = &'a BatchShape> + Clone,
    tensor_parallel_size: u32,
    runs: f64,
    work: &mut TotalCost,
) -> f64 {
    let tokens = all_tokens(batches.clone());
    let (mut slowest_s, mut shared_s) = (0.0_f64, 0.0);
    for batch in batches {
        let rows = row_counts(batch, tokens, tensor_parallel_size);
        let cost = program.stage_cost(0, batch, rows);
        for part in [&cost.own, &cost.shared] {
            work.seconds += runs * part.seconds;
            work.flops += runs * part.flops;
            work.bytes += runs * part.bytes;
            work.active_s += runs * part.active_s;
        }
        slowest_s = slowest_s.max(cost.own.seconds);
        shared_s = cost.shared.seconds;
    }
    slowest_s + shared_s
}
