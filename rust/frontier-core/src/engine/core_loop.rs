//! When batches are formed: the control flow of `EngineCore.step` and `step_with_batch_queue`
//! (`vllm/v1/engine/core.py`) on simulated time.
//!
//! With one batch in flight the engine forms a batch, waits for it, processes its output, and forms the next one at
//! the same instant. Asynchronous scheduling and pipelines keep more in flight: the next one is formed while the queue
//! is not full, otherwise the engine waits for the oldest.

use super::{EngineContext, EngineCore, InFlight, Wake};
use crate::error::SimError;
use crate::scheduler::BatchScheduler;
use crate::time::SimTime;

/// vLLM spins on empty batches where nothing can change; two in a row send the simulated engine to sleep.
const FRUITLESS_ROUNDS: u8 = 2;

impl EngineCore {
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
        if self.sglang.is_some() || self.fills_stages {
            return self.process(batch, now, context).map(drop);
        }
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
        if self.fills_stages {
            return self.fill_stages(now, context);
        }
        debug_assert!(self.awaited.is_none(), "Invariant: an engine that waits is not run");
        if let Some(turns) = self.sglang {
            return self.take_turns(turns, now, context);
        }
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
    pub(super) fn process_and_judge(
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
            self.stalled = !self.untried;
        }
        Ok(())
    }
}
