//! The decode step, and retraction when memory runs out.

use std::cmp::Reverse;

use super::{EngineFailure, Part, RETRACT_DECODE_STEPS, SglangScheduler};
use crate::ids::Slot;

impl SglangScheduler {
    /// Prepares the next decode step of the running batch, which is empty afterwards if all have finished.
    pub(super) fn decode_batch(&mut self) -> Result<(), EngineFailure> {
        let before = self.running.len();
        self.drop_finished();
        let num_requests = self.running.len() as i64;
        if num_requests == 0 {
            self.running.full = false;
            return Ok(());
        }
        self.make_room(num_requests);
        if self.available < num_requests {
            self.retract()?;
        } else {
            self.ratio = (self.ratio - self.ratio_decay).max(self.ratio_min);
        }
        if self.running.len() < before {
            self.running.full = false;
        }
        self.advance()
    }

    /// Drops finished requests from the running batch.
    pub(super) fn drop_finished(&mut self) {
        let requests = &self.requests;
        self.running.retain(|slot| !requests[slot.index()].finished);
    }

    /// Gives each running request a slot for its next token.
    pub(super) fn advance(&mut self) -> Result<(), EngineFailure> {
        for length in &mut self.running.lengths {
            *length += 1;
        }
        self.allocate(self.running.len() as i64)
    }

    /// Retracts those with the least output, of equals those with the longest prompt, until the rest fits; the last
    /// one stays. What follows expects as much of everyone's output as was seen so far.
    fn retract(&mut self) -> Result<(), EngineFailure> {
        let mut order: Vec<usize> = (0..self.running.len()).collect();
        let output_first = |&at: &usize| {
            let request = &self.requests[self.running.requests[at].index()];
            Reverse((request.num_output, Reverse(request.prompt_tokens)))
        };
        order.sort_by_key(output_first);
        let mut gone: Vec<Slot> = Vec::new();
        loop {
            if !gone.is_empty() {
                self.make_room(order.len() as i64);
                if self.available >= order.len() as i64 {
                    break;
                }
            }
            if order.len() == 1 {
                if self.available <= 0 {
                    let detail = "no KV slot is left for the only running request; enlarge the pool".into();
                    return Err(EngineFailure::stop("out of memory", detail));
                }
                break;
            }
            let Some(place) = order.pop() else { break };
            gone.push(self.running.requests[place]);
            self.release(place, order.len())?;
        }
        if !gone.is_empty() {
            self.running.select(&order);
        }
        let (mut generated, mut asked) = (0, 0);
        for &slot in &self.running.requests {
            let request = &self.requests[slot.index()];
            generated += request.num_output;
            asked += request.max_new_tokens;
        }
        generated += RETRACT_DECODE_STEPS * self.running.len() as i64;
        self.ratio = (generated as f64 / asked as f64).min(1.0);
        for slot in gone {
            if self.part == Part::Outputs {
                self.returned.push(self.id(slot));
                self.outputs.retracted.push_back(slot);
                continue;
            }
            self.note_hang(slot);
            self.enter(slot, true);
        }
        Ok(())
    }
}
