//! When batches are formed for a pipeline by the schedulers that stand beside the engines' own: whenever fewer are
//! under way than there are stages, so at arrivals too (Vidur's `BaseReplicaScheduler.on_schedule`). vLLM's loop waits
//! for its oldest batch instead.

use super::{EngineContext, EngineCore, Wake};
use crate::error::SimError;
use crate::scheduler::BatchScheduler;
use crate::time::SimTime;

impl EngineCore {
    /// Tells whether a request that arrives now may be scheduled before the awaited batch is done.
    pub fn hears_arrivals(&self) -> bool {
        self.awaited.is_none() || (self.fills_stages && self.num_under_way() < self.depth)
    }

    /// Forms batches while there are fewer than stages, and awaits the oldest if none is awaited yet.
    ///
    /// # Errors
    /// As [`Self::run_until_blocked`].
    pub(super) fn fill_stages(
        &mut self,
        now: SimTime,
        context: &mut EngineContext<'_>,
    ) -> Result<Wake, SimError> {
        while !self.stalled && self.num_under_way() < self.depth && self.scheduler.has_requests() {
            let batch = self.form_batch(now, context)?;
            self.last_formed_changed = batch.changed();
            if batch.executes() {
                self.queue.push_back(batch);
            } else if self.num_under_way() > 0 {
                // What is out of reach now may be within it when a batch ends.
                self.process(batch, now, context)?;
                break;
            } else {
                self.process_and_judge(batch, now, context)?;
            }
        }
        self.stalled = false;
        if self.awaited.is_some() {
            return Ok(Wake::OnArrival);
        }
        self.awaited = self.queue.pop_front();
        Ok(self.awaited.as_ref().map_or(Wake::OnArrival, |oldest| Wake::At(oldest.end)))
    }

    fn num_under_way(&self) -> usize {
        self.queue.len() + usize::from(self.awaited.is_some())
    }
}
