//! A request inside an engine: its tokens, its blocks, and where it stands.

use super::policy::Service;
use super::vllm_v1::GroupTable;
use super::{Admission, Scheduled};
use crate::ids::{BlockId, RequestId, SessionId, Slot};
use crate::kvcache::{FormerTables, PrefixHasher};
use crate::time::SimTime;
use crate::workload::{Segment, UNIQUE_STREAM_BASE};

/// Where a request stands (vLLM `RequestStatus`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// In the waiting queue, never admitted.
    Waiting,
    /// In RUNNING: it holds blocks.
    Running,
    /// Back in the waiting queue; its blocks are gone.
    Preempted,
    /// Complete. A batch in flight may still refer to it.
    Finished,
}

/// What is special about a request's KV.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Handover {
    /// Nothing: it is made here and freed here.
    #[default]
    Neither,
    /// That of the prompt comes from another engine.
    Receives,
    /// That of the prompt lies beside the cache, and is there as soon as the request has blocks.
    Buffered,
    /// It stays after the end, until another engine has read it.
    Keeps,
}

/// What an engine is told about a new request.
#[derive(Clone, Copy, Debug)]
pub struct Submission<'a> {
    /// The request.
    pub id: RequestId,
    /// Arrival, for the priority policy.
    pub arrival: SimTime,
    /// Smaller is served first under the priority policy.
    pub priority: i32,
    /// Breaks ties of (priority, arrival).
    pub tie_rank: u32,
    /// The conversation or client it belongs to.
    pub session: Option<SessionId>,
    /// Its predicted output length in tokens or, under the callable policy, the number it was given.
    pub score: f64,
    /// Prompt length in tokens, at least 1.
    pub prompt_tokens: u32,
    /// Output length in tokens, at least 1.
    pub max_tokens: u32,
    /// Content of the prompt in normal form.
    pub segments: &'a [Segment],
    /// Stream of the output tokens.
    pub output_stream: u64,
    /// Where its KV comes from or goes to.
    pub handover: Handover,
}

/// What only speculative decoding and asynchronous pipelines look at, kept from the counters of every step.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rare {
    /// Number of the `schedule()` call before which the request is left out (asynchronous pipelines).
    pub(crate) next_eligible: u64,
    /// Drafts for its next step (asynchronous scheduling: as many as may come).
    pub(crate) num_drafts: u32,
    /// Steps whose drafts were verified.
    pub(crate) num_verified: u32,
}

/// State of a request in an engine, under the names of `vllm/v1/request.py`.
#[derive(Clone, Debug)]
pub struct LiveRequest {
    pub(crate) id: RequestId,
    pub(crate) arrival: SimTime,
    pub(crate) priority: i32,
    pub(crate) tie_rank: u32,
    /// Its session counted from 1; 0 for requests without one.
    pub(crate) client: u32,
    /// What the scheduling policy keeps about it.
    pub(crate) service: Service,
    pub(crate) status: Status,
    pub(crate) prompt_tokens: u32,
    pub(crate) max_tokens: u32,
    /// Prompt and output tokens known so far.
    pub(crate) num_tokens: u32,
    /// Tokens computed or being computed: advances when scheduled, not when done.
    pub(crate) num_computed: u32,
    /// Output tokens being sampled by batches in flight (asynchronous scheduling).
    pub(crate) num_placeholders: u32,
    /// Tokens in flight that a preemption made void, yet whose output still arrives.
    pub(crate) num_stale: u32,
    /// Tokens of all batches in flight.
    pub(crate) num_in_flight: u32,
    pub(crate) num_preemptions: u32,
    /// The last step that carried it left some of its tokens to compute.
    pub(crate) in_chunk: bool,
    /// Its prompt is being computed, or read from another engine, since it got its first blocks.
    pub(crate) prefill_in_flight: bool,
    pub(crate) handover: Handover,
    pub(crate) rare: Rare,
    /// Most tokens ever computed: what lies below was lost to a preemption if it is computed again.
    pub(crate) high_water: u32,
    /// Leading blocks whose hash is in the cache index.
    pub(crate) num_cached_blocks: u32,
    /// Blocks found in the cache at the last admission.
    pub(crate) num_hit_blocks: u32,
    /// Logical block from which on the content is the request's own: nobody else can have the same.
    pub(crate) private_from: u32,
    /// Number of the last `schedule()` call that put it in a batch.
    pub(crate) last_scheduled: u64,
    pub(crate) blocks: Vec<BlockId>,
    /// Block tables of a cache with groups of layers; `blocks` is empty then.
    pub(crate) tables: Vec<GroupTable>,
    pub(crate) hasher: PrefixHasher,
    /// Private blocks of the lives before preemptions.
    pub(crate) former: FormerTables,
    pub(crate) segments: Vec<Segment>,
    pub(crate) output_stream: u64,
}

impl LiveRequest {
    /// Returns the state of a request that nobody uses; [`Self::reset`] makes it a real one.
    pub(crate) fn vacant() -> Self {
        Self {
            id: RequestId(0),
            arrival: SimTime::ZERO,
            priority: 0,
            tie_rank: 0,
            client: 0,
            service: Service::default(),
            status: Status::Finished,
            prompt_tokens: 0,
            max_tokens: 0,
            num_tokens: 0,
            num_computed: 0,
            num_placeholders: 0,
            num_stale: 0,
            num_in_flight: 0,
            num_preemptions: 0,
            in_chunk: false,
            prefill_in_flight: false,
            handover: Handover::Neither,
            rare: Rare::default(),
            high_water: 0,
            num_cached_blocks: 0,
            num_hit_blocks: 0,
            private_from: u32::MAX,
            last_scheduled: 0,
            blocks: Vec::new(),
            tables: Vec::new(),
            hasher: PrefixHasher::default(),
            former: FormerTables::default(),
            segments: Vec::new(),
            output_stream: 0,
        }
    }

    /// Returns its part of a batch: `num_tokens` tokens from where it stands, without drafts.
    #[inline]
    pub(crate) fn scheduled(&self, slot: Slot, admission: Admission, num_tokens: u32) -> Scheduled {
        Scheduled {
            slot,
            id: self.id,
            admission,
            prompt_tokens: self.prompt_tokens,
            computed_before: self.num_computed,
            num_tokens,
            num_drafts: 0,
            samples: false,
            recomputes: false,
        }
    }

    /// Becomes the submitted request, reusing the memory of the one before.
    pub(crate) fn reset(&mut self, submission: &Submission<'_>, block_size: u32) {
        let mut blocks = std::mem::take(&mut self.blocks);
        let tables = std::mem::take(&mut self.tables);
        let mut hasher = std::mem::take(&mut self.hasher);
        let mut segments = std::mem::take(&mut self.segments);
        let mut former = std::mem::take(&mut self.former);
        former.clear();
        debug_assert!(blocks.is_empty(), "Invariant: a finished request holds no blocks");
        blocks.clear();
        hasher.clear();
        segments.clear();
        segments.extend_from_slice(submission.segments);
        *self = Self {
            id: submission.id,
            arrival: submission.arrival,
            priority: submission.priority,
            tie_rank: submission.tie_rank,
            client: submission.session.map_or(0, |session| session.0.saturating_add(1)),
            service: Service { score: submission.score, ..Service::default() },
            status: Status::Waiting,
            prompt_tokens: submission.prompt_tokens,
            max_tokens: submission.max_tokens,
            num_tokens: submission.prompt_tokens,
            private_from: first_private_block(submission.segments, block_size),
            blocks,
            tables,
            hasher,
            former,
            segments,
            output_stream: submission.output_stream,
            handover: submission.handover,
            ..Self::vacant()
        };
    }

    /// Returns the request's id.
    #[inline]
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// Tells what is special about the request's KV.
    #[inline]
    pub fn handover(&self) -> Handover {
        self.handover
    }

    /// Returns the prompt length in tokens.
    #[inline]
    pub fn prompt_tokens(&self) -> u32 {
        self.prompt_tokens
    }

    /// Returns how many output tokens exist.
    #[inline]
    pub fn num_output_tokens(&self) -> u32 {
        self.num_tokens - self.prompt_tokens
    }

    /// Returns how often the request was preempted.
    #[inline]
    pub fn num_preemptions(&self) -> u32 {
        self.num_preemptions
    }

    /// Returns the request's block table.
    #[inline]
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Returns the tokens that could be computed next beside `num_drafts` drafts: all that are known or being sampled,
    /// less those done. None while drafts are under way in a synchronous pipeline, which has no placeholders for them.
    #[inline]
    pub(crate) fn num_pending(&self, num_drafts: u32) -> u32 {
        (self.num_tokens + self.num_placeholders + num_drafts).saturating_sub(self.num_computed)
    }

    /// Takes the drafts that fit into a chunk of `num_tokens` tokens; the others are dropped.
    #[inline]
    pub(crate) fn take_drafts(&mut self, num_tokens: u32) -> u32 {
        let drafts = std::mem::take(&mut self.rare.num_drafts);
        let beyond = self.num_computed + num_tokens;
        beyond.saturating_sub(self.num_tokens + self.num_placeholders).min(drafts)
    }

    /// Tells whether the `schedule()` call numbered `call` put the request in its batch.
    #[inline]
    pub fn was_scheduled_in(&self, call: u64) -> bool {
        self.last_scheduled == call
    }

    /// Tells whether a part of the prompt is still to be computed.
    #[inline]
    pub fn prompt_is_unfinished(&self) -> bool {
        self.num_computed < self.prompt_tokens
    }

    /// Hashes the blocks that are full by now.
    #[inline]
    pub(crate) fn rehash(&mut self, block_size: u32) {
        self.hasher.extend(block_size, &self.segments, self.output_stream, self.num_tokens);
    }
}

/// Returns the first logical block with a token that nobody shares; block hashes chain, so that nobody shares
/// anything after it either.
fn first_private_block(segments: &[Segment], block_size: u32) -> u32 {
    let mut shared_tokens = 0;
    for segment in segments {
        if segment.stream >= UNIQUE_STREAM_BASE {
            return shared_tokens / block_size;
        }
        shared_tokens += segment.len;
    }
    u32::MAX
}
