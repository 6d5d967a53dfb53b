//! The batch of one step as a distribution: counts, sums, maxima and second moments of query and context
//! lengths, exact causal areas and tile counts, for prefills and decodes apart. Built in one pass over the
//! scheduled requests; these are also the features of learned operator predictors.
//!
//! A request computes `q` new tokens and has `c` tokens of context afterwards: its queries sit at positions
//! `c - q .. c`, and the query at position `p` sees `min(p + 1, w)` keys under a sliding window of `w` tokens.

mod shares;

/// Query tokens in one tile of an attention kernel. A tile has 128 rows (`kBlockM` of FlashAttention-2/3) that
/// hold the packed query heads of a KV head (`PackGQA`, always on for batches of unequal lengths), four as a
/// rule.
pub const QUERY_TILE_TOKENS: u32 = 32;

/// Keys in one tile of an attention kernel (`kBlockN`), and the smallest split of a context over blocks.
pub const KV_TILE_TOKENS: u32 = 128;

/// No window at all, as a window.
const UNLIMITED: u32 = u32::MAX;

/// Lengths of the requests of one group, windows aside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupShape {
    /// Requests.
    pub num_seqs: u32,
    /// Sum of query lengths.
    pub query_tokens: u64,
    /// Largest query length.
    pub query_max: u32,
    /// Sum of squared query lengths.
    pub query_squares: u128,
    /// Sum of context lengths after the step.
    pub kv_tokens: u64,
    /// Largest context length after the step.
    pub kv_max: u32,
    /// Sum of squared context lengths.
    pub kv_squares: u128,
}

/// What attention has to do for one group under one window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttentionWork {
    /// Query-key pairs, exactly: without a window `q * c - q * (q - 1) / 2` for each request.
    pub area: u64,
    /// Keys that must be read at least once: `min(c, w + q - 1)` for each request.
    pub kv_read: u64,
    /// Sum of their squares.
    pub kv_read_squares: u128,
    /// [`KV_TILE_TOKENS`]-key tiles that cover those keys.
    pub kv_tiles: u64,
    /// [`QUERY_TILE_TOKENS`]-query tiles.
    pub query_tiles: u64,
    /// Keys that each query tile visits, summed over query tiles: times [`QUERY_TILE_TOKENS`] it is the area that
    /// the kernel computes, at least `area`.
    pub query_tile_keys: u64,
    /// Most keys that one query tile visits.
    pub query_tile_keys_max: u32,
}

impl GroupShape {
    #[inline]
    fn add(&mut self, query_tokens: u32, context_after: u32) {
        let (query, context) = (u64::from(query_tokens), u64::from(context_after));
        self.num_seqs += 1;
        self.query_tokens += query;
        self.query_max = self.query_max.max(query_tokens);
        self.query_squares += u128::from(query * query);
        self.kv_tokens += context;
        self.kv_max = self.kv_max.max(context_after);
        self.kv_squares += u128::from(context * context);
    }
}

impl AttentionWork {
    /// One query over `context` keys: the common case, and a tile of its own.
    #[inline]
    fn add_single(&mut self, context: u32, window: u32) {
        let keys = context.min(window);
        self.area += u64::from(keys);
        self.kv_read += u64::from(keys);
        self.kv_read_squares += u128::from(u64::from(keys) * u64::from(keys));
        self.kv_tiles += u64::from(keys.div_ceil(KV_TILE_TOKENS));
        self.query_tiles += 1;
        self.query_tile_keys += u64::from(keys);
        self.query_tile_keys_max = self.query_tile_keys_max.max(keys);
    }

    fn add(&mut self, query_tokens: u32, context: u32, window: u32) {
        let (query, context, window) = (u64::from(query_tokens), u64::from(context), u64::from(window));
        let history = context.saturating_sub(query);
        // Queries that the window does not clip see history + 1, history + 2, ... keys.
        let unclipped = context.min(window).saturating_sub(history).min(query);
        self.area += unclipped * history + unclipped * (unclipped + 1) / 2 + (query - unclipped) * window;
        let read = context.min(window + query.saturating_sub(1));
        self.kv_read += read;
        self.kv_read_squares += u128::from(read) * u128::from(read);
        self.kv_tiles += read.div_ceil(u64::from(KV_TILE_TOKENS));
        let tile = u64::from(QUERY_TILE_TOKENS);
        let tiles = query.div_ceil(tile);
        self.query_tiles += tiles;
        self.query_tile_keys += tile_keys(history, context, window, tiles);
        let longest = context.min(window + query.min(tile).saturating_sub(1));
        self.query_tile_keys_max = self.query_tile_keys_max.max(longest as u32);
    }
}

/// Returns the keys that query tiles `j` in `0 .. tiles` visit, summed. Tile `j` holds the queries from
/// `start = history + j * QUERY_TILE_TOKENS` to `min(context, start + QUERY_TILE_TOKENS)` and skips the keys
/// before `start + 1 - window`, which none of its queries sees.
fn tile_keys(history: u64, context: u64, window: u64, tiles: u64) -> u64 {
    let tile = u64::from(QUERY_TILE_TOKENS);
    let Some(last) = tiles.checked_sub(1) else {
        return 0;
    };
    let ends = last * history + tile * (last * tiles / 2) + context;
    let first_clipped = window.saturating_sub(history).div_ceil(tile);
    let Some(clipped) = tiles.checked_sub(first_clipped).filter(|&clipped| clipped > 0) else {
        return ends;
    };
    let skipped_by_first = history + first_clipped * tile + 1 - window;
    ends - (clipped * skipped_by_first + tile * (clipped * (clipped - 1) / 2))
}

/// What one step computes, seen as a distribution. A reusable buffer: [`BatchShape::clear`], then
/// [`BatchShape::add`] for each scheduled request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchShape {
    /// `UNLIMITED`, then the distinct sliding windows of the program.
    limits: Vec<u32>,
    /// Ranks that share the tokens of prompts.
    ranks: u32,
    /// New tokens of requests with an unfinished prompt or more than one token.
    prompt_tokens: u64,
    /// Requests that compute nothing in this step, and their context.
    idle_seqs: u64,
    idle_kv_tokens: u64,
    /// Tokens to be taken off the prompt tokens.
    taken_back: u64,
    /// Requests added as prefills that compute one token, which are part of `decode`.
    single_prompts: GroupShape,
    prefill: GroupShape,
    decode: GroupShape,
    prefill_work: Vec<AttentionWork>,
    decode_work: Vec<AttentionWork>,
    /// Drafts that the step verifies: rows of logits beside one per request.
    drafts: u64,
    /// How far a request's context has grown, in tokens, in the mean pass of one token per request that drafts, and the
    /// batch of that pass.
    drafted: Option<(u32, Box<Self>)>,
    /// The prefills one by one, for batches that are cut into micro-batches.
    chunks: Option<Vec<Chunk>>,
}

/// A prefill of more than one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Chunk {
    query_tokens: u32,
    context_after: u32,
}

impl BatchShape {
    /// Returns an empty batch that also keeps areas for these sliding windows ([`StepTimer::windows`]).
    ///
    /// [`StepTimer::windows`]: super::StepTimer::windows
    pub fn new(windows: &[u32]) -> Self {
        let mut limits = Vec::with_capacity(windows.len() + 1);
        limits.push(UNLIMITED);
        limits.extend_from_slice(windows);
        let work = vec![AttentionWork::default(); limits.len()];
        Self {
            limits,
            ranks: 1,
            prompt_tokens: 0,
            idle_seqs: 0,
            idle_kv_tokens: 0,
            taken_back: 0,
            single_prompts: GroupShape::default(),
            prefill: GroupShape::default(),
            decode: GroupShape::default(),
            prefill_work: work.clone(),
            decode_work: work,
            drafts: 0,
            drafted: None,
            chunks: None,
        }
    }

    /// Returns an empty batch that [`Self::set_share`] can cut: it keeps its prefills one by one.
    pub fn to_be_cut(windows: &[u32]) -> Self {
        Self { chunks: Some(Vec::new()), ..Self::new(windows) }
    }

    /// Tells whether [`Self::set_share`] can cut the batch: it has no prefills, or keeps all of them one by one.
    pub fn can_be_cut(&self) -> bool {
        self.chunks.as_ref().map_or(0, Vec::len) == self.prefill.num_seqs as usize
    }

    /// Returns an empty batch that also keeps the shape of a pass of one token per request, whose context has grown by
    /// `advance` tokens since the step: what drafting computes.
    pub fn drafting(windows: &[u32], advance: u32) -> Self {
        let mut batch = Self::new(windows);
        batch.drafted = Some((advance, Box::new(Self::new(windows))));
        batch
    }

    /// Returns an empty batch of one of `ranks` ranks that share the tokens of every prompt: of twice as many equal
    /// chunks each rank computes one from the front and its mirror image from the back, so that all have equally
    /// much to do (vLLM's prefill context parallelism, `vllm/v1/worker/cp_utils.py`). Single tokens are computed by
    /// every rank.
    #[must_use]
    pub fn shared_by(mut self, ranks: u32) -> Self {
        self.ranks = ranks.max(1);
        self
    }

    /// Empties the batch, keeping its memory.
    pub fn clear(&mut self) {
        self.prompt_tokens = 0;
        (self.idle_seqs, self.idle_kv_tokens, self.taken_back) = (0, 0, 0);
        self.single_prompts = GroupShape::default();
        self.prefill = GroupShape::default();
        self.decode = GroupShape::default();
        self.prefill_work.fill(AttentionWork::default());
        self.decode_work.fill(AttentionWork::default());
        self.drafts = 0;
        if let Some((_, drafted)) = &mut self.drafted {
            drafted.clear();
        }
        if let Some(chunks) = &mut self.chunks {
            chunks.clear();
        }
    }

    /// Adds a request that computes `query_tokens` and has `context_after` tokens of context after the step, the new
    /// ones included. One without tokens counts as a request with a context, and costs attention nothing. `is_prefill`: it has more than one token or an unfinished prompt; kernels
    /// count a single token as a decode nevertheless.
    ///
    /// Sums hold 64 bits as long as the batch has fewer than 2^32 tokens, which [`StepTimer::step`] demands.
    ///
    /// [`StepTimer::step`]: super::StepTimer::step
    #[inline]
    pub fn add(&mut self, query_tokens: u32, context_after: u32, is_prefill: bool) {
        if query_tokens == 0 {
            self.idle_seqs += 1;
            self.idle_kv_tokens += u64::from(context_after);
            return;
        }
        debug_assert!(context_after >= query_tokens, "Invariant: new tokens are part of the context");
        if self.ranks > 1 && is_prefill && query_tokens > 1 {
            return self.add_share(query_tokens, context_after);
        }
        if is_prefill {
            self.prompt_tokens += u64::from(query_tokens);
            if query_tokens == 1 {
                self.single_prompts.add(1, context_after);
            }
        }
        // The last token of a prompt is, to a kernel, a decode.
        let (group, work) = if is_prefill && query_tokens > 1 {
            if let Some(chunks) = &mut self.chunks {
                chunks.push(Chunk { query_tokens, context_after });
            }
            (&mut self.prefill, &mut self.prefill_work)
        } else {
            (&mut self.decode, &mut self.decode_work)
        };
        group.add(query_tokens, context_after);
        for (work, &window) in work.iter_mut().zip(&self.limits) {
            if query_tokens == 1 {
                work.add_single(context_after, window);
            } else {
                work.add(query_tokens, context_after, window);
            }
        }
        self.add_drafted(context_after);
    }

    /// Adds a request to the pass of one token per request that drafts, if it is kept.
    #[inline]
    fn add_drafted(&mut self, context_after: u32) {
        if let Some((advance, drafted)) = &mut self.drafted {
            drafted.add(1, context_after.saturating_add(*advance), false);
        }
    }

    /// Adds a request of which `drafts` of its `query_tokens` are drafts to be verified: each has a row of logits, as has
    /// the last token that is none. A decode of one token and its drafts is no prefill.
    #[inline]
    pub fn add_verifying(&mut self, query_tokens: u32, context_after: u32, is_prefill: bool, drafts: u32) {
        debug_assert!(drafts == 0 || drafts < query_tokens, "Invariant: one of the new tokens is no draft");
        self.add(query_tokens, context_after, is_prefill);
        self.drafts += u64::from(drafts);
    }

    /// Returns the rows of logits: one per request, and one per draft.
    #[inline]
    pub fn num_logits(&self) -> u64 {
        self.num_seqs() + self.drafts
    }

    /// Returns the drafts to be verified.
    #[inline]
    pub fn num_drafts(&self) -> u64 {
        self.drafts
    }

    /// Returns the batch of a pass that drafts one token per request, if it is kept.
    #[inline]
    pub fn drafted(&self) -> Option<&Self> {
        self.drafted.as_ref().map(|(_, batch)| &**batch)
    }

    /// Takes tokens off those of the prompts, for chunks of negative length; only the linear clock counts them.
    #[inline]
    pub fn take_back(&mut self, num_tokens: u32) {
        self.taken_back += u64::from(num_tokens);
    }

    /// Returns the tokens that chunks of negative length take off those of the prompts.
    #[inline]
    pub fn taken_back(&self) -> u64 {
        self.taken_back
    }

    /// Adds this rank's share of a prompt: the first chunk and the last, which is what every rank's two come to.
    fn add_share(&mut self, query_tokens: u32, context_after: u32) {
        let chunk = query_tokens.div_ceil(2 * self.ranks);
        let first_context = context_after - query_tokens + chunk;
        self.prompt_tokens += 2 * u64::from(chunk);
        self.prefill.add(2 * chunk, context_after.max(2 * chunk));
        for (work, &window) in self.prefill_work.iter_mut().zip(&self.limits) {
            work.add(chunk, first_context, window);
            work.add(chunk, context_after, window);
        }
        self.add_drafted(context_after);
    }

    /// Returns the ranks that share the tokens of prompts.
    #[inline]
    pub fn num_sharing(&self) -> u32 {
        self.ranks
    }

    /// Returns the sliding windows that the batch keeps areas for.
    pub fn windows(&self) -> &[u32] {
        &self.limits[1..]
    }

    /// Returns the number of requests.
    #[inline]
    pub fn num_seqs(&self) -> u64 {
        u64::from(self.prefill.num_seqs) + u64::from(self.decode.num_seqs) + self.idle_seqs
    }

    /// Returns the number of new tokens.
    #[inline]
    pub fn num_tokens(&self) -> u64 {
        self.prefill.query_tokens + self.decode.query_tokens
    }

    /// Returns the new tokens of each request if all have as many, as `vllm/v1/worker/gpu_model_runner.py` tells a
    /// uniform batch: by lengths alone, so that a last token of a prompt counts as a decode.
    #[inline]
    pub fn uniform_query(&self) -> Option<u32> {
        let query = self.prefill.query_max.max(self.decode.query_max);
        (query > 0 && self.num_tokens() == self.num_seqs() * u64::from(query)).then_some(query)
    }

    /// Returns the context after the step, summed over requests.
    #[inline]
    pub fn kv_tokens(&self) -> u64 {
        self.prefill.kv_tokens + self.decode.kv_tokens + self.idle_kv_tokens
    }

    /// Returns the new tokens of requests added as prefills, single ones included.
    #[inline]
    pub fn prompt_tokens(&self) -> u64 {
        self.prompt_tokens
    }

    /// Returns the lengths of the requests added as prefills that compute more than one token.
    #[inline]
    pub fn prefill(&self) -> &GroupShape {
        &self.prefill
    }

    /// Returns the lengths of all other requests.
    #[inline]
    pub fn decode(&self) -> &GroupShape {
        &self.decode
    }

    /// Returns the lengths of the requests added as prefills that compute one token: a part of [`Self::decode`].
    #[inline]
    pub fn single_prompts(&self) -> &GroupShape {
        &self.single_prompts
    }

    /// Returns the attention work of prefills: `None` without a window, `Some(i)` under `windows()[i]`.
    #[inline]
    pub fn prefill_work(&self, window: Option<usize>) -> &AttentionWork {
        &self.prefill_work[window.map_or(0, |index| index + 1)]
    }

    /// Returns the attention work of decodes: `None` without a window, `Some(i)` under `windows()[i]`.
    #[inline]
    pub fn decode_work(&self, window: Option<usize>) -> &AttentionWork {
        &self.decode_work[window.map_or(0, |index| index + 1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The same by looking at every query on its own.
    fn brute_force(query: u32, context: u32, window: u32) -> AttentionWork {
        let history = context - query;
        let first_key = |position: u32| (position + 1).saturating_sub(window);
        let read = context - first_key(history);
        let mut work = AttentionWork {
            kv_read: u64::from(read),
            kv_read_squares: u128::from(read) * u128::from(read),
            kv_tiles: u64::from(read.div_ceil(KV_TILE_TOKENS)),
            ..AttentionWork::default()
        };
        for position in history..context {
            work.area += u64::from(position + 1 - first_key(position));
        }
        let mut start = history;
        while start < context {
            let end = (start + QUERY_TILE_TOKENS).min(context);
            work.query_tiles += 1;
            work.query_tile_keys += u64::from(end - first_key(start));
            work.query_tile_keys_max = work.query_tile_keys_max.max(end - first_key(start));
            start = end;
        }
        work
    }

    proptest! {
        #[test]
        fn prop_work_equals_a_loop_over_queries(query in 2_u32..400, history in 0_u32..700, window in 1_u32..900) {
            let context = history + query;
            let mut batch = BatchShape::new(&[window]);
            batch.add(query, context, true);
            for (index, window) in [(None, UNLIMITED - 1), (Some(0), window)] {
                let (found, expected) = (*batch.prefill_work(index), brute_force(query, context, window));
                // The longest tile of a clipped batch is an upper bound, tight to less than a tile.
                let slack = found.query_tile_keys_max - expected.query_tile_keys_max;
                prop_assert!(slack < QUERY_TILE_TOKENS);
                prop_assert_eq!(
                    AttentionWork { query_tile_keys_max: 0, ..found },
                    AttentionWork { query_tile_keys_max: 0, ..expected }
                );
            }
            let full = batch.prefill_work(None).area;
            let (q, c) = (u64::from(query), u64::from(context));
            prop_assert_eq!(full, q * c - q * (q - 1) / 2);
        }

        #[test]
        fn prop_a_batch_is_the_sum_of_its_requests(
            requests in proptest::collection::vec((1_u32..50, 0_u32..300, any::<bool>()), 0..20),
        ) {
            let mut batch = BatchShape::new(&[64]);
            batch.add(7, 9, true);
            batch.clear();
            for &(query, history, is_prefill) in &requests {
                batch.add(query, history + query, is_prefill);
            }
            let sum = |f: fn(u64, u64) -> u64, prefill: bool| -> u64 {
                requests
                    .iter()
                    .filter(|r| (r.2 && r.0 > 1) == prefill)
                    .map(|&(q, h, _)| f(u64::from(q), u64::from(q + h)))
                    .sum()
            };
            for (group, is_prefill) in [(batch.prefill(), true), (batch.decode(), false)] {
                prop_assert_eq!(u64::from(group.num_seqs), sum(|_, _| 1, is_prefill));
                prop_assert_eq!(group.query_tokens, sum(|q, _| q, is_prefill));
                prop_assert_eq!(group.kv_tokens, sum(|_, c| c, is_prefill));
                prop_assert_eq!(group.kv_squares, u128::from(sum(|_, c| c * c, is_prefill)));
                prop_assert_eq!(group.query_squares, u128::from(sum(|q, _| q * q, is_prefill)));
            }
            let area = batch.prefill_work(Some(0)).area + batch.decode_work(Some(0)).area;
            let expected: u64 =
                requests.iter().map(|&(q, h, _)| brute_force(q, q + h, 64).area).sum();
            prop_assert_eq!(area, expected);
            prop_assert_eq!(batch.num_seqs(), requests.len() as u64);
            let prompt: u64 = requests.iter().filter(|r| r.2).map(|r| u64::from(r.0)).sum();
            prop_assert_eq!(batch.prompt_tokens(), prompt);
        }
    }

    #[test]
    fn the_largest_lengths_do_not_overflow() {
        let mut batch = BatchShape::new(&[1, u32::MAX]);
        batch.add(u32::MAX - 1, u32::MAX, true);
        batch.add(1, u32::MAX, false);
        let (query, context) = (u128::from(u32::MAX - 1), u128::from(u32::MAX));
        let area = query * context - query * (query - 1) / 2;
        assert_eq!(u128::from(batch.prefill_work(None).area), area);
        assert_eq!(batch.prefill_work(Some(0)).area, u64::from(u32::MAX - 1));
        assert_eq!(batch.decode_work(Some(0)).area, 1);
    }

    #[test]
    fn a_batch_is_uniform_by_lengths_alone() {
        let uniform = |requests: &[(u32, u32, bool)]| {
            let mut batch = BatchShape::new(&[]);
            for &(query, context, is_prefill) in requests {
                batch.add(query, context, is_prefill);
            }
            batch.uniform_query()
        };
        assert_eq!(uniform(&[]), None);
        assert_eq!(uniform(&[(1, 9, false), (1, 5, false)]), Some(1));
        assert_eq!(uniform(&[(1, 9, false), (1, 5, true)]), Some(1));
        assert_eq!(uniform(&[(1, 9, false), (2, 5, true)]), None);
        assert_eq!(uniform(&[(4, 9, false), (4, 5, true)]), Some(4));
        assert_eq!(uniform(&[(4, 9, false), (3, 5, false), (5, 5, false)]), None);
    }

    #[test]
    fn ranks_that_share_a_prompt_have_equal_shares() {
        // 4 ranks, 8 chunks of 128 behind 300 cached tokens: rank r has chunks r and 7 - r.
        let (chunk, history, ranks) = (128_u32, 300, 4_u32);
        let areas: Vec<u64> = (0..ranks)
            .map(|rank| {
                let area = |number: u32| {
                    let first = u64::from(history + number * chunk);
                    (0..u64::from(chunk)).map(|query| first + query + 1).sum::<u64>()
                };
                area(rank) + area(2 * ranks - 1 - rank)
            })
            .collect();
        assert!(areas.iter().all(|area| area == &areas[0]));
        let mut shared = BatchShape::new(&[]).shared_by(ranks);
        shared.add(2 * ranks * chunk, history + 2 * ranks * chunk, true);
        assert_eq!(shared.prefill_work(None).area, areas[0]);
        assert_eq!((shared.num_tokens(), shared.num_seqs()), (256, 1));
        let mut whole = BatchShape::new(&[]);
        whole.add(2 * ranks * chunk, history + 2 * ranks * chunk, true);
        assert_eq!(whole.prefill_work(None).area, 4 * areas[0]);
        // Decodes are not shared, and shares are rounded up.
        shared.clear();
        shared.add(1, 500, false);
        shared.add(9, 9, true);
        assert_eq!((shared.decode().query_tokens, shared.prefill().query_tokens), (1, 4));
    }

    #[test]
    fn ranks_that_share_prompts_draft_for_every_request() {
        let mut shared = BatchShape::drafting(&[], 2).shared_by(4);
        shared.add(1024, 1024, true);
        shared.add_verifying(3, 50, false, 2);
        let drafted = shared.drafted().unwrap();
        assert_eq!((drafted.num_tokens(), drafted.kv_tokens()), (2, 1024 + 50 + 2 * 2));
    }

    #[test]
    fn requests_without_tokens_have_no_drafts() {
        let mut batch = BatchShape::new(&[]);
        batch.add_verifying(0, 70, true, 0);
        assert_eq!((batch.num_seqs(), batch.num_tokens(), batch.num_logits()), (1, 0, 1));
    }

    #[test]
    fn an_unwindowed_batch_has_no_windows() {
        assert!(BatchShape::new(&[]).windows().is_empty());
        assert_eq!(BatchShape::new(&[128, 4096]).windows(), [128, 4096]);
    }
}
