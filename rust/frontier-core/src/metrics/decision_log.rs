//! The scheduler's decisions as JSON lines, in the format of the golden logs (`vllm-scheduler` oracle, vLLM
//! 0.32), with request numbers in place of names.

use std::fmt::Write as _;

use super::decision_log_sglang;
use crate::engine::KvNews;
use crate::ids::{ReplicaId, RequestId, Slot};
use crate::plan::DecisionLogSpec;
use crate::scheduler::{
    Admission, Baseline, BatchScheduler, CarriedToken, LiveRequest, Scheduler, SchedulerOutput, StepOutcome,
    VllmScheduler,
};
use crate::time::SimTime;

/// Times and clock inputs of a step, for its record.
#[derive(Clone, Copy, Debug)]
pub struct StepFacts {
    /// Non-empty steps of the replica before this one.
    pub step: u64,
    /// The replica.
    pub replica: ReplicaId,
    /// When the batch was formed.
    pub scheduled_at: SimTime,
    /// When it starts.
    pub start: SimTime,
    /// When it ends.
    pub end: SimTime,
    /// Prefill tokens.
    pub prefill_tokens: u64,
    /// Decode tokens.
    pub decode_tokens: u64,
    /// Context after the step, summed.
    pub kv_tokens: u64,
}

/// What a record shows of a scheduler with blocks.
trait Logged: BatchScheduler {
    fn request(&self, slot: Slot) -> &LiveRequest;
    fn running(&self) -> &[Slot];
    fn waiting(&self) -> impl Iterator<Item = Slot>;
    /// The queue of requests that hold KV, where there is one that is not empty.
    fn kv_waiting(&self) -> Option<Vec<Slot>>;
}

/// Implements [`Logged`] by methods of the same names.
macro_rules! logged {
    ($($scheduler:ty, $kv_waiting:expr);+) => {$(
        impl Logged for $scheduler {
            fn request(&self, slot: Slot) -> &LiveRequest {
                Self::request(self, slot)
            }
            fn running(&self) -> &[Slot] {
                Self::running(self)
            }
            fn waiting(&self) -> impl Iterator<Item = Slot> {
                Self::waiting(self)
            }
            fn kv_waiting(&self) -> Option<Vec<Slot>> {
                let kv_waiting: fn(&Self) -> Vec<Slot> = $kv_waiting;
                Some(kv_waiting(self)).filter(|slots| !slots.is_empty())
            }
        }
    )+};
}

logged!(
    VllmScheduler, |scheduler| if scheduler.shows_kv_waiting() {
        scheduler.kv_waiting().collect()
    } else {
        Vec::new()
    };
    Baseline, |_| Vec::new()
);

/// Grows the log of a run. A record is begun when a batch is formed and ended when its output is processed.
#[derive(Clone, Debug)]
pub struct DecisionLog {
    block_ids: bool,
    /// Blocks of each request that earlier records showed.
    shown_blocks: Vec<usize>,
    text: String,
    /// Ends of transfers that the next record shows.
    news: Vec<KvNews>,
}

impl DecisionLog {
    /// Returns an empty log.
    pub fn new(spec: &DecisionLogSpec) -> Self {
        Self { block_ids: spec.block_ids, shown_blocks: Vec::new(), text: String::new(), news: Vec::new() }
    }

    /// Returns the log and leaves it empty.
    pub fn take(&mut self) -> String {
        std::mem::take(&mut self.text)
    }

    /// Returns the first part of the record of a batch, written when it is formed.
    pub fn begin(&mut self, facts: &StepFacts, scheduler: &Scheduler, batch: &SchedulerOutput) -> String {
        match scheduler {
            Scheduler::Vllm(scheduler) => self.begin_record(facts, scheduler, batch),
            Scheduler::Baseline(scheduler) => self.begin_record(facts, scheduler, batch),
            Scheduler::Sglang(scheduler) => decision_log_sglang::begin(facts, scheduler, batch),
        }
    }

    fn begin_record(
        &mut self,
        facts: &StepFacts,
        scheduler: &impl Logged,
        batch: &SchedulerOutput,
    ) -> String {
        let id = |slot| scheduler.request(slot).id().0;
        let mut record = String::new();
        let _ = write!(
            record,
            "{{\"step\":{},\"eng\":\"e{}\",\"ts\":{},\"start\":{},\"end\":{},\"sched\":",
            facts.step, facts.replica.0, facts.scheduled_at.0, facts.start.0, facts.end.0
        );
        list(&mut record, batch.scheduled.iter(), |out, entry| {
            let kind = match entry.admission {
                Admission::Running => "run",
                Admission::New => "new",
                Admission::Resumed => "resumed",
            };
            let (id, before, tokens) = (entry.id.0, entry.computed_before, entry.num_tokens);
            let _ = write!(out, "[{id},\"{kind}\",{before},{tokens},{}]", entry.num_drafts);
        });
        if !batch.preempted.is_empty() {
            record.push_str(",\"pre\":");
            list(&mut record, batch.preempted.iter(), |out, evicted| {
                number(out, evicted.id.0);
            });
        }
        let mut admitted =
            batch.scheduled.iter().filter(|entry| entry.admission != Admission::Running).peekable();
        if admitted.peek().is_some() {
            record.push_str(",\"hit\":{");
            separated(&mut record, admitted, |out, entry| {
                let _ = write!(out, "\"{}\":{}", entry.id.0, entry.computed_before);
            });
            record.push('}');
        }
        record.push_str(",\"run\":");
        list(&mut record, scheduler.running().iter(), |out, &slot| {
            number(out, id(slot));
        });
        record.push_str(",\"wait\":");
        list(&mut record, scheduler.waiting(), |out, slot| {
            number(out, id(slot));
        });
        if let Some(kept_apart) = scheduler.kv_waiting() {
            record.push_str(",\"kv_wait\":");
            list(&mut record, kept_apart.into_iter(), |out, slot| {
                number(out, id(slot));
            });
        }
        let _ = write!(
            record,
            ",\"free\":{},\"pf\":{},\"dc\":{},\"kv\":{}",
            scheduler.gauges().num_free,
            facts.prefill_tokens,
            facts.decode_tokens,
            facts.kv_tokens
        );
        if self.block_ids {
            self.write_new_blocks(&mut record, scheduler, batch);
        }
        record
    }

    /// Completes a record with what its output changed, and appends it to the log.
    pub fn end(&mut self, mut record: String, scheduler: &Scheduler, outcome: &StepOutcome) {
        if let Scheduler::Sglang(scheduler) = scheduler {
            record.push_str(&decision_log_sglang::end(scheduler, outcome));
            self.text.push_str(&record);
            self.text.push('\n');
            return;
        }
        if !outcome.emitted.is_empty() {
            record.push_str(",\"out\":{");
            separated(&mut record, outcome.emitted.iter(), |out, emission| {
                let _ = write!(out, "\"{}\":{}", emission.id.0, emission.num_tokens);
            });
            record.push('}');
        }
        if !outcome.finished.is_empty() {
            record.push_str(",\"fin\":");
            list(&mut record, outcome.finished.iter(), |out, id| {
                number(out, id.0);
            });
        }
        let news = std::mem::take(&mut self.news);
        for (name, received) in [("recv", true), ("sent", false)] {
            if news.iter().any(|news| matches!(news, KvNews::Received(_)) == received) {
                let _ = write!(record, ",\"{name}\":");
                list_news(&mut record, &news, received);
            }
        }
        let _ = write!(record, ",\"free_end\":{}}}", scheduler.gauges().num_free);
        self.text.push_str(&record);
        self.text.push('\n');
    }

    /// Shows the ends of transfers in the record that follows or, where none does, in one of their own.
    pub fn news(
        &mut self,
        now: SimTime,
        replica: ReplicaId,
        has_record: bool,
        news: Vec<KvNews>,
        scheduler: &Scheduler,
    ) {
        if has_record {
            self.news = news;
            return;
        }
        let _ = write!(self.text, "{{\"eng\":\"e{}\",\"ts\":{},\"kv_only\":true,\"recv\":", replica.0, now.0);
        list_news(&mut self.text, &news, true);
        self.text.push_str(",\"sent\":");
        list_news(&mut self.text, &news, false);
        let _ = writeln!(self.text, ",\"free_end\":{}}}", scheduler.gauges().num_free);
    }

    /// Shows that a decode server has memory for a prompt, which `replica` may compute now.
    pub fn reserve(&mut self, now: SimTime, replica: ReplicaId, request: RequestId) {
        let _ =
            writeln!(self.text, "{{\"eng\":\"e{}\",\"ts\":{},\"reserve\":{}}}", replica.0, now.0, request.0);
    }

    /// Shows the requests that join the running batch of a decode server, or end, with the token that came.
    pub fn carried(&mut self, now: SimTime, replica: ReplicaId, carried: &[CarriedToken]) {
        let _ = write!(self.text, "{{\"eng\":\"e{}\",\"ts\":{},\"carried\":", replica.0, now.0);
        list(&mut self.text, carried.iter(), |out, token| number(out, token.id.0));
        self.text.push_str("}\n");
    }

    /// Shows a transfer that a step of `replica`, formed `now`, begins.
    pub fn transfer(
        &mut self,
        now: SimTime,
        replica: ReplicaId,
        request: RequestId,
        num_blocks: u32,
        (start, end): (SimTime, SimTime),
    ) {
        let _ = writeln!(
            self.text,
            "{{\"eng\":\"e{}\",\"ts\":{},\"xfer\":{},\"blocks\":{num_blocks},\"t0\":{},\"t1\":{}}}",
            replica.0, now.0, request.0, start.0, end.0
        );
    }

    fn write_new_blocks(&mut self, record: &mut String, scheduler: &impl Logged, batch: &SchedulerOutput) {
        let mut first = true;
        for entry in &batch.scheduled {
            let request = scheduler.request(entry.slot);
            let blocks = request.blocks();
            let before = if entry.admission == Admission::Running { self.shown(request.id()) } else { 0 };
            *self.shown_mut(request.id()) = blocks.len();
            if before >= blocks.len() {
                continue;
            }
            let _ = write!(record, "{}\"{}\":", if first { ",\"blk\":{" } else { "," }, request.id().0);
            list(record, blocks[before..].iter(), |out, block| {
                number(out, block.0);
            });
            first = false;
        }
        if !first {
            record.push('}');
        }
    }

    fn shown(&self, id: RequestId) -> usize {
        self.shown_blocks.get(id.index()).copied().unwrap_or(0)
    }

    fn shown_mut(&mut self, id: RequestId) -> &mut usize {
        if self.shown_blocks.len() <= id.index() {
            self.shown_blocks.resize(id.index() + 1, 0);
        }
        &mut self.shown_blocks[id.index()]
    }
}

/// Lists the requests of which there is news of one kind.
fn list_news(out: &mut String, news: &[KvNews], received: bool) {
    let ids = news.iter().filter_map(|news| match *news {
        KvNews::Received(id) => received.then_some(id.0),
        KvNews::Sent(id) => (!received).then_some(id.0),
    });
    list(out, ids, number);
}

pub(super) fn number(out: &mut String, value: u32) {
    let _ = write!(out, "{value}");
}

fn separated<T>(out: &mut String, items: impl Iterator<Item = T>, write_item: impl Fn(&mut String, T)) {
    for (position, item) in items.enumerate() {
        if position > 0 {
            out.push(',');
        }
        write_item(out, item);
    }
}

pub(super) fn list<T>(out: &mut String, items: impl Iterator<Item = T>, write_item: impl Fn(&mut String, T)) {
    out.push('[');
    separated(out, items, write_item);
    out.push(']');
}
