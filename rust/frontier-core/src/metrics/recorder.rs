//! Request records, steps and token runs.

use super::attribution::{Activity, Cause, HostMeter, Ledger, NUM_CAUSES};
use super::decision_log::DecisionLog;
use super::timeline::Timeline;
use super::transfers::TransferRecord;
use crate::ids::{ReplicaId, RequestId};
use crate::plan::OutputSpec;
use crate::rng::mix;
use crate::time::SimTime;
use crate::workload::RequestSpec;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RequestStatus {
    /// It got all its tokens.
    Finished = 0,
    /// It was refused at admission.
    Rejected = 1,
    /// The run stopped before it was done.
    Unfinished = 2,
    /// It was given up after it had been let in.
    Failed = 3,
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RejectReason {
    /// It was not.
    None = 0,
    /// Prompt and output exceed `max_model_len`.
    ExceedsMaxModelLen = 1,
    /// It needs more blocks than the empty pool has.
    ExceedsKvCache = 2,
    /// Chunked prefill is off and the prompt exceeds the token budget of a step.
    ExceedsTokenBudget = 3,
    /// As many requests of its class were under way as are allowed.
    QueueFull = 4,
    /// Its client gave up.
    TimedOut = 5,
    /// Its KV was lost with a replica.
    ReplicaLost = 6,
    /// No replica was in service, nor would be.
    NoReplica = 7,
}

/// Everything known about one request.
#[derive(Clone, Copy, Debug)]
pub struct RequestRecord {
    /// What arrived.
    pub spec: RequestSpec,
    /// Where it was routed.
    pub replica: Option<ReplicaId>,
    /// Start of the first step that carried it.
    pub scheduled: Option<SimTime>,
    /// End of the step that made its first token.
    pub first_token: Option<SimTime>,
    /// End of the step that made its last token.
    pub finished: Option<SimTime>,
    /// Tokens made.
    pub generated_tokens: u32,
    /// Prompt tokens found in the prefix cache at the first admission.
    pub cached_tokens: u32,
    /// How often it was preempted.
    pub preemptions: u32,
    /// How often it was started.
    pub attempts: u16,
    /// How it ended.
    pub status: RequestStatus,
    /// Why it was refused.
    pub reject_reason: RejectReason,
    /// ns per cause until the first token.
    pub ttft_causes: [u64; NUM_CAUSES],
    /// Its steps with drafts.
    pub num_drafts: u32,
    /// Drafts that were verified for it.
    pub draft_tokens: u32,
    /// Those of them that were accepted.
    pub accepted_tokens: u32,
    ledger: Ledger,
    /// The token run that may go on.
    run: Option<TokenRun>,
    digest: u64,
}

impl RequestRecord {
    /// Returns the ns per cause until the end.
    pub fn e2e_causes(&self) -> &[u64; NUM_CAUSES] {
        self.ledger.spent()
    }

    fn note_first_token(&mut self, now: SimTime, meter: HostMeter) {
        if self.first_token.is_none() {
            self.first_token = Some(now);
            self.ledger.settle(now, meter);
            self.ttft_causes = *self.ledger.spent();
            self.witness(6, now, 0);
        }
    }

    /// Mixes a fact of the request's life into its digest.
    #[inline]
    fn witness(&mut self, kind: u64, at: SimTime, value: u64) {
        self.digest = mix(mix(mix(self.digest ^ kind) ^ at.0) ^ value);
    }
}

/// The request got `tokens_per_step` tokens at the end of each step `first ..= last` of its replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenRun {
    /// The request.
    pub request: RequestId,
    /// First step, counted within the replica.
    pub first_step: u32,
    /// Last step.
    pub last_step: u32,
    /// Tokens of each of these steps, at least 1; more with accepted drafts.
    pub tokens_per_step: u32,
}

impl TokenRun {
    /// Stands in place of a step for the first token, where it was carried from a prefill.
    pub const CARRIED: u32 = u32::MAX;
}

/// Steps with drafts and what became of them, over a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verifications {
    /// Entry i: how often draft i was accepted.
    pub accepted: Vec<u64>,
    /// Entry i: how often there was a draft i.
    pub drafted: Vec<u64>,
}

/// Wide facts of one step.
#[derive(Clone, Copy, Debug, Default)]
pub struct StepRow {
    /// Start in ns.
    pub start_ns: u64,
    /// Prompt tokens, and tokens of chunks longer than one.
    pub prefill_tokens: u32,
    /// All other tokens.
    pub decode_tokens: u32,
    /// Requests in the batch.
    pub num_seqs: u32,
    /// Context after the step, summed over the batch.
    pub kv_tokens: u64,
    /// Length of RUNNING after scheduling.
    pub num_running: u32,
    /// Length of WAITING after scheduling.
    pub num_waiting: u32,
    /// Free blocks after scheduling.
    pub free_blocks: u32,
    /// Rows of the engine's token operators, padding to a captured size included.
    pub padded_tokens: u32,
    /// How its kernels were launched, as a `fidelity::GraphMode`.
    pub graph: u8,
}

/// Steps of one replica, in time order.
#[derive(Clone, Debug, Default)]
pub struct StepTable {
    /// End of each step in ns.
    pub end_ns: Vec<u64>,
    /// Wide rows, if asked for.
    pub rows: Vec<StepRow>,
}

/// Collects the facts of a run.
#[derive(Debug)]
pub struct Recorder {
    /// Requests in order of id.
    pub requests: Vec<RequestRecord>,
    /// Steps by replica.
    pub steps: Vec<StepTable>,
    /// Token runs, completed ones first come.
    pub runs: Vec<TokenRun>,
    /// Steps with drafts.
    pub verifications: Verifications,
    /// Hand-overs between replicas, in the order in which they were set up.
    pub transfers: Vec<TransferRecord>,
    /// The time line.
    pub timeline: Timeline,
    /// The decision log, if asked for.
    pub decision_log: Option<DecisionLog>,
    keep_step_rows: bool,
    num_ended: u64,
}

impl Recorder {
    /// Returns an empty record of `replicas` replicas.
    pub fn new(replicas: u32, output: &OutputSpec) -> Self {
        Self {
            requests: Vec::new(),
            steps: vec![StepTable::default(); replicas as usize],
            runs: Vec::new(),
            verifications: Verifications::default(),
            transfers: Vec::new(),
            timeline: Timeline::default(),
            decision_log: output.decision_log.as_ref().map(DecisionLog::new),
            keep_step_rows: output.steps,
            num_ended: 0,
        }
    }

    /// Tells whether wide step rows are kept.
    pub fn keeps_step_rows(&self) -> bool {
        self.keep_step_rows
    }

    /// Returns how many requests finished or were refused.
    pub fn num_ended(&self) -> u64 {
        self.num_ended
    }

    /// Enters a request that the workload issued, to arrive at `spec.arrival`.
    pub fn issue(&mut self, spec: RequestSpec) {
        debug_assert_eq!(
            spec.id.index(),
            self.requests.len(),
            "Invariant: requests are numbered in order of issue"
        );
        self.requests.push(RequestRecord {
            spec,
            replica: None,
            scheduled: None,
            first_token: None,
            finished: None,
            generated_tokens: 0,
            cached_tokens: 0,
            preemptions: 0,
            attempts: 1,
            status: RequestStatus::Unfinished,
            reject_reason: RejectReason::None,
            ttft_causes: [0; NUM_CAUSES],
            num_drafts: 0,
            draft_tokens: 0,
            accepted_tokens: 0,
            ledger: Ledger::open(spec.arrival),
            run: None,
            digest: 0,
        });
        let shape = u64::from(spec.prompt_tokens) << 32 | u64::from(spec.output_tokens);
        self.request(spec.id).witness(1, spec.arrival, shape);
    }

    /// Records the choice of the router.
    pub fn route(&mut self, id: RequestId, replica: ReplicaId, now: SimTime) {
        let record = self.request(id);
        record.replica = Some(replica);
        record.witness(2, now, u64::from(replica.0));
    }

    /// Returns a request that was routed, and the engine it went to.
    ///
    /// # Panics
    /// If it was not routed.
    #[inline]
    pub fn routed(&self, id: RequestId) -> (RequestSpec, ReplicaId) {
        let record = &self.requests[id.index()];
        (record.spec, record.replica.expect("Invariant: a request that ended was routed"))
    }

    /// Records that a request has passed the API servers and reached its engine.
    pub fn reach_engine(&mut self, id: RequestId, now: SimTime) {
        let record = self.request(id);
        record.ledger.reach_engine(now);
        record.witness(8, now, 0);
    }

    /// Records that the client has at `at` what step output of `now` brought a request. Returns whether that was its
    /// last token, from anyone or from the replica that hands it over.
    pub fn deliver(&mut self, id: RequestId, now: SimTime, at: SimTime) -> bool {
        let record = self.request(id);
        let ns = at.since(now).0;
        // Nothing else sets it: a request has its first token once.
        if record.first_token == Some(now) && record.ttft_causes[Cause::Delivery as usize] == 0 {
            record.ttft_causes[Cause::Delivery as usize] = ns;
            record.witness(9, at, 0);
        }
        let last = record.finished == Some(now);
        if last {
            record.ledger.deliver(ns);
            record.witness(10, at, 0);
        }
        last || record.ledger.is_handed_over_since(now)
    }

    /// Records a refusal.
    pub fn reject(&mut self, id: RequestId, reason: RejectReason, now: SimTime) {
        let record = self.request(id);
        record.status = RequestStatus::Rejected;
        record.reject_reason = reason;
        record.witness(3, now, reason as u64);
        self.num_ended += 1;
    }

    /// Returns the number of the present attempt at a request.
    #[inline]
    pub fn attempt(&self, id: RequestId) -> u16 {
        self.requests[id.index()].attempts
    }

    /// What was scheduled for the present attempt at a request no longer holds.
    pub fn next_attempt(&mut self, id: RequestId) {
        let record = self.request(id);
        record.attempts = record.attempts.saturating_add(1);
    }

    /// Records that requests start over: what they got is lost, and the time that it took.
    pub fn start_over(&mut self, ids: &[RequestId], now: SimTime) {
        let had_tokens = ids.iter().any(|&id| self.requests[id.index()].generated_tokens > 0);
        for &id in ids {
            let record = self.request(id);
            record.attempts = record.attempts.saturating_add(1);
            record.ledger.lose(now);
            record.ttft_causes = [0; NUM_CAUSES];
            record.first_token = None;
            record.generated_tokens = 0;
            record.run = None;
            record.witness(13, now, u64::from(record.attempts));
        }
        if had_tokens {
            self.runs.retain(|run| !ids.contains(&run.request));
        }
    }

    /// Records that a request which had been let in is given up.
    pub fn fail(&mut self, id: RequestId, reason: RejectReason, now: SimTime) {
        let record = self.request(id);
        record.status = RequestStatus::Failed;
        record.reject_reason = reason;
        record.ledger.lose(now);
        record.witness(14, now, reason as u64);
        self.num_ended += 1;
        self.close_run(id);
    }

    /// Records an admission in a step that starts at `start`, with `computed` tokens found in the cache.
    pub fn admit(&mut self, id: RequestId, start: SimTime, computed: u32) {
        let record = self.request(id);
        if record.scheduled.is_none() {
            record.scheduled = Some(start);
            record.cached_tokens = computed;
        }
        record.witness(4, start, u64::from(computed));
    }

    /// Records a preemption.
    pub fn preempt(&mut self, id: RequestId, at: SimTime, meter: HostMeter) {
        let record = self.request(id);
        record.preemptions += 1;
        record.ledger.enter(Activity::PreemptionWait, at, meter);
        record.witness(5, at, 0);
    }

    /// Records what a request does from `at` on.
    #[inline]
    pub fn enter(&mut self, id: RequestId, activity: Activity, at: SimTime, meter: HostMeter) {
        self.request(id).ledger.enter(activity, at, meter);
    }

    /// Records `num_tokens` tokens made by step `step` of the request's replica, which ended `now`.
    #[inline]
    pub fn tokens(&mut self, id: RequestId, step: u32, num_tokens: u32, now: SimTime, meter: HostMeter) {
        let record = &mut self.requests[id.index()];
        record.generated_tokens += num_tokens;
        match &mut record.run {
            Some(open) if open.last_step + 1 == step && open.tokens_per_step == num_tokens => {
                open.last_step = step;
            }
            run => {
                let new =
                    TokenRun { request: id, first_step: step, last_step: step, tokens_per_step: num_tokens };
                self.runs.extend(run.replace(new));
            }
        }
        record.note_first_token(now, meter);
    }

    /// Records a first token that no step of the request's replica made, but that came with its KV.
    pub fn carried_token(&mut self, id: RequestId, now: SimTime, meter: HostMeter) {
        let record = self.request(id);
        record.generated_tokens += 1;
        record.note_first_token(now, meter);
        let run = TokenRun {
            request: id,
            first_step: TokenRun::CARRIED,
            last_step: TokenRun::CARRIED,
            tokens_per_step: 1,
        };
        self.runs.push(run);
    }

    /// Records the outcome of a step with drafts.
    pub fn verify(&mut self, id: RequestId, num_drafts: u32, num_accepted: u32) {
        let record = self.request(id);
        record.num_drafts += 1;
        record.draft_tokens += num_drafts;
        record.accepted_tokens += num_accepted;
        let totals = &mut self.verifications;
        let longest = totals.drafted.len().max(num_drafts as usize);
        totals.drafted.resize(longest, 0);
        totals.accepted.resize(longest, 0);
        totals.drafted[..num_drafts as usize].iter_mut().for_each(|count| *count += 1);
        totals.accepted[..num_accepted as usize].iter_mut().for_each(|count| *count += 1);
    }

    /// Records that a request whose prompt is done goes on decoding, if it runs.
    #[inline]
    pub fn decode_goes_on(&mut self, id: RequestId, at: SimTime, meter: HostMeter) {
        self.request(id).ledger.decode_goes_on(at, meter);
    }

    /// Records that a replica is done with a request whose KV another one waits for.
    pub fn hand_over(&mut self, id: RequestId, now: SimTime, meter: HostMeter) {
        let record = self.request(id);
        record.ledger.enter(Activity::KvTransferWait, now, meter);
        record.ledger.change_replica();
        record.witness(12, now, 0);
    }

    /// Records that a request is complete.
    pub fn finish(&mut self, id: RequestId, now: SimTime, meter: HostMeter) {
        let record = self.request(id);
        record.finished = Some(now);
        record.status = RequestStatus::Finished;
        record.ledger.settle(now, meter);
        let tokens = u64::from(record.generated_tokens);
        record.witness(7, now, tokens);
        if record.num_drafts > 0 {
            record.witness(11, now, u64::from(record.draft_tokens) << 32 | u64::from(record.accepted_tokens));
        }
        self.num_ended += 1;
        self.close_run(id);
    }

    /// Records a step of `replica` and returns its number.
    #[inline]
    pub fn step(&mut self, replica: ReplicaId, end: SimTime, row: StepRow) -> u32 {
        let table = &mut self.steps[replica.index()];
        table.end_ns.push(end.0);
        if self.keep_step_rows {
            table.rows.push(row);
        }
        table.end_ns.len() as u32 - 1
    }

    /// Drops the steps of `replica` that end after `now`, which gave nobody anything. Returns how many.
    pub fn drop_steps_after(&mut self, replica: ReplicaId, now: SimTime) -> u64 {
        let table = &mut self.steps[replica.index()];
        let done = table.end_ns.partition_point(|&end| end <= now.0);
        let dropped = table.end_ns.len() - done;
        table.end_ns.truncate(done);
        if self.keep_step_rows {
            table.rows.truncate(done);
        }
        dropped as u64
    }

    /// Closes the books at the end of the run.
    pub fn close(&mut self) {
        self.transfers.retain(|transfer| !transfer.void);
        for index in 0..self.requests.len() {
            self.close_run(RequestId::from_index(index));
        }
    }

    /// Returns the digest of all requests' lives, independent of the order in which replicas were handled.
    pub fn digest(&self) -> u64 {
        self.requests.iter().fold(0x6469_6765_7374, |digest, record| mix(digest ^ record.digest))
    }

    fn close_run(&mut self, id: RequestId) {
        self.runs.extend(self.requests[id.index()].run.take());
    }

    #[inline]
    fn request(&mut self, id: RequestId) -> &mut RequestRecord {
        &mut self.requests[id.index()]
    }
}
