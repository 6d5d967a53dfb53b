//! Requests on their way from replica to replica, and what the controller knows of them.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use super::pools::Pool;
use crate::error::SimError;
use crate::ids::{ReplicaId, RequestId};
use crate::network::FlowId;
use crate::plan::{DirectSpec, Granularity, HandoverMode, HandoverSpec, PathSpec};
use crate::scheduler::Handover;
use crate::time::SimTime;

/// How far a hand-over has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The destination has not given blocks yet, and the source has not begun (push).
    Reserving,
    /// The source computes.
    Computing,
    /// The source writes to the pool (store), or to the destination's buffer.
    Writing,
    /// The proxy has it, or the destination has no blocks for it yet.
    Waiting,
    /// The source is done, and its KV is on its way.
    Moving,
}

/// KV that leaves at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) num_blocks: u32,
    pub(super) bytes: u64,
}

/// A request on its way from one replica to another.
#[derive(Clone, Debug)]
pub(super) struct Journey {
    pub(super) stage: Stage,
    pub(super) source: ReplicaId,
    /// When the source's API servers are done with the request, where it does not reach them later.
    pub(super) accepted: Option<SimTime>,
    /// When the source was done.
    pub(super) ready: Option<SimTime>,
    /// Its row in the table of transfers, from when the destination is known.
    pub(super) row: usize,
    /// Blocks that the destination fills.
    pub(super) num_blocks: u32,
    /// Blocks whose KV was sent, or is about to be.
    pub(super) sent_blocks: u32,
    /// Pieces that have not started, in order.
    pub(super) to_start: VecDeque<Piece>,
    /// Pieces that have not ended, those included.
    pub(super) under_way: u32,
    /// When the first byte left.
    pub(super) start: Option<SimTime>,
    /// Bytes that left.
    pub(super) bytes: u64,
    /// Its flows in the network.
    pub(super) flows: Vec<FlowId>,
}

impl Journey {
    pub(super) fn new(stage: Stage, source: ReplicaId) -> Self {
        Self {
            stage,
            source,
            accepted: None,
            ready: None,
            row: NO_ROW,
            num_blocks: 0,
            sent_blocks: 0,
            to_start: VecDeque::new(),
            under_way: 0,
            start: None,
            bytes: 0,
            flows: Vec::new(),
        }
    }
}

/// Stands for no row.
pub(super) const NO_ROW: usize = usize::MAX;

/// The controller of a run whose requests pass several clusters, or one of several.
#[derive(Debug)]
pub(super) struct Controller {
    pub(super) pools: Vec<Pool>,
    pub(super) handover: Option<HandoverSpec>,
    pub(super) direct: Option<DirectSpec>,
    pub(super) journeys: FxHashMap<RequestId, Journey>,
    /// When the one link that all transfers pass is free.
    pub(super) link_free: SimTime,
    /// Prompt tokens on the first leg, waiting or being computed.
    pub(super) queued_tokens: u64,
}

impl Controller {
    pub(super) fn new(path: &PathSpec) -> Self {
        Self {
            pools: path.legs.iter().map(Pool::new).collect(),
            handover: path.legs.last().and_then(|leg| leg.receives.clone()),
            direct: path.direct,
            journeys: FxHashMap::default(),
            link_free: SimTime::ZERO,
            queued_tokens: 0,
        }
    }

    /// Returns the engines' parts: for each cluster whether it receives KV, and whether it reports chunks.
    pub(super) fn parts(&self) -> impl Iterator<Item = (usize, bool, bool)> {
        let chunks = self.handover.as_ref().is_some_and(|spec| spec.granularity != Granularity::Request);
        let last = self.pools.len() - 1;
        self.pools.iter().enumerate().flat_map(move |(leg, pool)| {
            pool.clusters().iter().map(move |&cluster| (cluster, leg > 0, chunks && leg < last))
        })
    }

    /// Tells what is special about the KV of a request that reaches an engine.
    pub(super) fn part_of(&self, id: RequestId) -> Handover {
        match self.journeys.get(&id).map(|journey| journey.stage) {
            None => Handover::Neither,
            Some(Stage::Computing) => Handover::Keeps,
            Some(_) if self.spec().mode == HandoverMode::Buffer => Handover::Buffered,
            Some(_) => Handover::Receives,
        }
    }

    /// Tells whether the token that a prefill makes goes with the KV.
    pub(super) fn carries(&self) -> bool {
        self.handover.as_ref().is_some_and(HandoverSpec::carries)
    }

    pub(super) fn spec(&self) -> &HandoverSpec {
        self.handover.as_ref().expect("Invariant: a path with journeys hands over")
    }

    pub(super) fn journey(&mut self, id: RequestId) -> Result<&mut Journey, SimError> {
        self.journeys
            .get_mut(&id)
            .ok_or_else(|| SimError::Invariant { what: format!("request {} is handed over by nobody", id.0) })
    }

    /// Returns a piece of `num_blocks` blocks; the last of a request has what lies beside its blocks.
    pub(super) fn piece(&self, num_blocks: u32, is_last: bool) -> Piece {
        let spec = self.spec();
        let beside = if is_last { spec.fixed_bytes } else { 0 };
        Piece { num_blocks, bytes: u64::from(num_blocks) * spec.bytes_per_block + beside }
    }
}
