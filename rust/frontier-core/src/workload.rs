//! Requests before they reach a cluster: when they arrive, how long they are, what their prompts share.
//!
//! A workload is a trace or is drawn from distributions; its arrivals are an open process or a closed loop of
//! clients. The content of a prompt is a list of [`Segment`]s: the identity of a token is (stream, position), and
//! two prompts share a prefix exactly as far as their token identities agree. Token arrays never exist.
//!
//! Draws of a request depend on the seed, the name of the property's stream and the request's number alone, so
//! that another arrival process leaves lengths, prefixes, sessions and priorities as they were. Streams:
//! `workload.arrivals`, `.prompt_tokens`, `.output_tokens`, `.prefix`, `.prefix_share`, `.prefix_tokens.I` (one per
//! prefix), `.session`, `.priority`, `.model`, `.encoder_tokens`, `.encoder_share`.

use std::sync::Arc;

use crate::error::SimError;
use crate::ids::{RequestId, SessionId};
use crate::plan::workload::{ArrivalSpec, WorkloadSpec};
use crate::rng::RngStreams;
use crate::time::{SimDuration, SimTime};

mod arrivals;
mod laws;
mod lengths;
mod synthetic;
pub mod trace;

use arrivals::Arrivals;
pub(crate) use laws::standard_normal;
use synthetic::Synthetic;
pub use trace::{NO_SESSION, RawSegments, RawTrace, TraceColumns};

/// Stream `OUTPUT_STREAM_BASE + i` is the output of request i. Streams below are named by the workload.
pub const OUTPUT_STREAM_BASE: u64 = 1 << 62;
/// Stream `UNIQUE_STREAM_BASE + i` is the part of request i's prompt that nobody shares.
pub const UNIQUE_STREAM_BASE: u64 = 1 << 63;

/// A request before it reaches a cluster. `prompt_tokens + output_tokens` fits 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestSpec {
    /// Its number, in order of issue.
    pub id: RequestId,
    /// When it arrives.
    pub arrival: SimTime,
    /// Tokens of the prompt, at least 1, a shared prefix included.
    pub prompt_tokens: u32,
    /// Tokens to generate, at least 1.
    pub output_tokens: u32,
    /// Lower is served first (under the priority policy).
    pub priority: i32,
    /// The conversation it belongs to.
    pub session: Option<SessionId>,
    /// Orders requests of equal arrival (and priority).
    pub tie_rank: u32,
    /// The model it asks for: the number of its path through the clusters.
    pub model: u16,
    /// What is encoded before its prompt, in tokens of the encoder; 0 for nothing.
    pub encoder_tokens: u32,
}

/// A run of consecutive tokens of one stream. `start + len` fits 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The stream.
    pub stream: u64,
    /// Position of the first token in the stream.
    pub start: u32,
    /// Number of tokens, at least 1.
    pub len: u32,
}

/// The source of a run's requests.
///
/// A trace with more requests than rows starts over (which needs an arrival process). Each pass counts request
/// ids on and has unique content of its own wherever a row has no segments; explicit segments are shared between
/// passes as the trace says, except that output streams refer to the outputs of the own pass. Sessions and
/// priorities are those of the row: a session that comes again is the same client. Tie ranks of a pass follow
/// those of the pass before.
#[derive(Clone, Debug)]
pub struct Workload {
    source: Source,
    timing: Timing,
    /// Requests issued so far: the id of the next one.
    issued: u64,
    num_requests: Option<u64>,
    /// No arrival is later than this.
    last_arrival: Option<SimTime>,
}

#[derive(Clone, Debug)]
enum Source {
    Trace(Arc<TraceColumns>),
    Synthetic(Box<Synthetic>),
}

#[derive(Clone, Debug)]
enum Timing {
    /// The trace's own arrivals.
    Trace,
    /// A process that does not depend on how requests fare.
    Open(Arrivals),
    /// Clients that wait for their last request; `initial` of them have not sent any.
    Closed { initial: u32, think_time: SimDuration },
}

impl Workload {
    /// Returns the workload of a plan. `trace` is needed by, and only by, [`WorkloadSpec::Trace`].
    ///
    /// # Errors
    /// [`SimError::Plan`] if a value of `spec` is not allowed or does not go with the trace.
    pub fn new(
        spec: &WorkloadSpec,
        trace: Option<Arc<TraceColumns>>,
        streams: &RngStreams,
    ) -> Result<Self, SimError> {
        spec.check()?;
        match (spec, trace) {
            (WorkloadSpec::Trace { arrivals, num_requests }, Some(trace)) => {
                check_passes(&trace, arrivals.is_some(), *num_requests)?;
                Ok(Self {
                    num_requests: Some(num_requests.unwrap_or(trace.len() as u64)),
                    source: Source::Trace(trace),
                    timing: arrivals.as_ref().map_or(Timing::Trace, |spec| Timing::new(spec, streams)),
                    issued: 0,
                    last_arrival: None,
                })
            }
            (WorkloadSpec::Synthetic(spec), None) => Ok(Self {
                source: Source::Synthetic(Box::new(Synthetic::new(spec, streams))),
                timing: Timing::new(&spec.arrivals, streams),
                issued: 0,
                num_requests: spec.num_requests,
                last_arrival: spec.duration_ns.map(SimTime),
            }),
            (WorkloadSpec::Trace { .. }, None) => {
                refuse("workload.kind", "is \"trace\", but no trace was handed over with the plan".into())
            }
            (WorkloadSpec::Synthetic(_), Some(_)) => refuse(
                "workload.kind",
                "is \"synthetic\", but a trace was handed over, which it does not use".into(),
            ),
        }
    }

    /// Returns one more than the largest model that a request may ask for.
    pub fn num_models(&self) -> usize {
        match &self.source {
            Source::Trace(trace) => trace.num_models(),
            Source::Synthetic(synthetic) => synthetic.num_models(),
        }
    }

    /// Returns how many requests will be issued, if that is known beforehand.
    pub fn total(&self) -> Option<u64> {
        let endless = match &self.timing {
            Timing::Open(arrivals) => arrivals.is_endless(),
            Timing::Trace | Timing::Closed { .. } => true,
        };
        self.num_requests.filter(|_| endless && self.last_arrival.is_none())
    }

    /// Returns the next request that does not depend on how others fare, in order of arrival, or `None` once there
    /// is none: the whole of an open workload, or the first request of each client of a closed loop (at time 0).
    ///
    /// # Errors
    /// [`SimError::ClockOverflow`], or [`SimError::Input`] past 2^32 - 1 requests.
    pub fn next_arrival(&mut self) -> Result<Option<RequestSpec>, SimError> {
        if self.is_exhausted() {
            return Ok(None);
        }
        let arrival = match &mut self.timing {
            Timing::Trace => None,
            Timing::Open(arrivals) => match arrivals.next() {
                Ok(Some(arrival)) => Some(arrival),
                Ok(None) => return Ok(None),
                // Past the end of time is past any duration.
                Err(SimError::ClockOverflow) if self.last_arrival.is_some() => {
                    return Ok(self.close());
                }
                Err(error) => return Err(error),
            },
            Timing::Closed { initial: 0, .. } => return Ok(None),
            Timing::Closed { initial, .. } => {
                *initial -= 1;
                Some(SimTime::ZERO)
            }
        };
        self.issue(arrival)
    }

    /// Returns the request that a client of a closed loop sends after one that ended at `now`; `None` once the
    /// workload is exhausted, and always for open workloads.
    ///
    /// # Errors
    /// As [`Workload::next_arrival`].
    pub fn next_after(&mut self, now: SimTime) -> Result<Option<RequestSpec>, SimError> {
        let Timing::Closed { think_time, .. } = self.timing else {
            return Ok(None);
        };
        if self.is_exhausted() {
            return Ok(None);
        }
        match now.after(think_time) {
            Ok(arrival) => self.issue(Some(arrival)),
            Err(_) if self.last_arrival.is_some() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Appends the segments of an issued request's prompt to `out`, in normal form: none is empty, and none is
    /// continued by the next. Content that nobody shares is one segment of the request's unique stream.
    ///
    /// # Panics
    /// If the request was not issued by this workload.
    pub fn prompt_segments(&self, request: RequestId, out: &mut Vec<Segment>) {
        assert!(u64::from(request.0) < self.issued, "Invariant: request {} was issued", request.0);
        match &self.source {
            Source::Trace(trace) => trace_segments(trace, request, out),
            Source::Synthetic(synthetic) => synthetic.prompt_segments(request, out),
        }
    }

    fn is_exhausted(&self) -> bool {
        self.num_requests.is_some_and(|n| self.issued >= n)
    }

    /// Ends the workload.
    fn close(&mut self) -> Option<RequestSpec> {
        self.num_requests = Some(self.issued);
        None
    }

    /// Issues the next request, at `arrival` or when the trace says.
    fn issue(&mut self, arrival: Option<SimTime>) -> Result<Option<RequestSpec>, SimError> {
        if let (Some(arrival), Some(last)) = (arrival, self.last_arrival)
            && arrival > last
        {
            // Later arrivals are later still in an open process; in a closed loop, as completions come in order.
            return Ok(self.close());
        }
        let id = u32::try_from(self.issued).ok().filter(|&id| id != u32::MAX).map(RequestId);
        let id = id.ok_or_else(|| SimError::Input {
            what: "workload".into(),
            message: format!(
                "more than {} requests; lower the duration or the rate, or set num_requests",
                u32::MAX
            ),
        })?;
        let request = match &mut self.source {
            Source::Trace(trace) => trace_request(trace, id, arrival),
            Source::Synthetic(synthetic) => synthetic.draw(id, arrival.unwrap_or(SimTime::ZERO))?,
        };
        self.issued += 1;
        Ok(Some(request))
    }
}

impl Timing {
    fn new(spec: &ArrivalSpec, streams: &RngStreams) -> Self {
        match (Arrivals::new(spec, streams.get("workload.arrivals")), spec) {
            (Some(arrivals), _) => Self::Open(arrivals),
            (None, ArrivalSpec::ClosedLoop { concurrency, think_time_ns }) => {
                Self::Closed { initial: *concurrency, think_time: SimDuration(*think_time_ns) }
            }
            (None, _) => unreachable!("Invariant: only a closed loop is no arrival process"),
        }
    }
}

fn refuse<T>(path: &str, message: String) -> Result<T, SimError> {
    Err(SimError::Plan { path: path.into(), message })
}

/// Refuses more requests than rows without arrivals of their own, and tie ranks that do not fit 32 bits.
fn check_passes(trace: &TraceColumns, has_arrivals: bool, num_requests: Option<u64>) -> Result<(), SimError> {
    let rows = trace.len() as u64;
    let requests = num_requests.unwrap_or(rows);
    if requests > rows && !has_arrivals {
        return refuse(
            "workload.num_requests",
            format!(
                "was {requests}, must be at most the {rows} rows of the trace unless workload.arrivals is set"
            ),
        );
    }
    let passes = requests.div_ceil(rows);
    if passes > 1 && passes.saturating_mul(trace.tie_stride()) > 1 << 32 {
        let message = format!(
            "was {requests}, which is {passes} passes over the trace: its tie ranks (up to {}) do not fit \
                               32 bits that often",
            trace.tie_stride() - 1
        );
        return refuse("workload.num_requests", message);
    }
    Ok(())
}

fn trace_request(trace: &TraceColumns, id: RequestId, arrival: Option<SimTime>) -> RequestSpec {
    let (pass, row) = (id.index() / trace.len(), id.index() % trace.len());
    let pass_rank = if pass == 0 { 0 } else { pass as u64 * trace.tie_stride() };
    let row = trace.row(row);
    RequestSpec {
        id,
        arrival: arrival.unwrap_or(SimTime(row.arrival_ns)),
        prompt_tokens: row.prompt_tokens,
        output_tokens: row.output_tokens,
        priority: row.priority,
        session: row.session,
        tie_rank: pass_rank as u32 + row.tie_rank,
        model: row.model,
        encoder_tokens: row.encoder_tokens,
    }
}

fn trace_segments(trace: &TraceColumns, id: RequestId, out: &mut Vec<Segment>) {
    let (pass, row) = (id.index() / trace.len(), id.index() % trace.len());
    let segments = trace.segments(row);
    if segments.is_empty() {
        let len = trace.row(row).prompt_tokens;
        out.push(Segment { stream: UNIQUE_STREAM_BASE + u64::from(id.0), start: 0, len });
        return;
    }
    let shift = (pass * trace.len()) as u64;
    out.extend(segments.iter().map(|&segment| {
        let own = if segment.stream >= OUTPUT_STREAM_BASE { shift } else { 0 };
        Segment { stream: segment.stream + own, ..segment }
    }));
}

#[cfg(test)]
mod tests;
