//! KV between engines, as one of them sees it: what it begins to read, what it has computed for another, and news of
//! transfers, which it hears when it processes the output of a batch (`KVConnectorOutput` in `vllm/v1/outputs.py`).

use super::EngineCore;
use crate::ids::RequestId;
use crate::metrics::DecisionLog;
use crate::scheduler::{Handover, RemoteRead, Scheduler, SchedulerOutput};
use crate::time::SimTime;

/// What became of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvNews {
    /// The KV of a request is here.
    Received(RequestId),
    /// The KV of a request has left.
    Sent(RequestId),
}

/// A part of a prompt whose KV another engine waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ComputedChunk {
    /// Whose it is.
    pub request: RequestId,
    /// Tokens of the prompt that are there when the step ends.
    pub computed: u32,
    /// When the step begins.
    pub start: SimTime,
    /// When it ends.
    pub end: SimTime,
}

/// An engine's part in the ways of requests over several engines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// It encodes what comes before prompts.
    pub encodes: bool,
    /// It receives KV from other engines.
    pub receives: bool,
    /// It reports the chunks of prompts that other engines wait for.
    pub reports_chunks: bool,
}

/// What an engine has to tell of hand-overs, and to hear.
#[derive(Clone, Debug, Default)]
pub(super) struct Handovers {
    part: Part,
    news: Vec<KvNews>,
    reads: Vec<(RemoteRead, SimTime)>,
    chunks: Vec<ComputedChunk>,
}

impl Handovers {
    /// Tells whether the engine encodes what comes before prompts.
    #[inline]
    pub(super) fn encodes(&self) -> bool {
        self.part.encodes
    }

    /// Forgets all that is not told yet.
    pub(super) fn forget_all(&mut self) {
        self.news.clear();
        self.reads.clear();
        self.chunks.clear();
    }
}

impl EngineCore {
    /// Takes part in the ways of requests over several engines.
    pub fn take_part(&mut self, part: Part) {
        self.handovers.part = part;
        self.take_up_part();
    }

    /// Tells a new scheduler what part it has.
    pub(super) fn take_up_part(&mut self) {
        if self.handovers.part.receives
            && let Some(scheduler) = self.scheduler.vllm_mut()
        {
            scheduler.receive_kv();
        }
    }

    /// Hears of a transfer, with the output of the batch that it processes next.
    pub fn hear(&mut self, news: KvNews) {
        self.stalled = false;
        self.untried = true;
        if let (Some(scheduler), Some(turns)) = (self.scheduler.sglang_mut(), &mut self.sglang) {
            // Its turns look at every transfer anew.
            match news {
                KvNews::Received(id) => scheduler.kv_received(id),
                KvNews::Sent(id) => scheduler.kv_sent(id),
            }
            turns.arrived = true;
            return;
        }
        self.handovers.news.push(news);
    }

    /// Hands over the reads that began since the last call, with the starts of their steps.
    pub fn take_reads(&mut self) -> Vec<(RemoteRead, SimTime)> {
        std::mem::take(&mut self.handovers.reads)
    }

    /// Hands over the chunks that steps formed since the last call compute.
    pub fn take_chunks(&mut self) -> Vec<ComputedChunk> {
        std::mem::take(&mut self.handovers.chunks)
    }

    /// Notes what a batch means for other engines.
    #[inline]
    pub(super) fn note_handovers(&mut self, output: &SchedulerOutput, start: SimTime, end: SimTime) {
        if self.handovers.part.receives {
            let reads = match &mut self.scheduler {
                Scheduler::Vllm(scheduler) => scheduler.take_remote_reads(),
                Scheduler::Sglang(scheduler) => scheduler.take_remote_reads(),
                Scheduler::Baseline(_) => Vec::new(),
            };
            self.handovers.reads.extend(reads.into_iter().map(|read| (read, start)));
        }
        if self.handovers.part.reports_chunks {
            let is_kept = |slot| match &self.scheduler {
                Scheduler::Vllm(scheduler) => scheduler.request(slot).handover() == Handover::Keeps,
                Scheduler::Sglang(scheduler) => scheduler.serves_prompts(),
                Scheduler::Baseline(_) => false,
            };
            let kept = output.scheduled.iter().filter(|entry| is_kept(entry.slot));
            self.handovers.chunks.extend(kept.map(|entry| ComputedChunk {
                request: entry.id,
                computed: entry.computed_before + entry.num_tokens,
                start,
                end,
            }));
        }
    }

    /// Tells the scheduler of the transfers that ended. Returns whether there were any; `has_record`: the batch whose
    /// output is being processed leaves a record.
    #[inline]
    pub(super) fn process_news(
        &mut self,
        now: SimTime,
        has_record: bool,
        log: &mut Option<DecisionLog>,
    ) -> bool {
        if self.handovers.news.is_empty() {
            return false;
        }
        let news = std::mem::take(&mut self.handovers.news);
        if let Some(scheduler) = self.scheduler.vllm_mut() {
            for &news in &news {
                match news {
                    KvNews::Received(id) => {
                        scheduler.kv_received(id);
                    }
                    KvNews::Sent(id) => self.outcome.retired.extend(scheduler.kv_sent(id)),
                }
            }
        }
        if let Some(log) = log {
            log.news(now, self.replica, has_record, news, &self.scheduler);
        }
        true
    }
}
