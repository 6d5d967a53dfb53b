//! A part of a batch, as a distribution: micro-batches.
//!
//! A batch keeps no requests, only what they come to. So a micro-batch has its count of requests exactly, and of every
//! sum (tokens, contexts, squares, areas, tiles) the share of its requests: their mean is that of the whole batch. The
//! largest lengths stay those of the whole batch, since some micro-batch has them. Shares are cut at whole numbers and
//! add up to the batch.

use super::{AttentionWork, BatchShape, GroupShape};

/// Requests `from .. to` of `of`.
#[derive(Clone, Copy)]
struct Cut {
    from: u64,
    to: u64,
    of: u64,
}

impl Cut {
    /// Returns the requests of part `number` of `parts`, as equal as possible; the first parts have the remainder.
    fn first(of: u64, number: u64, parts: u64) -> Self {
        let (each, rest) = (of / parts, of % parts);
        let at = |number: u64| number * each + number.min(rest);
        Self { from: at(number), to: at(number + 1), of }
    }

    /// Returns the same, where the last parts have the remainder.
    fn last(of: u64, number: u64, parts: u64) -> Self {
        Self::first(of, parts - 1 - number, parts)
    }

    const fn len(self) -> u64 {
        self.to - self.from
    }

    fn wide(self, sum: u128) -> u128 {
        if self.of == 0 {
            return 0;
        }
        // The common case spares divisions of 128 bits; the first part none at all.
        if let Some(whole) = u64::try_from(sum).ok().filter(|whole| whole.checked_mul(self.to).is_some()) {
            let before = if self.from == 0 { 0 } else { whole * self.from / self.of };
            return u128::from(whole * self.to / self.of - before);
        }
        let at = |place: u64| {
            let (place, of) = (u128::from(place), u128::from(self.of));
            // Quotient and remainder apart: squares may fill 128 bits.
            sum / of * place + sum % of * place / of
        };
        at(self.to) - at(self.from)
    }

    fn sum(self, sum: u64) -> u64 {
        self.wide(u128::from(sum)) as u64
    }

    fn group(self, whole: &GroupShape) -> GroupShape {
        if self.len() == 0 {
            return GroupShape::default();
        }
        GroupShape {
            num_seqs: self.len() as u32,
            query_tokens: self.sum(whole.query_tokens),
            query_max: whole.query_max,
            query_squares: self.wide(whole.query_squares),
            kv_tokens: self.sum(whole.kv_tokens),
            kv_max: whole.kv_max,
            kv_squares: self.wide(whole.kv_squares),
        }
    }

    fn work(self, whole: &AttentionWork) -> AttentionWork {
        if self.len() == 0 {
            return AttentionWork::default();
        }
        AttentionWork {
            area: self.sum(whole.area),
            kv_read: self.sum(whole.kv_read),
            kv_read_squares: self.wide(whole.kv_read_squares),
            kv_tiles: self.sum(whole.kv_tiles),
            query_tiles: self.sum(whole.query_tiles),
            query_tile_keys: self.sum(whole.query_tile_keys),
            query_tile_keys_max: whole.query_tile_keys_max,
        }
    }
}

impl BatchShape {
    /// Becomes micro-batch `number` of `parts` of `whole`. Decodes and prefills are each dealt out as equally as
    /// possible; what decodes leave over goes to the first micro-batches, what prefills leave over to the last. Passes
    /// that draft are left out.
    ///
    /// # Panics
    /// If `number` is not below `parts`, or the two batches keep areas for different windows.
    pub fn set_share(&mut self, whole: &Self, number: u32, parts: u32) {
        assert!(number < parts, "a part is below {parts}, was {number}");
        assert_eq!(self.limits, whole.limits, "shares keep areas for the windows of the batch");
        let (number, parts) = (u64::from(number), u64::from(parts));
        let decodes = Cut::first(u64::from(whole.decode.num_seqs), number, parts);
        let prefills = Cut::last(u64::from(whole.prefill.num_seqs), number, parts);
        let idle = Cut::first(whole.idle_seqs, number, parts);
        self.ranks = whole.ranks;
        self.decode = decodes.group(&whole.decode);
        self.prefill = prefills.group(&whole.prefill);
        let singles = u64::from(whole.single_prompts.num_seqs);
        self.single_prompts = Cut::first(singles, number, parts).group(&whole.single_prompts);
        let prompts = whole.prompt_tokens - whole.single_prompts.query_tokens;
        self.prompt_tokens = prefills.sum(prompts) + self.single_prompts.query_tokens;
        (self.idle_seqs, self.idle_kv_tokens) = (idle.len(), idle.sum(whole.idle_kv_tokens));
        self.taken_back = Cut::first(whole.taken_back, number, parts).len();
        for (work, whole) in self.decode_work.iter_mut().zip(&whole.decode_work) {
            *work = decodes.work(whole);
        }
        for (work, whole) in self.prefill_work.iter_mut().zip(&whole.prefill_work) {
            *work = prefills.work(whole);
        }
        // Drafts belong to decodes, but for those of a last chunk of a prompt.
        let drafts = if decodes.of > 0 { decodes } else { prefills };
        self.drafts = drafts.sum(whole.drafts);
        self.drafted = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn prop_shares_add_up(
            requests in proptest::collection::vec((1_u32..50, 0_u32..300, any::<bool>()), 0..40), parts in 1_u32..9,
        ) {
            let mut whole = BatchShape::new(&[64]);
            for &(query, history, is_prefill) in &requests {
                whole.add(if is_prefill { query } else { 1 }, history + query, is_prefill);
            }
            let mut share = BatchShape::new(&[64]);
            let shares: Vec<BatchShape> = (0..parts)
                .map(|number| {
                    share.set_share(&whole, number, parts);
                    share.clone()
                })
                .collect();
            let all = |f: fn(&BatchShape) -> u64| shares.iter().map(f).sum::<u64>();
            prop_assert_eq!(all(BatchShape::num_seqs), whole.num_seqs());
            prop_assert_eq!(all(BatchShape::num_tokens), whole.num_tokens());
            prop_assert_eq!(all(BatchShape::kv_tokens), whole.kv_tokens());
            prop_assert_eq!(all(BatchShape::prompt_tokens), whole.prompt_tokens());
            for window in [None, Some(0)] {
                let area = |of: &BatchShape| of.prefill_work(window).area + of.decode_work(window).area;
                prop_assert_eq!(shares.iter().map(area).sum::<u64>(), area(&whole));
            }
            let squares = |of: &BatchShape| of.decode().kv_squares;
            prop_assert_eq!(shares.iter().map(squares).sum::<u128>(), squares(&whole));
            let decodes: Vec<u32> = shares.iter().map(|share| share.decode().num_seqs).collect();
            let (least, most) = (decodes.iter().min().unwrap(), decodes.iter().max().unwrap());
            prop_assert!(most - least <= 1);
            for share in &shares {
                // One token each stays one token each.
                prop_assert_eq!(share.decode().query_tokens, u64::from(share.decode().num_seqs));
            }
            if parts == 1 {
                prop_assert_eq!(&shares[0], &whole);
            }
        }
    }

    #[test]
    fn large_sums_are_shared_as_small_ones() {
        for (from, to, of) in [(0, 3, 10), (3, 7, 10), (7, 10, 10), (0, 1, 1)] {
            let cut = Cut { from, to, of };
            for sum in [0_u128, 1, 99, 12_345_678_901, 1 << 59] {
                let scale = u128::from(of) << 64;
                // Beyond 64 bits, and a multiple of all requests: exact.
                assert_eq!(cut.wide(sum * scale), (sum * u128::from(to - from)) << 64);
                let at = |place: u64| sum * u128::from(place) / u128::from(of);
                assert_eq!(cut.wide(sum), at(to) - at(from));
            }
        }
    }

    #[test]
    fn micro_batches_of_equal_requests_are_batches_of_them() {
        let batch = |count: u32| {
            let mut batch = BatchShape::new(&[128]);
            (0..count).for_each(|_| batch.add(1, 1_000, false));
            batch
        };
        let (whole, mut share) = (batch(10), BatchShape::new(&[128]));
        for (number, count) in [(0, 4), (1, 3), (2, 3)] {
            share.set_share(&whole, number, 3);
            assert_eq!(share, batch(count));
        }
        share.set_share(&batch(2), 2, 3);
        assert_eq!(share, batch(0));
    }
}
