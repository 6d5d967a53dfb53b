//! Which CUDA graph a step replays, and to how many rows it is padded.
//!
//! vLLM's rules (`vllm/v1/cudagraph_dispatcher.py`, 0.11 to 0.32; its second runner's
//! `vllm/v1/worker/gpu/cudagraph_utils.py` has the same ones for equal lengths): beyond the largest captured size
//! there is no graph and no padding; a batch in which every request has the decode's number of tokens replays a full
//! decode graph; everything else replays piecewise graphs, between which attention runs eagerly over true lengths.
//! Either way the step has as many rows as the smallest captured size that holds it. `SGLang` knows full decode
//! graphs only (`model_executor/cuda_graph_runner.py`), which is the same with the other lists empty.
//!
//! Rows that are padding are computed by every operator over rows of tokens, routed experts included: the engine does
//! not mask them, and they hold tokens of earlier steps, so they are taken to visit experts like any other. Attention
//! gives them no time: padded requests have a context of length 0 (`seq_lens` is filled with zeros), and their blocks
//! exit at once. The LM head and the sampler run outside the graph over the true number of requests.

use crate::plan::step_time::GraphsSpec;

/// How a step's kernels are launched. Ordered: data-parallel ranks in lock step all take the least of theirs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum GraphMode {
    /// One by one.
    #[default]
    Eager = 0,
    /// Graphs between attention operators, which are launched one by one.
    Piecewise = 1,
    /// One graph of the whole forward pass.
    Full = 2,
}

impl GraphMode {
    /// All of them, in order.
    pub const ALL: [Self; 3] = [Self::Eager, Self::Piecewise, Self::Full];

    /// Returns the name used in columns and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Eager => "eager",
            Self::Piecewise => "piecewise",
            Self::Full => "full",
        }
    }
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dispatch {
    /// How it is launched.
    pub mode: GraphMode,
    /// Rows that operators over tokens compute, padding included.
    pub tokens: u32,
}

/// For each token count up to the largest size, the smallest size that holds it.
#[derive(Clone, Debug, Default)]
struct Ladder(Vec<u32>);

impl Ladder {
    fn new(sizes: &[u32]) -> Self {
        let mut next = Vec::with_capacity(sizes.last().map_or(0, |&last| last as usize + 1));
        for &size in sizes {
            next.resize(size as usize + 1, size);
        }
        Self(next)
    }

    #[inline]
    fn holding(&self, tokens: u32) -> Option<u32> {
        self.0.get(tokens as usize).copied()
    }
}

/// The captured graphs of one engine.
#[derive(Clone, Debug)]
pub struct GraphDispatcher {
    decode_query_tokens: u32,
    full_decode: Ladder,
    full: Ladder,
    piecewise: Ladder,
}

impl GraphDispatcher {
    /// Compiles the sizes of `spec`, which are ascending.
    pub fn new(spec: &GraphsSpec) -> Self {
        Self {
            decode_query_tokens: spec.decode_query_tokens,
            full_decode: Ladder::new(&spec.full_decode),
            full: Ladder::new(&spec.full),
            piecewise: Ladder::new(&spec.piecewise),
        }
    }

    /// Returns how a batch of `tokens` tokens is launched. `uniform_query`: tokens of each request, if they all have
    /// as many. `at_most`: the mode that other ranks allow; `at_least`: the rows that they pad to (0 if there are
    /// none). An eager step runs the larger of its own tokens and `at_least`.
    #[inline]
    pub fn dispatch(
        &self,
        tokens: u32,
        uniform_query: Option<u32>,
        at_most: GraphMode,
        at_least: u32,
    ) -> Dispatch {
        let rows = tokens.max(at_least);
        if rows > 0 && at_most == GraphMode::Full {
            let decode = if uniform_query == Some(self.decode_query_tokens) {
                self.full_decode.holding(rows)
            } else {
                None
            };
            if let Some(tokens) = decode.or_else(|| self.full.holding(rows)) {
                return Dispatch { mode: GraphMode::Full, tokens };
            }
        }
        if rows > 0
            && at_most >= GraphMode::Piecewise
            && let Some(tokens) = self.piecewise.holding(rows)
        {
            return Dispatch { mode: GraphMode::Piecewise, tokens };
        }
        Dispatch { mode: GraphMode::Eager, tokens: rows }
    }

    /// Dispatches ranks that step together, into `found`: all take the least mode of any and the most rows of any,
    /// none pads where that mode is eager (vLLM from 0.17, `vllm/v1/worker/dp_utils.py`). `batches` are tokens and
    /// uniform queries; ranks without tokens have no say and no rows.
    pub fn dispatch_together(
        &self,
        batches: impl Iterator<Item = (u32, Option<u32>)> + Clone,
        found: &mut Vec<Dispatch>,
    ) {
        found.clear();
        let (mut mode, mut rows) = (GraphMode::Full, 0);
        for (tokens, uniform_query) in batches.clone() {
            let own = self.dispatch(tokens, uniform_query, GraphMode::Full, 0);
            if tokens > 0 {
                mode = mode.min(own.mode);
                rows = rows.max(own.tokens);
            }
            found.push(own);
        }
        if found.len() == 1 {
            return;
        }
        let rows = if mode == GraphMode::Eager { 0 } else { rows };
        for (own, (tokens, uniform_query)) in found.iter_mut().zip(batches) {
            if tokens > 0 {
                *own = self.dispatch(tokens, uniform_query, mode, rows);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spec(full_decode: &[u32], full: &[u32], piecewise: &[u32]) -> GraphsSpec {
        GraphsSpec {
            decode_query_tokens: 1,
            full_decode: full_decode.to_vec(),
            full: full.to_vec(),
            piecewise: piecewise.to_vec(),
        }
    }

    const COARSE: [u32; 7] = [1, 2, 4, 8, 16, 32, 64];

    fn alone(graphs: &GraphDispatcher, tokens: u32, uniform: Option<u32>) -> (GraphMode, u32) {
        let found = graphs.dispatch(tokens, uniform, GraphMode::Full, 0);
        (found.mode, found.tokens)
    }

    #[test]
    fn a_batch_of_33_pads_to_64_where_32_fits() {
        let graphs = GraphDispatcher::new(&spec(&COARSE, &[], &COARSE));
        assert_eq!(alone(&graphs, 32, Some(1)), (GraphMode::Full, 32));
        assert_eq!(alone(&graphs, 33, Some(1)), (GraphMode::Full, 64));
        assert_eq!(alone(&graphs, 33, None), (GraphMode::Piecewise, 64));
        assert_eq!(alone(&graphs, 64, Some(64)), (GraphMode::Piecewise, 64));
        assert_eq!(alone(&graphs, 65, Some(1)), (GraphMode::Eager, 65));
        assert_eq!(alone(&graphs, 0, None), (GraphMode::Eager, 0));
    }

    #[test]
    fn modes_are_the_lists_that_are_there() {
        let decode_only = GraphDispatcher::new(&spec(&COARSE, &[], &[]));
        assert_eq!(alone(&decode_only, 33, None), (GraphMode::Eager, 33));
        let piecewise = GraphDispatcher::new(&spec(&[], &[], &COARSE));
        assert_eq!(alone(&piecewise, 33, Some(1)), (GraphMode::Piecewise, 64));
        let full = GraphDispatcher::new(&spec(&[], &COARSE, &COARSE));
        assert_eq!(alone(&full, 33, None), (GraphMode::Full, 64));
        // Full decode graphs end at max_num_seqs, here 33 requests: 40 is not one of them.
        let few = GraphDispatcher::new(&spec(&[1, 2, 4, 8, 16, 24, 32], &[], &[8, 16, 24, 32, 40]));
        assert_eq!(alone(&few, 33, Some(1)), (GraphMode::Piecewise, 40));
    }

    #[test]
    fn drafts_are_uniform_at_their_own_length_only() {
        let sizes = GraphsSpec { decode_query_tokens: 4, ..spec(&[4, 8, 16], &[], &[4, 8, 16]) };
        let graphs = GraphDispatcher::new(&sizes);
        assert_eq!(alone(&graphs, 12, Some(4)), (GraphMode::Full, 16));
        assert_eq!(alone(&graphs, 12, Some(1)), (GraphMode::Piecewise, 16));
        assert_eq!(alone(&graphs, 11, None), (GraphMode::Piecewise, 16));
    }

    #[test]
    fn ranks_take_the_least_mode_and_the_most_rows() {
        let graphs = GraphDispatcher::new(&spec(&COARSE, &[], &COARSE));
        let together = |batches: &[(u32, Option<u32>)]| {
            let mut found = Vec::new();
            graphs.dispatch_together(batches.iter().copied(), &mut found);
            found.iter().map(|each| (each.mode, each.tokens)).collect::<Vec<_>>()
        };
        assert_eq!(together(&[(5, Some(1)), (33, Some(1))]), [(GraphMode::Full, 64); 2]);
        assert_eq!(together(&[(5, Some(1)), (33, None)]), [(GraphMode::Piecewise, 64); 2]);
        let eager = [(GraphMode::Eager, 5), (GraphMode::Eager, 4096)];
        assert_eq!(together(&[(5, Some(1)), (4096, None)]), eager);
        assert_eq!(together(&[(0, None), (3, Some(1))]), [(GraphMode::Eager, 0), (GraphMode::Full, 4)]);
    }

    proptest! {
        #[test]
        fn prop_the_size_is_the_smallest_that_holds_the_batch(
            sizes in proptest::collection::btree_set(1_u32..300, 0..20), tokens in 1_u32..320,
        ) {
            let sizes: Vec<u32> = sizes.into_iter().collect();
            let graphs = GraphDispatcher::new(&spec(&[], &[], &sizes));
            let expected = sizes.iter().copied().find(|&size| size >= tokens);
            let found = graphs.dispatch(tokens, None, GraphMode::Full, 0);
            prop_assert_eq!(found.tokens, expected.unwrap_or(tokens));
            prop_assert_eq!(found.mode == GraphMode::Eager, expected.is_none());
        }
    }
}
