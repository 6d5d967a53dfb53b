//! Data-parallel ranks in lock step: engines that batch apart and meet in the experts of every layer.
//!
//! Mirrors `DPEngineCoreProc.run_busy_loop` (`vllm/v1/engine/core.py`, 0.11 to 0.32) on simulated time. While any rank
//! has work, every rank steps; one without work computes a dummy batch, because the others' collectives need it. A step
//! of all ranks takes as long as the slowest needs. Ranks agree only now and then on whether any has work left: until
//! then they spin on dummy steps. What lies between two such ends is a *wave*; a new request starts the next one on
//! all ranks.
//!
//! A rank without work has called for its next dummy as soon as the present one is launched, and waits in it for the
//! others. So a request that reaches an idle rank during a wave starts with the step after the next.
//!
//! Real ranks hold back slightly differently when several batches are in flight; here all form their batches at the
//! same moment.

use std::collections::VecDeque;

use crate::engine::{EngineContext, EngineCore, InFlight, Wake};
use crate::error::SimError;
use crate::fidelity::{BatchShape, StepOrigin, StepTime};
use crate::metrics::StepRow;
use crate::plan::LockStepSpec;
use crate::scheduler::BatchScheduler;
use crate::time::SimTime;

/// Rounds in which every rank only has a dummy, although requests wait, after which the group sleeps until another
/// request arrives: the real ranks would spin on.
const FRUITLESS_ROUNDS: u8 = 2;

/// A step of all ranks.
#[derive(Debug, Default)]
struct GroupStep {
    end: SimTime,
    /// By rank; none for a dummy.
    batches: Vec<Option<InFlight>>,
    /// Requests waited, and all ranks that have some tried in vain to form a batch.
    in_vain: bool,
}

impl GroupStep {
    fn executes(&self) -> bool {
        self.batches.iter().flatten().any(InFlight::executes)
    }
}

/// The ranks of one replica in lock step.
#[derive(Debug)]
pub struct LockStepGroup {
    spec: LockStepSpec,
    /// Steps in flight at most.
    depth: usize,
    queue: VecDeque<GroupStep>,
    awaited: Option<GroupStep>,
    /// A wave is on.
    running: bool,
    /// Steps of this wave.
    steps_in_wave: u64,
    /// Steps so far, dummies included.
    num_steps: u64,
    dummies: u64,
    /// Ranks that have called for a dummy in the next step already.
    committed: Vec<bool>,
    fruitless_rounds: u8,
    stalled: bool,
    /// Ends of steps that will be announced, although the steps were dropped.
    stale_ends: u32,
    /// A rank got something since all of them formed a batch last.
    untried: bool,
    shapes: Vec<BatchShape>,
    /// Time of each pipeline stage in the step priced last, in seconds.
    stages_s: Vec<f64>,
    /// Rows of each rank in that step, padding included.
    padded_tokens: Vec<u32>,
    drafts: Vec<Option<(InFlight, StepRow)>>,
    spare: Vec<GroupStep>,
}

impl LockStepGroup {
    /// Returns an idle group of `ranks` engines that keep `depth` steps in flight; `batch` is empty.
    pub fn new(spec: LockStepSpec, ranks: usize, depth: usize, batch: &BatchShape) -> Self {
        Self {
            spec,
            depth,
            queue: VecDeque::new(),
            awaited: None,
            running: false,
            steps_in_wave: 0,
            num_steps: 0,
            dummies: 0,
            committed: vec![false; ranks],
            fruitless_rounds: 0,
            stalled: false,
            stale_ends: 0,
            untried: false,
            shapes: vec![batch.clone(); ranks],
            stages_s: Vec::new(),
            padded_tokens: Vec::with_capacity(ranks),
            drafts: Vec::with_capacity(ranks),
            spare: Vec::new(),
        }
    }

    /// Tells whether the group waits for a step to end.
    pub fn is_waiting(&self) -> bool {
        self.awaited.is_some()
    }

    /// Returns the dummy batches of all ranks so far.
    pub fn num_dummies(&self) -> u64 {
        self.dummies
    }

    /// Drops all steps under way, when the ranks go down.
    pub fn crash(&mut self) {
        self.stale_ends += u32::from(self.awaited.take().is_some());
        self.queue.clear();
        (self.running, self.stalled, self.fruitless_rounds, self.steps_in_wave) = (false, false, 0, 0);
        self.committed.fill(false);
    }

    /// Tells whether the end of a step that is announced for `now` is one of a step that was dropped.
    pub fn drops_end(&mut self, now: SimTime) -> bool {
        let stale = self.stale_ends > 0 && self.awaited.as_ref().is_none_or(|step| step.end != now);
        self.stale_ends -= u32::from(stale);
        stale
    }

    /// Notes that a rank got a request, or news of a transfer.
    pub fn wake(&mut self) {
        self.stalled = false;
        self.untried = true;
    }

    /// Processes the outputs of the awaited step, which ends `now`; `engines` are the ranks.
    ///
    /// # Errors
    /// As [`EngineCore::complete`].
    pub fn complete(
        &mut self,
        now: SimTime,
        engines: &mut [EngineCore],
        context: &mut EngineContext<'_>,
    ) -> Result<(), SimError> {
        let Some(mut step) = self.awaited.take() else {
            return Err(SimError::Invariant {
                what: "a group of ranks completed a step it did not await".into(),
            });
        };
        let in_vain = step.in_vain && !self.untried && !self.queue.iter().any(GroupStep::executes);
        self.fruitless_rounds = if in_vain { self.fruitless_rounds + 1 } else { 0 };
        if self.fruitless_rounds == FRUITLESS_ROUNDS {
            self.fruitless_rounds = 0;
            self.stalled = true;
        }
        for (engine, batch) in engines.iter_mut().zip(&mut step.batches) {
            if let Some(batch) = batch.take() {
                engine.process(batch, now, context)?;
            }
        }
        self.spare.push(step);
        if !self.running {
            return Ok(());
        }
        let agree = self.steps_in_wave.is_multiple_of(u64::from(self.spec.sync_interval))
            || (self.spec.sync_at_first_step && self.steps_in_wave == 1);
        if agree && !engines.iter().any(has_unfinished) {
            self.running = false;
        }
        Ok(())
    }

    /// Forms steps until the group has to wait.
    ///
    /// # Errors
    /// As [`EngineCore::run_until_blocked`].
    pub fn run_until_blocked(
        &mut self,
        now: SimTime,
        engines: &mut [EngineCore],
        context: &mut EngineContext<'_>,
    ) -> Result<Wake, SimError> {
        debug_assert!(self.awaited.is_none(), "Invariant: a group that waits is not run");
        while !std::mem::take(&mut self.stalled) {
            self.awaited = self.fill_queue(now, engines, context)?;
            let Some(step) = &self.awaited else { return Ok(Wake::OnArrival) };
            if step.end >= now {
                return Ok(Wake::At(step.end));
            }
            // Left behind when the group fell asleep.
            self.complete(now, engines, context)?;
        }
        Ok(Wake::OnArrival)
    }

    /// Forms steps while the queue has room and some rank computes something, then takes the oldest. `None` if there
    /// is nothing to do at all.
    fn fill_queue(
        &mut self,
        now: SimTime,
        engines: &mut [EngineCore],
        context: &mut EngineContext<'_>,
    ) -> Result<Option<GroupStep>, SimError> {
        loop {
            if !self.running {
                if !engines.iter().any(has_unfinished) {
                    return Ok(self.queue.pop_front());
                }
                self.running = true;
                self.steps_in_wave = 0;
                self.committed.fill(false);
            }
            let step = self.form_step(now, engines, context)?;
            let executes = step.executes();
            self.queue.push_back(step);
            if !executes || self.queue.len() >= self.depth {
                return Ok(self.queue.pop_front());
            }
        }
    }

    /// Lets every rank form a batch, prices all of them together, and records them.
    fn form_step(
        &mut self,
        now: SimTime,
        engines: &mut [EngineCore],
        context: &mut EngineContext<'_>,
    ) -> Result<GroupStep, SimError> {
        self.steps_in_wave += 1;
        let interval = u64::from(self.spec.prefill_schedule_interval);
        let throttle = interval > 1 && !self.steps_in_wave.is_multiple_of(interval);
        let (mut mixed, mut executes, mut tried, mut held_back) = (false, false, false, false);
        self.drafts.clear();
        for (rank, engine) in engines.iter_mut().enumerate() {
            let committed = std::mem::take(&mut self.committed[rank]);
            let unfinished = has_unfinished(engine);
            held_back |= committed && unfinished;
            tried |= !committed && unfinished;
            let draft = if committed || !engine.scheduler().has_requests() {
                None
            } else {
                engine.throttle_prefills(throttle);
                Some(engine.draft(now, context.work, context.recorder)?)
            };
            match &draft {
                Some((batch, _)) if batch.executes() => {
                    executes = true;
                    mixed |= engine.is_mixed();
                    self.shapes[rank].clone_from(engine.shape());
                }
                _ => {
                    self.dummies += 1;
                    self.shapes[rank].clear();
                    self.shapes[rank].add(self.spec.dummy_tokens, self.spec.dummy_tokens, false);
                }
            }
            self.committed[rank] = !unfinished;
            self.drafts.push(draft);
        }
        self.untried &= held_back;
        // Loads of experts are those of a step of all ranks.
        let origin = engines.first().map(EngineCore::origin).unwrap_or_default();
        context.timer.set_origin(StepOrigin { step: self.num_steps, ..origin });
        self.num_steps += 1;
        let time = self.price(context)?;
        let share = 1.0 / engines.len() as f64;
        let mut step = self.spare.pop().unwrap_or_default();
        step.in_vain = tried && !held_back && !executes;
        step.batches.clear();
        for (rank, (engine, draft)) in engines.iter_mut().zip(self.drafts.drain(..)).enumerate() {
            let time = StepTime { padded_tokens: self.padded_tokens[rank], ..time };
            // The pipelines of all ranks are passed by the same steps, so they agree on when.
            let launch = engine.pass(now, &time, &self.stages_s, share, mixed)?;
            step.end = launch.end();
            step.batches.push(if let Some((batch, row)) = draft {
                Some(engine.launch(batch, row, &launch, context.recorder))
            } else {
                engine.book(&launch);
                None
            });
        }
        Ok(step)
    }

    /// Returns how long the step takes, and notes its stages and rows. Ranks whose step time knows no data parallelism
    /// (the linear clock, models without experts) are priced apart, once each, and wait for the slowest.
    fn price(&mut self, context: &mut EngineContext<'_>) -> Result<StepTime, SimError> {
        self.padded_tokens.clear();
        if context.timer.num_batches() == self.shapes.len() {
            let time = context.timer.step_all(&self.shapes)?;
            self.padded_tokens.extend(context.timer.padded_tokens());
            self.note_stages(context.timer.stages_s());
            return Ok(time);
        }
        let mut slowest: Option<StepTime> = None;
        let (mut flops, mut bytes, mut active_s) = (0.0, 0.0, 0.0);
        for rank in 0..self.shapes.len() {
            let time = context.timer.step(&self.shapes[rank])?;
            self.padded_tokens.push(time.padded_tokens);
            flops += time.flops;
            bytes += time.bytes;
            active_s += time.active_s;
            if slowest.is_none_or(|slowest| time.total > slowest.total) {
                slowest = Some(time);
                self.note_stages(context.timer.stages_s());
            }
        }
        Ok(StepTime { flops, bytes, active_s, ..slowest.unwrap_or_default() })
    }

    fn note_stages(&mut self, stages_s: &[f64]) {
        self.stages_s.clear();
        self.stages_s.extend_from_slice(stages_s);
    }
}

fn has_unfinished(engine: &EngineCore) -> bool {
    let gauges = engine.scheduler().gauges();
    gauges.num_running > 0 || gauges.num_waiting > 0
}
