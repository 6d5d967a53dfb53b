//! The frontier simulator core: a deterministic discrete-event simulation of large-language-model serving.
//!
//! | room | holds |
//! |---|---|
//! | [`ids`], [`time`], [`rng`], [`error`] | typed indices, integer nanoseconds, named random streams, errors |
//! | [`plan`] | the document that a run is made of |
//! | [`workload`] | requests before they reach a cluster: arrival processes, lengths, traces, prompt content |

pub mod error;
pub mod ids;
pub mod plan;
pub mod rng;
pub mod time;
pub mod workload;
