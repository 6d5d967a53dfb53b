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
    /// Targets that take requests, in order.
    open: Vec<u32>,
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
            open: (0..replicas).collect(),
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

    /// Says whether a target takes requests from now on.
    pub fn set_open(&mut self, target: u32, open: bool) {
        match self.open.binary_search(&target) {
            Ok(at) if !open => {
                self.open.remove(at);
            }
            Err(at) if open => self.open.insert(at, target),
            _ => {}
        }
    }

    /// Tells whether some target takes requests.
    pub fn is_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// Returns the number of targets, open or not.
    pub fn num_targets(&self) -> usize {
        self.outstanding.len()
    }

    /// Returns the requests under way at a target.
    pub fn outstanding(&self, target: usize) -> u32 {
        self.outstanding[target]
    }

    /// Returns the outstanding requests of all targets.
    pub fn total_outstanding(&self) -> u64 {
        self.outstanding.iter().map(|&count| u64::from(count)).sum()
    }

    /// Chooses the replica of `request`, whose prompt consists of `segments`, and counts it as outstanding
    /// there. None takes it if none is open.
    pub fn route(
        &mut self,
        request: &RequestSpec,
        segments: &[Segment],
        engines: &[EngineCore],
    ) -> Option<ReplicaId> {
        if self.open.is_empty() {
            return None;
        }
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
        Some(replica)
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
        // Those that are closed are passed over.
        let at = self.open.partition_point(|&target| target < self.next);
        let replica = ReplicaId(self.open[at % self.open.len()]);
        self.next = (replica.0 + 1) % self.outstanding.len() as u32;
        replica
    }

    /// Returns a place in the list of open targets.
    fn draw_place(&mut self) -> usize {
        self.stream.below(self.open.len() as u64) as usize
    }

    fn draw(&mut self) -> ReplicaId {
        let place = self.draw_place();
        ReplicaId(self.open[place])
    }

    fn least_outstanding(&self) -> ReplicaId {
        let least = self.open.iter().min_by_key(|target| self.outstanding[**target as usize]);
        ReplicaId(*least.expect("Invariant: a request is routed while some target is open"))
    }

    fn power_of_two(&mut self) -> ReplicaId {
        let first = self.draw_place();
        let others = self.open.len() as u64 - 1;
        if others == 0 {
            return ReplicaId(self.open[first]);
        }
        // Distinct from the first: drawn from the others, numbered past it.
        let step = 1 + self.stream.below(others) as usize;
        let (first, second) = (self.open[first], self.open[(first + step) % self.open.len()]);
        let load = |target: u32| self.outstanding[target as usize];
        ReplicaId(if load(second) < load(first) { second } else { first })
    }

    fn least_kv_use(&self, engines: &[EngineCore]) -> ReplicaId {
        let usage = |at: usize| self.behind(engines, at).iter().map(EngineCore::kv_usage).sum::<f64>();
        let rank = |target: u32| (usage(target as usize), self.outstanding[target as usize]);
        let first = self.open[0];
        let (best, _) = self.open[1..]
            .iter()
            .map(|&target| (target, rank(target)))
            .fold((first, rank(first)), |best, next| if next.1 < best.1 { next } else { best });
        ReplicaId(best)
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
        let load = |target: u32| self.outstanding[target as usize];
        let least = self.open.iter().map(|&target| load(target)).min().unwrap_or(0);
        let cached = |at: usize| {
            let engines = self.behind(engines, at);
            engines.iter().map(|engine| engine.cached_prefix(segments, hashes)).max().unwrap_or(0)
        };
        let best = self
            .open
            .iter()
            .copied()
            .filter(|&target| load(target) - least <= max_imbalance)
            // `max_by_key` keeps the last of equals, hence the reversed order of replicas.
            .rev()
            .max_by_key(|&target| (cached(target as usize), std::cmp::Reverse(load(target))));
        ReplicaId(best.expect("Invariant: the least loaded replica qualifies"))
    }

    fn session_home(&mut self, session: Option<SessionId>) -> ReplicaId {
        let Some(session) = session else {
            return self.least_outstanding();
        };
        let least = self.least_outstanding();
        let home = self.homes.entry(session).or_insert(least);
        if self.open.binary_search(&home.0).is_err() {
            *home = least;
        }
        *home
    }
}
