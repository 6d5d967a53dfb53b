//! SGLang's radix cache (`sglang/srt/mem_cache/radix_cache.py`, 0.5.3, page size 1): a tree over token runs whose
//! nodes are split where prompts diverge. Slots are only counted: which slot a token has never matters.
//!
//! Tokens are known by (stream, position), so an edge is a list of [`Segment`]s, and to match a prompt costs its
//! segments and the nodes on the way, not its tokens. Every visit of a node takes the next tick of the tree's own
//! clock, so that access times never tie. `lfu` is not another order in this version: it never counts hits.

mod eviction;
mod runs;

#[cfg(test)]
mod tests;

use rustc_hash::FxHashMap;

use crate::error::SimError;
use crate::workload::Segment;
use eviction::Leaves;
use runs::Cursor;

/// A node of a [`RadixTree`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u32);

impl NodeId {
    /// The root, which has no tokens and is never evicted.
    pub const ROOT: Self = Self(0);

    #[inline]
    fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Clone, Debug)]
struct Node {
    /// The tokens of the edge that leads here, in normal form.
    key: Vec<Segment>,
    num_tokens: u32,
    parent: NodeId,
    num_children: u32,
    /// Requests that use it or a node below it. Below zero once an engine released a request twice.
    lock: i32,
    last_access: u64,
    /// Orders it among its siblings.
    place: u64,
    /// Who may still ask for it though it is evicted: holders, and evicted children with holders.
    num_holders: u32,
    attached: bool,
}

/// The radix tree of one engine, or a scratch one over its queue.
#[derive(Clone, Debug)]
pub struct RadixTree {
    nodes: Vec<Node>,
    vacant: Vec<NodeId>,
    /// By parent and the first token of the edge.
    children: FxHashMap<(NodeId, u64, u32), NodeId>,
    leaves: Leaves,
    tick: u64,
    num_placed: u64,
    /// Tokens in nodes without a lock.
    evictable: i64,
    /// Tokens in all nodes.
    num_tokens: i64,
    num_attached: usize,
}

impl Default for RadixTree {
    fn default() -> Self {
        Self::new()
    }
}

impl RadixTree {
    /// Returns an empty tree.
    pub fn new() -> Self {
        let root = Node {
            key: Vec::new(),
            num_tokens: 0,
            parent: NodeId::ROOT,
            num_children: 0,
            lock: 1,
            last_access: 0,
            place: 0,
            num_holders: 1,
            attached: true,
        };
        Self {
            nodes: vec![root],
            vacant: Vec::new(),
            children: FxHashMap::default(),
            leaves: Leaves::default(),
            tick: 0,
            num_placed: 0,
            evictable: 0,
            num_tokens: 0,
            num_attached: 0,
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.nodes.truncate(1);
        self.nodes[0].num_children = 0;
        self.vacant.clear();
        self.children.clear();
        self.leaves.clear();
        (self.evictable, self.num_tokens, self.num_attached) = (0, 0, 0);
    }

    /// Returns the tokens in nodes without a lock.
    #[inline]
    pub fn evictable(&self) -> i64 {
        self.evictable
    }

    /// Returns the tokens in all nodes.
    #[inline]
    pub fn num_tokens(&self) -> i64 {
        self.num_tokens
    }

    /// Follows the first `num_tokens` tokens of `content` as far as the tree has them, renewing access times; a
    /// node that matches in part is split. Returns the last node and the tokens matched.
    pub fn walk(&mut self, content: &[Segment], num_tokens: u32) -> (NodeId, u32) {
        let (node, cursor) = self.follow(content, num_tokens);
        (node, cursor.consumed())
    }

    /// Returns how many of the first `num_tokens` tokens of `content` the tree has, without touching it.
    pub fn peek(&self, content: &[Segment], num_tokens: u32) -> u32 {
        let (mut node, mut cursor) = (NodeId::ROOT, Cursor::new(content, num_tokens));
        while let Some(child) = self.child(node, &cursor) {
            let child_tokens = self.nodes[child.index()].num_tokens;
            if cursor.advance_common(&self.nodes[child.index()].key) < child_tokens {
                break;
            }
            node = child;
        }
        cursor.consumed()
    }

    /// Adds the first `num_tokens` tokens of `content`. Returns how many were there already.
    pub fn insert(&mut self, content: &[Segment], num_tokens: u32) -> u32 {
        let (parent, cursor) = self.follow(content, num_tokens);
        let found = cursor.consumed();
        let Some((stream, start)) = cursor.token() else { return found };
        let last_access = self.next_tick();
        let (node, added) = (self.take_node(), num_tokens - found);
        self.num_placed += 1;
        let place = self.num_placed;
        let slot = &mut self.nodes[node.index()];
        cursor.rest_into(&mut slot.key);
        slot.num_tokens = added;
        slot.parent = parent;
        slot.last_access = last_access;
        slot.place = place;
        self.nodes[parent.index()].num_children += 1;
        self.children.insert((parent, stream, start), node);
        self.evictable += i64::from(added);
        self.num_tokens += i64::from(added);
        self.num_attached += 1;
        self.offer(node);
        found
    }

    /// Locks a node and all above it: what is locked is not evictable.
    pub fn lock(&mut self, mut node: NodeId) {
        while node != NodeId::ROOT {
            let entry = &mut self.nodes[node.index()];
            if entry.lock == 0 {
                self.evictable -= i64::from(entry.num_tokens);
            }
            entry.lock += 1;
            node = entry.parent;
        }
    }

    /// Takes back one lock of a node and of all above it.
    pub fn unlock(&mut self, mut node: NodeId) {
        while node != NodeId::ROOT {
            let entry = &mut self.nodes[node.index()];
            if entry.lock == 1 {
                self.evictable += i64::from(entry.num_tokens);
            }
            entry.lock -= 1;
            let parent = entry.parent;
            self.offer(node);
            node = parent;
        }
    }

    /// Keeps a node's identity for someone who will come back to it, evicted or not.
    pub fn hold(&mut self, node: NodeId) {
        self.nodes[node.index()].num_holders += 1;
    }

    /// Undoes one [`Self::hold`].
    pub fn let_go(&mut self, node: NodeId) {
        self.nodes[node.index()].num_holders -= 1;
        self.recycle(node);
    }

    /// Removes unlocked leaves, oldest access first, until `num_tokens` tokens are gone; a locked leaf protects all
    /// above it. Returns the tokens removed.
    pub fn evict(&mut self, num_tokens: i64) -> i64 {
        let mut freed = 0;
        while freed < num_tokens {
            let Some(node) = self.oldest_leaf() else { break };
            freed += i64::from(self.detach(node));
        }
        freed
    }

    /// Returns the node above, the root for itself.
    pub(crate) fn parent(&self, node: NodeId) -> NodeId {
        self.nodes[node.index()].parent
    }

    /// Returns what orders a node among its siblings: who came first is smaller.
    pub(crate) fn place(&self, node: NodeId) -> u64 {
        self.nodes[node.index()].place
    }

    /// Checks the tree's books. O(nodes).
    ///
    /// # Errors
    /// [`SimError::Invariant`] naming the first law that does not hold.
    pub fn check_integrity(&self) -> Result<(), SimError> {
        let wrong = |what: String| Err(SimError::Invariant { what: format!("radix tree: {what}") });
        let (mut tokens, mut evictable, mut attached) = (0, 0, 0);
        let mut below = vec![(0_u32, 0_i64); self.nodes.len()];
        for (index, node) in self.nodes.iter().enumerate().skip(1).filter(|(_, node)| node.attached) {
            let parent = &self.nodes[node.parent.index()];
            let length: u32 = node.key.iter().map(|segment| segment.len).sum();
            if length != node.num_tokens || length == 0 {
                return wrong(format!("node {index} says {} tokens, has {length}", node.num_tokens));
            }
            let first = node.key[0];
            if self.children.get(&(node.parent, first.stream, first.start)) != Some(&NodeId(index as u32)) {
                return wrong(format!("node {index} is not found from its parent"));
            }
            if !parent.attached {
                return wrong(format!("node {index} hangs from an evicted one"));
            }
            if node.lock < 0 {
                return wrong(format!("node {index} was unlocked more often than locked"));
            }
            below[node.parent.index()].0 += 1;
            below[node.parent.index()].1 += i64::from(node.lock);
            tokens += i64::from(length);
            evictable += if node.lock == 0 { i64::from(length) } else { 0 };
            attached += 1;
        }
        for (index, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.attached) {
            let (children, locks) = below[index];
            if children != node.num_children {
                return wrong(format!("node {index} says {} children, has {children}", node.num_children));
            }
            if index > 0 && i64::from(node.lock) < locks {
                return wrong(format!("node {index} is locked less often than the nodes below it"));
            }
        }
        if attached != self.num_attached || self.children.len() != attached {
            return wrong(format!("{attached} nodes, but {} children", self.children.len()));
        }
        if (tokens, evictable) != (self.num_tokens, self.evictable) {
            return wrong(format!(
                "has {tokens} tokens ({evictable} evictable), says {} ({})",
                self.num_tokens, self.evictable
            ));
        }
        Ok(())
    }

    fn follow<'a>(&mut self, content: &'a [Segment], num_tokens: u32) -> (NodeId, Cursor<'a>) {
        let (mut node, mut cursor) = (NodeId::ROOT, Cursor::new(content, num_tokens));
        while let Some(child) = self.child(node, &cursor) {
            let last_access = self.next_tick();
            let entry = &mut self.nodes[child.index()];
            entry.last_access = last_access;
            let common = cursor.advance_common(&entry.key);
            let whole = common == entry.num_tokens;
            self.offer(child);
            if !whole {
                return (self.split(child, common), cursor);
            }
            node = child;
        }
        (node, cursor)
    }

    #[inline]
    fn child(&self, node: NodeId, cursor: &Cursor<'_>) -> Option<NodeId> {
        let (stream, position) = cursor.token()?;
        self.children.get(&(node, stream, position)).copied()
    }

    /// Puts a new node over the first `common` tokens of `child`, which keeps the rest, its children and its older
    /// access time. The new node takes its place among the siblings.
    fn split(&mut self, child: NodeId, common: u32) -> NodeId {
        let last_access = self.next_tick();
        let head = self.take_node();
        let mut head_key = std::mem::take(&mut self.nodes[head.index()].key);
        let tail = &mut self.nodes[child.index()];
        runs::split(&mut tail.key, common, &mut head_key);
        tail.num_tokens -= common;
        let (parent, lock, place) = (tail.parent, tail.lock, tail.place);
        tail.parent = head;
        let (head_first, tail_first) = (head_key[0], tail.key[0]);
        let entry = &mut self.nodes[head.index()];
        entry.key = head_key;
        entry.num_tokens = common;
        entry.parent = parent;
        entry.num_children = 1;
        entry.lock = lock;
        entry.last_access = last_access;
        entry.place = place;
        self.children.insert((parent, head_first.stream, head_first.start), head);
        self.children.insert((head, tail_first.stream, tail_first.start), child);
        self.num_attached += 1;
        head
    }

    /// Removes a leaf. Returns its tokens.
    fn detach(&mut self, node: NodeId) -> u32 {
        let entry = &mut self.nodes[node.index()];
        entry.attached = false;
        let (parent, num_tokens, first) = (entry.parent, entry.num_tokens, entry.key[0]);
        self.evictable -= i64::from(num_tokens);
        self.num_tokens -= i64::from(num_tokens);
        self.num_attached -= 1;
        self.children.remove(&(parent, first.stream, first.start));
        self.nodes[parent.index()].num_children -= 1;
        // Who holds it may still walk up from it.
        self.nodes[parent.index()].num_holders += 1;
        self.offer(parent);
        self.recycle(node);
        num_tokens
    }

    /// Reuses evicted nodes that nobody holds.
    fn recycle(&mut self, mut node: NodeId) {
        while !self.nodes[node.index()].attached && self.nodes[node.index()].num_holders == 0 {
            self.vacant.push(node);
            node = self.nodes[node.index()].parent;
            self.nodes[node.index()].num_holders -= 1;
        }
    }

    /// Returns a node without key, lock, children and holders.
    fn take_node(&mut self) -> NodeId {
        if let Some(node) = self.vacant.pop() {
            let entry = &mut self.nodes[node.index()];
            entry.key.clear();
            (entry.num_children, entry.lock, entry.num_holders, entry.attached) = (0, 0, 0, true);
            return node;
        }
        let node = NodeId(u32::try_from(self.nodes.len()).expect("Invariant: fewer than 2^32 nodes"));
        self.nodes.push(Node {
            key: Vec::with_capacity(1),
            num_tokens: 0,
            parent: NodeId::ROOT,
            num_children: 0,
            lock: 0,
            last_access: 0,
            place: 0,
            num_holders: 0,
            attached: true,
        });
        node
    }

    #[inline]
    fn next_tick(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }
}
