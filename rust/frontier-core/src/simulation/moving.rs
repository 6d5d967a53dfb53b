//! KV on the move: when pieces of it leave, through what, and when all of it is there.

use super::Simulation;
use super::journey::{Piece, Stage};
use super::transport::Transport;
use crate::engine::{ComputedChunk, KvNews};
use crate::error::SimError;
use crate::event::Event;
use crate::ids::{ReplicaId, RequestId};
use crate::metrics::{Activity, HostMeter};
use crate::plan::{Granularity, HandoverMode, TransportSpec};
use crate::scheduler::RemoteRead;
use crate::time::{SimDuration, SimTime};

impl Simulation {
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
        let piece = Piece::new(&controller.handover_of(id)?, num_blocks, true);
        let journey = controller.journey(id)?;
        journey.num_blocks = num_blocks;
        if journey.stage == Stage::Reserving {
            journey.stage = Stage::Computing;
            let (source, accepted) = (journey.source, journey.accepted);
            let spec = self.around.recorder.requests[id.index()].spec;
            self.around.recorder.enter(id, Activity::Queue, now, HostMeter::default());
            if let Some(log) = &mut self.around.recorder.decision_log {
                log.reserve(now, engine, id);
            }
            if let Some(accepted) = accepted.filter(|&accepted| accepted > now) {
                return self.around.push_for(accepted, id, Event::Submit);
            }
            self.segments.clear();
            self.workload.prompt_segments(id, &mut self.segments);
            return match self.cluster(source).network_to_servers().filter(|_| accepted.is_none()) {
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
        let spec = controller.handover_of(id)?;
        let layers = spec.num_layers;
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
        let whole = Piece::new(&spec, fresh, is_last);
        let after_layers = whole.bytes / u64::from(layers);
        let pieces = match spec.granularity {
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
        pieces.into_iter().try_for_each(|(at, piece)| self.start_later(at, id, piece))
    }

    /// Lets a piece of a request's KV leave at `at`.
    fn start_later(&mut self, at: SimTime, id: RequestId, piece: Piece) -> Result<(), SimError> {
        let Some(controller) = &mut self.controller else { return Ok(()) };
        let journey = controller.journey(id)?;
        journey.to_start.push_back(piece);
        journey.under_way += 1;
        self.around.push_for(at, id, Event::TransferStart)
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

    pub(super) fn start_piece(&mut self, now: SimTime, id: RequestId, piece: Piece) -> Result<(), SimError> {
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
        let spec = controller.handover_of(id)?;
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
        if at > now {
            self.start_later(at, id, piece)?;
            return Ok((at, None));
        }
        let Some(controller) = &mut self.controller else { return Ok((at, None)) };
        let journey = controller.journey(id)?;
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
    pub(super) fn settle_flows(&mut self, now: SimTime) -> Result<(), SimError> {
        let (Some(transport), Some(controller)) = (&mut self.transport, &self.controller) else {
            return Ok(());
        };
        let transfers = &self.around.recorder.transfers;
        let ends = |id: RequestId| {
            let journey = &controller.journeys[&id];
            (journey.source, transfers[journey.row].destination)
        };
        for (id, there) in transport.advance(now, ends)? {
            let latency = SimDuration(controller.handover_of(id)?.latency_ns);
            self.around.push_for(there.after(latency)?, id, Event::TransferEnd)?;
        }
        Ok(())
    }

    /// Rates depend on all that starts and ends at one instant.
    pub(super) fn settle_flows_later(&mut self, now: SimTime) -> Result<(), SimError> {
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
        let handover = controller.handover_of(id)?;
        let after = SimDuration(handover.proxy_latency_ns);
        let buffered = handover.mode == HandoverMode::Buffer;
        let journey = controller.journey(id)?;
        journey.under_way -= 1;
        match journey.stage {
            Stage::Moving if journey.under_way == 0 => self.arrive(now, id),
            Stage::Writing => {
                journey.stage = Stage::Waiting;
                let source = journey.source;
                if buffered {
                    self.around.recorder.transfers[journey.row].close(now, journey.start, journey.bytes);
                }
                let spec = self.around.recorder.requests[id.index()].spec;
                self.tell(now, source, KvNews::Sent(id))?;
                self.around.recorder.enter(id, Activity::KvTransferWait, now, HostMeter::default());
                self.pass_proxy(now, &spec, after)
            }
            _ => Ok(()),
        }
    }

    /// All KV of a request is where it is to be.
    pub(super) fn arrive(&mut self, now: SimTime, id: RequestId) -> Result<(), SimError> {
        let Some(controller) = &mut self.controller else { return Ok(()) };
        let stored = controller.handover_of(id)?.mode == HandoverMode::Store;
        let Some(journey) = controller.journeys.remove(&id) else { return Ok(()) };
        let destination =
            self.around.recorder.transfers[journey.row].close(now, journey.start, journey.bytes);
        self.around.recorder.enter(id, Activity::Queue, now, HostMeter::default());
        if !stored {
            self.tell(now, journey.source, KvNews::Sent(id))?;
        }
        self.tell(now, destination, KvNews::Received(id))
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

    pub(super) fn tell(&mut self, now: SimTime, engine: ReplicaId, news: KvNews) -> Result<(), SimError> {
        let cluster = &mut self.clusters[self.cluster_of[engine.index()] as usize];
        cluster.hear(now, engine, news, &mut self.around)
    }
}
