//! Blocks of requests: prefix hits, allocation, and entering full blocks into the cache.

use super::VllmScheduler;
use super::kv_groups::{cache_full_group_blocks, release_groups};
use crate::ids::Slot;
use crate::kvcache::BlockPool;
use crate::scheduler::live::LiveRequest;

impl VllmScheduler {
    /// Finds the longest cached prefix (left in `self.hits`) and returns its length in tokens. At least one
    /// token is always computed.
    pub(super) fn find_hits(&mut self, slot: Slot) -> u32 {
        if self.groups.is_some() {
            return self.find_group_hits(slot);
        }
        self.hits.clear();
        if !self.pool.caching() {
            return 0;
        }
        let request = &self.requests[slot.index()];
        let most = ((request.num_tokens - 1) / self.config.block_size) as usize;
        let private_from = request.private_from as usize;
        let find = |(index, &hash)| {
            if index < private_from {
                self.pool.lookup(hash)
            } else {
                request.former.find(index, hash, &self.pool)
            }
        };
        self.hits.extend(request.hasher.hashes()[..most].iter().enumerate().map_while(find));
        if self.drops_last_hit {
            // EAGLE and MTP need the hidden states of the last block.
            self.hits.pop();
        }
        self.hits.len() as u32 * self.config.block_size
    }

    /// Allocates blocks for `num_tokens` more tokens of a running request, and lookahead; false if there are too few.
    #[inline]
    pub(super) fn allocate_running(&mut self, slot: Slot, num_tokens: u32) -> bool {
        if self.groups.is_some() {
            return self.allocate_running_in_groups(slot, num_tokens);
        }
        let request = &mut self.requests[slot.index()];
        let total = request.num_computed.min(self.config.max_model_len) + num_tokens;
        let slots = total.saturating_add(self.lookahead_tokens);
        // Most steps stay within the last block, and a product is cheaper to look at than a quotient.
        let held = request.blocks.len() as u64 * u64::from(self.config.block_size);
        if u64::from(slots) > held {
            let missing = self.config.blocks_for(slots).saturating_sub(request.blocks.len() as u32);
            if missing > self.pool.num_free() {
                return false;
            }
            self.pool.allocate(missing, &mut request.blocks);
        }
        cache_full_blocks(&mut self.pool, request, total.min(request.num_tokens), self.config.block_size);
        true
    }

    /// Allocates blocks for an admission: the hits in `self.hits` and `num_tokens` more. All present tokens
    /// must fit if `scheduler_reserve_full_isl` is set, and the watermark is kept beside running requests.
    pub(super) fn allocate_admitted(&mut self, slot: Slot, computed: u32, num_tokens: u32) -> bool {
        if self.groups.is_some() {
            return self.allocate_admitted_in_groups(slot, computed, num_tokens);
        }
        let config = &self.config;
        let beside = self.num_revived() + self.watermark();
        let held = self.hits.len() as u32;
        let fits = |tokens: u32| {
            let fresh = config.blocks_for(tokens).saturating_sub(held);
            u64::from(fresh) + beside <= u64::from(self.pool.num_free())
        };
        if self.reserve_full_isl && !fits(self.requests[slot.index()].num_tokens) {
            return false;
        }
        let total = computed + num_tokens;
        let reserved = total.saturating_add(self.admission_lookahead_tokens);
        if !fits(reserved) {
            return false;
        }
        let fresh = config.blocks_for(reserved).saturating_sub(held);
        let block_size = config.block_size;
        self.hold_hits(slot, fresh);
        let request = &mut self.requests[slot.index()];
        cache_full_blocks(&mut self.pool, request, total.min(request.num_tokens), block_size);
        true
    }

    /// Returns the blocks that an admission leaves free, beside running requests.
    pub(super) fn watermark(&self) -> u64 {
        if self.running.is_empty() { 0 } else { u64::from(self.watermark_blocks) }
    }

    /// Returns how many hits in `self.hits` nobody holds: each sits among the free blocks, so reviving it costs one.
    pub(super) fn num_revived(&self) -> u64 {
        self.hits.iter().filter(|&&block| self.pool.is_free(block)).count() as u64
    }

    /// Gives a request the hits in `self.hits`, and `fresh` blocks after them.
    pub(super) fn hold_hits(&mut self, slot: Slot, fresh: u32) {
        let request = &mut self.requests[slot.index()];
        for &block in &self.hits {
            self.pool.touch(block);
        }
        request.blocks.extend_from_slice(&self.hits);
        request.num_cached_blocks = self.hits.len() as u32;
        request.num_hit_blocks = self.hits.len() as u32;
        self.pool.allocate(fresh, &mut request.blocks);
    }
}

/// Enters the full blocks among the first `num_tokens` tokens into the cache index. A block can be hit from
/// the moment it is allocated, even while it is being computed.
#[inline]
pub(super) fn cache_full_blocks(
    pool: &mut BlockPool,
    request: &mut LiveRequest,
    num_tokens: u32,
    block_size: u32,
) {
    if !pool.caching() {
        return;
    }
    if !request.tables.is_empty() {
        cache_full_group_blocks(pool, request, num_tokens, block_size);
        return;
    }
    let next_full = (u64::from(request.num_cached_blocks) + 1) * u64::from(block_size);
    if u64::from(num_tokens) < next_full {
        return;
    }
    // A prompt beyond `max_model_len` (only replays admit one) has fewer blocks than tokens would fill.
    let full = (num_tokens / block_size).min(request.blocks.len() as u32);
    while request.num_cached_blocks < full {
        let index = request.num_cached_blocks as usize;
        let (block, hash) = (request.blocks[index], request.hasher.hashes()[index]);
        if request.num_cached_blocks < request.private_from {
            pool.insert_cached(block, hash);
        } else {
            pool.insert_private(block, hash);
        }
        request.num_cached_blocks += 1;
    }
}

/// Frees all blocks of a request.
pub(super) fn release_blocks(pool: &mut BlockPool, request: &mut LiveRequest) {
    pool.release(&request.blocks);
    request.blocks.clear();
    release_groups(pool, request);
}
