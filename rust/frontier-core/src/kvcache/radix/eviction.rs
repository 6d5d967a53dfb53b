//! Which leaf goes next: unlocked, oldest access first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::{NodeId, RadixTree};

/// Candidates by access time. An entry is void once its node was visited again, got children, was locked or went.
#[derive(Clone, Debug, Default)]
pub(super) struct Leaves {
    heap: BinaryHeap<Reverse<(u64, NodeId)>>,
}

impl Leaves {
    pub(super) fn clear(&mut self) {
        self.heap.clear();
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }
}

impl RadixTree {
    /// Enters a node if it may go.
    #[inline]
    pub(super) fn offer(&mut self, node: NodeId) {
        if self.may_go(node) {
            self.leaves.heap.push(Reverse((self.nodes[node.index()].last_access, node)));
            if self.leaves.heap.len() > 64 + 4 * self.num_attached {
                self.drop_void_entries();
            }
        }
    }

    /// Returns the leaf that goes next, if any may go.
    pub(super) fn oldest_leaf(&mut self) -> Option<NodeId> {
        while let Some(Reverse((last_access, node))) = self.leaves.heap.pop() {
            if self.is_valid(last_access, node) {
                return Some(node);
            }
        }
        None
    }

    #[inline]
    fn may_go(&self, node: NodeId) -> bool {
        let entry = &self.nodes[node.index()];
        entry.attached && entry.num_children == 0 && entry.lock <= 0 && node != NodeId::ROOT
    }

    fn is_valid(&self, last_access: u64, node: NodeId) -> bool {
        self.may_go(node) && self.nodes[node.index()].last_access == last_access
    }

    fn drop_void_entries(&mut self) {
        let mut entries = std::mem::take(&mut self.leaves.heap).into_vec();
        entries.retain(|&Reverse((last_access, node))| self.is_valid(last_access, node));
        entries.sort_unstable();
        entries.dedup();
        self.leaves.heap = entries.into();
    }
}
