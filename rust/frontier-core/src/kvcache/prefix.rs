//! Identity of prefixes: a chain of hashes over full blocks, computed from segments, never from tokens.

use std::num::NonZeroU64;

use crate::rng::mix;
use crate::workload::Segment;

/// Identity of a full block *and everything before it*. Equal exactly when the token identities agree, up to
/// a collision of 64-bit hashes (below 3e-6 for ten million distinct blocks).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockHash(NonZeroU64);

impl BlockHash {
    /// Returns the identity of the same content in one group of layers.
    pub(crate) fn in_group(self, group: usize) -> Self {
        let bits = mix(self.0.get() ^ mix(group as u64 + 1));
        Self(NonZeroU64::new(bits).unwrap_or(NonZeroU64::MIN))
    }

    /// Returns the hash as a key of tiers.
    #[inline]
    pub fn key(self) -> u64 {
        self.0.get()
    }
}

#[cfg(test)]
impl BlockHash {
    pub(crate) fn for_test(value: NonZeroU64) -> Self {
        Self(value)
    }
}

/// Hash chain of one request, grown as its tokens become known.
#[derive(Clone, Debug, Default)]
pub struct PrefixHasher {
    hashes: Vec<BlockHash>,
    /// Segment that the next block starts in, and how many of its tokens are behind.
    segment: usize,
    consumed: u32,
}

impl PrefixHasher {
    /// Forgets everything, keeping the memory.
    pub fn clear(&mut self) {
        self.hashes.clear();
        self.segment = 0;
        self.consumed = 0;
    }

    /// Returns the hashes of the full blocks known so far, in logical order.
    #[inline]
    pub fn hashes(&self) -> &[BlockHash] {
        &self.hashes
    }

    /// Hashes all full blocks of the first `num_tokens` tokens. The tokens are those of `prompt` (in normal
    /// form: no two adjacent segments continue each other), then positions 0, 1, ... of the stream `output`.
    #[inline]
    pub fn extend(&mut self, block_size: u32, prompt: &[Segment], output: u64, num_tokens: u32) {
        while (self.hashes.len() as u64 + 1) * u64::from(block_size) <= u64::from(num_tokens) {
            self.hash_next_block(block_size, prompt, output);
        }
    }

    fn hash_next_block(&mut self, block_size: u32, prompt: &[Segment], output: u64) {
        let mut state = self.hashes.last().map_or(0x5052_4546_4958, |parent| parent.0.get());
        let mut missing = block_size;
        while missing > 0 {
            // Maximal runs of consecutive positions describe a block's content uniquely.
            let (stream, start, len) = match prompt.get(self.segment) {
                Some(segment) => (
                    segment.stream,
                    segment.start + self.consumed,
                    (segment.len - self.consumed).min(missing),
                ),
                None => (output, self.consumed, missing),
            };
            state = mix(mix(state ^ stream) ^ (u64::from(start) << 32 | u64::from(len)));
            missing -= len;
            self.consumed += len;
            if prompt.get(self.segment).is_some_and(|segment| segment.len == self.consumed) {
                self.segment += 1;
                self.consumed = 0;
            }
        }
        self.hashes.push(BlockHash(NonZeroU64::new(state).unwrap_or(NonZeroU64::MIN)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(prompt: &[(u64, u32, u32)], output: u64, num_tokens: u32, steps: &[u32]) -> Vec<BlockHash> {
        let segments: Vec<Segment> =
            prompt.iter().map(|&(stream, start, len)| Segment { stream, start, len }).collect();
        let mut hasher = PrefixHasher::default();
        for &known in steps {
            hasher.extend(4, &segments, output, known);
        }
        hasher.extend(4, &segments, output, num_tokens);
        hasher.hashes().to_vec()
    }

    #[test]
    fn equal_tokens_have_equal_hashes_however_they_are_grown() {
        let at_once = chain(&[(1, 0, 6), (2, 3, 3)], 9, 20, &[]);
        assert_eq!(at_once, chain(&[(1, 0, 6), (2, 3, 3)], 9, 20, &[3, 5, 9, 10, 17]));
        assert_eq!(at_once.len(), 5);
    }

    #[test]
    fn prefixes_agree_exactly_as_far_as_tokens_do() {
        let a = chain(&[(1, 0, 12)], 7, 12, &[]);
        let b = chain(&[(1, 0, 9), (3, 0, 3)], 8, 12, &[]);
        assert_eq!(a[..2], b[..2]);
        assert_ne!(a[2], b[2]);
        let shifted = chain(&[(1, 1, 12)], 7, 12, &[]);
        assert!(a.iter().zip(&shifted).all(|(x, y)| x != y));
    }

    #[test]
    fn a_later_turn_finds_an_earlier_output() {
        // Turn 1: 5 prompt tokens, 7 generated as stream 100. Turn 2 quotes both.
        let first = chain(&[(1, 0, 5)], 100, 12, &[]);
        let second = chain(&[(1, 0, 5), (100, 0, 7), (2, 0, 4)], 101, 16, &[]);
        assert_eq!(first[..], second[..3]);
    }
}
