//! Which replicas are in service, and what happens to those that leave it.

use std::ops::Range;

use super::{Cluster, Surroundings};
use crate::engine::EngineCore;
use crate::error::SimError;
use crate::ids::{ReplicaId, RequestId};
use crate::scheduler::BatchScheduler;
use crate::time::SimTime;

/// Where a replica stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaState {
    /// It takes requests.
    InService,
    /// It serves what it has, and takes nothing new.
    Draining(AfterDrain),
    /// It is about to be in service.
    Starting,
    /// Not in service, but it could be.
    Reserve,
    /// It is gone.
    Down,
}

/// What becomes of a replica that has drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterDrain {
    /// It goes into reserve.
    Reserve,
    /// It is in service again after so many ns.
    Restart(u64),
    /// A replica of another cluster is in service after so many ns.
    Switch(u32, u64),
}

impl Cluster {
    /// Returns how many replicas there are, in service or not.
    pub fn num_replicas(&self) -> u32 {
        self.states.len() as u32
    }

    /// Returns where a replica stands.
    pub fn state(&self, replica: u32) -> ReplicaState {
        self.states[replica as usize]
    }

    /// Returns the first replica in a state.
    pub fn first_in(&self, state: ReplicaState) -> Option<u32> {
        self.states.iter().position(|&other| other == state).map(|at| at as u32)
    }

    /// Returns the last replica in a state.
    pub fn last_in(&self, state: ReplicaState) -> Option<u32> {
        self.states.iter().rposition(|&other| other == state).map(|at| at as u32)
    }

    /// Returns how many replicas are in a state.
    pub fn count_in(&self, state: ReplicaState) -> u32 {
        self.states.iter().filter(|&&other| other == state).count() as u32
    }

    /// Moves a replica to a state, and opens or closes it to the router.
    pub fn set_state(&mut self, replica: u32, state: ReplicaState) {
        let drains = |state| u32::from(matches!(state, ReplicaState::Draining(_)));
        self.num_draining -= drains(self.states[replica as usize]);
        self.num_draining += drains(state);
        self.states[replica as usize] = state;
        for target in self.targets_of(replica) {
            self.router.set_open(target as u32, state == ReplicaState::InService);
        }
    }

    /// Returns the engine by which a replica is named in events.
    pub fn engine_of(&self, replica: u32) -> ReplicaId {
        ReplicaId(self.first + replica * self.data_parallel_size)
    }

    /// Returns the replica of an engine.
    pub fn replica_of(&self, engine: ReplicaId) -> u32 {
        self.local(engine).0 / self.data_parallel_size
    }

    /// Tells whether the replica of an engine is up, taking requests or not.
    pub fn is_up(&self, engine: ReplicaId) -> bool {
        matches!(self.state(self.replica_of(engine)), ReplicaState::InService | ReplicaState::Draining(_))
    }

    /// Tells whether some replica takes requests.
    pub fn is_open(&self) -> bool {
        self.router.is_open()
    }

    /// Returns the engines of a replica.
    pub fn engines_of(&self, replica: u32) -> impl Iterator<Item = ReplicaId> {
        self.local_engines_of(replica).map(|at| self.global(ReplicaId::from_index(at)))
    }

    /// Returns the replicas that are done with what they had, and leave service.
    pub fn drained(&self) -> Vec<(u32, AfterDrain)> {
        let mut drained = Vec::new();
        for (replica, state) in self.states.iter().enumerate() {
            if let ReplicaState::Draining(after) = *state
                && self.targets_of(replica as u32).all(|target| self.router.outstanding(target) == 0)
                && self.engines[self.local_engines_of(replica as u32)].iter().all(EngineCore::is_empty)
            {
                drained.push((replica as u32, after));
            }
        }
        drained
    }

    /// Tells whether some replica drains.
    pub fn drains(&self) -> bool {
        self.num_draining > 0
    }

    /// Lets a replica lose everything. Returns the requests that lived on it, with their engines.
    pub fn crash(
        &mut self,
        now: SimTime,
        replica: u32,
        around: &mut Surroundings,
    ) -> Vec<(RequestId, ReplicaId)> {
        let mut lost = Vec::new();
        for at in self.local_engines_of(replica) {
            let number = self.global(ReplicaId::from_index(at));
            let ids = self.engines[at].crash(now, &self.scheduler, &mut around.recorder);
            lost.extend(ids.into_iter().map(|id| (id, number)));
            let unit = ReplicaId::from_index(at);
            let unit = self.ranks.as_ref().map_or(unit, |ranks| ranks.unit_of(unit));
            if let Some((group, engines)) = self.ranks.as_mut().and_then(|ranks| ranks.group(unit))
                && engines.start == at
            {
                group.crash();
            }
        }
        lost
    }

    /// Takes a request out of an engine, if it is there.
    ///
    /// # Errors
    /// As [`Surroundings::push`].
    pub fn abort(
        &mut self,
        now: SimTime,
        engine: ReplicaId,
        id: RequestId,
        around: &mut Surroundings,
    ) -> Result<(), SimError> {
        let at = self.local(engine);
        if self.engines[at.index()].abort(now, id) {
            // Others may have been waiting for its blocks.
            return self.awaken(now, at, around);
        }
        Ok(())
    }

    /// Lets the steps of a replica take `factor` times as long.
    pub fn slow_down(&mut self, replica: u32, factor: f64) {
        let engines = self.local_engines_of(replica);
        self.engines[engines].iter_mut().for_each(|engine| engine.slow_down(factor));
    }

    /// Returns requests under way and waiting, and the mean share of blocks in use, of the replicas in service.
    pub fn load(&self) -> (u64, u64, f64) {
        let (mut outstanding, mut waiting, mut usage, mut engines) = (0, 0, 0.0, 0);
        for replica in 0..self.num_replicas() {
            if self.state(replica) != ReplicaState::InService {
                continue;
            }
            outstanding +=
                self.targets_of(replica).map(|at| u64::from(self.router.outstanding(at))).sum::<u64>();
            for engine in &self.engines[self.local_engines_of(replica)] {
                waiting += u64::from(engine.scheduler().gauges().num_waiting);
                usage += engine.kv_usage();
                engines += 1;
            }
        }
        (outstanding, waiting, usage / f64::from(engines.max(1)))
    }

    fn local_engines_of(&self, replica: u32) -> Range<usize> {
        let size = self.data_parallel_size as usize;
        replica as usize * size..(replica as usize + 1) * size
    }

    /// Returns the router's targets that belong to a replica.
    fn targets_of(&self, replica: u32) -> Range<usize> {
        let per_replica = self.router.num_targets() / self.states.len();
        replica as usize * per_replica..(replica as usize + 1) * per_replica
    }
}
