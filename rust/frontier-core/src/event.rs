//! The closed set of events, and the order of those that fall on the same nanosecond.

use crate::ids::{ReplicaId, RequestId};

/// What happens. Events are facts: small, `Copy`, never changed once scheduled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The step that a replica waits for is done.
    StepEnd(ReplicaId),
    /// A transfer of KV that a replica's requests wait for is done.
    KvTransfer(ReplicaId),
    /// A part of a request's KV starts on its way to the next replica.
    TransferStart(RequestId),
    /// A part of a request's KV has reached the next replica.
    TransferEnd(RequestId),
    /// Flows in the network may have ended.
    FlowEnd,
    /// Rates of flows in the network are settled, once for all changes of an instant.
    SettleFlows,
    /// A request that one replica is done with goes on to the next.
    HandOver(RequestId),
    /// A request reaches the cluster.
    Arrival(RequestId),
    /// A request reaches the API servers of its replica.
    Accept(RequestId),
    /// A request that an API server has processed reaches its engine.
    Submit(RequestId),
    /// The client has the last token of a request.
    Delivered(RequestId),
    /// A replica forms its next batches.
    Schedule(ReplicaId),
    /// A point of the time line is taken.
    Sample,
}

const _: () = assert!(size_of::<Event>() <= 8, "Invariant: events stay small");

/// Order within one nanosecond. The order is part of the simulator's contract: changing it changes results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Transfers between replicas first: an engine that completes a batch at t sees what reached it by t.
    Transfer = 0,
    /// Then completions: they free blocks and slots, and a router must see replicas without finished work.
    Completion = 1,
    /// Then arrivals, so that a request arriving at t is visible to every batch formed at t.
    Arrival = 2,
    /// Then batches are formed, from everything that the instant brought.
    Schedule = 3,
    /// Measurements come last: they see the state that the instant leaves behind.
    Sample = 4,
}

impl Event {
    /// Returns the phase in which the event is handled.
    #[inline]
    pub const fn phase(self) -> Phase {
        match self {
            Self::FlowEnd | Self::TransferStart(_) | Self::TransferEnd(_) => Phase::Transfer,
            Self::StepEnd(_) | Self::KvTransfer(_) | Self::Delivered(_) => Phase::Completion,
            Self::HandOver(_) | Self::Arrival(_) | Self::Accept(_) | Self::Submit(_) => Phase::Arrival,
            Self::Schedule(_) => Phase::Schedule,
            Self::SettleFlows | Self::Sample => Phase::Sample,
        }
    }
}
