//! Static (request-level) batching, as servers over `FasterTransformer` do it (the baseline of the Orca paper,
//! OSDI 2022, section 6): a batch is filled from what waits, runs until its longest request is done, and only then
//! makes way for the next.
//!
//! Prompts are padded to the longest of the batch, and all rows are computed until the end. Each request counts as
//! complete with its own last token; its KV, for the longest prompt and the longest output, stays until the end.

use super::room::Room;
use crate::ids::Slot;
use crate::plan::baseline::StaticSpec;
use crate::scheduler::live::Status;
use crate::scheduler::{PaddedRow, SchedulerOutput, StepOutcome};

#[derive(Clone, Debug)]
pub(super) struct StaticBatching {
    spec: StaticSpec,
    /// The present batch, complete requests included.
    members: Vec<Slot>,
    longest_prompt: u32,
    /// Steps since the prompts.
    decodes: u32,
}

impl StaticBatching {
    pub(super) fn new(spec: StaticSpec) -> Self {
        Self { spec, members: Vec::new(), longest_prompt: 0, decodes: 0 }
    }

    pub(super) fn form(&mut self, room: &mut Room, out: &mut SchedulerOutput) {
        if room.running().is_empty() {
            self.fill(room, out);
            return;
        }
        self.decodes += 1;
        let context = self.longest_prompt + self.decodes;
        for position in 0..self.members.len() {
            let slot = self.members[position];
            if room.request(slot).status == Status::Running {
                room.schedule(slot, 1, out);
            }
            out.padded.push(PaddedRow { num_tokens: 1, context_after: context, is_prefill: false });
        }
    }

    /// Takes waiting requests while their KV, padded to the longest prompt and output, fits.
    fn fill(&mut self, room: &mut Room, out: &mut SchedulerOutput) {
        self.members.clear();
        self.decodes = 0;
        let (mut prompt, mut output, mut count) = (0, 0, 0_u32);
        for slot in room.waiting.iter().take(self.spec.max_batch_size as usize) {
            let request = room.request(slot);
            let longest = (request.prompt_tokens.max(prompt), request.max_tokens.max(output));
            let each = room.blocks_for(longest.0.saturating_add(longest.1));
            if u64::from(each) * u64::from(count + 1) > u64::from(room.pool.num_free()) {
                break;
            }
            (prompt, output) = longest;
            count += 1;
        }
        self.longest_prompt = prompt;
        for _ in 0..count {
            let slot = room.waiting.front().expect("Invariant: as many wait as were counted");
            room.admit(slot, 0, prompt.saturating_add(output));
            self.members.push(slot);
            room.schedule(slot, room.request(slot).prompt_tokens, out);
            let row = PaddedRow { num_tokens: prompt, context_after: prompt, is_prefill: true };
            out.padded.push(row);
        }
    }

    /// Complete requests leave RUNNING at once; their rows and blocks stay until the batch is over.
    pub(super) fn update(&mut self, room: &mut Room, batch: &SchedulerOutput, outcome: &mut StepOutcome) {
        if !room.emit(batch, outcome) {
            return;
        }
        room.drop_finished();
        if room.running().is_empty() {
            for slot in self.members.drain(..) {
                room.free(slot);
                outcome.retired.push(slot);
            }
        }
    }
}
