//! The closed set of events, and the order of those that fall on the same nanosecond.

use crate::ids::{ReplicaId, RequestId};

/// What happens. Events are facts: small, `Copy`, never changed once scheduled. Those with a number belong to one
/// attempt at a request, and mean nothing once it has started over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The step that a replica waits for is done.
    StepEnd(ReplicaId),
    /// A transfer of KV that a replica's requests wait for is done.
    KvTransfer(ReplicaId),
    /// A part of a request's KV starts on its way to the next replica.
    TransferStart(RequestId, u16),
    /// A part of a request's KV has reached the next replica.
    TransferEnd(RequestId, u16),
    /// Flows in the network may have ended.
    FlowEnd,
    /// Rates of flows in the network are settled, once for all changes of an instant.
    SettleFlows,
    /// A request that one replica is done with goes on to the next.
    HandOver(RequestId, u16),
    /// A request reaches the cluster.
    Arrival(RequestId),
    /// A request reaches the API servers of its replica.
    Accept(RequestId, u16),
    /// A request that an API server has processed reaches its engine.
    Submit(RequestId, u16),
    /// The client has the last token of a request.
    Delivered(RequestId, u16),
    /// A client whose request is not done gives up.
    Timeout(RequestId, u16),
    /// A client that was turned away, or gave up, tries again.
    Retry(RequestId),
    /// The change of the plan with this number happens.
    Change(u32),
    /// The change of the plan with this number is over.
    ChangeOver(u32),
    /// A replica, named by its first engine, is in service.
    InService(ReplicaId),
    /// An autoscaler looks at its cluster.
    Autoscale(u32),
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
            Self::FlowEnd | Self::TransferStart(..) | Self::TransferEnd(..) => Phase::Transfer,
            Self::StepEnd(_) | Self::KvTransfer(_) | Self::Delivered(..) => Phase::Completion,
            Self::HandOver(..)
            | Self::Arrival(_)
            | Self::Accept(..)
            | Self::Submit(..)
            | Self::Timeout(..)
            | Self::Retry(_)
            | Self::Change(_)
            | Self::ChangeOver(_)
            | Self::InService(_)
            | Self::Autoscale(_) => Phase::Arrival,
            Self::Schedule(_) => Phase::Schedule,
            Self::SettleFlows | Self::Sample => Phase::Sample,
        }
    }
}
