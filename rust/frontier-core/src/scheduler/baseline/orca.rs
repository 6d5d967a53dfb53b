//! Orca (Yu et al., OSDI 2022, algorithm 1): batches change at every iteration. All running requests take part in
//! each; waiting ones join, whole prompts at once, while the batch and the KV that is reserved for their longest
//! possible length have room. Nobody is ever preempted.
//!
//! How much is reserved is a setting: the vLLM paper (section 6.1) compares with Orca (Max), (Pow2) and (Oracle).

use super::room::Room;
use crate::plan::baseline::{BaselineSpec, OrcaSpec};
use crate::scheduler::SchedulerOutput;

#[derive(Clone, Debug)]
pub(super) struct Orca {
    rules: OrcaSpec,
    spec: BaselineSpec,
}

impl Orca {
    pub(super) fn new(rules: OrcaSpec, spec: BaselineSpec) -> Self {
        Self { rules, spec }
    }

    pub(super) fn form(&self, room: &mut Room, out: &mut SchedulerOutput) {
        for position in 0..room.running().len() {
            room.schedule(room.running()[position], 1, out);
        }
        while room.num_running() < self.rules.max_batch_size {
            let Some(slot) = room.waiting.front() else { break };
            let request = room.request(slot);
            let prompt = request.prompt_tokens;
            let total = prompt + request.max_tokens;
            let reserved = self.spec.orca_reservation(self.rules.reservation, prompt, total);
            if room.blocks_for(reserved) > room.pool.num_free() {
                break;
            }
            room.admit(slot, 0, reserved);
            room.schedule(slot, prompt, out);
        }
    }
}
