//! Requests that leave before their end: aborted by their clients, or because the engine is gone
//! (`Scheduler.finish_requests` in `vllm/v1/core/sched/scheduler.py`).

use super::VllmScheduler;
use super::caching::release_blocks;
use crate::ids::{RequestId, Slot};
use crate::scheduler::live::{Handover, Status};

impl VllmScheduler {
    /// Takes a request out, wherever it stands, and frees its blocks; output in flight is dropped when it comes.
    /// Returns false if it is not here, else its slot if nothing refers to it any more.
    pub fn abort(&mut self, id: RequestId) -> Option<Option<Slot>> {
        let slot = self.find(id)?;
        self.running.retain(|&other| other != slot);
        self.waiting.retain(|&other| other != slot);
        self.handovers.forget(slot);
        if let Some(loads) = &mut self.kv_loads {
            loads.forget(slot);
        }
        let request = &mut self.requests[slot.index()];
        if matches!(request.status, Status::Waiting | Status::Preempted) {
            self.waiting.ends_waiting(request);
        }
        let was_kept = request.status == Status::Finished;
        request.status = Status::Finished;
        request.prefill_in_flight = false;
        request.handover = Handover::Neither;
        if was_kept {
            release_blocks(&mut self.pool, request);
        } else {
            self.handovers.release(&mut self.pool, request);
        }
        self.newly_finished = true;
        Some((request.num_in_flight == 0).then_some(slot))
    }

    /// Calls `visit` with every request that lives here, those that ended and wait for their KV to be read included.
    pub fn visit_live(&self, visit: &mut dyn FnMut(RequestId)) {
        for slot in self.live() {
            visit(self.requests[slot.index()].id);
        }
    }

    fn find(&self, id: RequestId) -> Option<Slot> {
        self.live().find(|slot| self.requests[slot.index()].id == id)
    }

    fn live(&self) -> impl Iterator<Item = Slot> {
        self.running
            .iter()
            .copied()
            .chain(self.kv_waiting())
            .chain(self.waiting())
            .chain(self.handovers.kept())
    }
}
