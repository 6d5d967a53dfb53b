//! KV slots and the radix cache, as requests take and leave them.

use super::{EngineFailure, RETRACT_DECODE_STEPS, SglangScheduler};
use crate::ids::Slot;
use crate::kvcache::NodeId;

impl SglangScheduler {
    /// Evicts cached content if fewer than `num_slots` slots are free: as much as is wanted, not as is missing.
    pub(super) fn make_room(&mut self, num_slots: i64) {
        if self.available < num_slots {
            self.available += self.tree.evict(num_slots);
        }
    }

    /// Takes slots.
    pub(super) fn allocate(&mut self, num_slots: i64) -> Result<(), EngineFailure> {
        self.make_room(num_slots);
        if num_slots > self.available {
            return Err(EngineFailure::out_of_memory(num_slots, self.available));
        }
        self.available -= num_slots;
        Ok(())
    }

    /// Finds the longest cached prefix of all but the last token of a waiting request. Returns its node.
    pub(super) fn match_prefix(&mut self, slot: Slot) -> NodeId {
        let radix = self.radix();
        let request = &mut self.requests[slot.index()];
        request.fill = request.num_tokens();
        if !radix {
            request.prefix = 0;
            return NodeId::ROOT;
        }
        let most = (request.fill - 1).max(0) as u32;
        let (node, prefix) = self.tree.walk(&request.content, most);
        request.prefix = i64::from(prefix);
        node
    }

    /// Gives what a request has computed to the tree; what the tree had already is freed. The request stays locked to
    /// the end of it.
    pub(super) fn cache_unfinished(&mut self, slot: Slot) -> Result<(), EngineFailure> {
        let radix = self.radix();
        let request = &mut self.requests[slot.index()];
        if !radix {
            request.prefix = request.fill;
            return Ok(());
        }
        let computed = request.fill as u32;
        let had = i64::from(self.tree.insert(&request.content, computed));
        self.available += (had - request.prefix).max(0);
        let (node, matched) = self.tree.walk(&request.content, computed);
        let former = request.node.ok_or_else(EngineFailure::double_free)?;
        request.prefix = i64::from(matched);
        request.node = Some(node);
        self.tree.unlock(former);
        self.tree.lock(node);
        self.tree.hold(node);
        self.tree.let_go(former);
        Ok(())
    }

    /// Gives all but the last token, which was never run, of a finished request to the tree.
    pub(super) fn cache_finished(&mut self, slot: Slot) -> Result<(), EngineFailure> {
        let radix = self.radix();
        let request = &self.requests[slot.index()];
        let computed = request.num_tokens() - 1;
        self.rows += 1;
        if !radix {
            self.available += computed;
            return Ok(());
        }
        let had = i64::from(self.tree.insert(&request.content, computed as u32));
        self.available += (had - request.prefix).max(0);
        // It is held on: priority scheduling may release a finished request once more.
        let node = request.node.ok_or_else(EngineFailure::double_free)?;
        self.tree.unlock(node);
        Ok(())
    }

    /// Locks the node that an admission found.
    pub(super) fn lock_for(&mut self, slot: Slot, node: NodeId) {
        self.tree.lock(node);
        self.tree.hold(node);
        if let Some(former) = self.requests[slot.index()].node.replace(node) {
            self.tree.let_go(former);
        }
    }

    /// Takes the running request at `place` off the device; `num_left` others remain, for whose next steps room is
    /// made.
    pub(super) fn release(&mut self, place: usize, num_left: usize) -> Result<(), EngineFailure> {
        let (slot, length) = (self.running.requests[place], self.running.lengths[place]);
        let radix = self.radix();
        let request = &mut self.requests[slot.index()];
        self.available += if radix { (length - request.prefix).max(0) } else { length };
        self.rows += 1;
        let node = request.node.take();
        request.prefix = 0;
        request.extend = 0;
        request.chunks = 0;
        request.retracted = true;
        request.num_preemptions += 1;
        if std::mem::take(&mut request.admitted) {
            self.num_live -= 1;
        }
        if radix {
            let node = node.ok_or_else(EngineFailure::double_free)?;
            self.tree.unlock(node);
            self.make_room(num_left as i64 * RETRACT_DECODE_STEPS);
            self.tree.let_go(node);
        }
        self.evicted.push(slot);
        Ok(())
    }
}
