//! The closed set of schedulers.

use super::{
    Baseline, BatchScheduler, EngineFailure, Gauges, KvLoads, Scheduled, SchedulerOutput, SglangScheduler,
    StepOutcome, Submission, VllmScheduler,
};
use crate::error::SimError;
use crate::ids::{RequestId, Slot};
use crate::kvcache::BlockHash;
use crate::plan::SchedulerSpec;
use crate::time::SimTime;
use crate::workload::Segment;

/// The scheduler of an engine.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one per engine, and the usual one is spared a pointer"
)]
pub enum Scheduler {
    /// vLLM V1.
    Vllm(VllmScheduler),
    /// SGLang 0.5.3.
    Sglang(Box<SglangScheduler>),
    /// A scheduler that stands beside the engines' own.
    Baseline(Baseline),
}

/// Evaluates an expression on the scheduler, whichever it is.
macro_rules! on {
    ($any:expr, $scheduler:ident => $call:expr) => {
        match $any {
            Scheduler::Vllm($scheduler) => $call,
            Scheduler::Sglang($scheduler) => $call,
            Scheduler::Baseline($scheduler) => $call,
        }
    };
}

impl Scheduler {
    /// Returns the idle scheduler that `spec` asks for.
    pub fn new(spec: &SchedulerSpec) -> Self {
        match spec {
            SchedulerSpec::VllmV1(config) => Self::Vllm(VllmScheduler::new(config.clone())),
            SchedulerSpec::Sglang(config) => Self::Sglang(Box::new(SglangScheduler::new(config.clone()))),
            SchedulerSpec::Baseline(spec) => Self::Baseline(Baseline::new(spec)),
        }
    }

    /// Returns vLLM's scheduler, the only one with tiers of KV below the device, if it is that.
    #[inline]
    pub fn vllm(&self) -> Option<&VllmScheduler> {
        match self {
            Self::Vllm(scheduler) => Some(scheduler),
            Self::Sglang(_) | Self::Baseline(_) => None,
        }
    }

    /// Returns vLLM's scheduler, if it is that.
    #[inline]
    pub fn vllm_mut(&mut self) -> Option<&mut VllmScheduler> {
        match self {
            Self::Vllm(scheduler) => Some(scheduler),
            Self::Sglang(_) | Self::Baseline(_) => None,
        }
    }

    /// Returns `SGLang`'s scheduler, if it is that.
    #[inline]
    pub fn sglang(&self) -> Option<&SglangScheduler> {
        match self {
            Self::Sglang(scheduler) => Some(scheduler),
            Self::Vllm(_) | Self::Baseline(_) => None,
        }
    }

    /// Returns `SGLang`'s scheduler, if it is that.
    #[inline]
    pub fn sglang_mut(&mut self) -> Option<&mut SglangScheduler> {
        match self {
            Self::Sglang(scheduler) => Some(scheduler),
            Self::Vllm(_) | Self::Baseline(_) => None,
        }
    }

    /// Returns the tiers of KV below the device, if any.
    #[inline]
    pub fn kv_loads(&self) -> Option<&KvLoads> {
        self.vllm().and_then(VllmScheduler::kv_loads)
    }

    /// Returns the tiers of KV below the device, if any.
    #[inline]
    pub fn kv_loads_mut(&mut self) -> Option<&mut KvLoads> {
        self.vllm_mut().and_then(VllmScheduler::kv_loads_mut)
    }
}

impl BatchScheduler for Scheduler {
    fn add_request(&mut self, submission: &Submission<'_>) {
        on!(self, scheduler => scheduler.add_request(submission));
    }

    #[inline]
    fn schedule(&mut self, now: SimTime, out: &mut SchedulerOutput) {
        on!(self, scheduler => scheduler.schedule(now, out));
    }

    #[inline]
    fn update(&mut self, now: SimTime, batch: &SchedulerOutput, outcome: &mut StepOutcome) {
        on!(self, scheduler => scheduler.update(now, batch, outcome));
    }

    fn retire(&mut self, slot: Slot) {
        on!(self, scheduler => scheduler.retire(slot));
    }

    fn throttle_prefills(&mut self, throttle: bool) {
        on!(self, scheduler => scheduler.throttle_prefills(throttle));
    }

    #[inline]
    fn has_requests(&self) -> bool {
        on!(self, scheduler => scheduler.has_requests())
    }

    #[inline]
    fn gauges(&self) -> Gauges {
        on!(self, scheduler => scheduler.gauges())
    }

    fn caching(&self) -> bool {
        on!(self, scheduler => scheduler.caching())
    }

    fn cached_prefix(&self, segments: &[Segment], hashes: &[BlockHash]) -> u32 {
        on!(self, scheduler => scheduler.cached_prefix(segments, hashes))
    }

    fn take_progress(&mut self) -> bool {
        on!(self, scheduler => scheduler.take_progress())
    }

    #[inline]
    fn take_failure(&mut self) -> Option<EngineFailure> {
        on!(self, scheduler => scheduler.take_failure())
    }

    fn visit_left_out(&self, visit: &mut dyn FnMut(RequestId, bool)) {
        on!(self, scheduler => scheduler.visit_left_out(visit));
    }

    fn is_in_flight_elsewhere(&self, entry: &Scheduled) -> bool {
        on!(self, scheduler => scheduler.is_in_flight_elsewhere(entry))
    }

    fn visit_preempted(&self, visit: &mut dyn FnMut(RequestId, u32)) {
        on!(self, scheduler => scheduler.visit_preempted(visit));
    }

    fn visit_waiting(&self, visit: &mut dyn FnMut(RequestId)) {
        on!(self, scheduler => scheduler.visit_waiting(visit));
    }

    fn check_integrity(&self) -> Result<(), SimError> {
        on!(self, scheduler => scheduler.check_integrity())
    }
}
