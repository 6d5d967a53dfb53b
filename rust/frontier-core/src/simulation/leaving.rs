//! Requests that leave engines, queues and links before their end, and those whose KV is safe all the same.

use super::Simulation;
use super::journey::{Encoding, Journey, NO_ROW, Stage};
use crate::error::SimError;
use crate::ids::{ReplicaId, RequestId};
use crate::metrics::{Activity, HostMeter};
use crate::plan::HandoverMode;
use crate::time::SimTime;

impl Simulation {
    /// Returns the requests on their way from or to one of `engines` whose KV would be lost with them.
    pub(super) fn journeys_of(&self, engines: &[ReplicaId]) -> Vec<RequestId> {
        let Some(controller) = &self.controller else { return Vec::new() };
        let hit = |journey: &Journey| {
            // What is in the pool, or beside the destination's cache, has left the source behind.
            let safe = match controller.mode(journey) {
                Some(HandoverMode::Store) => matches!(journey.stage, Stage::Waiting | Stage::Moving),
                Some(HandoverMode::Buffer) => journey.stage == Stage::Waiting && journey.row != NO_ROW,
                _ => false,
            };
            let transfer = self.around.recorder.transfers.get(journey.row);
            (engines.contains(&journey.source) && !safe)
                || transfer.is_some_and(|transfer| engines.contains(&transfer.destination))
        };
        controller.journeys.iter().filter(|(_, journey)| hit(journey)).map(|(&id, _)| id).collect()
    }

    /// Tells whether a request is on its way from one replica to another.
    pub(super) fn is_on_its_way(&self, id: RequestId) -> bool {
        self.controller.as_ref().is_some_and(|controller| {
            controller.journeys.contains_key(&id) || controller.encoding.get(&id) == Some(&Encoding::Sent)
        })
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
        let Some(journey) = controller.journeys.get(&id) else { return Ok(false) };
        let mode = controller.mode(journey);
        let stored = mode == Some(HandoverMode::Store);
        // Where blocks are reserved before prompts are computed, a prompt that holds on to its source could wait for
        // blocks that are reserved for others who wait for the source.
        let forgets = mode != Some(HandoverMode::Push) && journey.stage == Stage::Computing
            || stored && journey.stage == Stage::Writing;
        if forgets && !engines.contains(&journey.source) {
            // The destination was only known beforehand.
            let transfer = &mut self.around.recorder.transfers[journey.row];
            transfer.void = true;
            let destination = transfer.destination;
            controller.journey(id)?.row = NO_ROW;
            self.leave_engine(now, id, destination)?;
            return Ok(true);
        }
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
        *journey = Journey { ready, ..Journey::new(journey.model, Stage::Waiting, source) };
        if row != NO_ROW {
            let destination = self.around.recorder.transfers[row].destination;
            self.leave_engine(now, id, destination)?;
        }
        self.around.recorder.next_attempt(id);
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
        let encoding = self.controller.as_mut().and_then(|controller| controller.encoding.remove(&id));
        let journey = self.controller.as_mut().and_then(|controller| controller.journeys.remove(&id));
        let Some(journey) = journey else {
            if unplaced || encoding == Some(Encoding::Sent) {
                return Ok(());
            }
            let (_, engine) = self.around.recorder.routed(id);
            return self.leave_engine(now, id, engine);
        };
        if matches!(journey.stage, Stage::Reserving | Stage::Computing) {
            let spec = self.around.recorder.requests[id.index()].spec;
            if let Some(controller) = &mut self.controller {
                controller.path(&spec).queued_tokens -= u64::from(spec.prompt_tokens);
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
    pub(super) fn leave_engine(
        &mut self,
        now: SimTime,
        id: RequestId,
        engine: ReplicaId,
    ) -> Result<(), SimError> {
        let number = self.cluster_of[engine.index()] as usize;
        self.clusters[number].release(engine, id);
        if let Some(controller) = &mut self.controller {
            controller.release(number);
        }
        self.clusters[number].abort(now, engine, id, &mut self.around)?;
        self.settle_drains(now, number)
    }

    pub(super) fn cancel_flows(&mut self, now: SimTime, id: RequestId) -> Result<(), SimError> {
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
}
