//! The global controller: takes requests from leg to leg of their path, and their KV from replica to replica.
//!
//! A request that is handed over is in one of the stages of [`Stage`]; everything else about it is known by the engines
//! and by its records. The order of things is that of the mode ([`HandoverMode`]): who has to have blocks before whom,
//! and who holds them until when. So a full decode side holds transfers up, blocks on the prefill side stay taken, and
//! prefills stall: nothing has to be told to wait.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use super::Simulation;
use super::pools::Pool;
use super::transport::Transport;
use crate::engine::{ComputedChunk, KvNews};
use crate::error::SimError;
use crate::event::Event;
use crate::ids::{ReplicaId, RequestId};
use crate::metrics::{Activity, HostMeter, RejectReason, TransferRecord};
use crate::network::FlowId;
use crate::plan::{
    DirectSpec, Granularity, HandoverMode, HandoverSpec, PathSpec, SchedulerSpec, TransportSpec,
};
use crate::scheduler::{Handover, RemoteRead};
use crate::time::{SimDuration, SimTime};
use crate::workload::RequestSpec;

/// How far a hand-over has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
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
struct Piece {
    num_blocks: u32,
    bytes: u64,
}

/// A request on its way from one replica to another.
#[derive(Clone, Debug)]
struct Journey {
    stage: Stage,
    source: ReplicaId,
    /// When the source was done.
    ready: Option<SimTime>,
    /// Its row in the table of transfers, from when the destination is known.
    row: usize,
    /// Blocks that the destination fills.
    num_blocks: u32,
    /// Blocks whose KV was sent, or is about to be.
    sent_blocks: u32,
    /// Pieces that have not started, in order.
    to_start: VecDeque<Piece>,
    /// Pieces that have not ended, those included.
    under_way: u32,
    /// When the first byte left.
    start: Option<SimTime>,
    /// Bytes that left.
    bytes: u64,
    /// Its flows in the network.
    flows: Vec<FlowId>,
}

impl Journey {
    fn new(stage: Stage, source: ReplicaId) -> Self {
        Self {
            stage,
            source,
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
const NO_ROW: usize = usize::MAX;

/// The controller of a run whose requests pass several clusters, or one of several.
#[derive(Debug)]
pub(super) struct Controller {
    pools: Vec<Pool>,
    handover: Option<HandoverSpec>,
    direct: Option<DirectSpec>,
    journeys: FxHashMap<RequestId, Journey>,
    /// When the one link that all transfers pass is free.
    link_free: SimTime,
    /// Prompt tokens on the first leg, waiting or being computed.
    queued_tokens: u64,
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
    fn part_of(&self, id: RequestId) -> Handover {
        match self.journeys.get(&id).map(|journey| journey.stage) {
            None => Handover::Neither,
            Some(Stage::Computing) => Handover::Keeps,
            Some(_) if self.spec().mode == HandoverMode::Buffer => Handover::Buffered,
            Some(_) => Handover::Receives,
        }
    }

    fn spec(&self) -> &HandoverSpec {
        self.handover.as_ref().expect("Invariant: a path with journeys hands over")
    }

    fn journey(&mut self, id: RequestId) -> Result<&mut Journey, SimError> {
        self.journeys
            .get_mut(&id)
            .ok_or_else(|| SimError::Invariant { what: format!("request {} is handed over by nobody", id.0) })
    }
}

impl Simulation {
    /// Tells why a request can never be served, if so.
    pub(super) fn refusal(&self, spec: &RequestSpec) -> RejectReason {
        let Some(controller) = &self.controller else { return self.clusters[0].refusal(spec) };
        let last = controller.pools.len() - 1;
        for (leg, pool) in controller.pools.iter().enumerate() {
            let work = if leg < last { RequestSpec { output_tokens: 1, ..*spec } } else { *spec };
            for &cluster in pool.clusters() {
                let refused = self.clusters[cluster].refusal(&work);
                if refused != RejectReason::None {
                    return refused;
                }
            }
        }
        RejectReason::None
    }

    /// Sends a request on its way, or lets it wait for a replica that takes requests.
    pub(super) fn admit(&mut self, now: SimTime, spec: &RequestSpec) -> Result<(), SimError> {
        self.segments.clear();
        self.workload.prompt_segments(spec.id, &mut self.segments);
        let Some(controller) = &mut self.controller else {
            let engine = self.clusters[0].choose(now, spec, &self.segments);
            return self.send_or_wait(now, spec, engine);
        };
        let Some(mode) = controller.handover.as_ref().map(|handover| handover.mode) else {
            let engine = self.choose_on(now, 0, spec);
            return self.send_or_wait(now, spec, engine);
        };
        if let Some(engine) = self.shortcut(now, spec) {
            return self.send(now, spec, engine);
        }
        let Some(source) = self.choose_on(now, 0, spec) else {
            self.unplaced.push(spec.id);
            return Ok(());
        };
        let Some(controller) = &mut self.controller else { unreachable!("it was there some lines before") };
        controller.queued_tokens += u64::from(spec.prompt_tokens);
        let push = mode == HandoverMode::Push;
        let stage = if push { Stage::Reserving } else { Stage::Computing };
        controller.journeys.insert(spec.id, Journey::new(stage, source));
        if !push {
            return self.send(now, spec, source);
        }
        self.around.recorder.route(spec.id, source, now);
        self.around.recorder.enter(spec.id, Activity::KvTransferWait, now, HostMeter::default());
        self.send_on(now, spec)
    }

    /// Chooses a cluster for a leg, and an engine of it.
    fn choose_on(&mut self, now: SimTime, leg: usize, spec: &RequestSpec) -> Option<ReplicaId> {
        let clusters = &mut self.clusters;
        let pool = &mut self.controller.as_mut()?.pools[leg];
        let cluster = pool.choose(|cluster| clusters[cluster].is_open())?;
        clusters[cluster].choose(now, spec, &self.segments)
    }

    /// Returns the engine of the last leg that serves a request whole, if it is to skip the legs before.
    fn shortcut(&mut self, now: SimTime, spec: &RequestSpec) -> Option<ReplicaId> {
        let controller = self.controller.as_ref()?;
        let direct = controller.direct?;
        let deflects = direct.deflect_above_tokens.is_some_and(|most| controller.queued_tokens > most);
        if !deflects && direct.max_uncached_tokens.is_none() {
            return None;
        }
        let engine = self.choose_on(now, direct.leg as usize, spec)?;
        let number = self.cluster_of[engine.index()] as usize;
        let cluster = &mut self.clusters[number];
        let uncached = spec.prompt_tokens - cluster.cached_prefix(engine, spec, &self.segments);
        if deflects || direct.max_uncached_tokens.is_some_and(|most| uncached <= most) {
            return Some(engine);
        }
        cluster.release(engine, spec.id);
        self.controller.as_mut()?.pools[direct.leg as usize].release(number);
        None
    }

    /// Sends a request to `engine`, or lets it wait until there is one.
    fn send_or_wait(
        &mut self,
        now: SimTime,
        spec: &RequestSpec,
        engine: Option<ReplicaId>,
    ) -> Result<(), SimError> {
        if let Some(engine) = engine {
            return self.send(now, spec, engine);
        }
        self.unplaced.push(spec.id);
        Ok(())
    }

    /// Sends a request to `engine`, through its API servers where there are any. `segments` holds its prompt.
    fn send(&mut self, now: SimTime, spec: &RequestSpec, engine: ReplicaId) -> Result<(), SimError> {
        self.around.recorder.route(spec.id, engine, now);
        match self.cluster(engine).network_to_servers() {
            Some(network) => self.around.push_for(now.after(network)?, spec.id, Event::Accept),
            None => self.submit(now, spec, engine),
        }
    }

    /// Hands a request to its engine; `segments` holds its prompt.
    pub(super) fn submit(
        &mut self,
        now: SimTime,
        spec: &RequestSpec,
        engine: ReplicaId,
    ) -> Result<(), SimError> {
        let part =
            self.controller.as_ref().map_or(Handover::Neither, |controller| controller.part_of(spec.id));
        if part == Handover::Buffered
            && let Some(controller) = &mut self.controller
        {
            controller.journeys.remove(&spec.id);
        }
        let spec = if part == Handover::Keeps { &RequestSpec { output_tokens: 1, ..*spec } } else { spec };
        let cluster = &mut self.clusters[self.cluster_of[engine.index()] as usize];
        cluster.submit(now, spec, engine, part, &self.segments, &mut self.around)
    }

    /// Chooses the replica that a request goes on to; none while none takes requests.
    fn choose_destination(
        &mut self,
        now: SimTime,
        spec: &RequestSpec,
    ) -> Result<Option<ReplicaId>, SimError> {
        self.segments.clear();
        self.workload.prompt_segments(spec.id, &mut self.segments);
        let last = self.controller.as_ref().map_or(0, |controller| controller.pools.len() - 1);
        let Some(destination) = self.choose_on(now, last, spec) else { return Ok(None) };
        let row = self.around.recorder.transfers.len();
        let Some(controller) = &mut self.controller else { return Ok(None) };
        let journey = controller.journey(spec.id)?;
        journey.row = row;
        let (source, ready) = (journey.source, journey.ready);
        self.around.recorder.transfers.push(TransferRecord {
            request: spec.id,
            source,
            destination,
            ready,
            start: None,
            end: None,
            bytes: 0,
        });
        Ok(Some(destination))
    }

    /// Chooses the replica that a request goes on to, and sends it there.
    fn send_on(&mut self, now: SimTime, spec: &RequestSpec) -> Result<(), SimError> {
        let destination = self.choose_destination(now, spec)?;
        let Some(controller) = &mut self.controller else { return Ok(()) };
        let waiting = controller.journey(spec.id)?.stage == Stage::Waiting;
        let Some(destination) = destination else {
            if !waiting {
                // Nothing is computed yet, so it starts from the beginning when there is a replica.
                self.withdraw(now, spec.id)?;
                self.around.recorder.enter(spec.id, Activity::Queue, now, HostMeter::default());
            }
            self.unplaced.push(spec.id);
            return Ok(());
        };
        if waiting {
            return self.send(now, spec, destination);
        }
        // Blocks are asked for while the request still belongs to its source.
        let cluster = self.cluster(destination);
        match cluster.network_to_servers() {
            Some(_) => {
                let ready = cluster.accept(now, spec, destination)?;
                self.around.push_for(ready, spec.id, Event::HandOver)
            }
            None => self.submit(now, spec, destination),
        }
    }

    /// Goes on with a request that its proxy, or the API servers of its destination, had.
    pub(super) fn on_hand_over(&mut self, now: SimTime, id: RequestId) -> Result<(), SimError> {
        let spec = self.around.recorder.requests[id.index()].spec;
        self.segments.clear();
        self.workload.prompt_segments(id, &mut self.segments);
        let Some(controller) = &mut self.controller else { return Ok(()) };
        let (row, stage) = (controller.journey(id)?.row, controller.journey(id)?.stage);
        if row == NO_ROW {
            let buffered = controller.spec().mode == HandoverMode::Buffer;
            return if buffered { self.write(now, &spec) } else { self.send_on(now, &spec) };
        }
        let destination = self.around.recorder.transfers[row].destination;
        match stage {
            Stage::Waiting => self.send(now, &spec, destination),
            _ => self.submit(now, &spec, destination),
        }
    }

    /// An engine is done with a request. Returns whether another one goes on with it.
    pub(super) fn go_on(&mut self, now: SimTime, id: RequestId, engine: ReplicaId) -> Result<bool, SimError> {
        let number = self.cluster_of[engine.index()] as usize;
        let Some(controller) = &mut self.controller else { return Ok(false) };
        controller.pools.iter_mut().for_each(|pool| pool.release(number));
        let Some(journey) = controller.journeys.get_mut(&id) else { return Ok(false) };
        let spec = self.around.recorder.requests[id.index()].spec;
        journey.ready = Some(now);
        controller.queued_tokens -= u64::from(spec.prompt_tokens);
        let HandoverSpec { mode, granularity, proxy_latency_ns, .. } = *controller.spec();
        match mode {
            HandoverMode::Pull => {
                let after = SimDuration(proxy_latency_ns);
                controller.journey(id)?.stage = Stage::Waiting;
                self.pass_proxy(now, &spec, after)?;
            }
            HandoverMode::Store | HandoverMode::Buffer => self.write(now, &spec)?,
            HandoverMode::Push => {
                let journey = controller.journey(id)?;
                journey.stage = Stage::Moving;
                let (num_blocks, all_there) = (journey.num_blocks, journey.under_way == 0);
                let started = journey.start.is_some();
                let transfer = &mut self.around.recorder.transfers[journey.row];
                transfer.ready = Some(now);
                let destination = transfer.destination;
                self.around.recorder.route(id, destination, now);
                if granularity == Granularity::Request {
                    let piece = controller.piece(num_blocks, true);
                    self.start_piece(now, id, piece)?;
                } else if all_there {
                    self.arrive(now, id)?;
                } else if started {
                    self.around.recorder.enter(id, Activity::KvTransfer, now, HostMeter::default());
                }
            }
        }
        Ok(true)
    }

    /// Lets the source write a prompt's KV to the pool, or to the buffer of its destination.
    fn write(&mut self, now: SimTime, spec: &RequestSpec) -> Result<(), SimError> {
        let Some(controller) = &mut self.controller else { return Ok(()) };
        let buffered = controller.spec().mode == HandoverMode::Buffer;
        let journey = controller.journey(spec.id)?;
        journey.stage = Stage::Waiting;
        let source = journey.source;
        if buffered && self.choose_destination(now, spec)?.is_none() {
            self.unplaced.push(spec.id);
            return Ok(());
        }
        let blocks = self.block_size_of(source).map_or(0, |size| spec.prompt_tokens.div_ceil(size));
        let Some(controller) = &mut self.controller else { return Ok(()) };
        controller.journey(spec.id)?.stage = Stage::Writing;
        let piece = controller.piece(blocks, true);
        self.start_piece(now, spec.id, piece)
    }

    fn pass_proxy(&mut self, now: SimTime, spec: &RequestSpec, after: SimDuration) -> Result<(), SimError> {
        if after.0 > 0 {
            return self.around.push_for(now.after(after)?, spec.id, Event::HandOver);
        }
        self.on_hand_over(now, spec.id)
    }

    fn block_size_of(&self, engine: ReplicaId) -> Option<u32> {
        match self.clusters[self.cluster_of[engine.index()] as usize].scheduler() {
            SchedulerSpec::VllmV1(config) => Some(config.block_size),
            SchedulerSpec::Sglang(_) | SchedulerSpec::Baseline(_) => None,
        }
    }

    /// Acts on what steps that a unit formed `now` begin to read, and what they compute for others.
    pub(super) fn settle_handovers(&mut self, now: SimTime, unit: ReplicaId) -> Result<(), SimError> {
        if self.controller.is_none() {
            return Ok(());
        }
        let (reads, chunks) = self.cluster(unit).take_handovers(unit);
        for (engine, read, start) in reads {
            self.on_read(now, engine, read, start)?;
        }
        for chunk in chunks {
            self.on_chunk(chunk)?;
        }
        Ok(())
    }

    /// The destination has blocks for a request.
    fn on_read(
        &mut self,
        now: SimTime,
        engine: ReplicaId,
        read: RemoteRead,
        start: SimTime,
    ) -> Result<(), SimError> {
        let RemoteRead { request: id, num_blocks } = read;
        let Some(controller) = &mut self.controller else { return Ok(()) };
        let piece = controller.piece(num_blocks, true);
        let journey = controller.journey(id)?;
        journey.num_blocks = num_blocks;
        if journey.stage == Stage::Reserving {
            journey.stage = Stage::Computing;
            let source = journey.source;
            let spec = self.around.recorder.requests[id.index()].spec;
            self.around.recorder.enter(id, Activity::Queue, now, HostMeter::default());
            self.segments.clear();
            self.workload.prompt_segments(id, &mut self.segments);
            return match self.cluster(source).network_to_servers() {
                Some(network) => self.around.push_for(now.after(network)?, id, Event::Accept),
                None => self.submit(now, &spec, source),
            };
        }
        journey.stage = Stage::Moving;
        let (from, to) = self.start_piece_at(now, start.max(now), id, piece)?;
        if let (Some(log), Some(to)) = (&mut self.around.recorder.decision_log, to) {
            log.transfer(now, engine, id, num_blocks, (from, to));
        }
        Ok(())
    }

    /// A step computes a part of a prompt that another engine waits for.
    fn on_chunk(&mut self, chunk: ComputedChunk) -> Result<(), SimError> {
        let ComputedChunk { request: id, computed, start, end } = chunk;
        let prompt = self.around.recorder.requests[id.index()].spec.prompt_tokens;
        let Some(controller) = &mut self.controller else { return Ok(()) };
        let (layers, granularity) = (controller.spec().num_layers, controller.spec().granularity);
        let source = controller.journey(id)?.source;
        let Some(size) = self.block_size_of(source) else { return Ok(()) };
        let Some(controller) = &mut self.controller else { return Ok(()) };
        let journey = controller.journey(id)?;
        // The first blocks may be in the destination's cache; the last one leaves when it is complete.
        let cached = prompt.div_ceil(size) - journey.num_blocks;
        let is_last = computed >= prompt;
        let blocks = if is_last { prompt.div_ceil(size) } else { computed / size };
        let reached = blocks.saturating_sub(cached);
        let fresh = reached.saturating_sub(journey.sent_blocks);
        if fresh == 0 && !is_last {
            return Ok(());
        }
        journey.sent_blocks = journey.sent_blocks.max(reached);
        let whole = controller.piece(fresh, is_last);
        let after_layers = whole.bytes / u64::from(layers);
        let pieces = match granularity {
            // The KV of a layer leaves while the next ones are computed: all but the last layer's, from when the
            // first one is done.
            Granularity::Layer if layers > 1 => vec![
                (
                    start.after(SimDuration(end.since(start).0 / u64::from(layers)))?,
                    Piece { bytes: whole.bytes - after_layers, ..whole },
                ),
                (end, Piece { bytes: after_layers, num_blocks: 0 }),
            ],
            _ => vec![(end, whole)],
        };
        for (at, piece) in pieces {
            let journey = controller.journey(id)?;
            journey.to_start.push_back(piece);
            journey.under_way += 1;
            self.around.push_for(at, id, Event::TransferStart)?;
        }
        Ok(())
    }

    /// The next piece of a request's KV leaves.
    pub(super) fn on_transfer_start(&mut self, now: SimTime, id: RequestId) -> Result<(), SimError> {
        let Some(controller) = &mut self.controller else { return Ok(()) };
        let journey = controller.journey(id)?;
        let Some(piece) = journey.to_start.pop_front() else {
            return Err(SimError::Invariant { what: format!("request {} has nothing to send", id.0) });
        };
        journey.under_way -= 1;
        self.start_piece(now, id, piece)
    }

    fn start_piece(&mut self, now: SimTime, id: RequestId, piece: Piece) -> Result<(), SimError> {
        self.start_piece_at(now, now, id, piece).map(drop)
    }

    /// Starts a piece at `at`, not before `now`. Returns when it really starts, and when it ends where that is known.
    fn start_piece_at(
        &mut self,
        now: SimTime,
        at: SimTime,
        id: RequestId,
        piece: Piece,
    ) -> Result<(SimTime, Option<SimTime>), SimError> {
        let Some(controller) = &mut self.controller else { return Ok((at, None)) };
        let spec = controller.spec();
        let latency = SimDuration(spec.latency_ns);
        let (start, end) = match spec.transport {
            TransportSpec::Serial { ns_per_block } => {
                let start = at.max(controller.link_free);
                let flight = ns_per_block.saturating_mul(u64::from(piece.num_blocks));
                let end = start.after(latency)?.after(SimDuration(flight))?;
                controller.link_free = end;
                (start, end)
            }
            TransportSpec::Dedicated { bytes_per_s } => {
                let flight = SimDuration::from_seconds(piece.bytes as f64 / bytes_per_s)?;
                (at, at.after(latency)?.after(flight)?)
            }
            TransportSpec::Network {} => return self.start_flow(now, at, id, piece),
        };
        debug_assert!(start >= now, "Invariant: nothing starts in the past");
        self.note_start(id, start, piece)?;
        self.around.push_for(end, id, Event::TransferEnd)?;
        Ok((start, Some(end)))
    }

    /// Starts a piece on its way through the network at `at`, not before `now`. Nobody knows when it ends.
    fn start_flow(
        &mut self,
        now: SimTime,
        at: SimTime,
        id: RequestId,
        piece: Piece,
    ) -> Result<(SimTime, Option<SimTime>), SimError> {
        let Some(controller) = &mut self.controller else { return Ok((at, None)) };
        let journey = controller.journey(id)?;
        if at > now {
            journey.to_start.push_back(piece);
            journey.under_way += 1;
            self.around.push_for(at, id, Event::TransferStart)?;
            return Ok((at, None));
        }
        let ends = (journey.source, self.around.recorder.transfers[journey.row].destination);
        self.note_start(id, now, piece)?;
        self.settle_flows(now)?;
        if let (Some(transport), Some(controller)) = (&mut self.transport, &mut self.controller) {
            let flow = transport.start(now, id, ends, piece.bytes)?;
            controller.journey(id)?.flows.push(flow);
        }
        self.settle_flows_later(now)?;
        Ok((now, None))
    }

    /// Books that a piece leaves at `start`.
    fn note_start(&mut self, id: RequestId, start: SimTime, piece: Piece) -> Result<(), SimError> {
        let Some(controller) = &mut self.controller else { return Ok(()) };
        let journey = controller.journey(id)?;
        journey.under_way += 1;
        journey.start = Some(journey.start.map_or(start, |first| first.min(start)));
        journey.bytes += piece.bytes;
        if journey.stage != Stage::Computing {
            self.around.recorder.enter(id, Activity::KvTransfer, start, HostMeter::default());
        }
        Ok(())
    }

    /// Flows may have ended.
    pub(super) fn on_flow_end(&mut self, now: SimTime) -> Result<(), SimError> {
        self.settle_flows(now)?;
        self.settle_flows_later(now)
    }

    /// Schedules the arrival of what has left by `now`.
    fn settle_flows(&mut self, now: SimTime) -> Result<(), SimError> {
        let (Some(transport), Some(controller)) = (&mut self.transport, &self.controller) else {
            return Ok(());
        };
        let latency = SimDuration(controller.spec().latency_ns);
        let transfers = &self.around.recorder.transfers;
        let ends = |id: RequestId| {
            let journey = &controller.journeys[&id];
            (journey.source, transfers[journey.row].destination)
        };
        for (id, there) in transport.advance(now, ends)? {
            self.around.push_for(there.after(latency)?, id, Event::TransferEnd)?;
        }
        Ok(())
    }

    /// Rates depend on all that starts and ends at one instant.
    fn settle_flows_later(&mut self, now: SimTime) -> Result<(), SimError> {
        let is_first = self.transport.as_mut().is_some_and(Transport::changes);
        if is_first { self.around.push(now, Event::SettleFlows) } else { Ok(()) }
    }

    /// Asks to be told when the next flow ends.
    pub(super) fn arm_flows(&mut self) -> Result<(), SimError> {
        match self.transport.as_mut().and_then(Transport::arm) {
            Some(next) => self.around.push(next, Event::FlowEnd),
            None => Ok(()),
        }
    }

    /// A piece of a request's KV is there.
    pub(super) fn on_transfer_end(&mut self, now: SimTime, id: RequestId) -> Result<(), SimError> {
        let Some(controller) = &mut self.controller else { return Ok(()) };
        let after = SimDuration(controller.spec().proxy_latency_ns);
        let buffered = controller.spec().mode == HandoverMode::Buffer;
        let journey = controller.journey(id)?;
        journey.under_way -= 1;
        match journey.stage {
            Stage::Moving if journey.under_way == 0 => self.arrive(now, id),
            Stage::Writing => {
                journey.stage = Stage::Waiting;
                let source = journey.source;
                let done = journey.clone();
                let spec = self.around.recorder.requests[id.index()].spec;
                self.tell(now, source, KvNews::Sent(id))?;
                if buffered {
                    self.close_transfer(now, &done);
                }
                self.around.recorder.enter(id, Activity::KvTransferWait, now, HostMeter::default());
                self.pass_proxy(now, &spec, after)
            }
            _ => Ok(()),
        }
    }

    /// All KV of a request is where it is to be.
    fn arrive(&mut self, now: SimTime, id: RequestId) -> Result<(), SimError> {
        let Some(controller) = &mut self.controller else { return Ok(()) };
        let stored = controller.spec().mode == HandoverMode::Store;
        let Some(journey) = controller.journeys.remove(&id) else { return Ok(()) };
        let destination = self.close_transfer(now, &journey);
        self.around.recorder.enter(id, Activity::Queue, now, HostMeter::default());
        if !stored {
            self.tell(now, journey.source, KvNews::Sent(id))?;
        }
        self.tell(now, destination, KvNews::Received(id))
    }

    /// Records the end of a hand-over. Returns where the request is now.
    fn close_transfer(&mut self, now: SimTime, journey: &Journey) -> ReplicaId {
        let transfer = &mut self.around.recorder.transfers[journey.row];
        transfer.start = Some(journey.start.unwrap_or(now));
        transfer.end = Some(now);
        transfer.bytes = journey.bytes;
        transfer.destination
    }

    /// Returns the requests on their way from or to one of `engines` whose KV would be lost with them.
    pub(super) fn journeys_of(&self, engines: &[ReplicaId]) -> Vec<RequestId> {
        let Some(controller) = &self.controller else { return Vec::new() };
        let stored = controller.handover.as_ref().is_some_and(|spec| spec.mode == HandoverMode::Store);
        let hit = |journey: &Journey| {
            let safe = stored && matches!(journey.stage, Stage::Waiting | Stage::Moving);
            let transfer = self.around.recorder.transfers.get(journey.row);
            (engines.contains(&journey.source) && !safe)
                || transfer.is_some_and(|transfer| engines.contains(&transfer.destination))
        };
        controller.journeys.iter().filter(|(_, journey)| hit(journey)).map(|(&id, _)| id).collect()
    }

    /// Tells whether a request is on its way from one replica to another.
    pub(super) fn is_on_its_way(&self, id: RequestId) -> bool {
        self.controller.as_ref().is_some_and(|controller| controller.journeys.contains_key(&id))
    }

    /// Tells whether the KV of a request waits for a replica that takes it.
    pub(super) fn is_handed_over(&self, id: RequestId) -> bool {
        let journeys = self.controller.as_ref().map(|controller| &controller.journeys);
        journeys.is_some_and(|journeys| {
            journeys.get(&id).is_some_and(|journey| journey.stage == Stage::Waiting && journey.row == NO_ROW)
        })
    }

    /// Sends a request whose destination is among the lost `engines` to another one, if its KV is safe elsewhere.
    /// Returns whether it is.
    pub(super) fn goes_elsewhere(
        &mut self,
        now: SimTime,
        id: RequestId,
        engines: &[ReplicaId],
    ) -> Result<bool, SimError> {
        let Some(controller) = &mut self.controller else { return Ok(false) };
        let mode = controller.handover.as_ref().map(|spec| spec.mode);
        let Some(journey) = controller.journeys.get(&id) else { return Ok(false) };
        let stored = mode == Some(HandoverMode::Store);
        // Where blocks are reserved before prompts are computed, a prompt that holds on to its source could wait for
        // blocks that are reserved for others who wait for the source.
        let is_safe = matches!(mode, Some(HandoverMode::Pull | HandoverMode::Store))
            && matches!(journey.stage, Stage::Waiting | Stage::Moving)
            && (stored || !engines.contains(&journey.source));
        if !is_safe {
            return Ok(false);
        }
        self.cancel_flows(now, id)?;
        let Some(controller) = &mut self.controller else { return Ok(false) };
        let journey = controller.journey(id)?;
        let (row, source, ready) = (journey.row, journey.source, journey.ready);
        *journey = Journey { ready, ..Journey::new(Stage::Waiting, source) };
        if row != NO_ROW {
            let destination = self.around.recorder.transfers[row].destination;
            self.leave_engine(now, id, destination)?;
        }
        self.around.recorder.next_attempt(id);
        self.arm_timeout(now, id)?;
        self.around.recorder.enter(id, Activity::KvTransferWait, now, HostMeter::default());
        self.on_hand_over(now, id)?;
        Ok(true)
    }

    /// Takes a request out of all engines, queues and links.
    pub(super) fn withdraw(&mut self, now: SimTime, id: RequestId) -> Result<(), SimError> {
        let waits = self.unplaced.len();
        self.unplaced.retain(|&other| other != id);
        let unplaced = self.unplaced.len() < waits;
        self.cancel_flows(now, id)?;
        let journey = self.controller.as_mut().and_then(|controller| controller.journeys.remove(&id));
        let Some(journey) = journey else {
            if unplaced {
                return Ok(());
            }
            let (_, engine) = self.around.recorder.routed(id);
            return self.leave_engine(now, id, engine);
        };
        if matches!(journey.stage, Stage::Reserving | Stage::Computing) {
            let tokens = u64::from(self.around.recorder.requests[id.index()].spec.prompt_tokens);
            if let Some(controller) = &mut self.controller {
                controller.queued_tokens -= tokens;
            }
            self.leave_engine(now, id, journey.source)?;
        } else {
            let cluster = &mut self.clusters[self.cluster_of[journey.source.index()] as usize];
            cluster.abort(now, journey.source, id, &mut self.around)?;
        }
        if journey.row != NO_ROW {
            let destination = self.around.recorder.transfers[journey.row].destination;
            self.leave_engine(now, id, destination)?;
        }
        Ok(())
    }

    /// Takes a request out of an engine, its cluster's router and its pool.
    fn leave_engine(&mut self, now: SimTime, id: RequestId, engine: ReplicaId) -> Result<(), SimError> {
        let number = self.cluster_of[engine.index()] as usize;
        self.clusters[number].release(engine, id);
        if let Some(controller) = &mut self.controller {
            controller.pools.iter_mut().for_each(|pool| pool.release(number));
        }
        self.clusters[number].abort(now, engine, id, &mut self.around)
    }

    fn cancel_flows(&mut self, now: SimTime, id: RequestId) -> Result<(), SimError> {
        self.settle_flows(now)?;
        let (Some(transport), Some(controller)) = (&mut self.transport, &mut self.controller) else {
            return Ok(());
        };
        let Some(journey) = controller.journeys.get_mut(&id) else { return Ok(()) };
        for flow in journey.flows.drain(..) {
            transport.cancel(now, flow)?;
        }
        self.settle_flows_later(now)
    }

    /// Gives the links of a replica a share of their bandwidth.
    pub(super) fn scale_links(
        &mut self,
        now: SimTime,
        cluster: u32,
        replica: u32,
        factor: f64,
    ) -> Result<(), SimError> {
        self.settle_flows(now)?;
        let engines: Vec<ReplicaId> = self.clusters[cluster as usize].engines_of(replica).collect();
        if let Some(transport) = &mut self.transport {
            transport.scale_links(now, &engines, factor)?;
        }
        self.settle_flows_later(now)
    }

    fn tell(&mut self, now: SimTime, engine: ReplicaId, news: KvNews) -> Result<(), SimError> {
        let cluster = &mut self.clusters[self.cluster_of[engine.index()] as usize];
        cluster.hear(now, engine, news, &mut self.around)
    }
}

impl Controller {
    /// Returns a piece of `num_blocks` blocks; the last of a request has what lies beside its blocks.
    fn piece(&self, num_blocks: u32, is_last: bool) -> Piece {
        let spec = self.spec();
        let beside = if is_last { spec.fixed_bytes } else { 0 };
        Piece { num_blocks, bytes: u64::from(num_blocks) * spec.bytes_per_block + beside }
    }
}
