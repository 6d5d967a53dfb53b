//! The columns of a trace, checked once and shared between runs.

use super::{OUTPUT_STREAM_BASE, Segment, UNIQUE_STREAM_BASE};
use crate::error::SimError;
use crate::ids::SessionId;

/// In the session column: the request belongs to no session.
pub const NO_SESSION: u32 = u32::MAX;

/// Columns as they come from outside; all have one entry per request but those of `segments`.
#[derive(Clone, Debug, Default)]
pub struct RawTrace {
    /// Arrival times in ns, not negative, in ascending order.
    pub arrival_ns: Vec<i64>,
    /// Prompt lengths, at least 1.
    pub prompt_tokens: Vec<u32>,
    /// Output lengths, at least 1.
    pub output_tokens: Vec<u32>,
    /// Priorities (lower is served first); all 0 if absent.
    pub priority: Option<Vec<i32>>,
    /// Sessions, [`NO_SESSION`] for none; no sessions if absent.
    pub session: Option<Vec<u32>>,
    /// What prompts are made of; all unique content if absent.
    pub segments: Option<RawSegments>,
    /// Rank of a request among those that arrive at the same time; the row number if absent.
    pub tie_rank: Option<Vec<u32>>,
    /// Models asked for, as numbers of the plan's paths; all the first if absent.
    pub model: Option<Vec<u16>>,
    /// Tokens to be encoded before the prompt; none if absent.
    pub encoder_tokens: Option<Vec<u32>>,
}

/// Prompt segments of all requests, one after another.
#[derive(Clone, Debug, Default)]
pub struct RawSegments {
    /// One entry more than requests: request i owns segments `offsets[i] .. offsets[i + 1]`. A request without
    /// segments has unique content; the lengths of any other request's segments add up to its prompt.
    pub offsets: Vec<u64>,
    /// Stream of each segment: under 2^62, or [`OUTPUT_STREAM_BASE`] + the row of an earlier request.
    pub stream: Vec<u64>,
    /// Position of the first token in its stream.
    pub start: Vec<u32>,
    /// Number of tokens; segments of 0 tokens are dropped.
    pub length: Vec<u32>,
}

/// The checked columns of a trace.
///
/// Invariants: there is at least one row; arrivals ascend from 0 or later; prompt + output of a row fit 32 bits;
/// a row's segments are in normal form (none empty, none continued by the next) and add up to its prompt;
/// positions fit 32 bits; segments of output streams lie inside the output of an earlier row.
#[derive(Clone, Debug)]
pub struct TraceColumns {
    arrival_ns: Vec<i64>,
    prompt_tokens: Vec<u32>,
    output_tokens: Vec<u32>,
    priority: Option<Vec<i32>>,
    session: Option<Vec<u32>>,
    tie_rank: Option<Vec<u32>>,
    model: Option<Vec<u16>>,
    encoder_tokens: Option<Vec<u32>>,
    prompts: Option<Prompts>,
}

#[derive(Clone, Debug)]
struct Prompts {
    offsets: Vec<u64>,
    segments: Vec<Segment>,
}

/// One request of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub arrival_ns: u64,
    pub prompt_tokens: u32,
    pub output_tokens: u32,
    pub priority: i32,
    pub session: Option<SessionId>,
    pub tie_rank: u32,
    pub model: u16,
    pub encoder_tokens: u32,
}

impl TraceColumns {
    /// Checks the columns and brings prompts into normal form.
    ///
    /// # Errors
    /// [`SimError::Input`] naming column, row, value and what is allowed.
    pub fn new(raw: RawTrace) -> Result<Self, SimError> {
        let rows = raw.arrival_ns.len();
        if rows == 0 {
            return refuse("has no requests, must have at least one".into());
        }
        if u32::try_from(rows).is_err() {
            return refuse(format!("has {rows} requests, must have at most {}", u32::MAX));
        }
        check_length("prompt_tokens", raw.prompt_tokens.len(), rows)?;
        check_length("output_tokens", raw.output_tokens.len(), rows)?;
        check_length("priority", raw.priority.as_ref().map_or(rows, Vec::len), rows)?;
        check_length("session", raw.session.as_ref().map_or(rows, Vec::len), rows)?;
        check_length("tie_rank", raw.tie_rank.as_ref().map_or(rows, Vec::len), rows)?;
        check_length("model", raw.model.as_ref().map_or(rows, Vec::len), rows)?;
        check_length("encoder_tokens", raw.encoder_tokens.as_ref().map_or(rows, Vec::len), rows)?;
        check_arrivals(&raw.arrival_ns)?;
        check_tokens(&raw.prompt_tokens, &raw.output_tokens)?;
        let prompts = match raw.segments {
            Some(segments) => Some(Prompts::new(&segments, &raw.prompt_tokens, &raw.output_tokens)?),
            None => None,
        };
        Ok(Self {
            arrival_ns: raw.arrival_ns,
            prompt_tokens: raw.prompt_tokens,
            output_tokens: raw.output_tokens,
            priority: raw.priority,
            session: raw.session,
            tie_rank: raw.tie_rank,
            model: raw.model,
            encoder_tokens: raw.encoder_tokens,
            prompts,
        })
    }

    /// Returns the number of requests, at least 1.
    #[expect(clippy::len_without_is_empty, reason = "a trace is never empty")]
    pub fn len(&self) -> usize {
        self.arrival_ns.len()
    }

    /// Returns a request.
    pub(crate) fn row(&self, row: usize) -> Row {
        Row {
            arrival_ns: self.arrival_ns[row] as u64,
            prompt_tokens: self.prompt_tokens[row],
            output_tokens: self.output_tokens[row],
            priority: self.priority.as_ref().map_or(0, |column| column[row]),
            session: self
                .session
                .as_ref()
                .map(|column| column[row])
                .filter(|&s| s != NO_SESSION)
                .map(SessionId),
            tie_rank: self.tie_rank.as_ref().map_or(row as u32, |column| column[row]),
            model: self.model.as_ref().map_or(0, |column| column[row]),
            encoder_tokens: self.encoder_tokens.as_ref().map_or(0, |column| column[row]),
        }
    }

    /// Returns one more than the largest model that a row asks for.
    pub(super) fn num_models(&self) -> usize {
        let largest = self.model.as_ref().and_then(|column| column.iter().copied().max());
        usize::from(largest.unwrap_or(0)) + 1
    }

    /// Returns a request's segments in normal form, none if its content is unique.
    pub(crate) fn segments(&self, row: usize) -> &[Segment] {
        self.prompts.as_ref().map_or(&[], |prompts| {
            &prompts.segments[prompts.offsets[row] as usize..prompts.offsets[row + 1] as usize]
        })
    }

    /// Returns one more than the largest tie rank of a row.
    pub(super) fn tie_stride(&self) -> u64 {
        let largest = self.tie_rank.as_ref().and_then(|column| column.iter().copied().max());
        largest.map_or(self.len() as u64, |rank| u64::from(rank) + 1)
    }
}

impl Prompts {
    fn new(raw: &RawSegments, prompt_tokens: &[u32], output_tokens: &[u32]) -> Result<Self, SimError> {
        let total = raw.stream.len();
        check_length("segment_start", raw.start.len(), total)?;
        check_length("segment_length", raw.length.len(), total)?;
        check_offsets(&raw.offsets, prompt_tokens.len(), total)?;
        let mut prompts = Self { offsets: Vec::with_capacity(raw.offsets.len()), segments: Vec::new() };
        prompts.offsets.push(0);
        for (row, &prompt) in prompt_tokens.iter().enumerate() {
            prompts.add_row(raw, row, prompt, output_tokens)?;
        }
        prompts.segments.shrink_to_fit();
        Ok(prompts)
    }

    fn add_row(
        &mut self,
        raw: &RawSegments,
        row: usize,
        prompt: u32,
        output_tokens: &[u32],
    ) -> Result<(), SimError> {
        let range = raw.offsets[row] as usize..raw.offsets[row + 1] as usize;
        let first = self.segments.len();
        let mut sum = 0_u64;
        for i in range.clone() {
            let segment = Segment { stream: raw.stream[i], start: raw.start[i], len: raw.length[i] };
            check_segment(segment, i, row, output_tokens)?;
            sum += u64::from(segment.len);
            push_merged(&mut self.segments, first, segment);
        }
        if !range.is_empty() && sum != u64::from(prompt) {
            return refuse(format!(
                "column segment_length, row {row}: the segments {} .. {} add up to {sum} tokens, must add up to \
                 prompt_tokens, which is {prompt}",
                range.start, range.end
            ));
        }
        self.offsets.push(self.segments.len() as u64);
        Ok(())
    }
}

/// Appends a segment to the prompt that begins at `segments[first]`, keeping it in normal form.
fn push_merged(segments: &mut Vec<Segment>, first: usize, segment: Segment) {
    if segment.len == 0 {
        return;
    }
    match segments[first..].last_mut() {
        Some(last) if last.stream == segment.stream && last.start + last.len == segment.start => {
            last.len += segment.len;
        }
        _ => segments.push(segment),
    }
}

fn refuse<T>(message: String) -> Result<T, SimError> {
    Err(SimError::Input { what: "trace".into(), message })
}

fn check_length(column: &str, length: usize, expected: usize) -> Result<(), SimError> {
    if length != expected {
        let other = if column.starts_with("segment_") { "segment_stream" } else { "arrival_ns" };
        return refuse(format!("column {column}: has {length} entries, must have {expected} as {other} has"));
    }
    Ok(())
}

fn check_arrivals(arrival_ns: &[i64]) -> Result<(), SimError> {
    let mut last = 0;
    for (row, &arrival) in arrival_ns.iter().enumerate() {
        if arrival < 0 {
            return refuse(format!("column arrival_ns, row {row}: was {arrival}, must not be negative"));
        }
        if arrival < last {
            return refuse(format!(
                "column arrival_ns, row {row}: was {arrival}, must not be before the row before, which is {last}; \
                 sort the trace by arrival"
            ));
        }
        last = arrival;
    }
    Ok(())
}

fn check_tokens(prompt_tokens: &[u32], output_tokens: &[u32]) -> Result<(), SimError> {
    for (row, (&prompt, &output)) in prompt_tokens.iter().zip(output_tokens).enumerate() {
        for (column, value) in [("prompt_tokens", prompt), ("output_tokens", output)] {
            if value == 0 {
                return refuse(format!("column {column}, row {row}: was 0, must be at least 1"));
            }
        }
        if prompt.checked_add(output).is_none() {
            return refuse(format!(
                "column output_tokens, row {row}: was {output}, which with the prompt of {prompt} makes {} tokens, \
                 must be at most {}",
                u64::from(prompt) + u64::from(output),
                u32::MAX
            ));
        }
    }
    Ok(())
}

fn check_offsets(offsets: &[u64], rows: usize, total: usize) -> Result<(), SimError> {
    if offsets.len() != rows + 1 {
        let message =
            format!("has {} entries, must have {} (one more than requests)", offsets.len(), rows + 1);
        return refuse(format!("column segment_offsets: {message}"));
    }
    let mut last = 0;
    for (row, &offset) in offsets.iter().enumerate() {
        let allowed = if row == 0 { 0..=0 } else { last..=total as u64 };
        if !allowed.contains(&offset) {
            return refuse(format!(
                "column segment_offsets, row {row}: was {offset}, must be in {} ..= {}",
                allowed.start(),
                allowed.end()
            ));
        }
        last = offset;
    }
    if last != total as u64 {
        return refuse(format!(
            "column segment_offsets, row {rows}: was {last}, must be the number of segments, {total}"
        ));
    }
    Ok(())
}

fn check_segment(segment: Segment, index: usize, row: usize, output_tokens: &[u32]) -> Result<(), SimError> {
    let Segment { stream, start, len } = segment;
    let end = u64::from(start) + u64::from(len);
    if end > u64::from(u32::MAX) {
        return refuse(format!(
            "column segment_start, segment {index} (row {row}): was {start}, which with the length of {len} ends at \
             {end}, must end at {} at most",
            u32::MAX
        ));
    }
    if stream < OUTPUT_STREAM_BASE {
        return Ok(());
    }
    let source = stream - OUTPUT_STREAM_BASE;
    if stream >= UNIQUE_STREAM_BASE || source >= row as u64 {
        return refuse(format!(
            "column segment_stream, segment {index} (row {row}): was {stream}, must be under 2^62, or 2^62 plus the \
             row of an earlier request (2^62 ..= 2^62 + {} here)",
            row.saturating_sub(1)
        ));
    }
    let output = output_tokens[source as usize];
    if end > u64::from(output) {
        return refuse(format!(
            "column segment_length, segment {index} (row {row}): was {len}, which from position {start} ends at \
             {end}, must end within the output of row {source}, which has {output} tokens"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
