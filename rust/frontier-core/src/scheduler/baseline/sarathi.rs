//! Sarathi-Serve (Agrawal et al., OSDI 2024, algorithm 3): stall-free batches. Each step has a budget of
//! `chunk_size` tokens; running decodes come first, then running prompts go on, then waiting ones start, each with
//! the largest chunk that is left of the budget.

use super::room::Room;
use super::vllm_v0::decode;
use crate::plan::baseline::{BaselineSpec, SarathiSpec};
use crate::scheduler::SchedulerOutput;

#[derive(Clone, Debug)]
pub(super) struct Sarathi {
    spec: SarathiSpec,
    watermark_blocks: u32,
    micro_batch_size: u32,
}

impl Sarathi {
    pub(super) fn new(spec: SarathiSpec, common: &BaselineSpec) -> Self {
        let micro_batch_size = common.micro_batch_size(spec.max_num_seqs);
        Self { spec, watermark_blocks: common.watermark_blocks(), micro_batch_size }
    }

    pub(super) fn form(&self, room: &mut Room, out: &mut SchedulerOutput) {
        decode(room, self.micro_batch_size, out);
        // Decodes are never held back, even if they alone exceed the budget.
        let mut left = self.spec.chunk_size.saturating_sub(out.scheduled.len() as u32);
        for position in 0..room.running().len() {
            let slot = room.running()[position];
            let request = room.request(slot);
            let rest = request.num_tokens - request.num_computed;
            let is_next = !room.generates(slot) && !room.is_under_way(slot) && self.has_place(out);
            let chunk = if is_next { rest.min(left) } else { 0 };
            if chunk > 0 {
                room.schedule(slot, chunk, out);
                left -= chunk;
            }
        }
        while left > 0 && room.num_running() < self.spec.max_num_seqs && self.has_place(out) {
            let Some(slot) = room.waiting.front() else { break };
            let prompt = room.request(slot).num_tokens;
            // The whole prompt gets its blocks at once, so that it can go on whatever happens to others.
            if room.blocks_for(prompt) + self.watermark_blocks > room.pool.num_free() {
                break;
            }
            room.admit(slot, 0, prompt);
            let chunk = prompt.min(left);
            room.schedule(slot, chunk, out);
            left -= chunk;
        }
    }

    fn has_place(&self, batch: &SchedulerOutput) -> bool {
        batch.scheduled.len() < self.micro_batch_size as usize
    }
}
