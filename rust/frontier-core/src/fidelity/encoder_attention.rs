//! Attention of an encoder: every token sees all tokens of its request, or of its block (windowed attention of
//! Qwen2.5-VL, arXiv:2502.13923), and requests are computed whole, so that keys are those of the step alone.
//!
//! The work follows from the lengths that a batch keeps in any case. Kernels are the ones of prefills
//! ([`super::attention`]); their query tiles visit all keys of the span instead of those before them.

use super::batch::{AttentionWork, GroupShape};
use crate::plan::step_time::AttentionSpan;

/// Returns what attention over `span` has to do for a group of prefills, of which causal attention is `causal`.
///
/// Exact without blocks, but for query tiles that are not full where requests differ in length: a tile then visits as many
/// keys as the mean token sees. Blocks count as full wherever the mean token sees that many tokens.
#[inline(never)]
pub(super) fn work(span: AttentionSpan, group: &GroupShape, causal: &AttentionWork) -> AttentionWork {
    let tokens = u128::from(group.query_tokens);
    let (pairs, longest) = match span {
        AttentionSpan::Request {} => (group.query_squares, group.query_max),
        AttentionSpan::Blocks { tokens: block } => {
            (group.query_squares.min(tokens * u128::from(block)), group.query_max.min(block))
        }
    };
    let tile_keys = (u128::from(causal.query_tiles) * pairs).div_ceil(tokens.max(1));
    AttentionWork {
        area: saturated(pairs),
        kv_read: group.query_tokens,
        query_tiles: causal.query_tiles,
        query_tile_keys: saturated(tile_keys),
        query_tile_keys_max: longest,
        ..*causal
    }
}

fn saturated(count: u128) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fidelity::batch::{BatchShape, QUERY_TILE_TOKENS};
    use proptest::prelude::*;

    fn of(span: AttentionSpan, lengths: &[u32]) -> AttentionWork {
        let mut batch = BatchShape::new(&[]);
        for &length in lengths {
            batch.add(length, length, true);
        }
        work(span, batch.prefill(), batch.prefill_work(None))
    }

    proptest! {
        #[test]
        fn every_token_sees_every_token_of_its_request(lengths in prop::collection::vec(2_u32..5000, 1..20)) {
            let found = of(AttentionSpan::Request {}, &lengths);
            prop_assert_eq!(found.area, lengths.iter().map(|&t| u64::from(t) * u64::from(t)).sum::<u64>());
            prop_assert_eq!(found.kv_read, lengths.iter().map(|&t| u64::from(t)).sum::<u64>());
            prop_assert_eq!(found.query_tile_keys_max, *lengths.iter().max().unwrap());
            // Tiles are at least full ones, and compute the pairs.
            prop_assert!(found.query_tile_keys * u64::from(QUERY_TILE_TOKENS) >= found.area);
        }

        #[test]
        fn requests_of_whole_blocks_are_as_many_requests_of_one(blocks in prop::collection::vec(1_u32..60, 1..20)) {
            let block = 2 * QUERY_TILE_TOKENS;
            let lengths: Vec<u32> = blocks.iter().map(|&count| count * block).collect();
            let cut: Vec<u32> = vec![block; blocks.iter().sum::<u32>() as usize];
            let (whole, alone) =
                (of(AttentionSpan::Blocks { tokens: block }, &lengths), of(AttentionSpan::Request {}, &cut));
            prop_assert_eq!(
                (whole.area, whole.query_tiles, whole.query_tile_keys, whole.query_tile_keys_max),
                (alone.area, alone.query_tiles, alone.query_tile_keys, alone.query_tile_keys_max)
            );
        }
    }

    #[test]
    fn a_block_larger_than_all_requests_cuts_nothing() {
        let lengths = [100, 300, 17];
        let whole = of(AttentionSpan::Request {}, &lengths);
        assert_eq!(of(AttentionSpan::Blocks { tokens: 1000 }, &lengths), whole);
        assert_eq!(whole.area, 100 * 100 + 300 * 300 + 17 * 17);
    }
}
