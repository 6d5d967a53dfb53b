//! SGLang's event loop on simulated time (`event_loop_normal` and `event_loop_overlap`, `scheduler.py`, 0.5.3).
//!
//! One turn chooses a batch and launches it. Then the synchronous loop waits for its results, the overlapped one for
//! those of the batch before, if there is one; a turn without anything to launch or to wait for is idle.
//!
//! The loops of servers with a part in hand-overs (`disaggregation/{prefill,decode}.py`) are the same, but for what they
//! look at: a decode server first at its queues, a prefill server last at what has been sent. Idle ones look all the time.

use super::{EngineContext, EngineCore, Wake};
use crate::error::SimError;
use crate::frontend::Output;
use crate::metrics::Activity;
use crate::plan::{LimitSpec, SchedulerSpec};
use crate::scheduler::{BatchScheduler, CarriedToken, SglangScheduler};
use crate::time::SimTime;

/// Turns in a row without a batch after which nothing changes until a request arrives.
const FRUITLESS_TURNS: u8 = 3;

/// Where SGLang's loop stands.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts, not a state")]
pub(super) struct SglangLoop {
    overlap: bool,
    /// Turns in a row that launched nothing.
    empty_turns: u8,
    started: bool,
    /// A turn that launched nothing waits for the results of the batch before it.
    closing: bool,
    /// A request arrived since the last turn began.
    pub(super) arrived: bool,
    /// No turn begins once so many batches were launched.
    max_steps: Option<u64>,
}

impl SglangLoop {
    /// Returns the loop of an engine that has not taken a turn, none for other engines.
    pub(super) fn new(spec: &SchedulerSpec, limits: &LimitSpec) -> Option<Self> {
        let SchedulerSpec::Sglang(config) = spec else { return None };
        Some(Self {
            overlap: !config.disable_overlap_schedule,
            empty_turns: 0,
            started: false,
            closing: false,
            arrived: false,
            max_steps: limits.max_steps,
        })
    }

    /// Starts over, as a server that went down does.
    pub(super) fn start_anew(&mut self) {
        (self.empty_turns, self.closing, self.arrived) = (0, false, false);
    }
}

impl EngineCore {
    /// Takes turns until the engine has to wait.
    ///
    /// # Errors
    /// As [`EngineCore::run_until_blocked`].
    pub(super) fn take_turns(
        &mut self,
        mut turns: SglangLoop,
        now: SimTime,
        context: &mut EngineContext<'_>,
    ) -> Result<Wake, SimError> {
        if !std::mem::replace(&mut turns.started, true) && now > SimTime::ZERO {
            // The engine was up before the first request, and found nothing to do.
            turns.empty_turns = 1;
        }
        let wake = self.turn_until_blocked(&mut turns, now, context);
        self.sglang = Some(turns);
        wake
    }

    fn turn_until_blocked(
        &mut self,
        turns: &mut SglangLoop,
        now: SimTime,
        context: &mut EngineContext<'_>,
    ) -> Result<Wake, SimError> {
        if std::mem::take(&mut turns.closing)
            && !turns.arrived
            && !self.was_left_something(turns)
            && !self.goes_on(turns)
        {
            return Ok(Wake::OnArrival);
        }
        while turns.max_steps.is_none_or(|limit| self.num_steps < limit) {
            turns.arrived = false;
            let batch = self.form_batch(now, context)?;
            let launched = batch.step.is_some();
            let let_in = self.give_carried(now, context);
            turns.empty_turns = if launched || let_in { 0 } else { turns.empty_turns.saturating_add(1) };
            let before = self.queue.pop_front();
            let awaited = match (launched, turns.overlap) {
                (true, true) => {
                    self.queue.push_back(batch);
                    before
                }
                (true, false) => Some(batch),
                (false, _) => {
                    self.spare.push(batch);
                    before
                }
            };
            if let Some(awaited) = awaited {
                let end = awaited.end;
                self.awaited = Some(awaited);
                turns.closing = !launched && !let_in;
                return Ok(Wake::At(end));
            }
            if let Some(scheduler) = self.scheduler.sglang_mut() {
                scheduler.end_turn();
            }
            self.report_failure(now)?;
            self.was_left_something(turns);
            if !launched && !self.goes_on(turns) {
                break;
            }
        }
        Ok(Wake::OnArrival)
    }

    /// Tells whether the end of a turn brought memory back, with which the next turn may do more.
    fn was_left_something(&mut self, turns: &mut SglangLoop) -> bool {
        let released = self.scheduler.sglang_mut().is_some_and(SglangScheduler::take_released);
        if released {
            turns.empty_turns = 0;
        }
        released
    }

    /// Gives requests that joined a decode server the token that came with their KV. Returns whether there were any.
    fn give_carried(&mut self, now: SimTime, context: &mut EngineContext<'_>) -> bool {
        let Some(scheduler) = self.scheduler.sglang_mut() else { return false };
        let carried = scheduler.take_carried();
        if carried.is_empty() {
            return false;
        }
        if let Some(log) = &mut context.recorder.decision_log {
            log.carried(now, self.replica, &carried);
        }
        for CarriedToken { id, computed, is_new, is_last } in carried {
            context.recorder.admit(id, now, computed);
            if is_new {
                self.counters.output_tokens += 1;
                context.recorder.carried_token(id, now, self.meter);
                if let Some(outputs) = &mut context.outputs {
                    outputs.push(Output { request: id, tokens: 1 });
                }
            }
            if is_last {
                self.counters.finished += 1;
                context.recorder.finish(id, now, self.meter);
                context.ended.push(id);
            } else {
                context.recorder.enter(id, Activity::DecodeWait, now, self.meter);
            }
        }
        true
    }

    /// Tells whether another turn may find what the last one did not.
    fn goes_on(&self, turns: &SglangLoop) -> bool {
        turns.empty_turns < FRUITLESS_TURNS && self.scheduler.has_requests()
    }

    /// Reports how the real engine fails in what was just done: at once in simulations, and in replays, whose failures
    /// are an outcome, where it stops.
    pub(super) fn report_failure(&mut self, now: SimTime) -> Result<(), SimError> {
        match self.scheduler.take_failure() {
            Some(failure) if failure.stops || self.refuses_failures => Err(SimError::EngineFailure {
                name: failure.name,
                replica: self.replica.0,
                time_ns: now.0,
                detail: failure.detail,
            }),
            _ => Ok(()),
        }
    }
}
