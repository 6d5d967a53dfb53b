//! vLLM before V1 (`vllm/core/scheduler.py` of 0.2 to 0.6, without chunked prefill; Kwon et al., SOSP 2023): whole
//! prompts first, in batches of their own; decodes only when no prompt can be admitted.
//!
//! Preemption recomputes, which is what vLLM V0 does for requests of one sequence; swapping is for beams.

use super::room::Room;
use crate::plan::baseline::{BaselineSpec, VllmV0Spec};
use crate::scheduler::SchedulerOutput;

#[derive(Clone, Debug)]
pub(super) struct VllmV0 {
    spec: VllmV0Spec,
    watermark_blocks: u32,
    micro_batch_size: u32,
}

impl VllmV0 {
    pub(super) fn new(spec: VllmV0Spec, common: &BaselineSpec) -> Self {
        let micro_batch_size = common.micro_batch_size(spec.max_num_seqs);
        Self { spec, watermark_blocks: common.watermark_blocks(), micro_batch_size }
    }

    pub(super) fn form(&self, room: &mut Room, out: &mut SchedulerOutput) {
        self.admit_prompts(room, out);
        if out.scheduled.is_empty() {
            decode(room, self.micro_batch_size, out);
        }
    }

    fn admit_prompts(&self, room: &mut Room, out: &mut SchedulerOutput) {
        let (mut tokens, mut longest, mut count) = (0_u32, 0_u32, 0_u32);
        while let Some(slot) = room.waiting.front() {
            let prompt = room.request(slot).num_tokens;
            let needed = room.blocks_for(prompt) + self.watermark_blocks;
            let cost = if self.spec.padded_budget {
                longest.max(prompt).saturating_mul(count + 1)
            } else {
                tokens.saturating_add(prompt)
            };
            if needed > room.pool.num_free()
                || cost > self.spec.max_num_batched_tokens
                || room.num_running() >= self.spec.max_num_seqs
                || count == self.micro_batch_size
            {
                break;
            }
            (tokens, longest, count) = (tokens + prompt, longest.max(prompt), count + 1);
            room.admit(slot, 0, prompt);
            room.schedule(slot, prompt, out);
        }
    }
}

/// Gives one token to each running request whose prompt is computed and which is within reach, in order, up to
/// `most` of them. A request is served only while some
/// block is free, needed or not (`can_append_slots`); if none is, the last running request makes room.
pub(super) fn decode(room: &mut Room, most: u32, out: &mut SchedulerOutput) {
    let mut position = 0;
    while let Some(&slot) = room.running().get(position) {
        if out.scheduled.len() == most as usize {
            break;
        }
        if !room.generates(slot) || room.is_under_way(slot) {
            position += 1;
            continue;
        }
        let tokens = room.request(slot).num_tokens;
        let mut served = true;
        while room.pool.num_free() == 0 {
            // Those before `position` have their token; the others leave from the end.
            let victim = room.last_within_reach(position).unwrap_or(slot);
            room.preempt(victim, out);
            if victim == slot {
                served = false;
                break;
            }
        }
        if served {
            room.grow(slot, tokens);
            room.schedule(slot, 1, out);
            position += 1;
        }
    }
}
