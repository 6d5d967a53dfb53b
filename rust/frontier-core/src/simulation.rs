//! A run: owns all state, and handles every event in one exhaustive `match`.

mod kv_tiers;

use std::sync::Arc;

pub use kv_tiers::KvTierTotals;

use crate::cluster::{DataParallelRanks, Router};
use crate::engine::{EngineContext, EngineCore, Wake};
use crate::engine_group::LockStepGroup;
use crate::error::SimError;
use crate::event::Event;
use crate::fidelity::{OperatorTrust, StepTimer};
use crate::frontend::{Frontend, Output};
use crate::ids::{ReplicaId, RequestId};
use crate::kernel::EventQueue;
use crate::kvcache::tiers::TierPool;
use crate::metrics::{Recorder, RejectReason};
use crate::plan::baseline::BaselineSpec;
use crate::plan::{LimitSpec, Plan, Policy, SchedulerConfig, SchedulerSpec, SglangConfig};
use crate::predictor::Predictor;
use crate::rng::RngStreams;
use crate::scheduler::{BatchScheduler, Gauges, Submission, check_policy};
use crate::scores::{ArrivalPolicy, ArrivingRequest, Scores};
use crate::time::SimTime;
use crate::workload::{OUTPUT_STREAM_BASE, RequestSpec, Segment, TraceColumns, Workload};

/// Most requests of a run: their records take about 390 bytes each.
const MAX_REQUESTS: usize = 20_000_000;

/// Most requests that the clients of a closed loop may send at one moment in reply to ended ones.
const MAX_FOLLOWERS_AT_ONCE: u64 = 1_000_000;

/// Most stuck requests that an error names.
const MAX_NAMED: usize = 8;

/// How far a run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Simulated time when something last happened.
    pub now: SimTime,
    /// Requests finished or refused.
    pub ended: u64,
    /// Requests in total, if known beforehand.
    pub total: Option<u64>,
    /// Events handled.
    pub events: u64,
}

/// Totals of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Totals {
    /// Digest of all requests' lives: equal runs have equal digests.
    pub digest: u64,
    /// Simulated time of the last event.
    pub end: SimTime,
    /// Events handled.
    pub events: u64,
    /// Non-empty steps of all replicas.
    pub steps: u64,
    /// Empty batches of all replicas.
    pub empty_steps: u64,
    /// Time that steps spent drafting, passes and host, in ns: a sum over engines.
    pub draft_ns: u64,
    /// Prompt tokens looked up in prefix caches, over first admissions.
    pub prefix_lookup_tokens: u64,
    /// Prompt tokens found there.
    pub prefix_hit_tokens: u64,
    /// Batches that data-parallel ranks without work computed because others needed them.
    pub dummy_steps: u64,
    /// Engines of a replica: its data-parallel ranks.
    pub data_parallel_size: u32,
    /// Blocks of each engine, the null block included.
    pub num_blocks: u32,
    /// How step times were made.
    pub step_time: &'static str,
    /// How the real engine fails here; only in runs for which that is an outcome (`limits.refuse_oversized` off).
    pub failure: Option<String>,
    /// What step times rest on, operator by operator, over all replicas.
    pub trust: Vec<OperatorTrust>,
    /// What the tiers of KV did, over all replicas; the device first. Empty without tiers.
    pub kv_tiers: Vec<KvTierTotals>,
}

/// A run in progress.
#[derive(Debug)]
pub struct Simulation {
    limits: LimitSpec,
    scheduler: SchedulerSpec,
    timer: StepTimer,
    workload: Workload,
    scores: Scores,
    queue: EventQueue<Event>,
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
    recorder: Recorder,
    sample_interval_ns: u64,
    sample_pending: bool,
    /// Requests routed and not ended.
    outstanding: u64,
    /// Requests issued and not arrived.
    expected: u64,
    /// When something last happened to a request or an engine.
    last_fact: SimTime,
    /// The moment of the last request that followed an ended one, and how many did so at that moment.
    followers: (SimTime, u64),
    /// Work done: events, and requests handled in batches.
    work: u64,
    stopped: bool,
    /// How the real engine fails here, where that is an outcome.
    failure: Option<SimError>,
    /// Scratch.
    segments: Vec<Segment>,
    ended: Vec<RequestId>,
    outputs: Vec<Output>,
}

impl Simulation {
    /// Compiles `plan` into a run at time zero; `predictors` are those that its operators refer to by index.
    ///
    /// # Errors
    /// [`SimError::Plan`] and [`SimError::Input`] for values that make no sense.
    pub fn new(
        plan: &Plan,
        trace: Option<Arc<TraceColumns>>,
        predictors: &[Arc<Predictor>],
    ) -> Result<Self, SimError> {
        let streams = RngStreams::new(plan.seed, plan.replication);
        let replicas = plan.cluster.replicas;
        let scheduler = plan.scheduler.clone();
        check_policy(scheduler.policy())?;
        let (max_tokens, max_seqs) = match &scheduler {
            // A replay goes on with an engine that has handed out the same memory twice.
            SchedulerSpec::Sglang(_) if !plan.limits.refuse_oversized => (u32::MAX, u32::MAX),
            scheduler => scheduler.batch_limits(),
        };
        let mut timer = StepTimer::compile(&plan.step_time, max_tokens, max_seqs, predictors)?;
        let stages = timer.stages_s().len();
        if stages > 0 && stages != scheduler.pipeline_parallel_size() as usize {
            return Err(SimError::Plan {
                path: "scheduler.pipeline_parallel_size".into(),
                message: format!(
                    "was {}, step_time has {stages} stages of operators",
                    scheduler.pipeline_parallel_size()
                ),
            });
        }
        let spec = plan.data_parallel.as_ref();
        let size = spec.map_or(1, |spec| spec.size);
        let ranks_per_balancer = spec.map_or(1, |spec| spec.ranks_per_balancer);
        let lock_step = spec.and_then(|spec| spec.lock_step);
        timer.pad_to_largest(lock_step.is_some_and(|step| step.pad_to_largest));
        check_ranks(&timer, size, lock_step.is_some())?;
        let num_engines = replicas.checked_mul(size).ok_or(SimError::ClockOverflow)?;
        let engine = |id| EngineCore::new(ReplicaId(id), &scheduler, timer.new_batch(), &plan.limits);
        let engines: Vec<_> = (0..num_engines).map(engine).collect();
        let depth = engines.first().map_or(1, EngineCore::depth);
        let ranks =
            spec.map(|spec| DataParallelRanks::new(spec, replicas as usize, depth, &timer.new_batch()));
        let mut simulation = Self {
            limits: plan.limits.clone(),
            workload: Workload::new(&plan.workload, trace, &streams)?,
            scores: Scores::new(scheduler.policy(), &streams),
            queue: EventQueue::new(),
            router: Router::new(
                plan.cluster.router.clone(),
                num_engines / ranks_per_balancer,
                ranks_per_balancer as usize,
                scheduler.block_size(),
                &streams,
            ),
            ranks,
            engines,
            frontend: plan.frontend.clone().map(|spec| Frontend::new(spec, replicas)),
            data_parallel_size: size,
            schedule_pending: vec![false; num_engines as usize],
            shared_kv_pool: plan.kv_tiers.as_ref().and_then(kv_tiers::shared_pool),
            recorder: Recorder::new(num_engines, &plan.output),
            sample_interval_ns: plan.output.timeline_interval_ns,
            sample_pending: false,
            outstanding: 0,
            expected: 0,
            last_fact: SimTime::ZERO,
            followers: (SimTime::ZERO, 0),
            work: 0,
            stopped: false,
            failure: None,
            segments: Vec::new(),
            ended: Vec::new(),
            outputs: Vec::new(),
            scheduler,
            timer,
        };
        if let Some(tiers) = &plan.kv_tiers {
            for engine in &mut simulation.engines {
                engine.attach_kv_tiers(tiers);
            }
        }
        simulation.issue_next_arrival()?;
        Ok(simulation)
    }

    /// Lets the caller's own policy rank requests on arrival, which the plan must ask for (`callable`).
    ///
    /// # Errors
    /// [`SimError::Plan`] if the plan has another policy.
    pub fn rank_arrivals_by(&mut self, policy: Box<dyn ArrivalPolicy>) -> Result<(), SimError> {
        if !matches!(self.scheduler.policy(), Policy::Callable(_)) {
            return Err(SimError::Plan {
                path: "scheduler.policy".into(),
                message: "was not 'callable', as a policy of the caller's own needs".into(),
            });
        }
        self.scores.ask(policy);
        Ok(())
    }

    /// Handles events until about `max_work` of them, or of requests in their batches, are handled. Returns
    /// whether the run is over.
    ///
    /// # Errors
    /// Any [`SimError`]; the run is then over and its state meaningless.
    pub fn run_slice(&mut self, max_work: u64) -> Result<bool, SimError> {
        let enough = self.work.saturating_add(max_work);
        while !self.stopped && self.work < enough {
            self.work += 1;
            let handled = if let Some((now, event)) = self.queue.pop() {
                self.handle(now, event)
            } else {
                self.stopped = true;
                self.check_nothing_is_stuck()
            };
            match handled {
                Err(failure @ SimError::EngineFailure { .. }) if !self.limits.refuse_oversized => {
                    self.failure = Some(failure);
                    self.stopped = true;
                }
                handled => handled?,
            }
        }
        Ok(self.stopped)
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// As [`Self::run_slice`].
    pub fn run(&mut self) -> Result<(), SimError> {
        while !self.run_slice(u64::MAX)? {}
        Ok(())
    }

    /// Returns how far the run has come.
    pub fn progress(&self) -> Progress {
        Progress {
            now: self.last_fact,
            ended: self.recorder.num_ended(),
            total: self.workload.total(),
            events: self.queue.popped(),
        }
    }

    /// Closes the run: checks its books and returns what it recorded.
    ///
    /// # Errors
    /// [`SimError::Invariant`] if a request or a block was lost.
    pub fn finish(mut self) -> Result<(Recorder, Totals), SimError> {
        for engine in &self.engines {
            engine.scheduler().check_integrity()?;
        }
        if let Some(pool) = &self.shared_kv_pool {
            pool.check_integrity(0)?;
        }
        let now = self.last_fact;
        self.sample_all(now)?;
        self.recorder.close();
        let mut totals = Totals {
            digest: self.recorder.digest(),
            end: now,
            events: self.queue.popped(),
            steps: 0,
            empty_steps: 0,
            draft_ns: 0,
            prefix_lookup_tokens: 0,
            prefix_hit_tokens: 0,
            dummy_steps: 0,
            data_parallel_size: self.ranks.as_ref().map_or(1, DataParallelRanks::size),
            num_blocks: self.scheduler.num_blocks(),
            step_time: self.timer.name(),
            failure: self.failure.map(|failure| failure.to_string()),
            trust: self.timer.trust(),
            kv_tiers: kv_tiers::totals(&self.engines, self.shared_kv_pool.as_ref()),
        };
        for engine in &self.engines {
            let (steps, empty) = engine.num_steps();
            let (lookups, hits) = engine.prefix_tokens();
            totals.steps += steps;
            totals.empty_steps += empty;
            totals.draft_ns = totals.draft_ns.saturating_add(engine.draft_ns());
            totals.prefix_lookup_tokens += lookups;
            totals.prefix_hit_tokens += hits;
        }
        if let Some(ranks) = &self.ranks {
            totals.dummy_steps = ranks.groups().iter().map(LockStepGroup::num_dummies).sum();
        }
        Ok((self.recorder, totals))
    }

    fn handle(&mut self, now: SimTime, event: Event) -> Result<(), SimError> {
        if event != Event::Sample {
            self.last_fact = now;
        }
        match event {
            Event::StepEnd(replica) => self.on_step_end(now, replica),
            Event::KvTransfer(replica) => self.on_kv_transfer(now, replica),
            Event::Arrival(request) => self.on_arrival(now, request),
            Event::Accept(request) => self.on_accept(now, request),
            Event::Submit(request) => {
                self.recorder.reach_engine(request, now);
                let (spec, replica) = self.routed(request);
                self.segments.clear();
                self.workload.prompt_segments(request, &mut self.segments);
                self.submit(now, &spec, replica)
            }
            Event::Delivered(request) => self.release(now, request),
            Event::Schedule(replica) => self.on_schedule(now, replica),
            Event::Sample => self.on_sample(now),
        }
    }

    fn push(&mut self, time: SimTime, event: Event) -> Result<(), SimError> {
        self.queue.push(time, event.phase() as u8, event)
    }

    /// One request that follows from no other is pending at a time: an arrival brings the next one.
    fn issue_next_arrival(&mut self) -> Result<(), SimError> {
        match self.workload.next_arrival()? {
            Some(spec) => self.issue(spec),
            None => Ok(()),
        }
    }

    fn issue(&mut self, spec: RequestSpec) -> Result<(), SimError> {
        if self.recorder.requests.len() >= MAX_REQUESTS {
            let what = format!("the workload reached {MAX_REQUESTS} requests at {} ns", spec.arrival.0);
            return Err(SimError::TooLong {
                what: format!("{what}: set a number of requests or a shorter duration"),
            });
        }
        self.recorder.issue(spec);
        self.expected += 1;
        self.push(spec.arrival, Event::Arrival(spec.id))
    }

    fn on_arrival(&mut self, now: SimTime, id: RequestId) -> Result<(), SimError> {
        self.expected -= 1;
        let spec = self.recorder.requests[id.index()].spec;
        self.arm_sampling(now)?;
        match self.refusal(&spec) {
            RejectReason::None => self.admit(now, &spec)?,
            reason => {
                self.recorder.reject(id, reason, now);
                self.issue_follower(now)?;
            }
        }
        self.issue_next_arrival()
    }

    fn admit(&mut self, now: SimTime, spec: &RequestSpec) -> Result<(), SimError> {
        self.segments.clear();
        self.workload.prompt_segments(spec.id, &mut self.segments);
        let target = self.router.route(spec, &self.segments, &self.engines);
        let engine = match &mut self.ranks {
            Some(ranks) => ranks.choose(now, target, spec.id),
            None => target,
        };
        self.recorder.route(spec.id, engine, now);
        self.outstanding += 1;
        match &self.frontend {
            Some(frontend) => self.push(now.after(frontend.network())?, Event::Accept(spec.id)),
            None => self.submit(now, spec, engine),
        }
    }

    fn on_accept(&mut self, now: SimTime, id: RequestId) -> Result<(), SimError> {
        let (spec, engine) = self.routed(id);
        let servers = self.servers_of(engine);
        let frontend = self.frontend.as_mut().expect("Invariant: only API servers accept requests");
        let ready = frontend.accept(id, spec.prompt_tokens, servers, now)?;
        self.push(ready, Event::Submit(id))
    }

    /// Returns a request that was routed, and the engine it went to.
    fn routed(&self, id: RequestId) -> (RequestSpec, ReplicaId) {
        let record = &self.recorder.requests[id.index()];
        (record.spec, record.replica.expect("Invariant: a request that ended was routed"))
    }

    /// Returns the replica whose API servers stand before an engine: its data-parallel ranks share them.
    fn servers_of(&self, engine: ReplicaId) -> ReplicaId {
        ReplicaId(engine.0 / self.data_parallel_size)
    }

    /// Hands a request to its engine; `segments` holds its prompt.
    fn submit(&mut self, now: SimTime, spec: &RequestSpec, engine: ReplicaId) -> Result<(), SimError> {
        let max_tokens = self.granted_output(spec);
        let gauges = self.engines[engine.index()].scheduler().gauges();
        let score = self.scores.of(&ArrivingRequest { spec, now, replica: engine, gauges })?;
        let submission = Submission {
            id: spec.id,
            arrival: spec.arrival,
            priority: spec.priority,
            tie_rank: spec.tie_rank,
            session: spec.session,
            score,
            prompt_tokens: spec.prompt_tokens,
            max_tokens,
            segments: &self.segments,
            output_stream: OUTPUT_STREAM_BASE + u64::from(spec.id.0),
        };
        if let Some(pool) = &mut self.shared_kv_pool {
            self.engines[engine.index()].swap_shared_kv_pool(pool);
        }
        self.engines[engine.index()].submit(now, &submission);
        self.swap_shared_kv_pool(engine);
        let unit = self.ranks.as_ref().map_or(engine, |ranks| ranks.unit_of(engine));
        let hears = match self.ranks.as_mut().and_then(|ranks| ranks.group(unit)) {
            Some((group, _)) => {
                group.wake();
                !group.is_waiting()
            }
            None => self.engines[engine.index()].hears_arrivals(),
        };
        if hears { self.request_schedule(now, unit) } else { Ok(()) }
    }

    /// Tells why a request can never be served, if so (vLLM answers such requests with an error).
    fn refusal(&self, spec: &RequestSpec) -> RejectReason {
        if !self.limits.refuse_oversized {
            return RejectReason::None;
        }
        match &self.scheduler {
            SchedulerSpec::VllmV1(config) => vllm_refusal(config, spec),
            SchedulerSpec::Sglang(config) => sglang_refusal(config, spec),
            SchedulerSpec::Baseline(scheduler) => baseline_refusal(scheduler, spec),
        }
    }

    /// Returns the output that the engine lets a request have: SGLang's server cuts it to the room that is left.
    fn granted_output(&self, spec: &RequestSpec) -> u32 {
        match &self.scheduler {
            SchedulerSpec::Sglang(config) if self.limits.refuse_oversized => {
                spec.output_tokens.min(config.longest_request().saturating_sub(2 + spec.prompt_tokens))
            }
            _ => spec.output_tokens,
        }
    }

    fn request_schedule(&mut self, now: SimTime, unit: ReplicaId) -> Result<(), SimError> {
        if std::mem::replace(&mut self.schedule_pending[unit.index()], true) {
            return Ok(());
        }
        self.push(now, Event::Schedule(unit))
    }

    fn on_step_end(&mut self, now: SimTime, unit: ReplicaId) -> Result<(), SimError> {
        let mut context = EngineContext {
            timer: &mut self.timer,
            recorder: &mut self.recorder,
            ended: &mut self.ended,
            outputs: self.frontend.is_some().then_some(&mut self.outputs),
            work: &mut self.work,
        };
        match self.ranks.as_mut().and_then(|ranks| ranks.group(unit)) {
            Some((group, engines)) => group.complete(now, &mut self.engines[engines], &mut context)?,
            None => self.engines[unit.index()].complete(now, &mut context)?,
        }
        self.report(now, unit);
        self.settle_ended(now)?;
        if self.has_reached_its_steps(unit) {
            self.stopped = true;
            return Ok(());
        }
        if self.queue.is_alone_in_time() && !self.schedule_pending[unit.index()] {
            // Nothing can come between, so the detour through the queue is saved.
            return self.on_schedule(now, unit);
        }
        self.request_schedule(now, unit)
    }

    fn on_schedule(&mut self, now: SimTime, unit: ReplicaId) -> Result<(), SimError> {
        self.schedule_pending[unit.index()] = false;
        if self.outstanding == 0 && self.expected == 0 && self.in_lock_step() {
            // The ranks would spin on, with nothing to come.
            return Ok(());
        }
        self.swap_shared_kv_pool(unit);
        let mut context = EngineContext {
            timer: &mut self.timer,
            recorder: &mut self.recorder,
            ended: &mut self.ended,
            outputs: self.frontend.is_some().then_some(&mut self.outputs),
            work: &mut self.work,
        };
        let (wake, engines) =
            if let Some((group, engines)) = self.ranks.as_mut().and_then(|ranks| ranks.group(unit)) {
                let wake = group.run_until_blocked(now, &mut self.engines[engines.clone()], &mut context)?;
                (wake, &self.engines[engines])
            } else {
                let engine = &mut self.engines[unit.index()];
                (engine.run_until_blocked(now, &mut context)?, std::slice::from_ref(&*engine))
            };
        let depth = engines.first().map_or(1, EngineCore::depth);
        if self.has_reached_its_steps(unit) {
            self.stopped = true;
        }
        self.swap_shared_kv_pool(unit);
        self.await_kv_transfers(unit)?;
        if depth > 1 {
            // With batches in flight an engine reports as soon as one is launched; otherwise when it is done.
            self.report(now, unit);
        }
        self.settle_ended(now)?;
        match wake {
            Wake::At(time) => self.push(time, Event::StepEnd(unit)),
            Wake::OnArrival => Ok(()),
        }
    }

    fn in_lock_step(&self) -> bool {
        self.ranks.as_ref().is_some_and(|ranks| !ranks.groups().is_empty())
    }

    /// Lets data-parallel ranks tell their balancer how long their queues are.
    fn report(&mut self, now: SimTime, unit: ReplicaId) {
        let Some(ranks) = &mut self.ranks else { return };
        for engine in ranks.engines_of(unit) {
            ranks.report(now, engine, &self.engines[engine]);
        }
    }

    /// Tells whether an engine of a unit has made all its steps; SGLang's loop ends with the results of its last turn.
    fn has_reached_its_steps(&self, unit: ReplicaId) -> bool {
        let Some(limit) = self.limits.max_steps else { return false };
        let reached = |engine: usize| {
            let engine = &self.engines[engine];
            let in_turn = matches!(self.scheduler, SchedulerSpec::Sglang(_)) && engine.is_waiting();
            engine.num_steps().0 >= limit && !in_turn
        };
        self.ranks.as_ref().map_or_else(|| reached(unit.index()), |ranks| ranks.engines_of(unit).any(reached))
    }

    /// Lets go of requests that ended, or has their API servers deliver what was made first.
    fn settle_ended(&mut self, now: SimTime) -> Result<(), SimError> {
        if self.frontend.is_some() {
            return self.deliver(now);
        }
        for index in 0..self.ended.len() {
            self.release(now, self.ended[index])?;
        }
        self.ended.clear();
        Ok(())
    }

    fn deliver(&mut self, now: SimTime) -> Result<(), SimError> {
        self.ended.clear();
        // All output of one step is of one replica, whose ranks share its API servers.
        let Some(first) = self.outputs.first() else { return Ok(()) };
        let servers = self.servers_of(self.routed(first.request).1);
        let (Some(frontend), recorder) = (&mut self.frontend, &mut self.recorder) else { return Ok(()) };
        let queue = &mut self.queue;
        let mut pushed = Ok(());
        frontend.deliver(servers, now, &self.outputs, |id, at| {
            if recorder.deliver(id, now, at) {
                let event = Event::Delivered(id);
                let push = queue.push(at, event.phase() as u8, event);
                pushed = std::mem::replace(&mut pushed, Ok(())).and(push);
            }
        })?;
        self.outputs.clear();
        pushed
    }

    /// Frees the router's slot of a request that its client is done with, and lets a closed-loop client go on.
    fn release(&mut self, now: SimTime, id: RequestId) -> Result<(), SimError> {
        let (_, engine) = self.routed(id);
        let target = match &mut self.ranks {
            Some(ranks) => ranks.release(engine, id),
            None => engine,
        };
        self.router.release(target);
        self.outstanding -= 1;
        self.issue_follower(now)
    }

    /// Lets the client of a request that ended go on. A loop in which requests take no time would never let
    /// time advance.
    fn issue_follower(&mut self, now: SimTime) -> Result<(), SimError> {
        let Some(spec) = self.workload.next_after(now)? else { return Ok(()) };
        let (moment, count) = self.followers;
        self.followers = (now, if moment == now { count + 1 } else { 1 });
        if self.followers.1 > MAX_FOLLOWERS_AT_ONCE {
            return Err(SimError::TooLong {
                what: format!(
                    "clients sent {MAX_FOLLOWERS_AT_ONCE} requests at {} ns, each because another ended at once: \
                     requests that are refused or take no time need a think time",
                    now.0
                ),
            });
        }
        self.issue(spec)
    }

    /// Sampling sleeps while nothing is outstanding, and wakes at the next multiple of the interval.
    fn arm_sampling(&mut self, now: SimTime) -> Result<(), SimError> {
        if self.sample_pending {
            return Ok(());
        }
        self.sample_pending = true;
        let interval = self.sample_interval_ns;
        let next = (now.0 / interval).checked_add(1).and_then(|n| n.checked_mul(interval));
        self.push(SimTime(next.ok_or(SimError::ClockOverflow)?), Event::Sample)
    }

    fn on_sample(&mut self, now: SimTime) -> Result<(), SimError> {
        self.sample_pending = false;
        if self.queue.is_empty() {
            // The run is over: the last sample is taken at its last fact, which lies before this moment.
            return Ok(());
        }
        self.sample_all(now)?;
        if self.outstanding > 0 { self.arm_sampling(now) } else { Ok(()) }
    }

    fn sample_all(&mut self, now: SimTime) -> Result<(), SimError> {
        for (replica, engine) in self.engines.iter_mut().enumerate() {
            self.recorder.timeline.push(now.0, replica as u32, engine.sample(now))?;
        }
        Ok(())
    }

    fn check_nothing_is_stuck(&self) -> Result<(), SimError> {
        if matches!(self.scheduler, SchedulerSpec::Sglang(_)) {
            return self.check_no_engine_hangs();
        }
        if self.outstanding == 0 || !self.limits.refuse_oversized {
            return Ok(());
        }
        let mut stuck = Vec::new();
        for (replica, engine) in self.engines.iter().enumerate() {
            let Gauges { num_free, num_usable, .. } = engine.scheduler().gauges();
            engine.scheduler().visit_waiting(&mut |id| {
                if stuck.len() < MAX_NAMED {
                    stuck.push(format!(
                        "request {} waits on replica {replica} for blocks ({num_free} of {num_usable} are free)",
                        id.0
                    ));
                }
            });
        }
        Err(SimError::Deadlock {
            time_ns: self.last_fact.0,
            unfinished: self.outstanding,
            waiting_for: stuck.join("; "),
        })
    }

    /// Reports an SGLang engine whose queue nothing will ever move: it waits forever.
    fn check_no_engine_hangs(&self) -> Result<(), SimError> {
        for (replica, engine) in self.engines.iter().enumerate() {
            let scheduler = engine.scheduler();
            if !scheduler.has_requests() {
                continue;
            }
            let Gauges { num_free, num_usable, .. } = scheduler.gauges();
            let mut waiting = Vec::new();
            scheduler.visit_waiting(&mut |id| waiting.push(id.0));
            let first = waiting.first().map_or_else(|| "none".to_owned(), u32::to_string);
            return Err(SimError::EngineFailure {
                name: "hang",
                replica: replica as u32,
                time_ns: self.last_fact.0,
                detail: format!(
                    "{} requests wait and nothing will ever happen ({num_free} of {num_usable} KV slots are free); the \
                     first is request {first}, which is never admitted; enlarge the pool or shorten the output",
                    waiting.len()
                ),
            });
        }
        Ok(())
    }
}

/// Tells why SGLang would refuse a prompt, if so: it leaves at least six tokens beside it.
fn sglang_refusal(config: &SglangConfig, spec: &RequestSpec) -> RejectReason {
    let refused = |limit: u32| u64::from(spec.prompt_tokens) + 6 >= u64::from(limit);
    if refused(config.context_length) {
        RejectReason::ExceedsMaxModelLen
    } else if refused(config.max_total_tokens) {
        RejectReason::ExceedsKvCache
    } else {
        RejectReason::None
    }
}

/// Refuses step times that know more or other ranks than the plan has.
fn check_ranks(timer: &StepTimer, size: u32, lock_step: bool) -> Result<(), SimError> {
    let priced = timer.num_batches();
    if priced == 1 || (lock_step && priced == size as usize) {
        return Ok(());
    }
    let what = if lock_step { "ranks in lock step" } else { "ranks without lock step" };
    Err(SimError::Plan {
        path: "step_time.layout.data_parallel_size".into(),
        message: format!("was {priced}, but the plan has {size} {what} per replica"),
    })
}

/// Tells why vLLM would never serve a request, if so.
fn vllm_refusal(config: &SchedulerConfig, spec: &RequestSpec) -> RejectReason {
    let total = u64::from(spec.prompt_tokens) + u64::from(spec.output_tokens);
    if total > u64::from(config.max_model_len) {
        RejectReason::ExceedsMaxModelLen
    // The KV of the last token is never written.
    } else if config.blocks_of_request(total as u32 - 1) > u64::from(config.num_blocks - 1) {
        RejectReason::ExceedsKvCache
    } else if !config.enable_chunked_prefill && spec.prompt_tokens > config.token_budget() {
        RejectReason::ExceedsTokenBudget
    } else {
        RejectReason::None
    }
}

/// Tells why a baseline scheduler would never serve a request, if so.
fn baseline_refusal(scheduler: &BaselineSpec, spec: &RequestSpec) -> RejectReason {
    let total = u64::from(spec.prompt_tokens) + u64::from(spec.output_tokens);
    if total > u64::from(scheduler.max_model_len) {
        RejectReason::ExceedsMaxModelLen
    } else if scheduler.whole_prompt_budget().is_some_and(|budget| spec.prompt_tokens > budget) {
        RejectReason::ExceedsTokenBudget
    } else if scheduler.blocks_at_most(spec.prompt_tokens, total as u32) > scheduler.num_blocks {
        RejectReason::ExceedsKvCache
    } else {
        RejectReason::None
    }
}
