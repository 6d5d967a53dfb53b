//! In-flight batching of `TensorRT-LLM` (`cpp/tensorrt_llm/batch_manager/{capacityScheduler,microBatchScheduler}.cpp`).
//!
//! The capacity scheduler decides who holds KV. `GUARANTEED_NO_EVICT` admits a request only if it and all that are
//! admitted can run to their longest possible end; `MAX_UTILIZATION` admits whoever fits the next step, and pauses
//! those that started last when blocks run out. The micro-batch scheduler then fills a step: in order of arrival,
//! prompts (whole, or with chunked context in multiples of the block size) and single tokens, up to
//! `max_num_tokens` tokens of `max_batch_size` requests.
//!
//! With block reuse, blocks can be found again once the prompt that filled them is computed, and those of the output
//! once the request is complete. Content that nobody else can have is not looked for again.

use super::room::Room;
use crate::ids::Slot;
use crate::plan::baseline::{CapacityPolicy, TensorrtLlmSpec};
use crate::scheduler::SchedulerOutput;

#[derive(Clone, Debug)]
pub(super) struct TensorrtLlm {
    spec: TensorrtLlmSpec,
    /// Scratch: running requests that the capacity scheduler lets go on.
    fitting: Vec<Slot>,
}

impl TensorrtLlm {
    pub(super) fn new(spec: TensorrtLlmSpec) -> Self {
        Self { spec, fitting: Vec::new() }
    }

    pub(super) fn form(&mut self, room: &mut Room, out: &mut SchedulerOutput) {
        self.fitting.clear();
        match self.spec.capacity_policy {
            CapacityPolicy::GuaranteedNoEvict => self.reserve_to_the_end(room),
            CapacityPolicy::MaxUtilization => self.fit_the_next_step(room, out),
        }
        self.fill(room, out);
    }

    fn reserve_to_the_end(&mut self, room: &mut Room) {
        for position in 0..room.running().len() {
            let slot = room.running()[position];
            let tokens = room.request(slot).num_tokens;
            room.grow(slot, tokens);
            self.fitting.push(slot);
        }
        if room.waiting.is_empty() || room.num_running() >= self.spec.max_batch_size {
            return;
        }
        let owed: u32 = room.running().iter().map(|&slot| room.missing(slot, final_tokens(room, slot))).sum();
        let mut left = room.pool.num_free().saturating_sub(owed);
        while room.num_running() < self.spec.max_batch_size {
            let Some(slot) = room.waiting.front() else { break };
            let (cached, revived) = room.find_hits(slot);
            let fresh = room.blocks_for(final_tokens(room, slot)) - cached / room.block_size();
            if fresh + revived > left {
                room.drop_hits();
                break;
            }
            left -= fresh + revived;
            let tokens = room.request(slot).num_tokens;
            room.admit(cached, tokens);
            self.fitting.push(slot);
        }
    }

    /// Grows running requests for their next token in order, then admits; who started last is paused first.
    fn fit_the_next_step(&mut self, room: &mut Room, out: &mut SchedulerOutput) {
        let mut position = 0;
        while let Some(&slot) = room.running().get(position) {
            let tokens = room.request(slot).num_tokens;
            let mut fits = true;
            while room.missing(slot, tokens) > room.pool.num_free() {
                let last = room.running()[room.running().len() - 1];
                room.preempt(last, out);
                if last == slot {
                    fits = false;
                    break;
                }
            }
            if fits {
                room.grow(slot, tokens);
                self.fitting.push(slot);
                position += 1;
            }
        }
        // Those that were paused now are the first to wait, and nothing fits before them.
        while out.preempted.is_empty() && room.num_running() < self.spec.max_batch_size {
            let Some(slot) = room.waiting.front() else { break };
            let (cached, revived) = room.find_hits(slot);
            let tokens = room.request(slot).num_tokens;
            let fresh = room.blocks_for(tokens) - cached / room.block_size();
            if fresh + revived > room.pool.num_free() {
                room.drop_hits();
                break;
            }
            room.admit(cached, tokens);
            self.fitting.push(slot);
        }
    }

    /// The micro-batch scheduler: prompts first in the batch, then single tokens.
    fn fill(&self, room: &Room, out: &mut SchedulerOutput) {
        let budget = self.spec.max_num_tokens;
        let rest = |slot: Slot| room.request(slot).num_tokens - room.request(slot).num_computed;
        // What is counted against the budget before prompts are cut: with chunked context, single tokens alone.
        let mut counted = 0_u32;
        let mut num_chosen = 0;
        for &slot in self.fitting.iter().take(self.spec.max_batch_size as usize) {
            if room.generates(slot) || !self.spec.enable_chunked_context {
                if u64::from(counted) + u64::from(rest(slot)) > u64::from(budget) {
                    break;
                }
                counted += rest(slot);
            }
            num_chosen += 1;
        }
        let chosen = &self.fitting[..num_chosen];
        let single = chosen.iter().filter(|&&slot| room.generates(slot)).count() as u32;
        let mut left = budget - single;
        for &slot in chosen.iter().filter(|&&slot| !room.generates(slot)) {
            // A chunk that does not end its prompt is a multiple of the block size.
            let chunk =
                if rest(slot) <= left { rest(slot) } else { left / room.block_size() * room.block_size() };
            if chunk > 0 {
                room.schedule(slot, chunk, out);
                left -= chunk;
            }
        }
        for &slot in chosen.iter().filter(|&&slot| room.generates(slot)) {
            room.schedule(slot, 1, out);
        }
    }
}

/// Returns the tokens whose KV a request needs at its longest: the last token of all is never read.
fn final_tokens(room: &Room, slot: Slot) -> u32 {
    let request = room.request(slot);
    (request.prompt_tokens + request.max_tokens - 1).max(request.num_tokens)
}
