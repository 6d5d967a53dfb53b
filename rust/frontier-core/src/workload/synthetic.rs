//! Requests drawn from distributions, every property from a stream of its own.

use super::laws::Zipf;
use super::lengths::Lengths;
use super::{RequestSpec, Segment, UNIQUE_STREAM_BASE};
use crate::error::SimError;
use crate::ids::{RequestId, SessionId};
use crate::plan::workload::{EncoderSpec, SharedPrefixSpec, SyntheticSpec};
use crate::rng::{RngStreams, Stream};
use crate::time::SimTime;

/// Marks a request without a shared prefix.
const NO_PREFIX: u32 = u32::MAX;

/// Draws requests one by one, and remembers what their prompts are made of: 4 bytes per request, 12 with
/// shared prefixes.
#[derive(Clone, Debug)]
pub(super) struct Synthetic {
    prompt_lengths: Lengths,
    prompt_stream: Stream,
    output_lengths: Lengths,
    output_stream: Stream,
    sessions: Option<u32>,
    session_stream: Stream,
    max_priority: u32,
    priority_stream: Stream,
    prefixes: Option<Prefixes>,
    models: Models,
    encoder: Option<Encoder>,
    prompt_tokens: Vec<u32>,
}

impl Synthetic {
    /// Returns the generator of a checked specification.
    pub(super) fn new(spec: &SyntheticSpec, streams: &RngStreams) -> Self {
        Self {
            prompt_lengths: Lengths::new(&spec.prompt_tokens),
            prompt_stream: streams.get("workload.prompt_tokens"),
            output_lengths: Lengths::new(&spec.output_tokens),
            output_stream: streams.get("workload.output_tokens"),
            sessions: spec.sessions,
            session_stream: streams.get("workload.session"),
            max_priority: spec.max_priority,
            priority_stream: streams.get("workload.priority"),
            prefixes: spec.shared_prefix.as_ref().map(|prefix| Prefixes::new(prefix, *streams)),
            models: Models::new(&spec.models, streams),
            encoder: spec.encoder.as_ref().map(|encoder| Encoder::new(encoder, streams)),
            prompt_tokens: Vec::new(),
        }
    }

    /// Returns one more than the largest model that a request may ask for.
    pub(super) fn num_models(&self) -> usize {
        self.models.up_to.len().max(1)
    }

    /// Draws the next request. Its id must be the number of requests drawn before.
    ///
    /// # Errors
    /// As of a length draw.
    pub(super) fn draw(&mut self, id: RequestId, arrival: SimTime) -> Result<RequestSpec, SimError> {
        debug_assert_eq!(id.index(), self.prompt_tokens.len(), "Invariant: ids count up");
        let own_tokens = self.prompt_lengths.draw(&mut self.prompt_stream)?;
        let output_tokens = self.output_lengths.draw(&mut self.output_stream)?;
        let prefix_tokens = match &mut self.prefixes {
            Some(prefixes) => prefixes.draw()?,
            None => 0,
        };
        // The check of the plan keeps the longest prefix, prompt and output together inside 32 bits.
        let prompt_tokens = prefix_tokens + own_tokens;
        self.prompt_tokens.push(prompt_tokens);
        let session_stream = &mut self.session_stream;
        Ok(RequestSpec {
            id,
            arrival,
            prompt_tokens,
            output_tokens,
            priority: self.priority_stream.below(u64::from(self.max_priority) + 1) as i32,
            session: self.sessions.map(|count| SessionId(session_stream.below(u64::from(count)) as u32)),
            tie_rank: id.0,
            model: self.models.draw(),
            encoder_tokens: self.encoder.as_mut().map_or(Ok(0), Encoder::draw)?,
        })
    }

    /// Appends the prompt of a request drawn before: its prefix (stream = number of the prefix), then its own.
    pub(super) fn prompt_segments(&self, id: RequestId, out: &mut Vec<Segment>) {
        let mut own_tokens = self.prompt_tokens[id.index()];
        if let Some(prefixes) = &self.prefixes {
            let (prefix, tokens) = prefixes.drawn[id.index()];
            if prefix != NO_PREFIX {
                out.push(Segment { stream: u64::from(prefix), start: 0, len: tokens });
                own_tokens -= tokens;
            }
        }
        out.push(Segment { stream: UNIQUE_STREAM_BASE + u64::from(id.0), start: 0, len: own_tokens });
    }
}

/// Which model a request asks for.
#[derive(Clone, Debug)]
struct Models {
    /// Cumulative shares; empty where there is one model.
    up_to: Vec<f64>,
    stream: Stream,
}

impl Models {
    fn new(shares: &[f64], streams: &RngStreams) -> Self {
        let mut sum = 0.0;
        let up_to = shares.iter().map(|share| {
            sum += share;
            sum
        });
        Self { up_to: up_to.collect(), stream: streams.get("workload.model") }
    }

    fn draw(&mut self) -> u16 {
        let Some(total) = self.up_to.last() else { return 0 };
        let at = self.stream.unit() * total;
        self.up_to.partition_point(|&up_to| up_to <= at).min(self.up_to.len() - 1) as u16
    }
}

/// What requests bring to be encoded.
#[derive(Clone, Debug)]
struct Encoder {
    lengths: Lengths,
    length_stream: Stream,
    share: f64,
    share_stream: Stream,
}

impl Encoder {
    fn new(spec: &EncoderSpec, streams: &RngStreams) -> Self {
        Self {
            lengths: Lengths::new(&spec.tokens),
            length_stream: streams.get("workload.encoder_tokens"),
            share: spec.share,
            share_stream: streams.get("workload.encoder_share"),
        }
    }

    fn draw(&mut self) -> Result<u32, SimError> {
        // Both draws are made for every request: another share leaves the others' lengths as they were.
        let tokens = self.lengths.draw(&mut self.length_stream)?;
        Ok(if self.share_stream.unit() < self.share { tokens } else { 0 })
    }
}

/// Shared prefixes. The length of prefix i comes from a stream of its own, so no table of them is kept.
#[derive(Clone, Debug)]
struct Prefixes {
    popularity: Zipf,
    choice_stream: Stream,
    share: f64,
    share_stream: Stream,
    lengths: Lengths,
    streams: RngStreams,
    /// (prefix, its tokens) of each request.
    drawn: Vec<(u32, u32)>,
}

impl Prefixes {
    fn new(spec: &SharedPrefixSpec, streams: RngStreams) -> Self {
        Self {
            popularity: Zipf::new(u64::from(spec.count), spec.zipf_exponent),
            choice_stream: streams.get("workload.prefix"),
            share: spec.share,
            share_stream: streams.get("workload.prefix_share"),
            lengths: Lengths::new(&spec.tokens),
            streams,
            drawn: Vec::new(),
        }
    }

    /// Draws the prefix of the next request; returns its tokens, 0 for none.
    fn draw(&mut self) -> Result<u32, SimError> {
        // Both draws are made for every request: another share leaves the others' choices as they were.
        let prefix = self.popularity.draw(&mut self.choice_stream) as u32;
        let entry = if self.share_stream.unit() < self.share {
            (prefix, self.lengths.draw(&mut self.streams.get(&format!("workload.prefix_tokens.{prefix}")))?)
        } else {
            (NO_PREFIX, 0)
        };
        self.drawn.push(entry);
        Ok(entry.1)
    }
}

#[cfg(test)]
mod tests;
