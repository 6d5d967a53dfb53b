//! Engines that go down, and engines that run slow.

use super::EngineCore;
use crate::error::SimError;
use crate::fidelity::StepTime;
use crate::ids::RequestId;
use crate::metrics::Recorder;
use crate::plan::SchedulerSpec;
use crate::scheduler::{BatchScheduler, Scheduler};
use crate::time::{SimDuration, SimTime};

impl EngineCore {
    /// Loses all requests, blocks and batches, and starts anew as `scheduler` says. Returns the requests that lived
    /// here.
    pub fn crash(
        &mut self,
        now: SimTime,
        scheduler: &SchedulerSpec,
        recorder: &mut Recorder,
    ) -> Vec<RequestId> {
        let mut lost = Vec::new();
        match &self.scheduler {
            Scheduler::Vllm(scheduler) => scheduler.visit_live(&mut |id| lost.push(id)),
            Scheduler::Sglang(scheduler) => scheduler.visit_live(&mut |id| lost.push(id)),
            Scheduler::Baseline(_) => {}
        }
        if let Some(turns) = &mut self.sglang {
            turns.start_anew();
        }
        self.count_blocks(now);
        self.lost_kv_tiers = self.kv_tier_counters();
        self.scheduler = Scheduler::new(scheduler);
        self.replace_kv_tiers();
        self.handovers.forget_all();
        self.take_up_part();
        self.stale_ends += u32::from(self.awaited.take().is_some());
        self.queue.clear();
        self.pipeline.stop(now);
        self.num_steps -= recorder.drop_steps_after(self.replica, now);
        (self.stalled, self.fruitless_rounds, self.steps_without_progress) = (false, 0, 0);
        lost
    }

    /// Takes out one request, which ends or starts over elsewhere. Returns whether it was here.
    pub fn abort(&mut self, now: SimTime, id: RequestId) -> bool {
        self.count_blocks(now);
        let slot = match &mut self.scheduler {
            Scheduler::Vllm(scheduler) => scheduler.abort(id),
            Scheduler::Sglang(scheduler) => scheduler.abort(id).then_some(None),
            Scheduler::Baseline(_) => None,
        };
        let Some(slot) = slot else { return false };
        if let Some(turns) = &mut self.sglang {
            turns.arrived = true;
        }
        if let Some(slot) = slot {
            self.scheduler.retire(slot);
        }
        self.stalled = false;
        self.untried = true;
        true
    }

    /// Tells whether the end of a step that is announced for `now` is one of a step that was dropped.
    pub fn drops_end(&mut self, now: SimTime) -> bool {
        let stale = self.stale_ends > 0 && self.awaited.as_ref().is_none_or(|batch| batch.end != now);
        self.stale_ends -= u32::from(stale);
        stale
    }

    /// Lets steps take `factor` times as long from now on.
    pub fn slow_down(&mut self, factor: f64) {
        self.slowdown = factor;
    }

    /// Returns a step's time as this engine takes it, and those of its stages.
    #[inline]
    pub(super) fn slowed(
        &self,
        time: &StepTime,
        stages_s: &[f64],
    ) -> Result<Option<(StepTime, Vec<f64>)>, SimError> {
        if self.slowdown <= 1.0 {
            return Ok(None);
        }
        let total = SimDuration::from_seconds(time.total.as_seconds() * self.slowdown)?;
        let stages = stages_s.iter().map(|seconds| seconds * self.slowdown).collect();
        Ok(Some((StepTime { total, ..*time }, stages)))
    }

    /// Tells whether the engine has nothing to do, nor anything to keep.
    pub fn is_empty(&self) -> bool {
        self.awaited.is_none() && !self.scheduler.has_requests()
    }
}
