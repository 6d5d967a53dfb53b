//! A step, operator by operator.

use super::{Afd, rows};
use crate::error::SimError;
use crate::fidelity::afd::pipeline::LayerKind;
use crate::fidelity::batch::BatchShape;
use crate::fidelity::cost::{Bound, OperatorTime};
use crate::fidelity::trust::Provenance;
use crate::time::SimDuration;

impl Afd {
    /// Returns the share of every operator in the GPU time of attention rank `rank` and of what the FFN does for it: of
    /// a dense layer for its micro-batches, with experts for all. The transfers of a class follow its FFN. Micro-batches
    /// overlap, so the sum is not the time of the step. `stage` counts the parts of attention, then those of the FFN.
    ///
    /// # Errors
    /// [`SimError::InvalidDuration`] if a transfer's time is not representable.
    pub fn breakdown(&mut self, batches: &[BatchShape], rank: usize) -> Result<Vec<OperatorTime>, SimError> {
        self.cut(batches);
        (0..self.classes.len()).try_for_each(|class| self.send(class))?;
        let ranks = self.iteration.attention_ranks;
        let batch = &batches[rank];
        let tensor_parallel_size = self.attention.tensor_parallel_size;
        let all = rows(batch.num_tokens() as u32, batch, tensor_parallel_size);
        let mut times = self.attention.program.breakdown(batch, all, false);
        let last = self.classes.len() + 1;
        let in_classes = |time: &OperatorTime| time.stage > 0 && time.stage < last;
        times.iter_mut().filter(|time| in_classes(time)).for_each(forget);
        let mut of_ffn: Vec<OperatorTime> = Vec::new();
        for micro_batch in 0..self.iteration.micro_batches {
            let at = micro_batch * ranks + rank;
            let padded = rows(self.dispatches[at].tokens, &self.shares[at], tensor_parallel_size);
            let share = self.attention.program.breakdown(&self.shares[at], padded, false);
            for (sum, time) in times.iter_mut().zip(&share).filter(|(sum, _)| in_classes(sum)) {
                join(sum, time);
            }
            let own = self.shares[at].num_tokens() as u32;
            let all = self.all_tokens(micro_batch);
            for (kind, tokens) in [(LayerKind::Dense, own), (LayerKind::Moe, all)] {
                let (rows, _) = self.ffn_rows(tokens, kind);
                let gpus = match kind {
                    LayerKind::Dense => f64::from(self.ffn.tensor_parallel_size),
                    LayerKind::Moe => self.ffn.gpus(),
                };
                let mut share = self.ffn.program.breakdown(&self.nothing, rows, false);
                share.retain(|time| self.classes[time.stage].kind == kind);
                for time in &mut share {
                    time.flops *= gpus;
                    time.bytes *= gpus;
                    match of_ffn.iter_mut().find(|sum| sum.stage == time.stage && sum.name == time.name) {
                        Some(sum) if micro_batch > 0 => join(sum, time),
                        _ => of_ffn.push(time.clone()),
                    }
                }
            }
        }
        for time in &mut times {
            time.flops *= f64::from(self.attention.tensor_parallel_size);
            time.bytes *= f64::from(self.attention.tensor_parallel_size);
        }
        for class in 0..self.classes.len() {
            times.extend(
                of_ffn
                    .iter()
                    .filter(|time| time.stage == class)
                    .cloned()
                    .map(|time| OperatorTime { stage: last + 1 + class, ..time }),
            );
            let durations = &self.iteration.classes[class];
            for (name, ns) in [("a2f", &durations.a2f_ns), ("f2a", &durations.f2a_ns)] {
                times.push(self.transferred(
                    name,
                    class,
                    ns[rank..].iter().step_by(ranks).sum(),
                    last + 1 + class,
                ));
            }
        }
        Ok(times)
    }

    fn transferred(&self, name: &str, class: usize, ns: u64, stage: usize) -> OperatorTime {
        let layers = self.classes[class].layers;
        let seconds = SimDuration(ns).as_seconds() * f64::from(layers);
        OperatorTime {
            name: name.to_owned(),
            count: layers * self.micro_batches,
            seconds,
            flops: 0.0,
            bytes: 0.0,
            bound: Bound::Network,
            bound_s: seconds,
            provenance: (ns > 0).then_some(Provenance::Unmeasured),
            stage,
        }
    }
}

/// Sets an operator back to none of its runs.
fn forget(time: &mut OperatorTime) {
    (time.count, time.seconds, time.flops, time.bytes, time.bound_s) = (0, 0.0, 0.0, 0.0, 0.0);
    time.provenance = None;
}

/// Adds the runs of another micro-batch.
fn join(sum: &mut OperatorTime, time: &OperatorTime) {
    if time.seconds > sum.seconds {
        sum.bound = time.bound;
    }
    sum.count += time.count;
    sum.seconds += time.seconds;
    sum.flops += time.flops;
    sum.bytes += time.bytes;
    sum.bound_s += time.bound_s;
    sum.provenance = sum.provenance.max(time.provenance);
}
