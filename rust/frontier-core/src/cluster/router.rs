//! Routing policies over the replicas of a cluster, or over groups of data-parallel ranks behind a balancer each.

use rustc_hash::FxHashMap;

use crate::engine::EngineCore;
use crate::ids::{ReplicaId, SessionId};
use crate::kvcache::PrefixHasher;
use crate::plan::RouterSpec;
use crate::rng::Stream;
use crate::workload::{RequestSpec, Segment};

/// Chooses a replica for each request at its arrival.
#[derive(Debug)]
pub struct Router {
    spec: RouterSpec,
    /// Running and waiting requests of each replica.
    outstanding: Vec<u32>,
    next: u32,
    stream: Stream,
    homes: FxHashMap<SessionId, ReplicaId>,
    hasher: PrefixHasher,
    /// Tokens per block, for prefix hashes.
    block_size: u32,
    /// Engines behind each target: data-parallel ranks that a balancer of their own spreads requests over.
    engines_per_target: usize,
}

impl Router {
    /// Returns a router over `replicas` idle targets of `engines_per_target` consecutive engines each.
    pub fn new(
        spec: RouterSpec,
        replicas: u32,
        engines_per_target: usize,
        block_size: u32,
        stream: Stream,
    ) -> Self {
        Self {
            spec,
            outstanding: vec![0; replicas as usize],
            next: 0,
            stream,
            homes: FxHashMap::default(),
            hasher: PrefixHasher::default(),
            block_size,
            engines_per_target,
        }
    }

    /// Notes that a request of `replica` ended.
    pub fn release(&mut self, replica: ReplicaId) {
        self.outstanding[replica.index()] -= 1;
    }

    /// Chooses the replica of `request`, whose prompt consists of `segments`, and counts it as outstanding
    /// there.
    pub fn route(
        &mut self,
        request: &RequestSpec,
        segments: &[Segment],
        engines: &[EngineCore],
    ) -> ReplicaId {
        let replica = match self.spec {
            RouterSpec::RoundRobin {} => self.turn(),
            RouterSpec::Random {} => self.draw(),
            RouterSpec::LeastOutstanding {} => self.least_outstanding(),
            RouterSpec::PowerOfTwo {} => self.power_of_two(),
            RouterSpec::LeastKvUse {} => self.least_kv_use(engines),
            RouterSpec::PrefixAware { max_imbalance } => {
                self.longest_prefix(request, segments, engines, max_imbalance)
            }
            RouterSpec::SessionSticky {} => self.session_home(request.session),
        };
        self.outstanding[replica.index()] += 1;
        replica
    }

    /// Returns how many tokens of a prompt, which consists of `segments`, `engine` has cached.
    pub fn cached_prefix(&mut self, request: &RequestSpec, segments: &[Segment], engine: &EngineCore) -> u32 {
        self.hash_prompt(request, segments);
        engine.cached_prefix(segments, self.hasher.hashes())
    }

    fn hash_prompt(&mut self, request: &RequestSpec, segments: &[Segment]) {
        self.hasher.clear();
        // The last token is never served from the cache, so a full hit stops before it.
        self.hasher.extend(self.block_size, segments, 0, request.prompt_tokens - 1);
    }

    fn turn(&mut self) -> ReplicaId {
        let replica = ReplicaId(self.next);
        self.next = (self.next + 1) % self.outstanding.len() as u32;
        replica
    }

    fn draw(&mut self) -> ReplicaId {
        ReplicaId(self.stream.below(self.outstanding.len() as u64) as u32)
    }

    fn least_outstanding(&self) -> ReplicaId {
        let at = (0..self.outstanding.len()).min_by_key(|&at| self.outstanding[at]);
        ReplicaId::from_index(at.expect("Invariant: a cluster has a replica"))
    }

    fn power_of_two(&mut self) -> ReplicaId {
        let first = self.draw();
        let others = self.outstanding.len() as u64 - 1;
        if others == 0 {
            return first;
        }
        // Distinct from the first: drawn from the others, numbered past it.
        let step = 1 + self.stream.below(others) as u32;
        let second = ReplicaId((first.0 + step) % self.outstanding.len() as u32);
        if self.outstanding[second.index()] < self.outstanding[first.index()] { second } else { first }
    }

    fn least_kv_use(&self, engines: &[EngineCore]) -> ReplicaId {
        let usage = |at: usize| self.behind(engines, at).iter().map(EngineCore::kv_usage).sum::<f64>();
        let rank = |at: usize| (usage(at), self.outstanding[at]);
        let (best, _) = (1..self.outstanding.len())
            .map(|at| (at, rank(at)))
            .fold((0, rank(0)), |best, next| if next.1 < best.1 { next } else { best });
        ReplicaId::from_index(best)
    }

    /// Returns the engines behind target `at`.
    fn behind<'a>(&self, engines: &'a [EngineCore], at: usize) -> &'a [EngineCore] {
        &engines[at * self.engines_per_target..(at + 1) * self.engines_per_target]
    }

    fn longest_prefix(
        &mut self,
        request: &RequestSpec,
        segments: &[Segment],
        engines: &[EngineCore],
        max_imbalance: u32,
    ) -> ReplicaId {
        self.hash_prompt(request, segments);
        let hashes = self.hasher.hashes();
        let least = self.outstanding.iter().copied().min().unwrap_or(0);
        let cached = |at: usize| {
            let engines = self.behind(engines, at);
            engines.iter().map(|engine| engine.cached_prefix(segments, hashes)).max().unwrap_or(0)
        };
        let best = (0..self.outstanding.len())
            .filter(|&at| self.outstanding[at] - least <= max_imbalance)
            // `max_by_key` keeps the last of equals, hence the reversed order of replicas.
            .rev()
            .max_by_key(|&at| (cached(at), std::cmp::Reverse(self.outstanding[at])));
        ReplicaId::from_index(best.expect("Invariant: the least loaded replica qualifies"))
    }

    fn session_home(&mut self, session: Option<SessionId>) -> ReplicaId {
        let Some(session) = session else {
            return self.least_outstanding();
        };
        let least = self.least_outstanding();
        *self.homes.entry(session).or_insert(least)
    }
}
