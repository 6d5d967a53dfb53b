//! Steps with attention and FFN on ranks of their own (attention-FFN disaggregation, AFD): in every layer each
//! micro-batch goes from its attention rank to the FFN ranks and back, while the other micro-batches keep both busy
//! ("ping-pong", MegaScale-Infer, arXiv 2504.02263, section 4.1; Step-3, arXiv 2507.19427).
//!
//! | room | holds |
//! |---|---|
//! | [`pipeline`] | one iteration as data: layers, micro-batches, ranks, durations; its rules |
//! | [`event_graph`] | the iteration as events: every activity is one, and a span in a trace |
//! | [`max_plus`] | the same nanoseconds in one loop |
//! | [`closed_form`] | the same nanoseconds in one formula, where everything is uniform |
//! | [`transfer`] | how long activations travel |
//! | [`step`] | a step: batches cut into micro-batches, both sides priced, the iteration evaluated |

pub mod closed_form;
pub mod event_graph;
pub mod max_plus;
pub mod pipeline;
pub mod step;
pub mod transfer;

#[cfg(test)]
mod fixtures;
