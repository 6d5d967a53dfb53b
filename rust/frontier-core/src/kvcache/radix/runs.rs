//! Runs of tokens, read from a place on and up to a bound.

use crate::workload::Segment;

/// A place in a list of runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor<'a> {
    content: &'a [Segment],
    /// The run it stands in, and how many of its tokens are behind.
    index: usize,
    offset: u32,
    consumed: u32,
    limit: u32,
}

impl<'a> Cursor<'a> {
    /// Returns the start of the first `limit` tokens of `content`, which has as many.
    #[inline]
    pub(super) fn new(content: &'a [Segment], limit: u32) -> Self {
        Self { content, index: 0, offset: 0, consumed: 0, limit }
    }

    /// Returns the tokens behind.
    #[inline]
    pub(super) fn consumed(&self) -> u32 {
        self.consumed
    }

    /// Returns the stream and the position of the next token, if there is one before the bound.
    #[inline]
    pub(super) fn token(&self) -> Option<(u64, u32)> {
        if self.consumed >= self.limit {
            return None;
        }
        let run = self.content.get(self.index)?;
        Some((run.stream, run.start + self.offset))
    }

    /// Moves on as long as the tokens are those of `key`. Returns by how many.
    #[inline]
    pub(super) fn advance_common(&mut self, key: &[Segment]) -> u32 {
        let mut common = 0;
        for run in key {
            let mut done = 0;
            while done < run.len {
                let Some((stream, position)) = self.token() else { return common };
                if stream != run.stream || position != run.start + done {
                    return common;
                }
                let own = self.content[self.index].len - self.offset;
                let step = own.min(run.len - done).min(self.limit - self.consumed);
                self.advance(step, own);
                done += step;
                common += step;
            }
        }
        common
    }

    /// Appends what lies between here and the bound to `key`, which is empty.
    pub(super) fn rest_into(mut self, key: &mut Vec<Segment>) {
        while let Some((stream, start)) = self.token() {
            let own = self.content[self.index].len - self.offset;
            let len = own.min(self.limit - self.consumed);
            key.push(Segment { stream, start, len });
            self.advance(len, own);
        }
    }

    #[inline]
    fn advance(&mut self, step: u32, own: u32) {
        self.consumed += step;
        if step == own {
            self.index += 1;
            self.offset = 0;
        } else {
            self.offset += step;
        }
    }
}

/// Moves the first `num_tokens` tokens of `key` to `head`, which is empty; both are left with some.
pub(super) fn split(key: &mut Vec<Segment>, num_tokens: u32, head: &mut Vec<Segment>) {
    let mut missing = num_tokens;
    let mut whole = 0;
    while key[whole].len <= missing {
        missing -= key[whole].len;
        whole += 1;
    }
    head.extend(key.drain(..whole));
    if missing > 0 {
        let run = &mut key[0];
        head.push(Segment { len: missing, ..*run });
        run.start += missing;
        run.len -= missing;
    }
}
