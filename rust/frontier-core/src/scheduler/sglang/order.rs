//! The order of the waiting queue (`SchedulePolicy.calc_priority`).

use std::cmp::Reverse;

use rustc_hash::FxHashMap;

use super::SglangScheduler;
use crate::ids::Slot;
use crate::kvcache::NodeId;
use crate::plan::SchedulePolicy;

/// A request with at most so many cached tokens is compared with others of the queue, and put last if it shares at
/// least so many with an earlier one: that one warms the cache for it.
const IN_QUEUE_PREFIX_TOKENS: i64 = 32;
/// A longer queue is left as it is.
const MAX_MATCHED_QUEUE: usize = 128;

/// A node of the tree with waiting requests at or below it.
#[derive(Debug)]
struct Branch {
    node: NodeId,
    /// Requests at and below it.
    weight: u32,
    requests: Vec<Slot>,
}

impl SglangScheduler {
    /// Sorts the queue, stably. The orders that look at the tree match every waiting request, which renews access times
    /// and splits nodes.
    pub(super) fn order_queue(&mut self) {
        let by_priority = self.config.enable_priority_scheduling;
        match self.policy {
            SchedulePolicy::Fcfs if !by_priority => {}
            SchedulePolicy::Fcfs => {
                let Self { waiting, requests, priority_sign, .. } = self;
                waiting.make_contiguous().sort_by_key(|slot| {
                    let request = &requests[slot.index()];
                    (*priority_sign * request.priority, request.entered)
                });
            }
            SchedulePolicy::Lof => {
                let Self { waiting, requests, priority_sign, .. } = self;
                waiting.make_contiguous().sort_by_key(|slot| {
                    let request = &requests[slot.index()];
                    let rank = if by_priority { *priority_sign * request.priority } else { 0 };
                    (rank, Reverse(request.max_new_tokens))
                });
            }
            SchedulePolicy::Lpm if self.waiting.len() > MAX_MATCHED_QUEUE => {}
            SchedulePolicy::Lpm => self.order_by_longest_match(),
            SchedulePolicy::DfsWeight => self.order_depth_first(),
        }
    }

    fn order_by_longest_match(&mut self) {
        self.queued.clear();
        let mut ranked: Vec<(i64, Slot)> = Vec::with_capacity(self.waiting.len());
        for at in 0..self.waiting.len() {
            let slot = self.waiting[at];
            self.match_prefix(slot);
            let request = &self.requests[slot.index()];
            let mut rank = -request.prefix;
            if request.prefix <= IN_QUEUE_PREFIX_TOKENS {
                let most = (request.fill - 1).max(0) as u32;
                let (_, shared) = self.queued.walk(&request.content, most);
                if i64::from(shared) >= IN_QUEUE_PREFIX_TOKENS {
                    rank = i64::MAX;
                } else {
                    self.queued.insert(&request.content, most);
                }
            }
            ranked.push((rank, slot));
        }
        ranked.sort_by_key(|&(rank, _)| rank);
        self.waiting.clear();
        self.waiting.extend(ranked.into_iter().map(|(_, slot)| slot));
    }

    /// Children with most waiting requests below go first, of equals those that came first; a node's own requests
    /// after its children's. Only branches with waiting requests are looked at.
    fn order_depth_first(&mut self) {
        let mut index: FxHashMap<NodeId, usize> = FxHashMap::default();
        let mut branches: Vec<Branch> = Vec::new();
        let matched: Vec<NodeId> = (0..self.waiting.len())
            .map(|at| {
                let slot = self.waiting[at];
                self.match_prefix(slot)
            })
            .collect();
        for (&slot, &matched) in self.waiting.iter().zip(&matched) {
            let mut node = matched;
            loop {
                let at = *index.entry(node).or_insert_with(|| {
                    branches.push(Branch { node, weight: 0, requests: Vec::new() });
                    branches.len() - 1
                });
                branches[at].weight += 1;
                if node == matched {
                    branches[at].requests.push(slot);
                }
                if node == NodeId::ROOT {
                    break;
                }
                node = self.tree.parent(node);
            }
        }
        // Siblings stand together, in the order in which they are visited.
        let mut siblings: Vec<usize> =
            (0..branches.len()).filter(|&at| branches[at].node != NodeId::ROOT).collect();
        siblings.sort_by_key(|&at| {
            let branch = &branches[at];
            (self.tree.parent(branch.node), Reverse(branch.weight), self.tree.place(branch.node))
        });
        self.waiting.clear();
        let mut stack = vec![(NodeId::ROOT, false)];
        while let Some((node, children_done)) = stack.pop() {
            if children_done {
                let Some(&at) = index.get(&node) else { continue };
                self.waiting.extend(&branches[at].requests);
                continue;
            }
            stack.push((node, true));
            let parent = |&at: &usize| self.tree.parent(branches[at].node);
            let first = siblings.partition_point(|at| parent(at) < node);
            let end = siblings.partition_point(|at| parent(at) <= node);
            stack.extend(siblings[first..end].iter().rev().map(|&at| (branches[at].node, false)));
        }
    }
}
