//! KV that moved from replica to replica: one row per request and hand-over.

use crate::ids::{ReplicaId, RequestId};
use crate::time::SimTime;

/// The hand-over of one request from one replica to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferRecord {
    /// The request.
    pub request: RequestId,
    /// The engine that holds its KV.
    pub source: ReplicaId,
    /// The engine that goes on with it.
    pub destination: ReplicaId,
    /// When the source was done with it.
    pub ready: Option<SimTime>,
    /// When the first byte left.
    pub start: Option<SimTime>,
    /// When the last byte was there, and the source's blocks were no longer needed.
    pub end: Option<SimTime>,
    /// Bytes moved; none where the destination had all of it in its cache.
    pub bytes: u64,
    /// The destination was chosen before the prompt was computed, and left service before it was needed: nothing was
    /// handed over.
    pub void: bool,
}

impl TransferRecord {
    /// Books that all of it is there `now`: `bytes` from `start` on, or nothing. Returns where.
    pub fn close(&mut self, now: SimTime, start: Option<SimTime>, bytes: u64) -> ReplicaId {
        self.start = Some(start.unwrap_or(now));
        self.end = Some(now);
        self.bytes = bytes;
        self.destination
    }
}
