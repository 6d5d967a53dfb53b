//! Where a request's time went: every nanosecond from arrival to completion belongs to one named cause.
//!
//! A request is in one activity at a time, and only changes of activity cost anything. Within an activity,
//! host time and time in mixed steps come out of two running totals of its replica, read when the activity
//! begins and when it ends. So causes add up exactly, whatever the batch size.

use crate::time::SimTime;

/// Number of [`Cause`]s.
pub const NUM_CAUSES: usize = 16;

/// Names for stretches of a request's latency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Cause {
    /// From the client to the engine: network, API server, tokenisation.
    Ingress,
    /// From the engine's queue to the first step that carries the request.
    Queue,
    /// Steps that compute its prompt.
    Prefill,
    /// Admitted, prompt unfinished, but left out of a step.
    ChunkWait,
    /// Its decode steps that carry no prefill.
    Decode,
    /// Its decode steps that also carry someone's prefill.
    DecodeMixed,
    /// Prompt done, but left out of a step.
    DecodeWait,
    /// Preempted, until it is in a step again.
    PreemptionWait,
    /// Steps that recompute what a preemption dropped.
    PreemptionRedo,
    /// Host time of its steps that the GPU did not hide.
    Cpu,
    /// From the step that made a token to the client: detokenisation, API server, network.
    Delivery,
    /// KV on its way between tiers: put aside until a load is done, and the part of its steps that loads and
    /// copies held up.
    KvLoad,
    /// Prompt done on one replica, until its KV begins to move to the next: the proxy between them, and the wait for
    /// blocks and for a step there.
    KvTransferWait,
    /// Its KV on its way from replica to replica, as far as nothing else hides it.
    KvTransfer,
    /// Attempts that came to nothing: their replica was lost, or their client gave up and tried again.
    Lost,
    /// Steps that encode what comes before its prompt (images), and the way of the embeddings to the next engine.
    Encode,
}

impl Cause {
    /// All causes, in column order.
    pub const ALL: [Self; NUM_CAUSES] = [
        Self::Ingress,
        Self::Queue,
        Self::Prefill,
        Self::ChunkWait,
        Self::Decode,
        Self::DecodeMixed,
        Self::DecodeWait,
        Self::PreemptionWait,
        Self::PreemptionRedo,
        Self::Cpu,
        Self::Delivery,
        Self::KvLoad,
        Self::KvTransferWait,
        Self::KvTransfer,
        Self::Lost,
        Self::Encode,
    ];

    /// Returns the name used in columns and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Queue => "queue",
            Self::Prefill => "prefill",
            Self::ChunkWait => "chunk_wait",
            Self::Decode => "decode",
            Self::DecodeMixed => "decode_mixed",
            Self::DecodeWait => "decode_wait",
            Self::PreemptionWait => "preemption_wait",
            Self::PreemptionRedo => "preemption_redo",
            Self::Cpu => "cpu",
            Self::Delivery => "delivery",
            Self::KvLoad => "kv_load",
            Self::KvTransferWait => "kv_transfer_wait",
            Self::KvTransfer => "kv_transfer",
            Self::Lost => "lost",
            Self::Encode => "encode",
        }
    }
}

/// What a request is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Activity {
    /// Waiting for its first step.
    Queue,
    /// In a step with part of its prompt.
    Prefill,
    /// Left out of a step with an unfinished prompt.
    ChunkWait,
    /// In a step with one new token.
    Decode,
    /// Left out of a step after its prompt.
    DecodeWait,
    /// Preempted.
    PreemptionWait,
    /// In a step that recomputes lost tokens.
    PreemptionRedo,
    /// Waiting for KV from a tier below the device.
    KvLoad,
    /// Done on one replica, not yet taken on by the next.
    KvTransferWait,
    /// Waiting for KV that is on its way from another replica.
    KvTransfer,
    /// In a step that encodes what comes before its prompt, or waiting for the embeddings.
    Encode,
}

/// Running totals of one replica, in ns of its steps so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostMeter {
    /// Host time that the GPU did not hide.
    pub cpu_ns: u64,
    /// GPU time of steps that carried a prefill.
    pub mixed_ns: u64,
    /// Time in which steps waited for KV from or to a tier below the device.
    pub kv_ns: u64,
}

/// A request's account.
#[derive(Clone, Copy, Debug)]
pub struct Ledger {
    activity: Activity,
    since: SimTime,
    meter: HostMeter,
    spent: [u64; NUM_CAUSES],
}

impl Ledger {
    /// Opens the account of a request that arrives at `at`.
    pub fn open(at: SimTime) -> Self {
        Self { activity: Activity::Queue, since: at, meter: HostMeter::default(), spent: [0; NUM_CAUSES] }
    }

    /// Returns the ns spent per cause until the last [`Self::settle`].
    pub fn spent(&self) -> &[u64; NUM_CAUSES] {
        &self.spent
    }

    /// Goes on as a decode from `at` on, if its prompt was being computed.
    #[inline]
    pub fn decode_goes_on(&mut self, at: SimTime, meter: HostMeter) {
        if matches!(self.activity, Activity::Prefill | Activity::PreemptionRedo) {
            self.enter(Activity::Decode, at, meter);
        }
    }

    /// Books all time so far as lost, and waits anew.
    pub fn lose(&mut self, at: SimTime) {
        // What is booked so far ends at `since`, which may lie ahead: the start of a step that was dropped.
        let before: u64 = self.spent.iter().sum();
        self.spent = [0; NUM_CAUSES];
        self.spent[Cause::Lost as usize] = (before + at.0).saturating_sub(self.since.0);
        self.since = at;
        self.activity = Activity::Queue;
        self.meter = HostMeter::default();
    }

    /// Forgets the totals of the replica that the request leaves.
    pub fn change_replica(&mut self) {
        self.meter = HostMeter::default();
    }

    /// Tells whether the request waits since `at` for the replica that goes on with it.
    pub fn is_handed_over_since(&self, at: SimTime) -> bool {
        self.activity == Activity::KvTransferWait && self.since == at
    }

    /// Books the time until a request reaches its engine. Between two replicas it waits for a transfer all along.
    pub fn reach_engine(&mut self, at: SimTime) {
        if self.activity == Activity::KvTransferWait {
            return;
        }
        self.spent[Cause::Ingress as usize] += at.since(self.since).0;
        self.since = at;
    }

    /// Books `ns` between the last token, already settled, and the client.
    pub fn deliver(&mut self, ns: u64) {
        self.spent[Cause::Delivery as usize] += ns;
    }

    /// Enters `activity` at `at`, when the replica's totals are `meter`. Entering the present activity again
    /// costs a comparison.
    #[inline]
    pub fn enter(&mut self, activity: Activity, at: SimTime, meter: HostMeter) {
        if activity != self.activity {
            self.settle(at, meter);
            self.activity = activity;
        }
    }

    /// Books the time since the last booking.
    pub fn settle(&mut self, at: SimTime, meter: HostMeter) {
        let elapsed = at.since(self.since).0;
        let mut book = |cause: Cause, ns: u64| self.spent[cause as usize] += ns;
        match self.activity {
            Activity::Queue => book(Cause::Queue, elapsed),
            Activity::ChunkWait => book(Cause::ChunkWait, elapsed),
            Activity::DecodeWait => book(Cause::DecodeWait, elapsed),
            Activity::PreemptionWait => book(Cause::PreemptionWait, elapsed),
            Activity::KvLoad => book(Cause::KvLoad, elapsed),
            Activity::KvTransferWait => book(Cause::KvTransferWait, elapsed),
            Activity::KvTransfer => book(Cause::KvTransfer, elapsed),
            Activity::Encode => book(Cause::Encode, elapsed),
            Activity::Prefill | Activity::PreemptionRedo | Activity::Decode => {
                // Capped, so that the sum is exact even where steps overlap.
                // In a pipeline, the output of a batch arrives after later batches were formed, so that totals that
                // were read then are ahead of its own.
                let cpu = meter.cpu_ns.saturating_sub(self.meter.cpu_ns).min(elapsed);
                let kv = meter.kv_ns.saturating_sub(self.meter.kv_ns).min(elapsed - cpu);
                let gpu = elapsed - cpu - kv;
                book(Cause::Cpu, cpu);
                book(Cause::KvLoad, kv);
                match self.activity {
                    Activity::Prefill => book(Cause::Prefill, gpu),
                    Activity::PreemptionRedo => book(Cause::PreemptionRedo, gpu),
                    _ => {
                        let mixed = meter.mixed_ns.saturating_sub(self.meter.mixed_ns).min(gpu);
                        book(Cause::DecodeMixed, mixed);
                        book(Cause::Decode, gpu - mixed);
                    }
                }
            }
        }
        self.since = self.since.max(at);
        self.meter.cpu_ns = self.meter.cpu_ns.max(meter.cpu_ns);
        self.meter.mixed_ns = self.meter.mixed_ns.max(meter.mixed_ns);
        self.meter.kv_ns = self.meter.kv_ns.max(meter.kv_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_add_up_and_go_where_they_belong() {
        let meter = |cpu_ns, mixed_ns| HostMeter { cpu_ns, mixed_ns, kv_ns: 0 };
        let mut ledger = Ledger::open(SimTime(100));
        ledger.enter(Activity::Prefill, SimTime(150), meter(5, 40));
        ledger.enter(Activity::Decode, SimTime(250), meter(15, 130)); // a step of 10 cpu + 90 gpu
        ledger.enter(Activity::Decode, SimTime(300), meter(20, 130));
        ledger.settle(SimTime(400), meter(25, 175)); // two steps: 5 + 45 pure, 5 + 45 mixed
        let spent = |cause: Cause| ledger.spent()[cause as usize];
        assert_eq!(spent(Cause::Queue), 50);
        assert_eq!(spent(Cause::Prefill), 90);
        assert_eq!(spent(Cause::Cpu), 20);
        assert_eq!(spent(Cause::DecodeMixed), 45);
        assert_eq!(spent(Cause::Decode), 95);
        assert_eq!(ledger.spent().iter().sum::<u64>(), 300);
    }

    #[test]
    fn waiting_for_kv_is_booked_apart() {
        let mut ledger = Ledger::open(SimTime(0));
        ledger.enter(Activity::KvLoad, SimTime(10), HostMeter::default());
        ledger.enter(Activity::Queue, SimTime(40), HostMeter::default());
        ledger.enter(Activity::Prefill, SimTime(45), HostMeter::default());
        ledger.settle(SimTime(145), HostMeter { cpu_ns: 5, mixed_ns: 80, kv_ns: 15 });
        let spent = |cause: Cause| ledger.spent()[cause as usize];
        assert_eq!([spent(Cause::Queue), spent(Cause::KvLoad), spent(Cause::Prefill)], [15, 30 + 15, 80]);
        assert_eq!(ledger.spent().iter().sum::<u64>(), 145);
    }
}
