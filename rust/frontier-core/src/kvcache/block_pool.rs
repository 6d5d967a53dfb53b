//! Physical KV blocks: allocation, reference counts, reuse order, and the hash index of cached blocks.

use rustc_hash::FxHashMap;

use super::prefix::BlockHash;
use crate::error::SimError;
use crate::ids::BlockId;

/// Stands for "no block" in links; the null block is never linked.
const NIL: u32 = 0;

/// State of a block that was used at least once.
#[derive(Clone, Copy, Debug, Default)]
struct Block {
    /// Requests that hold the block.
    users: u32,
    /// Neighbours in the list of reusable blocks (while free and not on the stack).
    older: u32,
    newer: u32,
    /// Neighbours among blocks of the same content, in order of insertion.
    twin_before: u32,
    twin_after: u32,
    /// Identity of the content, while cached.
    hash: Option<BlockHash>,
    /// The content can be looked up by its hash.
    indexed: bool,
}

/// First and last of the blocks that hold the same content.
#[derive(Clone, Copy, Debug)]
struct Twins {
    first: u32,
    last: u32,
}

/// What happened to a block, for those who watch the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockChange {
    /// It holds a content from now on.
    Filled(BlockId, BlockHash),
    /// A request found its content.
    Hit(BlockId, BlockHash),
    /// It was taken for something else, and lost the content that it held, if any.
    Taken(BlockId, Option<BlockHash>),
}

/// The block pool of one replica.
///
/// Free blocks are reused in this order, as vLLM 0.32 keeps its `free_block_queue`:
/// 1. freed blocks without a hash, the latest freed first (`stack`);
/// 2. blocks never used so far, by number (`fresh`): they need no memory of their own;
/// 3. freed blocks that still hold a cached prefix, least recently freed first (`oldest` .. `newest`).
///
/// Earlier releases append every freed block to the queue ([`Self::appending_all`]): then 1 is empty, and 3 holds all
/// freed blocks.
///
/// A cached block loses its hash only when it is taken again, so until then a request with the same prefix
/// can revive it.
#[derive(Clone, Debug)]
pub struct BlockPool {
    num_blocks: u32,
    caching: bool,
    /// Freed blocks without a hash join the list, too.
    appends_all: bool,
    blocks: Vec<Block>,
    stack: Vec<u32>,
    oldest: u32,
    newest: u32,
    num_listed: u32,
    cached: FxHashMap<BlockHash, Twins>,
    /// What happened since the watcher last looked, if anyone watches.
    changes: Option<Vec<BlockChange>>,
}

impl BlockPool {
    /// Returns a pool of `num_blocks` blocks, of which block 0 is the null block and never handed out.
    pub fn new(num_blocks: u32, caching: bool) -> Self {
        Self {
            num_blocks,
            caching,
            appends_all: false,
            blocks: vec![Block::default()],
            stack: Vec::new(),
            oldest: NIL,
            newest: NIL,
            num_listed: 0,
            cached: FxHashMap::default(),
            changes: None,
        }
    }

    /// Returns the pool with the reuse order of vLLM up to 0.23: least recently freed first, cached or not, after the
    /// blocks never used so far.
    #[must_use]
    pub fn appending_all(mut self) -> Self {
        self.appends_all = true;
        self
    }

    /// Notes from now on what happens to blocks.
    pub fn watch(&mut self) {
        self.changes = Some(Vec::new());
    }

    /// Hands over what happened since the last call, in order, and takes a buffer to go on with.
    pub fn take_changes(&mut self, buffer: Vec<BlockChange>) -> Vec<BlockChange> {
        self.changes.replace(buffer).unwrap_or_default()
    }

    #[inline]
    fn note(&mut self, change: BlockChange) {
        if self.changes.is_some() {
            self.note_watched(change);
        }
    }

    #[cold]
    fn note_watched(&mut self, change: BlockChange) {
        self.changes.get_or_insert_default().push(change);
    }

    /// Returns the blocks that requests can use in total.
    #[inline]
    pub fn num_usable(&self) -> u32 {
        self.num_blocks - 1
    }

    /// Returns the blocks that can be taken now, those that still hold a reusable prefix included.
    #[inline]
    pub fn num_free(&self) -> u32 {
        self.stack.len() as u32 + (self.num_blocks - self.blocks.len() as u32) + self.num_listed
    }

    /// Tells whether full blocks are kept for reuse.
    #[inline]
    pub fn caching(&self) -> bool {
        self.caching
    }

    /// Returns the first inserted of the blocks that hold the content `hash`.
    #[inline]
    pub fn lookup(&self, hash: BlockHash) -> Option<BlockId> {
        self.cached.get(&hash).map(|twins| BlockId(twins.first))
    }

    /// Returns the length of the longest run of `hashes`, from the first, whose content is cached.
    pub fn cached_prefix(&self, hashes: &[BlockHash]) -> usize {
        hashes.iter().take_while(|hash| self.cached.contains_key(hash)).count()
    }

    /// Tells whether nobody holds `block`.
    #[inline]
    pub fn is_free(&self, block: BlockId) -> bool {
        self.blocks[block.index()].users == 0
    }

    /// Takes `count` blocks in reuse order and appends them to `out`. The caller has checked
    /// [`Self::num_free`].
    #[inline]
    pub fn allocate(&mut self, count: u32, out: &mut Vec<BlockId>) {
        for _ in 0..count {
            let block = self.take_next();
            self.blocks[block as usize].users = 1;
            out.push(BlockId(block));
        }
    }

    /// Adds a user to a cached block, reviving it if it was free.
    pub fn touch(&mut self, block: BlockId) {
        if self.blocks[block.index()].users == 0 {
            self.unlist(block.0);
        }
        self.blocks[block.index()].users += 1;
        if let Some(hash) = self.blocks[block.index()].hash {
            self.note(BlockChange::Hit(block, hash));
        }
    }

    /// Removes a user from each of `blocks`, a request's block table in logical order. Blocks are freed tail
    /// first, so that a prefix outlives what follows it.
    pub fn release(&mut self, blocks: &[BlockId]) {
        let bottom = self.stack.len();
        for &block in blocks.iter().rev() {
            let state = &mut self.blocks[block.index()];
            debug_assert!(state.users > 0, "Invariant: a released block had a user");
            state.users -= 1;
            if state.users == 0 {
                if state.hash.is_some() || self.appends_all {
                    self.list_newest(block.0);
                } else {
                    self.stack.push(block.0);
                }
            }
        }
        // The last block of the table is on top: it is the first to be reused.
        self.stack[bottom..].reverse();
    }

    /// Marks `block` as holding the content `hash`.
    #[inline]
    pub fn insert_cached(&mut self, block: BlockId, hash: BlockHash) {
        debug_assert!(self.caching, "Invariant: hashes exist only with prefix caching");
        debug_assert!(self.blocks[block.index()].hash.is_none(), "Invariant: a block is cached once");
        let twins = self.cached.entry(hash).or_insert(Twins { first: NIL, last: NIL });
        let before = twins.last;
        if before == NIL {
            twins.first = block.0;
        }
        twins.last = block.0;
        let state = &mut self.blocks[block.index()];
        state.hash = Some(hash);
        state.indexed = true;
        state.twin_before = before;
        state.twin_after = NIL;
        if before != NIL {
            self.blocks[before as usize].twin_after = block.0;
        }
        self.note(BlockChange::Filled(block, hash));
    }

    /// Marks `block` as holding the content `hash`, which nobody but its owner can ask for: it is kept like any
    /// cached block, but only [`Self::holds`] finds it. This spares the index an entry, and the run a cache miss
    /// at its insertion and at its removal.
    #[inline]
    pub fn insert_private(&mut self, block: BlockId, hash: BlockHash) {
        debug_assert!(self.caching, "Invariant: hashes exist only with prefix caching");
        let state = &mut self.blocks[block.index()];
        debug_assert!(state.hash.is_none(), "Invariant: a block is cached once");
        state.hash = Some(hash);
        state.indexed = false;
        self.note(BlockChange::Filled(block, hash));
    }

    /// Tells whether `block` still holds the content `hash`.
    #[inline]
    pub fn holds(&self, block: BlockId, hash: BlockHash) -> bool {
        self.blocks[block.index()].hash == Some(hash)
    }

    fn take_next(&mut self) -> u32 {
        if let Some(block) = self.stack.pop() {
            self.note(BlockChange::Taken(BlockId(block), None));
            return block;
        }
        if (self.blocks.len() as u32) < self.num_blocks {
            self.blocks.push(Block::default());
            return self.blocks.len() as u32 - 1;
        }
        let block = self.oldest;
        assert!(block != NIL, "Invariant: no more blocks are taken than are free");
        self.unlist(block);
        self.note(BlockChange::Taken(BlockId(block), self.blocks[block as usize].hash));
        self.forget(block);
        block
    }

    /// Drops the cached content of a block that is taken for something else.
    fn forget(&mut self, block: u32) {
        let state = &mut self.blocks[block as usize];
        let Some(hash) = state.hash.take() else {
            return;
        };
        if !state.indexed {
            return;
        }
        let (before, after) = (state.twin_before, state.twin_after);
        if before != NIL {
            self.blocks[before as usize].twin_after = after;
        }
        if after != NIL {
            self.blocks[after as usize].twin_before = before;
        }
        if before == NIL && after == NIL {
            self.cached.remove(&hash);
            return;
        }
        let twins = self.cached.get_mut(&hash).expect("Invariant: a cached block is indexed");
        if before == NIL {
            twins.first = after;
        }
        if after == NIL {
            twins.last = before;
        }
    }

    fn list_newest(&mut self, block: u32) {
        let before = self.newest;
        let state = &mut self.blocks[block as usize];
        state.older = before;
        state.newer = NIL;
        if before == NIL {
            self.oldest = block;
        } else {
            self.blocks[before as usize].newer = block;
        }
        self.newest = block;
        self.num_listed += 1;
    }

    fn unlist(&mut self, block: u32) {
        let Block { older, newer, .. } = self.blocks[block as usize];
        if older == NIL {
            self.oldest = newer;
        } else {
            self.blocks[older as usize].newer = newer;
        }
        if newer == NIL {
            self.newest = older;
        } else {
            self.blocks[newer as usize].older = older;
        }
        self.num_listed -= 1;
    }

    /// Checks that every block is in exactly one place and that counts agree with `held`, the sum of users
    /// that requests know of. O(blocks).
    ///
    /// # Errors
    /// [`SimError::Invariant`] naming the first law that does not hold.
    pub fn check_integrity(&self, held: u64) -> Result<(), SimError> {
        let broken = |what: String| Err(SimError::Invariant { what });
        let users: u64 = self.blocks.iter().map(|block| u64::from(block.users)).sum();
        if users != held {
            return broken(format!("blocks have {users} users, requests hold {held}"));
        }
        let mut listed = 0_u32;
        let (mut block, mut before) = (self.oldest, NIL);
        while block != NIL {
            let state = &self.blocks[block as usize];
            if state.users != 0
                || (state.hash.is_none() && !self.appends_all)
                || state.older != before
                || listed > self.num_blocks
            {
                return broken(format!("block {block} is listed as reusable but is not"));
            }
            listed += 1;
            (before, block) = (block, state.newer);
        }
        if listed != self.num_listed || before != self.newest {
            return broken(format!("{listed} blocks are listed, {} were counted", self.num_listed));
        }
        if self
            .stack
            .iter()
            .any(|&b| self.blocks[b as usize].users != 0 || self.blocks[b as usize].hash.is_some())
        {
            return broken("a block on the stack is in use or cached".into());
        }
        let in_use = self.blocks.iter().filter(|block| block.users > 0).count() as u32;
        if in_use + self.num_free() != self.num_usable() {
            return broken(format!(
                "{in_use} blocks in use and {} free do not make {}",
                self.num_free(),
                self.num_usable()
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod property_tests {
    use std::collections::BTreeMap;
    use std::num::NonZeroU64;

    use proptest::prelude::*;

    use super::*;

    /// The pool as vLLM describes it: one queue in reuse order, searched from end to end.
    struct NaivePool {
        free: Vec<u32>,
        users: BTreeMap<u32, u32>,
        content: BTreeMap<u32, u64>,
        inserted: Vec<u32>,
    }

    impl NaivePool {
        fn new(num_blocks: u32) -> Self {
            let free = (1..num_blocks).collect();
            Self { free, users: BTreeMap::new(), content: BTreeMap::new(), inserted: Vec::new() }
        }

        fn lookup(&self, content: u64) -> Option<u32> {
            self.inserted.iter().copied().find(|block| self.content.get(block) == Some(&content))
        }

        fn take(&mut self) -> u32 {
            let block = self.free.remove(0);
            self.content.remove(&block);
            self.inserted.retain(|&other| other != block);
            self.users.insert(block, 1);
            block
        }

        fn touch(&mut self, block: u32) {
            self.free.retain(|&other| other != block);
            *self.users.entry(block).or_insert(0) += 1;
        }

        fn release(&mut self, blocks: &[u32]) {
            let mut unhashed = Vec::new();
            for &block in blocks.iter().rev() {
                let users = self.users.get_mut(&block).expect("in use");
                *users -= 1;
                if *users == 0 {
                    if self.content.contains_key(&block) {
                        self.free.push(block);
                    } else {
                        unhashed.push(block);
                    }
                }
            }
            self.free.splice(0..0, unhashed);
        }
    }

    fn hash(content: u64) -> BlockHash {
        BlockHash::for_test(NonZeroU64::new(content + 1).expect("positive"))
    }

    proptest! {
        #[test]
        fn prop_the_pool_equals_a_naive_queue(ops in prop::collection::vec((0_u8..4, 0_u64..12), 1..300)) {
            let mut pool = BlockPool::new(12, true);
            let mut naive = NaivePool::new(12);
            let mut tables: Vec<Vec<BlockId>> = Vec::new();
            for (op, value) in ops {
                match op {
                    0 => {
                        let count = (value as u32 % 4).min(pool.num_free());
                        let mut table = Vec::new();
                        pool.allocate(count, &mut table);
                        let expected: Vec<BlockId> = (0..count).map(|_| BlockId(naive.take())).collect();
                        prop_assert_eq!(&table, &expected);
                        tables.push(table);
                    }
                    1 => {
                        prop_assert_eq!(pool.lookup(hash(value)).map(|block| block.0), naive.lookup(value));
                        if let Some(block) = pool.lookup(hash(value)) {
                            pool.touch(block);
                            naive.touch(block.0);
                            tables.push(vec![block]);
                        }
                    }
                    2 => {
                        let new = tables.iter().flatten().copied().find(|block| !naive.content.contains_key(&block.0));
                        if let Some(block) = new {
                            pool.insert_cached(block, hash(value));
                            naive.content.insert(block.0, value);
                            naive.inserted.push(block.0);
                        }
                    }
                    _ => {
                        if !tables.is_empty() {
                            let table = tables.swap_remove(value as usize % tables.len());
                            pool.release(&table);
                            naive.release(&table.iter().map(|block| block.0).collect::<Vec<_>>());
                        }
                    }
                }
                prop_assert_eq!(pool.num_free() as usize, naive.free.len());
                let held = tables.iter().map(|table| table.len() as u64).sum();
                prop_assert!(pool.check_integrity(held).is_ok());
            }
        }
    }
}
