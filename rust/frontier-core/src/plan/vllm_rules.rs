//! Which scheduling rules a release of vLLM has. Rules came one by one, so a release is a set of named rules.
//!
//! Observed by driving the schedulers of 20 releases, 0.11.2 to 0.32.0, with the same inputs (0.12 and 0.17 could
//! not be run, so a rule "from 0.12" or "from 0.17" may be one release younger). Files are under
//! `vllm/v1/core/`.

/// The rules of one minor release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "a set of independent rules")]
pub struct Rules {
    /// From 0.12. Without chunked prefill, admission stops at a prompt over the budget. Before, it was passed over,
    /// and those passed over came back to the queue in reverse.
    pub stop_at_unchunked: bool,
    /// From 0.12. A victim of the priority policy that stands before the request being served moves the scan of
    /// RUNNING back by one. Before, only one that was already part of the batch did, so that a request was skipped.
    pub victim_moves_scan: bool,
    /// From 0.15. Draft models reserve lookahead blocks.
    pub draft_model_lookahead: bool,
    /// From 0.16. Drafts are attached only once the prompt is complete. Before, also after a chunk of it.
    pub no_drafts_in_chunk: bool,
    /// From 0.17. `max_num_scheduled_tokens` exists.
    pub max_num_scheduled_tokens: bool,
    /// From 0.19. `scheduler_reserve_full_isl` exists. Before, only the first chunk had to fit.
    pub reserve_full_isl: bool,
    /// From 0.23. Admissions reserve lookahead blocks too. Before, only requests with computed tokens did.
    pub lookahead_at_admission: bool,
    /// From 0.23. The second model runner: asynchronous pipelines keep one batch more in flight than they have
    /// stages, and a request's steps apart by as many calls as there are stages.
    pub v2_runner: bool,
    /// From 0.24, but not in 0.27 with prefix caching off. Freed blocks without cached content go to the front of
    /// the free queue (`block_pool.py`). Before, all freed blocks went to its back.
    unhashed_first: bool,
    /// From 0.24. `watermark` exists.
    pub watermark: bool,
    /// From 0.25. A just-admitted request with a single token left is padded with drafts, so that the batch stays
    /// uniform; the paddings are never accepted.
    pub pads_admissions: bool,
    /// From 0.28. Drafters that need input slots of their own pay them from the input budget.
    pub draft_slots: bool,
    /// From 0.30. A request whose prompt is read from another engine leaves the blocks alone that those before it in
    /// the making will need.
    pub reserves_for_loads: bool,
    /// From 0.30. With several batches in flight, an engine that reads KV from others reuses freed blocks only once
    /// those batches are done.
    pub defers_frees: bool,
    /// From 0.31. Requests that hold KV wait in a queue of their own.
    pub kv_queue: bool,
    /// From 0.30. Admissions with a cached prefix are padded even if nothing else runs.
    pub pads_alone: bool,
    /// From 0.31. The long-prefill threshold spares a lone request, and can be adaptive.
    pub threshold_spares_lone: bool,
    /// From 0.31. `max_num_active_seqs` exists.
    pub max_num_active_seqs: bool,
    not_027: bool,
}

impl Rules {
    /// First minor release whose rules are known.
    pub const FIRST_MINOR: u32 = 11;
    /// Last minor release whose rules are known.
    pub const LAST_MINOR: u32 = 32;

    /// Returns the rules of vLLM 0.`minor`.
    pub const fn of(minor: u32) -> Self {
        Self {
            stop_at_unchunked: minor >= 12,
            victim_moves_scan: minor >= 12,
            draft_model_lookahead: minor >= 15,
            no_drafts_in_chunk: minor >= 16,
            max_num_scheduled_tokens: minor >= 17,
            reserve_full_isl: minor >= 19,
            lookahead_at_admission: minor >= 23,
            v2_runner: minor >= 23,
            unhashed_first: minor >= 24,
            watermark: minor >= 24,
            pads_admissions: minor >= 25,
            draft_slots: minor >= 28,
            reserves_for_loads: minor >= 30,
            defers_frees: minor >= 30,
            kv_queue: minor >= 31,
            pads_alone: minor >= 30,
            threshold_spares_lone: minor >= 31,
            max_num_active_seqs: minor >= 31,
            not_027: minor != 27,
        }
    }

    /// Tells whether freed blocks without cached content are the next to be reused.
    pub const fn reuses_unhashed_first(&self, enable_prefix_caching: bool) -> bool {
        self.unhashed_first && (self.not_027 || enable_prefix_caching)
    }
}
