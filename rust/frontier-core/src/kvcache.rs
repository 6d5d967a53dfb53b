//! The KV cache of one replica: physical blocks, their reuse order, and prefix identity.
//!
//! Mirrors `vllm/v1/core/block_pool.py` and `kv_cache_manager.py` of vLLM 0.32, and the radix cache of SGLang 0.5.3.
//! Knows no time, but for the tiers below the device.

mod block_pool;
mod former_tables;
mod prefix;
mod radix;
pub mod tiers;

pub use block_pool::{BlockChange, BlockPool};
pub use former_tables::FormerTables;
pub use prefix::{BlockHash, PrefixHasher};
pub use radix::{NodeId, RadixTree};
