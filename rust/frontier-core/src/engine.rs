//! One engine: its scheduler, the batches in flight, and the time they take.
//!
//! `core_loop` says when batches are formed (`stage_loop` for pipelines of the baselines), `forming` prices and records them, `completion` takes their output,
//! and `pipeline` holds the stages that they pass.

mod sglang_loop;

use std::collections::VecDeque;

mod completion;
mod core_loop;
mod crash;
mod forming;
mod handovers;
mod kv_steps;
mod pipeline;
mod stage_loop;

use handovers::Handovers;
pub use handovers::{ComputedChunk, KvNews, Part};
use pipeline::Pipeline;

use crate::fidelity::{BatchShape, StepTimer};
use crate::frontend::Output;
use crate::ids::{ReplicaId, RequestId};
use crate::kvcache::BlockHash;
use crate::kvcache::tiers::TierCounters;
use crate::metrics::{HostMeter, Recorder, ReplicaSample};
use crate::plan::{KvTiersSpec, LimitSpec, SchedulerSpec};
use crate::scheduler::{BatchScheduler, KvStep, Scheduler, SchedulerOutput, StepOutcome, Submission};
use crate::time::SimTime;
use crate::workload::Segment;
use sglang_loop::SglangLoop;

/// When an engine wants to be called again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// When the awaited batch is done.
    At(SimTime),
    /// When a request arrives, and no earlier than it asked for already.
    OnArrival,
}

/// What an engine needs from its surroundings while it runs.
#[derive(Debug)]
pub struct EngineContext<'a> {
    /// How long batches take.
    pub timer: &'a mut StepTimer,
    /// Where facts go.
    pub recorder: &'a mut Recorder,
    /// Receives the requests that end.
    pub ended: &'a mut Vec<RequestId>,
    /// Receives the tokens that are made, where API servers wait for them.
    pub outputs: Option<&'a mut Vec<Output>>,
    /// Grows with the work done, in requests handled.
    pub work: &'a mut u64,
}

/// A batch that was formed and whose output was not processed yet.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    output: SchedulerOutput,
    end: SimTime,
    /// Number of the step within the replica; none for an empty batch.
    step: Option<u32>,
    /// The replica's totals after this step.
    meter: HostMeter,
    /// First part of its log record.
    record: Option<String>,
}

impl InFlight {
    /// The batch computes something or preempted someone.
    fn changed(&self) -> bool {
        !self.output.scheduled.is_empty() || !self.output.preempted.is_empty()
    }

    /// The batch computes something.
    pub(crate) fn executes(&self) -> bool {
        !self.output.scheduled.is_empty()
    }
}

/// One engine on simulated time.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each says something else about the loop")]
pub struct EngineCore {
    replica: ReplicaId,
    scheduler: Scheduler,
    depth: usize,
    /// Batches in flight, oldest first, the awaited one not included.
    queue: VecDeque<InFlight>,
    awaited: Option<InFlight>,
    /// Whether the batch formed last, before waiting, changed anything.
    last_formed_changed: bool,
    fruitless_rounds: u8,
    /// Nothing changes until a request arrives, although requests are waiting.
    stalled: bool,
    /// A request came, or news of one, since a batch was formed last.
    untried: bool,
    /// The stages of layers that batches pass.
    pipeline: Pipeline,
    meter: HostMeter,
    counters: ReplicaSample,
    counted_until: SimTime,
    num_steps: u64,
    num_empty_steps: u64,
    draft_ns: u64,
    prefix_lookup_tokens: u64,
    prefix_hit_tokens: u64,
    livelock_steps: Option<u64>,
    steps_without_progress: u64,
    /// SGLang's loop in place of vLLM's.
    sglang: Option<SglangLoop>,
    /// Batches are formed whenever fewer are under way than there are stages.
    fills_stages: bool,
    /// What the real engine does wrong without stopping is an error.
    refuses_failures: bool,
    shape: BatchShape,
    /// The tiers of KV below the device, if any.
    kv_tiers: Option<Box<KvTiersSpec>>,
    /// What tiers did that went down with the engine.
    lost_kv_tiers: Option<((u64, u64), Vec<TierCounters>)>,
    /// What moving KV does to the batch drafted last.
    kv_step: Option<KvStep>,
    outcome: StepOutcome,
    handovers: Handovers,
    /// Steps take so many times as long as they should.
    slowdown: f64,
    /// Ends of steps that will be announced, although the steps were dropped.
    stale_ends: u32,
    spare: Vec<InFlight>,
}

impl EngineCore {
    /// Returns an idle engine; `shape` is an empty batch of its step timer.
    pub fn new(replica: ReplicaId, scheduler: &SchedulerSpec, shape: BatchShape, limits: &LimitSpec) -> Self {
        Self {
            replica,
            depth: scheduler.queue_depth(),
            scheduler: Scheduler::new(scheduler),
            queue: VecDeque::new(),
            awaited: None,
            last_formed_changed: false,
            fruitless_rounds: 0,
            stalled: false,
            untried: false,
            pipeline: Pipeline::new(scheduler.pipeline_parallel_size() as usize),
            meter: HostMeter::default(),
            counters: ReplicaSample::default(),
            counted_until: SimTime::ZERO,
            num_steps: 0,
            num_empty_steps: 0,
            draft_ns: 0,
            prefix_lookup_tokens: 0,
            prefix_hit_tokens: 0,
            livelock_steps: limits.livelock_steps,
            steps_without_progress: 0,
            sglang: SglangLoop::new(scheduler, limits),
            fills_stages: matches!(scheduler, SchedulerSpec::Baseline(_)) && scheduler.queue_depth() > 1,
            refuses_failures: limits.refuse_oversized,
            shape,
            kv_tiers: None,
            lost_kv_tiers: None,
            kv_step: None,
            outcome: StepOutcome::default(),
            handovers: Handovers::default(),
            slowdown: 1.0,
            stale_ends: 0,
            spare: Vec::new(),
        }
    }

    /// Returns the scheduler.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// Returns how many batches the engine keeps in flight.
    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    /// Says whether the next batches hold prompts back while others decode.
    pub(crate) fn throttle_prefills(&mut self, throttle: bool) {
        self.scheduler.throttle_prefills(throttle);
    }

    /// Tells whether the engine waits for a batch to end.
    pub fn is_waiting(&self) -> bool {
        self.awaited.is_some()
    }

    /// Returns the number of non-empty and of empty batches.
    pub fn num_steps(&self) -> (u64, u64) {
        (self.num_steps, self.num_empty_steps)
    }

    /// Returns the time that steps spent drafting, in ns.
    pub fn draft_ns(&self) -> u64 {
        self.draft_ns
    }

    /// Returns prompt tokens looked up and found in the prefix cache, over first admissions.
    pub fn prefix_tokens(&self) -> (u64, u64) {
        (self.prefix_lookup_tokens, self.prefix_hit_tokens)
    }

    /// Returns the share of blocks held by requests.
    pub fn kv_usage(&self) -> f64 {
        let gauges = self.scheduler.gauges();
        f64::from(gauges.used()) / f64::from(gauges.num_usable)
    }

    /// Returns how many leading tokens of a prompt are cached here; `hashes` are those of its full blocks.
    pub fn cached_prefix(&self, segments: &[Segment], hashes: &[BlockHash]) -> u32 {
        self.scheduler.cached_prefix(segments, hashes)
    }

    /// Adds a request to the waiting queue, `now`.
    pub fn submit(&mut self, now: SimTime, submission: &Submission<'_>) {
        self.stalled = false;
        self.untried = true;
        if let Some(loads) = self.scheduler.kv_loads_mut() {
            loads.set_now(now);
        }
        if let Some(turns) = &mut self.sglang {
            turns.arrived = true;
        }
        self.scheduler.add_request(submission);
    }

    /// Returns the gauges and counters as of `now`.
    pub fn sample(&mut self, now: SimTime) -> ReplicaSample {
        self.count_blocks(now);
        let gauges = self.scheduler.gauges();
        let peak = std::mem::replace(&mut self.counters.peak_used_blocks, gauges.used());
        ReplicaSample {
            peak_used_blocks: peak,
            num_running: gauges.num_running,
            num_waiting: gauges.num_waiting,
            used_blocks: gauges.used(),
            busy_ns: self.pipeline.busy_ns(now),
            ..self.counters
        }
    }

    fn used_blocks(&self) -> u32 {
        self.scheduler.gauges().used()
    }

    /// Integrates the used blocks up to `now`; called before they change.
    fn count_blocks(&mut self, now: SimTime) {
        let elapsed = now.since(self.counted_until).0;
        self.counters.used_block_ns += u128::from(self.used_blocks()) * u128::from(elapsed);
        self.counted_until = now;
    }
}
