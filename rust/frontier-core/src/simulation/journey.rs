//! Requests on their way from replica to replica, and what the controller knows of them.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use super::pools::Pool;
use crate::engine::Part;
use crate::error::SimError;
use crate::ids::{ReplicaId, RequestId};
use crate::network::FlowId;
use crate::plan::{DirectSpec, EncodeSpec, Granularity, HandoverMode, HandoverSpec, PathSpec};
use crate::scheduler::Handover;
use crate::time::SimTime;
use crate::workload::RequestSpec;

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

impl Piece {
    /// Returns a piece of `num_blocks` blocks; the last of a request has what lies beside its blocks.
    pub(super) fn new(spec: &HandoverSpec, num_blocks: u32, is_last: bool) -> Self {
        let beside = if is_last { spec.fixed_bytes } else { 0 };
        Self { num_blocks, bytes: u64::from(num_blocks) * spec.bytes_per_block + beside }
    }
}

/// A request on its way from one replica to another.
#[derive(Clone, Debug)]
pub(super) struct Journey {
    /// Number of its path.
    pub(super) model: u16,
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
    pub(super) fn new(model: u16, stage: Stage, source: ReplicaId) -> Self {
        Self {
            model,
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

/// How far the encoding of what a request brought has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// On an engine.
    On(ReplicaId),
    /// On its way to the next leg.
    Sent,
    /// There.
    Done,
}

/// The way of one model's requests.
#[derive(Debug)]
pub(super) struct Path {
    /// The clusters of each leg.
    pub(super) pools: Vec<Pool>,
    pub(super) encodes: Option<EncodeSpec>,
    pub(super) handover: Option<HandoverSpec>,
    pub(super) direct: Option<DirectSpec>,
    /// Prompt tokens on the leg that hands KV over, waiting or being computed.
    pub(super) queued_tokens: u64,
}

impl Path {
    fn new(path: &PathSpec) -> Self {
        Self {
            pools: path.legs.iter().map(Pool::new).collect(),
            encodes: path.encodes(),
            handover: path.handover().copied(),
            direct: path.direct,
            queued_tokens: 0,
        }
    }

    /// Returns the leg that makes the output.
    pub(super) fn last(&self) -> usize {
        self.pools.len() - 1
    }

    /// Returns the leg that begins with the prompt.
    pub(super) fn first(&self) -> usize {
        usize::from(self.encodes.is_some())
    }

    /// Returns a request as a leg knows it: one that sends it on makes a single token, of what is encoded or of the prompt.
    pub(super) fn work_of(&self, spec: &RequestSpec, leg: usize) -> RequestSpec {
        let encodes = leg < self.first();
        RequestSpec {
            prompt_tokens: if encodes { spec.encoder_tokens } else { spec.prompt_tokens },
            output_tokens: if leg < self.last() { 1 } else { spec.output_tokens },
            ..*spec
        }
    }
}

/// The controller of a run whose requests pass several clusters, or one of several.
#[derive(Debug)]
pub(super) struct Controller {
    /// By model.
    pub(super) paths: Vec<Path>,
    pub(super) journeys: FxHashMap<RequestId, Journey>,
    /// Requests that brought something to encode, from when an engine has it.
    pub(super) encoding: FxHashMap<RequestId, Encoding>,
    /// When the one link that all transfers pass is free.
    pub(super) link_free: SimTime,
}

impl Controller {
    pub(super) fn new(paths: &[PathSpec]) -> Self {
        Self {
            paths: paths.iter().map(Path::new).collect(),
            journeys: FxHashMap::default(),
            encoding: FxHashMap::default(),
            link_free: SimTime::ZERO,
        }
    }

    /// Returns the part of each cluster.
    pub(super) fn parts(&self) -> impl Iterator<Item = (usize, Part)> {
        self.paths.iter().flat_map(|path| {
            let hands_over = path.handover.is_some();
            let chunks = path.handover.is_some_and(|spec| spec.granularity != Granularity::Request);
            path.pools.iter().enumerate().flat_map(move |(leg, pool)| {
                let part = Part {
                    encodes: leg < path.first(),
                    receives: hands_over && leg == path.last(),
                    reports_chunks: chunks && leg == path.first(),
                };
                pool.clusters().iter().map(move |&cluster| (cluster, part))
            })
        })
    }

    /// Returns how many requests it takes to be under way, each as often as it is counted.
    pub(super) fn num_under_way(&self) -> u64 {
        let counted =
            |path: &Path| path.queued_tokens + path.pools.iter().map(Pool::outstanding).sum::<u64>();
        self.paths.iter().map(counted).sum::<u64>() + (self.journeys.len() + self.encoding.len()) as u64
    }

    /// Returns the path of a request.
    pub(super) fn path(&mut self, spec: &RequestSpec) -> &mut Path {
        &mut self.paths[usize::from(spec.model)]
    }

    /// Tells what is special about the KV of a request that reaches an engine.
    pub(super) fn part_of(&self, id: RequestId) -> Handover {
        if self.is_encoded(id) {
            return Handover::Keeps;
        }
        let Some(journey) = self.journeys.get(&id) else { return Handover::Neither };
        let mode = self.mode(journey);
        match journey.stage {
            Stage::Computing => Handover::Keeps,
            _ if mode == Some(HandoverMode::Buffer) => Handover::Buffered,
            _ => Handover::Receives,
        }
    }

    /// Returns a request as the engine that it reaches knows it.
    pub(super) fn work_of(&mut self, spec: &RequestSpec, part: Handover) -> RequestSpec {
        let is_encoded = self.is_encoded(spec.id);
        let path = self.path(spec);
        let leg = match part {
            Handover::Keeps if is_encoded => 0,
            Handover::Keeps => path.first(),
            Handover::Neither | Handover::Receives | Handover::Buffered => path.last(),
        };
        path.work_of(spec, leg)
    }

    /// Tells whether an engine has what is to be encoded of a request.
    pub(super) fn is_encoded(&self, id: RequestId) -> bool {
        matches!(self.encoding.get(&id), Some(Encoding::On(_)))
    }

    /// Notes that a request is no longer under way in a cluster.
    pub(super) fn release(&mut self, cluster: usize) {
        self.paths.iter_mut().flat_map(|path| &mut path.pools).for_each(|pool| pool.release(cluster));
    }

    pub(super) fn mode(&self, journey: &Journey) -> Option<HandoverMode> {
        self.paths[usize::from(journey.model)].handover.map(|spec| spec.mode)
    }

    /// Returns how the KV of a request is handed over.
    pub(super) fn handover_of(&self, id: RequestId) -> Result<HandoverSpec, SimError> {
        let journey = self.journeys.get(&id).ok_or_else(|| nobody(id))?;
        self.paths[usize::from(journey.model)].handover.ok_or_else(|| nobody(id))
    }

    /// Tells whether a request is on its way with the token that its prefill makes.
    pub(super) fn carries(&self, id: RequestId) -> bool {
        let path = self.journeys.get(&id).map(|journey| &self.paths[usize::from(journey.model)]);
        path.and_then(|path| path.handover).is_some_and(|handover| handover.carries())
    }

    pub(super) fn journey(&mut self, id: RequestId) -> Result<&mut Journey, SimError> {
        self.journeys.get_mut(&id).ok_or_else(|| nobody(id))
    }
}

fn nobody(id: RequestId) -> SimError {
    SimError::Invariant { what: format!("request {} is handed over by nobody", id.0) }
}
