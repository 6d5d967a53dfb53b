//! Requests that nothing will ever move.

use super::Cluster;
use crate::error::SimError;
use crate::ids::RequestId;
use crate::plan::SchedulerSpec;
use crate::scheduler::{BatchScheduler, Gauges};
use crate::time::SimTime;

impl Cluster {
    /// Calls `visit` with a sentence on every request that waits here.
    pub fn visit_stuck(&self, visit: &mut dyn FnMut(RequestId, String)) {
        for (number, engine) in (self.first..).zip(&self.engines) {
            let Gauges { num_free, num_usable, .. } = engine.scheduler().gauges();
            engine.scheduler().visit_waiting(&mut |id| {
                visit(
                    id,
                    format!(
                        "request {} waits on replica {number} for blocks ({num_free} of {num_usable} are free)",
                        id.0
                    ),
                );
            });
        }
    }

    /// Reports an SGLang engine whose queue nothing will ever move: it waits forever.
    ///
    /// # Errors
    /// [`SimError::EngineFailure`].
    pub fn check_no_engine_hangs(&self, now: SimTime) -> Result<(), SimError> {
        if !matches!(self.scheduler, SchedulerSpec::Sglang(_)) {
            return Ok(());
        }
        for (replica, engine) in (self.first..).zip(&self.engines) {
            let scheduler = engine.scheduler();
            if !scheduler.has_requests() {
                continue;
            }
            let Gauges { num_free, num_usable, .. } = scheduler.gauges();
            let mut waiting = Vec::new();
            scheduler.visit_waiting(&mut |id| waiting.push(id.0));
            let first = waiting.first().map_or_else(|| "none".to_owned(), u32::to_string);
            return Err(SimError::EngineFailure {
                name: "hang",
                replica,
                time_ns: now.0,
                detail: format!(
                    "{} requests wait and nothing will ever happen ({num_free} of {num_usable} KV slots are free); the \
                     first is request {first}, which is never admitted; enlarge the pool or shorten the output",
                    waiting.len()
                ),
            });
        }
        Ok(())
    }
}
