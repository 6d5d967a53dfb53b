//! The data-parallel ranks of all replicas: which engine a request of a replica goes to, and which engines step
//! together.

use std::ops::Range;

use rustc_hash::FxHashMap;

use super::rank_balancer::{RankBalancer, RankReport};
use crate::engine::EngineCore;
use crate::engine_group::LockStepGroup;
use crate::fidelity::BatchShape;
use crate::ids::{ReplicaId, RequestId};
use crate::plan::DataParallelSpec;
use crate::scheduler::BatchScheduler;
use crate::time::SimTime;

/// Data-parallel ranks of a cluster. Engine `replica * size + rank` is rank `rank` of a replica.
#[derive(Debug)]
pub struct DataParallelRanks {
    size: usize,
    ranks_per_balancer: usize,
    balancers: Vec<RankBalancer>,
    /// One per replica whose ranks keep step; none where they share nothing.
    groups: Vec<LockStepGroup>,
    /// API servers of live requests.
    api_servers: FxHashMap<RequestId, u32>,
}

impl DataParallelRanks {
    /// Returns the ranks of `replicas` replicas whose engines keep `depth` steps in flight; `batch` is empty.
    pub fn new(spec: &DataParallelSpec, replicas: usize, depth: usize, batch: &BatchShape) -> Self {
        let (size, ranks_per_balancer) = (spec.size as usize, spec.ranks_per_balancer as usize);
        let balancer = || RankBalancer::new(spec.balancer.clone(), ranks_per_balancer);
        let group = |lock_step| LockStepGroup::new(lock_step, size, depth, batch);
        Self {
            size,
            ranks_per_balancer,
            balancers: (0..replicas * size / ranks_per_balancer).map(|_| balancer()).collect(),
            groups: spec.lock_step.map_or(Vec::new(), |step| (0..replicas).map(|_| group(step)).collect()),
            api_servers: FxHashMap::default(),
        }
    }

    /// Returns the ranks of a replica.
    pub fn size(&self) -> u32 {
        self.size as u32
    }

    /// Chooses the engine behind `target`, a balancer that the router of the cluster chose.
    pub fn choose(&mut self, now: SimTime, target: ReplicaId, request: RequestId) -> ReplicaId {
        let (rank, server) = self.balancers[target.index()].choose(now);
        self.api_servers.insert(request, server);
        ReplicaId::from_index(target.index() * self.ranks_per_balancer + rank)
    }

    /// Notes that a request of `engine` ended. Returns the balancer that had sent it there.
    pub fn release(&mut self, engine: ReplicaId, request: RequestId) -> ReplicaId {
        let (target, rank) =
            (engine.index() / self.ranks_per_balancer, engine.index() % self.ranks_per_balancer);
        if let Some(server) = self.api_servers.remove(&request) {
            self.balancers[target].release(rank, server);
        }
        ReplicaId::from_index(target)
    }

    /// Lets engine number `engine` report its queues.
    pub fn report(&mut self, now: SimTime, engine: usize, state: &EngineCore) {
        let gauges = state.scheduler().gauges();
        let report = RankReport {
            num_waiting: gauges.num_waiting,
            num_running: gauges.num_running,
            kv_usage: state.kv_usage(),
        };
        self.balancers[engine / self.ranks_per_balancer].report(
            now,
            engine % self.ranks_per_balancer,
            report,
        );
    }

    /// Returns the group of engines that steps as unit `unit`, and its engines; `None` where every engine steps alone.
    pub fn group(&mut self, unit: ReplicaId) -> Option<(&mut LockStepGroup, Range<usize>)> {
        let first = unit.index() * self.size;
        self.groups.get_mut(unit.index()).map(|group| (group, first..first + self.size))
    }

    /// Returns the groups of engines that step together.
    pub fn groups(&self) -> &[LockStepGroup] {
        &self.groups
    }

    /// Returns the unit of an engine: its group's number, or its own.
    pub fn unit_of(&self, engine: ReplicaId) -> ReplicaId {
        if self.groups.is_empty() { engine } else { ReplicaId::from_index(engine.index() / self.size) }
    }

    /// Returns the engines of a unit.
    pub fn engines_of(&self, unit: ReplicaId) -> Range<usize> {
        let size = if self.groups.is_empty() { 1 } else { self.size };
        unit.index() * size..(unit.index() + 1) * size
    }
}
