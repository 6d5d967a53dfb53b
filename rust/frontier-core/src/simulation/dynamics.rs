//! What changes while a run goes on: replicas that fail, restart, slow down, change their role, come and go with load;
//! and requests that leave before their end. Whatever is hit is run again or fails, as the plan says; nothing is lost.

use super::Simulation;
use crate::cluster::{AfterDrain, ReplicaState};
use crate::error::SimError;
use crate::event::Event;
use crate::ids::{ReplicaId, RequestId};
use crate::metrics::{RejectReason, RequestStatus};
use crate::plan::{AdmissionClass, AutoscaleSpec, Change, ChangeSpec, DynamicsSpec, LostPolicy, ScaleMetric};
use crate::time::{SimDuration, SimTime};
use crate::workload::RequestSpec;

impl Simulation {
    /// Schedules what the plan says will change.
    pub(super) fn schedule_changes(&mut self) -> Result<(), SimError> {
        let Some(dynamics) = &self.dynamics else { return Ok(()) };
        for (number, change) in dynamics.events.iter().enumerate() {
            self.around.push(SimTime(change.at_ns), Event::Change(number as u32))?;
        }
        for (number, scaler) in dynamics.autoscale.iter().enumerate() {
            self.ticks += 1;
            self.around.push(SimTime(scaler.interval_ns), Event::Autoscale(number as u32))?;
        }
        Ok(())
    }

    fn change(&self, number: u32) -> Option<ChangeSpec> {
        self.dynamics.as_ref()?.events.get(number as usize).copied()
    }

    pub(super) fn on_change(&mut self, now: SimTime, number: u32) -> Result<(), SimError> {
        let Some(ChangeSpec { cluster: number_of_cluster, replica, change, .. }) = self.change(number) else {
            return Ok(());
        };
        let cluster = &mut self.clusters[number_of_cluster as usize];
        let up = cluster.is_up(cluster.engine_of(replica));
        let over = |duration: u64| now.after(SimDuration(duration));
        match change {
            Change::Fail { down_ns } => {
                if up {
                    self.fail_replica(now, number_of_cluster, replica)?;
                    if let Some(down) = down_ns {
                        let engine = self.clusters[number_of_cluster as usize].engine_of(replica);
                        self.around.push(over(down)?, Event::InService(engine))?;
                    }
                }
                Ok(())
            }
            Change::Restart { down_ns } => {
                self.drain(now, number_of_cluster, replica, AfterDrain::Restart(down_ns))
            }
            Change::SwitchRole { to, delay_ns } => {
                self.drain(now, number_of_cluster, replica, AfterDrain::Switch(to, delay_ns))
            }
            Change::Slow { for_ns, .. } | Change::DegradeLinks { for_ns, .. } => {
                self.changes_on.push(number);
                self.apply_factors(now, number)?;
                for_ns.map_or(Ok(()), |ns| self.around.push(over(ns)?, Event::ChangeOver(number)))
            }
        }
    }

    pub(super) fn on_change_over(&mut self, now: SimTime, number: u32) -> Result<(), SimError> {
        self.changes_on.retain(|&other| other != number);
        self.apply_factors(now, number)
    }

    /// Brings the speed of a change's replica, or of its links, in line with all changes that are on.
    fn apply_factors(&mut self, now: SimTime, number: u32) -> Result<(), SimError> {
        let Some(ChangeSpec { cluster, replica, change, .. }) = self.change(number) else { return Ok(()) };
        let (mut slow, mut links) = (1.0, 1.0);
        for other in self.changes_on.iter().filter_map(|&on| self.change(on)) {
            match other.change {
                _ if (other.cluster, other.replica) != (cluster, replica) => {}
                Change::Slow { factor, .. } => slow *= factor,
                Change::DegradeLinks { factor, .. } => links *= factor,
                Change::Fail { .. } | Change::Restart { .. } | Change::SwitchRole { .. } => {}
            }
        }
        if matches!(change, Change::DegradeLinks { .. }) {
            return self.scale_links(now, cluster, replica, links);
        }
        self.clusters[cluster as usize].slow_down(replica, slow);
        Ok(())
    }

    /// A replica comes into service: requests that found none are sent on their way.
    pub(super) fn on_in_service(&mut self, now: SimTime, engine: ReplicaId) -> Result<(), SimError> {
        let number = self.cluster_of[engine.index()] as usize;
        let replica = self.clusters[number].replica_of(engine);
        self.clusters[number].set_state(replica, ReplicaState::InService);
        for id in std::mem::take(&mut self.unplaced) {
            if self.around.recorder.requests[id.index()].status != RequestStatus::Unfinished {
                continue;
            }
            if self.waits_for(id, number) {
                self.place(now, id)?;
            } else {
                self.unplaced.push(id);
            }
        }
        Ok(())
    }

    /// Tells whether a request that found no replica could go to one of `cluster`: of a leg that it has come to, or of
    /// the one after, which may have to be known first.
    fn waits_for(&self, id: RequestId, cluster: usize) -> bool {
        let Some(controller) = &self.controller else { return true };
        let spec = &self.around.recorder.requests[id.index()].spec;
        let path = &controller.paths[usize::from(spec.model)];
        let legs = if self.needs_encoding(spec) {
            0..=0
        } else if self.is_handed_over(id) {
            path.last()..=path.last()
        } else {
            path.first()..=path.last()
        };
        path.pools[legs].iter().any(|pool| pool.clusters().contains(&cluster))
    }

    /// Takes a replica out of service once it is done with what it has.
    fn drain(&mut self, now: SimTime, cluster: u32, replica: u32, after: AfterDrain) -> Result<(), SimError> {
        let state = self.clusters[cluster as usize].state(replica);
        if state != ReplicaState::InService {
            return Ok(());
        }
        self.clusters[cluster as usize].set_state(replica, ReplicaState::Draining(after));
        self.settle_drains(now, cluster as usize)
    }

    /// Lets go of replicas that have drained.
    pub(super) fn settle_drains(&mut self, now: SimTime, number: usize) -> Result<(), SimError> {
        if !self.clusters[number].drains() {
            return Ok(());
        }
        for (replica, after) in self.clusters[number].drained() {
            let (at, reserve) = match after {
                AfterDrain::Reserve => (None, ReplicaState::Reserve),
                AfterDrain::Restart(ns) => {
                    (Some((self.clusters[number].engine_of(replica), ns)), ReplicaState::Starting)
                }
                AfterDrain::Switch(to, ns) => {
                    let other = &mut self.clusters[to as usize];
                    if let Some(next) = other.first_in(ReplicaState::Reserve) {
                        other.set_state(next, ReplicaState::Starting);
                        // Its GPUs are the other cluster's now.
                        (Some((other.engine_of(next), ns)), ReplicaState::Down)
                    } else {
                        // No room there any more: it stays what it was.
                        (None, ReplicaState::InService)
                    }
                }
            };
            self.clusters[number].set_state(replica, reserve);
            if let Some((engine, ns)) = at {
                self.around.push(now.after(SimDuration(ns))?, Event::InService(engine))?;
            }
        }
        Ok(())
    }

    /// A replica is gone, with all that it had.
    fn fail_replica(&mut self, now: SimTime, number: u32, replica: u32) -> Result<(), SimError> {
        let cluster = &mut self.clusters[number as usize];
        cluster.set_state(replica, ReplicaState::Down);
        let engines: Vec<ReplicaId> = cluster.engines_of(replica).collect();
        let lost = cluster.crash(now, replica, &mut self.around);
        // What a prefill engine has not let go of yet may have gone on long ago.
        let lives_here = |&(id, engine): &(RequestId, ReplicaId)| {
            !self.is_on_its_way(id) && self.around.recorder.routed(id).1 == engine
        };
        let mut hit: Vec<RequestId> =
            lost.iter().filter(|lost| lives_here(lost)).map(|&(id, _)| id).collect();
        hit.extend(self.journeys_of(&engines));
        hit.sort_unstable();
        hit.dedup();
        for id in hit {
            self.lose(now, id, &engines)?;
        }
        Ok(())
    }

    /// Runs a request again, or lets it fail, after what it had on `engines` is lost.
    fn lose(&mut self, now: SimTime, id: RequestId, engines: &[ReplicaId]) -> Result<(), SimError> {
        if self.goes_elsewhere(now, id, engines)? {
            return Ok(());
        }
        self.withdraw(now, id)?;
        match self.dynamics.as_ref().map(|dynamics| dynamics.lost_requests) {
            Some(LostPolicy::Rerun) => self.start_over(now, id),
            _ => self.give_up(now, id, RejectReason::ReplicaLost),
        }
    }

    /// A request reached an engine that is down: it starts over.
    pub(super) fn bounce(&mut self, now: SimTime, id: RequestId) -> Result<(), SimError> {
        let (_, engine) = self.around.recorder.routed(id);
        self.lose(now, id, &[engine])
    }

    /// Starts a request over.
    fn start_over(&mut self, now: SimTime, id: RequestId) -> Result<(), SimError> {
        self.around.recorder.start_over(&[id], now);
        self.place(now, id)
    }

    /// Ends a request that cannot be served.
    pub(super) fn give_up(
        &mut self,
        now: SimTime,
        id: RequestId,
        reason: RejectReason,
    ) -> Result<(), SimError> {
        self.around.recorder.fail(id, reason, now);
        self.last_fact = now;
        self.leave(now, id)
    }

    /// Sends a request on its way, or lets it wait for a replica.
    pub(super) fn place(&mut self, now: SimTime, id: RequestId) -> Result<(), SimError> {
        if self.is_handed_over(id) {
            return self.on_hand_over(now, id);
        }
        let spec = self.around.recorder.requests[id.index()].spec;
        self.admit(now, &spec)
    }

    /// Requests that no replica can ever take fail when nothing more will happen.
    pub(super) fn fail_unplaced(&mut self) -> Result<bool, SimError> {
        let unplaced = self.unplaced.clone();
        if unplaced.is_empty() {
            return Ok(false);
        }
        let now = self.around.queue.now();
        self.last_fact = now;
        for id in unplaced {
            self.withdraw(now, id)?;
            self.give_up(now, id, RejectReason::NoReplica)?;
        }
        Ok(true)
    }

    /// Returns the class of a request at the front door.
    fn class(&self, spec: &RequestSpec) -> Option<(usize, AdmissionClass)> {
        let admission = self.admission.as_ref()?;
        let class = admission.class_of(spec.priority);
        Some((class, admission.classes[class]))
    }

    /// Lets a request in, unless too many of its class are under way. Returns whether it is in.
    pub(super) fn let_in(&mut self, spec: &RequestSpec) -> bool {
        let Some((class, limits)) = self.class(spec) else { return true };
        if limits.max_outstanding.is_some_and(|most| self.outstanding_of_class[class] >= most) {
            return false;
        }
        self.outstanding_of_class[class] += 1;
        true
    }

    /// A request of its class is no longer under way.
    pub(super) fn let_out(&mut self, spec: &RequestSpec) {
        if let Some((class, _)) = self.class(spec) {
            self.outstanding_of_class[class] -= 1;
        }
    }

    /// Returns how often the client of a request has tried.
    pub(super) fn try_of(&self, id: RequestId) -> u16 {
        self.tries.get(&id).copied().unwrap_or(1)
    }

    /// Sets the time when the client of a request gives up. It does not know of attempts within.
    pub(super) fn arm_timeout(&mut self, now: SimTime, id: RequestId) -> Result<(), SimError> {
        let spec = self.around.recorder.requests[id.index()].spec;
        match self.class(&spec).and_then(|(_, class)| class.timeout_ns) {
            Some(ns) => {
                let event = Event::Timeout(id, self.try_of(id));
                self.around.push(now.after(SimDuration(ns))?, event)
            }
            None => Ok(()),
        }
    }

    /// Tries again later, if the client does. Returns whether it does.
    pub(super) fn retry(&mut self, now: SimTime, id: RequestId) -> Result<bool, SimError> {
        let (spec, tries) = (self.around.recorder.requests[id.index()].spec, self.try_of(id));
        let Some((_, class)) = self.class(&spec).filter(|(_, class)| tries <= class.max_retries) else {
            return Ok(false);
        };
        self.tries.insert(id, tries + 1);
        self.around.recorder.start_over(&[id], now);
        self.retrying += 1;
        self.around.push(now.after(SimDuration(class.retry_delay_ns))?, Event::Retry(id))?;
        Ok(true)
    }

    pub(super) fn on_retry(&mut self, now: SimTime, id: RequestId) -> Result<(), SimError> {
        self.retrying -= 1;
        self.knock(now, id)
    }

    pub(super) fn on_timeout(&mut self, now: SimTime, id: RequestId) -> Result<(), SimError> {
        self.withdraw(now, id)?;
        let spec = self.around.recorder.requests[id.index()].spec;
        if self.retry(now, id)? {
            self.outstanding -= 1;
            self.let_out(&spec);
            return Ok(());
        }
        self.give_up(now, id, RejectReason::TimedOut)
    }

    pub(super) fn on_autoscale(&mut self, now: SimTime, number: u32) -> Result<(), SimError> {
        let scaler = self
            .dynamics
            .as_ref()
            .and_then(|dynamics: &DynamicsSpec| dynamics.autoscale.get(number as usize));
        let Some(&scaler) = scaler else { return Ok(()) };
        self.ticks -= 1;
        if self.outstanding == 0 && self.expected == 0 && self.retrying == 0 {
            return Ok(());
        }
        let acted = now >= self.scaled_until[number as usize] && self.scale(now, number as usize, scaler)?;
        // Where nothing else is to come, looking again would change nothing, for ever.
        let others = self.around.queue.len() as u64 - self.ticks - u64::from(self.sample_pending);
        if !acted && others == 0 && now >= self.scaled_until[number as usize] {
            return Ok(());
        }
        self.ticks += 1;
        self.around.push(now.after(SimDuration(scaler.interval_ns))?, Event::Autoscale(number))
    }

    /// Adds a replica or takes one away, as the load asks for. Returns whether it did.
    fn scale(&mut self, now: SimTime, number: usize, scaler: AutoscaleSpec) -> Result<bool, SimError> {
        let AutoscaleSpec { cluster: at, min_replicas, max_replicas, metric, .. } = scaler;
        let unplaced = self.unplaced.iter().filter(|&&id| self.waits_for(id, at as usize)).count() as u64;
        let cluster = &mut self.clusters[at as usize];
        let serving = cluster.count_in(ReplicaState::InService);
        let coming = serving + cluster.count_in(ReplicaState::Starting);
        let (outstanding, waiting, kv_use) = cluster.load();
        // Requests that found no replica wait for one.
        let per_replica = |total: u64| (total + unplaced) as f64 / f64::from(serving.max(1));
        let load = match metric {
            ScaleMetric::Outstanding => per_replica(outstanding),
            ScaleMetric::Waiting => per_replica(waiting),
            ScaleMetric::KvUse => kv_use,
        };
        let until = now.after(SimDuration(scaler.cooldown_ns))?;
        if (load > scaler.up_above || coming < min_replicas)
            && coming < max_replicas
            && let Some(replica) = cluster.first_in(ReplicaState::Reserve)
        {
            cluster.set_state(replica, ReplicaState::Starting);
            let engine = cluster.engine_of(replica);
            self.scaled_until[number] = until;
            self.around.push(now.after(SimDuration(scaler.provision_ns))?, Event::InService(engine))?;
            return Ok(true);
        }
        if load < scaler.down_below
            && coming > min_replicas
            && serving > 1
            && let Some(replica) = cluster.last_in(ReplicaState::InService)
        {
            self.scaled_until[number] = until;
            self.drain(now, at, replica, AfterDrain::Reserve)?;
            return Ok(true);
        }
        Ok(false)
    }
}
