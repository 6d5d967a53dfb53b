//! How long a batch takes on one replica. This plane knows no request, no queue and no policy: it sees a step
//! as a *distribution* of query and context lengths ([`BatchShape`]) and answers with a time ([`StepTimer`]).
//!
//! Roofline: every operator takes `max(compute, memory, network) + launch` seconds, `count` times per step
//! (Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore
//! architectures", CACM 52(4), 2009). Compute knows tiles and waves, memory knows what must cross HBM at least
//! once, network is latency plus bytes over bandwidth. All of it is IEEE addition, multiplication, division,
//! rounding and comparison in a fixed order, so that a time is the same on every platform.
//!
//! Left out: cache residency, clocks and power, contention between kernels that overlap.
//!
//! Learned: where a predictor was trained on measurements, an operator's time is its bound times the ratio that trees
//! make of its features ([`learned`], [`crate::predictor`]); every time then says how far it lies from what was
//! measured ([`trust`]).
//!
//! | room | holds |
//! |---|---|
//! | [`batch`] | the batch as a distribution |
//! | [`cost`] | what one run of an operator costs, and what bounds it |
//! | [`device`] | sustained rates of one GPU |
//! | [`gemm`], [`attention`], [`elementwise`], [`collective`], [`moe_exchange`] | kernels: bounds and features |
//! | [`fused_moe`], [`expert_load`] | routed experts, and how tokens spread over them |
//! | [`expert_layers`] | layers with experts where routing is part of the plan |
//! | [`learned`], [`trust`] | predictors at work, and what their answers rest on |
//! | [`row_operator`] | operators that depend on a row count alone, summed into tables |
//! | [`attention_operator`] | attention in its place in the program |
//! | [`program`] | the operators of a forward pass |
//! | [`graphs`] | which CUDA graph a step replays, and to how many rows it is padded |
//! | [`launches`] | host time of launching kernels and graphs |
//! | [`draft`] | what speculative decoding computes beside the forward pass |
//! | [`features`] | features and bounds from columns, for training |
//! | [`afd`] | decoding with attention and FFN on ranks of their own |
//! | [`linear`] | the linear clock of the golden logs |
//! | [`step`] | the step timer |

pub mod afd;
pub mod attention;
pub mod attention_operator;
pub mod batch;
pub mod collective;
pub mod cost;
pub mod device;
pub mod draft;
pub mod elementwise;
mod encoder_attention;
pub mod expert_layers;
pub mod expert_load;
pub mod features;
pub mod fused_moe;
pub mod gemm;
pub mod graphs;
pub mod launches;
pub mod learned;
pub mod linear;
pub mod moe_exchange;
pub mod program;
pub mod row_operator;
pub mod step;
mod tables;
pub mod trust;

pub use batch::BatchShape;
pub use cost::{Bound, OperatorTime};
pub use expert_layers::StepOrigin;
pub use graphs::{Dispatch, GraphDispatcher, GraphMode};
pub use step::{StepTime, StepTimer};
pub use trust::{OperatorTrust, Outside, Provenance, TrustTally};

#[cfg(test)]
mod fixtures;
