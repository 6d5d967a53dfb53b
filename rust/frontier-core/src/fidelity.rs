//! How long a batch takes on one replica. This plane knows no request, no queue and no policy: it sees a step
//! as a *distribution* of query and context lengths ([`BatchShape`]) and answers with a time ([`StepTimer`]).
//!
//! Roofline: every operator takes `max(compute, memory, network) + launch` seconds, `count` times per step
//! (Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore
//! architectures", CACM 52(4), 2009). Compute knows tiles and waves, memory knows what must cross HBM at least
//! once, network is latency plus bytes over bandwidth. All of it is IEEE addition, multiplication, division,
//! rounding and comparison in a fixed order, so that a time is the same on every platform.
//!
//! Left out: cache residency, clocks and power, contention between kernels that overlap, routing skew of
//! experts, quantisation kernels, CUDA-graph padding, attention tiles of other than four query heads per KV head.
//!
//! | room | holds |
//! |---|---|
//! | [`batch`] | the batch as a distribution |
//! | [`cost`] | what one run of an operator costs, and what bounds it |
//! | [`device`] | sustained rates of one GPU |
//! | [`gemm`], [`grouped_gemm`], [`attention`], [`elementwise`], [`collective`] | operators |
//! | [`program`] | the operators of a forward pass, collapsed into tables where they depend on a row count alone |
//! | [`linear`] | the linear clock of the golden logs |
//! | [`step`] | the step timer |

pub mod attention;
pub mod batch;
pub mod collective;
pub mod cost;
pub mod device;
pub mod elementwise;
pub mod gemm;
pub mod grouped_gemm;
pub mod linear;
pub mod program;
pub mod step;

pub use batch::BatchShape;
pub use cost::{Bound, OperatorTime};
pub use step::{StepTime, StepTimer};

#[cfg(test)]
mod fixtures;
