//! Schedulers that stand beside the engines' own: each a small set of rules in a file of its own, over one room of
//! requests, blocks and queues.
//!
//! Without a pipeline, a batch is formed when the one before is done. With one, as many batches are under way as there
//! are stages, and a request in one of them is out of reach until its output is there: neither scheduled nor preempted.
//! Preemption frees the blocks of a request and recomputes them later.

mod orca;
mod room;
mod sarathi;
mod static_batching;
mod tensorrt_llm;
mod vllm_v0;

use self::orca::Orca;
use self::room::Room;
use self::sarathi::Sarathi;
use self::static_batching::StaticBatching;
use self::tensorrt_llm::TensorrtLlm;
use self::vllm_v0::VllmV0;
use super::live::{LiveRequest, Submission};
use super::{BatchScheduler, Gauges, Scheduled, SchedulerOutput, StepOutcome};
use crate::error::SimError;
use crate::ids::{RequestId, Slot};
use crate::kvcache::BlockHash;
use crate::plan::baseline::{BaselineSpec, RulesSpec};
use crate::time::SimTime;
use crate::workload::Segment;

/// A baseline scheduler.
#[derive(Clone, Debug)]
pub struct Baseline {
    room: Room,
    rules: Rules,
}

#[derive(Clone, Debug)]
enum Rules {
    VllmV0(VllmV0),
    Sarathi(Sarathi),
    Orca(Orca),
    Static(StaticBatching),
    TensorrtLlm(TensorrtLlm),
}

impl Baseline {
    /// Returns an idle scheduler.
    pub fn new(spec: &BaselineSpec) -> Self {
        let reuse = matches!(&spec.rules, RulesSpec::TensorrtLlm(rules) if rules.enable_block_reuse);
        Self {
            room: Room::new(spec, reuse),
            rules: match &spec.rules {
                RulesSpec::VllmV0(rules) => Rules::VllmV0(VllmV0::new(*rules, spec)),
                RulesSpec::Sarathi(rules) => Rules::Sarathi(Sarathi::new(*rules, spec)),
                RulesSpec::Orca(rules) => Rules::Orca(Orca::new(*rules, spec.clone())),
                RulesSpec::Static(rules) => Rules::Static(StaticBatching::new(*rules)),
                RulesSpec::TensorrtLlm(rules) => Rules::TensorrtLlm(TensorrtLlm::new(*rules)),
            },
        }
    }

    /// Returns the running requests in the scheduler's order.
    pub fn running(&self) -> &[Slot] {
        self.room.running()
    }

    /// Returns the waiting requests in queue order.
    pub fn waiting(&self) -> impl Iterator<Item = Slot> {
        self.room.waiting.iter()
    }

    /// Returns the state of a live request.
    pub fn request(&self, slot: Slot) -> &LiveRequest {
        self.room.request(slot)
    }
}

impl BatchScheduler for Baseline {
    fn add_request(&mut self, submission: &Submission<'_>) {
        self.room.add(submission);
    }

    fn schedule(&mut self, now: SimTime, out: &mut SchedulerOutput) {
        let room = &mut self.room;
        room.begin(now, out);
        match &mut self.rules {
            Rules::VllmV0(rules) => rules.form(room, out),
            Rules::Sarathi(rules) => rules.form(room, out),
            Rules::Orca(rules) => rules.form(room, out),
            Rules::Static(rules) => rules.form(room, out),
            Rules::TensorrtLlm(rules) => rules.form(room, out),
        }
        room.commit(out);
    }

    fn update(&mut self, _now: SimTime, batch: &SchedulerOutput, outcome: &mut StepOutcome) {
        match &mut self.rules {
            Rules::Static(rules) => rules.update(&mut self.room, batch, outcome),
            _ => self.room.update(batch, outcome),
        }
    }

    fn retire(&mut self, slot: Slot) {
        self.room.retire(slot);
    }

    fn has_requests(&self) -> bool {
        self.room.has_requests()
    }

    fn gauges(&self) -> Gauges {
        self.room.gauges()
    }

    fn caching(&self) -> bool {
        self.room.pool.caching()
    }

    fn cached_prefix(&self, _segments: &[Segment], hashes: &[BlockHash]) -> u32 {
        self.room.pool.cached_prefix(hashes) as u32 * self.room.block_size()
    }

    fn take_progress(&mut self) -> bool {
        self.room.take_progress()
    }

    /// A request is in one batch under way at most.
    fn is_in_flight_elsewhere(&self, _entry: &Scheduled) -> bool {
        false
    }

    fn visit_left_out(&self, visit: &mut dyn FnMut(RequestId, bool)) {
        self.room.visit_left_out(visit);
    }

    fn visit_preempted(&self, visit: &mut dyn FnMut(RequestId, u32)) {
        self.room.visit_preempted(visit);
    }

    fn visit_waiting(&self, visit: &mut dyn FnMut(RequestId)) {
        self.room.waiting.iter().for_each(|slot| visit(self.room.request(slot).id));
    }

    fn check_integrity(&self) -> Result<(), SimError> {
        self.room.check_integrity()
    }
}
