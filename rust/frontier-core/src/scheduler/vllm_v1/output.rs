//! What a batch changes: counters when it is formed, tokens when its output arrives.

use super::VllmScheduler;
use super::caching::cache_full_blocks;
use crate::ids::Slot;
use crate::plan::SchedulerConfig;
use crate::scheduler::live::{Handover, LiveRequest, Status};
use crate::scheduler::{Admission, Emission, Scheduled, SchedulerOutput, StepOutcome};
use crate::speculation::Speculation;
use crate::time::SimTime;

impl VllmScheduler {
    /// Counters advance at schedule time, so that the next call may follow before the batch is done.
    #[inline]
    pub(super) fn commit(&mut self, now: SimTime, out: &mut SchedulerOutput) {
        if !out.scheduled.is_empty() {
            self.handovers.step_formed();
        }
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
            request.prefill_in_flight &= request.in_chunk;
            if entry.samples && self.config.async_scheduling {
                request.num_placeholders += 1 + entry.num_drafts;
                if self.num_speculative_tokens > 0 {
                    request.rare.num_drafts = self.num_speculative_tokens;
                }
                if self.spaces_steps {
                    request.rare.next_eligible = self.calls + u64::from(self.config.pipeline_parallel_size);
                }
            }
        }
    }

    /// Takes the output of a batch: each request whose chunk reached its end gets one token and its accepted
    /// drafts, and leaves when it has as many as it asked for or as the model allows.
    #[inline]
    pub(super) fn take_output(&mut self, now: SimTime, batch: &SchedulerOutput, outcome: &mut StepOutcome) {
        outcome.clear();
        let SchedulerConfig { block_size, max_model_len, async_scheduling, .. } = self.config;
        let caching = self.pool.caching();
        let (mut left_running, mut left_waiting) = (false, false);
        if !batch.scheduled.is_empty() {
            self.handovers.step_done(&mut self.pool);
        }
        for entry in &batch.scheduled {
            let request = &mut self.requests[entry.slot.index()];
            request.num_in_flight -= entry.num_tokens;
            let stale = request.num_stale > 0;
            if stale {
                request.num_stale -= entry.num_tokens;
            }
            if request.status == Status::Finished {
                if request.num_in_flight == 0 && request.handover != Handover::Keeps {
                    outcome.retired.push(entry.slot);
                }
                continue;
            }
            if entry.samples {
                let (mut num_tokens, mut num_accepted) = (1, 0);
                if entry.num_drafts > 0 {
                    num_accepted = verify(self.speculation.as_ref(), async_scheduling, request, entry, stale);
                    // The last of several tokens may be one too many; the first is always taken.
                    let room = max_model_len.saturating_sub(request.num_tokens);
                    let left = (request.max_tokens - request.num_output_tokens()).min(room).max(1);
                    num_tokens = (1 + num_accepted).min(left);
                }
                request.num_tokens += num_tokens;
                if num_tokens > 1 {
                    self.waiting.accepted(request, num_tokens - 1, now);
                }
                if caching {
                    request.rehash(block_size);
                }
                let (id, num_drafts) = (request.id, entry.num_drafts);
                let hands_over = request.handover == Handover::Keeps;
                outcome.emitted.push(Emission { id, num_tokens, num_drafts, num_accepted, hands_over });
                if async_scheduling {
                    if !stale {
                        request.num_placeholders -= num_tokens;
                    }
                    if request.status == Status::Running {
                        let known = request.num_computed - request.num_placeholders;
                        cache_full_blocks(&mut self.pool, request, known, block_size);
                    }
                }
                if request.num_tokens >= max_model_len || request.num_output_tokens() >= request.max_tokens {
                    match request.status {
                        Status::Running => left_running = true,
                        // Output that was in flight when the request was preempted can still finish it.
                        Status::Preempted | Status::Waiting | Status::Finished => {
                            left_waiting = true;
                            self.waiting.ends_waiting(request);
                        }
                    }
                    request.status = Status::Finished;
                    request.prefill_in_flight = false;
                    self.newly_finished = true;
                    outcome.finished.push(request.id);
                    if hands_over {
                        self.handovers.keep(entry.slot);
                    } else {
                        self.handovers.release(&mut self.pool, request);
                    }
                    if request.num_in_flight == 0 && !hands_over {
                        outcome.retired.push(entry.slot);
                    }
                    continue;
                }
            }
            if let Some(speculation) = self.speculation.as_ref()
                && !async_scheduling
            {
                attach_drafts(speculation, self.rules.no_drafts_in_chunk, request);
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
}

/// Returns how many drafts of `entry` are accepted, and takes the others back. `stale`: they were in flight when the
/// request was preempted.
#[inline(never)]
fn verify(
    speculation: Option<&Speculation>,
    async_scheduling: bool,
    request: &mut LiveRequest,
    entry: &Scheduled,
    stale: bool,
) -> u32 {
    let planned = entry.num_drafts;
    let num_accepted = match speculation {
        Some(speculation) if entry.admission == Admission::Running => {
            let outputs = request.num_output_tokens();
            let found = if async_scheduling {
                speculation.num_found(request.id, outputs, request.num_tokens, planned)
            } else {
                planned
            };
            let verification = request.rare.num_verified;
            request.rare.num_verified += 1;
            speculation.num_accepted(request.id, outputs, verification, found)
        }
        // Paddings of a just-admitted request stand for no token.
        _ => 0,
    };
    let rejected = planned - num_accepted;
    if !stale {
        // A chunk limit below the paddings computes fewer tokens than are taken back.
        request.num_computed = request.num_computed.saturating_sub(rejected);
        request.num_placeholders = request.num_placeholders.saturating_sub(rejected);
    }
    num_accepted
}

/// Gives a request the drafts of its next step (synchronous scheduling).
#[inline(never)]
fn attach_drafts(speculation: &Speculation, no_drafts_in_chunk: bool, request: &mut LiveRequest) {
    request.rare.num_drafts = if request.in_chunk && no_drafts_in_chunk {
        0
    } else {
        speculation.num_drafts(request.id, request.num_output_tokens(), request.num_tokens)
    };
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::ids::{RequestId, Slot};
    use crate::plan::SchedulerConfig;
    use crate::scheduler::{
        BatchScheduler, Handover, SchedulerOutput, StepOutcome, Submission, VllmScheduler,
    };
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
            handover: Handover::Neither,
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
