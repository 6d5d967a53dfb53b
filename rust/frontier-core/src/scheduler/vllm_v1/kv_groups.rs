//! Groups of layers that keep different parts of the context: vLLM's hybrid KV cache manager
//! (`vllm/v1/core/{kv_cache_coordinator,single_type_kv_cache_manager}.py`).
//!
//! All groups draw blocks from one pool, and a request has a block table per group. A group with a sliding window
//! frees what the window has left behind; in its table the null block stands for what is gone.

use super::VllmScheduler;
use crate::ids::{BlockId, Slot};
use crate::kvcache::{BlockHash, BlockPool};
use crate::plan::SchedulerConfig;
use crate::scheduler::live::LiveRequest;

/// Stands for content that no query will see again; the pool never hands it out.
const NULL_BLOCK: BlockId = BlockId(0);

/// A request's blocks in one group, by logical index.
#[derive(Clone, Debug, Default)]
pub(crate) struct GroupTable {
    blocks: Vec<BlockId>,
    /// Leading blocks that are null.
    num_skipped: u32,
    /// Leading blocks whose content is in the cache index, null ones included.
    num_cached: u32,
}

impl GroupTable {
    /// Returns how many blocks the table holds.
    pub(crate) fn num_held(&self) -> u64 {
        self.blocks.iter().filter(|&&block| block != NULL_BLOCK).count() as u64
    }

    fn held(&self) -> &[BlockId] {
        &self.blocks[self.num_skipped as usize..]
    }
}

/// The groups of an engine.
#[derive(Clone, Debug)]
pub(super) struct KvGroups {
    /// Window of each group, `None` for whole contexts.
    windows: Vec<Option<u32>>,
    /// Most blocks that one request holds in each group at a time.
    most_held: Vec<u32>,
    /// Scratch: cached blocks of the request under consideration, by group.
    hits: Vec<Vec<BlockId>>,
}

impl KvGroups {
    /// Returns the groups of `config`, `None` for the plain cache of one group that keeps whole contexts.
    pub(super) fn of(config: &SchedulerConfig) -> Option<Self> {
        if config.kv_group_windows.is_empty() {
            return None;
        }
        Some(Self {
            most_held: config
                .kv_group_windows
                .iter()
                .map(|&window| config.blocks_in_window(window))
                .collect(),
            hits: vec![Vec::new(); config.kv_group_windows.len()],
            windows: config.kv_group_windows.clone(),
        })
    }

    /// Returns how many leading blocks of a prompt all groups have cached.
    pub(super) fn cached_prefix(&self, hashes: &[BlockHash], pool: &BlockPool, block_size: u32) -> usize {
        // The blocks found are of no interest, so that the scratch of a copy will do.
        let mut groups = Self { hits: vec![Vec::new(); self.hits.len()], ..self.clone() };
        groups.find(hashes, pool, false, block_size)
    }

    /// Returns the length of the longest prefix, in blocks, that all groups have cached, at most `hashes.len()`, and
    /// leaves its blocks in `self.hits`. `drops_last`: the last block found is not used.
    ///
    /// A prefix that suits one group may be too long for another, and cutting it leaves a window without its blocks:
    /// so groups are asked in turn until all agree.
    fn find(&mut self, hashes: &[BlockHash], pool: &BlockPool, drops_last: bool, block_size: u32) -> usize {
        let mut length = hashes.len();
        loop {
            let before = length;
            for (group, (hits, window)) in self.hits.iter_mut().zip(&self.windows).enumerate() {
                hits.clear();
                let known = &hashes[..length];
                match window {
                    None => hits.extend(known.iter().map_while(|hash| pool.lookup(hash.in_group(group)))),
                    Some(window) => {
                        let needed = (window - 1).div_ceil(block_size) as usize + usize::from(drops_last);
                        find_window(known, group, needed.max(1), pool, hits);
                    }
                }
                length = hits.len();
            }
            if length == before {
                break;
            }
        }
        let length = length.saturating_sub(usize::from(drops_last));
        self.hits.iter_mut().for_each(|hits| hits.truncate(length));
        length
    }
}

/// Leaves in `hits` the longest prefix whose last `needed` blocks are cached (all of them, if it has fewer).
fn find_window(hashes: &[BlockHash], group: usize, needed: usize, pool: &BlockPool, hits: &mut Vec<BlockId>) {
    hits.clear();
    hits.resize(hashes.len(), NULL_BLOCK);
    let mut in_a_row = 0;
    for index in (0..hashes.len()).rev() {
        match pool.lookup(hashes[index].in_group(group)) {
            Some(block) => {
                hits[index] = block;
                in_a_row += 1;
                if in_a_row == needed {
                    hits.truncate(index + needed);
                    hits[..index].fill(NULL_BLOCK);
                    return;
                }
            }
            None => in_a_row = 0,
        }
    }
    hits.truncate(in_a_row);
}

impl VllmScheduler {
    /// Finds the longest prefix that all groups have cached and returns its length in tokens.
    pub(super) fn find_group_hits(&mut self, slot: Slot) -> u32 {
        let groups = self.groups.as_mut().expect("Invariant: the cache has groups");
        if !self.pool.caching() {
            groups.hits.iter_mut().for_each(Vec::clear);
            return 0;
        }
        let request = &self.requests[slot.index()];
        let block_size = self.config.block_size;
        let most = ((request.num_tokens - 1) / block_size) as usize;
        let hashes = &request.hasher.hashes()[..most];
        groups.find(hashes, &self.pool, self.drops_last_hit, block_size) as u32 * block_size
    }

    /// Allocates blocks in every group for `num_tokens` more tokens of a running request, and lookahead; false if
    /// there are too few. What windows have left is freed first, even then.
    pub(super) fn allocate_running_in_groups(&mut self, slot: Slot, num_tokens: u32) -> bool {
        let groups = self.groups.as_ref().expect("Invariant: the cache has groups");
        let request = &mut self.requests[slot.index()];
        let block_size = self.config.block_size;
        free_skipped(&mut self.pool, request, &groups.windows, block_size);
        let total = request.num_computed.min(self.config.max_model_len) + num_tokens;
        let wanted = self.config.blocks_for(total.saturating_add(self.lookahead_tokens));
        let missing = |table: &GroupTable| wanted.saturating_sub(table.blocks.len() as u32);
        if request.tables.iter().map(|table| u64::from(missing(table))).sum::<u64>()
            > u64::from(self.pool.num_free())
        {
            return false;
        }
        for table in &mut request.tables {
            self.pool.allocate(missing(table), &mut table.blocks);
        }
        cache_full_group_blocks(&mut self.pool, request, total.min(request.num_tokens), block_size);
        true
    }

    /// Allocates blocks in every group for an admission: the hits found last and `num_tokens` more.
    pub(super) fn allocate_admitted_in_groups(&mut self, slot: Slot, computed: u32, num_tokens: u32) -> bool {
        let config = &self.config;
        let groups = self.groups.as_ref().expect("Invariant: the cache has groups");
        let watermark = self.watermark();
        let request = &mut self.requests[slot.index()];
        let revived: u64 = (groups.hits.iter().flatten())
            .filter(|&&block| block != NULL_BLOCK && self.pool.is_free(block))
            .count() as u64;
        let fits = |tokens: u32, capped: bool| {
            let fresh: u64 = (groups.hits.iter().zip(&groups.most_held))
                .map(|(hits, &most)| {
                    let wanted = config.blocks_for(tokens);
                    let wanted = if capped { wanted.min(most) } else { wanted };
                    u64::from(wanted.saturating_sub(hits.len() as u32))
                })
                .sum();
            fresh + revived + watermark <= u64::from(self.pool.num_free())
        };
        let total = computed + num_tokens;
        let reserved = total.saturating_add(self.admission_lookahead_tokens);
        if (self.reserve_full_isl && !fits(request.num_tokens, true)) || !fits(reserved, false) {
            return false;
        }
        request.tables.resize_with(groups.windows.len(), GroupTable::default);
        for (table, hits) in request.tables.iter_mut().zip(&groups.hits) {
            for &block in hits.iter().filter(|&&block| block != NULL_BLOCK) {
                self.pool.touch(block);
            }
            table.blocks.clear();
            table.blocks.extend_from_slice(hits);
            table.num_skipped = hits.iter().take_while(|&&block| block == NULL_BLOCK).count() as u32;
            table.num_cached = hits.len() as u32;
            self.pool
                .allocate(config.blocks_for(reserved).saturating_sub(hits.len() as u32), &mut table.blocks);
        }
        request.num_hit_blocks = computed / config.block_size;
        cache_full_group_blocks(&mut self.pool, request, total.min(request.num_tokens), config.block_size);
        true
    }
}

/// Frees what the windows have left behind: the queries to come see the last `window - 1` tokens before them.
fn free_skipped(pool: &mut BlockPool, request: &mut LiveRequest, windows: &[Option<u32>], block_size: u32) {
    for (table, window) in request.tables.iter_mut().zip(windows) {
        let Some(window) = window else { continue };
        let gone = (request.num_computed + 1).saturating_sub(*window) / block_size;
        let gone = gone.min(table.blocks.len() as u32);
        if gone > table.num_skipped {
            let left = table.num_skipped as usize..gone as usize;
            pool.release(&table.blocks[left.clone()]);
            table.blocks[left].fill(NULL_BLOCK);
            table.num_skipped = gone;
        }
    }
}

/// Enters the full blocks among the first `num_tokens` tokens into the cache index, group by group.
pub(super) fn cache_full_group_blocks(
    pool: &mut BlockPool,
    request: &mut LiveRequest,
    num_tokens: u32,
    block_size: u32,
) {
    if !pool.caching() {
        return;
    }
    for (group, table) in request.tables.iter_mut().enumerate() {
        let full = (num_tokens / block_size).min(table.blocks.len() as u32);
        for index in table.num_cached.max(table.num_skipped)..full {
            let hash = request.hasher.hashes()[index as usize].in_group(group);
            pool.insert_cached(table.blocks[index as usize], hash);
        }
        table.num_cached = table.num_cached.max(full);
    }
}

/// Frees all blocks of a request, group by group.
pub(super) fn release_groups(pool: &mut BlockPool, request: &mut LiveRequest) {
    for table in &mut request.tables {
        pool.release(table.held());
        *table = GroupTable { blocks: std::mem::take(&mut table.blocks), ..GroupTable::default() };
        table.blocks.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use proptest::prelude::*;

    use super::*;

    const BLOCK: u32 = 16;

    /// Tells by search which prefix suits all groups: `cached` says of each group and block whether it is there.
    fn longest_by_search(cached: &[Vec<bool>], windows: &[Option<u32>], drops_last: bool) -> usize {
        let suits = |length: usize| {
            windows.iter().zip(cached).all(|(window, group)| {
                let needed = window.map_or(length, |window| {
                    let blocks = (window - 1).div_ceil(BLOCK) as usize + usize::from(drops_last);
                    blocks.max(1).min(length)
                });
                group[length - needed..length].iter().all(|&there| there)
            })
        };
        let longest = (0..=cached[0].len()).rev().find(|&length| suits(length)).unwrap_or(0);
        longest.saturating_sub(usize::from(drops_last))
    }

    proptest! {
        #[test]
        fn prop_the_prefix_found_is_the_longest_that_suits_all_groups(
            windows in prop::collection::vec(prop::option::of(1_u32..80), 1..4),
            present in prop::collection::vec(prop::collection::vec(prop::bool::weighted(0.8), 3), 0..24),
            drops_last in any::<bool>(),
        ) {
            let hashes: Vec<BlockHash> = (1..=present.len() as u64)
                .map(|value| BlockHash::for_test(NonZeroU64::new(value).unwrap()))
                .collect();
            let mut pool = BlockPool::new(200, true);
            let mut blocks = Vec::new();
            for (index, &hash) in hashes.iter().enumerate() {
                for group in (0..windows.len()).filter(|&group| present[index][group]) {
                    pool.allocate(1, &mut blocks);
                    pool.insert_cached(*blocks.last().unwrap(), hash.in_group(group));
                }
            }
            let cached: Vec<Vec<bool>> =
                (0..windows.len()).map(|group| present.iter().map(|row| row[group]).collect()).collect();
            let mut groups = KvGroups {
                most_held: vec![0; windows.len()],
                hits: vec![Vec::new(); windows.len()],
                windows: windows.clone(),
            };
            let found = groups.find(&hashes, &pool, drops_last, BLOCK);
            prop_assert_eq!(found, longest_by_search(&cached, &windows, drops_last));
            for (hits, window) in groups.hits.iter().zip(&windows) {
                prop_assert_eq!(hits.len(), found);
                let needed = window.map_or(found, |window| (window - 1).div_ceil(BLOCK) as usize).min(found);
                prop_assert!(hits[found - needed..].iter().all(|&block| block != NULL_BLOCK));
            }
        }
    }
}
