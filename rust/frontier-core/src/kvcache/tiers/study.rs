//! Hit rates of a policy over the block look-ups of a trace, without time or engine.

use rustc_hash::FxHashMap;

use super::eviction::{Eviction, NEVER_USED_AGAIN, Residents};
use crate::error::SimError;
use crate::kvcache::PrefixHasher;
use crate::workload::{Segment, TraceColumns, UNIQUE_STREAM_BASE};

/// Fills up the last block of a prompt: no request has this stream.
const NOTHING: u64 = u64::MAX;

/// What a cache of one size found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HitCounts {
    /// Blocks asked for.
    pub lookups: u64,
    /// Blocks found, one by one: what a cache of independent objects would count.
    pub block_hits: u64,
    /// Blocks found in the leading run of a request: what a prefix cache can use.
    pub prefix_hits: u64,
    /// Blocks that had to leave.
    pub evictions: u64,
}

/// The block look-ups of a trace, as [`hit_curve`] takes them.
#[derive(Clone, Debug, Default)]
pub struct Lookups {
    /// Hash of each block and all before it, request by request.
    pub keys: Vec<u64>,
    /// Where each request's begin, and the end.
    pub offsets: Vec<u64>,
    /// Arrivals in ns.
    pub times_ns: Vec<u64>,
}

/// Returns the blocks of `block_size` tokens that the prompts of a trace look up, a last partial one included: it is
/// found where a prompt ends in the same way.
///
/// # Errors
/// [`SimError::Input`] if `block_size` is 0 or rounds a prompt up past 32 bits.
pub fn block_lookups(trace: &TraceColumns, block_size: u32) -> Result<Lookups, SimError> {
    let mut lookups = Lookups { offsets: vec![0], ..Lookups::default() };
    let mut hasher = PrefixHasher::default();
    for row in 0..trace.len() {
        let facts = trace.row(row);
        let blocks = facts.prompt_tokens.checked_next_multiple_of(block_size);
        let Some(num_tokens) = blocks else {
            return Err(SimError::Input {
                what: "block_size".into(),
                message: format!("was {block_size}, must be at least 1 and leave prompts within 32 bits"),
            });
        };
        let whole = [Segment { stream: UNIQUE_STREAM_BASE + row as u64, start: 0, len: facts.prompt_tokens }];
        let segments = trace.segments(row);
        let prompt = if segments.is_empty() { &whole[..] } else { segments };
        hasher.clear();
        hasher.extend(block_size, prompt, NOTHING, num_tokens);
        lookups.keys.extend(hasher.hashes().iter().map(|hash| hash.key()));
        lookups.offsets.push(lookups.keys.len() as u64);
        lookups.times_ns.push(facts.arrival_ns);
    }
    Ok(lookups)
}

/// Replays requests through caches of each of `capacities` blocks, and returns what each found.
///
/// `keys` are the block hashes of all requests one after another, `offsets` (requests + 1) where each one's begin,
/// `times_ns` when they come (for the TTL). A request first looks up its leading run; then all its blocks are used,
/// last one first as vLLM frees and touches them, so that a prefix outlives what follows it. Blocks that were not
/// there come in.
///
/// # Errors
/// [`SimError::Input`] if columns do not fit each other.
pub fn hit_curve(
    keys: &[u64],
    offsets: &[u64],
    times_ns: &[u64],
    policy: Eviction,
    capacities: &[u64],
) -> Result<Vec<HitCounts>, SimError> {
    check(keys, offsets, times_ns, capacities)?;
    let next_uses = match policy {
        Eviction::Belady {} => next_uses(keys, offsets),
        _ => vec![NEVER_USED_AGAIN; keys.len()],
    };
    let replay = |&capacity: &u64| {
        let mut cache = Residents::new(policy, capacity);
        let mut counts = HitCounts::default();
        for (request, &now) in times_ns.iter().enumerate() {
            let (begin, end) = (offsets[request] as usize, offsets[request + 1] as usize);
            while cache.expire(now, |_| true).is_some() {
                counts.evictions += 1;
            }
            counts.lookups += (end - begin) as u64;
            counts.prefix_hits +=
                keys[begin..end].iter().take_while(|&&key| cache.contains(key, now)).count() as u64;
            for at in (begin..end).rev() {
                if cache.contains(keys[at], now) {
                    counts.block_hits += 1;
                    cache.touch(keys[at], now, next_uses[at]);
                } else if let Ok(Some(_)) = cache.insert(keys[at], now, next_uses[at], |_| true) {
                    counts.evictions += 1;
                }
            }
        }
        counts
    };
    Ok(capacities.iter().map(replay).collect())
}

/// Returns when each use is followed by the next one of the same key, in the order of uses.
fn next_uses(keys: &[u64], offsets: &[u64]) -> Vec<u64> {
    let mut order = Vec::with_capacity(keys.len());
    for bounds in offsets.windows(2) {
        order.extend((bounds[0] as usize..bounds[1] as usize).rev());
    }
    let mut next = vec![NEVER_USED_AGAIN; keys.len()];
    let mut later: FxHashMap<u64, u64> = FxHashMap::default();
    for (moment, &at) in order.iter().enumerate().rev() {
        next[at] = later.insert(keys[at], moment as u64).unwrap_or(NEVER_USED_AGAIN);
    }
    next
}

fn check(keys: &[u64], offsets: &[u64], times_ns: &[u64], capacities: &[u64]) -> Result<(), SimError> {
    let refuse = |what: &str, message: String| Err(SimError::Input { what: what.into(), message });
    let rises = offsets.windows(2).all(|pair| pair[0] <= pair[1]);
    if offsets.first() != Some(&0) || offsets.last() != Some(&(keys.len() as u64)) || !rises {
        return refuse("offsets", format!("must rise from 0 to {}, the number of keys", keys.len()));
    }
    if times_ns.len() + 1 != offsets.len() {
        let message =
            format!("{} given for {} requests, must be one each", times_ns.len(), offsets.len() - 1);
        return refuse("times", message);
    }
    if let Some(row) = times_ns.windows(2).position(|pair| pair[0] > pair[1]) {
        return refuse("times", format!("request {} comes before the one before it", row + 1));
    }
    if capacities.contains(&0) {
        return refuse("capacities", "was 0, must be at least 1 block".into());
    }
    Ok(())
}
