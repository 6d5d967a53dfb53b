//! Policies restated slowly and plainly, and the properties that the literature gives them.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::adaptive::Adaptive;
use super::eviction::{Eviction, NEVER_USED_AGAIN, Residents};
use super::study::hit_curve;

/// A cache as a list of what each block is known by, searched from end to end.
struct Plain {
    policy: Eviction,
    capacity: usize,
    /// (key, uses, moment of last use, time of last use, next use).
    blocks: Vec<(u64, u64, u64, u64, u64)>,
    moment: u64,
}

impl Plain {
    fn new(policy: Eviction, capacity: usize) -> Self {
        Self { policy, capacity, blocks: Vec::new(), moment: 0 }
    }

    fn is_over(&self, block: &(u64, u64, u64, u64, u64), now: u64) -> bool {
        matches!(self.policy, Eviction::Ttl { ttl_ns } if now >= block.3 + ttl_ns)
    }

    /// Uses a block. Returns whether it was there, and what left.
    fn access(
        &mut self,
        key: u64,
        now: u64,
        next: u64,
        pinned: Option<u64>,
    ) -> (bool, Result<Option<u64>, ()>) {
        self.moment += 1;
        let (policy, moment) = (self.policy, self.moment);
        let over: Vec<bool> = self.blocks.iter().map(|block| self.is_over(block, now)).collect();
        let mut keep = over.iter().zip(&self.blocks).map(|(over, block)| !over || Some(block.0) == pinned);
        let keep: Vec<bool> = keep.by_ref().collect();
        let mut flags = keep.iter();
        self.blocks.retain(|_| *flags.next().unwrap());
        if let Some(block) = self.blocks.iter_mut().find(|block| block.0 == key) {
            let over = matches!(policy, Eviction::Ttl { ttl_ns } if now >= block.3 + ttl_ns);
            *block = (key, block.1 + 1, moment, now, next);
            return (!over, Ok(None));
        }
        let mut gone = None;
        if self.blocks.len() == self.capacity {
            let worst = |block: &&(u64, u64, u64, u64, u64)| match policy {
                Eviction::Lfu {} => (block.1, block.2),
                Eviction::Ttl { .. } => (block.3, block.2),
                Eviction::Belady {} => (u64::MAX - block.4, block.2),
                Eviction::Lru {} | Eviction::Arc {} => (0, block.2),
            };
            let free = self.blocks.iter().filter(|block| Some(block.0) != pinned);
            let Some(victim) = free.min_by_key(worst).map(|block| block.0) else { return (false, Err(())) };
            self.blocks.retain(|block| block.0 != victim);
            gone = Some(victim);
        }
        self.blocks.push((key, 1, moment, now, next));
        (false, Ok(gone))
    }
}

/// Figure 4 of the paper, line by line, on lists whose front is the least recently used end.
#[derive(Default)]
struct PaperArc {
    c: usize,
    p: f64,
    t1: VecDeque<u64>,
    t2: VecDeque<u64>,
    b1: VecDeque<u64>,
    b2: VecDeque<u64>,
}

fn delete(list: &mut VecDeque<u64>, key: u64) -> bool {
    let before = list.len();
    list.retain(|&other| other != key);
    list.len() < before
}

impl PaperArc {
    fn replace(&mut self, in_b2: bool) {
        let t1 = self.t1.len() as f64;
        #[expect(clippy::float_cmp, reason = "the paper's rule")]
        if !self.t1.is_empty() && ((in_b2 && t1 == self.p) || t1 > self.p) {
            let page = self.t1.pop_front().unwrap();
            self.b1.push_back(page);
        } else if let Some(page) = self.t2.pop_front() {
            self.b2.push_back(page);
        }
    }

    fn access(&mut self, x: u64) -> bool {
        if delete(&mut self.t1, x) || delete(&mut self.t2, x) {
            self.t2.push_back(x);
            return true;
        }
        let (b1, b2) = (self.b1.len() as f64, self.b2.len() as f64);
        if self.b1.contains(&x) {
            self.p = (self.p + f64::max(b2 / b1, 1.0)).min(self.c as f64);
            self.replace(false);
            delete(&mut self.b1, x);
            self.t2.push_back(x);
            return false;
        }
        if self.b2.contains(&x) {
            self.p = (self.p - f64::max(b1 / b2, 1.0)).max(0.0);
            self.replace(true);
            delete(&mut self.b2, x);
            self.t2.push_back(x);
            return false;
        }
        let l1 = self.t1.len() + self.b1.len();
        let all = l1 + self.t2.len() + self.b2.len();
        if l1 == self.c {
            if self.t1.len() < self.c {
                self.b1.pop_front();
                self.replace(false);
            } else {
                self.t1.pop_front();
            }
        } else if all >= self.c {
            if all == 2 * self.c {
                self.b2.pop_front();
            }
            self.replace(false);
        }
        self.t1.push_back(x);
        false
    }
}

fn next_uses(keys: &[u64]) -> Vec<u64> {
    let later = |at: usize| keys[at + 1..].iter().position(|&key| key == keys[at]);
    (0..keys.len()).map(|at| later(at).map_or(NEVER_USED_AGAIN, |gap| (at + 1 + gap) as u64)).collect()
}

/// Hits of a policy on single look-ups, one per nanosecond.
fn hits(policy: Eviction, capacity: u64, keys: &[u64]) -> u64 {
    let times: Vec<u64> = (0..keys.len() as u64).collect();
    let offsets: Vec<u64> = (0..=keys.len() as u64).collect();
    hit_curve(keys, &offsets, &times, policy, &[capacity]).unwrap()[0].block_hits
}

const TTL: Eviction = Eviction::Ttl { ttl_ns: 9 };

/// The most hits that any way of evicting could have, by trying them all.
fn best_hits(keys: &[u64], capacity: usize, held: &[u64]) -> u64 {
    let Some((&key, rest)) = keys.split_first() else { return 0 };
    if held.contains(&key) {
        return 1 + best_hits(rest, capacity, held);
    }
    let with = |held: &[u64]| [held, &[key]].concat();
    if held.len() < capacity {
        return best_hits(rest, capacity, &with(held));
    }
    let without = |at: usize| {
        let mut kept = held.to_vec();
        kept.remove(at);
        best_hits(rest, capacity, &with(&kept))
    };
    (0..held.len()).map(without).max().unwrap_or(0)
}

proptest! {
    #[test]
    fn prop_ranked_policies_equal_a_plain_list(
        which in 0_usize..4,
        capacity in 1_u64..7,
        accesses in prop::collection::vec((0_u64..12, 0_u64..4, 0_u64..12), 1..200),
    ) {
        let policy = [Eviction::Lru {}, Eviction::Lfu {}, TTL, Eviction::Belady {}][which];
        let keys: Vec<u64> = accesses.iter().map(|access| access.0).collect();
        let next = next_uses(&keys);
        let (mut cache, mut plain) = (Residents::new(policy, capacity), Plain::new(policy, capacity as usize));
        let mut now = 0;
        for (at, &(key, gap, pin)) in accesses.iter().enumerate() {
            now += gap;
            let pinned = (pin < 6).then_some(pin);
            while cache.expire(now, |key| Some(key) != pinned).is_some() {}
            let found = cache.contains(key, now);
            let held = !found && cache.contains(key, 0);
            let outcome = if found || held {
                cache.touch(key, now, next[at]);
                Ok(None)
            } else {
                cache.insert(key, now, next[at], |key| Some(key) != pinned)
            };
            prop_assert_eq!((found, outcome), plain.access(key, now, next[at], pinned));
            prop_assert_eq!(cache.check(), Ok(()));
            prop_assert_eq!(cache.len(), plain.blocks.len() as u64);
        }
    }

    #[test]
    fn prop_arc_equals_the_paper(capacity in 1_u64..9, keys in prop::collection::vec(0_u64..24, 1..400)) {
        let mut arc = Adaptive::new(capacity);
        let mut paper = PaperArc { c: capacity as usize, ..PaperArc::default() };
        for key in keys {
            let found = arc.contains(key);
            if found { arc.touch(key) } else { prop_assert!(arc.insert(key, |_| true).is_ok()) }
            prop_assert_eq!(found, paper.access(key));
            let sizes = [&paper.t1, &paper.t2, &paper.b1, &paper.b2].map(|list| list.len() as u64);
            prop_assert_eq!(arc.sizes(), (sizes, paper.p));
            prop_assert_eq!(arc.check(), Ok(()));
        }
    }

    #[test]
    fn prop_arc_keeps_its_laws_with_blocks_that_may_not_leave(
        capacity in 1_u64..6,
        accesses in prop::collection::vec((0_u64..14, 0_u64..14, 0_u64..14), 1..300),
    ) {
        let mut arc = Adaptive::new(capacity);
        for (key, pin, other) in accesses {
            let stays = |key: u64| key == pin || key == other;
            if arc.contains(key) {
                arc.touch(key);
            } else {
                let held: Vec<u64> = (0..14).filter(|&key| arc.contains(key)).collect();
                let stuck = held.len() as u64 == capacity && held.iter().all(|&key| stays(key));
                let outcome = arc.insert(key, |key| !stays(key));
                prop_assert_eq!(outcome.is_err(), stuck);
                prop_assert!(held.iter().all(|&key| arc.contains(key) || outcome == Ok(Some(key))));
                prop_assert_eq!(arc.contains(key), outcome.is_ok());
            }
            prop_assert_eq!(arc.check(), Ok(()));
        }
    }

    /// Mattson, Gecsei, Slutz and Traiger (1970): a use hits in every LRU cache larger than its stack distance.
    #[test]
    fn prop_lru_hits_are_those_of_stack_distances(keys in prop::collection::vec(0_u64..20, 1..200)) {
        let mut stack: Vec<u64> = Vec::new();
        let mut distances = Vec::new();
        for &key in &keys {
            let at = stack.iter().position(|&other| other == key);
            distances.extend(at);
            if let Some(at) = at { stack.remove(at); }
            stack.insert(0, key);
        }
        for capacity in 1..=20 {
            let expected = distances.iter().filter(|&&distance| distance < capacity).count() as u64;
            prop_assert_eq!(hits(Eviction::Lru {}, capacity as u64, &keys), expected);
        }
    }

    #[test]
    fn prop_nothing_hits_more_than_belady(capacity in 1_u64..8, keys in prop::collection::vec(0_u64..16, 1..250)) {
        let best = hits(Eviction::Belady {}, capacity, &keys);
        for policy in [Eviction::Lru {}, Eviction::Lfu {}, Eviction::Arc {}, TTL] {
            prop_assert!(hits(policy, capacity, &keys) <= best, "{:?}", policy);
        }
        // A block that was not used for a while is gone on top of what LRU drops.
        let lru = hits(Eviction::Lru {}, capacity, &keys);
        prop_assert!(hits(TTL, capacity, &keys) <= lru);
    }

    #[test]
    fn prop_belady_is_the_best_of_all_choices(capacity in 1_usize..4, keys in prop::collection::vec(0_u64..6, 1..13)) {
        prop_assert_eq!(hits(Eviction::Belady {}, capacity as u64, &keys), best_hits(&keys, capacity, &[]));
    }

    #[test]
    fn prop_policies_agree_where_everything_fits(keys in prop::collection::vec(0_u64..16, 1..200)) {
        let all = hits(Eviction::Lru {}, 16, &keys);
        for policy in [Eviction::Lfu {}, Eviction::Arc {}, Eviction::Belady {}, Eviction::Ttl { ttl_ns: 1_000 }] {
            prop_assert_eq!(hits(policy, 16, &keys), all);
        }
    }
}

/// "ARC is scan-resistant" (section IV of the paper): blocks used once flow through T1 and leave T2 alone.
#[test]
fn a_scan_leaves_what_is_used_often() {
    let often: Vec<u64> = (0..40).collect();
    let mut keys = [often.clone(), often.clone()].concat();
    keys.extend(1_000..1_300);
    let warm = keys.len() as u64;
    keys.extend(&often);
    let after_scan = |policy| hits(policy, 50, &keys) - (warm - 340);
    assert_eq!(after_scan(Eviction::Lru {}), 0);
    assert_eq!(after_scan(Eviction::Arc {}), 40);
}

#[test]
fn a_prefix_counts_only_as_far_as_it_reaches() {
    // The second request finds blocks 1 and 3, but 2 was dropped: only 1 can be used.
    let (keys, offsets) = ([1, 2, 3, 1, 9, 3], [0, 3, 6]);
    let curve = hit_curve(&keys, &offsets, &[0, 1], Eviction::Lru {}, &[3, 8]).unwrap();
    assert_eq!((curve[1].lookups, curve[1].prefix_hits, curve[1].block_hits), (6, 1, 2));
    let refused = hit_curve(&keys, &[0, 7], &[0], Eviction::Lru {}, &[3]);
    assert!(refused.unwrap_err().to_string().contains("offsets"));
}
