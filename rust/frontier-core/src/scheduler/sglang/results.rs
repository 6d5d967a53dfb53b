//! What the results of a batch change.

use super::request::slice_len;
use super::{EngineFailure, InFlightBatch, MIN_RETIRING, Mode, Part, SglangScheduler};
use crate::ids::Slot;
use crate::scheduler::{Emission, StepOutcome};

impl SglangScheduler {
    /// Processes the results of a batch; with overlap, while the next one already runs.
    pub(super) fn process(
        &mut self,
        done: &InFlightBatch,
        outcome: &mut StepOutcome,
    ) -> Result<(), EngineFailure> {
        if self.part == Part::Prompts {
            return self.process_prompts(done, outcome);
        }
        let overlap = !self.config.disable_overlap_schedule;
        let mut num_freed = 0;
        for (position, &slot) in done.requests.iter().enumerate() {
            let request = &mut self.requests[slot.index()];
            if request.retracted {
                continue;
            }
            if request.aborted {
                num_freed += 1;
                continue;
            }
            if done.mode == Mode::Decode {
                if overlap && request.finished {
                    // The step that it rode along for nothing.
                    num_freed += 1;
                    continue;
                }
            } else {
                if self.mixes && overlap && request.finished {
                    let at = done.slots - done.requests.len() as i64 + position as i64;
                    self.available += slice_len(done.slots, at, at + 1);
                    continue;
                }
                if request.chunks > 0 {
                    request.chunks -= 1;
                    continue;
                }
            }
            request.append_output();
            outcome.emitted.push(Emission {
                id: request.id,
                num_tokens: 1,
                num_drafts: 0,
                num_accepted: 0,
                hands_over: false,
            });
            if !request.finished && request.num_output >= request.max_new_tokens {
                request.finished = true;
                outcome.finished.push(request.id);
                self.retiring.push(slot);
                if std::mem::take(&mut request.admitted) {
                    self.num_live -= 1;
                }
            }
            if request.finished {
                self.cache_finished(slot)?;
            } else if position < done.extends.len() {
                // From now on others can match it.
                self.cache_unfinished(slot)?;
            }
        }
        self.available += num_freed;
        Ok(())
    }

    /// Reports the finished requests that no batch and no queue refers to any more.
    pub(super) fn retire_unreferenced(&mut self, outcome: &mut StepOutcome) {
        if self.retiring.len() < MIN_RETIRING + self.running.len() / 4 {
            return;
        }
        self.sweep += 1;
        let Self { requests, running, last, in_flight, waiting, chunked, sweep, .. } = self;
        let mut see = |slot: &Slot| requests[slot.index()].seen = *sweep;
        running.requests.iter().for_each(&mut see);
        waiting.iter().for_each(&mut see);
        chunked.iter().for_each(&mut see);
        last.iter().flat_map(|last| &last.batch.requests).for_each(&mut see);
        in_flight.iter().flat_map(|batch| &batch.requests).for_each(&mut see);
        let requests = &self.requests;
        self.retiring.retain(|&slot| {
            let referred_to = requests[slot.index()].seen == *sweep;
            if !referred_to {
                outcome.retired.push(slot);
            }
            referred_to
        });
    }
}
