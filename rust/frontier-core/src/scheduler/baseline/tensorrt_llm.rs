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
    /// Scratch: requests that the capacity scheduler lets into the step, running ones first.
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
        self.fitting.extend_from_slice(room.running());
        if room.waiting.is_empty() {
            return;
        }
        let owed: u32 = room.running().iter().map(|&slot| room.missing(slot, final_tokens(room, slot))).sum();
        let left = room.pool.num_free().saturating_sub(owed);
        self.fit_waiting(room, left, final_tokens);
    }

    /// Finds room for the next token of running requests in order; who started last is paused first.
    fn fit_the_next_step(&mut self, room: &mut Room, out: &mut SchedulerOutput) {
        let next = |room: &Room, slot: Slot| room.missing(slot, room.request(slot).num_tokens);
        let mut promised = 0;
        let mut position = 0;
        while let Some(&slot) = room.running().get(position) {
            let mut fits = true;
            while promised + next(room, slot) > room.pool.num_free() {
                let last = room.running()[room.running().len() - 1];
                room.preempt(last, out);
                if last == slot {
                    fits = false;
                    break;
                }
            }
            if fits {
                promised += next(room, slot);
                self.fitting.push(slot);
                position += 1;
            }
        }
        // Those that were paused now are the first to wait, and nothing starts before them.
        if out.preempted.is_empty() {
            let left = room.pool.num_free() - promised;
            self.fit_waiting(room, left, |room, slot| room.request(slot).num_tokens);
        }
    }

    /// Lets waiting requests in, in order, while `left` blocks hold what each needs.
    fn fit_waiting(&mut self, room: &mut Room, mut left: u32, tokens: impl Fn(&Room, Slot) -> u32) {
        let seats = self.spec.max_batch_size.saturating_sub(room.num_running()) as usize;
        let waiting: Vec<Slot> = room.waiting.iter().take(seats).collect();
        for slot in waiting {
            let (cached, revived) = room.find_hits(slot);
            let fresh = room.blocks_for(tokens(room, slot)) - cached / room.block_size();
            if fresh + revived > left {
                break;
            }
            left -= fresh + revived;
            self.fitting.push(slot);
        }
    }

    /// The micro-batch scheduler: prompts first in the batch, then single tokens. Only who gets tokens starts.
    fn fill(&self, room: &mut Room, out: &mut SchedulerOutput) {
        let budget = self.spec.max_num_tokens;
        // What is counted against the budget before prompts are cut: with chunked context, single tokens alone.
        let (mut counted, mut single, mut num_chosen) = (0_u64, 0, 0);
        for &slot in self.fitting.iter().take(self.spec.max_batch_size as usize) {
            let generates = room.generates(slot);
            if generates || !self.spec.enable_chunked_context {
                counted += u64::from(rest_of(room, slot).1);
                if counted > u64::from(budget) {
                    break;
                }
            }
            single += u32::from(generates);
            num_chosen += 1;
        }
        let chosen = &self.fitting[..num_chosen];
        let mut left = budget - single;
        for &slot in chosen {
            if room.generates(slot) {
                let tokens = room.request(slot).num_tokens;
                room.grow(slot, tokens);
                continue;
            }
            let (cached, rest) = rest_of(room, slot);
            // A chunk that does not end its prompt is a multiple of the block size.
            let cut = if self.spec.enable_chunked_context {
                left / room.block_size() * room.block_size()
            } else {
                0
            };
            let chunk = if rest <= left { rest } else { cut };
            if chunk > 0 {
                if !room.runs(slot) {
                    let tokens = room.request(slot).num_tokens;
                    room.admit(slot, cached, tokens);
                }
                room.schedule(slot, chunk, out);
                left -= chunk;
            }
        }
        for &slot in chosen {
            if room.generates(slot) {
                room.schedule(slot, 1, out);
            }
        }
    }
}

/// Returns the cached tokens of a request that waits, and the tokens that it has still to compute.
fn rest_of(room: &mut Room, slot: Slot) -> (u32, u32) {
    let cached = if room.runs(slot) { room.request(slot).num_computed } else { room.find_hits(slot).0 };
    (cached, room.request(slot).num_tokens - cached)
}

/// Returns the tokens whose KV a request needs at its longest: the last token of all is never read.
fn final_tokens(room: &Room, slot: Slot) -> u32 {
    let request = room.request(slot);
    (request.prompt_tokens + request.max_tokens - 1).max(request.num_tokens)
}
