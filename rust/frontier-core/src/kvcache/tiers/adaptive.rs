//! The adaptive replacement cache: N. Megiddo and D. S. Modha, "ARC: A Self-Tuning, Low Overhead Replacement
//! Cache", FAST 2003, figure 4.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

/// The lists of the paper: blocks used once lately (T1) and more often (T2), and the keys that left them last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum List {
    T1,
    T2,
    B1,
    B2,
}

const NUM_LISTS: usize = 4;

/// Blocks under ARC. Blocks that may not leave are passed over: the paper knows none.
#[derive(Clone, Debug)]
pub(super) struct Adaptive {
    capacity: u64,
    /// The paper's `p`, the size that T1 aims at.
    target: f64,
    clock: u64,
    places: FxHashMap<u64, (List, u64)>,
    /// Keys of each list by last use, oldest first.
    lists: [BTreeMap<u64, u64>; NUM_LISTS],
}

impl Adaptive {
    pub(super) fn new(capacity: u64) -> Self {
        Self {
            capacity,
            target: 0.0,
            clock: 0,
            places: FxHashMap::default(),
            lists: std::array::from_fn(|_| BTreeMap::new()),
        }
    }

    fn size(&self, list: List) -> u64 {
        self.lists[list as usize].len() as u64
    }

    pub(super) fn len(&self) -> u64 {
        self.size(List::T1) + self.size(List::T2)
    }

    pub(super) fn contains(&self, key: u64) -> bool {
        matches!(self.places.get(&key), Some((List::T1 | List::T2, _)))
    }

    /// Case I: a hit goes to the recent end of T2.
    pub(super) fn touch(&mut self, key: u64) {
        debug_assert!(self.contains(key), "Invariant: only a block that is held is used");
        self.take(key);
        self.put(key, List::T2);
    }

    /// Cases II to IV: a miss, remembered by B1, by B2, or by neither.
    pub(super) fn insert(&mut self, key: u64, may_leave: impl Fn(u64) -> bool) -> Result<Option<u64>, ()> {
        debug_assert!(!self.contains(key), "Invariant: a block comes in once");
        let full = self.len() >= self.capacity;
        if full && self.oldest(List::T1, &may_leave).or_else(|| self.oldest(List::T2, &may_leave)).is_none() {
            return Err(());
        }
        let (b1, b2) = (self.size(List::B1), self.size(List::B2));
        let mut gone = None;
        match self.places.get(&key).map(|place| place.0) {
            Some(List::B1) => {
                let step = if b1 >= b2 { 1.0 } else { b2 as f64 / b1 as f64 };
                self.target = (self.target + step).min(self.capacity as f64);
                if full {
                    gone = self.replace(false, &may_leave);
                }
                self.take(key);
                self.put(key, List::T2);
            }
            Some(List::B2) => {
                let step = if b2 >= b1 { 1.0 } else { b1 as f64 / b2 as f64 };
                self.target = (self.target - step).max(0.0);
                if full {
                    gone = self.replace(true, &may_leave);
                }
                self.take(key);
                self.put(key, List::T2);
            }
            _ => {
                let t1 = self.size(List::T1);
                if t1 + b1 >= self.capacity {
                    if t1 < self.capacity {
                        self.forget_oldest(List::B1);
                        if full {
                            gone = self.replace(false, &may_leave);
                        }
                    } else if let Some(victim) = self.oldest(List::T1, &may_leave) {
                        // T1 fills the cache and B1 is empty: the oldest leaves without being remembered.
                        self.take(victim);
                        gone = Some(victim);
                    }
                } else if t1 + b1 + self.size(List::T2) + b2 >= self.capacity {
                    if t1 + b1 + self.size(List::T2) + b2 >= 2 * self.capacity {
                        self.forget_oldest(List::B2);
                    }
                    if full {
                        gone = self.replace(false, &may_leave);
                    }
                }
                self.put(key, List::T1);
            }
        }
        Ok(gone)
    }

    /// The paper's REPLACE: T1 gives a block to B1 if it is longer than its target, else T2 one to B2.
    fn replace(&mut self, asked_by_b2: bool, may_leave: &impl Fn(u64) -> bool) -> Option<u64> {
        let t1 = self.size(List::T1);
        #[expect(clippy::float_cmp, reason = "the paper's rule; sizes are exact in f64")]
        let from_t1 = t1 >= 1 && (t1 as f64 > self.target || (asked_by_b2 && t1 as f64 == self.target));
        let (first, second) = if from_t1 { (List::T1, List::T2) } else { (List::T2, List::T1) };
        let (victim, list) = match self.oldest(first, may_leave) {
            Some(victim) => (victim, first),
            None => (self.oldest(second, may_leave)?, second),
        };
        self.take(victim);
        self.put(victim, if list == List::T1 { List::B1 } else { List::B2 });
        Some(victim)
    }

    fn oldest(&self, list: List, may_leave: &impl Fn(u64) -> bool) -> Option<u64> {
        self.lists[list as usize].values().copied().find(|&key| may_leave(key))
    }

    fn forget_oldest(&mut self, list: List) {
        if let Some((_, key)) = self.lists[list as usize].pop_first() {
            self.places.remove(&key);
        }
    }

    fn take(&mut self, key: u64) {
        if let Some((list, used)) = self.places.remove(&key) {
            self.lists[list as usize].remove(&used);
        }
    }

    fn put(&mut self, key: u64, list: List) {
        self.clock += 1;
        self.places.insert(key, (list, self.clock));
        self.lists[list as usize].insert(self.clock, key);
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let total: usize = self.lists.iter().map(BTreeMap::len).sum();
        if total != self.places.len() {
            return Err(format!("{total} keys are listed, {} indexed", self.places.len()));
        }
        let (t1, b1) = (self.size(List::T1), self.size(List::B1));
        if self.len() > self.capacity || t1 + b1 > self.capacity || total as u64 > 2 * self.capacity {
            let (held, capacity) = (self.len(), self.capacity);
            return Err(format!(
                "{held} blocks are held, {t1} + {b1} used once, {total} known; {capacity} fit"
            ));
        }
        if !(0.0..=self.capacity as f64).contains(&self.target) {
            return Err(format!("the target {} lies outside 0 to {}", self.target, self.capacity));
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn sizes(&self) -> ([u64; NUM_LISTS], f64) {
        ([List::T1, List::T2, List::B1, List::B2].map(|list| self.size(list)), self.target)
    }
}
