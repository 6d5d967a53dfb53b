//! A part of a batch, as a distribution: micro-batches.
//!
//! Batches are cut by tokens, decodes first, as vLLM cuts them (`vllm/v1/worker/ubatch_utils.py`): micro-batches are
//! equally large, and a prompt's chunk that lies over a cut is computed in parts. A later part sees the keys of the
//! earlier ones, whose attention comes before it in every layer; so the parts' query-key pairs add up to the chunk's,
//! while every part reads what lies before it again.
//!
//! Of decodes a batch keeps no requests, only what they come to. So a micro-batch has its count of them exactly, and of
//! every sum (tokens, contexts, squares, areas, tiles) the share of its requests: their mean is that of the whole
//! batch. The largest lengths stay those of the whole batch, since some micro-batch has them. Shares are cut at whole
//! numbers and add up to the batch. Chunks of prompts are kept one by one and cut exactly.

use super::{AttentionWork, BatchShape, Chunk, GroupShape};

/// Places `from .. to` of `of`.
#[derive(Clone, Copy)]
struct Cut {
    from: u64,
    to: u64,
    of: u64,
}

impl Cut {
    /// Returns part `number` of `parts`, as equal as possible; the first parts have the remainder.
    fn first(of: u64, number: u64, parts: u64) -> Self {
        let (each, rest) = (of / parts, of % parts);
        let at = |number: u64| number * each + number.min(rest);
        Self { from: at(number), to: at(number + 1), of }
    }

    /// Returns what of it lies in the `of` places from `start` on, counted from there.
    fn within(self, start: u64, of: u64) -> Self {
        let at = |place: u64| place.saturating_sub(start).min(of);
        Self { from: at(self.from), to: at(self.to), of }
    }

    /// Returns the same share of `of` other places.
    fn of(self, of: u64) -> Self {
        let at = |place: u64| (place * of).checked_div(self.of).unwrap_or(0);
        Self { from: at(self.from), to: at(self.to), of }
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

impl Chunk {
    /// Returns the tokens `from .. to` of a chunk, which follow those before them in the context.
    const fn part(self, from: u32, to: u32) -> Self {
        Self { query_tokens: to - from, context_after: self.context_after - (self.query_tokens - to) }
    }
}

impl BatchShape {
    /// Becomes micro-batch `number` of `parts` of `whole`: of its tokens as equal a part as possible, decodes first and
    /// then prefills in their order; the first micro-batches have what is left over. A decode counts as one token. Passes
    /// that draft are left out.
    ///
    /// # Panics
    /// If `number` is not below `parts`, the two batches keep areas for different windows, or `whole` does not keep its
    /// prefills one by one ([`Self::can_be_cut`]).
    pub fn set_share(&mut self, whole: &Self, number: u32, parts: u32) {
        assert!(number < parts, "a part is below {parts}, was {number}");
        assert_eq!(self.limits, whole.limits, "shares keep areas for the windows of the batch");
        assert!(whole.can_be_cut(), "a batch with prefills that is cut keeps them one by one");
        let (number, parts) = (u64::from(number), u64::from(parts));
        let num_decodes = u64::from(whole.decode.num_seqs);
        let all = Cut::first(num_decodes + whole.prefill.query_tokens, number, parts);
        let decodes = all.within(0, num_decodes);
        let prefills = all.within(num_decodes, whole.prefill.query_tokens);
        let idle = Cut::first(whole.idle_seqs, number, parts);
        self.ranks = whole.ranks;
        self.decode = decodes.group(&whole.decode);
        self.prefill = GroupShape::default();
        self.prefill_work.fill(AttentionWork::default());
        self.single_prompts = match u64::from(whole.single_prompts.num_seqs) {
            0 => GroupShape::default(),
            singles => decodes.of(singles).group(&whole.single_prompts),
        };
        self.prompt_tokens = self.single_prompts.query_tokens;
        (self.idle_seqs, self.idle_kv_tokens) = (idle.len(), idle.sum(whole.idle_kv_tokens));
        self.taken_back = Cut::first(whole.taken_back, number, parts).len();
        for (work, whole) in self.decode_work.iter_mut().zip(&whole.decode_work) {
            *work = decodes.work(whole);
        }
        // Drafts belong to decodes, but for those of a last chunk of a prompt.
        let drafts = if decodes.of > 0 { decodes } else { prefills };
        self.drafts = drafts.sum(whole.drafts);
        (self.drafted, self.chunks) = (None, None);
        if prefills.len() > 0 {
            self.add_parts(whole.chunks.as_deref().unwrap_or_default(), prefills);
        }
    }

    /// Adds the tokens of `chunks`, one chunk after the other, that lie in a part of them.
    fn add_parts(&mut self, chunks: &[Chunk], part: Cut) {
        let mut start = 0;
        for &chunk in chunks {
            let own = part.within(start, u64::from(chunk.query_tokens));
            start += own.of;
            if own.len() > 0 {
                // No more than the chunk's own tokens.
                let Chunk { query_tokens, context_after } = chunk.part(own.from as u32, own.to as u32);
                self.add(query_tokens, context_after, true);
            } else if start >= part.to {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shares_of(whole: &BatchShape, parts: u32) -> Vec<BatchShape> {
        let mut share = BatchShape::new(whole.windows());
        (0..parts)
            .map(|number| {
                share.set_share(whole, number, parts);
                share.clone()
            })
            .collect()
    }

    /// The same token by token: a batch of the tokens that lie in the part, decodes first.
    fn token_by_token(requests: &[(u32, u32, bool)], number: u32, parts: u32) -> BatchShape {
        let is_chunk = |&&(query, _, is_prefill): &&(u32, u32, bool)| is_prefill && query > 1;
        let decodes = requests
            .iter()
            .filter(|request| !is_chunk(request))
            .map(|&(_, history, of)| (usize::MAX, history + 1, of));
        let chunks =
            requests.iter().enumerate().filter(|(_, request)| is_chunk(request)).flat_map(
                |(at, &(query, history, _))| (1..=query).map(move |done| (at, history + done, true)),
            );
        let tokens: Vec<_> = decodes.chain(chunks).collect();
        let (each, rest) = (tokens.len() / parts as usize, tokens.len() % parts as usize);
        let at = |number: usize| number * each + number.min(rest);
        let mut batch = BatchShape::new(&[64]);
        let part = &tokens[at(number as usize)..at(number as usize + 1)];
        for run in part.chunk_by(|one, next| one.0 == next.0 && one.0 != usize::MAX) {
            let &(_, context, is_prefill) = run.last().expect("a run is not empty");
            batch.add(run.len() as u32, context, is_prefill);
        }
        batch
    }

    proptest! {
        #[test]
        fn prop_shares_add_up(
            requests in proptest::collection::vec((1_u32..50, 0_u32..300, any::<bool>()), 0..40), parts in 1_u32..9,
        ) {
            let mut whole = BatchShape::to_be_cut(&[64]);
            for &(query, history, is_prefill) in &requests {
                let query = if is_prefill { query } else { 1 };
                whole.add(query, history + query, is_prefill);
            }
            let shares = shares_of(&whole, parts);
            let all = |f: fn(&BatchShape) -> u64| shares.iter().map(f).sum::<u64>();
            prop_assert_eq!(all(BatchShape::num_tokens), whole.num_tokens());
            prop_assert_eq!(all(BatchShape::prompt_tokens), whole.prompt_tokens());
            for window in [None, Some(0)] {
                let area = |of: &BatchShape| of.prefill_work(window).area + of.decode_work(window).area;
                prop_assert_eq!(shares.iter().map(area).sum::<u64>(), area(&whole));
            }
            let tokens: Vec<u64> = shares.iter().map(BatchShape::num_tokens).collect();
            prop_assert!(tokens.iter().max().unwrap() - tokens.iter().min().unwrap() <= 1);
            for share in &shares {
                // One token each stays one token each.
                prop_assert_eq!(share.decode().query_tokens, u64::from(share.decode().num_seqs));
            }
            if whole.prefill().num_seqs == 0 {
                prop_assert_eq!(all(BatchShape::num_seqs), whole.num_seqs());
                prop_assert_eq!(all(BatchShape::kv_tokens), whole.kv_tokens());
                let squares = |of: &BatchShape| of.decode().kv_squares;
                prop_assert_eq!(shares.iter().map(squares).sum::<u128>(), squares(&whole));
            }
            if parts == 1 {
                let kept = BatchShape { chunks: whole.chunks.clone(), ..shares[0].clone() };
                prop_assert_eq!(&kept, &whole);
            }
        }

        #[test]
        fn prop_chunks_are_cut_as_token_by_token(
            requests in proptest::collection::vec((1_u32..50, 0_u32..300, any::<bool>()), 0..12), parts in 1_u32..9,
            context in 1_u32..300,
        ) {
            // Decodes of equal lengths, of which a distribution is exact.
            let requests: Vec<_> = (requests.iter())
                .map(|&(query, history, is_prefill)| {
                    if is_prefill && query > 1 { (query, history, true) } else { (1, context, false) }
                })
                .collect();
            let mut whole = BatchShape::to_be_cut(&[64]);
            for &(query, history, is_prefill) in &requests {
                whole.add(query, history + query, is_prefill);
            }
            for (number, share) in shares_of(&whole, parts).iter().enumerate() {
                prop_assert_eq!(share, &token_by_token(&requests, number as u32, parts));
            }
        }
    }

    #[test]
    fn a_chunk_is_cut_by_tokens_and_later_parts_see_the_earlier() {
        // 8,192 tokens behind 1,000: three parts, whose areas are q c - q (q - 1) / 2 and add up to the chunk's.
        let mut whole = BatchShape::to_be_cut(&[]);
        whole.add(8_192, 9_192, true);
        let shares = shares_of(&whole, 3);
        let areas = [(2_731_u64, 3_731_u64), (2_731, 6_462), (2_730, 9_192)]
            .map(|(query, context)| query * context - query * (query - 1) / 2);
        for (share, area) in shares.iter().zip(areas) {
            assert_eq!((share.prefill().num_seqs, share.prefill_work(None).area), (1, area));
        }
        assert_eq!(areas.iter().sum::<u64>(), whole.prefill_work(None).area);
        // What lies before a part is read again.
        let read: Vec<u64> = shares.iter().map(|share| share.prefill_work(None).kv_read).collect();
        assert_eq!(read, [3_731, 6_462, 9_192]);
        assert_eq!(
            shares.iter().map(BatchShape::uniform_query).collect::<Vec<_>>(),
            [2_731, 2_731, 2_730].map(Some)
        );
    }

    #[test]
    fn decodes_come_first_and_tokens_are_dealt_out() {
        let mut whole = BatchShape::to_be_cut(&[]);
        (0..4).for_each(|_| whole.add(1, 100, false));
        whole.add(5, 5, true);
        whole.add(3, 10, true);
        let counts: Vec<_> = (shares_of(&whole, 3).iter())
            .map(|share| (share.decode().num_seqs, share.prefill().num_seqs, share.prefill().query_tokens))
            .collect();
        // 4 decodes; 4 of the first prompt; its last, a single token, and the second.
        assert_eq!(counts, [(4, 0, 0), (0, 1, 4), (1, 1, 3)]);
    }

    #[test]
    #[should_panic(expected = "keeps them one by one")]
    fn a_batch_that_forgot_its_prefills_is_not_cut() {
        let mut whole = BatchShape::new(&[]);
        whole.add(5, 5, true);
        BatchShape::new(&[]).set_share(&whole, 0, 2);
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
