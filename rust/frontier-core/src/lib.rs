//! The frontier simulator core: a deterministic discrete-event simulation of large-language-model serving.
//!
//! | room | holds |
//! |---|---|
//! | [`ids`], [`time`], [`rng`], [`error`] | typed indices, integer nanoseconds, named random streams, errors |
//! | [`plan`] | the document that a run is made of |
//! | [`fidelity`] | how long a batch takes: knows operators, no request, no queue, no policy |

pub mod error;
pub mod fidelity;
pub mod ids;
pub mod plan;
pub mod rng;
pub mod time;
