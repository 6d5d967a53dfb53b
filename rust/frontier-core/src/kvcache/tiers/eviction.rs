//! Which blocks a tier keeps: one interface over the policies.

use serde::Deserialize;

use super::adaptive::Adaptive;
use super::ranked::Ranked;
use crate::error::SimError;

/// Next use of a block that nobody asks for again.
pub const NEVER_USED_AGAIN: u64 = u64::MAX;

/// Which block leaves a full tier.
///
/// Policies without settings are empty structs: serde does not refuse unknown fields of unit variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "policy", rename_all = "snake_case", deny_unknown_fields)]
pub enum Eviction {
    /// The least recently used.
    Lru {},
    /// The least often used since it came in; of these, the least recently used.
    Lfu {},
    /// The adaptive replacement cache of Megiddo and Modha (FAST 2003).
    Arc {},
    /// Blocks that were not used for `ttl_ns` are gone; a full tier drops the one that would go first.
    Ttl {
        /// Time since the last use after which a block is dropped.
        ttl_ns: u64,
    },
    /// The block whose next use is furthest away (Belady 1966): an oracle, which needs the future.
    Belady {},
}

impl Eviction {
    /// Reads a policy from its JSON form.
    ///
    /// # Errors
    /// [`SimError::Plan`] with what is wrong.
    pub fn from_json(json: &str) -> Result<Self, SimError> {
        serde_json::from_str(json)
            .map_err(|error| SimError::Plan { path: "eviction".into(), message: error.to_string() })
    }
}

/// The blocks that a tier holds, by key, and the order in which they leave.
///
/// The caller tells the present moment (`now`, of any clock that does not run backwards) and, for the oracle, when
/// the block is used next; the other policies do not look at it.
#[derive(Clone, Debug)]
pub struct Residents {
    order: Order,
}

#[derive(Clone, Debug)]
enum Order {
    Ranked(Ranked),
    Adaptive(Adaptive),
}

impl Residents {
    /// Returns an empty tier of `capacity` blocks.
    pub fn new(policy: Eviction, capacity: u64) -> Self {
        let order = match policy {
            Eviction::Arc {} => Order::Adaptive(Adaptive::new(capacity)),
            _ => Order::Ranked(Ranked::new(policy, capacity)),
        };
        Self { order }
    }

    /// Returns the number of blocks held, those of which the time is up included.
    pub fn len(&self) -> u64 {
        match &self.order {
            Order::Ranked(ranked) => ranked.len(),
            Order::Adaptive(adaptive) => adaptive.len(),
        }
    }

    /// Tells whether no block is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tells whether the tier holds `key` and its time is not up.
    pub fn contains(&self, key: u64, now: u64) -> bool {
        match &self.order {
            Order::Ranked(ranked) => ranked.contains(key, now),
            Order::Adaptive(adaptive) => adaptive.contains(key),
        }
    }

    /// Notes a use of a block that is held.
    pub fn touch(&mut self, key: u64, now: u64, next_use: u64) {
        match &mut self.order {
            Order::Ranked(ranked) => ranked.touch(key, now, next_use),
            Order::Adaptive(adaptive) => adaptive.touch(key),
        }
    }

    /// Takes in a block that is not held. A full tier first drops one of those that `may_leave`, and returns it.
    ///
    /// # Errors
    /// `Err(())` if none may leave; then nothing has changed.
    #[expect(clippy::result_unit_err, reason = "there is one way to fail: the tier is full of blocks in use")]
    pub fn insert(
        &mut self,
        key: u64,
        now: u64,
        next_use: u64,
        may_leave: impl Fn(u64) -> bool,
    ) -> Result<Option<u64>, ()> {
        match &mut self.order {
            Order::Ranked(ranked) => ranked.insert(key, now, next_use, may_leave),
            Order::Adaptive(adaptive) => adaptive.insert(key, may_leave),
        }
    }

    /// Drops one of the blocks whose time is up and that `may_leave`, if there is any.
    pub fn expire(&mut self, now: u64, may_leave: impl Fn(u64) -> bool) -> Option<u64> {
        match &mut self.order {
            Order::Ranked(ranked) => ranked.expire(now, may_leave),
            Order::Adaptive(_) => None,
        }
    }

    /// Checks that the order holds what the index holds and no more than fits. O(blocks).
    ///
    /// # Errors
    /// Which law does not hold.
    pub fn check(&self) -> Result<(), String> {
        match &self.order {
            Order::Ranked(ranked) => ranked.check(),
            Order::Adaptive(adaptive) => adaptive.check(),
        }
    }
}
