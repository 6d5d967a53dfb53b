//! Admission with tiers of KV below the device: requests that wait for blocks hold them, apart from the queue.
//!
//! Mirrors the treatment of `WAITING_FOR_REMOTE_KVS` in `vllm/v1/core/sched/scheduler.py` of vLLM 0.32.

use super::admission::{Beside, LookedAt};
use super::budget::Budget;
use super::caching::cache_full_blocks;
use super::{VllmScheduler, request_is_new};
use crate::error::SimError;
use crate::ids::Slot;
use crate::scheduler::SchedulerOutput;
use crate::scheduler::kv_loads::{KvLoads, KvStep, Seek};
use crate::time::SimTime;

impl VllmScheduler {
    /// Puts tiers of KV below the device.
    pub fn attach_kv_loads(&mut self, kv_loads: KvLoads) {
        self.pool.watch();
        self.kv_loads = Some(Box::new(kv_loads));
    }

    /// Returns the tiers of KV below the device, if any.
    #[inline]
    pub fn kv_loads(&self) -> Option<&KvLoads> {
        self.kv_loads.as_deref()
    }

    /// Returns the tiers of KV below the device, if any.
    #[inline]
    pub fn kv_loads_mut(&mut self) -> Option<&mut KvLoads> {
        self.kv_loads.as_deref_mut()
    }

    /// Tells the tiers what the batch formed last did to blocks; see [`KvLoads::end_step`].
    ///
    /// # Errors
    /// As there.
    pub fn end_kv_step(&mut self, device_free: SimTime) -> Result<Option<KvStep>, SimError> {
        self.kv_loads.as_mut().map(|loads| loads.end_step(&mut self.pool, device_free)).transpose()
    }

    /// Returns the number of requests that hold blocks and wait for their content.
    #[inline]
    pub(super) fn num_parked(&self) -> usize {
        self.kv_loads.as_ref().map_or(0, |loads| loads.parked().len())
    }

    /// Returns the requests that hold blocks and wait for their content, in order of admission.
    pub(super) fn parked(&self) -> impl Iterator<Item = Slot> {
        self.kv_loads.iter().flat_map(|loads| loads.parked())
    }

    /// Tells whether the request at place `parked` of those put aside is next: under FCFS before all that wait.
    pub(super) fn parked_goes_first(&self, parked: usize) -> bool {
        let slot = self.kv_loads.as_ref().and_then(|loads| loads.parked_at(parked));
        let Some(slot) = slot else { return false };
        self.waiting.front().is_none_or(|front| self.waiting.precedes(slot, front, &self.requests))
    }

    /// Admits the request at place `at` of those put aside, if its load is done. If that brought all of it, its
    /// last token is computed again, which gives the first logits.
    pub(super) fn admit_loaded(
        &mut self,
        at: usize,
        beside: Beside,
        budget: &mut Budget,
        out: &mut SchedulerOutput,
    ) -> LookedAt {
        let Some(loads) = &self.kv_loads else { return LookedAt::PassedOver };
        let (Some(slot), Some(loaded)) = (loads.parked_at(at), loads.loaded_tokens(at)) else {
            return LookedAt::PassedOver;
        };
        let request = &mut self.requests[slot.index()];
        let block_size = self.config.block_size;
        cache_full_blocks(&mut self.pool, request, loaded, block_size);
        let computed = loaded.min(request.num_tokens - 1);
        let lookahead = self.admission_lookahead_tokens;
        let looked_at =
            self.admit_holder(slot, computed, |total| total.saturating_add(lookahead), beside, budget, out);
        if let (LookedAt::Admitted, Some(loads)) = (looked_at, &mut self.kv_loads) {
            loads.unpark(at);
        }
        looked_at
    }

    /// Tells the tiers that the request of `slot` is admitted with the hits in `self.hits`.
    pub(super) fn book_admission(&mut self, slot: Slot) {
        if let Some(loads) = &mut self.kv_loads {
            let request = &self.requests[slot.index()];
            let device_hits = self.hits.len() as u32;
            loads.admitted(slot, request.hasher.hashes(), device_hits, request_is_new(request));
        }
    }

    /// Asks the tiers below the device for what follows the hits in `self.hits`.
    pub(super) fn seek_below(&mut self, slot: Slot) -> Seek {
        let Some(loads) = &mut self.kv_loads else { return Seek::Nothing };
        let request = &self.requests[slot.index()];
        loads.seek(slot, request.hasher.hashes(), self.hits.len() as u32, request.num_tokens)
    }

    /// Puts the first waiting request aside: with the hits in `self.hits`, and blocks for `num_blocks` more, whose
    /// content is on its way. Blocks that those put aside before will need are left to them: nobody else could
    /// free any, if all waited like this. Returns false if it does not fit.
    pub(super) fn park(&mut self, slot: Slot, num_blocks: u32) -> bool {
        let Some(loads) = &self.kv_loads else { return false };
        let config = &self.config;
        let missing = |slot: Slot| {
            let request = &self.requests[slot.index()];
            u64::from(config.blocks_for(request.num_tokens).saturating_sub(request.blocks.len() as u32))
        };
        let promised: u64 = loads.parked().map(missing).sum();
        let held = self.hits.len() as u32;
        let total = config.blocks_for(self.requests[slot.index()].num_tokens).max(held + num_blocks);
        let fresh = if self.reserve_full_isl { total - held } else { num_blocks };
        let needed = u64::from(fresh) + self.num_revived() + self.watermark() + promised;
        if needed > u64::from(self.pool.num_free()) {
            return false;
        }
        self.waiting.pop_front();
        self.hold_hits(slot, num_blocks);
        let Some(loads) = &mut self.kv_loads else { return false };
        let request = &self.requests[slot.index()];
        let (waiting, requests) = (&self.waiting, &self.requests);
        let at = loads.parked().take_while(|&other| waiting.precedes(other, slot, requests)).count();
        loads.park(at, slot, request.hasher.hashes(), held, request_is_new(request));
        true
    }
}
