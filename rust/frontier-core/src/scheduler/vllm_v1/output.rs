//! What a batch changes: counters when it is formed, tokens when its output arrives.

use super::VllmScheduler;
use super::caching::{cache_full_blocks, release_blocks};
use crate::ids::Slot;
use crate::scheduler::live::Status;
use crate::scheduler::{Admission, Emission, Scheduled, SchedulerOutput, StepOutcome};
use crate::time::SimTime;

impl VllmScheduler {
    /// Counters advance at schedule time, so that the next call may follow before the batch is done.
    pub(super) fn commit(&mut self, now: SimTime, out: &mut SchedulerOutput) {
        for entry in &mut out.scheduled {
            let request = &mut self.requests[entry.slot.index()];
            request.num_computed += entry.num_tokens;
            request.num_in_flight += entry.num_tokens;
            request.last_scheduled = self.calls;
            // Drafts count once they are accepted.
            let num_tokens = entry.num_tokens.saturating_sub(entry.num_drafts).max(1);
            self.waiting.served(request, entry.computed_before, num_tokens, now);
            entry.recomputes = entry.computed_before < request.high_water;
            // Drafts may be rejected, which takes nothing from the request.
            let reached = request.num_computed.saturating_sub(entry.num_drafts);
            if reached > request.high_water {
                request.high_water = reached;
                self.progressed = true;
            }
            entry.samples = request.num_computed >= request.num_tokens + request.num_placeholders;
            request.in_chunk = !entry.samples;
            if entry.samples && self.config.async_scheduling {
                request.num_placeholders += 1 + entry.num_drafts;
                request.num_drafts = self.num_speculative_tokens;
                if self.spaces_steps {
                    request.next_eligible = self.calls + u64::from(self.config.pipeline_parallel_size);
                }
            }
        }
    }

    /// Takes the output of a batch: each request whose chunk reached its end gets one token and its accepted
    /// drafts, and leaves when it has as many as it asked for or as the model allows.
    pub(super) fn take_output(&mut self, now: SimTime, batch: &SchedulerOutput, outcome: &mut StepOutcome) {
        outcome.clear();
        let (mut left_running, mut left_waiting) = (false, false);
        for entry in &batch.scheduled {
            let request = &mut self.requests[entry.slot.index()];
            request.num_in_flight -= entry.num_tokens;
            let stale = request.num_stale > 0;
            if stale {
                request.num_stale -= entry.num_tokens;
            }
            if request.status == Status::Finished {
                if request.num_in_flight == 0 {
                    outcome.retired.push(entry.slot);
                }
                continue;
            }
            if entry.samples {
                let status = request.status;
                if self.take_tokens(now, entry, stale, outcome) {
                    match status {
                        Status::Running => left_running = true,
                        // Output that was in flight when the request was preempted can still finish it.
                        Status::Preempted | Status::Waiting | Status::Finished => {
                            left_waiting = true;
                            self.waiting.ends_waiting(&self.requests[entry.slot.index()]);
                        }
                    }
                    self.finish(entry.slot, outcome);
                    continue;
                }
            }
            if self.drafts_after_output {
                self.attach_drafts(entry.slot);
            }
        }
        let requests = &self.requests;
        let goes_on = |slot: &Slot| requests[slot.index()].status != Status::Finished;
        if left_running {
            self.running.retain(goes_on);
        }
        if left_waiting {
            self.waiting.retain(goes_on);
        }
    }

    /// Appends the tokens of one request. `stale`: they were in flight when it was preempted. Returns whether it is
    /// complete.
    #[inline]
    fn take_tokens(
        &mut self,
        now: SimTime,
        entry: &Scheduled,
        stale: bool,
        outcome: &mut StepOutcome,
    ) -> bool {
        let num_accepted = if entry.num_drafts > 0 { self.verify(entry, stale) } else { 0 };
        let block_size = self.config.block_size;
        let request = &mut self.requests[entry.slot.index()];
        let room = self.config.max_model_len.saturating_sub(request.num_tokens);
        // The last of several tokens may be one too many; the first is always taken.
        let left = (request.max_tokens - request.num_output_tokens()).min(room).max(1);
        let num_tokens = (1 + num_accepted).min(left);
        request.num_tokens += num_tokens;
        if num_tokens > 1 {
            self.waiting.accepted(request, num_tokens - 1, now);
        }
        if self.pool.caching() {
            request.rehash(block_size);
        }
        outcome.emitted.push(Emission {
            id: request.id,
            num_tokens,
            num_drafts: entry.num_drafts,
            num_accepted,
        });
        if self.config.async_scheduling {
            if !stale {
                request.num_placeholders -= num_tokens;
            }
            if request.status == Status::Running {
                let known = request.num_computed - request.num_placeholders;
                cache_full_blocks(&mut self.pool, request, known, block_size);
            }
        }
        request.num_tokens >= self.config.max_model_len || request.num_output_tokens() >= request.max_tokens
    }

    /// Returns how many drafts of `entry` are accepted, and takes the others back.
    fn verify(&mut self, entry: &Scheduled, stale: bool) -> u32 {
        let request = &mut self.requests[entry.slot.index()];
        // Paddings of a just-admitted request stand for no token.
        let num_accepted = match &self.speculation {
            Some(speculation) if entry.admission == Admission::Running => {
                let outputs = request.num_output_tokens();
                let planned = entry.num_drafts;
                let found = if self.config.async_scheduling {
                    speculation.num_found(request.id, outputs, request.num_tokens, planned)
                } else {
                    planned
                };
                speculation.num_accepted(request.id, outputs, request.num_verified, found)
            }
            _ => 0,
        };
        request.num_verified += u32::from(entry.admission == Admission::Running);
        let rejected = entry.num_drafts - num_accepted;
        if !stale {
            // A chunk limit below the paddings computes fewer tokens than are taken back.
            request.num_computed = request.num_computed.saturating_sub(rejected);
            request.num_placeholders = request.num_placeholders.saturating_sub(rejected);
        }
        num_accepted
    }

    /// Gives a request the drafts of its next step (synchronous scheduling).
    fn attach_drafts(&mut self, slot: Slot) {
        let Some(speculation) = &self.speculation else { return };
        let request = &mut self.requests[slot.index()];
        request.num_drafts = if request.in_chunk && self.rules.no_drafts_in_chunk {
            0
        } else {
            speculation.num_drafts(request.id, request.num_output_tokens(), request.num_tokens)
        };
    }

    fn finish(&mut self, slot: Slot, outcome: &mut StepOutcome) {
        let request = &mut self.requests[slot.index()];
        request.status = Status::Finished;
        release_blocks(&mut self.pool, request);
        self.newly_finished = true;
        outcome.finished.push(request.id);
        if request.num_in_flight == 0 {
            outcome.retired.push(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::ids::{RequestId, Slot};
    use crate::plan::SchedulerConfig;
    use crate::scheduler::{BatchScheduler, SchedulerOutput, StepOutcome, Submission, VllmScheduler};
    use crate::time::SimTime;
    use crate::workload::{OUTPUT_STREAM_BASE, Segment};

    const PROMPT: u32 = 20;
    const OUTPUT: u32 = 30;

    /// Returns the tokens that one request is booked, and the steps it took.
    fn attained(acceptance: f64) -> (u64, u32) {
        let config: SchedulerConfig = serde_json::from_value(json!({
            "minor_version": 32, "block_size": 16, "num_blocks": 100, "kv_group_windows": [],
            "max_model_len": 1000, "max_num_batched_tokens": 64, "max_num_scheduled_tokens": null,
            "max_num_seqs": 4, "max_num_active_seqs": null, "long_prefill_token_threshold": 0,
            "long_prefill_token_threshold_adaptive": false, "enable_chunked_prefill": true,
            "enable_prefix_caching": false, "policy": {"vtc": {"input_weight": 1.0, "output_weight": 2.0}},
            "scheduler_reserve_full_isl": true, "watermark": 0.0, "async_scheduling": false,
            "pipeline_parallel_size": 1, "v2_runner": false,
            "speculative": {
                "method": "draft_model", "num_speculative_tokens": 3, "draft_length": {"kind": "full"},
                "acceptance": {"kind": "rate", "rate": acceptance}, "seed": 0, "replication": 0,
            },
        }))
        .expect("valid settings");
        let mut scheduler = VllmScheduler::new(config);
        scheduler.add_request(&Submission {
            id: RequestId(0),
            arrival: SimTime::ZERO,
            priority: 0,
            tie_rank: 0,
            session: None,
            score: f64::from(OUTPUT),
            prompt_tokens: PROMPT,
            max_tokens: OUTPUT,
            segments: &[Segment { stream: 1, start: 0, len: PROMPT }],
            output_stream: OUTPUT_STREAM_BASE,
        });
        let (mut batch, mut outcome, mut steps) = (SchedulerOutput::default(), StepOutcome::default(), 0);
        while outcome.finished.is_empty() {
            steps += 1;
            scheduler.schedule(SimTime(steps), &mut batch);
            scheduler.update(SimTime(steps), &batch, &mut outcome);
        }
        (scheduler.request(Slot::from_index(0)).service.attained_tokens, steps as u32)
    }

    #[test]
    fn policies_book_the_tokens_that_requests_get_not_their_drafts() {
        // The prompt, whose step gives the first token; every other token is booked by the step that gives it.
        let expected = u64::from(PROMPT + OUTPUT - 1);
        let (with_all, fast) = attained(1.0);
        let (with_none, slow) = attained(0.0);
        assert_eq!((with_all, fast), (expected, 1 + (OUTPUT - 1).div_ceil(4)));
        assert_eq!((with_none, slow), (expected, OUTPUT));
        assert_eq!(attained(0.5).0, expected);
    }
}
