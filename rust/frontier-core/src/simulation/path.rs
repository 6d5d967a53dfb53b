//! The global controller: takes requests from leg to leg of their path, and their KV from replica to replica.
//!
//! A request that is handed over is in one of the stages of [`Stage`] (`journey`); everything else about it is known by the engines
//! and by its records. The order of things is that of the mode ([`HandoverMode`]): who has to have blocks before whom,
//! and who holds them until when. So a full decode side holds transfers up, blocks on the prefill side stay taken, and
//! prefills stall: nothing has to be told to wait.

use super::Simulation;
use super::journey::{Journey, NO_ROW, Piece, Stage};
use crate::error::SimError;
use crate::event::Event;
use crate::ids::{ReplicaId, RequestId};
use crate::metrics::{Activity, HostMeter, RejectReason, TransferRecord};
use crate::plan::{Granularity, HandoverMode, SchedulerSpec};
use crate::scheduler::Handover;
use crate::time::{SimDuration, SimTime};
use crate::workload::RequestSpec;

impl Simulation {
    /// Tells why a request can never be served, if so.
    pub(super) fn refusal(&self, spec: &RequestSpec) -> RejectReason {
        let Some(controller) = &self.controller else { return self.clusters[0].refusal(spec) };
        let path = &controller.paths[usize::from(spec.model)];
        let begin = if spec.encoder_tokens > 0 { 0 } else { path.first() };
        for (leg, pool) in path.pools.iter().enumerate().skip(begin) {
            let work = path.work_of(spec, leg);
            let reasons = pool.clusters().iter().map(|&cluster| self.clusters[cluster].refusal(&work));
            // One cluster that can serve it is enough.
            let refused = reasons.reduce(|one, other| if one == RejectReason::None { one } else { other });
            if let Some(reason) = refused.filter(|&reason| reason != RejectReason::None) {
                return reason;
            }
        }
        RejectReason::None
    }

    /// Sends a request on its way, or lets it wait for a replica that takes requests.
    pub(super) fn admit(&mut self, now: SimTime, spec: &RequestSpec) -> Result<(), SimError> {
        if self.needs_encoding(spec) {
            return self.encode(now, spec);
        }
        self.segments.clear();
        self.workload.prompt_segments(spec.id, &mut self.segments);
        let Some(controller) = &mut self.controller else {
            let engine = self.clusters[0].choose(now, spec, &self.segments);
            return self.send_or_wait(now, spec, engine);
        };
        let path = controller.path(spec);
        let first = path.first();
        let Some(mode) = path.handover.map(|handover| handover.mode) else {
            let engine = self.choose_on(now, first, spec);
            return self.send_or_wait(now, spec, engine);
        };
        let aim = match self.shortcut(now, spec) {
            Some((engine, true)) => return self.send(now, spec, engine),
            aim => aim.map(|(engine, _)| engine),
        };
        let Some(source) = self.choose_on(now, first, spec) else {
            self.unplaced.push(spec.id);
            return aim.map_or(Ok(()), |engine| self.leave_engine(now, spec.id, engine));
        };
        let Some(controller) = &mut self.controller else { unreachable!("it was there some lines before") };
        controller.path(spec).queued_tokens += u64::from(spec.prompt_tokens);
        let push = mode == HandoverMode::Push;
        let stage = if push { Stage::Reserving } else { Stage::Computing };
        controller.journeys.insert(spec.id, Journey::new(spec.model, stage, source));
        if let Some(destination) = aim {
            self.note_destination(spec.id, destination)?;
        }
        if !push {
            return self.send(now, spec, source);
        }
        if self.controller.as_ref().is_some_and(|controller| controller.carries(spec.id)) {
            // Both servers take the request in at the same time.
            let ready = self.cluster(source).accept(now, spec, source)?;
            if let Some(controller) = &mut self.controller {
                controller.journey(spec.id)?.accepted = Some(ready);
            }
        }
        self.around.recorder.route(spec.id, source, now);
        self.around.recorder.enter(spec.id, Activity::KvTransferWait, now, HostMeter::default());
        self.send_on(now, spec)
    }

    /// Chooses a cluster for a leg, and an engine of it.
    pub(super) fn choose_on(&mut self, now: SimTime, leg: usize, spec: &RequestSpec) -> Option<ReplicaId> {
        let clusters = &mut self.clusters;
        let path = self.controller.as_mut()?.path(spec);
        let work = path.work_of(spec, leg);
        let serves = |cluster: usize| {
            clusters[cluster].is_open() && clusters[cluster].refusal(&work) == RejectReason::None
        };
        let cluster = path.pools[leg].choose(serves)?;
        clusters[cluster].choose(now, spec, &self.segments)
    }

    /// Chooses the engine of the last leg beforehand, where its cache has a say in which legs a request takes. Returns
    /// whether that engine serves it whole.
    fn shortcut(&mut self, now: SimTime, spec: &RequestSpec) -> Option<(ReplicaId, bool)> {
        let path = self.controller.as_mut()?.path(spec);
        let (direct, last) = (path.direct?, path.last());
        let deflects = direct.deflect_above_tokens.is_some_and(|most| path.queued_tokens > most);
        if !deflects && direct.max_uncached_tokens.is_none() {
            return None;
        }
        let engine = self.choose_on(now, last, spec)?;
        let cached = self.clusters[self.cluster_of[engine.index()] as usize].cached_prefix(
            engine,
            spec,
            &self.segments,
        );
        let uncached = spec.prompt_tokens - cached;
        Some((engine, deflects || direct.max_uncached_tokens.is_some_and(|most| uncached <= most)))
    }

    /// Sends a request to `engine`, or lets it wait until there is one.
    pub(super) fn send_or_wait(
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
    pub(super) fn send(
        &mut self,
        now: SimTime,
        spec: &RequestSpec,
        engine: ReplicaId,
    ) -> Result<(), SimError> {
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
        let work = match &mut self.controller {
            Some(controller) => controller.work_of(spec, part),
            None => *spec,
        };
        let cluster = &mut self.clusters[self.cluster_of[engine.index()] as usize];
        cluster.submit(now, &work, engine, part, &self.segments, &mut self.around)
    }

    /// Chooses the replica that a request goes on to; none while none takes requests.
    fn choose_destination(
        &mut self,
        now: SimTime,
        spec: &RequestSpec,
    ) -> Result<Option<ReplicaId>, SimError> {
        self.segments.clear();
        self.workload.prompt_segments(spec.id, &mut self.segments);
        let Some(controller) = &mut self.controller else { return Ok(None) };
        let last = controller.path(spec).last();
        let row = controller.journey(spec.id)?.row;
        if row != NO_ROW {
            return Ok(Some(self.around.recorder.transfers[row].destination));
        }
        let Some(destination) = self.choose_on(now, last, spec) else { return Ok(None) };
        self.note_destination(spec.id, destination)?;
        Ok(Some(destination))
    }

    /// Opens the row of a hand-over whose destination is known.
    fn note_destination(&mut self, id: RequestId, destination: ReplicaId) -> Result<(), SimError> {
        let Some(controller) = &mut self.controller else { return Ok(()) };
        let row = self.around.recorder.transfers.len();
        let journey = controller.journey(id)?;
        journey.row = row;
        let (source, ready) = (journey.source, journey.ready);
        self.around.recorder.transfers.push(TransferRecord {
            request: id,
            source,
            destination,
            ready,
            start: None,
            end: None,
            bytes: 0,
            void: false,
        });
        Ok(())
    }

    /// Chooses the replica that a request goes on to, and sends it there.
    pub(super) fn send_on(&mut self, now: SimTime, spec: &RequestSpec) -> Result<(), SimError> {
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

    /// Goes on with a request that its proxy, the API servers of its destination, or the link from its encoder had.
    pub(super) fn on_hand_over(&mut self, now: SimTime, id: RequestId) -> Result<(), SimError> {
        let spec = self.around.recorder.requests[id.index()].spec;
        if self.take_embeddings(now, id) {
            return self.admit(now, &spec);
        }
        self.segments.clear();
        self.workload.prompt_segments(id, &mut self.segments);
        let Some(controller) = &mut self.controller else { return Ok(()) };
        let (row, stage) = (controller.journey(id)?.row, controller.journey(id)?.stage);
        if row == NO_ROW {
            let buffered = controller.handover_of(id)?.mode == HandoverMode::Buffer;
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
        controller.release(number);
        let spec = self.around.recorder.requests[id.index()].spec;
        if controller.is_encoded(id) {
            self.send_embeddings(now, &spec, engine)?;
            return Ok(true);
        }
        let Some(journey) = controller.journeys.get_mut(&id) else { return Ok(false) };
        journey.ready = Some(now);
        if let Some(transfer) = self.around.recorder.transfers.get_mut(journey.row) {
            transfer.ready = Some(now);
        }
        controller.path(&spec).queued_tokens -= u64::from(spec.prompt_tokens);
        let handover = controller.handover_of(id)?;
        match handover.mode {
            HandoverMode::Pull => {
                let after = SimDuration(handover.proxy_latency_ns);
                controller.journey(id)?.stage = Stage::Waiting;
                self.pass_proxy(now, &spec, after)?;
            }
            HandoverMode::Store | HandoverMode::Buffer => self.write(now, &spec)?,
            HandoverMode::Push => {
                let journey = controller.journey(id)?;
                journey.stage = Stage::Moving;
                let (num_blocks, all_there) = (journey.num_blocks, journey.under_way == 0);
                let started = journey.start.is_some();
                let destination = self.around.recorder.transfers[journey.row].destination;
                self.around.recorder.route(id, destination, now);
                if handover.granularity == Granularity::Request {
                    self.start_piece(now, id, Piece::new(&handover, num_blocks, true))?;
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
        let handover = controller.handover_of(spec.id)?;
        let buffered = handover.mode == HandoverMode::Buffer;
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
        self.start_piece(now, spec.id, Piece::new(&handover, blocks, true))
    }

    pub(super) fn pass_proxy(
        &mut self,
        now: SimTime,
        spec: &RequestSpec,
        after: SimDuration,
    ) -> Result<(), SimError> {
        if after.0 > 0 {
            return self.around.push_for(now.after(after)?, spec.id, Event::HandOver);
        }
        self.on_hand_over(now, spec.id)
    }

    pub(super) fn block_size_of(&self, engine: ReplicaId) -> Option<u32> {
        match self.clusters[self.cluster_of[engine.index()] as usize].scheduler() {
            SchedulerSpec::VllmV1(config) => Some(config.block_size),
            SchedulerSpec::Sglang(_) => Some(1),
            SchedulerSpec::Baseline(_) => None,
        }
    }
}
