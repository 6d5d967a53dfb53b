//! What is conserved: KV slots, rows of the request table, buffers of servers with a part in hand-overs.

use super::output_server::OutputServer;
use super::{Part, SglangScheduler};
use crate::error::SimError;
use crate::ids::Slot;

impl SglangScheduler {
    /// Checks that nothing was lost. O(requests + nodes of the tree).
    pub(super) fn check_books(&self) -> Result<(), SimError> {
        self.tree.check_integrity()?;
        let most = self.config.max_running_requests;
        let beside = match self.part {
            Part::Both => 0,
            Part::Prompts => {
                let held = self.prompts_held();
                let taken = held.len() as i64;
                conserved("rows", i64::from(most), (self.rows, taken))?;
                let buffers = taken + self.waiting.len() as i64;
                conserved("buffers", 2 * i64::from(most), (self.prompts.buffers, buffers))?;
                held.iter().map(|&slot| self.requests[slot.index()].fill - self.shared(slot)).sum()
            }
            Part::Outputs => {
                conserved("rows", OutputServer::num_rows(most), (self.rows, self.rows_of_outputs()))?;
                let receiving = self.outputs.receiving.len() as i64;
                conserved("buffers", 2 * i64::from(most), (self.outputs.buffers, receiving))?;
                self.slots_of_queues()
            }
        };
        let own = beside + self.slots_of_batches() + self.slots_of_riders();
        let found = self.available + self.tree.num_tokens() + own;
        if found == i64::from(self.config.max_total_tokens) {
            return Ok(());
        }
        Err(SimError::Invariant {
            what: format!(
                "{} KV slots exist, but {} are free, {} in the radix tree and {own} with requests",
                self.config.max_total_tokens,
                self.available,
                self.tree.num_tokens()
            ),
        })
    }

    /// Returns the leading tokens of a request whose slots are the tree's.
    fn shared(&self, slot: Slot) -> i64 {
        if self.radix() { self.requests[slot.index()].prefix } else { 0 }
    }

    /// Returns the slots of what decodes, or is about to join it.
    fn slots_of_batches(&self) -> i64 {
        let unmerged = self.last.as_ref().filter(|_| self.part != Part::Prompts).map(|last| &last.batch);
        let batches = [Some(&self.running), unmerged].into_iter().flatten();
        let parts = batches.flat_map(|batch| batch.requests.iter().zip(&batch.lengths));
        let live = parts.filter(|(slot, _)| !self.requests[slot.index()].finished);
        live.map(|(&slot, length)| length - self.shared(slot)).sum()
    }

    /// Returns the slots of requests that finished and ride along in the step behind, for nothing.
    fn slots_of_riders(&self) -> i64 {
        let decodes = self.in_flight.iter().flat_map(|batch| batch.requests.iter().skip(batch.extends.len()));
        let rides = decodes.filter(|slot| {
            let request = &self.requests[slot.index()];
            request.finished && !request.retracted
        });
        rides.count() as i64
    }
}

fn conserved(what: &str, total: i64, (free, taken): (i64, i64)) -> Result<(), SimError> {
    if free + taken == total {
        return Ok(());
    }
    Err(SimError::Invariant { what: format!("{total} {what} exist, but {free} are free and {taken} taken") })
}
