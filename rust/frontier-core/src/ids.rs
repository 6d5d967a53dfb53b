//! Typed indices. State lives in arenas (plain vectors); ids travel in events.

/// Declares `u32` newtype ids that index vectors.
macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(pub u32);

        impl $name {
            /// Returns the id as a vector index.
            #[inline]
            pub const fn index(self) -> usize {
                self.0 as usize
            }

            /// Returns the id of the vector position `index`.
            ///
            /// # Panics
            /// If `index` does not fit 32 bits.
            #[inline]
            pub fn from_index(index: usize) -> Self {
                Self(u32::try_from(index).expect("Invariant: an arena holds fewer than 2^32 items"))
            }
        }
    )+};
}

ids! {
    /// A request, numbered from 0 in order of issue by the workload.
    RequestId,
    /// A user session (conversation) that requests belong to.
    SessionId,
    /// One engine: a replica, or one data-parallel rank of a replica (tp x pp GPUs). Events name a group of ranks in
    /// lock step by its replica.
    ReplicaId,
    /// A physical KV-cache block of one replica. Block 0 is the null block.
    BlockId,
    /// The place of a live request in an engine's slab.
    Slot,
}
