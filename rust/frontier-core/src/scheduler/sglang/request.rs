//! A request inside SGLang: its tokens, and where they are.

use super::CLIP_MAX_NEW_TOKENS;
use crate::ids::{RequestId, Slot};
use crate::kvcache::NodeId;
use crate::scheduler::{Admission, Scheduled, Submission};
use crate::time::SimTime;
use crate::workload::Segment;

/// State of a request (`Req` in `schedule_batch.py`). Lengths are signed: the engine computes with negative ones when
/// memory is short.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "these are the engine's own marks")]
pub(super) struct Request {
    pub(super) id: RequestId,
    pub(super) prompt_tokens: u32,
    pub(super) max_new_tokens: i64,
    pub(super) priority: i64,
    /// When it came to the deployment, for those whose prompts are computed apart.
    pub(super) arrival: SimTime,
    /// Number of its last entry into the queue.
    pub(super) entered: u64,
    /// All tokens known, prompt and output.
    pub(super) content: Vec<Segment>,
    output_stream: u64,
    /// Generated tokens.
    pub(super) num_output: i64,
    /// Leading tokens whose slots are the tree's (without a tree: that are computed).
    pub(super) prefix: i64,
    /// Tokens that are computed once the present prefill has run.
    pub(super) fill: i64,
    /// Tokens of the present prefill, or of the last attempt at one.
    pub(super) extend: i64,
    /// The node that is locked for it.
    pub(super) node: Option<NodeId>,
    /// Chunks whose result is still to come.
    pub(super) chunks: u32,
    pub(super) finished: bool,
    /// It lost its memory since it was last in a prefill: results to come are void.
    pub(super) retracted: bool,
    /// It left before its end.
    pub(super) aborted: bool,
    /// Its KV has left, or has come.
    pub(super) transferred: bool,
    pub(super) num_preemptions: u32,
    /// It is in a batch or in the running one; it was so once.
    pub(super) admitted: bool,
    was_admitted: bool,
    /// Most tokens ever computed: what lies below was lost if it is computed again.
    high_water: i64,
    /// Number of the last sweep that met it.
    pub(super) seen: u64,
}

impl Request {
    /// Returns the state of a request that nobody uses; [`Self::reset`] makes it a real one.
    pub(super) fn vacant() -> Self {
        Self {
            id: RequestId(0),
            prompt_tokens: 0,
            max_new_tokens: 0,
            priority: 0,
            arrival: SimTime::ZERO,
            entered: 0,
            content: Vec::new(),
            output_stream: 0,
            num_output: 0,
            prefix: 0,
            fill: 0,
            extend: 0,
            node: None,
            chunks: 0,
            finished: false,
            retracted: false,
            aborted: false,
            transferred: false,
            num_preemptions: 0,
            admitted: false,
            was_admitted: false,
            high_water: 0,
            seen: 0,
        }
    }

    /// Becomes the submitted request, reusing the memory of the one before.
    pub(super) fn reset(&mut self, submission: &Submission<'_>) {
        let mut content = std::mem::take(&mut self.content);
        content.clear();
        content.extend_from_slice(submission.segments);
        *self = Self {
            id: submission.id,
            prompt_tokens: submission.prompt_tokens,
            max_new_tokens: i64::from(submission.max_tokens),
            priority: i64::from(submission.priority),
            arrival: submission.arrival,
            content,
            output_stream: submission.output_stream,
            ..Self::vacant()
        };
    }

    /// Returns the tokens known.
    #[inline]
    pub(super) fn num_tokens(&self) -> i64 {
        i64::from(self.prompt_tokens) + self.num_output
    }

    /// Returns the output tokens that an admission reserves memory for.
    #[inline]
    pub(super) fn reserve(&self) -> i64 {
        self.max_new_tokens.min(CLIP_MAX_NEW_TOKENS)
    }

    /// Adds a generated token.
    #[inline]
    pub(super) fn append_output(&mut self) {
        let (stream, start) = (self.output_stream, self.num_output as u32);
        match self.content.last_mut() {
            Some(last) if last.stream == stream && last.start + last.len == start => last.len += 1,
            _ => self.content.push(Segment { stream, start, len: 1 }),
        }
        self.num_output += 1;
    }

    /// Cuts the present prefill to `num_tokens`, as slices of Python's lists do it.
    pub(super) fn cut_to(&mut self, num_tokens: i64) {
        self.extend = num_tokens;
        self.fill = slice_len(self.fill, 0, self.prefix + num_tokens);
    }

    /// Joins a running batch with `held` tokens that it did not compute. Returns whether it is new there.
    pub(super) fn let_in(&mut self, held: i64) -> bool {
        let is_new = !std::mem::replace(&mut self.was_admitted, true);
        self.admitted = true;
        self.high_water = self.high_water.max(held);
        is_new
    }

    /// Returns its part of a batch, and whether it gets further than ever before.
    #[inline]
    pub(super) fn scheduled(
        &mut self,
        slot: Slot,
        before: i64,
        num_tokens: i64,
        is_prefill: bool,
    ) -> (Scheduled, bool) {
        let admission = match (self.admitted, self.was_admitted) {
            (true, _) => Admission::Running,
            (false, true) => Admission::Resumed,
            (false, false) => Admission::New,
        };
        (self.admitted, self.was_admitted) = (true, true);
        let after = before + num_tokens;
        let entry = Scheduled {
            num_drafts: 0,
            slot,
            id: self.id,
            admission,
            prompt_tokens: self.prompt_tokens,
            computed_before: before.max(0) as u32,
            num_tokens: num_tokens as u32,
            samples: !is_prefill || self.chunks == 0,
            recomputes: before < self.high_water,
        };
        let further = after > self.high_water;
        self.high_water = self.high_water.max(after);
        (entry, further)
    }
}

/// Returns the length of `sequence[start:stop]` in Python, for a sequence of `length` items.
pub(super) fn slice_len(length: i64, start: i64, stop: i64) -> i64 {
    let bound = |at: i64| if at < 0 { (at + length).max(0) } else { at.min(length) };
    (bound(stop) - bound(start)).max(0)
}

#[cfg(test)]
mod tests {
    use super::slice_len;

    #[test]
    fn slices_are_cut_as_in_python() {
        // len("abcde"[a:b])
        for (start, stop, expected) in [
            (0, 3, 3),
            (0, 9, 5),
            (0, -2, 3),
            (0, -9, 0),
            (2, 3, 1),
            (4, 6, 1),
            (5, 6, 0),
            (-1, 0, 0),
            (-3, -2, 1),
            (-7, -6, 0),
        ] {
            assert_eq!(slice_len(5, start, stop), expected, "[{start}:{stop}]");
        }
        assert_eq!(slice_len(1, -1, 0), 0);
    }
}
