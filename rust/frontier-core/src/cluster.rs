//! A cluster: equal replicas behind one router, with one scheduler, one step timer and one set of API servers.
//!
//! A run has one cluster per role and kind of GPU. Engines, and units of engines that step as one, are numbered
//! through all clusters: a cluster's numbers begin at its `first`. Within a cluster they count from zero, and everything
//! in here but the events, the records and the public methods speaks of those.

mod data_parallel;
mod kv_tiers;
mod rank_balancer;
mod refusal;
mod router;
mod service;
mod stuck;

use std::sync::Arc;

pub use data_parallel::DataParallelRanks;
pub use kv_tiers::KvTierTotals;
pub use rank_balancer::{RankBalancer, RankReport};
pub use router::Router;
pub use service::{AfterDrain, ReplicaState};

use crate::engine::{ComputedChunk, EngineContext, EngineCore, KvNews, Part, Wake};
use crate::engine_group::LockStepGroup;
use crate::error::SimError;
use crate::event::Event;
use crate::fidelity::{OperatorTrust, StepTimer};
use crate::frontend::{Frontend, Output};
use crate::ids::{ReplicaId, RequestId};
use crate::kernel::EventQueue;
use crate::kvcache::tiers::TierPool;
use crate::metrics::Recorder;
use crate::plan::{ClusterSpec, LimitSpec, SchedulerSpec};
use crate::predictor::Predictor;
use crate::rng::RngStreams;
use crate::scheduler::{BatchScheduler, Handover, RemoteRead, Submission, check_policy};
use crate::scores::{ArrivalPolicy, ArrivingRequest, Scores};
use crate::time::{SimDuration, SimTime};
use crate::workload::{OUTPUT_STREAM_BASE, RequestSpec, Segment};

/// What clusters share with each other and with the run: the clock, the books, and scratch.
#[derive(Debug)]
pub struct Surroundings {
    /// What is to come.
    pub queue: EventQueue<Event>,
    /// Where facts go.
    pub recorder: Recorder,
    /// Requests that engines are done with, since they were settled last.
    pub ended: Vec<RequestId>,
    /// Tokens on their way to API servers.
    pub outputs: Vec<Output>,
    /// Work done: events, and requests handled in batches.
    pub work: u64,
}

impl Surroundings {
    /// Schedules an event.
    ///
    /// # Errors
    /// [`SimError::Invariant`] for a moment that has passed.
    pub fn push(&mut self, time: SimTime, event: Event) -> Result<(), SimError> {
        self.queue.push(time, event.phase() as u8, event)
    }

    /// Schedules an event of the present attempt at a request.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn push_for(
        &mut self,
        time: SimTime,
        id: RequestId,
        event: fn(RequestId, u16) -> Event,
    ) -> Result<(), SimError> {
        self.push(time, event(id, self.recorder.attempt(id)))
    }
}

/// Lends an engine what it needs from its surroundings.
macro_rules! context {
    ($cluster:expr, $around:expr) => {
        EngineContext {
            timer: &mut $cluster.timer,
            recorder: &mut $around.recorder,
            ended: &mut $around.ended,
            outputs: $cluster.frontend.is_some().then_some(&mut $around.outputs),
            work: &mut $around.work,
        }
    };
}

/// Equal replicas and what they share.
#[derive(Debug)]
pub struct Cluster {
    name: String,
    first: u32,
    limits: LimitSpec,
    scheduler: SchedulerSpec,
    timer: StepTimer,
    scores: Scores,
    router: Router,
    /// Data-parallel ranks, where replicas have them.
    ranks: Option<DataParallelRanks>,
    engines: Vec<EngineCore>,
    frontend: Option<Frontend>,
    /// Ranks of one replica.
    data_parallel_size: u32,
    /// A `Schedule` event is pending for the engine, or for the group of engines that steps as one.
    schedule_pending: Vec<bool>,
    /// The pool that replicas share, kept here while none of them runs.
    shared_kv_pool: Option<TierPool>,
    /// Engines read KV from others, or compute it for them.
    hands_over: bool,
    /// Where each replica stands.
    states: Vec<ReplicaState>,
    num_draining: u32,
}

impl Cluster {
    /// Compiles `spec`, the plan's cluster at `path`, into idle engines numbered from `first`; `predictors` are those
    /// that its operators refer to by index.
    ///
    /// # Errors
    /// [`SimError::Plan`] for values that make no sense.
    pub fn new(
        spec: &ClusterSpec,
        path: &str,
        first: u32,
        limits: &LimitSpec,
        predictors: &[Arc<Predictor>],
        streams: &RngStreams,
    ) -> Result<Self, SimError> {
        let scheduler = spec.scheduler.clone();
        check_policy(scheduler.policy())?;
        let (max_tokens, max_seqs) = match &scheduler {
            // A replay goes on with an engine that has handed out the same memory twice.
            SchedulerSpec::Sglang(_) if !limits.refuse_oversized => (u32::MAX, u32::MAX),
            scheduler => scheduler.batch_limits(),
        };
        let mut timer = StepTimer::compile(&spec.step_time, max_tokens, max_seqs, predictors)?;
        let stages = timer.stages_s().len();
        if stages > 0 && stages != scheduler.pipeline_parallel_size() as usize {
            return Err(SimError::Plan {
                path: format!("{path}.scheduler.pipeline_parallel_size"),
                message: format!(
                    "was {}, step_time has {stages} stages of operators",
                    scheduler.pipeline_parallel_size()
                ),
            });
        }
        let parallel = spec.data_parallel.as_ref();
        let size = parallel.map_or(1, |parallel| parallel.size);
        let ranks_per_balancer = parallel.map_or(1, |parallel| parallel.ranks_per_balancer);
        let lock_step = parallel.and_then(|parallel| parallel.lock_step);
        timer.pad_to_largest(lock_step.is_some_and(|step| step.pad_to_largest));
        check_ranks(&timer, path, size, lock_step.is_some())?;
        let num_engines = spec.replicas.checked_mul(size).ok_or(SimError::ClockOverflow)?;
        let last = first.checked_add(num_engines).ok_or(SimError::ClockOverflow)?;
        let engine = |id| EngineCore::new(ReplicaId(id), &scheduler, timer.new_batch(), limits);
        let mut engines: Vec<_> = (first..last).map(engine).collect();
        if let Some(tiers) = &spec.kv_tiers {
            for engine in &mut engines {
                engine.attach_kv_tiers(tiers);
            }
        }
        let depth = engines.first().map_or(1, EngineCore::depth);
        let replicas = spec.replicas as usize;
        let mut cluster = Self {
            name: spec.name.clone(),
            first,
            limits: limits.clone(),
            scores: Scores::new(scheduler.policy(), streams),
            router: Router::new(
                spec.router.clone(),
                num_engines / ranks_per_balancer,
                ranks_per_balancer as usize,
                scheduler.block_size(),
                streams.get(&router_stream(first)),
            ),
            ranks: parallel
                .map(|parallel| DataParallelRanks::new(parallel, replicas, depth, &timer.new_batch())),
            engines,
            frontend: spec.frontend.clone().map(|frontend| Frontend::new(frontend, spec.replicas)),
            data_parallel_size: size,
            schedule_pending: vec![false; num_engines as usize],
            hands_over: false,
            states: vec![ReplicaState::InService; replicas],
            num_draining: 0,
            shared_kv_pool: spec.kv_tiers.as_ref().and_then(kv_tiers::shared_pool),
            scheduler,
            timer,
        };
        for replica in spec.in_service.unwrap_or(spec.replicas)..spec.replicas {
            cluster.set_state(replica, ReplicaState::Reserve);
        }
        Ok(cluster)
    }

    /// Returns the cluster's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the number of the first engine.
    pub fn first_engine(&self) -> u32 {
        self.first
    }

    /// Returns the engines, all ranks of all replicas.
    pub fn engines(&self) -> &[EngineCore] {
        &self.engines
    }

    /// Returns how step times are made.
    pub fn step_time(&self) -> &'static str {
        self.timer.name()
    }

    /// Returns what step times rest on, operator by operator, over all replicas.
    pub fn trust(&mut self) -> Vec<OperatorTrust> {
        self.timer.trust()
    }

    /// Returns the scheduler's settings.
    pub fn scheduler(&self) -> &SchedulerSpec {
        &self.scheduler
    }

    /// Returns how many requests the router takes to be under way.
    pub fn num_routed(&self) -> u64 {
        self.router.total_outstanding()
    }

    /// Returns how many engines a replica consists of.
    pub fn data_parallel_size(&self) -> u32 {
        self.data_parallel_size
    }

    /// Returns the dummy batches of all ranks so far.
    pub fn num_dummies(&self) -> u64 {
        self.ranks.iter().flat_map(DataParallelRanks::groups).map(LockStepGroup::num_dummies).sum()
    }

    /// Lets the caller's own policy rank requests on arrival.
    pub fn rank_arrivals_by(&mut self, policy: Box<dyn ArrivalPolicy>) {
        self.scores.ask(policy);
    }

    /// Returns the time from a client to the API servers, where there are any.
    pub fn network_to_servers(&self) -> Option<SimDuration> {
        self.frontend.as_ref().map(Frontend::network)
    }

    /// Chooses the engine for a request whose prompt consists of `segments`; none while no replica takes requests.
    pub fn choose(&mut self, now: SimTime, spec: &RequestSpec, segments: &[Segment]) -> Option<ReplicaId> {
        let target = self.router.route(spec, segments, &self.engines)?;
        let engine = match &mut self.ranks {
            Some(ranks) => ranks.choose(now, target, spec.id),
            None => target,
        };
        Some(self.global(engine))
    }

    /// Lets the API servers of `engine` take in a request `now`. Returns when it reaches the
    /// engine: at once without servers.
    ///
    /// # Errors
    /// [`SimError::ClockOverflow`].
    pub fn accept(
        &mut self,
        now: SimTime,
        spec: &RequestSpec,
        engine: ReplicaId,
    ) -> Result<SimTime, SimError> {
        let servers = self.servers_of(self.local(engine));
        let Some(frontend) = &mut self.frontend else { return Ok(now) };
        frontend.accept(spec.id, spec.prompt_tokens, servers, now)
    }

    /// Hands a request to its engine; `segments` holds its prompt, `handover` what is special about its KV.
    ///
    /// # Errors
    /// [`SimError::Policy`].
    pub fn submit(
        &mut self,
        now: SimTime,
        spec: &RequestSpec,
        engine: ReplicaId,
        handover: Handover,
        segments: &[Segment],
        around: &mut Surroundings,
    ) -> Result<(), SimError> {
        let max_tokens = self.granted_output(spec);
        let replica = engine;
        let engine = self.local(engine);
        let gauges = self.engines[engine.index()].scheduler().gauges();
        let score = self.scores.of(&ArrivingRequest { spec, now, replica, gauges })?;
        let submission = Submission {
            id: spec.id,
            // An engine that goes on with a request knows when it got it.
            arrival: match handover {
                Handover::Receives | Handover::Buffered => now,
                Handover::Neither | Handover::Keeps => spec.arrival,
            },
            priority: spec.priority,
            tie_rank: spec.tie_rank,
            session: spec.session,
            score,
            prompt_tokens: spec.prompt_tokens,
            max_tokens,
            segments,
            output_stream: OUTPUT_STREAM_BASE + u64::from(spec.id.0),
            handover,
        };
        self.swap_shared_kv_pool(engine);
        self.engines[engine.index()].submit(now, &submission);
        self.swap_shared_kv_pool(engine);
        self.awaken(now, engine, around)
    }

    /// Frees the router's slot of a request that its client is done with.
    pub fn release(&mut self, engine: ReplicaId, id: RequestId) {
        let engine = self.local(engine);
        let target = match &mut self.ranks {
            Some(ranks) => ranks.release(engine, id),
            None => engine,
        };
        self.router.release(target);
    }

    /// Processes what the awaited step of `unit` brought. Returns false if the step was dropped before. The cluster is
    /// asked to go on with [`Self::after_step`] once what ended is settled.
    ///
    /// # Errors
    /// Any [`SimError`].
    pub fn on_step_end(
        &mut self,
        now: SimTime,
        unit: ReplicaId,
        around: &mut Surroundings,
    ) -> Result<bool, SimError> {
        let unit = self.local(unit);
        let dropped = match self.ranks.as_mut().and_then(|ranks| ranks.group(unit)) {
            Some((group, _)) => group.drops_end(now),
            None => self.engines[unit.index()].drops_end(now),
        };
        if dropped {
            return Ok(false);
        }
        let mut context = context!(self, around);
        match self.ranks.as_mut().and_then(|ranks| ranks.group(unit)) {
            Some((group, engines)) => group.complete(now, &mut self.engines[engines], &mut context)?,
            None => self.engines[unit.index()].complete(now, &mut context)?,
        }
        self.report(now, unit);
        Ok(true)
    }

    /// Tells whether `unit` may form its next batches at once, without a detour through the queue; if not, asks for
    /// them.
    ///
    /// # Errors
    /// As [`Surroundings::push`].
    pub fn after_step(
        &mut self,
        now: SimTime,
        unit: ReplicaId,
        around: &mut Surroundings,
    ) -> Result<bool, SimError> {
        let unit = self.local(unit);
        if around.queue.is_alone_in_time() && !self.schedule_pending[unit.index()] {
            return Ok(true);
        }
        self.request_schedule(now, unit, around)?;
        Ok(false)
    }

    /// Lets `unit` form batches until it has to wait. `idle`: no request is left, nor to come. What it waits for is
    /// scheduled once what ended is settled.
    ///
    /// # Errors
    /// Any [`SimError`].
    pub fn on_schedule(
        &mut self,
        now: SimTime,
        unit: ReplicaId,
        idle: bool,
        around: &mut Surroundings,
    ) -> Result<Wake, SimError> {
        let unit = self.local(unit);
        self.schedule_pending[unit.index()] = false;
        if idle && self.in_lock_step() {
            // The ranks would spin on, with nothing to come.
            return Ok(Wake::OnArrival);
        }
        self.swap_shared_kv_pool(unit);
        let mut context = context!(self, around);
        let (wake, engines) =
            if let Some((group, engines)) = self.ranks.as_mut().and_then(|ranks| ranks.group(unit)) {
                let wake = group.run_until_blocked(now, &mut self.engines[engines.clone()], &mut context)?;
                (wake, &self.engines[engines])
            } else {
                let engine = &mut self.engines[unit.index()];
                (engine.run_until_blocked(now, &mut context)?, std::slice::from_ref(&*engine))
            };
        let depth = engines.first().map_or(1, EngineCore::depth);
        self.swap_shared_kv_pool(unit);
        self.await_kv_transfers(unit, around)?;
        if depth > 1 {
            // With batches in flight an engine reports as soon as one is launched; otherwise when it is done.
            self.report(now, unit);
        }
        Ok(wake)
    }

    /// Streams what the engines' last step made to the clients, where API servers stand between.
    ///
    /// # Errors
    /// [`SimError::ClockOverflow`].
    pub fn deliver(&mut self, now: SimTime, around: &mut Surroundings) -> Result<(), SimError> {
        around.ended.clear();
        // All output of one step is of one replica, whose ranks share its API servers.
        let Some(first) = around.outputs.first() else { return Ok(()) };
        let (_, engine) = around.recorder.routed(first.request);
        let servers = self.servers_of(self.local(engine));
        let Some(frontend) = &mut self.frontend else { return Ok(()) };
        let Surroundings { queue, recorder, outputs, .. } = around;
        let mut pushed = Ok(());
        frontend.deliver(servers, now, outputs, |id, at| {
            if recorder.deliver(id, now, at) {
                let event = Event::Delivered(id, recorder.attempt(id));
                let push = queue.push(at, event.phase() as u8, event);
                pushed = std::mem::replace(&mut pushed, Ok(())).and(push);
            }
        })?;
        outputs.clear();
        pushed
    }

    /// Tells whether API servers stand between the engines and the clients.
    pub fn has_servers(&self) -> bool {
        self.frontend.is_some()
    }

    /// Tells whether an engine of a unit has made all its steps; SGLang's loop ends with the results of its last turn.
    pub fn has_reached_its_steps(&self, unit: ReplicaId) -> bool {
        let Some(limit) = self.limits.max_steps else { return false };
        let unit = self.local(unit);
        let reached = |engine: usize| {
            let engine = &self.engines[engine];
            let in_turn = matches!(self.scheduler, SchedulerSpec::Sglang(_)) && engine.is_waiting();
            engine.num_steps().0 >= limit && !in_turn
        };
        self.ranks.as_ref().map_or_else(|| reached(unit.index()), |ranks| ranks.engines_of(unit).any(reached))
    }

    /// Takes a point of the time line of every engine.
    ///
    /// # Errors
    /// [`SimError::TooLong`].
    pub fn sample(&mut self, now: SimTime, recorder: &mut Recorder) -> Result<(), SimError> {
        for (number, engine) in (self.first..).zip(&mut self.engines) {
            recorder.timeline.push(now.0, number, engine.sample(now))?;
        }
        Ok(())
    }

    /// Checks that no block was lost.
    ///
    /// # Errors
    /// [`SimError::Invariant`].
    pub fn check_integrity(&self) -> Result<(), SimError> {
        for engine in &self.engines {
            engine.scheduler().check_integrity()?;
        }
        self.shared_kv_pool.as_ref().map_or(Ok(()), |pool| pool.check_integrity(0))
    }

    /// Lets the engines take part in the ways of requests over several clusters.
    pub fn take_part(&mut self, part: Part) {
        self.engines.iter_mut().for_each(|engine| engine.take_part(part));
        self.hands_over = part.receives || part.reports_chunks;
    }

    /// Lets `engine` hear of a transfer.
    ///
    /// # Errors
    /// As [`Surroundings::push`].
    pub fn hear(
        &mut self,
        now: SimTime,
        engine: ReplicaId,
        news: KvNews,
        around: &mut Surroundings,
    ) -> Result<(), SimError> {
        let engine = self.local(engine);
        self.engines[engine.index()].hear(news);
        self.awaken(now, engine, around)
    }

    /// Returns what the engines of `unit` began to read, and which chunks they compute for others, since the last call.
    pub fn take_handovers(
        &mut self,
        unit: ReplicaId,
    ) -> (Vec<(ReplicaId, RemoteRead, SimTime)>, Vec<ComputedChunk>) {
        let (mut reads, mut chunks) = (Vec::new(), Vec::new());
        if self.hands_over {
            let unit = self.local(unit);
            let alone = unit.index()..unit.index() + 1;
            let engines = self.ranks.as_ref().map_or(alone, |ranks| ranks.engines_of(unit));
            for at in engines {
                let number = self.global(ReplicaId::from_index(at));
                let engine = &mut self.engines[at];
                reads.extend(engine.take_reads().into_iter().map(|(read, at)| (number, read, at)));
                chunks.append(&mut engine.take_chunks());
            }
        }
        (reads, chunks)
    }

    /// Returns how many tokens of a request's prompt `engine` has cached.
    pub fn cached_prefix(&mut self, engine: ReplicaId, spec: &RequestSpec, segments: &[Segment]) -> u32 {
        let engine = self.local(engine);
        self.router.cached_prefix(spec, segments, &self.engines[engine.index()])
    }

    /// Lets an engine that heard of something form batches, unless it waits for one.
    fn awaken(&mut self, now: SimTime, engine: ReplicaId, around: &mut Surroundings) -> Result<(), SimError> {
        let unit = self.ranks.as_ref().map_or(engine, |ranks| ranks.unit_of(engine));
        let hears = match self.ranks.as_mut().and_then(|ranks| ranks.group(unit)) {
            Some((group, _)) => {
                group.wake();
                !group.is_waiting()
            }
            None => self.engines[engine.index()].hears_arrivals(),
        };
        if hears { self.request_schedule(now, unit, around) } else { Ok(()) }
    }

    fn in_lock_step(&self) -> bool {
        self.ranks.as_ref().is_some_and(|ranks| !ranks.groups().is_empty())
    }

    fn request_schedule(
        &mut self,
        now: SimTime,
        unit: ReplicaId,
        around: &mut Surroundings,
    ) -> Result<(), SimError> {
        if std::mem::replace(&mut self.schedule_pending[unit.index()], true) {
            return Ok(());
        }
        around.push(now, Event::Schedule(self.global(unit)))
    }

    /// Lets data-parallel ranks tell their balancer how long their queues are.
    fn report(&mut self, now: SimTime, unit: ReplicaId) {
        let Some(ranks) = &mut self.ranks else { return };
        for engine in ranks.engines_of(unit) {
            ranks.report(now, engine, &self.engines[engine]);
        }
    }

    /// Returns the replica whose API servers stand before an engine: its data-parallel ranks share them.
    fn servers_of(&self, engine: ReplicaId) -> ReplicaId {
        ReplicaId(engine.0 / self.data_parallel_size)
    }

    fn local(&self, number: ReplicaId) -> ReplicaId {
        ReplicaId(number.0 - self.first)
    }

    fn global(&self, number: ReplicaId) -> ReplicaId {
        ReplicaId(number.0 + self.first)
    }
}

/// Returns the name of a router's random stream. Clusters draw apart; the first one's is as old as the simulator.
fn router_stream(first: u32) -> String {
    if first == 0 { "cluster.router".into() } else { format!("cluster.{first}.router") }
}

/// Refuses step times that know more or other ranks than the plan has.
fn check_ranks(timer: &StepTimer, path: &str, size: u32, lock_step: bool) -> Result<(), SimError> {
    let priced = timer.num_batches();
    if priced == 1 || (lock_step && priced == size as usize) {
        return Ok(());
    }
    let what = if lock_step { "ranks in lock step" } else { "ranks without lock step" };
    Err(SimError::Plan {
        path: format!("{path}.step_time.layout.data_parallel_size"),
        message: format!("was {priced}, but the plan has {size} {what} per replica"),
    })
}
