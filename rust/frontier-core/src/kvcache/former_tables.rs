//! Where a preempted request left content that nobody else can ask for.

use super::block_pool::BlockPool;
use super::prefix::BlockHash;
use crate::ids::BlockId;

/// Never handed out, so it stands for "no block".
const NO_BLOCK: BlockId = BlockId(0);

/// Blocks that a request filled before its preemptions, one table per life, oldest first.
///
/// It answers what an index of hashes would answer for the request's private content: the first inserted of
/// the blocks that still hold it.
#[derive(Clone, Debug, Default)]
pub struct FormerTables {
    tables: Vec<FormerTable>,
}

/// Blocks filled in one life: `blocks[i]` was logical block `first + i`.
#[derive(Clone, Debug)]
struct FormerTable {
    first: usize,
    blocks: Vec<BlockId>,
}

impl FormerTable {
    fn get(&self, index: usize) -> Option<BlockId> {
        let block = self.blocks.get(index.checked_sub(self.first)?).copied()?;
        (block != NO_BLOCK).then_some(block)
    }
}

impl FormerTables {
    /// Forgets everything.
    pub fn clear(&mut self) {
        self.tables.clear();
    }

    /// Notes the blocks that a life filled: logical blocks `first ..`, whose contents are `hashes[first ..]`.
    pub fn push(&mut self, first: usize, blocks: &[BlockId], hashes: &[BlockHash], pool: &BlockPool) {
        for table in &mut self.tables {
            // A block that an earlier life lost and this one filled again was inserted anew: it counts from now.
            for (index, block) in (first..).zip(blocks) {
                if table.get(index) == Some(*block) {
                    table.blocks[index - table.first] = NO_BLOCK;
                }
            }
        }
        let still_holds = |index: usize, block: BlockId| {
            block != NO_BLOCK && hashes.get(index).is_some_and(|&hash| pool.holds(block, hash))
        };
        self.tables.retain(|table| {
            (table.first..).zip(&table.blocks).any(|(index, &block)| still_holds(index, block))
        });
        if !blocks.is_empty() {
            self.tables.push(FormerTable { first, blocks: blocks.to_vec() });
        }
    }

    /// Returns the first inserted block that still holds logical block `index`, whose content is `hash`.
    pub fn find(&self, index: usize, hash: BlockHash, pool: &BlockPool) -> Option<BlockId> {
        self.tables.iter().filter_map(|table| table.get(index)).find(|&block| pool.holds(block, hash))
    }
}
