//! Forming a batch: the scheduler picks it, the step timer prices it, the recorder learns who is in it.

use super::{EngineContext, EngineCore, InFlight};
use crate::error::SimError;
use crate::metrics::{Activity, HostMeter, Recorder, StepFacts, StepRow};
use crate::scheduler::{Admission, BatchScheduler, Scheduled, SchedulerOutput};
use crate::time::{SimDuration, SimTime};

impl EngineCore {
    /// Lets the scheduler form a batch, prices it, and records who is in it.
    pub(super) fn form_batch(
        &mut self,
        now: SimTime,
        context: &mut EngineContext<'_>,
    ) -> Result<InFlight, SimError> {
        self.count_blocks(now);
        let mut batch = self.spare.pop().unwrap_or_default();
        let has_tiers = self.scheduler.kv_loads().is_some();
        if has_tiers {
            self.begin_kv_step(now)?;
        }
        self.scheduler.schedule(now, &mut batch.output);
        let kv = if has_tiers { self.end_kv_step(context.recorder)? } else { None };
        self.report_failure(now)?;
        *context.work += batch.output.scheduled.len() as u64;
        // Blocks are taken here and only here, so no moment in between has more.
        self.counters.peak_used_blocks = self.counters.peak_used_blocks.max(self.used_blocks());
        batch.step = None;
        let mut row = self.shape_batch(&batch.output);
        let empty = batch.output.scheduled.is_empty();
        let before = self.meter;
        let start = if empty {
            let passage = self.pipeline.pass_empty(now);
            batch.end = passage.end;
            passage.start
        } else {
            let mut time = context.timer.step(&self.shape)?;
            let held_up = kv.map_or(SimDuration::ZERO, |kv| self.kv_delay(&kv, now, &time));
            time.total.0 += held_up.0;
            self.meter.kv_ns += held_up.0;
            let passage = self.pipeline.pass(now, &time, context.timer.stages_s())?;
            batch.end = passage.end;
            let cpu_ns = time.cpu_exposed.0.min(passage.advance.0);
            self.meter.cpu_ns += cpu_ns;
            if row.prefill_tokens > 0 {
                self.meter.mixed_ns += passage.advance.0 - cpu_ns - held_up.0;
            }
            row.padded_tokens = time.padded_tokens;
            row.graph = time.graph as u8;
            self.counters.flops += time.flops;
            self.counters.bytes += time.bytes;
            self.counters.active_s += time.active_s;
            passage.start
        };
        batch.meter = self.meter;
        if batch.changed() {
            self.record_activities(&batch.output, now, start, before, context.recorder);
            // A turn of SGLang that only preempted leaves no record.
            let log = context.recorder.decision_log.as_mut();
            if let Some(log) = log.filter(|_| !empty || self.sglang.is_none()) {
                let facts = StepFacts {
                    step: self.num_steps,
                    replica: self.replica,
                    scheduled_at: now,
                    start,
                    end: batch.end,
                    prefill_tokens: u64::from(row.prefill_tokens),
                    decode_tokens: u64::from(row.decode_tokens),
                    kv_tokens: row.kv_tokens,
                };
                batch.record = Some(log.begin(&facts, &self.scheduler, &batch.output));
            }
        }
        if empty {
            self.num_empty_steps += 1;
        } else {
            row.start_ns = start.0;
            batch.step = Some(context.recorder.step(self.replica, batch.end, row));
            self.num_steps += 1;
        }
        Ok(batch)
    }

    /// Describes a batch to the step timer, and counts its tokens.
    fn shape_batch(&mut self, output: &SchedulerOutput) -> StepRow {
        let gauges = self.scheduler.gauges();
        let mut row = StepRow {
            num_seqs: output.scheduled.len() as u32,
            num_running: gauges.num_running,
            num_waiting: gauges.num_waiting,
            free_blocks: gauges.num_free,
            ..StepRow::default()
        };
        self.shape.clear();
        self.shape.take_back(output.num_given_back);
        for (position, entry) in output.scheduled.iter().enumerate() {
            let context_after = entry.computed_before + entry.num_tokens;
            let is_prefill = match output.num_prefills {
                Some(count) => position < count as usize,
                None => entry.is_prefill(),
            };
            // A chunk limit may cut paddings, which stand for drafts.
            let drafts = entry.num_drafts.min(entry.num_tokens.saturating_sub(1));
            self.shape.add_verifying(entry.num_tokens, context_after, is_prefill, drafts);
            row.kv_tokens += u64::from(context_after);
            if is_prefill {
                row.prefill_tokens += entry.num_tokens;
                self.counters.prompt_tokens += u64::from(entry.num_tokens);
            } else {
                row.decode_tokens += entry.num_tokens;
            }
        }
        row
    }

    /// Books what every running or preempted request does from `start` on. In a pipeline, a request that is under way
    /// in an earlier batch goes on with that until its output arrives ([`Self::process`]).
    fn record_activities(
        &mut self,
        output: &SchedulerOutput,
        now: SimTime,
        start: SimTime,
        meter: HostMeter,
        recorder: &mut Recorder,
    ) {
        // Output of other batches in flight may arrive before `start`; then no time beyond it is booked yet.
        let overlaps = self.pipeline.num_stages() > 1;
        for evicted in &output.preempted {
            self.counters.preemptions += 1;
            recorder.preempt(evicted.id, if overlaps { now } else { start }, meter);
        }
        for entry in &output.scheduled {
            if entry.admission != Admission::Running {
                if entry.admission == Admission::New && self.scheduler.caching() {
                    self.prefix_lookup_tokens += u64::from(entry.prompt_tokens);
                    self.prefix_hit_tokens += u64::from(entry.computed_before);
                }
                recorder.admit(entry.id, start, entry.computed_before);
            }
            if overlaps && self.scheduler.is_in_flight_elsewhere(entry) {
                continue;
            }
            recorder.enter(entry.id, activity(entry), start, meter);
        }
        if output.scheduled.len() < self.scheduler.gauges().num_running as usize {
            self.scheduler.visit_left_out(&mut |id, prompt_is_unfinished| {
                let wait = if prompt_is_unfinished { Activity::ChunkWait } else { Activity::DecodeWait };
                recorder.enter(id, wait, start, meter);
            });
        }
    }
}

fn activity(entry: &Scheduled) -> Activity {
    if entry.recomputes {
        Activity::PreemptionRedo
    } else if entry.is_prefill() {
        Activity::Prefill
    } else {
        Activity::Decode
    }
}
