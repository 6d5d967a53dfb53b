//! Forming a batch: the scheduler picks it, the step timer prices it, the recorder learns who is in it.

use super::pipeline::Passage;
use super::{EngineContext, EngineCore, InFlight};
use crate::error::SimError;
use crate::fidelity::{BatchShape, StepOrigin, StepTime};
use crate::metrics::{Activity, HostMeter, Recorder, StepFacts, StepRow};
use crate::scheduler::{Admission, BatchScheduler, Scheduled, SchedulerOutput};
use crate::time::{SimDuration, SimTime};

/// When a batch runs, and what is booked for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Launch {
    /// When it was formed.
    formed: SimTime,
    passage: Passage,
    /// Its cost; none where nothing runs.
    time: Option<StepTime>,
    /// The part of it in which the device waits for KV to move.
    held_up: SimDuration,
    /// The engine's share of the work in `time`.
    share: f64,
    /// Prompts are computed in the step.
    mixed: bool,
}

impl Launch {
    /// Returns when the output of the batch is there.
    pub(crate) fn end(&self) -> SimTime {
        self.passage.end
    }
}

impl EngineCore {
    /// Lets the scheduler form a batch, prices it, and records who is in it.
    pub(super) fn form_batch(
        &mut self,
        now: SimTime,
        context: &mut EngineContext<'_>,
    ) -> Result<InFlight, SimError> {
        let (batch, row) = self.draft(now, context.work, context.recorder)?;
        let launch = if batch.executes() {
            context.timer.set_origin(self.origin());
            let mut time = context.timer.step(&self.shape)?;
            let held_up = self.kv_step.take().map_or(SimDuration::ZERO, |kv| self.kv_delay(&kv, now, &time));
            time.total.0 += held_up.0;
            let mixed = self.is_mixed();
            Launch { held_up, ..self.pass(now, &time, context.timer.stages_s(), 1.0, mixed)? }
        } else {
            let passage = self.pipeline.pass_empty(now);
            Launch { formed: now, passage, time: None, held_up: SimDuration::ZERO, share: 1.0, mixed: false }
        };
        Ok(self.launch(batch, row, &launch, context.recorder))
    }

    /// Lets the scheduler form a batch and describes it to the step timer ([`Self::shape`]).
    ///
    /// # Errors
    /// [`SimError::EngineFailure`].
    pub(crate) fn draft(
        &mut self,
        now: SimTime,
        work: &mut u64,
        recorder: &mut Recorder,
    ) -> Result<(InFlight, StepRow), SimError> {
        self.untried = false;
        self.count_blocks(now);
        let mut batch = self.spare.pop().unwrap_or_default();
        let has_tiers = self.scheduler.kv_loads().is_some();
        if has_tiers {
            self.begin_kv_step(now)?;
        }
        self.scheduler.schedule(now, &mut batch.output);
        if has_tiers {
            self.kv_step = self.end_kv_step(recorder)?;
        }
        self.report_failure(now)?;
        *work += batch.output.scheduled.len() as u64;
        // Blocks are taken here and only here, so no moment in between has more.
        self.counters.peak_used_blocks = self.counters.peak_used_blocks.max(self.used_blocks());
        batch.step = None;
        let row = self.shape_batch(&batch.output);
        Ok((batch, row))
    }

    /// Returns which step of the engine comes next.
    pub(crate) fn origin(&self) -> StepOrigin {
        StepOrigin { replica: self.replica.0, step: self.num_steps }
    }

    /// Returns the batch that was drafted last, as the step timer sees it.
    pub(crate) fn shape(&self) -> &BatchShape {
        &self.shape
    }

    /// Tells whether the batch that was drafted last computes chunks of prompts. A single token of one costs what a
    /// decode costs, and does not count.
    pub(crate) fn is_mixed(&self) -> bool {
        self.shape.prefill().num_seqs > 0
    }

    /// Sends a step through the engine's pipeline. `share`: the engine's part of its work; `mixed`: prompts are
    /// computed in it.
    ///
    /// # Errors
    /// As [`Pipeline::pass`].
    pub(crate) fn pass(
        &mut self,
        now: SimTime,
        time: &StepTime,
        stages_s: &[f64],
        share: f64,
        mixed: bool,
    ) -> Result<Launch, SimError> {
        let slowed = self.slowed(time, stages_s)?;
        let (time, stages_s) = match &slowed {
            None => (time, stages_s),
            Some((time, stages_s)) => (time, &stages_s[..]),
        };
        let passage = self.pipeline.pass(now, time, stages_s)?;
        Ok(Launch { formed: now, passage, time: Some(*time), held_up: SimDuration::ZERO, share, mixed })
    }

    /// Books a drafted batch that runs as `launch` says, and records who is in it.
    pub(crate) fn launch(
        &mut self,
        mut batch: InFlight,
        mut row: StepRow,
        launch: &Launch,
        recorder: &mut Recorder,
    ) -> InFlight {
        let Launch { formed, passage: Passage { start, end, .. }, .. } = *launch;
        let before = self.meter;
        self.book(launch);
        if let Some(time) = &launch.time {
            row.padded_tokens = time.padded_tokens;
            row.graph = time.graph as u8;
        }
        batch.end = end;
        batch.meter = self.meter;
        self.note_handovers(&batch.output, start, end);
        if batch.changed() {
            self.record_activities(&batch.output, formed, start, before, recorder);
            // A turn of SGLang that only preempted leaves no record.
            let log = recorder.decision_log.as_mut();
            if let Some(log) = log.filter(|_| batch.executes() || self.sglang.is_none()) {
                let facts = StepFacts {
                    step: self.num_steps,
                    replica: self.replica,
                    scheduled_at: formed,
                    start,
                    end,
                    prefill_tokens: u64::from(row.prefill_tokens),
                    decode_tokens: u64::from(row.decode_tokens),
                    kv_tokens: row.kv_tokens,
                };
                batch.record = Some(log.begin(&facts, &self.scheduler, &batch.output));
            }
        }
        if batch.executes() {
            row.start_ns = start.0;
            batch.step = Some(recorder.step(self.replica, end, row));
            self.num_steps += 1;
        } else if launch.time.is_none() {
            self.num_empty_steps += 1;
        }
        batch
    }

    /// Books what the device does in a step.
    pub(crate) fn book(&mut self, launch: &Launch) {
        let Some(time) = &launch.time else { return };
        let advance_ns = launch.passage.advance.0;
        let cpu_ns = time.cpu_exposed.0.min(advance_ns);
        self.meter.cpu_ns += cpu_ns;
        self.meter.kv_ns += launch.held_up.0;
        if launch.mixed {
            self.meter.mixed_ns += (advance_ns - cpu_ns).saturating_sub(launch.held_up.0);
        }
        self.draft_ns = self.draft_ns.saturating_add(time.draft.0);
        self.counters.flops += time.flops * launch.share;
        self.counters.bytes += time.bytes * launch.share;
        self.counters.active_s += time.active_s * launch.share;
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
            if output.padded.is_empty() {
                self.shape.add_verifying(entry.num_tokens, context_after, is_prefill, drafts);
            }
            row.kv_tokens += u64::from(context_after);
            if is_prefill {
                row.prefill_tokens += entry.num_tokens;
                self.counters.prompt_tokens += u64::from(entry.num_tokens);
            } else {
                row.decode_tokens += entry.num_tokens;
            }
        }
        for padded in &output.padded {
            self.shape.add(padded.num_tokens, padded.context_after, padded.is_prefill);
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
        let encodes = self.handovers.encodes();
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
                if encodes {
                    recorder.admit_to_encoder(entry.id, start);
                } else {
                    recorder.admit(entry.id, start, entry.computed_before);
                }
            }
            if overlaps && self.scheduler.is_in_flight_elsewhere(entry) {
                continue;
            }
            recorder.enter(entry.id, activity(entry, encodes), start, meter);
        }
        if output.scheduled.len() < self.scheduler.gauges().num_running as usize {
            self.scheduler.visit_left_out(&mut |id, prompt_is_unfinished| {
                let wait = if prompt_is_unfinished { Activity::ChunkWait } else { Activity::DecodeWait };
                recorder.enter(id, wait, start, meter);
            });
        }
    }
}

fn activity(entry: &Scheduled, encodes: bool) -> Activity {
    if encodes {
        Activity::Encode
    } else if entry.recomputes {
        Activity::PreemptionRedo
    } else if entry.is_prefill() {
        Activity::Prefill
    } else {
        Activity::Decode
    }
}
