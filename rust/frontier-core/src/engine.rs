//! One engine: its scheduler, the batches in flight, and the time they take.
//!
//! Mirrors the control flow of `EngineCore.step` and `step_with_batch_queue` (`vllm/v1/engine/core.py`, vLLM
//! 0.32) on simulated time. The synchronous engine forms a batch, waits for it, processes its output, and
//! forms the next one at the same instant. The asynchronous engine keeps two batches in flight: it forms the
//! next one while the queue is not full, otherwise it waits for the oldest.

mod kv_steps;

use std::collections::VecDeque;

use crate::error::SimError;
use crate::fidelity::{BatchShape, StepTimer};
use crate::ids::{ReplicaId, RequestId};
use crate::kvcache::BlockHash;
use crate::metrics::{Activity, HostMeter, Recorder, ReplicaSample, StepFacts, StepRow};
use crate::plan::SchedulerConfig;
use crate::scheduler::{Admission, Scheduled, SchedulerOutput, StepOutcome, Submission, VllmScheduler};
use crate::time::{SimDuration, SimTime};

/// Batches that an asynchronous engine keeps in flight.
const ASYNC_DEPTH: usize = 2;

/// vLLM spins on empty batches where nothing can change; two in a row send the simulated engine to sleep.
const FRUITLESS_ROUNDS: u8 = 2;

/// When an engine wants to be called again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// When the awaited batch is done.
    At(SimTime),
    /// When a request arrives.
    OnArrival,
}

/// What an engine needs from its surroundings while it runs.
#[derive(Debug)]
pub struct EngineContext<'a> {
    /// How long batches take.
    pub timer: &'a mut StepTimer,
    /// Where facts go.
    pub recorder: &'a mut Recorder,
    /// Receives the requests that end.
    pub ended: &'a mut Vec<RequestId>,
    /// Grows with the work done, in requests handled.
    pub work: &'a mut u64,
}

/// A batch that was formed and whose output was not processed yet.
#[derive(Debug, Default)]
struct InFlight {
    output: SchedulerOutput,
    end: SimTime,
    /// Number of the step within the replica; none for an empty batch.
    step: Option<u32>,
    /// The replica's totals after this step.
    meter: HostMeter,
    /// First part of its log record.
    record: Option<String>,
}

impl InFlight {
    /// The batch computes something or preempted someone.
    fn changed(&self) -> bool {
        !self.output.scheduled.is_empty() || !self.output.preempted.is_empty()
    }
}

/// One engine on simulated time.
#[derive(Debug)]
pub struct EngineCore {
    replica: ReplicaId,
    scheduler: VllmScheduler,
    depth: usize,
    /// Batches in flight, oldest first, the awaited one not included.
    queue: VecDeque<InFlight>,
    awaited: Option<InFlight>,
    /// Whether the batch formed last, before waiting, changed anything.
    last_formed_changed: bool,
    fruitless_rounds: u8,
    /// Nothing changes until a request arrives, although requests are waiting.
    stalled: bool,
    /// When the device is free.
    device_free: SimTime,
    meter: HostMeter,
    counters: ReplicaSample,
    counted_until: SimTime,
    num_steps: u64,
    num_empty_steps: u64,
    prefix_lookup_tokens: u64,
    prefix_hit_tokens: u64,
    livelock_steps: Option<u64>,
    steps_without_progress: u64,
    shape: BatchShape,
    outcome: StepOutcome,
    spare: Vec<InFlight>,
}

impl EngineCore {
    /// Returns an idle engine. `livelock_steps`: steps without progress after which it gives up.
    pub fn new(
        replica: ReplicaId,
        config: &SchedulerConfig,
        windows: &[u32],
        livelock_steps: Option<u64>,
    ) -> Self {
        Self {
            replica,
            depth: if config.async_scheduling { ASYNC_DEPTH } else { 1 },
            scheduler: VllmScheduler::new(config.clone()),
            queue: VecDeque::new(),
            awaited: None,
            last_formed_changed: false,
            fruitless_rounds: 0,
            stalled: false,
            device_free: SimTime::ZERO,
            meter: HostMeter::default(),
            counters: ReplicaSample::default(),
            counted_until: SimTime::ZERO,
            num_steps: 0,
            num_empty_steps: 0,
            prefix_lookup_tokens: 0,
            prefix_hit_tokens: 0,
            livelock_steps,
            steps_without_progress: 0,
            shape: BatchShape::new(windows),
            outcome: StepOutcome::default(),
            spare: Vec::new(),
        }
    }

    /// Returns the scheduler.
    pub fn scheduler(&self) -> &VllmScheduler {
        &self.scheduler
    }

    /// Tells whether the engine waits for a batch to end.
    pub fn is_waiting(&self) -> bool {
        self.awaited.is_some()
    }

    /// Returns the number of non-empty and of empty batches.
    pub fn num_steps(&self) -> (u64, u64) {
        (self.num_steps, self.num_empty_steps)
    }

    /// Returns prompt tokens looked up and found in the prefix cache, over first admissions.
    pub fn prefix_tokens(&self) -> (u64, u64) {
        (self.prefix_lookup_tokens, self.prefix_hit_tokens)
    }

    /// Returns the share of blocks held by requests.
    pub fn kv_usage(&self) -> f64 {
        f64::from(self.used_blocks()) / f64::from(self.scheduler.pool().num_usable())
    }

    /// Returns the leading blocks of `hashes` that are cached here.
    pub fn cached_prefix(&self, hashes: &[BlockHash]) -> usize {
        self.scheduler.cached_prefix(hashes)
    }

    /// Adds a request to the waiting queue.
    pub fn submit(&mut self, submission: &Submission<'_>) {
        self.stalled = false;
        self.scheduler.add_request(submission);
    }

    /// Returns the gauges and counters as of `now`.
    pub fn sample(&mut self, now: SimTime) -> ReplicaSample {
        self.count_blocks(now);
        let used = self.used_blocks();
        let peak = std::mem::replace(&mut self.counters.peak_used_blocks, used);
        ReplicaSample {
            peak_used_blocks: peak,
            num_running: self.scheduler.running().len() as u32,
            num_waiting: self.scheduler.num_waiting() as u32,
            used_blocks: self.used_blocks(),
            // Steps are back to back, so what lies ahead of `now` is one stretch.
            busy_ns: self.counters.busy_ns - self.device_free.since(now).0,
            ..self.counters
        }
    }

    /// Processes the output of the awaited batch, which ends `now`.
    ///
    /// # Errors
    /// [`SimError::Livelock`], or [`SimError::Invariant`] if no batch is awaited.
    pub fn complete(&mut self, now: SimTime, context: &mut EngineContext<'_>) -> Result<(), SimError> {
        let Some(batch) = self.awaited.take() else {
            return Err(SimError::Invariant {
                what: format!("replica {} completed a batch it did not await", self.replica.0),
            });
        };
        self.process_and_judge(batch, now, context)
    }

    /// Forms batches until the engine has to wait.
    ///
    /// # Errors
    /// [`SimError::ClockOverflow`], [`SimError::InvalidDuration`] from the step timer, [`SimError::Livelock`].
    pub fn run_until_blocked(
        &mut self,
        now: SimTime,
        context: &mut EngineContext<'_>,
    ) -> Result<Wake, SimError> {
        debug_assert!(self.awaited.is_none(), "Invariant: an engine that waits is not run");
        while !self.stalled {
            let next = if self.depth <= 1 {
                if !self.scheduler.has_requests() {
                    return Ok(Wake::OnArrival);
                }
                let batch = self.form_batch(now, context)?;
                self.last_formed_changed = batch.changed();
                batch
            } else {
                match self.fill_queue(now, context)? {
                    Some(oldest) => oldest,
                    None => return Ok(Wake::OnArrival),
                }
            };
            // Even a step that takes no time is waited for, so that the event loop keeps control.
            if next.end > now || next.step.is_some() {
                let end = next.end;
                self.awaited = Some(next);
                return Ok(Wake::At(end));
            }
            self.process_and_judge(next, now, context)?;
        }
        self.stalled = false;
        Ok(Wake::OnArrival)
    }

    /// Forms batches while the queue has room and there is something to gain, then takes the oldest. `None`
    /// if there is nothing to do at all.
    fn fill_queue(
        &mut self,
        now: SimTime,
        context: &mut EngineContext<'_>,
    ) -> Result<Option<InFlight>, SimError> {
        loop {
            self.last_formed_changed = false;
            if !self.scheduler.has_requests() {
                return Ok(self.queue.pop_front());
            }
            let batch = self.form_batch(now, context)?;
            let executes = batch.step.is_some();
            self.last_formed_changed = batch.changed();
            self.queue.push_back(batch);
            let has_room = self.queue.len() < self.depth && (executes || self.scheduler.has_requests());
            if !(has_room
                && (self.last_formed_changed || self.queue.iter().any(|batch| batch.step.is_some())))
            {
                return Ok(self.queue.pop_front());
            }
        }
    }

    /// Processes a batch and notes whether the engine is getting anywhere.
    fn process_and_judge(
        &mut self,
        batch: InFlight,
        now: SimTime,
        context: &mut EngineContext<'_>,
    ) -> Result<(), SimError> {
        let fruitful = self.process(batch, now, context)?
            || self.last_formed_changed
            || self.queue.iter().any(|batch| batch.step.is_some());
        self.fruitless_rounds = if fruitful { 0 } else { self.fruitless_rounds + 1 };
        if self.fruitless_rounds == FRUITLESS_ROUNDS {
            self.fruitless_rounds = 0;
            self.stalled = true;
        }
        Ok(())
    }

    /// Lets the scheduler form a batch, prices it, and records who is in it.
    fn form_batch(&mut self, now: SimTime, context: &mut EngineContext<'_>) -> Result<InFlight, SimError> {
        self.count_blocks(now);
        let mut batch = self.spare.pop().unwrap_or_default();
        let has_tiers = self.scheduler.kv_loads().is_some();
        if has_tiers {
            self.begin_kv_step(now)?;
        }
        self.scheduler.schedule(&mut batch.output);
        let kv = if has_tiers { self.end_kv_step(context.recorder)? } else { None };
        *context.work += batch.output.scheduled.len() as u64;
        // Blocks are taken here and only here, so no moment in between has more.
        self.counters.peak_used_blocks = self.counters.peak_used_blocks.max(self.used_blocks());
        batch.step = None;
        let mut row = self.shape_batch(&batch.output);
        let empty = batch.output.scheduled.is_empty();
        let start = now.max(self.device_free);
        let before = self.meter;
        let mut duration = SimDuration::ZERO;
        if !empty {
            let time = context.timer.step(&self.shape)?;
            let held_up = kv.map_or(SimDuration::ZERO, |kv| self.kv_delay(&kv, start, &time));
            duration = SimDuration(time.total.0 + held_up.0);
            self.meter.kv_ns += held_up.0;
            self.meter.cpu_ns += time.cpu_exposed.0;
            if row.prefill_tokens > 0 {
                self.meter.mixed_ns += (time.total - time.cpu_exposed).0;
            }
            self.counters.flops += time.flops;
            self.counters.bytes += time.bytes;
            self.counters.active_s += time.active_s;
        }
        batch.end = start.after(duration)?;
        batch.meter = self.meter;
        self.device_free = batch.end;
        self.counters.busy_ns += duration.0;
        if batch.changed() {
            self.record_activities(&batch.output, start, before, context.recorder);
            if let Some(log) = &mut context.recorder.decision_log {
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
        let mut row = StepRow {
            num_seqs: output.scheduled.len() as u32,
            num_running: self.scheduler.running().len() as u32,
            num_waiting: self.scheduler.num_waiting() as u32,
            free_blocks: self.scheduler.pool().num_free(),
            ..StepRow::default()
        };
        self.shape.clear();
        for entry in &output.scheduled {
            let context_after = entry.computed_before + entry.num_tokens;
            let prompt = self.scheduler.request(entry.slot).prompt_tokens();
            let is_prefill = entry.computed_before < prompt || entry.num_tokens > 1;
            self.shape.add(entry.num_tokens, context_after, is_prefill);
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

    /// Books what every running or preempted request does from `start` on.
    fn record_activities(
        &mut self,
        output: &SchedulerOutput,
        start: SimTime,
        meter: HostMeter,
        recorder: &mut Recorder,
    ) {
        for &slot in &output.preempted {
            self.counters.preemptions += 1;
            recorder.preempt(self.scheduler.request(slot).id(), start, meter);
        }
        for entry in &output.scheduled {
            let request = self.scheduler.request(entry.slot);
            let id = request.id();
            if entry.admission != Admission::Running {
                if entry.admission == Admission::New && self.scheduler.pool().caching() {
                    self.prefix_lookup_tokens += u64::from(request.prompt_tokens());
                    self.prefix_hit_tokens += u64::from(entry.computed_before);
                }
                recorder.admit(id, start, entry.computed_before);
            }
            recorder.enter(id, activity(entry, request.prompt_tokens()), start, meter);
        }
        if output.scheduled.len() < self.scheduler.running().len() {
            let this_call = self.scheduler.calls();
            for &slot in self.scheduler.running() {
                let request = self.scheduler.request(slot);
                if !request.was_scheduled_in(this_call) {
                    let wait = if request.prompt_is_unfinished() {
                        Activity::ChunkWait
                    } else {
                        Activity::DecodeWait
                    };
                    recorder.enter(request.id(), wait, start, meter);
                }
            }
        }
    }

    /// Processes the output of a batch. Returns whether anything came of it.
    fn process(
        &mut self,
        mut batch: InFlight,
        now: SimTime,
        context: &mut EngineContext<'_>,
    ) -> Result<bool, SimError> {
        self.count_blocks(now);
        self.scheduler.update(&batch.output, &mut self.outcome);
        self.counters.output_tokens += self.outcome.emitted.len() as u64;
        self.counters.finished += self.outcome.finished.len() as u64;
        if let Some(step) = batch.step {
            for &slot in &self.outcome.emitted {
                context.recorder.token(self.scheduler.request(slot).id(), step, now, batch.meter);
            }
        }
        for &slot in &self.outcome.finished {
            let id = self.scheduler.request(slot).id();
            context.recorder.finish(id, now, batch.meter);
            context.ended.push(id);
        }
        if let (Some(record), Some(log)) = (batch.record.take(), &mut context.recorder.decision_log) {
            log.end(record, &self.scheduler, &self.outcome);
        }
        for index in 0..self.outcome.retired.len() {
            self.scheduler.retire(self.outcome.retired[index]);
        }
        if batch.step.is_some() {
            self.watch_progress(now)?;
        }
        self.spare.push(batch);
        Ok(!self.outcome.emitted.is_empty())
    }

    /// Reports steps that go round in circles, as the real engine would with the same settings.
    fn watch_progress(&mut self, now: SimTime) -> Result<(), SimError> {
        if self.scheduler.take_progress() || !self.outcome.emitted.is_empty() {
            self.steps_without_progress = 0;
            return Ok(());
        }
        self.steps_without_progress += 1;
        if self.livelock_steps.is_none_or(|limit| self.steps_without_progress < limit) {
            return Ok(());
        }
        let requests: Vec<String> = self
            .scheduler
            .running()
            .iter()
            .copied()
            .chain(self.scheduler.waiting())
            .map(|slot| self.scheduler.request(slot))
            .filter(|request| request.num_preemptions() > 0)
            .take(8)
            .map(|request| format!("{} ({} times)", request.id().0, request.num_preemptions()))
            .collect();
        Err(SimError::Livelock {
            name: "endless preemption",
            replica: self.replica.0,
            time_ns: now.0,
            detail: format!(
                "{} steps in a row only recomputed what preemptions had dropped; preempted requests: {}; the real \
                 engine does the same: set scheduler_reserve_full_isl, enlarge the KV cache or lower max_num_seqs",
                self.steps_without_progress,
                requests.join(", ")
            ),
        })
    }

    fn used_blocks(&self) -> u32 {
        self.scheduler.pool().num_usable() - self.scheduler.pool().num_free()
    }

    /// Integrates the used blocks up to `now`; called before they change.
    fn count_blocks(&mut self, now: SimTime) {
        let elapsed = now.since(self.counted_until).0;
        self.counters.used_block_ns += u128::from(self.used_blocks()) * u128::from(elapsed);
        self.counted_until = now;
    }
}

fn activity(entry: &Scheduled, prompt_tokens: u32) -> Activity {
    if entry.recomputes {
        Activity::PreemptionRedo
    } else if entry.computed_before < prompt_tokens || entry.num_tokens > 1 {
        Activity::Prefill
    } else {
        Activity::Decode
    }
}
