//! A run: owns all state, and handles every event in one exhaustive `match`.

mod dynamics;
mod encoding;
mod journey;
mod leaving;
mod moving;
mod path;
mod pools;
mod transport;

use std::sync::Arc;

use rustc_hash::FxHashMap;

use journey::Controller;
use transport::Transport;

use crate::cluster::{Cluster, KvTierTotals, Surroundings};
use crate::engine::{EngineCore, Wake};
use crate::error::SimError;
use crate::event::{Event, Phase};
use crate::fidelity::OperatorTrust;
use crate::ids::{ReplicaId, RequestId};
use crate::kernel::EventQueue;
use crate::metrics::{Recorder, RejectReason, RequestStatus};
use crate::plan::{AdmissionSpec, DynamicsSpec, LimitSpec, Plan, Policy};
use crate::predictor::Predictor;
use crate::rng::RngStreams;
use crate::scores::ArrivalPolicy;
use crate::time::SimTime;
use crate::workload::{RequestSpec, Segment, TraceColumns, Workload};

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
    /// How the real engine fails here; only in runs for which that is an outcome (`limits.refuse_oversized` off).
    pub failure: Option<String>,
    /// Of each cluster, in the order of the plan.
    pub clusters: Vec<ClusterTotals>,
}

impl Totals {
    /// Returns the non-empty steps of all engines.
    pub fn steps(&self) -> u64 {
        self.clusters.iter().map(|cluster| cluster.steps).sum()
    }
}

/// Totals of a cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterTotals {
    /// Its name.
    pub name: String,
    /// Engines: all data-parallel ranks of all replicas.
    pub engines: u32,
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
    /// What step times rest on, operator by operator, over all replicas.
    pub trust: Vec<OperatorTrust>,
    /// What the tiers of KV did, over all replicas; the device first. Empty without tiers.
    pub kv_tiers: Vec<KvTierTotals>,
}

impl ClusterTotals {
    fn of(cluster: &mut Cluster) -> Self {
        let trust = cluster.trust();
        let engines = cluster.engines();
        let sum = |part: fn(&EngineCore) -> u64| engines.iter().map(part).sum();
        Self {
            name: cluster.name().to_owned(),
            engines: engines.len() as u32,
            steps: sum(|engine| engine.num_steps().0),
            empty_steps: sum(|engine| engine.num_steps().1),
            draft_ns: sum(EngineCore::draft_ns),
            prefix_lookup_tokens: sum(|engine| engine.prefix_tokens().0),
            prefix_hit_tokens: sum(|engine| engine.prefix_tokens().1),
            dummy_steps: cluster.num_dummies(),
            data_parallel_size: cluster.data_parallel_size(),
            num_blocks: cluster.scheduler().num_blocks(),
            step_time: cluster.step_time(),
            trust,
            kv_tiers: cluster.kv_tier_totals(),
        }
    }
}

/// A run in progress.
#[derive(Debug)]
pub struct Simulation {
    limits: LimitSpec,
    workload: Workload,
    clusters: Vec<Cluster>,
    /// The cluster of each engine.
    cluster_of: Vec<u32>,
    /// The way through several clusters, where there is one.
    controller: Option<Controller>,
    admission: Option<AdmissionSpec>,
    /// Requests of each class that are under way.
    outstanding_of_class: Vec<u64>,
    dynamics: Option<DynamicsSpec>,
    /// Until when each autoscaler leaves things as they are.
    scaled_until: Vec<SimTime>,
    /// Requests for which no replica took requests, in order.
    unplaced: Vec<RequestId>,
    /// Requests whose clients will try again.
    retrying: u64,
    /// How often clients have tried, those that did more than once.
    tries: FxHashMap<RequestId, u16>,
    /// Pending looks of autoscalers.
    ticks: u64,
    /// Changes that are on, by number.
    changes_on: Vec<u32>,
    /// The links that transfers share, where there are any.
    transport: Option<Transport>,
    around: Surroundings,
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
    stopped: bool,
    /// How the real engine fails here, where that is an outcome.
    failure: Option<SimError>,
    /// Scratch.
    segments: Vec<Segment>,
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
        let (mut clusters, mut cluster_of) = (Vec::with_capacity(plan.clusters.len()), Vec::new());
        for (number, spec) in plan.clusters.iter().enumerate() {
            let first = cluster_of.len() as u32;
            let path = format!("clusters[{number}]");
            let cluster = Cluster::new(spec, &path, first, &plan.limits, predictors, &streams)?;
            cluster_of.resize(cluster_of.len() + cluster.engines().len(), number as u32);
            clusters.push(cluster);
        }
        let first = clusters.iter().map(Cluster::first_engine).collect();
        let transport = plan.network.as_ref().map(|spec| Transport::new(spec, plan, first));
        let mut simulation = Self {
            limits: plan.limits.clone(),
            workload: workload_of(plan, trace, &streams)?,
            controller: (!plan.paths.is_empty()).then(|| Controller::new(&plan.paths)),
            outstanding_of_class: vec![0; plan.admission.as_ref().map_or(0, |spec| spec.classes.len())],
            admission: plan.admission.clone(),
            scaled_until: vec![SimTime::ZERO; plan.dynamics.as_ref().map_or(0, |spec| spec.autoscale.len())],
            dynamics: plan.dynamics.clone(),
            unplaced: Vec::new(),
            retrying: 0,
            tries: FxHashMap::default(),
            ticks: 0,
            changes_on: Vec::new(),
            transport: transport.transpose()?,
            clusters,
            around: Surroundings {
                queue: EventQueue::new(),
                recorder: Recorder::new(cluster_of.len() as u32, &plan.output),
                ended: Vec::new(),
                outputs: Vec::new(),
                work: 0,
            },
            cluster_of,
            sample_interval_ns: plan.output.timeline_interval_ns,
            sample_pending: false,
            outstanding: 0,
            expected: 0,
            last_fact: SimTime::ZERO,
            followers: (SimTime::ZERO, 0),
            stopped: false,
            failure: None,
            segments: Vec::new(),
        };
        if let Some(controller) = &simulation.controller {
            for (cluster, part) in controller.parts() {
                simulation.clusters[cluster].take_part(part);
            }
        }
        simulation.schedule_changes()?;
        simulation.issue_next_arrival()?;
        Ok(simulation)
    }

    /// Lets the caller's own policy rank requests on arrival, which the plan must ask for (`callable`).
    ///
    /// # Errors
    /// [`SimError::Plan`] if the plan has another policy.
    pub fn rank_arrivals_by(&mut self, policy: Box<dyn ArrivalPolicy>) -> Result<(), SimError> {
        let mut asking = self
            .clusters
            .iter_mut()
            .filter(|cluster| matches!(cluster.scheduler().policy(), Policy::Callable(_)));
        match (asking.next(), asking.next()) {
            (Some(cluster), None) => {
                cluster.rank_arrivals_by(policy);
                Ok(())
            }
            (None, _) => Err(SimError::Plan {
                path: "clusters[0].scheduler.policy".into(),
                message: "was not 'callable', as a policy of the caller's own needs".into(),
            }),
            (Some(_), Some(_)) => Err(SimError::Plan {
                path: "clusters".into(),
                message: "had several schedulers whose policy is 'callable', must have one".into(),
            }),
        }
    }

    /// Handles events until about `max_work` of them, or of requests in their batches, are handled. Returns
    /// whether the run is over.
    ///
    /// # Errors
    /// Any [`SimError`]; the run is then over and its state meaningless.
    pub fn run_slice(&mut self, max_work: u64) -> Result<bool, SimError> {
        let enough = self.around.work.saturating_add(max_work);
        while !self.stopped && self.around.work < enough {
            self.around.work += 1;
            let handled = if let Some((now, event)) = self.around.queue.pop() {
                self.handle(now, event)
            } else if self.fail_unplaced()? {
                Ok(())
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
            ended: self.around.recorder.num_ended(),
            total: self.workload.total(),
            events: self.around.queue.popped(),
        }
    }

    /// Checks that no engine has lost a block or a request.
    ///
    /// # Errors
    /// [`SimError::Invariant`].
    pub fn check_integrity(&self) -> Result<(), SimError> {
        self.clusters.iter().try_for_each(Cluster::check_integrity)
    }

    /// Closes the run: checks its books and returns what it recorded.
    ///
    /// # Errors
    /// [`SimError::Invariant`] if a request or a block was lost.
    pub fn finish(mut self) -> Result<(Recorder, Totals), SimError> {
        self.check_integrity()?;
        if self.outstanding == 0 && self.around.queue.is_empty() {
            self.check_books()?;
        }
        let now = self.last_fact;
        self.sample_all(now)?;
        self.around.recorder.close();
        let mut totals = Totals {
            digest: self.around.recorder.digest(),
            end: now,
            events: self.around.queue.popped(),
            failure: self.failure.map(|failure| failure.to_string()),
            clusters: Vec::with_capacity(self.clusters.len()),
        };
        for cluster in &mut self.clusters {
            totals.clusters.push(ClusterTotals::of(cluster));
        }
        Ok((self.around.recorder, totals))
    }

    /// Checks that nobody still counts a request as under way, when none is.
    fn check_books(&self) -> Result<(), SimError> {
        let under_way = [
            ("front door", self.retrying + self.outstanding_of_class.iter().sum::<u64>()),
            ("queue for replicas", self.unplaced.len() as u64),
            ("controller", self.controller.as_ref().map_or(0, Controller::num_under_way)),
            ("routers", self.clusters.iter().map(Cluster::num_routed).sum()),
        ];
        match under_way.into_iter().find(|&(_, count)| count > 0) {
            None => Ok(()),
            Some((who, count)) => Err(SimError::Invariant {
                what: format!("{who}: {count} requests are under way after the last one ended"),
            }),
        }
    }

    fn handle(&mut self, now: SimTime, event: Event) -> Result<(), SimError> {
        if !self.is_current(event) {
            return Ok(());
        }
        if !matches!(event.phase(), Phase::Sample)
            && !matches!(
                event,
                Event::FlowEnd
                    | Event::Change(_)
                    | Event::ChangeOver(_)
                    | Event::InService(_)
                    | Event::Autoscale(_)
            )
        {
            self.last_fact = now;
        }
        match event {
            Event::StepEnd(unit) => self.on_step_end(now, unit),
            Event::KvTransfer(engine) => {
                let cluster = self.cluster_of[engine.index()] as usize;
                self.clusters[cluster].on_kv_transfer(now, engine, &mut self.around)
            }
            Event::FlowEnd => self.on_flow_end(now),
            Event::SettleFlows => self.arm_flows(),
            Event::TransferStart(request, _) => self.on_transfer_start(now, request),
            Event::TransferEnd(request, _) => self.on_transfer_end(now, request),
            Event::HandOver(request, _) => self.on_hand_over(now, request),
            Event::Arrival(request) => self.on_arrival(now, request),
            Event::Accept(request, _) => self.on_accept(now, request),
            Event::Submit(request, _) => self.on_submit(now, request),
            Event::Delivered(request, _) => self.release(now, request),
            Event::Timeout(request, _) => self.on_timeout(now, request),
            Event::Retry(request) => self.on_retry(now, request),
            Event::Change(number) => self.on_change(now, number),
            Event::ChangeOver(number) => self.on_change_over(now, number),
            Event::InService(engine) => self.on_in_service(now, engine),
            Event::Autoscale(number) => self.on_autoscale(now, number),
            Event::Schedule(unit) => self.on_schedule(now, unit),
            Event::Sample => self.on_sample(now),
        }
    }

    /// Tells whether an event still means something: those of requests that started over, or were given up, do not.
    #[inline]
    fn is_current(&self, event: Event) -> bool {
        let (Event::TransferStart(id, attempt)
        | Event::TransferEnd(id, attempt)
        | Event::HandOver(id, attempt)
        | Event::Accept(id, attempt)
        | Event::Submit(id, attempt)
        | Event::Delivered(id, attempt)
        | Event::Timeout(id, attempt)) = event
        else {
            return true;
        };
        let record = &self.around.recorder.requests[id.index()];
        if matches!(event, Event::Timeout(..)) {
            return attempt == self.try_of(id) && record.status == RequestStatus::Unfinished;
        }
        let over = match event {
            // The last token, or that of a prefill, is on its way to the client after the engine is done.
            Event::Delivered(..) => record.status == RequestStatus::Failed,
            _ => record.status != RequestStatus::Unfinished,
        };
        record.attempts == attempt && !over
    }

    /// One request that follows from no other is pending at a time: an arrival brings the next one.
    fn issue_next_arrival(&mut self) -> Result<(), SimError> {
        match self.workload.next_arrival()? {
            Some(spec) => self.issue(spec),
            None => Ok(()),
        }
    }

    fn issue(&mut self, spec: RequestSpec) -> Result<(), SimError> {
        if self.around.recorder.requests.len() >= MAX_REQUESTS {
            let what = format!("the workload reached {MAX_REQUESTS} requests at {} ns", spec.arrival.0);
            return Err(SimError::TooLong {
                what: format!("{what}: set a number of requests or a shorter duration"),
            });
        }
        self.around.recorder.issue(spec);
        self.expected += 1;
        self.around.push(spec.arrival, Event::Arrival(spec.id))
    }

    fn on_arrival(&mut self, now: SimTime, id: RequestId) -> Result<(), SimError> {
        self.expected -= 1;
        let spec = self.around.recorder.requests[id.index()].spec;
        self.arm_sampling(now)?;
        match self.refusal(&spec) {
            RejectReason::None => self.knock(now, id)?,
            reason => {
                self.around.recorder.reject(id, reason, now);
                self.issue_follower(now)?;
            }
        }
        self.issue_next_arrival()
    }

    /// A request is at the front door.
    fn knock(&mut self, now: SimTime, id: RequestId) -> Result<(), SimError> {
        let spec = self.around.recorder.requests[id.index()].spec;
        self.arm_sampling(now)?;
        if self.let_in(&spec) {
            self.outstanding += 1;
            self.arm_timeout(now, id)?;
            return self.admit(now, &spec);
        }
        if self.retry(now, id)? {
            return Ok(());
        }
        self.around.recorder.reject(id, RejectReason::QueueFull, now);
        self.issue_follower(now)
    }

    fn on_accept(&mut self, now: SimTime, id: RequestId) -> Result<(), SimError> {
        let (spec, engine) = self.around.recorder.routed(id);
        if !self.cluster(engine).is_up(engine) {
            return self.bounce(now, id);
        }
        let ready = self.cluster(engine).accept(now, &spec, engine)?;
        self.around.push_for(ready, id, Event::Submit)
    }

    fn on_submit(&mut self, now: SimTime, id: RequestId) -> Result<(), SimError> {
        let (spec, engine) = self.around.recorder.routed(id);
        if !self.cluster(engine).is_up(engine) {
            return self.bounce(now, id);
        }
        self.around.recorder.reach_engine(id, now);
        if self.controller.as_ref().is_some_and(|controller| controller.is_encoded(id)) {
            self.fill_encoder_segments(&spec);
        } else {
            self.segments.clear();
            self.workload.prompt_segments(id, &mut self.segments);
        }
        self.submit(now, &spec, engine)
    }

    /// Returns the cluster of an engine, or of a unit of engines.
    fn cluster(&mut self, engine: ReplicaId) -> &mut Cluster {
        &mut self.clusters[self.cluster_of[engine.index()] as usize]
    }

    fn on_step_end(&mut self, now: SimTime, unit: ReplicaId) -> Result<(), SimError> {
        let number = self.cluster_of[unit.index()] as usize;
        if !self.clusters[number].on_step_end(now, unit, &mut self.around)? {
            return Ok(());
        }
        self.settle_ended(now, number)?;
        let cluster = &mut self.clusters[number];
        if cluster.has_reached_its_steps(unit) {
            self.stopped = true;
            return Ok(());
        }
        if cluster.after_step(now, unit, &mut self.around)? {
            // Nothing can come between, so the detour through the queue is saved.
            return self.on_schedule(now, unit);
        }
        Ok(())
    }

    fn on_schedule(&mut self, now: SimTime, unit: ReplicaId) -> Result<(), SimError> {
        let number = self.cluster_of[unit.index()] as usize;
        let idle = self.outstanding == 0 && self.expected == 0;
        let wake = self.clusters[number].on_schedule(now, unit, idle, &mut self.around)?;
        self.stopped |= self.clusters[number].has_reached_its_steps(unit);
        self.settle_ended(now, number)?;
        self.settle_handovers(now, unit)?;
        self.settle_drains(now, number)?;
        match wake {
            Wake::At(time) => self.around.push(time, Event::StepEnd(unit)),
            Wake::OnArrival => Ok(()),
        }
    }

    /// Lets go of requests that ended in a cluster, or has its API servers deliver what was made first.
    fn settle_ended(&mut self, now: SimTime, cluster: usize) -> Result<(), SimError> {
        if self.clusters[cluster].has_servers() {
            self.release_carried(now)?;
            return self.clusters[cluster].deliver(now, &mut self.around);
        }
        for index in 0..self.around.ended.len() {
            self.release(now, self.around.ended[index])?;
        }
        self.around.ended.clear();
        Ok(())
    }

    /// Lets requests go on at once whose first token is carried: nobody but the next replica is told of it.
    fn release_carried(&mut self, now: SimTime) -> Result<(), SimError> {
        for index in 0..self.around.ended.len() {
            let id = self.around.ended[index];
            if self.controller.as_ref().is_some_and(|controller| controller.carries(id)) {
                self.release(now, id)?;
            }
        }
        Ok(())
    }

    /// Frees the router's slot of a request that its client is done with, and lets a closed-loop client go on.
    fn release(&mut self, now: SimTime, id: RequestId) -> Result<(), SimError> {
        let (_, engine) = self.around.recorder.routed(id);
        self.cluster(engine).release(engine, id);
        self.settle_drains(now, self.cluster_of[engine.index()] as usize)?;
        if self.go_on(now, id, engine)? {
            return Ok(());
        }
        self.leave(now, id)
    }

    /// A request is no longer under way.
    fn leave(&mut self, now: SimTime, id: RequestId) -> Result<(), SimError> {
        let spec = self.around.recorder.requests[id.index()].spec;
        self.let_out(&spec);
        self.outstanding -= 1;
        if let Some(controller) = &mut self.controller {
            controller.encoding.remove(&id);
        }
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
        self.around.push(SimTime(next.ok_or(SimError::ClockOverflow)?), Event::Sample)
    }

    fn on_sample(&mut self, now: SimTime) -> Result<(), SimError> {
        self.sample_pending = false;
        if self.around.queue.is_empty() {
            // The run is over: the last sample is taken at its last fact, which lies before this moment.
            return Ok(());
        }
        let changes = self.dynamics.is_some() || self.admission.is_some();
        if changes && self.outstanding == 0 && self.expected == 0 && self.retrying == 0 {
            // What is to come are changes that no request sees.
            return Ok(());
        }
        self.sample_all(now)?;
        if self.outstanding > 0 { self.arm_sampling(now) } else { Ok(()) }
    }

    fn sample_all(&mut self, now: SimTime) -> Result<(), SimError> {
        self.clusters.iter_mut().try_for_each(|cluster| cluster.sample(now, &mut self.around.recorder))
    }

    fn check_nothing_is_stuck(&self) -> Result<(), SimError> {
        for cluster in &self.clusters {
            cluster.check_no_engine_hangs(self.last_fact)?;
        }
        if self.outstanding == 0 || !self.limits.refuse_oversized {
            return Ok(());
        }
        let mut stuck = Vec::new();
        for cluster in &self.clusters {
            cluster.visit_stuck(&mut |_, sentence| {
                if stuck.len() < MAX_NAMED {
                    stuck.push(sentence);
                }
            });
        }
        Err(SimError::Deadlock {
            time_ns: self.last_fact.0,
            unfinished: self.outstanding,
            waiting_for: stuck.join("; "),
        })
    }
}

/// Returns the workload of a plan, whose requests ask for models that it serves.
fn workload_of(
    plan: &Plan,
    trace: Option<Arc<TraceColumns>>,
    streams: &RngStreams,
) -> Result<Workload, SimError> {
    let workload = Workload::new(&plan.workload, trace, streams)?;
    let (asked, served) = (workload.num_models(), plan.paths.len().max(1));
    if asked > served {
        return Err(SimError::Plan {
            path: "workload".into(),
            message: format!("asked for {asked} models, but there are paths for {served}"),
        });
    }
    Ok(workload)
}
