//! Places for KV blocks below the device: host memory, local disk, a remote pool.
//!
//! The one part of this room that knows times, because a block on its way is neither here nor there: entries
//! carry the moment from which they can be read and the moment until which they must stay.

mod adaptive;
mod counters;
mod eviction;
mod hierarchy;
mod link;
mod pool;
mod ranked;
mod study;
#[cfg(test)]
mod twins;

pub use counters::TierCounters;
pub use eviction::{Eviction, NEVER_USED_AGAIN, Residents};
pub use hierarchy::{Found, Hierarchy, Read};
pub use link::{Link, Transfer};
pub use pool::TierPool;
pub use study::{HitCounts, Lookups, block_lookups, hit_curve};
