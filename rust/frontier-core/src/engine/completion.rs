//! Completing a batch: the scheduler takes its output, the recorder the tokens.

use super::{EngineContext, EngineCore, InFlight};
use crate::error::SimError;
use crate::frontend::Output;
use crate::scheduler::{BatchScheduler, Emission, Scheduler};
use crate::time::SimTime;

/// Most requests that an error names.
const MAX_NAMED: usize = 8;

impl EngineCore {
    /// Processes the output of a batch. Returns whether anything came of it.
    pub(crate) fn process(
        &mut self,
        mut batch: InFlight,
        now: SimTime,
        context: &mut EngineContext<'_>,
    ) -> Result<bool, SimError> {
        self.count_blocks(now);
        self.scheduler.update(now, &batch.output, &mut self.outcome);
        self.report_failure(now)?;
        // A token that is carried on counts where it is given to the client.
        let carries = self.sglang.is_some();
        let counts = |emission: &&Emission| !(carries && emission.hands_over);
        self.counters.output_tokens += self
            .outcome
            .emitted
            .iter()
            .filter(counts)
            .map(|emission| u64::from(emission.num_tokens))
            .sum::<u64>();
        self.counters.finished += self.outcome.finished.len() as u64;
        if let Some(step) = batch.step {
            let overlaps = self.pipeline.num_stages() > 1;
            for emission in self.outcome.emitted.iter().filter(|emission| !emission.hands_over) {
                context.recorder.tokens(emission.id, step, emission.num_tokens, now, batch.meter);
                if emission.num_drafts > 0 {
                    context.recorder.verify(emission.id, emission.num_drafts, emission.num_accepted);
                }
                if overlaps {
                    context.recorder.decode_goes_on(emission.id, now, batch.meter);
                }
            }
        }
        if let Some(outputs) = &mut context.outputs {
            let output = |emission: &Emission| Output { request: emission.id, tokens: emission.num_tokens };
            outputs.extend(self.outcome.emitted.iter().filter(counts).map(output));
        }
        let some_go_on = self.outcome.emitted.iter().any(|emission| emission.hands_over);
        for &id in &self.outcome.finished {
            if some_go_on
                && self.outcome.emitted.iter().any(|emission| emission.hands_over && emission.id == id)
            {
                context.recorder.hand_over(id, now, batch.meter);
            } else {
                context.recorder.finish(id, now, batch.meter);
            }
            context.ended.push(id);
        }
        let record = batch.record.take();
        let heard = self.process_news(now, record.is_some(), &mut context.recorder.decision_log);
        if let (Some(record), Some(log)) = (record, &mut context.recorder.decision_log) {
            log.end(record, &self.scheduler, &self.outcome);
        }
        for index in 0..self.outcome.retired.len() {
            self.scheduler.retire(self.outcome.retired[index]);
        }
        if batch.step.is_some() {
            self.watch_progress(now)?;
        }
        self.spare.push(batch);
        Ok(heard || !self.outcome.emitted.is_empty())
    }

    /// Reports steps that go round in circles, as the real engine would with the same settings.
    fn watch_progress(&mut self, now: SimTime) -> Result<(), SimError> {
        if self.scheduler.take_progress() || !self.outcome.emitted.is_empty() {
            self.steps_without_progress = 0;
            return Ok(());
        }
        self.steps_without_progress += 1;
        if self.livelock_steps.is_none_or(|limit| self.steps_without_progress < limit) {
            return Ok(());
        }
        let mut requests = Vec::new();
        self.scheduler.visit_preempted(&mut |id, times| {
            if requests.len() < MAX_NAMED {
                requests.push(format!("{} ({times} times)", id.0));
            }
        });
        Err(SimError::Livelock {
            name: "endless preemption",
            replica: self.replica.0,
            time_ns: now.0,
            detail: format!(
                "{} steps in a row only recomputed what preemptions had dropped; preempted requests: {}; the real \
                 engine does the same: {}",
                self.steps_without_progress,
                requests.join(", "),
                match self.scheduler {
                    Scheduler::Vllm(_) => {
                        "set scheduler_reserve_full_isl, enlarge the KV cache or lower max_num_seqs"
                    }
                    Scheduler::Baseline(_) => "enlarge the KV cache or lower the most requests of a batch",
                    Scheduler::Sglang(_) => {
                        "raise priority_scheduling_preemption_threshold, enlarge the KV pool or lower \
                         max_running_requests"
                    }
                }
            ),
        })
    }
}
