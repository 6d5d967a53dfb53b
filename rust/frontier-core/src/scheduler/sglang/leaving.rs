//! Requests that leave a server with a part in hand-overs before their end (`Scheduler.abort_request`, `scheduler.py`).
//! Where the real one waits for a queue to be looked at, or for a step's end, memory comes back at once.

use super::{Part, SglangScheduler};
use crate::ids::{RequestId, Slot};

impl SglangScheduler {
    /// Takes a request out, wherever it stands. Returns false if it is not here, or on servers without a part.
    pub fn abort(&mut self, id: RequestId) -> bool {
        let found = match self.part {
            Part::Both => Ok(false),
            Part::Prompts => self.abort_prompt(id),
            Part::Outputs => self.abort_output(id),
        };
        found.unwrap_or_else(|failure| {
            self.note(failure);
            true
        })
    }

    /// Nothing that is still to come for a request counts.
    pub(super) fn end_aborted(&mut self, slot: Slot) {
        let request = &mut self.requests[slot.index()];
        request.aborted = true;
        request.finished = true;
        if std::mem::take(&mut request.admitted) {
            self.num_live -= 1;
        }
        self.retiring.push(slot);
    }

    /// Calls `visit` with every request that lives here, those that are kept until their KV is sent included.
    pub fn visit_live(&self, visit: &mut dyn FnMut(RequestId)) {
        let unmerged = self.last.iter().flat_map(|last| &last.batch.requests);
        let mut live: Vec<Slot> = self
            .prompts_held()
            .into_iter()
            .chain(self.prompts.bootstrapped.iter().copied())
            .chain(self.outputs.unallocated.iter().copied())
            .chain(self.outputs.receiving.iter().copied())
            .chain(self.outputs.retracted.iter().copied())
            .chain(self.waiting.iter().copied())
            .chain(self.running.requests.iter().chain(unmerged).copied())
            .filter(|slot| !self.requests[slot.index()].finished)
            .collect();
        live.sort_unstable_by_key(|slot| slot.index());
        live.dedup();
        for slot in live {
            visit(self.id(slot));
        }
    }
}
