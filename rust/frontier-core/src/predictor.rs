//! Learned predictors of one operator's time: what a pack holds, and how it is evaluated.
//!
//! The time of an operator is `bound(x; theta) * exp(margin(features(x))) * calibration`: a bound from the
//! machine's rates, and gradient-boosted trees that learn how far a kernel stays from it. Collectives are tables
//! of time over bytes instead. Everything here is a function of numbers: no operator formula, no batch.
//!
//! Trees are exact: [`Ensemble::margin`] walks nodes and equals XGBoost's float32 margin bit for bit;
//! [`Ensemble::specialise`] resolves what a plan fixes and lays the rest out for speed, with the same bits;
//! [`CellMemo`] remembers `exp(margin)` by cell, between thresholds the ensemble being constant.
//!
//! | room | holds |
//! |---|---|
//! | [`pack`] | a pack: a file of many predictors, checked before anything of it is believed |
//! | [`container`] | its container: named tensors behind a JSON header (safetensors) |
//! | [`manifest`] | what it says of each predictor |
//! | [`ensemble`] | trees as trained: read, checked, walked node by node |
//! | [`compiled`] | trees with fixed features resolved, evaluated on ranks without branches |
//! | [`memo`] | the memo of cells |
//! | [`table`] | time over bytes, interpolated in logarithms |
//! | [`residuals`] | how far measurements scatter around predictions |

pub mod compiled;
pub mod container;
pub mod ensemble;
pub mod manifest;
pub mod memo;
pub mod pack;
pub mod residuals;
pub mod table;

pub use compiled::Compiled;
pub use ensemble::Ensemble;
pub use manifest::{BoundParameters, Cold, Identity, Manifest, Measurement, Operator, PredictorInfo};
pub use memo::CellMemo;
pub use pack::{Form, Pack, PackIndex, Predictor, static_shape_hash};
pub use residuals::ResidualQuantiles;
pub use table::LogTable;

#[cfg(test)]
mod fixtures;

use crate::error::SimError;

/// Returns the error of a pack in which something is wrong.
fn refuse(what: impl Into<String>) -> SimError {
    SimError::Pack { what: what.into() }
}
